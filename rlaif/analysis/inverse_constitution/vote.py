"""A judge that says which of two answers each candidate principle favours, or neither."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlaif.analysis.inverse_constitution.propose import Candidate
from rlaif.constitution.model import Principle
from rlaif.core.records import Completion, Judgement, Prompt, content_hash
from rlaif.engines.base import Capability, GenerateRequest, Sampling, ScoreRequest, ScoreResult
from rlaif.judges.base import Answer, Call, Verdict, call_id, make_judgement
from rlaif.judges.choices import choice_reading
from rlaif.judges.common import template_values, usable
from rlaif.judges.forms import Form
from rlaif.judges.questions import Asking, Written, label_needs
from rlaif.judges.templates import Template

LABELS: dict[str, tuple[str, ...]] = {
    "first": ("1", " 1"),
    "second": ("2", " 2"),
    "neither": ("0", " 0"),
}
SAMPLING = Sampling(8, 0.0)
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
        calls = []
        for candidate in self.candidates:
            principle = Principle(id=candidate.id, text=candidate.text)
            for shown in ((first, second), (second, first)):
                name = call_id(self.judge_hash, shown, candidate.id)
                values = template_values(prompt, shown, seed, principle=principle)
                messages = self.template.messages(values)
                request: GenerateRequest | ScoreRequest
                if self.by_text:
                    request = GenerateRequest(name, messages, SAMPLING)
                else:
                    request = ScoreRequest(name, messages, self.template.prefill(values), LABELS)
                calls.append(Call(name, prompt, shown, candidate.id, request=request))
        return calls

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement about the text shown first."""
        asking = Asking(self.template, written=SAMPLING if self.by_text else None)
        verdict = asking.read_verdict(call, result, _read_labels, _read_text)
        return [make_judgement(self, call, annotator_id, replace(verdict, label_mass=None))]


def _read_labels(answer: ScoreResult) -> Verdict | None:
    total = sum(answer.label_probs.values())
    if not total > 0:
        return None
    return _decide_vote({k: p / total for k, p in answer.label_probs.items()})


def _decide_vote(shares: dict[str, float]) -> Verdict:
    first, second = shares["first"], shares["second"]
    if max(first, second) <= shares["neither"]:
        return Verdict("not_applicable", distribution=shares)
    return Verdict("ok", prob_first=first / (first + second), distribution=shares)


def _read_text(said: Written) -> Verdict | None:
    """All on the 1, 2 or 0 that opens a written answer, or that it says is better; None where there
    is none, or several."""
    text, cut = said.text, said.cut
    leading = _LEADING.match(text)
    label: str | None
    if leading is not None and not (cut and leading.end("digit") == len(text)):
        label = next(name for name, forms in LABELS.items() if leading["digit"] in forms)
    else:
        label = choice_reading(LABELS).read(text, Form(("Answer:",)), cut)
    return None if label is None else _decide_vote({n: float(n == label) for n in LABELS})
