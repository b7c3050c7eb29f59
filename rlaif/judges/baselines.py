"""Judges that understand nothing: what every other judge must beat before it is trusted.

`longer`, `first` and `random` compare; `overlap` and `perplexity` score. Only `perplexity` asks a
model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.config.baselines import (
    FirstJudge,
    LongerJudge,
    OverlapJudge,
    PerplexityJudge,
    RandomJudge,
)
from rlaif.constitution.model import Constitution
from rlaif.constitution.textstats import term_overlap
from rlaif.core.records import Completion, Judgement, Prompt, Status, content_hash
from rlaif.engines.base import Capability, ScoreRequest
from rlaif.judges.base import Answer, Call, call_id, judgement
from rlaif.judges.common import usable, usable_pairs, without_value
from rlaif.judges.questions import label_result

Pair = Sequence[Completion]


def _longer(shown: Pair, drawn: str) -> float:
    first, second = (len(c.text) for c in shown)
    return 0.5 if first == second else float(first > second)


def _first(shown: Pair, drawn: str) -> float:
    return 1.0


def _random(shown: Pair, drawn: str) -> float:
    # The id names the pair in one order, so the same answer wins whichever is shown first.
    low = min(shown, key=lambda c: c.completion_id)
    return float((int(content_hash("coin", drawn, length=8), 16) % 2 == 0) == (shown[0] is low))


DECIDE: Mapping[str, Callable[[Pair, str], float]] = {
    "longer": _longer,
    "first": _first,
    "random": _random,
}
"""From the two answers as shown, and a call's id, to P(the first is better)."""


@dataclass(frozen=True, slots=True)
class Comparing:
    """`prob_first` is 0, 1, or 0.5 for a tie, of each pair in the order of sampling."""

    id: str
    judge_hash: str
    kind: str
    needs: frozenset[Capability] = frozenset()
    comparative: bool = True

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call without a request per pair; the seed is in the id of a coin's calls alone."""
        drawn = content_hash(self.judge_hash, seed) if self.kind == "random" else self.judge_hash
        return [
            Call(self._name(drawn, shown), prompt, shown, None, 0, None)
            for shown in usable_pairs(completions)
        ]

    def _name(self, drawn: str, shown: Pair) -> str:
        ordered = sorted(shown, key=lambda c: c.completion_id) if self.kind == "random" else shown
        return call_id(drawn, ordered, None)

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement, about the text shown first; equal texts are a tie."""
        first, second = call.shown
        same = first.text == second.text
        prob = 0.5 if same else DECIDE[self.kind](call.shown, call.call_id)
        status: Status = "tie" if prob == 0.5 else "ok"
        return [judgement(self, call, first, annotator_id, "rule", status, prob_first=prob)]


@dataclass(frozen=True, slots=True)
class Overlap:
    """`score` is the share of the question's key terms that the answer uses; abstains where the
    question has none."""

    id: str
    judge_hash: str
    needs: frozenset[Capability] = frozenset()
    comparative: bool = False

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call without a request per completion; `seed` changes nothing."""
        return [
            Call(call_id(self.judge_hash, [c], None), prompt, (c,), None, 0, None)
            for c in usable(completions)
        ]

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement; `result` is None."""
        subject = call.shown[0]
        score = term_overlap(call.prompt.question, subject.text)
        status: Status = "abstain" if score is None else "ok"
        return [judgement(self, call, subject, annotator_id, "rule", status, score=score)]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`score` is exp(mean token log-prob) of the answer, one over its perplexity, on [0, 1].
    The raw value is the mean log-prob (nats), which `distribution` keeps too. An empty answer has
    none: the judge abstains."""

    id: str
    judge_hash: str
    needs: frozenset[Capability] = frozenset({"token_logprobs"})
    comparative: bool = False
    unbounded: bool = True

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per completion; `seed` changes nothing."""
        found = []
        for completion in usable(completions):
            name = call_id(self.judge_hash, [completion], None)
            request = ScoreRequest(name, prompt.messages, continuation=completion.text)
            found.append(Call(name, prompt, (completion,), None, 0, request))
        return found

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement."""
        answer = label_result(result)
        if answer is None:
            return without_value(self, call, annotator_id, "failed")
        if not answer.token_logprobs:
            return without_value(self, call, annotator_id, "abstain")
        mean = math.fsum(answer.token_logprobs) / len(answer.token_logprobs)
        return [
            judgement(
                self,
                call,
                call.shown[0],
                annotator_id,
                "ai",
                "ok",
                score=min(1.0, math.exp(mean)),
                distribution={"mean_logprob": mean},
                raw_value=mean,
            )
        ]


def build(
    spec: LongerJudge | FirstJudge | RandomJudge,
    constitution: Constitution | None,
    beside: Path | None,
) -> Comparing:
    """The judge of a spec."""
    return Comparing(spec.id, content_hash(spec.kind, spec.id), spec.kind)


def build_overlap(
    spec: OverlapJudge, constitution: Constitution | None, beside: Path | None
) -> Overlap:
    """The judge of a spec."""
    return Overlap(spec.id, content_hash(spec.kind, spec.id))


def build_perplexity(
    spec: PerplexityJudge, constitution: Constitution | None, beside: Path | None
) -> Perplexity:
    """The judge of a spec."""
    return Perplexity(spec.id, content_hash(spec.kind, spec.id))
