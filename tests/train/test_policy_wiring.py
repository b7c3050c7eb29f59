"""What the losses of training are handed: several answers of unequal lengths, rewards, weights and
prompts, every key at a value that is not its default, and sums worked out beside them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.config.methods import METHODS
from rlaif.core.errors import RlaifError
from rlaif.core.store import StepFolder
from rlaif.train.average import average
from rlaif.train.loading import load_module
from rlaif.train.losses.policy import GlobalBatch
from rlaif.train.model import TrainModel, prepare
from rlaif.train.policy_tasks import OnlinePairs, PolicyTask
from rlaif.train.preference import (
    KtoTask,
    PreferenceTask,
    SftTask,
    add_mismatched,
    compute_reference,
    refuse_one_class,
    refuse_soft_labels,
)
from rlaif.train.rollout import Answer, Critic, Group, Rollout, add_advantages, measure
from rlaif.train.rollout_tasks import make_task
from rlaif.train.tokenise import Example
from tests.support.on_policy import options_of
from tests.train.test_average import linear

CPU = torch.device("cpu")
approx: Any = pytest.approx


PLAIN: dict[int, Any] = {}
"""The module of each model as transformers runs it, by the model's address."""


def prepared(folder: Path) -> TrainModel:
    made = prepare(load_module(folder, CPU), CPU, torch.float32)
    PLAIN[id(made)] = load_module(folder, CPU)
    return made


@pytest.fixture(scope="module")
def model(make_model: Callable[[int], Path]) -> TrainModel:
    return prepared(make_model(0))


@pytest.fixture(scope="module")
def other(make_model: Callable[[int], Path]) -> TrainModel:
    return prepared(make_model(1))


def training(method: str, **keys: Any) -> Any:
    given = {"method": method, "batch_size": 2, "precision": "fp32"} | keys
    if "rollouts" in METHODS[method].model_fields:
        given = {"rewards": {"r": 1.0}} | given
    return METHODS[method].model_validate(given)


def answer(ids: list[int], ended: bool = True, off: float = 0.0, **watched: float) -> Answer:
    return Answer(ids, [-5.0 - off - i / 8 for i in range(len(ids))], (0.0,), ended, watched)


GROUPS = [
    Group("p", [9, 8], (answer([1, 2], a=1.0), answer([3], False, 0.5, a=4.0, b=6.0))),
    Group("q", [7], (answer([4, 5, 6]), answer([2, 2], off=0.25))),
]


def by_token(model: TrainModel, group: Group, temperature: float = 1.0) -> list[torch.Tensor]:
    """Log-probs of each answer alone, by the module itself."""
    found = []
    for made in group.answers:
        ids = torch.tensor([[*group.prompt_ids, *made.ids]])
        with torch.no_grad():
            logits = PLAIN[id(model)](input_ids=ids).logits[0].float() / temperature
        start = len(group.prompt_ids) - 1
        rows = torch.log_softmax(logits, -1)[start : start + len(made.ids)]
        found.append(rows.gather(1, torch.tensor(made.ids)[:, None])[:, 0])
    return found


def filled(**more: Any) -> Rollout:
    """A rollout whose every number is another."""
    about: dict[str, Any] = {
        "rewards": [torch.tensor([1.0, 0.25]).double(), torch.tensor([math.nan, 0.5]).double()],
        "active": [torch.tensor([True, True]), torch.tensor([False, True])],
        "old": [torch.tensor([-5.5, -5.25, -12.0]), torch.linspace(-5.8, -5.2, 5)],
        "reference": [torch.linspace(-5.2, -6.0, 3), torch.linspace(-5.0, -6.2, 5)],
        "advantages": [torch.tensor([1.0, 1.0, -0.5]), torch.linspace(-2, 2, 5)],
    }
    return Rollout(GROUPS, **about | more)


