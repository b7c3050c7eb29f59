"""A real vLLM server of our own, with the embedded model: `make test-vllm`."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

pytest.importorskip("vllm", reason="VLLM IS NOT INSTALLED HERE: make test-vllm")

import psutil

from rlaif.config.models import ModelSpec
from rlaif.core.store import Store
from rlaif.engines.base import GenerateRequest, Sampling, ScoreRequest
from rlaif.engines.build import load_engine
from rlaif.engines.remote.meter import Account
from rlaif.pipeline.experiment import run_experiment
from tests.support.adapters import adapter
from tests.support.processes import gone

LABELS = {"yes": ("Yes", " Yes"), "no": ("No", " No"), "rare": ("zebra", " zebra")}
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm", "cross"]}},
    "required": ["mood"],
    "additionalProperties": False,
}
SCORE = {
    "type": "object",
    "properties": {"score": {"enum": [0.25, 0.75]}},
    "required": ["score"],
    "additionalProperties": False,
}
USER = [{"role": "user", "content": "Is the sea salty? Answer Yes or No."}]
GREEDY = Sampling(max_new_tokens=16, temperature=0.0)


def results(batches):
    return {r.request_id: r for batch in batches for r in batch}


@pytest.fixture(scope="module")
def keys(model_folder, tmp_path_factory):
    """The settings of a model with an adapter."""
    folder = adapter(model_folder, tmp_path_factory.mktemp("adapted"))
    return {
        "path": str(model_folder),
        "adapter": str(folder),
        "dtype": "float32",
        "max_context": 512,
    }


@pytest.fixture(scope="module")
def server(keys, model_folder, tmp_path_factory):
    """The engine of one server for all tests here that do not end it."""
    account = Account(tmp_path_factory.mktemp("run") / "spend.jsonl")
    spec = ModelSpec(**keys, engine="vllm-server", cache=False)
    # An engine in this process, of another file's tests, leaves a helper that stays for good.
    before = set(psutil.Process().children(recursive=True))
    engine = load_engine(spec, model_folder, "served", account)
    yield engine
    children = set(psutil.Process().children(recursive=True)) - before
    assert len(children) >= 3
    key = engine.running().key
    engine.close()
    assert gone(child.pid for child in children)
    assert key not in engine.log.read_text()


def test_a_server_with_an_adapter_answers_as_the_merged_model(server, keys, model_folder):
    own = load_engine(ModelSpec(**keys, engine="hf"), model_folder, "own")
    assert server.weights_hash == own.weights_hash
    asked = [
        GenerateRequest("plain", USER, GREEDY),
        GenerateRequest("begun", USER, GREEDY, prefill="Well,"),
    ]
    made, wanted = results(server.generate(asked)), results(own.generate(asked))
    assert {n: r.text for n, r in made.items()} == {n: r.text for n, r in wanted.items()}
    [held] = results(server.generate([replace(asked[0], json_schema=SCHEMA)])).values()
    assert json.loads(held.text)["mood"] in ("calm", "cross")
    # All labels, though one is far from the likeliest twenty tokens.
    ask = [ScoreRequest("s", USER, labels=LABELS)]
    [ours], [theirs] = (list(results(e.score(ask)).values()) for e in (server, own))
    assert ours.label_probs == pytest.approx(theirs.label_probs, rel=1e-2)
    assert 0 < ours.label_probs["rare"] < 1e-3


@pytest.fixture
def remote(server, keys, monkeypatch):
    """What engine `openai` is told of the same server, as of one that somebody else runs."""
    running = server.running()
    monkeypatch.setenv("THEIR_KEY", running.key)
    return {
        "path": keys["path"],
        "engine": "openai",
        "base_url": running.url,
        "key_env": "THEIR_KEY",
    }


def test_one_call_gives_several_samples_and_gives_them_again(remote):
    spec = ModelSpec(**remote, samples_per_call=3, cache=False)
    engine = load_engine(spec, None, "remote")
    asked = [
        GenerateRequest(f"r{i}", USER, Sampling(max_new_tokens=8, temperature=1.5, seed=i))
        for i in range(3)
    ]
    first, again = (results(engine.generate(asked)) for _ in range(2))
    assert {n: r.text for n, r in first.items()} == {n: r.text for n, r in again.items()}
    assert len({r.text for r in first.values()}) > 1
    assert engine.account.meters.of("remote").summary()["calls"] == 2


def test_judges_on_such_a_server_read_labels_and_are_held_to_a_schema(
    remote, tmp_path, write_experiment, monkeypatch
):
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    ask = {"by": "remote", "principles": ["useful"]}
    template = tmp_path / "score.j2"
    template.write_text("Score this answer, as JSON.\n{{ fence }}\n{{ response }}\n{{ fence }}\n")
    scored = {"kind": "template", "by": "remote", "template": str(template)}
    scored["parse"] = {"json_schema": SCORE}
    path = write_experiment(
        tmp_path / "experiment",
        None,
        rounds=1,
        models={
            "policy": {"path": "none", "engine": "fake"},
            "remote": remote,
        },
        steps=[
            {"sample": {"n": 2, "temperature": 1.0, "max_new_tokens": 8}},
            {"judge": {"id": "liked", "kind": "yes_no", **ask}},
            {"judge": {"id": "scored", "max_new_tokens": 24, **scored}},
        ],
    )
    out = tmp_path / "run"
    run_experiment(path, out)
    steps = [Store(out).step(folder.name) for folder in (out / "steps").iterdir()]
    rows = [row for step in steps for row in step.read("judgements")]
    by_judge = {name: [r for r in rows if r["judge"] == name] for name in ("liked", "scored")}
    assert len(by_judge["liked"]) == len(by_judge["scored"]) == 10
    assert {row["status"] for row in rows} == {"ok"}
    # Of two labels one may not be among the likeliest tokens that a server names.
    liked = [row["score"] for row in by_judge["liked"]]
    assert all(0 <= score <= 1 for score in liked) and len(set(liked)) > 1
    assert {row["score"] for row in by_judge["scored"]} <= {0.25, 0.75}
    key = os.environ["THEIR_KEY"].encode()
    written_to = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file.name for file in written_to if key in file.read_bytes()] == []
