"""On-policy distillation: its losses against known numbers, and what a training does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file

from rlaif.config.methods import METHODS
from rlaif.core.errors import RlaifError
from rlaif.core.records import Preference
from rlaif.train.distillation import DistillTask
from rlaif.train.loading import load_module
from rlaif.train.loop import TrainJob
from rlaif.train.losses.distillation import full_kl, jsd, reverse_kl, teacher_advantages
from rlaif.train.model import prepare
from rlaif.train.on_policy import train_on_policy
from rlaif.train.rollout import Answer, Group
from rlaif.train.rollout_tasks import given_task
from rlaif.train.tokenise import Example

CPU = torch.device("cpu")
S = torch.tensor([[0.7, 0.3]]).log()
T = torch.tensor([[0.4, 0.6]]).log()


def test_the_advantage_is_the_log_ratio() -> None:
    student, teacher = torch.tensor([0.5, 0.2]).log(), torch.tensor([0.25, 0.4]).log()
    found = teacher_advantages(student, teacher, [2])
    torch.testing.assert_close(found, torch.tensor([-0.693147, 0.693147]))
    assert torch.equal(teacher_advantages(student, student, [2]), torch.zeros(2))


def test_a_discounted_advantage_stays_within_its_answer() -> None:
    zero, gaps = torch.zeros(4), torch.tensor([-1.0, 2.0, 4.0, 8.0])
    found = teacher_advantages(zero, gaps, [2, 2], gamma=0.5)
    assert found.tolist() == [0.0, 2.0, 8.0, 8.0]
    assert teacher_advantages(zero, gaps, [4], gamma=1.0).tolist() == [13.0, 14.0, 12.0, 8.0]


def test_divergences_of_two_symbols() -> None:
    assert full_kl(T, S).item() == pytest.approx(0.192042, rel=1e-5)
    assert reverse_kl(S, T).item() == pytest.approx(0.183787, rel=1e-5)
    wanted = {0.1: 0.0170996, 0.5: 0.0462008, 0.9: 0.0165180, 0.99: 0.00181913}
    for beta, value in wanted.items():
        assert jsd(S, T, beta).item() == pytest.approx(value, rel=1e-4)
    assert jsd(S, T, 0.5).item() == pytest.approx(jsd(T, S, 0.5).item(), rel=1e-6)


def logits_of(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities.double().log().requires_grad_()


def test_the_gradient_of_the_reverse_kl_is_that_of_the_sampled_advantages() -> None:
    logits = logits_of(torch.tensor([[0.7, 0.3]]))
    teacher = torch.tensor([[0.4, 0.6]]).double().log()
    logprobs = torch.log_softmax(logits, -1)
    (exact,) = torch.autograd.grad(reverse_kl(logprobs, teacher).sum(), logits, retain_graph=True)
    assert exact[0, 0].item() == pytest.approx(0.263080, rel=1e-5)
    # The mean over what is sampled of -A d log S.
    both = logprobs.detach()[0].exp()
    advantages = teacher_advantages(logprobs.detach()[0], teacher[0], [2])
    loss = -(both * advantages * logprobs[0]).sum()
    (sampled,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(sampled, exact)


PROBABILITIES = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4)


@settings(deadline=None)
@given(PROBABILITIES, PROBABILITIES, st.sampled_from([0.1, 0.5, 0.9]))
def test_the_written_gradients_are_those_of_the_formulas(
    first: list[float], second: list[float], beta: float
) -> None:
    logits = torch.tensor([first], dtype=torch.float64).log().requires_grad_()
    teacher = torch.log_softmax(torch.tensor([second], dtype=torch.float64).log(), -1)

    def plain(logprobs: torch.Tensor) -> torch.Tensor:
        mixture = (beta * teacher.exp() + (1 - beta) * logprobs.exp()).log()
        return beta * full_kl(teacher, mixture) + (1 - beta) * full_kl(logprobs, mixture)

    for ours, formula in (
        (lambda x: jsd(x, teacher, beta), plain),
        (lambda x: reverse_kl(x, teacher), lambda x: full_kl(x, teacher)),
    ):
        found, wanted = ours(torch.log_softmax(logits, -1)), formula(torch.log_softmax(logits, -1))
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
        gradients = [torch.autograd.grad(v.sum(), logits)[0] for v in (found, wanted)]
        # Where both nearly are 0, one has the rounding of a difference of logarithms.
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)
        assert found.item() >= -1e-12


@given(st.lists(st.floats(-80, 80), min_size=2, max_size=6), st.sampled_from([0.1, 0.3, 0.5]))
def test_equal_models_have_no_divergence_and_no_gradient(values: list[float], beta: float) -> None:
    logits = torch.tensor([values], requires_grad=True)
    other = torch.log_softmax(logits.detach(), -1)
    for loss in (jsd(torch.log_softmax(logits, -1), other, beta),
                 reverse_kl(torch.log_softmax(logits, -1), other)):  # fmt: skip
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.item() == 0.0 and not gradient.any()


def test_far_apart_models_have_a_finite_divergence() -> None:
    student, teacher = torch.tensor([[0.0, -200.0]]), torch.tensor([[-200.0, 0.0]])
    assert jsd(student, teacher, 0.5).item() == pytest.approx(0.693147, rel=1e-5)


# What a training does.


def options_of(**keys: object) -> object:
    rows = {"rollouts": 2, "n": 2, "batch_size": 2, "precision": "fp32", "learning_rate": 1e-2}
    named = {"method": "on_policy_distillation", "teacher": "t", **rows, **keys}
    return METHODS["on_policy_distillation"].model_validate(named)


def groups(tokenizer: object, number: int) -> list[Group]:
    """Two prompts with two answers each."""
    texts = [("ab", "b"), ("abc", "ca")] if number % 2 == 0 else [("cc", "a"), ("bb", "ac")]
    found = []
    for prompt, answers in zip(("? ", "! "), texts, strict=True):
        made = tuple(
            Answer([*tokenizer.encode(t, add_special_tokens=False), tokenizer.eos_token_id],
                   [-2.0] * (len(t) + 1), (), True)
            for t in answers
        )  # fmt: skip
        found.append(Group(prompt, tokenizer.encode(prompt, add_special_tokens=False), made))
    return found


@torch.no_grad()
def sample_groups(tokenizer: object, number: int, model: object, count: int) -> list[Group]:
    """Answers of three tokens to two prompts, sampled from the policy of the moment."""
    generator = torch.Generator().manual_seed(number)
    found = []
    for prompt in ("? ", "! "):
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        rows = torch.tensor([ids] * count)
        scores = []
        for _ in range(3):
            with model.generating() as plain:
                logits = plain(rows).logits[:, -1].float().log_softmax(-1)
            drawn = torch.multinomial(logits.exp(), 1, generator=generator)
            scores.append(logits.gather(1, drawn))
            rows = torch.cat([rows, drawn], 1)
        answers = zip(rows[:, len(ids) :].tolist(), torch.cat(scores, 1).tolist(), strict=True)
        made = tuple(Answer(own, logprobs, (), False) for own, logprobs in answers)
        found.append(Group(prompt, ids, made))
    return found


def learn(
    folder: Path, start: Path, teacher: Path | None, options: object, tokenizer: object,
    preferences: list[Preference] | None = None, progress: object = None, sampled: int = 0,
) -> list[dict[str, float]]:  # fmt: skip
    seen: list[int] = []

    def collect(number: int, model: object) -> list[Group]:
        seen.append(number)
        if sampled:
            return sample_groups(tokenizer, number, model, sampled)
        return groups(tokenizer, number)

    work = folder / "work"
    job = TrainJob(
        options, start, folder / "out", work, 0, CPU, preferences or (), reference=teacher,
        collect=collect, fingerprint="f", progress=progress,
    )  # fmt: skip
    train_on_policy(job)
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert all(not options.is_given(number) for number in seen)
    return rows


KINDS = [
    {"importance": "none"},
    {"importance": "none", "gamma": 0.5, "epochs": 2, "sync_every": 2, "batch_size": 1},
    {"divergence": "jsd"},
    {"divergence": "jsd", "beta": 0.1, "temperature": 0.7, "importance": "none"},
    {"divergence": "jsd", "lora": {"r": 2}},
    {"importance": "none", "lora": {"r": 2}},
]


@pytest.mark.parametrize("keys", KINDS, ids=lambda keys: "-".join(map(str, keys.values())))
@pytest.mark.parametrize("named", [True, False], ids=["itself", "the-start"])
def test_an_equal_teacher_gives_a_loss_of_0_and_no_update(
    tmp_path, make_model, tokenizer, keys, named
):
    start = make_model(0)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in start.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    rows = learn(tmp_path, start, copy if named else None, options_of(**keys), tokenizer)
    for row in rows:
        assert row["loss"] == 0.0 and row["grad_norm"] == 0.0 and row["kl_teacher"] == 0.0
        assert not {"reward", "flat_groups", "kl_reference"} & row.keys()
    before, after = (load_file(f / "model.safetensors") for f in (start, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("keys", KINDS, ids=lambda keys: "-".join(map(str, keys.values())))
def test_a_student_comes_nearer_to_its_teacher(tmp_path, make_model, tokenizer, keys):
    keys = {**keys, "rollouts": 20, "warmup_ratio": 0.0, "schedule": "constant"}
    rows = learn(tmp_path, make_model(0), make_model(1), options_of(**keys), tokenizer, sampled=16)
    model, teacher = (
        prepare(load_module(f, CPU), CPU, torch.float32) for f in (make_model(0), make_model(1))
    )
    after = prepare(load_module(tmp_path / "out", CPU), CPU, torch.float32)

    def kl(student: object) -> float:
        """Of answers that the student samples itself."""
        examples = [group.example for group in sample_groups(tokenizer, 99, student, 64)]
        task = DistillTask(examples, options_of(), teacher)
        _, sums, _ = task.loss(student, [0, 1], 1.0, 0)
        return sums["kl_teacher"][0] / sums["kl_teacher"][1]

    assert 0 < kl(after) < 0.97 * kl(model)
    assert rows[0]["kl_teacher"] > 0


def test_the_whole_divergence_is_independent_of_micro_batches(tmp_path, make_model, tokenizer):
    def row(budget: int, folder: Path) -> dict[str, float]:
        options = options_of(divergence="jsd", rollouts=1, micro_batch_tokens=budget)
        return learn(folder, make_model(0), make_model(1), options, tokenizer)[0]

    one, many = row(512, tmp_path / "a"), row(8, tmp_path / "b")
    for name in ("loss", "kl_teacher", "grad_norm"):
        assert one[name] == pytest.approx(many[name], rel=1e-4)


def test_the_loss_of_sampled_tokens_and_of_whole_distributions_by_hand(make_model, tokenizer):
    model, teacher = (prepare(load_module(make_model(n), CPU), CPU, torch.float32) for n in (0, 1))
    examples = [Example("e", "p", [5, 6], ([7, 8], [9]))]
    for keys, by_hand in (
        ({"divergence": "jsd", "beta": 0.3}, lambda s, t: jsd(s, t, 0.3)),
        ({}, full_kl),
    ):
        task = DistillTask(examples, options_of(**keys), teacher)
        loss, sums, _ = task.loss(model, [0], task.total([0]), 0)
        rows = []
        with torch.no_grad():
            for ids in ([5, 6, 7, 8], [5, 6, 9]):
                both = []
                for each in (model, teacher):
                    with each.generating() as plain:
                        logits = plain(torch.tensor([ids])).logits[0, 1:-1].float()
                    both.append(torch.log_softmax(logits, -1))
                rows.append(by_hand(*both))
        assert float(loss.detach()) == pytest.approx(float(torch.cat(rows).mean()), rel=1e-4)
        assert sums["kl_teacher"][1] == 3


def test_given_answers_take_their_share_of_the_rollouts_in_turn(
    tmp_path, make_model, tokenizer, make_preferences
):
    options = options_of(given=0.4, rollouts=5, batch_size=2)
    assert [options.is_given(n) for n in range(5)] == [False, False, True, False, True]
    assert (options.sampled_rollouts, options.mixes_data) == (3, True)
    rows = learn(tmp_path, make_model(0), make_model(1), options, tokenizer, make_preferences(3))
    assert len(rows) == 5
    # Of given answers nothing was sampled: no figures of a rollout.
    assert ["answer_tokens" in row for row in rows] == [True, True, False, True, False]
    assert all(row["kl_teacher"] > 0 for row in (rows[2], rows[4]))
    with pytest.raises(RlaifError, match="given mixes in given answers or texts, and there are"):
        learn(tmp_path / "none", make_model(0), make_model(1), options, tokenizer)


def test_given_rollouts_go_on_in_the_examples_where_the_last_one_ended() -> None:
    """Rollouts 2 and 4 of 0 to 4 are given ones, of two prompts each; of pairs the chosen."""
    options = options_of(given=0.4, rollouts=5, batch_size=2)
    pairs = [Example(f"e{n}", f"p{n}", [n], ([n, 1], [n, 2])) for n in range(3)]
    tasks = [given_task(options, pairs, None, number).examples for number in (2, 4)]
    assert [[e.example_id for e in task] for task in tasks] == [["e0", "e1"], ["e2", "e0"]]
    assert tasks[1][0].completions == ([2, 1],)


def test_tenths_of_rollouts_are_tenths() -> None:
    for share in (0.1, 0.3, 0.7, 1 / 3):
        options = options_of(given=share)
        assert sum(options.is_given(n) for n in range(30)) == round(30 * share)


@pytest.mark.parametrize("keys", [{}, {"divergence": "jsd"}, {"given": 0.5}],
                         ids=["sampled", "whole", "given"])  # fmt: skip
def test_a_stopped_distillation_ends_in_the_same_bits(
    tmp_path, make_model, tokenizer, make_preferences, keys
):
    options = options_of(rollouts=5, checkpoint_every=2, importance="none", **keys)

    def run(folder: Path, progress: object = None) -> list[dict[str, float]]:
        return learn(
            folder, make_model(0), make_model(1), options, tokenizer, make_preferences(4), progress
        )

    def stop(progress: object) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop)
    again = run(tmp_path / "cut")
    drop = ("timing",)
    assert [{k: v for k, v in r.items() if k not in drop} for r in whole] == [
        {k: v for k, v in r.items() if k not in drop} for r in again
    ]
    files = [load_file(tmp_path / n / "out/masters/model.safetensors") for n in ("whole", "cut")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_a_teacher_with_another_vocabulary_is_refused(
    tmp_path, make_model, tokenizer, other_vocabulary
):
    with pytest.raises(RlaifError, match=r"the teacher .* has another vocabulary"):
        learn(tmp_path, make_model(0), other_vocabulary, options_of(), tokenizer)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"beta": 0.3}, "`beta` has no effect with `divergence: reverse_kl`"),
        ({"beta": 1.0, "divergence": "jsd"}, "beta"),
        ({"gamma": 0.5, "divergence": "jsd"}, "`gamma` has no effect"),
        ({"importance": "mask_token", "divergence": "jsd"}, "`importance` has no effect"),
        ({"importance_cap": 2.0, "divergence": "jsd"}, "`importance_cap` has no effect"),
        ({"gates": {"flat_groups": {"warn": 0.5}}}, "there is no reward"),
        ({"gates": {"kl": {"warn": 0.5}}}, "none but the teacher"),
        ({"uses": ["pair"]}, "on_policy_distillation with given"),
        ({"rewards": {"r": 1.0}}, "rewards"),
        ({"reference": "initial"}, "reference"),
    ],
)
def test_what_has_no_effect_is_refused(keys, words):
    with pytest.raises(ValidationError, match=words):
        options_of(**keys)
