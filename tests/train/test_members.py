"""Ensembles of adapters on one body: trained, saved, loaded once, and judging by their members."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file

from rlaif.config.methods import AnyDistill
from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError, EngineError
from rlaif.engines.base import RewardRequest
from rlaif.engines.build import load_engine
from rlaif.engines.model_folders import weights_hash
from rlaif.train import members
from rlaif.train.average import average
from rlaif.train.loading import load_module
from rlaif.train.run import train

KEYS = {"learning_rate": 1e-2, "batch_size": 4, "epochs": 4, "precision": "fp32", "lora": {"r": 2}}


def options(**changes: Any) -> Any:
    return TypeAdapter(AnyDistill).validate_python({**KEYS, "members": 3, **changes})


def distil(start: Path, folder: Path, preferences, seed: int = 0, **keys: Any):
    out, work = folder / "rm", folder / "work"
    return train(options(), preferences, {}, start, None, out, work, seed, "cpu", **keys), out


def engine_of(folder: Path) -> Any:
    return load_engine(ModelSpec(path=str(folder), dtype="float32"), folder, "rm")


def results(folder: Path, preferences):
    requests = [
        RewardRequest(f"{i}/{side}", p.prompt, getattr(p, side)[0])
        for i, p in enumerate(preferences)
        for side in ("chosen", "rejected")
    ]
    return {r.request_id: r for batch in engine_of(folder).reward(requests) for r in batch}


@pytest.fixture(scope="module")
def ensemble(make_model, make_preferences, tmp_path_factory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("ensemble")
    return distil(make_model(0), folder, make_preferences(8))


def test_members_learn_differ_and_their_mean_is_the_reward(ensemble, make_preferences):
    outcome, folder = ensemble
    assert outcome.steps == 3 * 8 and outcome.metrics["last_accuracy"] == 1.0
    found = results(folder, make_preferences(8))
    for r in found.values():
        rewards = torch.tensor([r.parts[f"member/{k}"] for k in range(3)])
        assert r.reward == pytest.approx(float(rewards.mean()), abs=1e-5)
        assert r.parts["spread"] == pytest.approx(float(rewards.std(correction=0)), abs=1e-5)
        assert r.parts["spread"] > 1e-4
    assert all(found[f"{i}/chosen"].reward > found[f"{i}/rejected"].reward for i in range(8))


def test_a_member_gives_what_it_gives_alone_merged_into_the_body(
    ensemble, make_preferences, tmp_path
):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    _, folder = ensemble
    preferences = make_preferences(3)
    found = results(folder, preferences)
    rows = [engine_of(folder).render([*p.prompt, p.chosen[0]])[1] for p in preferences]
    for k in range(3):
        plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        alone = PeftModel.from_pretrained(plain, str(folder / "members" / str(k)))
        whole = alone.merge_and_unload()
        with torch.no_grad():
            rewards = [float(whole(input_ids=torch.tensor([ids])).logits) for ids in rows]
        theirs = [found[f"{i}/chosen"].parts[f"member/{k}"] for i in range(3)]
        assert rewards == pytest.approx(theirs, abs=1e-4)


def test_the_body_is_in_memory_once(ensemble):
    _, folder = ensemble
    body = engine_of(folder).body
    held = {id(p): p.numel() for p in body._layers.parameters()}
    plain = sum(v.numel() for n, v in load_file(folder / "model.safetensors").items())
    adapters = sum(
        v.numel()
        for k in range(3)
        for v in load_file(folder / f"members/{k}/adapter_model.safetensors").values()
    )
    # The body and all adapters; each has a head besides, which is not among the layers.
    assert sum(held.values()) == plain - 32 + adapters - 3 * 32


def test_the_same_seed_gives_the_same_files_wherever_it_runs(
    ensemble, make_model, make_preferences, tmp_path
):
    _, folder = ensemble
    _, again = distil(make_model(0), tmp_path / "elsewhere", make_preferences(8))
    assert weights_hash(folder) == weights_hash(again)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shutil.copytree(folder / "members" / "0", other / "members" / "1", dirs_exist_ok=True)
    assert weights_hash(other) != weights_hash(folder)


def test_a_killed_training_goes_on_with_the_member_under_way(
    ensemble, make_model, make_preferences, tmp_path, monkeypatch
):
    trained: list[Path] = []
    real = members.find_trainer

    def dies_at_second(job: Any):
        trained.append(job.out)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(members, "find_trainer", dies_at_second)
    with pytest.raises(KeyboardInterrupt):
        distil(make_model(0), tmp_path, make_preferences(8))
    assert not (tmp_path / "rm").exists()
    steps: list[tuple[int, int]] = []
    outcome, folder = distil(
        make_model(0), tmp_path, make_preferences(8),
        progress=lambda p: steps.append((p.step, p.total_steps)),
    )  # fmt: skip
    assert steps == [(k, 24) for k in range(9, 25)]
    assert outcome.metrics == ensemble[0].metrics
    assert weights_hash(folder) == weights_hash(ensemble[1])


def test_mistakes_are_said(ensemble, tmp_path, make_preferences):
    _, folder = ensemble
    with pytest.raises(ValidationError, match="adapters on one body: give `lora`"):
        options(lora=None)
    with pytest.raises(EngineError, match="an ensemble of adapters, and training needs one model"):
        load_module(folder, torch.device("cpu"), reward=True)
    with pytest.raises(ConfigError, match="reward_ensemble"):
        average([folder, folder], tmp_path / "mean")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "members/1/adapter_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(EngineError, match="does not fit"):
        engine_of(broken)