@pytest.mark.parametrize("kl", ["k2", "k3"])
@pytest.mark.parametrize("reduction", ["token", "sequence", "constant"])
def test_the_policys_loss_is_made_of_every_key(model: TrainModel, reduction: str, kl: str) -> None:
    options = training(
        "grpo",
        temperature=0.7,
        clip_low=0.1,
        clip_high=0.3,
        two_sided=1.5,
        kl=kl,
        reduction=reduction,
        max_new_tokens=4,
        importance="none",
    )
    rollout = filled()
    task = PolicyTask(rollout, options, beta=0.2)
    total = task.total([0, 1])
    # Of the second group the first answer has no reward.
    assert total == GlobalBatch(3, 5)
    loss, sums, tokens = task.loss(model, [0, 1], total, 1)
    wanted, kls = 0.0, []
    assert rollout.old is not None and rollout.reference is not None
    for number, group in enumerate(GROUPS):
        parts = zip(
            by_token(model, group, 0.7),
            *(
                torch.split(values[number], rollout.lengths(number))
                for values in (rollout.old, rollout.reference, rollout.advantages)
            ),
            rollout.active[number],
            strict=True,
        )
        for new, old, reference, advantage, learned in parts:
            if not learned:
                continue
            ratio = (new - old).exp()
            bounded = torch.where(advantage < 0, ratio.clamp(max=1.5), ratio)
            gain = torch.min(bounded * advantage, ratio.clamp(0.9, 1.3) * advantage)
            gap = reference - new
            away = (gap**2 / 2 if kl == "k2" else gap.exp() - gap - 1) * ratio
            kls += away.tolist()
            each = 0.2 * away - gain
            wanted += float(
                {
                    "token": each.sum() / 5,
                    "sequence": each.mean() / 3,
                    "constant": each.sum() / (3 * 4),
                }[reduction]
            )
    assert float(loss.detach()) == approx(wanted, rel=1e-4)
    amount, count = sums["kl"]
    assert (amount, count) == (approx(sum(kls), rel=1e-4), 5.0)
    assert tokens > 0 and sums["entropy"][1] == 8.0


def test_weights_of_the_sampler_are_cut_by_the_keys(model: TrainModel) -> None:
    sampled = torch.tensor([v for g in GROUPS for a in g.answers for v in a.logprobs])
    rollout = filled()
    assert rollout.old is not None
    old = torch.cat(rollout.old)
    ratios = (old - sampled).exp()
    keys = {"importance": "truncate_token", "importance_cap": 1.25, "importance_floor": 0.9}
    task = PolicyTask(rollout, training("grpo", **keys), 0.0)
    loss, sums, _ = task.loss(model, [0, 1], task.total([0, 1]), 1)
    assert sums["weight_mean"] == (approx(float(ratios.sum()), rel=1e-4), 8.0)
    outside = float(((ratios < 0.9) | (ratios > 1.25)).sum())
    assert 0 < outside < 8 and sums["weight_cut_fraction"] == (approx(outside), 8.0)
    ratio = (torch.cat([p for g in GROUPS for p in by_token(model, g)]) - old).exp()
    advantage = torch.cat(rollout.advantages)
    gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    learned = torch.tensor([1, 1, 1, 0, 0, 0, 1, 1])
    wanted = -(gain * ratios.clamp(0.9, 1.25) * learned).sum() / 5
    assert float(loss.detach()) == approx(float(wanted), rel=1e-4)
    keys["importance"] = "mask_sequence"
    task = PolicyTask(filled(), training("grpo", **keys), 0.0)
    _, sums, _ = task.loss(model, [0, 1], task.total([0, 1]), 1)
    # Of answers and not of tokens.
    assert sums["weight_mean"][1] == sums["weight_cut_fraction"][1] == 4.0


def test_a_critic_and_mixed_answers_are_weighed_by_their_own_keys(model: TrainModel) -> None:
    torch.manual_seed(3)
    critic = Critic(torch.nn.Linear(32, 1))
    mixed = [
        Example(f"e{n}", f"e{n}", [5, 6, 7][: n + 1], ([n + 1] * (n + 2), [9])) for n in range(3)
    ]
    more = {
        "values": [torch.linspace(0, 1, 3), torch.linspace(1, 2, 5)],
        "returns": [torch.linspace(2, 1, 3), torch.linspace(-1, 1, 5)],
    }
    keys: dict[str, Any] = {"value_weight": 0.3, "value_clip": 0.15, "clip": 0.25, "n": 2}

    def loss(weight: float, ptx: float, number: int = 0) -> tuple[float, Any]:
        options = training("ppo", **keys | {"value_weight": weight, "ptx_weight": ptx})
        task = PolicyTask(filled(**more), options, 0.0, critic, mixed if ptx else (), number)
        found, sums, _ = task.loss(model, [0, 1], task.total([0, 1]), 1)
        return float(found.detach()), sums

    (one, sums), (two, _) = loss(0.3, 0.0), loss(0.7, 0.0)
    share = (two - one) / 0.4
    assert sums["value_loss"][1] == 5.0
    assert share == approx(sums["value_loss"][0] / 5, rel=1e-4)
    for number, used in ((0, (0, 1)), (1, (2, 0)), (2, (1, 2))):
        with_ptx, sums = loss(0.3, 0.5, number)
        nll, count = sums["ptx_nll"]
        tokens = sum(len(mixed[i].completions[0]) for i in used)
        alone = [Group("", mixed[i].prompt_ids, (answer(mixed[i].completions[0]),)) for i in used]
        wanted = -sum(float(by_token(model, group)[0].sum()) for group in alone)
        assert (nll, count) == (approx(wanted, rel=1e-4), tokens)
        assert with_ptx - one == approx(0.5 * wanted / tokens, rel=1e-3)


