"""Rollouts that are sampled with the weights of earlier ones, and the correction for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from rlaif.config.base import hashed_keys
from rlaif.config.methods import METHODS
from rlaif.kernels.batching import Branches, Layout, padded_layout
from rlaif.train.loading import load_module
from rlaif.train.losses.policy import clipped_policy_loss, importance_weights
from rlaif.train.model import TrainModel
from rlaif.train.policy_tasks import PolicyTask
from rlaif.train.rollout import Answer, Group, Rollout
from tests.support.on_policy import collector, learn, low_tokens, options_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("lag", "due"),
    [(0, [[0], [1], [2], [3]]), (1, [[0, 1], [2], [3], []]), (2, [[0, 1, 2], [3], [], []])],
)
def test_weights_sample_the_rollouts_that_are_so_many_ahead(lag: int, due: list[list[int]]) -> None:
    options = options_of("grpo", rollouts=4, lag=lag)
    assert [options.due_rollouts(learned) for learned in range(4)] == due


def test_given_rollouts_are_not_sampled() -> None:
    keys = {"method": "on_policy_distillation", "teacher": "t", "given": 0.5, "rollouts": 4}
    options = METHODS["on_policy_distillation"].model_validate({**keys, "lag": 1})
    # Every second one, from the second on, learns from given answers.
    assert [options.due_rollouts(learned) for learned in range(4)] == [[0], [2], [], []]


class Lagging:
    """A `collect` that keeps its answers, and by rollout the weights that sampled them."""

    def __init__(self, folder: Path, options: Any):
        self.sample = collector(folder, options, low_tokens)
        self.weights: dict[int, Tensor] = {}
        self.groups: dict[int, Any] = {}
        self.model: TrainModel | None = None
        self.learned: list[int] = []
        """The rollouts that were asked for without weights: their answers must be there."""

    def __call__(self, number: int, model: TrainModel | None) -> Any:
        if model is not None and number not in self.groups:
            self.model = model
            self.weights[number] = self.now()
            self.groups[number] = self.sample(number, model)
        if model is None:
            self.learned.append(number)
        return self.groups[number]

    def now(self) -> Tensor:
        """All weights of this moment."""
        assert self.model is not None
        return torch.cat([m.detach().flatten().clone() for m in self.model.masters.values()])


@pytest.mark.parametrize("lag", [1, 2])
def test_a_rollout_is_sampled_with_the_weights_of_an_earlier_one(
    tmp_path: Path, make_model: Callable[..., Path], lag: int
) -> None:
    options = options_of("grpo", rollouts=4, lag=lag)
    collect = Lagging(make_model(0), options)
    after: list[Tensor] = []
    outcome = learn(
        make_model(0),
        tmp_path,
        options,
        collect=collect,
        progress=lambda _: after.append(collect.now()),
    )
    start = torch.cat([p.detach().flatten() for p in load_module(make_model(0), CPU).parameters()])
    history = [start, *after]
    assert not torch.equal(history[0], history[1])
    for number in range(4):
        assert torch.equal(collect.weights[number], history[max(0, number - lag)])
    assert collect.learned == [0, 1, 2, 3]
    # The first is on-policy; what the last learns from was sampled by other weights.
    assert outcome.metrics["first_logprob_gap"] < 1e-5 < 1e-3 < outcome.metrics["last_logprob_gap"]
    assert (outcome.metrics["first_lag"], outcome.metrics["last_lag"]) == (0, lag)


def test_an_interrupted_training_goes_on_with_the_answers_of_weights_that_are_gone(
    tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    options = options_of("grpo", rollouts=5, lag=2, checkpoint_every=2)
    learn(make_model(0), tmp_path / "a", options, collect=Lagging(make_model(0), options))
    stored = Lagging(make_model(0), options)

    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(make_model(0), tmp_path / "b", options, collect=stored, progress=stop)
    assert stored.groups.keys() == {0, 1, 2, 3, 4}
    # The checkpoint is of two rollouts: the answers to the last were sampled after it.
    del stored.groups[4]
    learn(make_model(0), tmp_path / "b", options, collect=stored)
    one, two = (load_file(tmp_path / f"{x}/out/masters/model.safetensors") for x in "ab")
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_without_a_lag_nothing_is_other_than_it_was(
    tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    plain, zero = options_of("grpo", rollouts=2), options_of("grpo", rollouts=2, lag=0)
    assert hashed_keys(zero) == hashed_keys(plain)
    assert "lag" not in hashed_keys(zero) and "lag" in hashed_keys(options_of("grpo", lag=1))
    outcomes = [learn(make_model(0), tmp_path / n, o) for n, o in (("a", plain), ("b", zero))]
    assert outcomes[0].steps == outcomes[1].steps and "first_lag" not in outcomes[1].metrics
    one, two = (load_file(tmp_path / f"{x}/out/masters/model.safetensors") for x in "ab")
    assert all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize(
    ("advantage", "loss"),
    [
        # 0.8 min(1.5, 1.2); 0.8 max(1.5, 1.2).
        (1.0, -0.96),
        (-1.0, 1.2),
    ],
)
def test_the_ratio_is_clipped_around_the_proximal_policy(advantage: float, loss: float) -> None:
    """Probabilities: trained 0.3, at the start of the update 0.2, when it was sampled 0.25."""
    now, proximal, behaviour = (torch.tensor([math.log(p)]) for p in (0.3, 0.2, 0.25))
    weight, _ = importance_weights(proximal, behaviour, [1], "token", "truncate")
    found, _ = clipped_policy_loss(
        now, proximal, torch.tensor([advantage]), 0.2, 0.2, weight=weight
    )
    assert float(found) == pytest.approx(loss)


def test_with_a_lag_the_default_is_the_truncated_ratio() -> None:
    assert options_of("grpo").importance == "mask_sequence"
    assert options_of("grpo", lag=1).importance == "truncate_token"
    assert options_of("grpo", lag=1, importance="none").importance == "none"
    assert options_of("online_dpo", lag=1).importance == "none"
    # What a run folder keeps is read as it is.
    kept = options_of("rloo", lag=2)
    assert type(kept).model_validate(kept.model_dump(by_alias=True)) == kept


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("grpo", {"lag": -1}, "lag"),
        ("grpo", {"lag": 24}, "is not below rollouts"),
        ("grpo", {"lag": 1, "resample": 2}, "leave one of them out"),
        ("grpo", {"lag": 1, "gates": {"kl": {"rollback": 9.0}}}, "a rollback samples anew"),
        ("grpo", {"lag": 1, "temperature": 0.7}, "importance: none"),
        ("quark", {"lag": 1}, "all answers so far"),
    ],
)
def test_what_a_lag_cannot_be_combined_with(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        options_of(name, **keys)


def test_whole_distributions_take_no_lag() -> None:
    keys = {"method": "on_policy_distillation", "teacher": "t", "lag": 1, "divergence": "jsd"}
    with pytest.raises(ValidationError, match="no weight of an answer corrects"):
        METHODS["on_policy_distillation"].model_validate(keys)


class Table:
    """A policy that draws each token from the same six chances, whatever was before."""

    def __init__(self) -> None:
        self.logits = torch.tensor([0.0, 0.5, -0.5, 1.0, 0.2, -1.0], requires_grad=True)

    def layout(self, examples: Sequence[Branches]) -> Layout:
        return padded_layout(examples)

    def compute(self, function: Callable[[], Any]) -> Any:
        return function()

    def predicting(self, layout: Layout) -> Tensor:
        return torch.zeros(len(layout.targets), 1)

    def read_logprobs_and_entropy(
        self, hidden: Tensor, layout: Layout, temperature: float
    ) -> tuple[Tensor, Tensor]:
        chances = torch.distributions.Categorical(logits=self.logits)
        return chances.log_prob(layout.targets), chances.entropy().expand(len(layout.targets))


POLICY = Table()
REWARDS = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
# A stale policy that wrote more of what is rewarded; no ratio is above the cap of 3.
STALE = (POLICY.logits.detach() + REWARDS).log_softmax(-1)
REFERENCE = torch.full((6,), 1 / 6).log()


def estimate(importance: str, seed: int) -> tuple[Tensor, float]:
    """What 64 answers of one token, by the stale policy, give: the gradient of the expected reward
    and the KL to the reference."""
    options = options_of("grpo", beta=0.1, lag=1, importance=importance)
    drawn = torch.multinomial(STALE.exp(), 64, True, generator=torch.Generator().manual_seed(seed))
    answers = [Answer([token], [float(STALE[token])], (0.0,), True) for token in drawn.tolist()]
    rollout = Rollout([Group("p", [1], tuple(answers))])
    rollout.active = [torch.ones(64, dtype=torch.bool)]
    rollout.advantages = [REWARDS[drawn] - 0.5]
    rollout.reference = [REFERENCE[drawn]]
    # So small a share of the KL is measured, and moves nothing.
    task = PolicyTask(rollout, options, beta=1e-30)
    model = cast(TrainModel, POLICY)
    loss, sums, _ = task.loss(model, [0], task.total([0]), 0)
    (gradient,) = torch.autograd.grad(loss, [POLICY.logits])
    amount, weight = sums["kl"]
    return -gradient, amount / weight


@pytest.mark.parametrize(
    ("importance", "unbiased"),
    [("truncate_token", True), ("truncate_sequence", True), ("none", False)],
)
def test_the_gradient_of_stale_answers_is_unbiased_once_it_is_corrected(
    importance: str, unbiased: bool
) -> None:
    chances = POLICY.logits.softmax(-1)
    (exact,) = torch.autograd.grad((chances * REWARDS).sum(), [POLICY.logits])
    kl = float((chances * (chances.log() - REFERENCE)).sum().detach())
    direction = exact / exact.norm()
    found = [estimate(importance, seed) for seed in range(200)]
    along = torch.tensor([float(gradient @ direction) for gradient, _ in found])
    kls = torch.tensor([kl for _, kl in found])
    for values, truth in ((along, float(exact.norm())), (kls, kl)):
        error = float(values.std()) / math.sqrt(len(values))
        assert (abs(float(values.mean()) - truth) < 3 * error) is unbiased
