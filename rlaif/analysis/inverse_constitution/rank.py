"""From votes to ranked principles, and from those to a constitution file. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from rlaif.analysis.inverse_constitution.propose import Candidate
from rlaif.core.groups import group_by
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Judgement
from rlaif.metrics.intervals import Interval
from rlaif.metrics.metrics import per_prompt, value_interval

Vote = Literal["for", "against", "not_applicable", "invalid"]

LEAST_VALID = 0.5
"""The share of pairs on which a principle's vote must be readable."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """One principle's votes on labelled pairs (2406.06560, section 3).

    accuracy = for / (for + against), None without a vote, and `interval` its mean over prompts;
    relevance = the share of readable pairs on which it votes; performance = 2 (accuracy - 1/2)
    relevance, on [-1, 1].
    """

    id: str
    text: str
    proposals: int
    votes: Mapping[str, int]
    accuracy: float | None
    interval: Interval | None
    relevance: float
    performance: float

    @property
    def lead(self) -> int:
        """Votes for less votes against."""
        return self.votes["for"] - self.votes["against"]

    @property
    def kept(self) -> bool:
        """More often right than wrong, and readable on most pairs."""
        total = sum(self.votes.values())
        return self.lead > 0 and self.votes["invalid"] <= (1 - LEAST_VALID) * total


def vote_of(judgements: Sequence[Judgement], pair: LabelledPair) -> Vote:
    """One principle's vote on one pair from its judgements in both orders, their distributions
    averaged, so that a preference for a slot cancels. Not applicable where neither answer leads;
    invalid where an order is missing."""
    shares = {"first": 0.0, "second": 0.0, "neither": 0.0}
    if len(judgements) < 2 or any(j.distribution is None for j in judgements):
        return "invalid"
    for judgement in judgements:
        found = judgement.distribution or {}
        straight = judgement.shown[0] == pair.first.completion_id
        shares["first"] += found["first" if straight else "second"]
        shares["second"] += found["second" if straight else "first"]
        shares["neither"] += found["neither"]
    first, second = shares["first"], shares["second"]
    if first == second or shares["neither"] >= max(first, second):
        return "not_applicable"
    preferred = (first > second) == ((pair.label or 0.0) > 0.5)
    return "for" if preferred else "against"


def rank_principles(
    candidates: Sequence[Candidate], judgements: Iterable[Judgement], pairs: Sequence[LabelledPair]
) -> list[Ranked]:
    """Every candidate, by votes for less votes against, then by performance, then by text."""
    groups = group_by(judgements, lambda j: (j.principle or "", frozenset(j.shown)))
    ranked = []
    for candidate in candidates:
        votes = {"for": 0, "against": 0, "not_applicable": 0, "invalid": 0}
        right: list[tuple[str, float | None]] = []
        for pair in pairs:
            shown = frozenset({pair.first.completion_id, pair.second.completion_id})
            cast = vote_of(groups.get((candidate.id, shown), []), pair)
            votes[cast] += 1
            if cast in ("for", "against"):
                right.append((pair.prompt.prompt_id, float(cast == "for")))
        decided = votes["for"] + votes["against"]
        readable = decided + votes["not_applicable"]
        relevance = decided / readable if readable else 0.0
        accuracy = votes["for"] / decided if decided else None
        interval = value_interval("vote_accuracy", per_prompt(right))
        performance = 0.0 if accuracy is None else 2 * (accuracy - 0.5) * relevance
        about = (candidate.id, candidate.text, candidate.proposals)
        ranked.append(Ranked(*about, votes, accuracy, interval, relevance, performance))
    return sorted(ranked, key=lambda r: (-r.lead, -r.performance, r.text))


def constitution_yaml(name: str, description: str, ranked: Sequence[Ranked]) -> str:
    """A constitution file with the kept principles in their order, weighted by performance; each
    with its figures as a comment."""
    head: dict[str, Any] = {"name": name, "version": "1", "description": description}
    parts = [yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=96), "principles:\n"]
    for row in ranked:
        votes = row.votes
        figures = (
            f"# {votes['for']} for, {votes['against']} against, {votes['not_applicable']} not "
            f"applicable, {votes['invalid']} unreadable; proposed {row.proposals} times"
        )
        entry = {"id": row.id, "text": row.text, "weight": max(0.001, round(row.performance, 3))}
        body = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True, width=92)
        indented = "".join(f"  {line}\n" for line in body.splitlines())
        parts.append(f"  {figures}\n{indented}\n")
    return "".join(parts).rstrip() + "\n"
