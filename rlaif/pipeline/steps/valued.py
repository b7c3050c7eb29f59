"""From what the judges said of sampled answers to what each answer is learned from: the values of
the reward's terms, which of them are for it, what it is compared with, and its costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlaif.config.rewards import CostTerm, RewardTerm
from rlaif.constitution.textstats import is_blank
from rlaif.core.records import Completion, Judgement, Prompt
from rlaif.judges.base import Judge, has_raw_value
from rlaif.preferences.aggregate import Scores, candidate_raw_values, compared_scores, weights_of

Judged = dict[str, dict[str, list[Judgement]]]
"""Judge to prompt id to what it said of the prompt's answers."""
Made = Mapping[str, Sequence[Completion]]
"""Prompt id to its answers."""
HOLDS = 0.5
"""The least score with which a judge of `only_if` says yes."""


@dataclass(frozen=True, slots=True)
class Valued:
    """What `rlaif.train.rollout.Answer` is told of the judges, under the same names."""

    values: tuple[float | None, ...]
    idle: frozenset[int]
    strata: Mapping[int, float]
    costs: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Valuation:
    """The terms and costs of a training. `turned` are the places of the costs whose judges give
    more to what is better; `weights` are those of principles. With `adds` the reward is a sum, and
    a judge that does not apply to an answer adds nothing to it."""

    terms: Sequence[RewardTerm]
    costs: Sequence[CostTerm]
    turned: Sequence[int]
    judges: Mapping[str, Judge]
    weights: Mapping[str, float]
    adds: bool

    def prompts_by_judge(
        self, prompts: Sequence[Prompt], places: Sequence[int], costs: bool
    ) -> dict[str, list[Prompt]]:
        """By judge the prompts that it is asked about for the terms at these places, and for all
        costs."""
        asked: dict[str, dict[str, Prompt]] = {}
        for term in (self.terms[place] for place in places):
            for name in term.judges:
                meant = {p.prompt_id: p for p in prompts if term.is_for(p)}
                asked[name] = asked.get(name, {}) | meant
        for cost in self.costs if costs else ():
            asked[cost.judge] = {p.prompt_id: p for p in prompts}
        return {n: [p for p in prompts if p.prompt_id in own] for n, own in asked.items()}

    def value(
        self, prompts: Sequence[Prompt], judged: Judged, places: Sequence[int], made: Made
    ) -> dict[str, Valued]:
        """By completion id. Values of terms at other places are missing, and costs where their
        judges were not asked."""
        found = {}
        for prompt in prompts:
            answers = made[prompt.prompt_id]
            said = _Said(prompt.prompt_id, judged, self.weights, answers)
            terms = {place: self._term_columns(prompt, said, place) for place in places}
            costs = [self._cost_column(said, place) for place in range(len(self.costs))]
            for name in (completion.completion_id for completion in answers):
                found[name] = self._join(name, terms, costs, said)
        return found

    def _term_columns(
        self, prompt: Prompt, said: _Said, place: int
    ) -> tuple[Scores, set[str], Scores]:
        """The values of one term for a prompt's answers, the answers that it is not for, and what
        they share to be compared."""
        term = self.terms[place]
        if not term.is_for(prompt):
            return {}, set(said.names), {}
        values = said.scores(term.judge, self._is_raw(term))
        idle: set[str] = set()
        if term.only_if is not None:
            gates = said.scores(term.only_if, raw=False)
            idle = {n for n in said.names if (gate := gates.get(n)) is not None and gate < HOLDS}
            idle |= said.inapplicable(term.only_if)
            # Whether the term counts is not known, so the answer has no reward.
            values = {n: v for n, v in values.items() if gates.get(n) is not None}
        strata: Scores = {}
        if term.within is not None:
            strata = said.scores(term.within, raw=False)
            values = {n: v for n, v in values.items() if strata.get(n) is not None}
        return values, idle, strata

    def _cost_column(self, said: _Said, place: int) -> Scores:
        """The costs of a prompt's answers: high is bad."""
        cost = self.costs[place]
        raw = self._is_raw(cost)
        values = said.scores(cost.judge, raw)
        if place not in self.turned:
            return values
        whole = 0.0 if raw else 1.0
        return {name: None if v is None else whole - v for name, v in values.items()}

    def _join(
        self,
        name: str,
        terms: Mapping[int, tuple[Scores, set[str], Scores]],
        costs: Sequence[Scores],
        said: _Said,
    ) -> Valued:
        idle = {place for place, (_, without, _) in terms.items() if name in without}
        if self.adds:
            escaped = {i for i in terms if name in said.inapplicable(self.terms[i].judge)}
            # Where no judge applies to an answer nobody has judged it.
            if len(idle | escaped) < len(self.terms):
                idle |= escaped
        values = [terms[i][0].get(name) if i in terms else None for i in range(len(self.terms))]
        known = {place: strata.get(name) for place, (_, _, strata) in terms.items()}
        return Valued(
            tuple(None if i in idle else value for i, value in enumerate(values)),
            frozenset(idle),
            {place: score for place, score in known.items() if score is not None},
            tuple(column.get(name) for column in costs),
        )

    def _is_raw(self, term: RewardTerm | CostTerm) -> bool:
        return term.value == "raw" or (
            term.value is None and has_raw_value(self.judges[term.judge])
        )


@dataclass(frozen=True, slots=True)
class _Said:
    """What the judges said of the answers to one prompt."""

    prompt_id: str
    judged: Judged
    weights: Mapping[str, float]
    answers: Sequence[Completion]

    @property
    def names(self) -> list[str]:
        """The ids of the answers."""
        return [completion.completion_id for completion in self.answers]

    def given(self, judge: str) -> list[Judgement]:
        """A judge's judgements; none where it was not asked."""
        return self.judged.get(judge, {}).get(self.prompt_id, [])

    def scores(self, judge: str, raw: bool) -> Scores:
        """A judge's values, None where one is missing."""
        given, own = self.given(judge), weights_of(judge, self.weights)
        if raw:
            return candidate_raw_values(given, own)
        blank = {c.completion_id for c in self.answers if is_blank(c.text)}
        return compared_scores(given, own, blank=blank)

    def inapplicable(self, judge: str) -> set[str]:
        """The answers to which nothing of what the judge judges by applies."""
        alone = [j for j in self.given(judge) if len(j.shown) == 1]
        applied = {j.subject for j in alone if j.status != "not_applicable"}
        return {j.subject for j in alone} - applied
