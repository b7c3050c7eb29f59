"""Rewards and costs through whole experiments: what must change nothing changes nothing, a
constraint is one from the judge to the weights, and a killed training ends in the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlaif.core.errors import ConfigError
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from tests.pipeline.test_kills import rows

Weights = dict[str, torch.Tensor]
SIZES = {
    "rollouts": 2,
    "batch_size": 2,
    "n": 4,
    "max_new_tokens": 8,
    "learning_rate": 1e-3,
    "warmup_ratio": 0.0,
    "precision": "fp32",
    "importance": "none",
}


class Experiments:
    """Trainings of one tiny model that differ in judges, rewards and costs."""

    def __init__(self, folder: Path, policy: Path, write: Callable[..., Path]):
        self.folder, self.policy, self.write = folder, policy, write

    def file(self, name: str, judges: dict[str, Any], **train: Any) -> Path:
        """The experiment, whose judges are `Measure`s with these options."""
        kind = "tests.support.measures:Measure"
        (self.folder / name).mkdir()
        return self.write(
            self.folder / name,
            self.policy,
            models={"policy": {"path": str(self.policy), "dtype": "float32"}},
            judges=[{"id": i, "kind": kind, "options": o} for i, o in judges.items()],
            steps=[{"train": SIZES | train}],
            rounds=1,
        )

    def train(self, name: str, judges: dict[str, Any], **train: Any) -> Weights:
        """The weights that it ends with."""
        run_experiment(self.file(name, judges, **train), self.folder / name / "run")
        return self.weights(name)

    def weights(self, name: str, run: str = "run") -> Weights:
        [path] = (self.folder / name / run).glob("models/*/masters/model.safetensors")
        return load_file(path)

    def metrics(self, name: str, run: str = "run") -> list[dict[str, Any]]:
        [path] = (self.folder / name / run).glob("steps/*/work/metrics.jsonl")
        lines = path.read_text().splitlines()
        return [{k: v for k, v in json.loads(x).items() if k != "timing"} for x in lines]


@pytest.fixture
def experiments(
    tmp_path: Path, make_model: Callable[[int], Path], write_experiment: Callable[..., Path]
) -> Experiments:
    return Experiments(tmp_path, make_model(0), write_experiment)


def largest(one: Weights, other: Weights) -> float:
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max()) for n in one)


@pytest.mark.parametrize(
    ("method", "normalise"),
    [
        ("grpo", "range"),
        pytest.param("ppo", "running", marks=pytest.mark.slow),
        pytest.param("ppo", "reference", marks=pytest.mark.slow),
        pytest.param("rloo", "group", marks=pytest.mark.slow),
    ],
)
def test_offset_and_scale_of_a_normalised_term_change_nothing(
    experiments: Experiments, method: str, normalise: str
) -> None:
    terms = [{"judge": "a", "normalise": normalise}, {"judge": "b", "weight": 0.5}]
    about: Any = {"method": method, "rewards": terms}
    other = {"b": {"of": "chance"}}
    plain = experiments.train("plain", {"a": {}, **other}, **about)
    moved = experiments.train("moved", {"a": {"scale": 7.0, "offset": -40.0}, **other}, **about)
    assert largest(plain, moved) < 1e-6
    start = load_file(experiments.policy / "model.safetensors")
    assert largest({n: plain[n] for n in start}, {n: t.float() for n, t in start.items()}) > 1e-4


@pytest.mark.parametrize(
    ("method", "scale", "keys"),
    [
        ("quark", 7.0, {}),
        ("sppo", 1.0, {}),
        pytest.param("online_dpo", 7.0, {}, marks=pytest.mark.slow),
        *(
            pytest.param(m, 7.0, {"sync_every": 2}, marks=pytest.mark.slow)
            for m in ("gspo", "cispo")
        ),
        pytest.param("reinforce_pp", 7.0, {"baseline": "group"}, marks=pytest.mark.slow),
    ],
    ids=["quark", "sppo", "online_dpo", "gspo", "cispo", "reinforce_pp"],
)
def test_offset_and_scale_of_the_raw_reward_change_nothing_where_only_differences_count(
    experiments: Experiments, method: str, scale: float, keys: dict[str, Any]
) -> None:
    """Ranks for Quark, the best and the worst for pairs, a mean and a deviation for the others;
    SPPO's win rates know the scale."""
    about: Any = {"method": method, "rewards": [{"judge": "a"}], "beta": 0.01, **keys}
    plain = experiments.train("plain", {"a": {}}, **about)
    moved = experiments.train("moved", {"a": {"scale": scale, "offset": -40.0}}, **about)
    assert largest(plain, moved) < 1e-6
    turned = experiments.train("turned", {"a": {"scale": -scale}}, **about)
    assert largest(plain, turned) > 1e-4
    rows = [experiments.metrics(name)[0] for name in ("plain", "moved")]
    assert rows[0]["reward"] - rows[1]["reward"] > 30


