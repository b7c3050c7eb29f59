"""Who prefers which of two given answers, and preferences made of it. Pure functions.

A verdict is P(first is better) on [0, 1]; a pair without one is absent, and one half is a tie.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate

from rlaif.core.labelled import GivenPair, LabelledPair
from rlaif.core.records import (
    AnnotatorKind,
    Completion,
    Judgement,
    Preference,
    Prompt,
    content_hash,
)
from rlaif.preferences.aggregate import answer_probability, combine, weights_of

Verdicts = dict[str, float]
"""Pair id to P(first is better)."""


TURNED = ", turned round"
"""What stands after the source of a label that was turned round on purpose."""


def given_label(
    pair: LabelledPair, given: GivenPair, judge: str, alike: Counter[tuple[str, str, float]]
) -> Judgement:
    """What the pair's annotator said, as a judgement by the load step `judge`.

    `alike` counts the labels of one pair that say the same under the same name: several people of
    whom a file says no more are several votes.
    """
    assert pair.label is not None
    prob = pair.label if pair.first.completion_id == given.first else 1.0 - pair.label
    annotator = pair.annotator or pair.annotator_kind
    vote = (given.pair_id, annotator, prob)
    call = "c_" + content_hash(judge, *vote, alike[vote])
    alike[vote] += 1
    return pair_judgement(
        call,
        given.prompt_id,
        [given.first, given.second],
        prob,
        judge=judge,
        annotator_id=annotator,
        annotator_kind=pair.annotator_kind,
    )


def pair_judgement(
    call: str,
    prompt_id: str,
    shown: list[str],
    prob: float,
    *,
    judge: str,
    annotator_id: str,
    annotator_kind: AnnotatorKind,
) -> Judgement:
    """What a label says of two answers, ids in the order `shown`: the first is the better one with
    probability `prob`, and one half is a tie. `call` is its call's id."""
    return Judgement(
        judgement_id="j_" + content_hash(call),
        call_id=call,
        prompt_id=prompt_id,
        subject_kind="completion",
        shown=shown,
        subject=shown[0],
        judge=judge,
        annotator_id=annotator_id,
        annotator_kind=annotator_kind,
        principle=None,
        status="tie" if prob == 0.5 else "ok",
        prob_first=prob,
    )


def annotator_verdicts(
    pairs: Iterable[GivenPair],
    judgements: Mapping[str, Iterable[Judgement]],
    principle_weights: Mapping[str, float],
    judge_weights: Mapping[str, float] | None = None,
) -> Verdicts:
    """What the annotators in `judgements` (by name), combined, say of each pair.

    The mean, by `judge_weights`, of what each says (`aggregate.answer_probability`). A pair that
    lacks an annotator of positive weight is absent.
    """
    wanted = list(pairs)
    said = {
        name: _annotator_probabilities(
            wanted, _by_prompt(rows), weights_of(name, principle_weights)
        )
        for name, rows in judgements.items()
    }
    combined = combine(said, judge_weights)
    return {name: prob for name, prob in combined.items() if prob is not None}


def _annotator_probabilities(
    pairs: Iterable[GivenPair],
    by_prompt: Mapping[str, Sequence[Judgement]],
    weights: Mapping[str, float],
) -> dict[str, float | None]:
    """What one annotator says of each pair."""
    return {
        pair.pair_id: answer_probability(
            _judgements_of_pair(pair, by_prompt.get(pair.prompt_id, ())),
            pair.first,
            pair.second,
            weights,
        )
        for pair in pairs
    }


def _by_prompt(judgements: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    groups: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        groups[judgement.prompt_id].append(judgement)
    return groups


def _judgements_of_pair(pair: GivenPair, judgements: Sequence[Judgement]) -> list[Judgement]:
    """The judgements of this pair's answers, seen together or one at a time."""
    answers = {pair.first, pair.second}
    return [j for j in judgements if set(j.shown) <= answers]


def flip_coins(pairs: Iterable[GivenPair], seed: int) -> Verdicts:
    """A fair coin for each pair, from the seed and the pair alone."""
    return {
        pair.pair_id: float(int(content_hash("coin", seed, pair.pair_id), 16) % 2) for pair in pairs
    }


def share_out(
    pairs: Iterable[GivenPair], shares: Sequence[tuple[str, float]], seed: int
) -> dict[str, str]:
    """Who labels each pair, by its id: drawn by the seed and the pair alone.

    The shares lie on [0, 1) in their order, and each pair has a place there. So a larger share of
    the first labeller has all the pairs of a smaller one, and the last has what is left.
    """
    ends = list(accumulate(share for _, share in shares[:-1]))
    names = [name for name, _ in shares]
    return {pair.pair_id: names[bisect_right(ends, _place_of(pair, seed))] for pair in pairs}


def _place_of(pair: GivenPair, seed: int) -> float:
    """A uniform number in [0, 1)."""
    digest = content_hash("shares", seed, pair.pair_id, length=13)
    return int(digest, 16) / 16**13


def choose_nested(pairs: Sequence[GivenPair], count: int, seed: int) -> list[GivenPair]:
    """`count` of the pairs, among which are all of any smaller count, in their order."""
    drawn = sorted(pairs, key=lambda pair: content_hash("labels_used", seed, pair.pair_id))[:count]
    chosen = {pair.pair_id for pair in drawn}
    return [pair for pair in pairs if pair.pair_id in chosen]


def flip_labels(labels: Verdicts, share: float, seed: int) -> tuple[Verdicts, frozenset[str]]:
    """`labels` with round(share x n) of them turned round, and the ids of these.

    They are the first in a seeded order, so that a larger share turns the same ones and more.
    """
    order = sorted(labels, key=lambda name: content_hash("flip", seed, name))
    turned = frozenset(order[: round(share * len(order))])
    return {name: 1.0 - p if name in turned else p for name, p in labels.items()}, turned


def keep_decided(pairs: Sequence[GivenPair], everybody: Collection[Verdicts]) -> list[GivenPair]:
    """The pairs on which everybody has a verdict that is no tie."""
    return [
        pair for pair in pairs if all(labels.get(pair.pair_id, 0.5) != 0.5 for labels in everybody)
    ]


def label_pair(
    pair: GivenPair,
    prompt: Prompt,
    answers: Mapping[str, Completion],
    prob: float,
    says: str,
    round_number: int,
) -> Preference:
    """The pair with the likelier answer chosen. `says` is whose label it is.

    The id is the pair's and not the label's: in the same order in every arm.
    """
    first, second = answers[pair.first], answers[pair.second]
    chosen, rejected = (first, second) if prob > 0.5 else (second, first)
    above = max(prob, 1.0 - prob)
    return Preference(
        preference_id="f_" + content_hash(pair.pair_id),
        prompt_id=pair.prompt_id,
        round=round_number,
        prompt=prompt.messages,
        chosen=chosen.messages,
        rejected=rejected.messages,
        score_chosen=above,
        score_rejected=1.0 - above,
        margin=2.0 * above - 1.0,
        prob=1.0,
        weight=1.0,
        reason=f"{says}: better with probability {above:.3f}",
        source=says,
        judgement_ids=[],
        chosen_id=chosen.completion_id,
        rejected_id=rejected.completion_id,
    )
