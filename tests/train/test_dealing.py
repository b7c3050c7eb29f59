"""What each of several processes samples, without starting them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from rlaif.config.models import ModelSpec
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.engines.local.encoding import Encoding, load_encoding
from rlaif.train import dealing, parallel
from rlaif.train.loading import load_module
from rlaif.train.model import TrainModel, prepare

CPU = torch.device("cpu")


REQUESTS = [
    GenerateRequest(f"r{n}", [{"role": "user", "content": "Why? " * n}], Sampling(4, 1.0, seed=n))
    for n in range(1, 11)
]


def policy(folder: Path) -> tuple[TrainModel, Encoding, ModelSpec]:
    """A model whose batches hold a few of the requests."""
    spec = ModelSpec(path=str(folder), dtype="float32", batch_tokens=60)
    encoding = load_encoding(folder, spec, AutoConfig.from_pretrained(folder), "policy")
    return prepare(load_module(folder, CPU), CPU, torch.float32), encoding, spec


def sample(folder: Path, done: frozenset[str] = frozenset()) -> list[list[Any]]:
    """The batches of the requests, as this rank's engine gives them."""
    with dealing.open_policy(*policy(folder), "x") as engine:
        return list(engine.generate(REQUESTS, done))


def test_every_batch_is_sampled_by_one_rank(make_model, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(0)
    whole = sample(folder)
    assert len(whole) >= 4
    told: list[Any] = []
    theirs = [whole[1::2]]
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "tell", told.append)
    # What the other rank has sampled comes after the first one's own.
    monkeypatch.setattr(parallel, "gather", lambda own: [own, *theirs])
    assert sample(folder) == whole[::2] + whole[1::2]
    assert [r.request_id for r in told[0].requests] == [f"r{n}" for n in range(1, 11)]
    # What is known already leaves the other batches where they were.
    theirs[0] = []
    known = frozenset(r.request_id for r in whole[0])
    assert sample(folder, known) == whole[2::2]
    assert told[-1].done == known


def test_a_rank_that_follows_samples_its_share_until_it_is_told_what_was_found(
    make_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(0)
    whole = sample(folder)
    given: list[Any] = []
    told = iter([dealing._Ask(REQUESTS, frozenset(), None), dealing._Found("groups")])
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "tell", lambda: next(told))
    monkeypatch.setattr(parallel, "gather", given.append)
    found = dealing._follow(*policy(folder), lambda: pytest.fail("it computes nothing"))
    assert found == "groups"
    assert given == [whole[1::2]]


def test_results_of_all_ranks_are_in_the_order_of_the_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parallel, "world", lambda: 3)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    monkeypatch.setattr(parallel, "gather", lambda own: [["a0", "a3"], own, ["a2"]])
    assert parallel.deal([0, 1, 2, 3], lambda n: f"b{n}") == ["a0", "b1", "a2", "a3"]
