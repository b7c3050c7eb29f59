"""Averaged weights: the mean of what began as one, and nothing else."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from rlaif.config.methods import AnyDistill
from rlaif.core.errors import ConfigError, EngineError, RlaifError
from rlaif.kernels.heads import GatedHead, HeadConfig, LinearHead, OrdinalHead
from rlaif.train.average import (
    average,
    interpolate_spherically,
    weighted_mean,
    write_combined,
)
from rlaif.train.checkpoint import export_head
from rlaif.train.loading import load_module
from rlaif.train.run import train


def linear(start: Path, out: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    head = LinearHead(HeadConfig("linear", 32))
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, 32))
    export_head(start, head, out)
    return out


def test_of_heads_on_one_body_it_is_the_mean_of_their_rewards(tmp_path, make_model):
    members = [linear(make_model(0), tmp_path / str(i), i) for i in range(3)]
    out = tmp_path / "mean"
    assert average(members, out)["models"] == 3
    states = torch.randn(5, 32)
    heads = [load_file(m / "reward_head.safetensors")["weight"] for m in [*members, out]]
    found = [states @ w.T for w in heads]
    torch.testing.assert_close(found[3], torch.stack(found[:3]).mean(0))
    body = [load_file(m / "model.safetensors") for m in (members[0], out)]
    assert all(torch.equal(body[0][n], body[1][n]) for n in body[0] if not n.startswith("score"))


def test_identical_members_give_themselves(tmp_path, make_model):
    member = linear(make_model(0), tmp_path / "a", 0)
    average([member, member], tmp_path / "mean")
    for name in ("model.safetensors", "reward_head.safetensors"):
        one, other = load_file(member / name), load_file(tmp_path / "mean" / name)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_halfway_on_the_arc_is_as_long_as_its_ends():
    axes = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(interpolate_spherically(axes), torch.full((2,), math.sqrt(2.0)))
    # Nearly parallel, opposite, or of no length: halfway on the line.
    one = torch.tensor([1.0, 0.0])
    for other, middle in (([3.0, 0.0], 2.0), ([-1.0, 0.0], 0.0), ([0.0, 0.0], 0.5)):
        found = interpolate_spherically((one, torch.tensor(other)))
        assert found.tolist() == [middle, 0.0]


def test_members_that_were_trained_apart_average_their_masters(
    tmp_path, make_model, make_preferences
):
    start = linear(make_model(0), tmp_path / "start", 0)
    members = []
    for seed in (1, 2):
        step = TypeAdapter(AnyDistill).validate_python(
            {"learning_rate": 1e-3, "batch_size": 4, "precision": "fp32"}
        )
        out = tmp_path / f"m{seed}"
        train(step, make_preferences(8), {}, start, None, out, tmp_path / f"w{seed}", seed)
        members.append(out)
    average(members, tmp_path / "mean")
    masters = [load_file(m / "masters/model.safetensors") for m in [*members, tmp_path / "mean"]]
    changed = 0
    for name, value in masters[2].items():
        torch.testing.assert_close(value, (masters[0][name] + masters[1][name]) / 2)
        changed += not torch.equal(value, masters[0][name])
    assert changed > 0


def test_without_masters_of_its_own_it_is_still_the_mean_of_the_members_masters(
    tmp_path, make_model
):
    """bf16 has steps of 1/128 at 1. The masters' mean is 1.00525, which is rounded up; that of the
    rounded weights, 1 and 1 + 1/128, is rounded down."""
    members = {}
    for name, value in (("a", 1.003), ("b", 1.0075)):
        members[name] = Path(shutil.copytree(make_model(0), tmp_path / name))
        exact = {"model.norm.weight": torch.full((32,), value)}
        weights = load_file(members[name] / "model.safetensors")
        rounded = {key: tensor.bfloat16() for key, tensor in exact.items()}
        save_file(weights | rounded, members[name] / "model.safetensors", {"format": "pt"})
        (members[name] / "masters").mkdir()
        save_file(exact, members[name] / "masters/model.safetensors")
    write_combined(members, tmp_path / "out", weighted_mean([0.5, 0.5]), masters=False)
    found = load_file(tmp_path / "out/model.safetensors")["model.norm.weight"]
    assert found.tolist() == [1 + 1 / 128] * 32
    assert not (tmp_path / "out/masters").exists()


def test_policies_average_too_and_a_head_that_is_the_embedding_counts_once(tmp_path, make_model):
    """One member has the tied head in its file, as some published checkpoints have; the other has
    its weights in two files."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, seed in ((first, 0), (second, 1)):
        shutil.copytree(make_model(seed), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    weights = [load_file(f / "model.safetensors") for f in (first, second)]
    for own in weights:
        own.pop("lm_head.weight", None)
    head = {"lm_head.weight": weights[0]["model.embed_tokens.weight"].clone()}
    save_file(weights[0] | head, first / "model.safetensors", {"format": "pt"})
    names = sorted(weights[1])
    (second / "model.safetensors").unlink()
    for number, part in enumerate((names[:3], names[3:]), 1):
        file = second / f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[1][name] for name in part}, file, {"format": "pt"})
    (second / "model.safetensors.index.json").write_text("{}")
    for members in ((first, second), (second, first)):
        out = tmp_path / f"of_{members[0].name}"
        assert average(members, out)["tensors"] == len(names)
        found = load_file(out / "model.safetensors")
        assert sorted(found) == names and not list(out.glob("*.index.json"))
        for name, value in found.items():
            mean = (weights[0][name].double() + weights[1][name].double()) / 2
            torch.testing.assert_close(value, mean.to(value.dtype))
        assert not (out / "masters").exists()
        loaded = load_module(out, torch.device("cpu"))
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_what_did_not_begin_as_one_is_refused(tmp_path, make_model, other_vocabulary):
    first = linear(make_model(0), tmp_path / "a", 0)
    with pytest.raises(ConfigError, match="two models or more"):
        average([first], tmp_path / "x")
    with pytest.raises(ConfigError, match="no reward model"):
        average([first, make_model(0)], tmp_path / "x")
    mixed = linear(other_vocabulary, tmp_path / "b", 0)
    with pytest.raises(Exception, match="another vocabulary"):
        average([first, mixed], tmp_path / "x")
    rated = tmp_path / "c"
    export_head(make_model(0), OrdinalHead(HeadConfig("ordinal", 32, levels=(0.0, 1.0))), rated)
    with pytest.raises(EngineError, match="different heads"):
        average([first, rated], tmp_path / "x")
    gated = tmp_path / "d"
    export_head(make_model(0), GatedHead(HeadConfig("gated", 32, ("a",))), gated)
    with pytest.raises(EngineError, match="reward_ensemble"):
        average([gated, gated], tmp_path / "x")
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob("*.partial"))
    average([first, first], tmp_path / "x")
    with pytest.raises(ConfigError, match="this folder exists"):
        average([first, first], tmp_path / "x")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "reward_head.safetensors"])
def test_a_damaged_member_is_named(tmp_path, make_model, name):
    first = linear(make_model(0), tmp_path / "a", 0)
    cut = linear(make_model(0), tmp_path / "b", 1)
    data = (cut / name).read_bytes()
    (cut / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(RlaifError, match=str(cut)):
        average([first, cut], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
