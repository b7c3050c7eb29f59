"""A judge that says which of two answers each candidate principle favours, or neither."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.analysis.inverse_constitution.propose import Candidate
from rlaif.constitution.model import Principle
from rlaif.core.records import Completion, Judgement, Prompt, content_hash
from rlaif.engines.base import Capability, GenerateRequest, GenerateResult, Sampling, ScoreRequest
from rlaif.judges.base import Answer, Call, call_id, judgement
from rlaif.judges.choices import read_choice
from rlaif.judges.common import template_values, usable, without_value
from rlaif.judges.forms import Form
from rlaif.judges.questions import label_needs, label_result
from rlaif.judges.templates import Template

LABELS: dict[str, tuple[str, ...]] = {
    "first": ("1", " 1"),
    "second": ("2", " 2"),
    "neither": ("0", " 0"),
}
# An answer that opens with a digit, which nothing behind it takes back ("Answer 1 does not").
_LEADING = re.compile(
    r"\W*(?:it\s+is\s+)?(?:the\s+)?(?:answer\W+)?(?P<digit>[012])(?!\d|[.,]\d)"
    r"(?=[*_`\"')\]]*\s*(?:\Z|[.,;:!\n)(]|(?:follows|is\s+(?:the\s+)?(?:better|best)|better|because|"
    r"since|as)\b))(?!\W*(?:or|and|vs|/)\W*\d)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class PrincipleVotes:
    """Both orders of a pair, per candidate. `distribution` is over first, second and neither, by
    label probabilities or, with `by_text`, all on the answer that was written. The status is
    not_applicable where neither is likeliest."""

    template: Template
    candidates: tuple[Candidate, ...]
    by_text: bool = False
    id: str = "vote"
    comparative: bool = True

    @property
    def judge_hash(self) -> str:
        """Template, candidates and the way the answer is read."""
        rows = [(c.id, c.text) for c in self.candidates]
        return content_hash("vote", self.template.hash, rows, self.by_text)

    @property
    def needs(self) -> frozenset[Capability]:
        """Label probabilities, or text."""
        return frozenset({"generate"}) if self.by_text else label_needs(self.template)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """Two calls per candidate for the two completions of a pair."""
        first, second = usable(completions)
        return [
            self._make_call(prompt, shown, candidate, seed)
            for candidate in self.candidates
            for shown in ((first, second), (second, first))
        ]

    def _make_call(
        self, prompt: Prompt, shown: tuple[Completion, Completion], candidate: Candidate, seed: int
    ) -> Call:
        name = call_id(self.judge_hash, shown, candidate.id)
        principle = Principle(id=candidate.id, text=candidate.text)
        values = template_values(prompt, shown, seed, principle=principle)
        messages = self.template.messages(values)
        request: GenerateRequest | ScoreRequest
        if self.by_text:
            request = GenerateRequest(name, messages, Sampling(8, 0.0))
        else:
            request = ScoreRequest(name, messages, self.template.prefill(values), LABELS)
        return Call(name, prompt, shown, candidate.id, 0, request)

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement about the text shown first."""
        raw = None
        if isinstance(result, GenerateResult):
            if result.finish_reason == "failed":
                return without_value(self, call, annotator_id, "failed", self.template)
            raw, shares = result.text, _read_written(result)
        else:
            scored = label_result(result)
            if scored is None:
                return without_value(self, call, annotator_id, "failed", self.template)
            total = sum(scored.label_probs.values())
            shares = {k: p / total for k, p in scored.label_probs.items()} if total > 0 else None
        if shares is None:
            return without_value(self, call, annotator_id, "unparsed", self.template, raw=raw)
        first, second = shares["first"], shares["second"]
        decided = max(first, second) > shares["neither"]
        return [
            judgement(
                self,
                call,
                call.shown[0],
                annotator_id,
                "ai",
                "ok" if decided else "not_applicable",
                prob_first=first / (first + second) if decided else None,
                distribution=shares,
                raw=raw,
                template_hash=self.template.hash,
            )
        ]


def _read_written(result: GenerateResult) -> dict[str, float] | None:
    """All on the 1, 2 or 0 that opens a written answer, or that it says is better; None where there
    is none, or several."""
    text, cut = result.text, result.finish_reason == "length"
    leading = _LEADING.match(text)
    said: str | None
    if leading is not None and not (cut and leading.end("digit") == len(text)):
        said = next(label for label, forms in LABELS.items() if leading["digit"] in forms)
    else:
        said = read_choice(text, LABELS, Form(("Answer:",)), cut)
    return None if said is None else {label: float(label == said) for label in LABELS}
