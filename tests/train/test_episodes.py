"""Of an episode the policy's own tokens alone are learned from, whatever stands between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.core.records import are_own, interleave
from rlaif.kernels.batching import Branches, Layout, keep_targets, packed_layout, padded_layout
from rlaif.train.loading import load_module
from rlaif.train.model import TrainModel, prepare
from rlaif.train.on_policy import add_critic, drop_critic
from rlaif.train.policy_tasks import PolicyTask
from rlaif.train.rollout import Answer, Group, Rollout, add_advantages, measure, token_values
from tests.support.on_policy import options_of

CPU = torch.device("cpu")
PROMPT = [10, 11, 12]
TURNS: tuple[tuple[int, list[int]], ...] = ((2, [50, 51]), (1, [52]), (2, []))
GROUPS = [
    Group(
        "p",
        PROMPT,
        (
            Answer([20, 21, 22, 23, 24], [-1.0] * 5, (1.0,), True, turns=TURNS),
            Answer([30, 31], [-1.0] * 2, (0.0,), True, turns=((1, [60, 61, 62]), (1, []))),
        ),
    ),
    Group("q", [13, 14], (Answer([40, 41, 42], [-1.0] * 3, (0.5,), True),)),
]


def test_an_episode_is_put_together_by_hand() -> None:
    assert interleave([20, 21, 22, 23, 24], TURNS) == [20, 21, 50, 51, 22, 52, 23, 24]
    assert are_own(TURNS) == [True, True, False, False, True, False, True, True]
    answer = GROUPS[0].answers[0]
    assert (answer.sequence, answer.is_own) == (interleave(answer.ids, TURNS), are_own(TURNS))
    plain = GROUPS[1].answers[0]
    assert (plain.sequence, plain.is_own) == ([40, 41, 42], [True] * 3)


@pytest.mark.parametrize("lay", [packed_layout, padded_layout], ids=["packed", "padded"])
def test_targets_that_are_not_own_are_read_and_not_predicted(
    lay: Callable[[Sequence[Branches]], Layout],
) -> None:
    branches = [group.example.branches for group in GROUPS]
    whole = lay(branches)
    own = [flag for group in GROUPS for answer in group.answers for flag in answer.is_own]
    kept = keep_targets(whole, own)
    assert kept.targets.tolist() == [20, 21, 22, 23, 24, 30, 31, 40, 41, 42]
    assert kept.lengths == [5, 2, 3]
    # The state before each of them is that of the token that precedes it in its own sequence.
    flat = kept.input_ids.flatten()
    assert flat[kept.predict].tolist() == [12, 20, 51, 52, 23, 12, 62, 14, 40, 41]
    assert torch.equal(kept.input_ids, whole.input_ids)
    assert torch.equal(kept.last, whole.last)


@pytest.fixture
def model(make_model: Callable[[int], Path]) -> TrainModel:
    return prepare(load_module(make_model(0), CPU), CPU, torch.float32)


def test_log_probs_are_those_of_the_whole_conversation(
    model: TrainModel, make_model: Callable[[int], Path]
) -> None:
    """Each own token under transformers' own forward pass over all that stands before it."""
    found, _ = token_values(model, GROUPS, options_of("grpo"))
    plain = load_module(make_model(0), CPU)
    expected = []
    for group in GROUPS:
        for answer in group.answers:
            ids = torch.tensor([[*group.prompt_ids, *answer.sequence]])
            with torch.no_grad():
                logprobs = plain(ids).logits.float().log_softmax(-1)[0]
            start = len(group.prompt_ids)
            expected += [
                float(logprobs[start + place - 1, token])
                for place, token in enumerate(answer.sequence)
                if answer.is_own[place]
            ]
    assert torch.cat(found).tolist() == pytest.approx(expected, abs=1e-4)


def gradients(
    model: TrainModel,
    options: Any,
    patch: pytest.MonkeyPatch,
    change: Callable[[Layout], Layout] = lambda layout: layout,
) -> dict[str, torch.Tensor]:
    """The gradients of one loss on `GROUPS`; `change` alters the layout of whole sequences."""
    critic = add_critic(model, None) if options.critic_kind is not None else None
    rollout = measure(model, GROUPS, [[1.0, 0.0], [0.5]], options, None, critic)
    add_advantages(rollout, options, 0.0)
    if critic is not None:
        # A head of zeros would keep the critic's gradient from the policy's weights.
        torch.nn.init.constant_(critic.head.weight, 0.1)
    task = PolicyTask(rollout, options, 0.0, critic)
    for master in model.masters.values():
        master.grad.zero_()  # type: ignore[union-attr]
    with patch.context() as inside:
        whole = TrainModel.layout
        inside.setattr(TrainModel, "layout", lambda self, examples: change(whole(self, examples)))
        loss, _, _ = task.loss(model, [0, 1], task.total([0, 1]), 0)
    loss.backward()
    found = {n: m.grad.clone() for n, m in model.masters.items()}  # type: ignore[union-attr]
    if critic is not None:
        drop_critic(model)
    return found


def relabelled(own: bool) -> Callable[[Layout], Layout]:
    """Other labels at the first token that is the policy's own, or at all that are not."""
    flags = torch.tensor([f for group in GROUPS for a in group.answers for f in a.is_own])
    places = flags.nonzero()[:1] if own else (~flags).nonzero()

    def change(layout: Layout) -> Layout:
        targets = layout.targets.clone()
        targets[places] = 99
        return replace(layout, targets=targets)

    return change


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce", "ppo", "gspo", "cispo"])
def test_only_own_tokens_carry_loss(
    model: TrainModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(name, beta=0.0)
    before = gradients(model, options, monkeypatch)
    given = gradients(model, options, monkeypatch, relabelled(own=False))
    assert any(bool(g.any()) for g in before.values())
    assert all(torch.equal(before[n], given[n]) for n in before)
    own = gradients(model, options, monkeypatch, relabelled(own=True))
    assert not all(torch.equal(before[n], own[n]) for n in before)


def test_advantages_and_returns_are_of_own_tokens() -> None:
    """GAE with gamma 1 and lambda 1 and values of 0: what is still to come of the reward, which is
    at the last own token of an episode, and so the same at each of its five."""
    options = options_of("ppo", lam=1.0, gamma=1.0)
    rollout = Rollout(GROUPS, rewards=[torch.tensor([1.0, 0.0]), torch.tensor([0.5])])
    sizes = [7, 3]
    rollout.old = [torch.zeros(n) for n in sizes]
    rollout.values = [torch.zeros(n) for n in sizes]
    rollout.active = [torch.ones(2, dtype=torch.bool), torch.ones(1, dtype=torch.bool)]
    add_advantages(rollout, options, 0.0)
    assert rollout.returns is not None
    assert rollout.returns[0].tolist() == [1.0] * 5 + [0.0] * 2
    assert rollout.returns[1].tolist() == [0.5] * 3
    assert rollout.metrics["answer_tokens"] == pytest.approx(10 / 3)
