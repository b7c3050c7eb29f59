"""PPO-Lagrangian: the multipliers by hand, what a rollout is learned from with them, and whole
trainings: a multiplier of 0 changes no bit, a constraint holds, and a killed training goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from rlaif.config.methods import METHODS
from rlaif.config.rewards import CostTerm, RewardTerm
from rlaif.train.costs import (
    Multiplier,
    cost_metrics,
    multipliers_from_json,
    multipliers_to_json,
    start_multipliers,
    step_multipliers,
    without_unknown_costs,
)
from rlaif.train.rewards import summed
from rlaif.train.rollout import Answer, Group, Rollout, add_advantages
from tests.support.on_policy import learn, options_of

approx: Any = pytest.approx


def cost(**keys: Any) -> CostTerm:
    return CostTerm.model_validate({"judge": "c", "limit": 0.0, **keys})


def group(*costs: float | None) -> Group:
    answers = tuple(Answer([1], [], (0.0,), True, costs=(value,)) for value in costs)
    return Group("p", [1], answers)


# --- multipliers --------------------------------------------------------------------------------


def test_the_multiplier_moves_in_log_space_as_in_the_paper() -> None:
    """Safe RLHF's code: lambda 1, mean cost .5 -> log lambda .05; then mean cost -.5."""
    term = cost(window=1)
    first = Multiplier(1.0).stepped(term, [0.5])
    assert first.value == approx(1.051271, abs=1e-6)
    second = first.stepped(term, [-0.5])
    assert math.log(second.value) == approx(-0.0025636, abs=1e-7)
    assert second.value == approx(0.997440, abs=1e-6)


def test_the_mean_is_over_the_window_and_held_against_the_limit() -> None:
    term = cost(limit=0.25, window=3, rate=2.0, start=0.5, max=99.0)
    [found] = step_multipliers(start_multipliers([term]), [term], [group(9.0, 1.0), group(None)])
    assert found.window == (9.0, 1.0)
    assert found.value == approx(0.5 * math.exp(2 * 0.5 * (5.0 - 0.25)))
    [later] = step_multipliers([Multiplier(0.5, (9.0, 1.0))], [term], [group(0.0, 0.5)])
    assert later.window == (1.0, 0.0, 0.5)
    assert later.value == approx(0.5 * math.exp(2 * 0.5 * (0.5 - 0.25)))


@pytest.mark.parametrize(
    ("keys", "before", "costs", "after"),
    [
        ({"max": 2.0}, 1.9, [100.0], 2.0),
        ({}, 1.5, [], 1.5),
        ({"start": 0.0}, 0.0, [5.0], 0.0),
        ({"rate": 0.0}, 1.5, [5.0], 1.5),
        ({"limit": 0.5}, 1.5, [0.5], 1.5),
        ({}, 1.5, [-1e9], 1.5 * math.exp(-20)),
        ({}, 1.5, [1e9], 20.0),
    ],
)
def test_a_multiplier_at_its_bounds(
    keys: dict[str, float], before: float, costs: list[float], after: float
) -> None:
    assert Multiplier(before).stepped(cost(**keys), costs).value == approx(after, rel=1e-12)


def test_multipliers_are_stored_by_name() -> None:
    terms = [cost(), cost(judge="d"), cost(limit=1.0)]
    found = [Multiplier(0.1 + 0.2, (1.0, 2.0)), Multiplier(1.0), Multiplier(3.0, (4.0,))]
    stored = json.loads(json.dumps(multipliers_to_json(terms, found)))
    assert list(stored) == ["c/1", "d", "c/3"]
    assert multipliers_from_json(terms, stored) == found


def test_metrics_say_what_was_asked_and_what_is_missing() -> None:
    found = cost_metrics([cost()], [Multiplier(2.0, (1.0, 4.0))], [group(1.0, None, 4.0, None)])
    assert found == {
        "cost/c": 2.5,
        "cost_window/c": 2.5,
        "missing_cost/c": 0.5,
        "multiplier/c": 2.0,
    }


def test_an_answer_that_lacks_a_cost_is_in_no_mean_of_the_rewards() -> None:
    values = ((1.0, 5.0), (3.0, 5.0), (1e9, None))
    answers = tuple(Answer([1], [], (v,), True, costs=(c, None)) for v, c in values)
    terms = [RewardTerm(judge="r", normalise="group")]
    costs = [cost(), cost(judge="watched", start=0)]
    known = without_unknown_costs([Group("p", [1], answers)], costs)
    half = 1 / math.sqrt(2)
    assert summed(known, terms, {}) == [[approx(-half), approx(half), None]]


def test_an_answer_that_lacks_a_cost_has_no_reward_by_a_term_that_is_not_for_it() -> None:
    """Such a term adds 0 to a reward that there is."""
    idle = frozenset({0})
    answers = tuple(Answer([1], [], (None,), True, idle=idle, costs=(c,)) for c in (1.0, None))
    known = without_unknown_costs([Group("p", [1], answers)], [cost()])
    assert summed(known, [RewardTerm(judge="r")], {}) == [[0.0, None]]