def test_a_penalty_is_a_negative_weight_and_no_weight_is_no_term(experiments: Experiments) -> None:
    """Bit for bit, also where the judge of weight 0 lacks values."""
    about: Any = {"method": "grpo", "scale": "none"}
    judges = {"a": {}, "b": {"of": "length"}}
    penalised = experiments.train(
        "penalised", judges, rewards=[{"judge": "a"}, {"judge": "b", "weight": -1.0}], **about
    )
    turned = experiments.train(
        "turned",
        {"a": {}, "b": {"of": "length", "scale": -1.0}},
        rewards=[{"judge": "a"}, {"judge": "b"}],
        **about,
    )
    assert largest(penalised, turned) == 0
    alone = experiments.train("alone", judges, rewards=[{"judge": "a"}], **about)
    assert largest(alone, penalised) > 1e-4
    logged = experiments.train(
        "logged",
        {"a": {}, "b": {"of": "length", "missing": 0.5}},
        rewards=[{"judge": "a"}, {"judge": "b", "weight": 0, "normalise": "reference"}],
        **about,
    )
    assert largest(alone, logged) == 0
    row = experiments.metrics("logged")[0]
    assert row["missing/b"] > 0 and row["unscored"] == 0
    assert row["contribution/b"] == 0 and row["contribution/a"] == pytest.approx(row["reward"])


@pytest.mark.parametrize(
    ("method", "normalise"),
    [
        ("grpo", "group"),
        ("quark", "running"),
        pytest.param("grpo", "range", marks=pytest.mark.slow),
        pytest.param("ppo", "running", marks=pytest.mark.slow),
    ],
)
def test_an_answer_that_lacks_a_value_is_in_no_baseline_and_no_loss(
    experiments: Experiments, method: str, normalise: str
) -> None:
    """Whatever its other term and its cost are."""
    about: Any = {
        "method": method,
        "rewards": [{"judge": "a", "normalise": normalise}, {"judge": "b"}],
    }
    lacks = {"b": {"of": "chance", "missing": 0.4}}
    plain = experiments.train("plain", {"a": {}, **lacks}, **about)
    spoiled = experiments.train("spoiled", {"a": {"spoiled": 0.4}, **lacks}, **about)
    assert largest(plain, spoiled) == 0
    first, other = experiments.metrics("plain")[0], experiments.metrics("spoiled")[0]
    assert first["unscored"] == first["missing/b"] > 0
    assert first["reward"] == other["reward"] and other["value/a"] > first["value/a"] + 5
    counted = experiments.train("counted", {"a": {"spoiled": 0.4}, "b": {"of": "chance"}}, **about)
    assert largest(plain, counted) > 1e-4


def test_a_verifier_comes_first_and_a_reward_model_within_its_verdicts(
    experiments: Experiments,
) -> None:
    """HERO (arXiv 2510.07242): any right answer is above any wrong one."""
    terms = [
        {"judge": "right"},
        {"judge": "model", "weight": 0.05, "normalise": "range", "within": "right"},
    ]
    judges = {"right": {"of": "parity", "plain": True}, "model": {"of": "length", "scale": 30.0}}
    experiments.train("hero", judges, method="grpo", rewards=terms)
    row = experiments.metrics("hero")[0]
    assert abs(row["contribution/model"]) <= 0.05
    assert row["contribution/right"] == row["value/right"]
    assert row["reward"] == pytest.approx(row["value/right"] + row["contribution/model"])


def test_what_a_judge_does_not_judge_costs_no_reward_and_a_missing_cost_does(
    experiments: Experiments,
) -> None:
    about: Any = {"method": "grpo", "rewards": [{"judge": "a"}, {"judge": "b"}]}
    judges = {"a": {}, "b": {"elsewhere": 0.5}, "c": {"of": "length", "missing": 0.3}}
    costs = [{"judge": "c", "limit": 0.2, "higher": "worse"}]
    experiments.train("costs", judges, costs=costs, **about)
    row = experiments.metrics("costs")[0]
    assert 0 < row["counts/b"] < 1 == row["counts/a"]
    assert row["missing/b"] == 0 and row["unscored"] == row["missing_cost/c"] > 0


# --- costs --------------------------------------------------------------------------------------

CONSTRAINED: dict[str, Any] = {
    "rewards": [{"judge": "a", "normalise": "running"}],
    "costs": [
        {"judge": "c", "limit": 0.05, "higher": "worse", "rate": 3.0, "window": 12},
        {"judge": "d", "limit": 0.9, "higher": "better", "start": 0.5},
    ],
    "rollouts": 4,
    "checkpoint_every": 2,
}
MEASURED = {"a": {}, "c": {"of": "length"}, "d": {"of": "chance", "plain": True}}


