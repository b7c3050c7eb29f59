"""Questions of a judge as prompts, and answers to them read as that judge reads its model's.

The prompt of a question is byte for byte the request of the judge's call. Its `reference` is the
right verdict in the judge's own words: of a comparison the label of the better answer, of a score
whether it is the higher or the lower of the two, of a verification yes or no. The questions about
one pair are a `group`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rlaif.core.labelled import LabelledPair, given_pair
from rlaif.core.records import Completion, Judgement, Message, Prompt, content_hash, make_prompt
from rlaif.engines.base import GenerateRequest, GenerateResult, ScoreRequest
from rlaif.judges.base import Call, Judge
from rlaif.judges.common import AnswerOnly, Order
from rlaif.judges.pairwise import Pairwise
from rlaif.judges.scored import Scored
from rlaif.judges.yes_no import YesNo

HIGHER, LOWER = "higher", "lower"
"""The right verdict on an answer that is scored alone: its score beside the other answer's."""
PRINCIPLE = "principle:"
"""How the tag of a question begins that names the principle which it asks about."""
_MARK = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{8}(?![0-9A-Za-z])")


def unreadable(judge: Judge) -> str | None:
    """Why answers to a judge's questions cannot be marked, and what to set; None where they can."""
    own = _unwrap(judge)
    if isinstance(own, Pairwise):
        if own.asking.written is None:
            return (
                "reads its verdict in the probabilities of labels, so that an answer says nothing: "
                "set `verdict: written` (without `cot`; it writes its reasons anyway)"
            )
        return None
    if isinstance(own, Scored):
        if own.asking.written is None:
            return (
                "reads its score in the probabilities of levels, so that an answer says nothing: "
                "set `expected: false` (and leave `cot` out; it writes its reasons anyway)"
            )
        return None
    if isinstance(own, YesNo):
        if own.asking.reasons is not None:
            return (
                "says yes or no once its reasons are written, so that an answer to its question "
                "has no verdict: set `cot: false`, or let a judge step judge and train on its "
                "judgements"
            )
        if own.asking.template.has_prefill:
            return (
                "has a template with a ---prefill--- section, which no prompt can hold: take one "
                "without it"
            )
        return None
    return (
        "gives no single verdict that is written: take kind pairwise or prometheus_pair with "
        "`verdict: written`, or rating, additive, prometheus, template or yes_no"
    )


def scores_alone(judge: Judge) -> bool:
    """Whether a judge scores each answer alone, so that two questions make a comparison."""
    return isinstance(_unwrap(judge), Scored)


def verifies(judge: Judge) -> bool:
    """Whether a judge says yes or no of each answer alone, which is right or wrong by itself."""
    return isinstance(_unwrap(judge), YesNo)


def verified_word(judge: Judge, score: float | None) -> str | None:
    """The judge's word for the more likely of yes and no; None where neither is."""
    own = _unwrap(judge)
    if score is None or score == 0.5 or not isinstance(own, YesNo):
        return None
    return own.labels["yes" if score > 0.5 else "no"][0].strip()


@dataclass(frozen=True, slots=True)
class Case:
    """What a judge is asked about: `answers` to a prompt, of which those with the ids `good` are
    the better or the right ones."""

    prompt: Prompt
    answers: tuple[Completion, ...]
    good: Collection[str]


def pose_questions(
    judge: Judge, pairs: Sequence[LabelledPair], orders: Order, seed: int
) -> tuple[list[Prompt], Counter[str]]:
    """The questions that a judge asks about labelled pairs in a run of this seed, each once, and
    how many pairs gave none, by why. `orders` are those in which a comparison is asked for."""
    left_out: Counter[str] = Counter()
    groups = pose_cases(judge, label_cases(pairs, left_out), orders, seed, left_out)
    return [prompt for asked in groups for prompt in asked], left_out


def label_cases(pairs: Sequence[LabelledPair], left_out: Counter[str]) -> dict[str, Case]:
    """Every pair of which one answer is the better one, by its id; `left_out` counts the others."""
    cases: dict[str, Case] = {}
    for name, (pair, label) in sorted(_mean_labels(pairs).items()):
        if label is None or label == 0.5:
            left_out["unlabelled" if label is None else "tied"] += 1
            continue
        better = pair.first if label > 0.5 else pair.second
        cases[name] = Case(pair.prompt, (pair.first, pair.second), {better.completion_id})
    return cases


def pose_cases(
    judge: Judge, cases: Mapping[str, Case], orders: Order, seed: int, left_out: Counter[str]
) -> list[list[Prompt]]:
    """The questions about each case, no question twice; `left_out` counts the cases that gave none,
    by why."""
    groups: list[list[Prompt]] = []
    taken: set[str] = set()
    for name, case in sorted(cases.items()):
        alike = len({answer.text for answer in case.answers}) < len(case.answers)
        made = [] if alike else ask_about(judge, case, name, orders, seed)
        if not made:
            left_out["alike"] += 1
        # An answer that is scored alone may stand in several pairs.
        if not taken.isdisjoint(p.prompt_id for p in made):
            left_out["asked in another pair"] += 1
            continue
        taken |= {p.prompt_id for p in made}
        groups.append(made)
    return groups