@pytest.mark.parametrize(
    ("method", "costs", "message"),
    [
        ("grpo", [{"judge": "c"}], "limit"),
        ("grpo", [{"judge": "c", "limit": 1, "start": 30}], r"'c': `start` \(30\) is above `max`"),
        ("ppo", [{"judge": "c", "limit": 1, "higher": "good"}], "'worse' or 'better'"),
        ("ppo", [{"judge": "c", "limit": math.inf}], "finite"),
        ("online_dpo", [{"judge": "c", "limit": 1}], "costs"),
    ],
)
def test_costs_that_make_no_sense_are_refused(method: str, costs: Any, message: str) -> None:
    keys = {"method": method, "rewards": {"r": 1.0}, "costs": costs}
    with pytest.raises(ValidationError, match=message):
        METHODS[method].model_validate(keys)


# --- advantages ---------------------------------------------------------------------------------


def rollout_of(**about: Any) -> Rollout:
    answers = tuple(Answer([1], [], (0.0,), True) for _ in range(2))
    keys: dict[str, Any] = {
        "rewards": [torch.tensor([4.0, 0.0]).double()],
        "active": [torch.tensor([True, True])],
        "costs": [[torch.tensor([2.0, 0.0]).double()]],
        "cost_names": ["c"],
    }
    return Rollout([Group("p", [1], answers)], **keys | about)


@pytest.mark.parametrize(
    ("multiplier", "wanted"), [(0.0, 2.0), (1.0, 0.5), (3.0, -0.25), (1e9, -1.0)]
)
def test_advantages_of_reward_and_cost_are_weighed_by_the_multiplier(
    multiplier: float, wanted: float
) -> None:
    """A_R 2 and A_C 1: (2 - lambda) / (1 + lambda)."""
    options = options_of("grpo_dr", n=2, rewards={"r": 1.0})
    rollout = rollout_of(multipliers=[multiplier])
    add_advantages(rollout, options, 0.0)
    assert rollout.advantages[0].tolist() == approx([wanted, -wanted], rel=1e-6)


def test_the_kl_in_the_reward_has_the_same_weight_whatever_the_multiplier_is() -> None:
    """(beta + lambda beta) / (1 + lambda) = beta."""
    options = options_of("rloo", n=2, beta=0.5)
    about = {
        "rewards": [torch.zeros(2).double()],
        "costs": [[torch.zeros(2).double()]],
        "old": [torch.tensor([-1.0, -2.0])],
        "reference": [torch.tensor([-1.5, -4.5])],
    }
    found = []
    for multiplier in (0.0, 1.0, 7.0):
        rollout = rollout_of(multipliers=[multiplier], **about)
        add_advantages(rollout, options, 0.5)
        found.append(rollout.advantages[0].tolist())
    # KL .5 and 2.5: rewards -.25 and -1.25, each less the other.
    assert found == [approx([1.0, -1.0])] * 3


# --- trainings ----------------------------------------------------------------------------------


def exported(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "out/masters/model.safetensors")
    return found


def differ(one: Path, other: Path) -> float:
    first, second = exported(one), exported(other)
    assert first.keys() == second.keys()
    return max(float((first[n] - second[n]).abs().max()) for n in first)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "work/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def long(ids: list[int]) -> float:
    return float(len(ids))


KEYS = {"rollouts": 3, "batch_size": 2, "n": 4, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    "name",
    ["ppo", "grpo", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rloo", "ppo_separate"))],
)
def test_a_multiplier_of_0_leaves_every_bit_as_it_is_without(
    tmp_path: Path, make_model: Any, name: str
) -> None:
    learn(make_model(0), tmp_path / "plain", options_of(name, **KEYS))
    watched = options_of(name, **KEYS, costs=[{"judge": "c", "limit": 0.0, "start": 0.0}])
    learn(make_model(0), tmp_path / "watched", watched, cost=long)
    assert differ(tmp_path / "plain", tmp_path / "watched") == 0
    near = options_of(name, **KEYS, costs=[{"judge": "c", "limit": 0.0, "start": 1e-9}])
    learn(make_model(0), tmp_path / "near", near, cost=long)
    small = differ(tmp_path / "plain", tmp_path / "near")
    acts = options_of(name, **KEYS, costs=[{"judge": "c", "limit": 0.0, "start": 1.0}])
    learn(make_model(0), tmp_path / "acts", acts, cost=long)
    assert small < 1e-4 < differ(tmp_path / "plain", tmp_path / "acts")
    # The rollout's own costs have moved the multiplier that it is learned from with.
    row = rows_of(tmp_path / "acts")[0]
    assert row["cost_window/c"] == approx(row["cost/c"])
    assert row["multiplier/c"] == approx(math.exp(0.1 * row["cost/c"]))
    row = rows_of(tmp_path / "watched")[-1]
    assert row["multiplier/c"] == 0 and row["cost/c"] > 0
