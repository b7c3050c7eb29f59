"""Judges that understand nothing: what every other judge must beat before it is trusted.

`longer`, `first` and `random` compare; `overlap` and `perplexity` score. Only `perplexity` asks a
model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationInfo, field_validator

from rlaif.config.base import StepId
from rlaif.constitution.textstats import term_overlap
from rlaif.core.records import Completion, Judgement, Prompt, Status, content_hash
from rlaif.engines.base import Capability, ScoreRequest, ScoreResult
from rlaif.judges.base import Answer, Call, Judge, Verdict, call_id, make_judgement
from rlaif.judges.common import JudgeBase, JudgeInputs, define_preset, usable, usable_pairs
from rlaif.judges.questions import label_result

Pair = Sequence[Completion]


class BaselineJudge(JudgeBase):
    """A judge without principles."""

    @field_validator("principles", "constitution")
    @classmethod
    def _judges_as_a_whole(cls, value: list[str] | str | None, info: ValidationInfo) -> None:
        if value is not None:
            raise ValueError(f"a baseline follows no principle; drop `{info.field_name}`")

    def build_judge(self, inputs: JudgeInputs) -> Judge:
        """The judge of the spec."""
        return Comparing(self.id, content_hash(self.kind, self.id), self.kind)


LongerJudge = define_preset(BaselineJudge, "longer", "The answer with more characters wins.")
FirstJudge = define_preset(
    BaselineJudge, "first", "The answer that is shown first wins; each pair is shown once."
)
RandomJudge = define_preset(
    BaselineJudge, "random", "A coin, thrown by the seed and the two answers."
)


class OverlapJudge(BaselineJudge):
    """The answer that uses more of the question's key terms wins (English)."""

    kind: Literal["overlap"]
    id: StepId = "overlap"

    def build_judge(self, inputs: JudgeInputs) -> Overlap:
        """The judge of the spec."""
        return Overlap(self.id, content_hash(self.kind, self.id))


class PerplexityJudge(BaselineJudge):
    """The answer that the model `by` finds likelier, token by token, wins."""

    kind: Literal["perplexity"]
    id: StepId = "perplexity"
    by: str = "policy"

    def asks(self) -> dict[str, str]:
        """The one model, `by`."""
        return {"by": self.by}

    def build_judge(self, inputs: JudgeInputs) -> Perplexity:
        """The judge of the spec."""
        return Perplexity(self.id, content_hash(self.kind, self.id))


def _prefer_longer(shown: Pair, drawn: str) -> float:
    first, second = (len(c.text) for c in shown)
    return 0.5 if first == second else float(first > second)


def _prefer_first(shown: Pair, drawn: str) -> float:
    return 1.0


def _prefer_at_random(shown: Pair, drawn: str) -> float:
    # The id names the pair in one order, so the same answer wins whichever is shown first.
    low = min(shown, key=lambda c: c.completion_id)
    return float((int(content_hash("coin", drawn, length=8), 16) % 2 == 0) == (shown[0] is low))


DECIDE: Mapping[str, Callable[[Pair, str], float]] = {
    "longer": _prefer_longer,
    "first": _prefer_first,
    "random": _prefer_at_random,
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
            Call(self._make_call_id(drawn, shown), prompt, shown)
            for shown in usable_pairs(completions)
        ]

    def _make_call_id(self, drawn: str, shown: Pair) -> str:
        ordered = sorted(shown, key=lambda c: c.completion_id) if self.kind == "random" else shown
        return call_id(drawn, ordered, None)

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement, about the text shown first; equal texts are a tie."""
        first, second = call.shown
        same = first.text == second.text
        prob = 0.5 if same else DECIDE[self.kind](call.shown, call.call_id)
        status: Status = "tie" if prob == 0.5 else "ok"
        verdict = Verdict(status, prob_first=prob)
        return [make_judgement(self, call, annotator_id, verdict, "rule")]


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
            Call(call_id(self.judge_hash, [c], None), prompt, (c,)) for c in usable(completions)
        ]

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement; `result` is None."""
        score = term_overlap(call.prompt.question, call.shown[0].text)
        status: Status = "abstain" if score is None else "ok"
        return [make_judgement(self, call, annotator_id, Verdict(status, score), "rule")]


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
            found.append(Call(name, prompt, (completion,), request=request))
        return found

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement."""
        return [make_judgement(self, call, annotator_id, _read_likelihood(label_result(result)))]


def _read_likelihood(answer: ScoreResult | None) -> Verdict:
    if answer is None:
        return Verdict("failed")
    if not answer.token_logprobs:
        return Verdict("abstain")
    mean = math.fsum(answer.token_logprobs) / len(answer.token_logprobs)
    kept = {"mean_logprob": mean}
    return Verdict("ok", min(1.0, math.exp(mean)), distribution=kept, raw_value=mean)
