"""The GPU check on a CPU: what needs a GPU is never passed, a kill loses one part at most."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
sys.path.insert(0, str(SCRIPT.parent))

import gpu  # noqa: E402
from gpu_parts import cache, plan  # noqa: E402

MISSING = (
    *("datasets", "gguf", "httpx2", "jsonschema", "openai", "phonenumbers", "stdnum", "rapidfuzz"),
    "trl",
)
BLOCK = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        root = name.split(".")[0]
        frame, asking = sys._getframe(1), set()
        while frame is not None:
            asking.add(frame.f_globals.get("__name__", "").split(".")[0])
            frame = frame.f_back
        # Newer versions of the hub's client need it themselves; the GPU machine's do not.
        if root == "httpx2" and asking & {{"huggingface_hub", "httpx2"}}:
            return None
        if root in {MISSING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def start(out, *words, command="correct", path=(), device="cpu"):
    paths = [*map(str, path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [
        sys.executable,
        str(SCRIPT),
        command,
        "--device",
        device,
        "--tiny",
        "--out",
        str(out),
    ]
    return subprocess.Popen(
        [*command, "--budget", "100", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    said, _ = process.communicate(timeout=120)
    return said, process.returncode


def rows_of(out):
    path = out / "gpu.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_rows(out, count):
    while len(rows_of(out)) < count:
        time.sleep(0.02)


def test_killed_and_terminated_runs_go_on_where_they_were(tmp_path):
    """Also with what a GPU machine lacks out of reach."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(BLOCK)
    words = ("--only", "logprobs", "elementwise", "generation")
    first = start(tmp_path, *words, path=[blocked])
    wait_for_rows(tmp_path, 2)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    before = rows_of(tmp_path)
    with (tmp_path / "gpu.jsonl").open("a") as file:
        file.write('{"part": "generation", "ok": tr')
    second = start(tmp_path, *words, path=[blocked])
    assert "already done by this code: logprobs, elementwise" in _until(second, "already done")
    time.sleep(1)
    second.send_signal(signal.SIGTERM)
    said, status = finish(second)
    assert status == 128 + signal.SIGTERM
    assert "generation" in said and "not run" in said and "skipped: needs a GPU" in said
    said, status = finish(start(tmp_path, *words, path=[blocked]))
    lines = [line for line in (tmp_path / "gpu.jsonl").read_text().splitlines() if "code" in line]
    rows = [json.loads(line) for line in lines]
    assert rows[:2] == before, "what was done was not done again"
    assert [row["part"] for row in rows] == ["logprobs", "elementwise", "generation"]
    assert [row["ok"] for row in rows] == [None, None, True], said
    assert status == 0
    # A claim about a GPU's code is never passed on a CPU, and its code ran nevertheless.
    for row in rows[:2]:
        assert all(found["ok"] is None for found in row["figures"].values())
        assert any("worst" in found for found in row["figures"].values())
    assert set(rows[2]["figures"]) == {"samples share their prompt", "greedy", "sampled"}
    assert (tmp_path / "gpu-correct.txt").read_text() in said


def _until(process, mark):
    said = ""
    while mark not in said:
        said = process.stdout.readline()
        assert said, "it ended too early"
    return said


def test_a_part_that_fails_is_reported_alone(tmp_path):
    """Without TRL its side fails with the reason, and what comes after it runs."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(BLOCK)
    words = ("--only", "rates", "trl_reward_1b")
    said, status = finish(start(tmp_path, *words, command="speed", path=[blocked]))
    assert status == 1
    found = {row["part"]: row for row in rows_of(tmp_path)}
    assert found["rates"]["ok"] is None
    assert found["trl_reward_1b"]["ok"] is False
    assert "No module named 'trl'" in found["trl_reward_1b"]["error"]
    assert "No module named 'trl'" in said


def test_every_part_has_its_function_and_groups_stay_together():
    for parts in plan.PARTS.values():
        assert len({part.name for part in parts}) == len(parts)
        groups = [part.group for part in parts]
        assert groups == sorted(groups, key=groups.index), "in the order in which they run"
        for part in parts:
            module, name = part.function.split(":")
            source = (SCRIPT.parent / "gpu_parts" / f"{module}.py").read_text()
            assert f"\ndef {name}(setting: Setting, checks: Checks)" in source


def test_results_count_for_the_code_the_device_and_the_size(tmp_path, monkeypatch):
    code = plan.code_hash("cpu", True)
    assert len({code, plan.code_hash("cuda", True), plan.code_hash("cpu", False)}) == 3
    plan.write_result(tmp_path, code, "flex", True, 1.0, {})
    assert plan.read_results(tmp_path, code)["flex"]["ok"] is True
    assert plan.read_results(tmp_path, "another") == {}
    gpu.forget(tmp_path, code, ["flex"])
    assert plan.read_results(tmp_path, code) == {}


def test_the_compile_cache_fits_through_the_door(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for number in range(40):
        folder = source / f"k{number}"
        folder.mkdir(parents=True)
        (folder / "kernel.cubin").write_bytes(os.urandom(50_000))
        (folder / "kernel.json").write_text("{}")
        os.utime(folder / "kernel.cubin", (number, number))
        os.utime(folder / "kernel.json", (number, number))
    archive = tmp_path / "cache.tar.gz"
    kept, left = cache.pack(source, archive, limit=1_500_000)
    assert kept and left and kept + left == 80
    assert archive.stat().st_size <= 1_500_000
    assert cache.unpack(archive, target) == kept
    # Whole folders, the newest first.
    names = sorted((path.name for path in target.iterdir()), key=lambda name: int(name[1:]))
    assert names == [f"k{number}" for number in range(40 - kept // 2, 40)]
    for name in names:
        for file in ("kernel.cubin", "kernel.json"):
            assert (target / name / file).read_bytes() == (source / name / file).read_bytes()
    archive.write_bytes(archive.read_bytes()[:400_000])
    assert 0 < cache.unpack(archive, tmp_path / "torn") < kept


@pytest.mark.parametrize(
    "words", [["correct", "--device", "cpu"], ["correct", "--only", "nothing"]]
)
def test_what_cannot_be_asked_for(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.options_of(words)
    assert stopped.value.code == 2
    assert "--tiny" in (said := capsys.readouterr().err) or "it has graphs, flex" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_run_for_one(tmp_path):
    said, status = finish(start(tmp_path, "--only", "flex", device="cuda"))
    assert status == 2
    assert "torch sees no GPU here" in said
    assert rows_of(tmp_path) == []
