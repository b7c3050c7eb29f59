"""The command line as users meet it: a process, its exit code, what it prints."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from click.testing import CliRunner

from rlaif.cli import cli, main
from rlaif.core.store import StepFolder
from rlaif.pipeline.reading import load_experiment
from rlaif.pipeline.runs import load_run

Writer = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


def command(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlaif", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment(),
    )


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}


def inside(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str | Path
) -> tuple[int, str, str]:
    """`rlaif ...` in this process, through its entry point: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["rlaif", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


@pytest.fixture
def rlaif(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def call(*words: str | Path) -> tuple[int, str, str]:
        return inside(monkeypatch, capsys, *words)

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["constitution", "lint", "--help"]]
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from rlaif.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'torch', 'transformers', 'vllm', 'openai', 'pandas', 'datasets'}\n"
        "    print('loaded', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    assert "Usage:" in done.stdout
    assert done.stdout.strip().endswith("loaded []")


def test_checking_a_file_loads_nothing_heavy(tmp_path: Path, write_experiment: Writer) -> None:
    path = write_experiment(tmp_path, None)
    code = (
        "import sys\n"
        "from rlaif.cli import cli\n"
        "cli(['run', sys.argv[1], '--dry-run'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'vllm', 'openai', 'pandas', 'datasets'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert done.stdout.strip().endswith("loaded []")
    assert not (tmp_path / "runs").exists()


def test_a_scripted_run_as_a_process(tmp_path: Path, write_experiment: Writer) -> None:
    path = write_experiment(tmp_path, None, rounds=1)
    first = command("run", path, "--out", "out", "--quiet", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "Run folder: out" in first.stdout
    assert (tmp_path / "out" / "report.html").is_file()
    again = command("run", path, "--out", "out", "--json", "--no-report", cwd=tmp_path)
    state = json.loads(again.stdout)
    assert (state["ran"], state["state"]) == (0, "done")
    wrong = command("run", path, "--out", "out", "--set", "round=2", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "did you mean 'rounds'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert command("nonsense").returncode == 2


Fault = tuple[str, Callable[[Path, Any], Any], str]


def rewrite(folder: Path, old: str, new: str, name: str = "experiment.yaml") -> None:
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def template(folder: Path) -> None:
    (folder / "mine.j2").write_text("{{ principle }}\n{{ respons }}\n{{ response }}\n")
    rewrite(folder, "prompts/judges/yes_no_short.j2", "mine.j2")


FAULTS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("missing file", lambda f: (f / "experiment.yaml").unlink(), "experiment.yaml: not found"),
    ("malformed", lambda f: (f / "experiment.yaml").write_text("a: [1\n"), "not valid YAML"),
    ("empty file", lambda f: (f / "experiment.yaml").write_text(""), "the file is empty"),
    ("unknown key", lambda f: rewrite(f, "rounds:", "round:"), "did you mean 'rounds'?"),
    ("principle", lambda f: rewrite(f, "- useful", "- usefull"), "did you mean 'useful'?"),
    (
        "constitution",
        lambda f: rewrite(f, "text:", "txet:", "constitution.yaml"),
        "did you mean 'text'?",
    ),
    ("rule", lambda f: rewrite(f, "word_limits", "word_limit", "constitution.yaml"), "word_limits"),
    ("no constitution", lambda f: (f / "constitution.yaml").unlink(), "not found; looked in"),
    ("template", template, "unknown variable 'respons'; did you mean 'response'?"),
    ("no prompts", lambda f: (f / "prompts.jsonl").write_text(""), "no prompts in it"),
    (
        "bad prompt",
        lambda f: (f / "prompts.jsonl").write_text('{"prompt": 1}\n'),
        "jsonl:1: no prompt",
    ),
    ("holdout", lambda f: rewrite(f, "holdout: 3", "holdout: 99"), "only 8 prompts"),
    ("model", lambda f: rewrite(f, "engine: fake", "engine: hf"), "not a folder here"),
    ("foreign folder", lambda f: (f / "out" / "thesis.tex").write_text(""), "not a run folder"),
]


@pytest.mark.parametrize(("name", "spoil", "words"), FAULTS, ids=[f[0] for f in FAULTS])
def test_faults_are_one_message_and_exit_code_2(
    name: str,
    spoil: Callable[[Path], Any],
    words: str,
    tmp_path: Path,
    write_experiment: Writer,
    rlaif: Callable[..., tuple[int, str, str]],
) -> None:
    path = write_experiment(tmp_path, None)
    (tmp_path / "out").mkdir()
    spoil(tmp_path)
    code, out, err = rlaif("run", path, "--out", tmp_path / "out", "--quiet")
    assert code == 2
    assert err.startswith("rlaif: ")
    assert words in err
    assert out == ""


def test_a_folder_that_may_not_be_written(
    tmp_path: Path, write_experiment: Writer, rlaif: Callable[..., tuple[int, str, str]]
) -> None:
    path = write_experiment(tmp_path, None)
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write to read-only folders")
    code, _, err = rlaif("run", path, "--out", folder / "run")
    assert code == 2
    assert "not writable" in err


def test_an_alarm_gives_exit_code_3(
    tmp_path: Path, write_experiment: Writer, rlaif: Callable[..., tuple[int, str, str]]
) -> None:
    path = write_experiment(tmp_path, None, rounds=1, alarms={"on_alarm": "stop"})
    code, _, err = rlaif("run", path, "--out", tmp_path / "out", "--quiet")
    assert code == 3
    assert "stopped after round" in err


def test_duplicate_prompts_are_counted(
    tmp_path: Path, write_experiment: Writer, rlaif: Callable[..., tuple[int, str, str]]
) -> None:
    path = write_experiment(tmp_path, None, rounds=1)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text() * 2)
    code, _, err = rlaif("run", path, "--out", tmp_path / "out", "--quiet")
    assert code == 0
    assert "8 duplicate prompts left out" in err


def test_an_interrupt_gives_130_and_the_run_goes_on(
    place: Path, tiny_model: Path, write_experiment: Writer
) -> None:
    path = write_experiment(place / "interrupt", tiny_model, rounds=1)
    out = place / "interrupted"
    process = subprocess.Popen(
        [sys.executable, "-m", "rlaif", "run", str(path), "--out", str(out), "--no-report"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A shell's background jobs ignore it, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    seen = process.stderr.readline()
    # The first step has begun: there is much left to do.
    assert "evaluate.sample" in seen
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert load_run(out).status()["state"] == "unfinished"
    done = command("run", path, "--out", out, "--json", "--quiet", "--no-report")
    assert done.returncode == 0, done.stderr
    state = json.loads(done.stdout)
    assert state["state"] == "done"
    for row in state["rounds"]:
        for interval in row["metrics"].values():
            assert set(interval) >= {"mean", "low", "high", "n"}
    # Reading it again needs no model.
    status = json.loads(command("status", out, "--json").stdout)
    assert status["rounds"] == state["rounds"]


def test_reading_a_finished_run(
    place: Path,
    tiny_model: Path,
    write_experiment: Writer,
    rlaif: Callable[..., tuple[int, str, str]],
) -> None:
    # Finished by the test before, where that one ran.
    path = write_experiment(place / "interrupt", tiny_model, rounds=1)
    out = place / "interrupted"
    assert rlaif("run", path, "--out", out, "--quiet", "--no-report")[0] == 0
    code, text, _ = rlaif("status", out)
    assert code == 0
    assert "small: done" in text
    pairs = load_run(out).preferences
    assert len(pairs) > 0
    for name in ("trl.jsonl", "trl.parquet"):
        assert rlaif("export", out, place / name)[0] == 0
    rows = [
        json.loads(line) for line in (place / "trl.jsonl").read_text("utf-8").split("\n") if line
    ]
    assert len(rows) == len(pairs)
    assert rows[0]["prompt"][-1]["role"] == "user"
    assert rows[0]["chosen"][0]["role"] == rows[0]["rejected"][0]["role"] == "assistant"
    assert pyarrow.parquet.read_table(place / "trl.parquet").to_pylist() == rows
    for kind in ("prompts", "completions", "judgements", "preferences"):
        target = place / f"{kind}.parquet"
        assert rlaif("export", out, target, "--records", kind)[0] == 0
        assert pyarrow.parquet.read_table(target).num_rows > 0
    assert rlaif("export", out, place / "metrics.csv", "--records", "metrics")[0] == 0
    with (place / "metrics.csv").open(encoding="utf-8", newline="") as file:
        metrics = list(csv.DictReader(file))
    assert {row["arm"] for row in metrics} == {"main"}
    assert len(metrics) == len(load_run(out).rounds)
    assert rlaif("export", out, place / "trl.csv")[0] == 0
    with (place / "trl.csv").open(encoding="utf-8", newline="") as file:
        assert json.loads(next(csv.DictReader(file))["prompt"]) == rows[0]["prompt"]
    code, _, err = rlaif("export", out, place / "rows.xlsx")
    assert code == 2
    assert "must end in .jsonl, .jsonl.gz, .json, .csv or .parquet" in err
    assert rlaif("report", out, "--out", place / "page.html")[0] == 0
    assert "<html" in (place / "page.html").read_text(encoding="utf-8")


def test_what_is_no_run_folder(tmp_path: Path, rlaif: Callable[..., tuple[int, str, str]]) -> None:
    for words in (["status", tmp_path], ["export", tmp_path, "x.jsonl"], ["report", tmp_path]):
        code, _, err = rlaif(*words)
        assert code == 2
        assert "is not a run folder" in err
    (tmp_path / "file").write_text("")
    code, _, err = rlaif("status", tmp_path / "file")
    assert code == 2
    assert "is not a run folder" in err


def test_long_and_broken_prompts_are_counted_and_the_rest_goes_on(
    place: Path,
    tiny_model: Path,
    write_experiment: Writer,
    rlaif: Callable[..., tuple[int, str, str]],
) -> None:
    steps = [
        {"sample": {"n": 2, "max_new_tokens": 4}},
        {"judge": {"id": "checks", "kind": "rules"}},
        {"evaluate": {"resamples": 50}},
    ]
    path = write_experiment(place / "long", tiny_model, rounds=1, steps=steps)
    with (place / "long" / "prompts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "word " * 3000, "split": "train"}) + "\n")
        file.write('{"prompt": "half a \\ud83d smile"}\n')
    code, text, err = rlaif("run", path, "--out", place / "long-run", "--json", "--quiet")
    assert code == 0, err
    state = json.loads(text)
    failed = sum(step["counts"].get("failed", 0) for step in state["steps"])
    # One answer each held out, two each in training.
    assert failed in (2, 3, 4)
    assert state["state"] == "done"
    for name in ("p.jsonl", "p.parquet"):
        assert rlaif("export", place / "long-run", place / name, "--records", "prompts")[0] == 0
    rows = [json.loads(line) for line in (place / "p.jsonl").read_text("utf-8").split("\n") if line]
    assert "half a \ud83d smile" in {row["messages"][0]["content"] for row in rows}


def test_a_model_that_answers_nothing_is_said(
    tmp_path: Path, write_experiment: Writer, rlaif: Callable[..., tuple[int, str, str]]
) -> None:
    policy = {"path": "none", "engine": "fake", "max_context": 4}
    path = write_experiment(tmp_path, None, models={"policy": policy})
    for _ in range(2):
        code, out, err = rlaif("run", path, "--out", tmp_path / "out", "--quiet")
        assert (code, out) == (2, "")
        assert "evaluate.sample: all 3 answers failed, the first with: " in err


def test_a_judge_that_is_never_understood_is_named(
    place: Path,
    tiny_model: Path,
    write_experiment: Writer,
    rlaif: Callable[..., tuple[int, str, str]],
) -> None:
    steps = [
        {"sample": {"n": 2, "max_new_tokens": 4}},
        {
            "judge": {
                "id": "grumbler",
                "kind": "rating",
                "by": "policy",
                "principles": ["useful"],
                "max_new_tokens": 3,
            }
        },
        {"pair": {}},
        {"train": {}},
    ]
    path = write_experiment(place / "unread", tiny_model, rounds=1, steps=steps)
    code, _, err = rlaif("run", path, "--out", place / "unread-run", "--quiet")
    assert code == 2
    assert "verdicts of judge grumbler has a value" in err
    assert "no preferences" in err


def test_one_step_at_a_time(
    place: Path,
    tiny_model: Path,
    write_experiment: Writer,
    rlaif: Callable[..., tuple[int, str, str]],
) -> None:
    write_experiment(place / "files", tiny_model)
    files = place / "files"
    prompts, rules = files / "prompts.jsonl", files / "constitution.yaml"
    model = ["--model", tiny_model, "--quiet", "--json"]

    def ran(*words: str | Path) -> dict[str, Any]:
        code, text, err = rlaif(*words)
        assert code == 0, err
        found: dict[str, Any] = json.loads(text)
        return found

    sampling = ["--set", "n=3", "--set", "max_new_tokens=8", "--set", "temperature=1.0"]
    asked = ["sample", prompts, "--out", files / "answers", *model, *sampling]
    assert ran(*asked)["counts"] == {"completions": 24, "failed": 0}
    assert ran(*asked)["reused"]
    code, _, err = rlaif(*asked, "--seed", "1")
    assert code == 2
    assert "another request" in err
    checks = ["judge", files / "answers", "--constitution", rules, "--out", files / "checks"]
    assert ran(*checks, "--quiet", "--json")["counts"]["with_value"] == 24
    useful = ["--kind", "yes_no", "--set", "template=prompts/judges/yes_no_short.j2"]
    judged = ["judge", files / "answers", "--constitution", rules, "--out", files / "useful"]
    # What fails before anything is stored leaves its folder to the next request.
    code, _, err = rlaif(*judged, *useful, "--model", files / "nowhere", "--quiet")
    assert code == 2
    assert "not a folder here" in err
    assert ran(*judged, *useful, *model)["counts"]["judgements"] == 24
    for words, fault in (
        ([files / "checks", "--set", "weights={chekcs: 1}"], "did you mean 'checks'?"),
        ([], "no JUDGEMENTS were given"),
    ):
        code, _, err = rlaif("pair", files / "answers", *words, "--out", files / "pairs")
        assert code == 2
        assert fault in err
    for words in (
        ["judge", prompts, "--constitution", rules, "--out", files / "no"],
        ["pair", files / "answers", prompts, "--out", files / "no"],
        ["evaluate", prompts, "--out", files / "no"],
    ):
        code, _, err = rlaif(*words)
        assert code == 2
        assert "prompts.jsonl:1: not a row of " in err
    paired = ran(
        "pair",
        files / "answers",
        files / "checks",
        files / "useful",
        *["--constitution", rules, "--out", files / "pairs", "--quiet", "--json"],
        *["--set", "weights={checks: 1, useful: 0.1}"],
    )
    assert paired["counts"]["preferences"] == 8
    options = ["--set", "learning_rate=1e-4", "--set", "batch_size=4"]
    trained = ran(
        *["train", "dpo", files / "pairs", "--completions", files / "answers"],
        *["--out", files / "trained", *model, *options],
    )
    assert trained["counts"]["steps"] == 2
    assert (files / "trained" / "model" / "model.safetensors").is_file()
    later = ["--model", files / "trained" / "model", "--quiet", "--json"]
    ran("sample", prompts, "--out", files / "later", *later, *sampling)
    ran(
        "judge",
        files / "later",
        "--constitution",
        rules,
        "--out",
        files / "m1" / "checks",
        "--json",
    )
    row = ran(
        *["evaluate", files / "later", "--against", files / "answers", "--constitution", rules],
        *["--judgements", files / "m1" / "checks", "--against-judgements", files / "checks"],
        *["--out", files / "evaluated", "--quiet", "--json"],
    )
    assert row["metrics"]["score/checks"]["n"] == 8
    assert {"mean", "low", "high", "n"} <= set(row["deltas"]["initial"]["score/checks"])
    # Preferences in TRL's format train as well, with text that other tools would cut at.
    trl = files / "trl.jsonl"
    found = StepFolder(files / "pairs").read("preferences")
    rows = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in found]
    rows[0]["chosen"][0]["content"] += "\u2028and more"
    trl.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    done = ran("train", "sft", trl, "--out", files / "tuned", *model, *options)
    assert done["counts"]["preferences"] == 8


def test_init_copies_what_ships(tmp_path: Path, rlaif: Callable[..., tuple[int, str, str]]) -> None:
    assert rlaif("init", tmp_path / "new")[0] == 0
    experiment, _ = load_experiment(tmp_path / "new" / "experiments" / "quickstart.yaml")
    assert experiment.name == "quickstart"
    code, _, err = rlaif("init", tmp_path / "new")
    assert code == 2
    assert "is there already" in err


@pytest.mark.parametrize("what", ["experiment", "constitution"])
def test_shipped_files_name_the_schema_beside_them(what: str) -> None:
    folder = ROOT / f"{what}s"
    beside = folder / f"{what}.schema.json"
    said = CliRunner().invoke(cli, ["schema", what]).output
    assert beside.read_text() == said, f"run: rlaif schema {what} > {beside.relative_to(ROOT)}"
    files = sorted(folder.glob("*.yaml"))
    assert files
    for file in files:
        first = file.read_text(encoding="utf-8").splitlines()[0]
        assert first == f"# yaml-language-server: $schema={beside.name}", file.name


@pytest.mark.parametrize("what", ["experiment", "constitution"])
def test_schemas_are_json(what: str) -> None:
    result = CliRunner().invoke(cli, ["schema", what])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["type"] == "object"


def test_constitution_commands(
    tmp_path: Path, write_experiment: Writer, rlaif: Callable[..., tuple[int, str, str]]
) -> None:
    write_experiment(tmp_path, None)
    path = tmp_path / "constitution.yaml"
    assert rlaif("constitution", "lint", path)[0] == 0
    assert "brief" in rlaif("constitution", "show", path)[1]
    assert rlaif("constitution", "diff", path, path)[1] == "no difference\n"
    assert rlaif("constitution", "show", tmp_path / "absent.yaml")[0] == 2


def test_a_judges_prompt_is_shown(
    tmp_path: Path, write_experiment: Writer, rlaif: Callable[..., tuple[int, str, str]]
) -> None:
    path = write_experiment(tmp_path, None)
    words = ["prompt", "render", path, "--judge", "self", "--response", "A cherry.", "--json"]
    code, text, err = rlaif(*words)
    assert code == 0, err
    (shown,) = json.loads(text)
    assert "A cherry." in shown["text"]
    assert "The answer is useful." in shown["text"]
    code, _, err = rlaif("prompt", "render", path, "--judge", "slef")
    assert code == 2
    assert "did you mean 'self'" in err


@pytest.mark.parametrize(
    "words", [["judge"], ["pair", "--set", "strategy=reference"], ["evaluate"]]
)
def test_records_that_a_step_cannot_use_are_named(rlaif, tmp_path: Path, words: list[str]) -> None:
    prompts, empty = tmp_path / "prömpts.jsonl", tmp_path / "empty.jsonl"
    prompts.write_text('{"prompt": "Où?"}\n', encoding="utf-8")
    empty.write_text("")
    other = tmp_path / "other.jsonl"
    row = {"completion_id": "k", "prompt_id": "p_9", "sample_index": 0, "model": "m"}
    row |= {"messages": [{"role": "assistant", "content": "ja 好"}], "weights_hash": ""}
    other.write_text(json.dumps(row | {"sampling": {}, "finish_reason": "stop"}) + "\n")
    for file, fault in (
        (empty, "empty.jsonl: there are no completions in this file"),
        (other, "other.jsonl: its completions of prompt p_9 cannot be used"),
    ):
        given = [file, "--prompts", prompts, "--constitution", "constitutions/concise_helper.yaml"]
        code, _, err = rlaif(words[0], *given, *words[1:], "--out", tmp_path / "no")
        assert code == 2
        assert fault in err
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("group", ["", "constitution", "data", "cache", "serve", "prompt"])
def test_help_lists_every_command_in_one_whole_line(group: str) -> None:
    args = [group, "--help"] if group else ["--help"]
    text = CliRunner().invoke(cli, args, terminal_width=80).stdout
    lines = text.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert lines
    assert not [line for line in lines if line.endswith("...")]


STRUCK = {
    "in code made from text": "exec('raise KeyboardInterrupt')",
    "in a finaliser": """
    class Held:
        def __del__(self):
            raise KeyboardInterrupt
    Held()
    time.sleep(30)""",
}


@pytest.mark.parametrize("where", STRUCK)
def test_an_interruption_ends_the_command_wherever_it_strikes(tmp_path: Path, where: str) -> None:
    (tmp_path / "struck.py").write_text(
        "import time\nimport rlaif.cli\n\ndef command(**keys):\n    "
        f"{STRUCK[where].strip()}\n\nrlaif.cli.cli.main = command\nrlaif.cli.main()\n"
    )
    path = f"{Path.cwd()}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-m", "struck"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "rlaif: interrupted; run the same command again to go on\n"
    assert done.returncode == 130