def test_a_rollout_is_measured_by_each_models_own_numbers(
    model: TrainModel, other: TrainModel
) -> None:
    options = training(
        "grpo",
        epochs=2,
        temperature=0.7,
        importance="none",
        missing_eos_penalty=0.25,
        beta=0.1,
    )
    torch.manual_seed(3)
    critic = Critic(torch.nn.Linear(32, 1), other)
    rewards: Any = [[1.0, 2.0], [None, 4.0]]
    found = measure(model, GROUPS, rewards, options, other, critic)
    assert found.rewards[0].tolist() == [1.0, 1.75]
    assert bool(found.rewards[1][0].isnan()) and float(found.rewards[1][1]) == 4.0
    assert [a.tolist() for a in found.active] == [[True, True], [False, True]]
    assert found.old is not None and found.reference is not None and found.values is not None
    for number, group in enumerate(GROUPS):
        for mine, own in ((found.old, model), (found.reference, other)):
            wanted = torch.cat(by_token(own, group, 0.7))
            torch.testing.assert_close(mine[number], wanted, rtol=1e-4, atol=1e-4)
    assert [len(v) for v in found.values] == [3, 5]
    # What is watched, over the answers that have it.
    assert found.metrics == {"a": 2.5, "b": 6.0}
    add_advantages(found, options, 0.1)
    metrics = found.metrics
    assert (metrics["reward"], metrics["unscored"]) == (approx(6.75 / 3), 0.25)
    assert (metrics["answer_tokens"], metrics["ended"]) == (2.0, 0.75)
    assert metrics["reward_spread"] == approx(1.5612, abs=1e-4)
    kl = sum(float((a - b).sum()) for a, b in zip(found.old, found.reference, strict=True)) / 4
    assert metrics["kl_reference"] == approx(kl, rel=1e-4)
    plain = measure(model, GROUPS, rewards, training("grpo", beta=0.0), None, None)
    assert plain.old is plain.reference is plain.values is None
    masked = training("grpo", beta=0.0, mask_truncated=True)
    assert [a.tolist() for a in measure(model, GROUPS, rewards, masked, None, None).active] == [
        [True, False],
        [False, True],
    ]


def test_gates_see_the_entropy_and_the_kl_of_the_sampled_answers(
    model: TrainModel, other: TrainModel
) -> None:
    gates = {"entropy": {"stop": [0.0, None]}, "kl": {"stop": 99.0}}
    options = training("grpo", beta=0.0, gates=gates, temperature=0.7, importance="none")
    found = measure(model, GROUPS, [[1.0, 2.0], [3.0, 4.0]], options, other, None).metrics
    kl = 0.0
    for group in GROUPS:
        for a, b in zip(by_token(model, group, 0.7), by_token(other, group, 0.7), strict=True):
            kl += float((a - b).sum())
    assert found["kl_reference"] == approx(kl / 4, rel=1e-3)
    assert 0 < found["rollout_entropy"] < math.log(model.module.config.vocab_size)


def test_leave_one_out_takes_the_kl_off_each_answers_reward() -> None:
    rollout = filled(
        rewards=[torch.tensor([1.0, 0.25]).double(), torch.tensor([2.0, 0.5]).double()]
    )
    add_advantages(rollout, training("rloo"), 0.5)
    assert rollout.old is not None and rollout.reference is not None
    for number, group in enumerate(GROUPS):
        gap = torch.split(rollout.old[number] - rollout.reference[number], rollout.lengths(number))
        scores = [
            float(r) - 0.5 * float(g.sum())
            for r, g in zip(rollout.rewards[number], gap, strict=True)
        ]
        first = scores[0] - scores[1]
        lengths = [len(a.ids) for a in group.answers]
        wanted = [first] * lengths[0] + [-first] * lengths[1]
        assert rollout.advantages[number].tolist() == approx(wanted, rel=1e-5)


