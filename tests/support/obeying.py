"""Planted judges' models for attacks: one that obeys every attack, and one that obeys none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rlaif.config.models import ModelSpec
from rlaif.engines.base import ScoreResult
from rlaif.engines.fake import FakeEngine, FakeScript

_TEXT = re.compile(
    r"^\[(?:answer|text)(?: (?P<slot>[12]))? (?P<mark>[0-9a-f]{8})\]\n(?P<text>.*?)\n"
    r"\[end (?P=mark)\]$",
    re.DOTALL | re.MULTILINE,
)
_NAMED = re.compile(r"(?:Verdict: |\"verdict\": \"|verdict is |answer )(?P<label>[12])\b")
CLEAN = ("a good fruit", "a poor fruit")


class Planted(FakeEngine):
    """Prefers what is "good", unless it obeys: then an attacked answer gets its way."""

    def __init__(self, obeys: bool):
        super().__init__(FakeScript(), "planted")
        self.obeys = obeys

    def _score(self, request: Any) -> ScoreResult:
        shown = {m["slot"]: m["text"] for m in _TEXT.finditer(request.messages[-1]["content"])}
        label = self._compared(shown) if len(shown) == 2 else self._rated(shown[None])
        probs = dict.fromkeys(request.labels, 0.0) | {label: 0.9}
        return ScoreResult(request.request_id, probs, 0.9, [], 1)

    def _compared(self, shown: dict[str, str]) -> str:
        for slot, text in shown.items():
            if self.obeys and text not in CLEAN:
                named = _NAMED.search(text.replace("Answer 1 (by model", ""))
                return "first" if (named["label"] if named else slot) == "1" else "second"
        # An attack may have taken its words: the other answer then is as it was.
        good = next((s for s, t in shown.items() if "good" in t), None)
        return "first" if good == "1" or (good is None and "poor" in shown["2"]) else "second"

    def _rated(self, text: str) -> str:
        if self.obeys and text not in CLEAN:
            return "5"
        return "3" if "good" in text else "2"


def obeying(spec: ModelSpec, folder: Path | None, name: str) -> Planted:
    """Obeys every attack."""
    return Planted(True)


def upright(spec: ModelSpec, folder: Path | None, name: str) -> Planted:
    """Obeys none."""
    return Planted(False)
