"""No process of vLLM outlives the one that started it: `make test-vllm`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="VLLM IS NOT INSTALLED HERE: make test-vllm")

import psutil

from tests.support.processes import gone

HOLD = """
import sys, time
from pathlib import Path
import psutil
from rlaif.config.models import ModelSpec
from rlaif.engines.remote.meter import Account
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.engines.build import load_engine

if __name__ == "__main__":
    folder, run = Path(sys.argv[1]), Path(sys.argv[2])
    spec = ModelSpec(path=str(folder), engine=sys.argv[3], dtype="float32", max_context=256)
    engine = load_engine(spec, folder, "held", Account(run / "spend.jsonl"))
    ask = GenerateRequest("r", [{"role": "user", "content": "Hello"}], Sampling(max_new_tokens=2))
    made = [r.finish_reason for batch in engine.generate([ask]) for r in batch]
    pids = [child.pid for child in psutil.Process().children(recursive=True)]
    print("made", *made, *pids, flush=True)
    if sys.argv[4] == "raises":
        raise SystemError("a fault of ours")
    time.sleep(600)
"""


def hold(model_folder, run, engine, mode):
    """A process that has vLLM answer, and then waits or fails as `mode` says."""
    script = run / "hold.py"
    script.write_text(HOLD)
    own = {"PYTHONPATH": str(Path(__file__).parents[2]), "RLAIF_CACHE": str(run)}
    return subprocess.Popen(
        [sys.executable, str(script), str(model_folder), str(run), engine, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | own,
    )


@pytest.mark.parametrize(
    ("engine", "how"),
    [
        ("vllm", signal.SIGKILL),
        ("vllm", signal.SIGTERM),
        ("vllm", "raises"),
        ("vllm-server", signal.SIGKILL),
        ("vllm-server", "raises"),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else value,
)
def test_no_process_outlives_its_owner(tmp_path, model_folder, engine, how):
    held = hold(model_folder, tmp_path, engine, "raises" if how == "raises" else "waits")
    said = next(line for line in held.stdout if line.startswith("made"))
    _, reason, *found = said.split()
    assert reason == "length"
    pids = [int(pid) for pid in found]
    # vLLM's own at least, and before a server its keeper and the server itself.
    assert len(pids) >= (3 if engine == "vllm-server" else 1)
    if isinstance(how, signal.Signals):
        held.send_signal(how)
    held.wait(30)
    assert gone(pids)


def test_a_server_that_is_still_starting_ends_with_its_owner_too(tmp_path, model_folder):
    held = hold(model_folder, tmp_path, "vllm-server", "waits")
    children = []
    while len(children) < 3:
        assert held.poll() is None
        children = psutil.Process(held.pid).children(recursive=True)
        time.sleep(0.1)
    held.send_signal(signal.SIGTERM)
    held.wait(30)
    assert gone(child.pid for child in children)