def test_online_pairs_are_the_best_and_the_worst_with_their_own_reference(
    model: TrainModel,
) -> None:
    answers = tuple(answer(ids) for ids in ([1], [2, 3], [4, 5, 6], [7]))
    groups = [
        Group("p", [9], answers),
        Group("q", [8, 8], answers[:2]),
        Group("r", [6], answers[1:3]),
    ]
    rewards = [[0.5, math.nan, 0.75, -1.0], [0.5, 0.5], [-2.0, -1.0]]
    reference = [torch.arange(1.0, 8.0), torch.arange(3.0), torch.linspace(-6, -2, 5)]
    rollout = Rollout(
        groups, rewards=[torch.tensor(r).double() for r in rewards], reference=reference
    )
    options = training("online_dpo", n=4, beta=0.3, temperature=0.7)
    pairs = OnlinePairs(rollout, options)
    assert [(e.example_id, e.prompt_id, e.completions) for e in pairs.examples] == [
        ("p:0", "p", ([4, 5, 6], [7])),
        ("r:2", "r", ([4, 5, 6], [2, 3])),
    ]
    assert {k: (float(a), float(b)) for k, (a, b) in pairs.reference.items()} == {
        "p:0": (4.0 + 5.0 + 6.0, 7.0),
        "r:2": (-4.0 - 3.0 - 2.0, -6.0 - 5.0),
    }
    loss, sums, _ = pairs.loss(model, [0, 1], pairs.total([0, 1]), 1)
    wanted = 0.0
    for group, best, worst, gap in ((groups[0], 2, 3, 8.0), (groups[2], 1, 0, 2.0)):
        own = [float(p.sum()) for p in by_token(model, group, 0.7)]
        wanted += math.log1p(math.exp(-0.3 * (own[best] - own[worst] - gap)))
    assert float(loss.detach()) == approx(wanted / 2, rel=1e-4)
    assert sums["margin"][1] == 2.0


ROWS = [
    Example("c", "z", [1, 2], ([3, 4], [5]), weight=3.0, prob=0.75),
    Example("a", "y", [6], ([7, 8, 9], [2, 2]), weight=0.5),
    Example("b", "y", [6], ([4], [1]), weight=2.0),
    Example("d", "x", [5, 5], ([6, 1], [3]), weight=1.0),
]


def test_the_partner_of_a_prompt_is_the_chosen_answer_of_the_next_one() -> None:
    found = {e.example_id: e.completions for e in add_mismatched(ROWS)}
    # By prompt and id: d (x), a and b (y), c (z), and round to x.
    partners = {"d": [7, 8, 9], "a": [3, 4], "b": [3, 4], "c": [6, 1]}
    assert found == {e.example_id: (*e.completions, partners[e.example_id]) for e in ROWS}
    assert [e.example_id for e in add_mismatched(ROWS[::-1])] == ["d", "b", "a", "c"]
    with pytest.raises(RlaifError, match="at least two different prompts"):
        add_mismatched(ROWS[1:3])


def summed(model: TrainModel, row: Example) -> list[float]:
    group = Group("", row.prompt_ids, tuple(answer(ids) for ids in row.completions))
    return [float(p.sum()) for p in by_token(model, group)]


def test_later_rollouts_go_on_in_the_given_examples() -> None:
    answers = (Answer([1], [], (0.0,), True),)
    rollout = Rollout([Group(name, [1], answers) for name in "ab"])
    given = [Example(f"e{n}", f"p{n}", [n], ([n], [n + 1])) for n in range(3)]
    found = []
    for number in (0, 1):
        task: Any = make_task(rollout, options_of("ppo"), 0.0, None, None, given, number)
        found.append([task._mixed_example(index).example_id for index in (0, 1)])
    assert found == [["e0", "e1"], ["e2", "e0"]]


def test_pairs_count_by_their_weight_and_their_own_reference_and_label(model: TrainModel) -> None:
    options = training("dpo", beta=0.3, nll_weight=0.2)
    stored: Any = {e.example_id: (-9.0 - n, -8.0 + 2 * n) for n, e in enumerate(ROWS)}
    task = PreferenceTask(ROWS, stored, options)
    loss, sums, _ = task.loss(model, [0, 2], 4.0, 1)
    wanted = margins = 0.0
    for row in (ROWS[0], ROWS[2]):
        chosen, rejected = summed(model, row)
        one, other = stored[row.example_id]
        margin = 0.3 * (chosen - one - (rejected - other))
        both = math.log1p(math.exp(-margin)), math.log1p(math.exp(margin))
        each = row.prob * both[0] + (1 - row.prob) * both[1]
        each -= 0.2 * chosen / len(row.completions[0])
        wanted += row.weight * each
        margins += margin
    assert float(loss.detach()) == approx(wanted / 4.0, rel=1e-4)
    assert sums["margin"] == (approx(margins, rel=1e-4), 2.0)


