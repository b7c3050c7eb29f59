"""A policy that is split, here over one process: what is measured and learned is that of a whole
one, and its copy samples with the weights that it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rlaif.train.loading import load_module
from rlaif.train.loop import make_optimizer, optimiser_step
from rlaif.train.model import TrainModel, prepare
from rlaif.train.rewards import summed
from rlaif.train.rollout import add_advantages, measure
from rlaif.train.rollout_tasks import make_task
from tests.support.on_policy import collector, low_tokens, options_of

CPU = torch.device("cpu")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    meeting = (tmp_path / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def load(folder: Path, sharded: bool, trainable: bool = True) -> TrainModel:
    return prepare(
        load_module(folder, CPU), CPU, torch.float32, trainable=trainable, sharded=sharded
    )


@pytest.mark.parametrize(
    ("name", "keys"),
    [("online_dpo", {}), ("grpo", {"gates": {"entropy": {"warn": -1.0}}, "epochs": 2})],
    ids=["pairs", "entropy"],
)
def test_a_step_of_a_split_policy_is_that_of_a_whole_one(
    tmp_path: Path, make_model: Callable[..., Path], alone: None, name: str, keys: dict[str, Any]
) -> None:
    options = options_of(name, batch_size=2, n=3, **keys)
    folder, found, weights = make_model(0), [], []
    for sharded in (False, True):
        model, reference = load(folder, sharded), load(make_model(1), sharded, trainable=False)
        if sharded:
            model.copy = load(folder, False, trainable=False)
        groups = collector(folder, options, low_tokens)(0, model)
        rewards = summed(groups, options.terms, {})
        rollout = measure(model, groups, rewards, options, reference, None)
        add_advantages(rollout, options, options.beta)
        task = make_task(rollout, options, options.beta, reference, None, (), 0)
        optimizer = make_optimizer(model, options)
        row = optimiser_step(task, model, optimizer, [[0], [1]], options, 0, 1, tmp_path)
        found.append({k: v for k, v in (row | rollout.metrics).items() if k != "timing"})
        model.refresh_copy()
        with torch.no_grad(), model.generating() as module:
            weights.append(torch.cat([p.flatten().clone() for p in module.parameters()]))
        del model, reference, task, optimizer
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-6)
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-5)
    start = torch.cat([p.detach().flatten() for p in load_module(folder, CPU).parameters()])
    assert float((weights[1] - start).abs().max()) > 1e-3
