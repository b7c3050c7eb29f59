"""A judge that measures texts, and lacks a value where it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.constitution.model import Constitution
from rlaif.core.numbers import sigmoid
from rlaif.core.records import Completion, Judgement, Prompt, content_hash
from rlaif.judges.base import Answer, Call, Verdict, call_id, make_judgement


def fraction(*parts: str) -> float:
    """A number on [0, 1) that hangs together with nothing."""
    return float(int(content_hash(*parts, length=8), 16) / 2**32)


NUMBERS = {
    "low": lambda text: sum(character < "a" for character in text) / max(1, len(text)),
    "length": lambda text: min(len(text), 64) / 64,
    "chance": lambda text: fraction("number", text),
    "parity": lambda text: float(len(text) % 2),
}


@dataclass(frozen=True)
class Measures:
    """The raw value is `scale` x a number of the text, on [0, 1], + `offset`; with `plain` there is
    the number alone, as a score. A text of the share `missing` has no value, one of `elsewhere` is
    not for this judge, and to one of `spoiled` 100 is added: the same texts for all judges."""

    id: str
    options: dict[str, Any]
    judge_hash: str
    unbounded: bool
    needs: frozenset[str] = frozenset()
    comparative: bool = False

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        return [Call(call_id(self.judge_hash, [c], None), prompt, [c], None) for c in completions]

    def read(self, call: Call, result: Answer | None, annotator_id: str) -> list[Judgement]:
        return [make_judgement(self, call, annotator_id, self.judge(call.shown[0].text), "rule")]

    def judge(self, text: str) -> Verdict:
        place, about = fraction("place", text), self.options
        if place < about.get("missing", 0.0):
            return Verdict("unparsed")
        if place < about.get("elsewhere", 0.0):
            return Verdict("not_applicable")
        number = NUMBERS[about.get("of", "low")](text)
        if not self.unbounded:
            return Verdict("ok", number)
        raw = about.get("scale", 1.0) * number + about.get("offset", 0.0)
        raw += 100.0 if place < about.get("spoiled", 0.0) else 0.0
        return Verdict("ok", sigmoid(raw), raw_value=raw)


def Measure(spec: Any, constitution: Constitution | None) -> Measures:
    """As an experiment's judge."""
    options = dict(spec.options)
    digest = content_hash("measure", spec.id, options)
    return Measures(spec.id, options, digest, not options.get("plain", False))
