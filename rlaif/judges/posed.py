"""Questions of a judge as prompts, and answers to them read as that judge reads its model's.

The prompt of a question is byte for byte the request of the judge's call. Its `reference` is the
right verdict in the judge's own words: of a comparison the label of the better answer, of a score
whether it is the higher or the lower of the two. The questions about one pair are a `group`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from rlaif.core.labelled import LabelledPair, given_pair
from rlaif.core.records import Completion, Judgement, Message, Prompt, content_hash, make_prompt
from rlaif.engines.base import GenerateRequest, GenerateResult
from rlaif.judges.base import Call, Judge
from rlaif.judges.common import AnswerOnly, Order
from rlaif.judges.pairwise import Pairwise
from rlaif.judges.scored import Scored

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
    return (
        "gives no single verdict that is written: take kind pairwise or prometheus_pair with "
        "`verdict: written`, or rating, additive, prometheus or template"
    )


def scores_alone(judge: Judge) -> bool:
    """Whether a judge scores each answer alone, so that two questions make a comparison."""
    return isinstance(_unwrap(judge), Scored)


def pose_questions(
    judge: Judge, pairs: Sequence[LabelledPair], orders: Order, seed: int
) -> tuple[list[Prompt], Counter[str]]:
    """The questions that a judge asks about labelled pairs in a run of this seed, each once, and
    how many pairs gave none, by why. `orders` are those in which a comparison is asked for."""
    left_out: Counter[str] = Counter()
    groups: dict[str, list[Prompt]] = {}
    taken: set[str] = set()
    for name, (pair, label) in sorted(_mean_labels(pairs).items()):
        if label is None or label == 0.5:
            left_out["unlabelled" if label is None else "tied"] += 1
            continue
        made = _ask_about(judge, pair, label > 0.5, orders, seed)
        if not made:
            left_out["alike"] += 1
        # An answer that is scored alone may stand in several pairs.
        if not taken.isdisjoint(p.prompt_id for p in made):
            left_out["asked in another pair"] += 1
            continue
        taken |= {p.prompt_id for p in made}
        groups[name] = made
    return [prompt for name in groups for prompt in groups[name]], left_out


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


def _ask_about(
    judge: Judge, pair: LabelledPair, first_is_better: bool, orders: Order, seed: int
) -> list[Prompt]:
    """The questions about one pair; none about answers that are the same or that nothing applies
    to."""
    answers = [pair.first, pair.second]
    better = answers[0 if first_is_better else 1].completion_id
    made = []
    for call in _set_orders(judge, orders).calls(pair.prompt, answers, seed):
        # Further samples are answers to the same question.
        if call.sample_index or not isinstance(call.request, GenerateRequest):
            continue
        told = [] if call.principle is None else [PRINCIPLE + call.principle]
        made.append(
            make_prompt(
                call.request.messages,
                pair.prompt.source,
                [*pair.prompt.tags, *told],
                _name_right_verdict(judge, call, better),
                "g_" + content_hash(given_pair(pair).pair_id, judge.judge_hash, call.principle),
            )
        )
    return list({prompt.prompt_id: prompt for prompt in made}.values())


def _set_orders(judge: Judge, orders: Order) -> Judge:
    """The judge that shows the answers of a pair in these orders."""
    if isinstance(judge, AnswerOnly):
        inner: Judge = AnswerOnly(_set_orders(judge.judge, orders), judge.thinking)
        return inner
    return replace(judge, order=orders) if isinstance(judge, Pairwise) else judge


def _name_right_verdict(judge: Judge, call: Call, better: str) -> str:
    first = call.shown[0].completion_id == better
    own = _unwrap(judge)
    if isinstance(own, Pairwise):
        return own.labels["first" if first else "second"][0].strip()
    return HIGHER if first else LOWER


def named_label(judge: Judge, reference: str | None) -> str | None:
    """The label of a comparison (first, second or tie) that a reference names in the judge's words;
    None where it names none."""
    own = _unwrap(judge)
    if reference is None or not isinstance(own, Pairwise):
        return None
    word = reference.strip().casefold()
    labels = own.labels.items()
    return next((n for n, forms in labels if word in {f.strip().casefold() for f in forms}), None)


def said_label(judge: Judge, prompt: Prompt, answer: Completion) -> str | None:
    """The label that an answer to a comparison chooses: first, second or tie; None where none can
    be read."""
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