def test_answers_are_trained_on_by_tokens_and_kto_by_weights(model: TrainModel) -> None:
    task = SftTask(ROWS)
    total = task.total([0, 1, 2])
    assert total == 2 + 3 + 1
    loss, sums, _ = task.loss(model, [1, 2], total, 0)
    chosen = [summed(model, row)[0] for row in ROWS[1:3]]
    assert float(loss.detach()) == approx(-sum(chosen) / 6, rel=1e-4)
    assert sums["logprob_chosen"] == (approx(sum(chosen), rel=1e-4), 2.0)
    keys = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7}
    rows = add_mismatched([ROWS[0], ROWS[3]])
    stored: Any = {e.example_id: (-9.0 - n, -8.0 + n, -7.0 + n) for n, e in enumerate(rows)}
    kto = KtoTask(rows, stored, training("kto", **keys))
    loss, sums, _ = kto.loss(model, [0, 1], 2.0, 1)
    rho = {
        e.example_id: [p - s for p, s in zip(summed(model, e), stored[e.example_id], strict=True)]
        for e in rows
    }
    z = max(0.0, (rho["c"][2] + rho["d"][2]) / 2)
    value, reward = 0.0, 0.0
    for row in rows:
        good, bad, _ = rho[row.example_id]
        up, down = (1 / (1 + math.exp(-0.3 * x)) for x in (good - z, z - bad))
        value += row.weight / 2 * (1.5 * (1 - up) + 0.7 * (1 - down))
        reward += 0.3 * good
    assert float(loss.detach()) == approx(value / 2, rel=1e-3)
    assert sums["reward_chosen"] == (approx(reward, rel=1e-3), 2.0)
    assert sums["kl_baseline"][0] == approx(2 * z, rel=1e-3, abs=1e-6)


def test_a_reference_is_computed_once_for_each_example(model: TrainModel, tmp_path: Path) -> None:
    path = tmp_path / "reference.jsonl"
    StepFolder(tmp_path).append("reference", [{"example_id": "b", "logprobs": [7.0, 8.0]}])
    options = training("dpo", batch_size=1)
    found = compute_reference(model, ROWS, options, 3, path)
    assert found["b"] == (7.0, 8.0), "what is stored stays"
    for row in (ROWS[0], ROWS[1], ROWS[3]):
        assert found[row.example_id] == approx(summed(model, row), rel=1e-4)
    assert {json.loads(x)["example_id"] for x in path.read_text().splitlines()} == set("abcd")
    assert compute_reference(model, ROWS, options, 4, path) == found


def test_soft_labels_and_answers_of_one_kind_are_no_use_to_kto() -> None:
    with pytest.raises(RlaifError, match="soft label"):
        refuse_soft_labels([ROWS[1], ROWS[0]])
    refuse_soft_labels(ROWS[1:])
    alone = [Example(n, n, [1], ([2],), desirable=(n != "c",)) for n in "abc"]
    refuse_one_class(alone)
    for rows, word in ((alone[:2], "good"), (alone[2:], "bad")):
        with pytest.raises(RlaifError, match=f"all {len(rows)} answers are {word}"):
            refuse_one_class(rows)


def test_an_average_takes_what_is_not_averaged_from_the_first_and_leaves_the_rest(
    tmp_path: Path, make_model: Callable[[int], Path]
) -> None:
    members = [linear(make_model(0), tmp_path / name, n) for n, name in enumerate("ab")]
    for member in members:
        for name in ("README.md", "own.txt"):
            (member / name).write_text(member.name)
    (members[0] / "masters").mkdir()
    # Of the first alone, which makes no masters of the mean.
    shutil.copy(members[0] / "model.safetensors", members[0] / "masters")
    (tmp_path / "mean.partial").mkdir()
    (tmp_path / "mean.partial/left.txt").write_text("of a kill")
    out = tmp_path / "mean"
    found = average(members, out)
    names = {p.name for p in out.iterdir()}
    assert (out / "own.txt").read_text() == "a"
    assert not {"README.md", "masters", "left.txt"} & names
    assert found["models"] == 2 and found["tensors"] > 10
    assert not (tmp_path / "mean.partial").exists()
