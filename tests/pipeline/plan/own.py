"""Judges of one's own, as a package outside would bring them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.constitution.model import Constitution
from rlaif.core.records import Completion, Judgement, Prompt, content_hash
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.judges.base import Answer, Call, Verdict, call_id, make_judgement
from rlaif.judges.common import text_principles


@dataclass(frozen=True)
class Asking:
    """Asks whether an answer is good, in the words of its options, template and principles."""

    id: str
    words: str
    judge_hash: str
    needs: frozenset[str] = frozenset({"generate"})
    comparative: bool = False

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        found = []
        for completion in completions:
            name = call_id(self.judge_hash, [completion], None)
            text = f"{self.words}: {completion.text}"
            asked = GenerateRequest(name, [{"role": "user", "content": text}], Sampling(4))
            found.append(Call(name, prompt, [completion], None, 0, asked))
        return found

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        return [make_judgement(self, call, annotator_id, Verdict("ok", score=0.5), "model")]


def Length(spec: Any, constitution: Constitution | None, words: str = "Good?") -> Asking:
    """Of the principles that the spec names."""
    named = [p.id for p in text_principles(spec, constitution)]
    words = f"{words} {named} {spec.options} {spec.template}"
    return Asking(spec.id, words, content_hash(spec.id, words))


def Other(spec: Any, constitution: Constitution | None) -> Asking:
    """The same in other words."""
    return Length(spec, constitution, "Other words")
