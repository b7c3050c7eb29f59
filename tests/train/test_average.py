"""Averaged weights: the mean of what began as one, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from rlaif.config.methods import AnyDistill
from rlaif.core.errors import ConfigError, EngineError, RlaifError
from rlaif.kernels.heads import GatedHead, HeadConfig, LinearHead, OrdinalHead
from rlaif.train.average import average
from rlaif.train.checkpoint import export_head
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
