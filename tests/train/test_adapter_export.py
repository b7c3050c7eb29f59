"""Adapters that are kept: peft and transformers give the numbers of the merged model, whatever
stands between, and every later use of the model works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlaif.config.models import ModelSpec
from rlaif.config.training import LoraOptions
from rlaif.core.errors import EngineError
from rlaif.engines.base import RewardRequest
from rlaif.engines.build import load_engine, whole
from rlaif.engines.model_folders import resolve, weights_hash
from rlaif.train.average import average
from rlaif.train.checkpoint import export, from_masters
from rlaif.train.loading import load_module
from rlaif.train.methods.answers import SftTrain
from rlaif.train.methods.reward_models import BradleyTerryDistill
from rlaif.train.model import prepare
from rlaif.train.run import train
from tests.train.test_on_policy import learn, options_of

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 40, 7, 81, 30, 12]])


def lora(**keys) -> LoraOptions:
    return LoraOptions(**{"r": 4, "alpha": 6.0} | keys)


def trained(start: Path, out: Path, options: LoraOptions | None, seed: int = 1, reward=False):
    """`out`, exported from `start` after a change of all that trains, as large as training's."""
    torch.manual_seed(seed)
    module = load_module(start, CPU, reward, from_masters(start, options))
    model = prepare(module, CPU, torch.float32, options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(model.masters):
            master = model.masters[name]
            master.add_(0.1 * torch.randn(master.shape, generator=generator))
    export(model, start, out, options)
    return out


def logits_with_peft(base: Path, adapter: Path, labels: int = 0) -> torch.Tensor:
    """As somebody else loads an adapter: transformers and peft alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    more = {"num_labels": labels} if labels else {}
    model = PeftModel.from_pretrained(
        kind.from_pretrained(base, dtype=torch.float32, **more), str(adapter)
    ).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def logits_of_masters(folder: Path, reward: bool = False) -> torch.Tensor:
    with torch.no_grad():
        return load_module(folder, CPU, reward).eval()(input_ids=IDS).logits


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("reward", [False, True], ids=["policy", "reward model"])
@pytest.mark.parametrize("more", [{}, {"dora": True}], ids=["lora", "dora"])
def test_peft_on_the_base_gives_the_merged_models_logits(tmp_path, make_model, more, reward):
    start = make_model(0)
    both = trained(start, tmp_path / "both", lora(export="both", **more), reward=reward)
    alone = trained(start, tmp_path / "alone", lora(export="adapter", **more), reward=reward)
    merged = trained(start, tmp_path / "merged", lora(**more), reward=reward)
    wanted = logits_of_masters(merged, reward)
    assert not torch.allclose(wanted, logits_of_masters(start, reward), atol=1e-2)
    for folder in (both / "adapter", alone):
        found = logits_with_peft(start, folder, int(reward))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert weights_hash(both) == weights_hash(merged) == weights_hash(whole(alone))
    assert not (alone / "model.safetensors").exists() and not (alone / "masters").exists()
    config = json.loads((alone / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 6, False)
    assert config["use_dora"] == bool(more)
    assert config["base_model_name_or_path"] == str(start)
    assert "embed_tokens" not in config["target_modules"]
    names = {name.rpartition(".")[2] for name in config["target_modules"]}
    assert {"q_proj", "down_proj"} <= names
    assert isinstance(config["lora_alpha"], int), "vLLM declares it so"


def test_an_adapter_on_an_adapter_is_one_for_the_first_base(tmp_path, make_model):
    """Rounds: each starts from the last one's model, and none of the bases is an adapter."""
    start = make_model(0)
    for kind in ("adapter", "both"):
        first = trained(start, tmp_path / kind / "1", lora(export=kind, target_modules=["q_proj"]))
        second = trained(whole(first), tmp_path / kind / "2", lora(export=kind, r=2), seed=2)
        third = trained(whole(second), tmp_path / kind / "3", lora(export=kind), seed=3)
        folder = third if kind == "adapter" else third / "adapter"
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(start)
        assert config["r"] == config["lora_alpha"] == 10
        plain = trained(start, tmp_path / kind / "a", lora(target_modules=["q_proj"]))
        plain = trained(plain, tmp_path / kind / "b", lora(r=2), seed=2)
        plain = trained(plain, tmp_path / kind / "c", lora(), seed=3)
        wanted = logits_of_masters(plain)
        torch.testing.assert_close(logits_with_peft(start, folder), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits_of_masters(whole(third)), wanted, rtol=1e-4, atol=1e-5)


def test_a_base_with_masters_is_taken_as_it_is_exported(tmp_path, make_model):
    """An adapter that is kept fits the bf16 weights that others have, not fp32 ones behind them."""
    base = trained(make_model(0), tmp_path / "base", None)
    both = trained(base, tmp_path / "both", lora(export="both"), seed=2)
    found = logits_with_peft(base, both / "adapter")
    torch.testing.assert_close(found, logits_of_masters(both), rtol=1e-4, atol=1e-5)


def test_a_reward_adapter_scores_and_averages_like_merged_ones(tmp_path, make_model):
    start = make_model(0)
    members = {
        kind: [
            trained(start, tmp_path / f"{kind}{n}", lora(export=kind), seed=n, reward=True)
            for n in (1, 2)
        ]
        for kind in ("merged", "adapter", "both")
    }
    asked = [
        RewardRequest(
            "r",
            [{"role": "user", "content": "Why?"}],
            {"role": "assistant", "content": "Because."},
        )
    ]
    rewards = []
    for kind, folders in members.items():
        average(folders, tmp_path / kind / "mean")
        assert not (tmp_path / kind / "mean" / "adapter").exists()
        for folder in (*folders, tmp_path / kind / "mean"):
            spec = ModelSpec(path=str(folder), dtype="float32", device="cpu")
            engine = load_engine(spec, resolve(str(folder)), "r")
            rewards.append([row.reward for batch in engine.reward(asked) for row in batch])
    assert rewards[:3] == rewards[3:6] == rewards[6:]
    assert len({tuple(r) for r in rewards[:3]}) == 3


def test_a_base_that_is_gone_changed_or_moved(tmp_path, make_model):
    base = tmp_path / "models" / "base"
    shutil.copytree(make_model(0), base)
    folder = trained(base, tmp_path / "models" / "made", lora(export="adapter"))
    wanted = weights_hash(whole(folder))
    moved = tmp_path / "moved"
    (tmp_path / "models").rename(moved)
    assert weights_hash(whole(moved / "made")) == wanted
    shutil.rmtree(moved / "base")
    with pytest.raises(EngineError, match=r"is for the model '.*base'.*which is not there"):
        whole(moved / "made")
    shutil.copytree(make_model(1), moved / "base")
    with pytest.raises(EngineError, match="is another than it was trained on"):
        whole(moved / "made")


@pytest.mark.parametrize("method", ["sft", "bradley_terry"])
def test_training_writes_what_export_says(tmp_path, make_model, make_preferences, method):
    kinds = {"sft": SftTrain, "bradley_terry": BradleyTerryDistill}
    keys = {"batch_size": 2, "learning_rate": 0.01, "precision": "fp32", "method": method}
    made = {}
    for kind in ("merged", "adapter", "both"):
        options = kinds[method](lora=lora(export=kind), **keys)
        work, made[kind] = tmp_path / kind / "work", tmp_path / kind / "out"
        train(options, make_preferences(4), {}, make_model(0), None, made[kind], work, 3)
    assert weights_hash(made["merged"]) == weights_hash(made["both"])
    assert weights_hash(made["merged"]) == weights_hash(whole(made["adapter"]))
    adapters = (made["adapter"], made["both"] / "adapter")
    assert len({(a / "adapter_model.safetensors").read_bytes() for a in adapters}) == 1
    tensors = load_file(made["adapter"] / "adapter_model.safetensors")
    assert ("base_model.model.score.weight" in tensors) == (method == "bradley_terry")


@pytest.mark.parametrize("name", ["grpo", "ppo", "ppo_separate"])
def test_what_fresh_answers_taught_can_be_kept_as_an_adapter(tmp_path, make_model, name):
    """A value head or a critic is no part of it."""
    for kind in ("merged", "adapter", "both"):
        options = options_of(name, rollouts=1, lora={"r": 4, "export": kind})
        learn(make_model(0), tmp_path / kind, options)
    out = {kind: tmp_path / kind / "out" for kind in ("merged", "adapter", "both")}
    assert weights_hash(out["merged"]) == weights_hash(out["both"])
    assert weights_hash(out["merged"]) == weights_hash(whole(out["adapter"]))
    tensors = load_file(out["adapter"] / "adapter_model.safetensors")
    assert tensors and all(".lora_" in name for name in tensors)


def test_the_key_leaves_hashes_alone_and_is_refused_for_an_ensemble():
    assert "export" not in LoraOptions().model_dump()
    assert LoraOptions(export="both").model_dump()["export"] == "both"
    with pytest.raises(ValueError, match=r"leave lora\.export out"):
        BradleyTerryDistill(lora=LoraOptions(export="adapter"), members=2)


def test_a_dora_adapter_on_an_adapter_alone_is_refused_and_on_both_has_that_as_its_base(
    tmp_path, make_model
):
    dora = lora(export="both", dora=True)
    alone = trained(make_model(0), tmp_path / "alone", lora(export="adapter", dora=True))
    with pytest.raises(EngineError, match="DoRA's cannot be: set `export: both`"):
        trained(whole(alone), tmp_path / "second", lora(export="adapter"))
    first = trained(make_model(0), tmp_path / "first", dora)
    second = trained(first, tmp_path / "second", dora, seed=2)
    found = logits_with_peft(first, second / "adapter")
    torch.testing.assert_close(found, logits_of_masters(second), rtol=1e-4, atol=1e-5)
