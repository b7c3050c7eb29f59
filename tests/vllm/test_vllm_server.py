"""A real vLLM server of our own, with the embedded model: `make test-vllm`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="VLLM IS NOT INSTALLED HERE: make test-vllm")

import psutil

from rlaif.config import ModelSpec
from rlaif.engines.base import GenerateRequest, Sampling, ScoreRequest
from rlaif.engines.build import load_engine
from tests.adapters import adapter
from tests.processes import gone

LABELS = {"yes": ("Yes", " Yes"), "no": ("No", " No"), "rare": ("zebra", " zebra")}
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", "cross"]}},
    "required": ["mood"],
    "additionalProperties": False,
}


def results(batches):
    return {r.request_id: r for batch in batches for r in batch}


def test_a_server_with_an_adapter_answers_as_the_merged_model(model_folder, tmp_path):
    keys = {"path": str(model_folder), "adapter": str(adapter(model_folder, tmp_path))}
    keys |= {"dtype": "float32", "max_context": 256}
    server = load_engine(ModelSpec(**keys, engine="vllm-server", cache=False), model_folder, "s")
    own = load_engine(ModelSpec(**keys, engine="hf"), model_folder, "own")
    assert server.weights_hash == own.weights_hash
    user = [{"role": "user", "content": "Is the sea salty? Answer Yes or No."}]
    greedy = Sampling(max_new_tokens=16, temperature=0.0)
    asked = [
        GenerateRequest("plain", user, greedy),
        GenerateRequest("begun", user, greedy, prefill="Well,"),
        GenerateRequest("json", user, greedy, json_schema=SCHEMA),
    ]
    try:
        made = results(server.generate(asked))
        wanted = results(own.generate(asked[:2]))
        assert {n: made[n].text for n in wanted} == {n: r.text for n, r in wanted.items()}
        assert json.loads(made["json"].text)["mood"] in ("calm", "cross")
        # All labels, though one is far from the likeliest twenty tokens.
        ask = [ScoreRequest("s", user, labels=LABELS)]
        [ours], [theirs] = (list(results(e.score(ask)).values()) for e in (server, own))
        assert ours.label_probs == pytest.approx(theirs.label_probs, rel=1e-2)
        assert 0 < ours.label_probs["rare"] < 1e-3
        children = [p.pid for p in psutil.Process().children(recursive=True)]
        assert len(children) >= 3
    finally:
        server.close()
    assert gone(children, 2)


HOLD = """
import sys, time
from rlaif.config import ModelSpec
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.engines.build import load_engine
from pathlib import Path

folder = Path(sys.argv[1])
spec = ModelSpec(path=str(folder), engine="vllm-server", max_context=256, cache=False)
engine = load_engine(spec, folder, "held")
ask = GenerateRequest("r", [{"role": "user", "content": "Hello"}], Sampling(max_new_tokens=2))
print("ready", [r.finish_reason for batch in engine.generate([ask]) for r in batch], flush=True)
time.sleep(600)
"""


def test_kill_9_leaves_no_process_of_a_server_behind(tmp_path, model_folder):
    script = tmp_path / "hold.py"
    script.write_text(HOLD)
    command = [sys.executable, str(script), str(model_folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    held = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert held.stdout is not None
    assert any(line.strip() == "ready ['length']" for line in held.stdout)
    children = psutil.Process(held.pid).children(recursive=True)
    assert [c for c in children if "VLLM" in c.name() or "VLLM" in " ".join(c.cmdline())]
    os.kill(held.pid, signal.SIGKILL)
    held.wait()
    assert gone(c.pid for c in children)
