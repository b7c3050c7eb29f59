"""Real vLLM with the embedded model: `make test-vllm`, in an environment of its own."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("vllm", reason="VLLM IS NOT INSTALLED HERE: make test-vllm")

from rlaif.config.models import ModelSpec
from rlaif.config.training import LoraOptions
from rlaif.core.errors import EngineError
from rlaif.engines.base import GenerateRequest, Sampling, ScoreRequest
from rlaif.engines.build import load_engine
from rlaif.engines.checkpoints import FolderWeights
from rlaif.pipeline.experiment import run_experiment
from rlaif.train.loading import load_module
from rlaif.train.model import prepare
from rlaif.train.policy_weights import PolicyWeights
from tests.support.adapters import adapter

CPU = torch.device("cpu")
CONTEXT = 512
LABELS = {"yes": ("Yes", " Yes"), "no": ("No", " No")}


def spec_of(folder, engine="vllm"):
    return ModelSpec(path=str(folder), engine=engine, dtype="float32", max_context=CONTEXT)


@pytest.fixture(scope="module")
def engines(model_folder):
    pair = {e: load_engine(spec_of(model_folder, e), model_folder, e) for e in ("vllm", "hf")}
    yield pair
    for engine in pair.values():
        engine.close()


def questions(count, **sampling):
    values = {"max_new_tokens": 16} | sampling
    return [
        GenerateRequest(
            f"r{i}",
            [{"role": "user", "content": f"Say something about the number {i}."}],
            Sampling(**values, seed=i),
        )
        for i in range(count)
    ]


def results(batches):
    return {r.request_id: r for batch in batches for r in batch}


def test_log_probs_are_those_of_the_in_process_engine(engines):
    asked = questions(12, temperature=1.3)
    made = results(engines["vllm"].generate(asked))
    again = [
        ScoreRequest(r.request_id, r.messages, continuation_ids=made[r.request_id].token_ids)
        for r in asked
    ]
    scored = {name: results(engine.score(again)) for name, engine in engines.items()}
    for name, result in made.items():
        expected = scored["hf"][name].token_logprobs
        assert result.logprobs == pytest.approx(expected, abs=2e-3)
        assert scored["vllm"][name].token_logprobs == pytest.approx(expected, abs=2e-3)
    labels = [ScoreRequest(r.request_id, r.messages, labels=LABELS) for r in asked[:4]]
    ours, theirs = (results(engines[name].score(labels)) for name in ("vllm", "hf"))
    for name in ours:
        assert ours[name].label_probs == pytest.approx(theirs[name].label_probs, rel=1e-2)


def test_more_seeded_prompts_than_a_batch_holds_are_answered(engines):
    long = " ".join(["a fox runs over the hill and comes back"] * 45)
    asked = [
        replace(r, messages=[{"role": "user", "content": f"{r.request_id}: {long}"}])
        for r in questions(12, max_new_tokens=2)
    ]
    made = results(engines["vllm"].generate(asked))
    # vLLM takes up to 4096 tokens at once, and the last prompt that fits in part would be split.
    assert sum(r.prompt_tokens for r in made.values()) > 4096
    assert {r.error for r in made.values()} == {None}


@pytest.mark.parametrize("lora", [None, LoraOptions(r=4)], ids=["full", "lora"])
def test_weights_in_place_are_those_that_answer(engines, model_folder, tmp_path, lora):
    asked = questions(4, temperature=0.0)
    vllm = engines["vllm"]
    before = {name: r.text for name, r in results(vllm.generate(asked)).items()}
    model = prepare(load_module(model_folder, CPU), CPU, torch.float32, lora)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for master in model.masters.values():
            master.add_(0.02 * torch.randn(master.shape, generator=generator))
    # What was asked for and not taken does not stand in the way.
    lengths = [
        replace(r, sampling=replace(r.sampling, max_new_tokens=8 + i))
        for i, r in enumerate(questions(60))
    ]
    left = vllm.generate(lengths)
    next(iter(left))
    left.close()
    vllm.load_weights(PolicyWeights(model, tmp_path), "other")
    other = results(vllm.generate(asked))
    assert vllm.weights_hash == "other"
    assert {name: r.text for name, r in other.items()} != before
    rows = [
        ScoreRequest(r.request_id, r.messages, continuation_ids=other[r.request_id].token_ids)
        for r in asked
    ]
    from rlaif.engines.local.hf import HfEngine
    from rlaif.engines.local.weights import Weights

    with torch.no_grad(), model.generating() as module:
        own = HfEngine(Weights(module, "x"), engines["hf"].encoding, spec_of(model_folder, "hf"))
        expected = results(own.score(rows))
    for name, result in other.items():
        assert result.logprobs == pytest.approx(expected[name].token_logprobs, abs=5e-3)
    vllm.load_weights(FolderWeights(model_folder), "first")
    assert {name: r.text for name, r in results(vllm.generate(asked)).items()} == before


def test_a_schema_that_vllm_does_not_know_is_left_out_with_a_warning(engines, caplog):
    unknown = {"type": "array", "uniqueItems": True, "items": {"type": "integer"}}
    [asked] = questions(1, temperature=0.0)
    made = results(engines["vllm"].generate([replace(asked, json_schema=unknown)]))
    assert made["r0"].text == results(engines["vllm"].generate([asked]))["r0"].text
    assert "left out" in caplog.text


def test_an_adapter_is_served_as_the_merged_model_answers(model_folder, tmp_path):
    spec = {"path": str(model_folder), "adapter": str(adapter(model_folder, tmp_path))}
    spec |= {"dtype": "float32", "max_context": CONTEXT}
    asked = questions(4, temperature=0.0)
    labels = {"yes": ("Yes", " Yes"), "no": ("No", " No")}
    scored = {}
    for name in ("vllm", "hf"):
        engine = load_engine(ModelSpec(**spec, engine=name), model_folder, name)
        made = results(engine.generate(asked))
        scored[name] = results(
            engine.score([ScoreRequest(r.request_id, r.messages, labels=labels) for r in asked])
        )
        if name == "vllm":
            text = ScoreRequest("t", asked[0].messages, continuation_ids=made["r0"].token_ids)
            with pytest.raises(EngineError, match="no log-probs of a text beside an adapter"):
                list(engine.score([text]))
        digest = engine.weights_hash
        engine.close()
    assert digest != load_engine(spec_of(model_folder, "hf"), model_folder, "plain").weights_hash
    for name, result in scored["vllm"].items():
        assert result.label_probs == pytest.approx(scored["hf"][name].label_probs, abs=5e-3)


def test_on_policy_training_samples_from_the_weights_of_the_moment(
    tmp_path, model_folder, write_experiment
):
    policy = spec_of(model_folder).model_dump(
        include={"path", "engine", "dtype", "max_context"}, mode="json"
    )
    train = {
        "method": "grpo",
        "rewards": {"checks": 1.0},
        "rollouts": 2,
        "n": 3,
        "batch_size": 2,
        "max_new_tokens": 12,
        "learning_rate": 1e-3,
        "lora": {"r": 4},
        "precision": "fp32",
    }
    path = write_experiment(
        tmp_path,
        model_folder,
        models={"policy": policy},
        rounds=1,
        judges=[{"id": "checks", "kind": "rules"}],
        steps=[{"train": train}],
    )
    run_experiment(path, tmp_path / "out")
    [metrics] = (tmp_path / "out/steps").glob("*/work/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["logprob_gap"] < 5e-3 for row in rows)