def test_a_cost_is_turned_round_where_more_is_better(experiments: Experiments) -> None:
    """A reward model as a cost, and a rule: minus its raw value, and 1 - its score."""
    about: Any = {"method": "grpo", "rewards": [{"judge": "a"}], "rollouts": 1}
    judges = {"a": {}, "c": {"of": "length", "scale": 4.0}, "d": {"of": "length", "plain": True}}
    found = {}
    for higher in ("worse", "better"):
        costs = [{"judge": name, "limit": 0.0, "higher": higher} for name in "cd"]
        experiments.train(higher, judges, costs=costs, **about)
        found[higher] = experiments.metrics(higher)[0]
    worse, better = found["worse"], found["better"]
    assert 0 < worse["cost/d"] < 1 and worse["cost/c"] == pytest.approx(4 * worse["cost/d"])
    assert better["cost/c"] == -worse["cost/c"]
    assert better["cost/d"] == pytest.approx(1 - worse["cost/d"])
    assert worse["multiplier/c"] > 1 > better["multiplier/c"]


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({"judge": "c"}, r"costs: is more of judge 'c' worse, or better\? Set `higher: worse`"),
        ({"judge": "cc", "higher": "worse"}, r"costs: 'cc' is no judge"),
        ({"judge": "d", "higher": "worse", "value": "raw"}, r"costs: judge 'd' .* no raw value"),
    ],
)
def test_costs_that_cannot_be_are_refused_before_anything_runs(
    experiments: Experiments, cost: dict[str, Any], message: str
) -> None:
    about: Any = {"rewards": [{"judge": "a"}], "costs": [{"limit": 0.0, **cost}]}
    path = experiments.file("refused", MEASURED, method="ppo", **about)
    with pytest.raises(ConfigError, match=message) as error:
        run_experiment(path, experiments.folder / "run")
    assert "experiment.yaml:" in str(error.value)


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_killed_training_with_costs_ends_in_the_same_bytes(
    experiments: Experiments, method: str
) -> None:
    """SIGKILL at the first step of the fourth rollout; the checkpoint is of the first two."""
    about = CONSTRAINED | {"method": method, "epochs": 2}
    path = experiments.file("one", MEASURED, **about)
    whole, killed = (experiments.folder / "one" / name for name in ("run", "killed"))
    run_experiment(path, whole)
    command = [sys.executable, "-m", "tests.support.killed_training", str(path), str(killed), "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not list(killed.glob("models/*/masters"))
    run_experiment(path, killed)
    assert rows(killed).keys() == rows(whole).keys()
    assert experiments.metrics("one", "killed") == experiments.metrics("one")
    assert largest(experiments.weights("one"), experiments.weights("one", "killed")) == 0
    multipliers = [row["multiplier/c"] for row in experiments.metrics("one")]
    assert len(set(multipliers)) == 4


COST_MODEL = """
name: safe
models: {policy: {path: builtin/smollm2-135m-instruct}}
constitution: constitution.yaml
prompts: {path: prompts.jsonl, holdout: 3}
judges:
  - {id: checks, kind: rules}
  - {id: cost, kind: reward_model, by: cm}
  - {id: reward, kind: reward_model, by: rm}
steps:
  - sample: {n: 2}
  - judge: checks
  - pair: {}
  - distill: {id: rm}
  - distill: {id: cm, method: cost}
  - train:
      method: ppo
      batch_size: 2
      rewards: [{judge: reward, normalise: reference}]
      costs: [{judge: COST}]
"""


@pytest.mark.parametrize(
    ("cost", "turned"),
    [
        ("cost, limit: 0", [0]),
        ("cost, limit: 0, higher: better", [0]),
        ("reward, limit: 0, higher: worse", []),
        ("reward, limit: 0, higher: better", [0]),
        ("checks, limit: 0.5, higher: better", [0]),
    ],
)
def test_a_cost_models_reward_is_minus_its_cost(
    tmp_path: Path, write_experiment: Callable[..., Path], cost: str, turned: list[int]
) -> None:
    write_experiment(tmp_path, None)
    path = tmp_path / "experiment.yaml"
    path.write_text(COST_MODEL.replace("COST", cost))
    planned = make_plan(prepare(path, fetch=False))[-1]
    assert planned.options["turned_costs"] == turned


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ("cost, limit: 0, higher: worse", "whose reward is minus its cost: leave `higher` out"),
        ("reward, limit: 0", "is more of judge 'reward' worse, or better"),
    ],
)
def test_a_cost_that_points_the_wrong_way_is_refused(
    tmp_path: Path, write_experiment: Callable[..., Path], cost: str, message: str
) -> None:
    write_experiment(tmp_path, None)
    path = tmp_path / "experiment.yaml"
    path.write_text(COST_MODEL.replace("COST", cost))
    with pytest.raises(ConfigError, match=message):
        make_plan(prepare(path, fetch=False))
