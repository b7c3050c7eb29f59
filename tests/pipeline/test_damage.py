"""Damaged run folders and experiment files: the same outputs, or a named error and a way out."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.core import integrity
from rlaif.core.errors import ConfigError, EngineError, StoreError
from rlaif.core.integrity import CHECK
from rlaif.core.store import Store, explain_os_errors, make_folder, name_step
from rlaif.engines.model_folders import check_weights
from rlaif.engines.remote.cache import Entry, RequestCache
from rlaif.engines.remote.meter import Account, Meter, meters_of, read_meters
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import load_run
from rlaif.pipeline.single_step import Records
from rlaif.pipeline.steps import step_module
from tests.servers.scripted import ScriptedServer
from tests.support import damage
from tests.support.mutations import MUTATIONS, numbers

OLD = Path(__file__).resolve().parents[1] / "old_run"


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> list[damage.Project]:
    folder = tmp_path_factory.mktemp("projects")
    data = damage.scripted(rounds=1)
    return [
        damage.project("finished", folder / "a", data, None),
        damage.project("stopped", folder / "b", data, ("self", 1)),
    ]


@pytest.mark.parametrize("rotten", [False, True])
def test_damaged_run_folders(projects: list[damage.Project], tmp_path: Path, rotten: bool) -> None:
    for _, case in damage.cases(projects, tmp_path, 7, range(16)):
        said, why = damage.judge(case, tmp_path, rotten)
        assert said in ("same", "named", "found", "nothing changed"), f"{case}: {said}\n{why}"


def test_changed_experiment_files(tmp_path: Path) -> None:
    data = damage.scripted(rounds=1)
    path = damage.write(tmp_path / "files", data)
    for number in range(24):
        kind = list(MUTATIONS)[number % len(MUTATIONS)]
        text = MUTATIONS[kind](random.Random(number), data)
        path.write_text(text, "utf-8", errors="surrogatepass")
        words = ["run", str(path), "--out", str(tmp_path / str(number)), "--no-report", "-q"]
        result = damage.command(*words)
        assert not result.fault, f"{number}: {result.fault}\n{text}"
        assert result.code in (0, 2) and (result.code == 0 or result.err), text
        assert kind != "beyond" or result.code == 2, text


@pytest.mark.parametrize("seeds", ["seed=-1", "seeds=[3, -1]", "seed=9223372036854775808"])
def test_a_seed_that_no_generator_takes_is_refused(tmp_path: Path, seeds: str) -> None:
    data = damage.scripted(rounds=1)
    del data["seed"], data["dataset"]
    words = ["run", str(damage.write(tmp_path / "e", data)), "--out", str(tmp_path / "out")]
    result = damage.command(*words, "-q", "--set", seeds)
    assert (result.code, result.fault) == (2, "") and "seed" in result.err
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_no_number_may_be_infinite_in_any_key(tmp_path: Path) -> None:
    data = damage.scripted(alarms={"kl_budget": 10.0})
    path = tmp_path / "experiment.yaml"
    for loc in numbers(data):
        for value in (float("inf"), float("nan"), 10**30):
            changed = json.loads(json.dumps(data))
            damage_at = changed
            for key in loc[:-1]:
                damage_at = damage_at[key]
            damage_at[loc[-1]] = value
            path.write_text(yaml.safe_dump(changed))
            result = damage.command("run", str(path), "--out", str(tmp_path / "out"))
            assert result.code == 2 and not result.fault
            line = result.err.splitlines()[0]
            assert line.startswith(f"rlaif: {path}:") and ".".join(map(str, loc)) in line
    assert not (tmp_path / "out" / "config.yaml").exists()


def as_the_version_before_left_it(out: Path) -> None:
    """No commit logs and no checksums: a blank line closes a batch, and markers name sizes."""
    for marker in out.glob("steps/*/done.json"):
        for log in marker.parent.glob("*.commits"):
            log.unlink()
        for path in marker.parent.glob("*.jsonl"):
            path.write_bytes(path.read_bytes() + b"\n")
        done = {k: v for k, v in json.loads(marker.read_text()).items() if k != CHECK}
        sizes = {path.name: path.stat().st_size for path in marker.parent.glob("*.jsonl")}
        marker.write_text(json.dumps(done | {"files": sizes}))


def test_a_folder_of_the_version_before_has_nothing_to_do(tmp_path: Path) -> None:
    path = damage.write(tmp_path / "files", damage.scripted(rounds=1))
    out = tmp_path / "run"
    first = run_experiment(path, out)
    before = list(load_run(out).rows("judgements"))
    as_the_version_before_left_it(out)
    result = run_experiment(path, out)
    assert (result.ran, result.reused) == (0, first.ran)
    assert list(load_run(out).rows("judgements")) == before
    found = damage.command("status", str(out), "--verify")
    assert (found.code, "of an earlier version have none" in found.out) == (0, True), found
    # One that was killed as it wrote its second batch goes on after the first.
    folder = next(p.parent for p in sorted(out.glob("steps/*/completions.jsonl")))
    whole = (folder / "completions.jsonl").read_bytes()
    (folder / "done.json").unlink()
    (folder / "completions.jsonl").write_bytes(whole + whole[:300])
    assert run_experiment(path, out).ran == 1
    rows = Store(out).step(folder.name).read("completions")
    assert rows == [json.loads(line) for line in whole.splitlines() if line]
    assert damage.command("status", str(out), "--verify").code == 0


def test_a_folder_that_the_version_before_wrote_is_read(tmp_path: Path) -> None:
    """Its steps have other numbers since, so a run would make them again; what is there stays."""
    shutil.copytree(OLD, tmp_path / "old")
    run = load_run(tmp_path / "old" / "run")
    assert len(list(run.rows("completions"))) == 4
    assert len(list(run.rows("preferences"))) == 1
    assert {row["status"] for row in run.rows("judgements")} == {"ok"}
    assert damage.command("report", str(run.root)).code == 0


def test_a_new_number_in_versions_is_another_step_for_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    (tmp_path / "fake.yaml").write_text("path: none\nengine: fake\n")
    words = ["sample", str(tmp_path / "prompts.jsonl"), "--model", str(tmp_path / "fake.yaml")]
    words += ["--out", str(tmp_path / "out"), "-q"]
    assert damage.command(*words).code == 0
    assert damage.command(*words).code == 0
    step = step_module("sample")
    monkeypatch.setattr(step, "VERSION", step.VERSION + 1)
    result = damage.command(*words)
    assert result.code == 2 and "version of rlaif that gives another output" in result.err


def test_status_verify_counts_and_names(projects: list[damage.Project], tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(projects[0].run, root)
    whole = damage.command("status", str(root), "--verify", "--json")
    figures = json.loads(whole.out)
    assert whole.code == 0 and figures["faults"] == [] and figures["unchecked"] == 0
    assert figures["bytes"] == sum(p.stat().st_size for p in root.glob("steps/*/*.jsonl"))
    path = next(root.glob("steps/*/judgements.jsonl"))
    before = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace('"ok"', '"no"', 1))
    os.utime(path, ns=(before, before))
    found = damage.command("status", str(root), "--verify")
    assert found.code == 2
    assert f"Delete the folder {path.parent} to compute it again." in found.err
    assert damage.command("status", str(tmp_path), "--verify").code == 2


@pytest.mark.parametrize("text", ["[]", "{}", '{"m": []}', '{"m": {"calls": 1}}', "{", "3"])
def test_damaged_meters_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "remote.json").write_text(text)
    if text == "{}":
        assert read_meters(tmp_path) == {}
        return
    with pytest.raises(StoreError, match=r"remote\.json: damaged .*Delete this file"):
        read_meters(tmp_path)


def test_a_changed_digit_in_meters_and_rounds_is_named(
    projects: list[damage.Project], tmp_path: Path
) -> None:
    row = {"m": integrity.seal_row(Meter().summary())}
    (tmp_path / "remote.json").write_text(json.dumps(row))
    assert list(read_meters(tmp_path)) == ["m"]
    row["m"]["calls"] += 1
    (tmp_path / "remote.json").write_text(json.dumps(row))
    with pytest.raises(StoreError, match=r"remote\.json: damaged .*Delete this file"):
        read_meters(tmp_path)
    shutil.copytree(projects[0].run, tmp_path / "run")
    rounds = tmp_path / "run" / "rounds.jsonl"
    lines = rounds.read_text("utf-8").splitlines()
    first = json.loads(lines[0])
    first["metrics"]["held_out_prompts"] = 3
    rounds.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n", "utf-8")
    result = damage.command("status", str(tmp_path / "run"))
    assert (result.code, result.fault) == (2, "")
    assert "rounds.jsonl: damaged" in result.err and "Run the experiment again" in result.err


@pytest.mark.parametrize("name", ["config.yaml", "prompts.jsonl"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_the_manifest_vouches_for_is_named(
    projects: list[damage.Project], tmp_path: Path, name: str, gone: bool
) -> None:
    shutil.copytree(projects[0].run, tmp_path / "run")
    path = tmp_path / "run" / name
    text = path.read_text("utf-8")
    path.unlink() if gone else path.write_text(text.replace("e", "a", 1), "utf-8")
    result = damage.command("status", str(tmp_path / "run"))
    assert (result.code, result.fault) == (2, "")
    assert f"{name}: missing or changed" in result.err
    words = ["run", str(projects[0].experiment), "--out", str(tmp_path / "run"), "--no-report"]
    assert damage.command(*words, "-q").code == 0
    assert path.read_text("utf-8") == text


@pytest.mark.parametrize("text", [None, "", "{}", "[]"])
def test_a_finished_step_is_counted_without_its_meters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    # A server of another test may have had this one's port, and its answers are kept.
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    with ScriptedServer(tops={"Yes": -0.2, "No": -2.0}, context=5000) as server:
        path = damage.write(tmp_path / "e", damage.served(server.url))
        out = tmp_path / "run"
        run_experiment(path, out)
        before = damage.command("status", str(out), "--json")
        assert json.loads(before.out)["remote"]["far"]["calls"] > 0
        for meters in out.glob("steps/*/remote.json"):
            meters.unlink() if text is None else meters.write_text(text)
        assert damage.command("status", str(out), "--json") == before
        assert run_experiment(path, out).ran == 0
        # Without a marker the step is made anew, and counts what it asks itself.
        assert text != "{}" or meters_of(meters.parent, None) == {}


def test_a_ledger_counts_whole_lines_and_names_damaged_ones(tmp_path: Path) -> None:
    path = tmp_path / "spend.jsonl"
    for cost in (1.0, 2.0):
        Account(path).spend("m", cost)
    whole = path.read_text()
    with path.open("a") as file:
        file.write('{"model": "m", "cos')
    account = Account(path)
    assert account.spent == 3.0
    account.spend("m", 4.0)
    assert [json.loads(line)["cost"] for line in path.read_text().splitlines()] == [1.0, 2.0, 4.0]
    for bad in (whole.replace("2.0", "0.2"), "[]\n" + whole, '{"cost": "x"}\n'):
        path.write_text(bad)
        with pytest.raises(StoreError, match=r"spend\.jsonl:\d: damaged"):
            Account(path)
    # As earlier versions left it: no checksums, and a torn line among the others.
    path.write_text('{"model": "m", "cost": 1.5}\n{"model": "m", "co\n{"model": "m", "cost": 2}\n')
    assert Account(path).spent == 3.5
    # And what they noted where a server's count was none.
    path.write_text('{"cost": NaN}\n{"model": "m", "cost": 2}\n')
    assert Account(path).spent == 2.0


@pytest.mark.parametrize("change", ["cut", "digit", "no object", "another's", "old"])
def test_a_damaged_answer_in_the_cache_is_asked_for_again(tmp_path: Path, change: str) -> None:
    path = tmp_path / "requests.sqlite"
    cache = RequestCache(path, 10**9)
    answer = {"text": "\ud800 3", "usage": {"n": 1.5}}
    cache.put([Entry("a", "m", "u", {}, answer), Entry("b", "m", "u", {}, {"text": "other"})])
    assert cache.get("a") == answer
    with sqlite3.connect(path) as database:
        [[text], [other]] = database.execute("SELECT answer FROM answers ORDER BY key").fetchall()
        changed = {
            "cut": text[:-5],
            "digit": text.replace("3", "4", 1),
            "no object": "[]",
            "another's": other,
            "old": json.dumps(answer),
        }[change]
        database.execute("UPDATE answers SET answer = ? WHERE key = 'a'", (changed,))
    database.close()
    assert cache.get("a") == (answer if change == "old" else None)
    assert len(list(cache.rows())) == (2 if change == "old" else 1)


@pytest.mark.parametrize("place", ["/proc/x", "/proc/version/x", "file", "file/x", "/dev/null"])
def test_a_folder_that_cannot_be_is_one_sentence(
    projects: list[damage.Project], tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / place
    result = damage.command("run", str(projects[0].experiment), "--out", str(out))
    assert (result.code, result.fault) == (2, "")
    assert str(out) in result.err and len(result.err.splitlines()) == 1
    with pytest.raises(StoreError):
        make_folder(out)


@pytest.mark.parametrize("files", [[], ["pytorch_model.bin"], ["cut"], ["text"]])
def test_a_model_without_whole_weights_is_refused(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for name in files:
        data = {"cut": (999).to_bytes(8, "little") + b"{}", "text": b"no tensors at all"}
        suffix = "" if name.endswith(".bin") else ".safetensors"
        (tmp_path / (name + suffix)).write_bytes(data.get(name, b"pickle"))
    with pytest.raises(EngineError, match="safetensors"):
        check_weights(tmp_path)
    path = damage.write(tmp_path / "e", damage.scripted())
    words = ["run", str(path), "--out", str(tmp_path / "out"), "-q", "--set"]
    result = damage.command(*words, f"models.policy={{path: {tmp_path}}}")
    assert (result.code, result.fault) == (2, "") and str(tmp_path) in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("port", ["99999", "0", "x", "-1"])
def test_a_port_that_cannot_be_is_refused(tmp_path: Path, port: str) -> None:
    path = damage.write(tmp_path, damage.served(f"http://127.0.0.1:{port}/v1"))
    result = damage.command("run", str(path), "--out", str(tmp_path / "out"), "-q")
    assert (result.code, result.fault) == (2, "") and "1 to 65535" in result.err


@pytest.mark.parametrize("where", ["steps", "judges"])
def test_a_judge_by_a_model_that_no_step_makes_is_refused(tmp_path: Path, where: str) -> None:
    data = damage.scripted()
    judge = {"id": "rm", "kind": "reward_model", "by": "nobody"}
    if where == "steps":
        data["steps"].insert(1, {"judge": judge})
    else:
        data["judges"] = [judge]
    path = damage.write(tmp_path, data)
    result = damage.command("run", str(path), "--out", str(tmp_path / "out"), "-q")
    assert (result.code, result.fault) == (2, "") and "'nobody' is no model" in result.err
    assert not list(tmp_path.glob("out/steps/*"))


def test_no_space_left_names_step_and_path(projects: list[damage.Project], tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    words = [sys.executable, "-m", "rlaif", "run", str(projects[0].experiment), "-q"]
    out = tmp_path / "out"
    shutil.copytree(projects[0].run, out)
    step = next(s for s in _steps(out) if s["kind"] == "sample")
    shutil.rmtree(out / "steps" / step["hash"])
    # What is replaced as a whole is larger than what is left to write.
    made = subprocess.run(
        [*words, "--out", str(out)], capture_output=True, text=True, preexec_fn=limited, check=False
    )
    assert made.returncode == 2 and "Traceback" not in made.stderr
    assert "larger than this system allows" in made.stderr and str(out) in made.stderr
    with (
        pytest.raises(StoreError, match=r"^\[0, round 1\] sample: /dev/full: the disk is full"),
        name_step("[0, round 1] sample", out),
        explain_os_errors(Path("/dev/full")),
        open("/dev/full", "w") as file,
    ):
        file.write("more than there is room for")
    with (
        pytest.raises(StoreError, match=r"^\[0, round 1\] train: .*work.* the disk is full"),
        name_step("[0, round 1] train", tmp_path / "work"),
    ):
        # As safetensors says it.
        raise RuntimeError(f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)}")


def _steps(root: Path) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = json.loads((root / "manifest.json").read_text())["steps"]
    return steps


def test_sigterm_says_what_ctrl_c_says(tmp_path: Path) -> None:
    data = damage.scripted(rounds=2000)
    path = damage.write(tmp_path, data)
    said = []
    for number in (signal.SIGINT, signal.SIGTERM):
        words = [sys.executable, "-m", "rlaif", "run", str(path), "-q"]
        out = tmp_path / number.name
        process = subprocess.Popen(
            [*words, "--out", str(out)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path.cwd(),
            # A shell starts what runs in its background with Ctrl-C ignored, which is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            deadline = time.monotonic() + 60
            while not list(out.glob("steps/*/done.json")) and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
        said.append((process.returncode, err.strip().splitlines()[-1]))
    assert said[0] == said[1]
    assert said[0] == (130, "rlaif: interrupted; run the same command again to go on")


def test_a_half_written_dataset_of_a_dead_process_goes_at_the_next_start(
    projects: list[damage.Project], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(projects[0].run, root)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [root / f".dataset.{dead.pid}.tmp", root / f".{dead.pid}.dataset"]
    left += [root / "models" / "abc.partial"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "part.parquet").write_text("")
    words = ["run", str(projects[0].experiment), "--out", str(root), "--no-report", "-q"]
    assert damage.command(*words).code == 0
    assert not any(folder.exists() for folder in left)


def test_a_published_folder_has_checksums_of_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "new" / "masters").mkdir(parents=True)
    (tmp_path / "new" / "a").write_bytes(b"1")
    (tmp_path / "new" / "masters" / "b").write_bytes(b"22")
    out = tmp_path / "out"
    integrity.publish_folder(tmp_path / "new", out)
    assert integrity.verify_folder(out, "Delete it.") == 3
    shutil.rmtree(out / "masters")
    assert integrity.verify_folder(out, "Delete it.", ["masters"]) == 1
    with pytest.raises(StoreError, match=r"masters/b: damaged \(it is missing\)\. Delete it\."):
        integrity.verify_folder(out, "Delete it.")
    (out / "c").write_bytes(b"333")
    integrity.add_file(out, "c")
    (out / "c").write_bytes(b"334")
    with pytest.raises(StoreError, match="c: damaged"):
        integrity.verify_folder(out, "Delete it.", ["masters"])
    (out / integrity.CHECKSUMS_NAME).write_text(
        (out / integrity.CHECKSUMS_NAME).read_text().replace("1", "2", 1)
    )
    with pytest.raises(StoreError, match=r"checksums\.json: damaged"):
        integrity.verify_folder(out, "Delete it.", ["masters"])


def test_a_damaged_prompts_file_beside_completions_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    (tmp_path / "fake.yaml").write_text("path: none\nengine: fake\n")
    words = ["--model", str(tmp_path / "fake.yaml"), "-q", "--out"]
    out = tmp_path / "out"
    damage.command("sample", str(tmp_path / "prompts.jsonl"), *words, str(out))
    path = out / "prompts.json"
    path.write_text(path.read_text().replace("Why", "Wha"))
    result = damage.command("judge", str(out), *words, str(tmp_path / "judged"), "--kind", "rules")
    assert (result.code, result.fault) == (2, "")
    with pytest.raises((StoreError, ConfigError), match="Delete the folder"):
        Records(out).done()


@pytest.mark.parametrize("change", [None, {}, {"a": 1}, [], {"format": 7}, {"format": None}])
def test_a_damaged_manifest_is_written_anew(
    projects: list[damage.Project], tmp_path: Path, change: Any
) -> None:
    root = tmp_path / "run"
    shutil.copytree(projects[0].run, root)
    path = root / "manifest.json"
    row = json.loads(path.read_text())
    # A format that was changed, and what is no manifest at all.
    changed = row | change if change and "format" in change else change
    path.write_text(json.dumps(changed))
    for words in (["status", str(root)], ["export", str(root), str(tmp_path / "x.jsonl")]):
        result = damage.command(*words)
        assert (result.code, result.fault) == (2, "") and "Run the experiment again" in result.err
    words = ["run", str(projects[0].experiment), "--out", str(root), "--no-report", "-q"]
    assert damage.command(*words).code == 0
    assert json.loads(path.read_text())["steps"] == row["steps"]


@pytest.mark.parametrize("damage_", [b"\xd8\xff{", b"{}", b"[]", b'{"arm": "main"}\n', b""])
def test_damaged_rounds_are_named(
    projects: list[damage.Project], tmp_path: Path, damage_: bytes
) -> None:
    shutil.copytree(projects[0].run, tmp_path / "run")
    (tmp_path / "run" / "rounds.jsonl").write_bytes(damage_)
    result = damage.command("status", str(tmp_path / "run"))
    assert (result.code, result.fault) == (2, "")
    assert "Run the experiment again" in result.err
