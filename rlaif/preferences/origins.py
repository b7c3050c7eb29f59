"""Preferences by where answers are from: those of one step are chosen, those of another rejected.

A revision against what it revises (Constitutional AI, arXiv 2212.08073), a teacher's answers
against the student's (character training, arXiv 2511.01689), or a prompt's own answer against a
sample.
Pure functions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif.config.steps import REFERENCE_ANSWER, PairStep
from rlaif.constitution.textstats import is_blank
from rlaif.core.records import Completion, Judgement, Preference, Prompt
from rlaif.preferences.aggregate import combine
from rlaif.preferences.pairing import (
    Candidate,
    make_preference,
    ngram_overlap,
    reference_answer,
    score_prompt,
    unjudged_preference,
)

Match = Literal["parent", "index", "all"]
Answers = tuple[Completion, Completion]
"""A chosen and a rejected answer."""


@dataclass(frozen=True, slots=True)
class OriginSettings:
    """What decides a prompt's pairs by origin. `weights` are the judges' where their scores count,
    `principle_weights` those of the principles, 1 where none is given."""

    step: PairStep
    match: Match
    round: int
    weights: Mapping[str, float]
    principle_weights: Mapping[str, float]

    @property
    def with_reference(self) -> bool:
        """Whether one side is the prompts' own answers."""
        return REFERENCE_ANSWER in (self.step.chosen, self.step.rejected)


def match_answers(
    chosen: Sequence[Completion], rejected: Sequence[Completion], match: Match
) -> list[Answers]:
    """The pairs of answers to one prompt that belong together, in the order of ids.

    parent: one of the two was made from the other, at once or over answers in between that are
    among those given. index: both have the same number.
    """
    if match == "all":
        found = [(c, r) for c in chosen for r in rejected]
    elif match == "index":
        numbered: dict[int, list[Completion]] = defaultdict(list)
        for answer in rejected:
            numbered[answer.sample_index].append(answer)
        found = [(c, r) for c in chosen for r in numbered[c.sample_index]]
    else:
        parents = {a.completion_id: a.parent_id for a in (*chosen, *rejected)}
        found = [
            (c, r)
            for c in chosen
            for r in rejected
            if _comes_from(c, r, parents) or _comes_from(r, c, parents)
        ]
    return sorted(found, key=lambda pair: (pair[0].completion_id, pair[1].completion_id))


def _comes_from(answer: Completion, other: Completion, parents: Mapping[str, str | None]) -> bool:
    """Whether `answer` revises `other`, at once or over others."""
    above, seen = answer.parent_id, set[str]()
    while above is not None and above not in seen:
        if above == other.completion_id:
            return True
        seen.add(above)
        above = parents.get(above)
    return False


def origin_preferences(
    settings: OriginSettings,
    prompt: Prompt,
    chosen: Iterable[Completion],
    rejected: Iterable[Completion],
    judgements: Mapping[str, Sequence[Judgement]],
) -> tuple[list[Preference], Counter[str]]:
    """The prompt's preferences, and how many pairs of answers belong together (`matched`) and were
    left out by why.

    Failed and blank answers, and two that say the same, make no pair. Where scores count, the
    chosen one has to score more, by `min_margin` or more; one without a score makes no pair.
    """
    step, left_out = settings.step, Counter[str]()
    given = [
        _usable(side, prompt, named)
        for side, named in ((chosen, step.chosen), (rejected, step.rejected))
    ]
    pairs = []
    matched = match_answers(given[0], given[1], settings.match)
    left_out["matched"] = len(matched)
    for pair in matched:
        fault = _fault(pair, step)
        if fault is None:
            pairs.append(pair)
        else:
            left_out[fault] += 1
    if not step.asks_scores:
        default = "reference" if settings.with_reference else "rlaif"
        reason = f"origin: {step.chosen} against {step.rejected}; nothing was judged"
        made = [
            unjudged_preference(prompt, pair, settings.round, step.source, reason, default)
            for pair in pairs
        ]
        return made, left_out
    parts = score_prompt(judgements, settings.principle_weights, step)
    combined = combine(parts, settings.weights, step.missing)
    how = f"origin: {step.chosen} against {step.rejected}"
    found = []
    for one, other in pairs:
        scores = combined.get(one.completion_id), combined.get(other.completion_id)
        if scores[0] is None or scores[1] is None:
            left_out["unscored"] += 1
        elif scores[0] <= scores[1] or scores[0] - scores[1] < step.min_margin:
            left_out["not_better"] += 1
        else:
            scored = (Candidate(one, scores[0]), Candidate(other, scores[1]))
            found.append(
                make_preference(prompt, scored, step, settings.round, judgements, parts, how)
            )
    return found, left_out


def _usable(side: Iterable[Completion], prompt: Prompt, named: str | None) -> list[Completion]:
    """The answers of one side that say something, each once."""
    if named == REFERENCE_ANSWER:
        given = reference_answer(prompt)
        return [] if given is None else [given]
    return list({c.completion_id: c for c in side if c.messages and not is_blank(c.text)}.values())


def _fault(pair: Answers, step: PairStep) -> str | None:
    """Why two answers that belong together make no pair."""
    one, other = pair
    if one.text.strip() == other.text.strip():
        return "alike"
    if step.max_overlap is not None and ngram_overlap(one.text, other.text) > step.max_overlap:
        return "overlapping"
    return None