def _mean_labels(pairs: Sequence[LabelledPair]) -> dict[str, tuple[LabelledPair, float | None]]:
    """Each pair once, the answer of smaller id first, as a loaded pair is judged, with the mean of
    its labels: P(first is better); None where nobody said."""
    found: dict[str, LabelledPair] = {}
    labels: dict[str, list[float]] = {}
    for given in pairs:
        pair, name = given.as_loaded(), given_pair(given).pair_id
        found.setdefault(name, pair)
        said = labels.setdefault(name, [])
        said += [] if pair.label is None else [pair.label]
    means = {name: sum(said) / len(said) if said else None for name, said in labels.items()}
    return {name: (pair, means[name]) for name, pair in found.items()}


def ask_about(judge: Judge, case: Case, name: str, orders: Order, seed: int) -> list[Prompt]:
    """The questions about one case, by whose name those about a pair are a group; none about
    answers that are the same or that nothing applies to."""
    made = []
    alone = len(case.answers) == 1
    for call in _set_orders(judge, orders).calls(case.prompt, case.answers, seed):
        # Further samples are answers to the same question.
        if call.sample_index or not isinstance(call.request, GenerateRequest | ScoreRequest):
            continue
        told = [] if call.principle is None else [PRINCIPLE + call.principle]
        made.append(
            make_prompt(
                call.request.messages,
                case.prompt.source,
                [*case.prompt.tags, *told],
                _name_right_verdict(judge, call, case.good),
                None if alone else "g_" + content_hash(name, judge.judge_hash, call.principle),
            )
        )
    return list({prompt.prompt_id: prompt for prompt in made}.values())


def _set_orders(judge: Judge, orders: Order) -> Judge:
    """The judge that shows the answers of a pair in these orders."""
    if isinstance(judge, AnswerOnly):
        inner: Judge = AnswerOnly(_set_orders(judge.judge, orders), judge.thinking)
        return inner
    return replace(judge, order=orders) if isinstance(judge, Pairwise) else judge


def _name_right_verdict(judge: Judge, call: Call, good: Collection[str]) -> str:
    first = call.shown[0].completion_id in good
    own = _unwrap(judge)
    if isinstance(own, Pairwise):
        return own.labels["first" if first else "second"][0].strip()
    if isinstance(own, YesNo):
        return own.labels["yes" if first else "no"][0].strip()
    return HIGHER if first else LOWER


def named_label(judge: Judge, reference: str | None) -> str | None:
    """The label of a comparison (first, second or tie) or of a verification (yes or no) that a
    reference names in the judge's words; None where it names none."""
    own = _unwrap(judge)
    if reference is None or not isinstance(own, Pairwise | YesNo):
        return None
    word = reference.strip().casefold()
    labels = own.labels.items()
    return next((n for n, forms in labels if word in {f.strip().casefold() for f in forms}), None)


def said_label(judge: Judge, prompt: Prompt, answer: Completion) -> str | None:
    """The label that an answer to a comparison chooses: first, second or tie, and that to a
    verification: yes or no; None where none can be read."""
    if verifies(judge):
        # Its probability is read at the first token, so that an answer is a label and no more.
        return named_label(judge, answer.text.strip().rstrip(".!"))
    prob = read_written(judge, prompt, answer).prob_first
    if prob is None:
        return None
    return "tie" if prob == 0.5 else "first" if prob > 0.5 else "second"


def read_written(judge: Judge, prompt: Prompt, answer: Completion) -> Judgement:
    """What the judge reads in an answer to its question, as in one of its own model."""
    own = _unwrap(judge)
    assert isinstance(own, Pairwise | Scored)
    assert own.asking.written is not None
    structured = own.asking.structured or (isinstance(own, Scored) and own.json_schema is not None)
    asked = GenerateRequest(
        "", prompt.messages, own.asking.written, json_schema={} if structured else None
    )
    shown = (answer, answer) if own.comparative else (answer,)
    about = next((t.removeprefix(PRINCIPLE) for t in prompt.tags if t.startswith(PRINCIPLE)), None)
    fenced = "fence" in own.asking.template.variables
    fence = _find_fence(prompt.messages) if fenced else ""
    call = Call("", prompt, shown, about, request=asked, fence=fence)
    assert answer.finish_reason != "failed"
    ended: Literal["stop", "length"] = "length" if answer.finish_reason == "length" else "stop"
    result = GenerateResult("", answer.text, [], ended, None)
    (found,) = own.read(call, result, "")
    return found


def _find_fence(messages: Sequence[Message]) -> str:
    """The mark around the judged texts. It stands before the first of them, and none has it."""
    text = "\n".join(message["content"] for message in messages)
    marks = _MARK.findall(text)
    return next((mark for mark in marks if marks.count(mark) > 1), "")


def _unwrap(judge: Judge) -> Judge:
    return judge.judge if isinstance(judge, AnswerOnly) else judge
