"""A server that answers questions and judges' templates, so that each kind of judge reads it."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from typing import Any

from tests.pipeline.plan.files import QUESTIONS
from tests.servers.scripted import ScriptedServer, prompt_text

ANSWERS = ["A cherry, please.", "No idea at all, sorry", "It is <think>hm</think> sweet", "stone"]
LABELS = ["Yes", "No", "abstain", *map(str, range(11)), "A", "B", "C", "first", "second", "x", "y"]


class JudgingServer(ScriptedServer):
    """Its answers and probabilities depend on the texts of a request alone, and on how often they
    came since `forget`; those to questions on the seed too."""

    def __init__(self) -> None:
        super().__init__(answer, context=100_000, tops={"Yes": 0.0})
        self.seen: Counter[str] = Counter()
        self.taken: list[tuple[str, dict[str, Any]]] = []

    def forget(self) -> None:
        """Begin anew."""
        self.taken.clear()
        self.seen.clear()

    def respond(self, path: str, key: str, body: dict[str, Any]) -> tuple[int, Any]:
        """As any server does, under either name of the limit."""
        text = prompt_text(body)
        self.seen[text] += 1
        self.taken.append((path, body))
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        body = body | {"max_tokens": limit, "again": self.seen[text]}
        status, reply = super().respond(path, key, body)
        if status == 200:
            reply["usage"]["prompt_tokens_details"] = {"cached_tokens": 1}
        return status, reply

    def _logprobs(self, body: dict[str, Any], chat: bool) -> dict[str, Any] | None:
        text = prompt_text(body)
        shares = {label: 0.05 + _number(text + label) % 7 for label in LABELS}
        total = 1.1 * sum(shares.values())
        self.tops = {label: math.log(share / total) for label, share in shares.items()}
        return super()._logprobs(body, chat)


def answer(body: dict[str, Any], choice: int) -> str:
    """An answer to a question, or a verdict in every form that a template may ask for."""
    text = prompt_text(body)
    if text.splitlines()[-1] in QUESTIONS:
        drawn = body.get("seed", 0) + choice if body.get("temperature") else 0
        return ANSWERS[_number(f"{text} {drawn}") % len(ANSWERS)]
    # The seed of a verdict hangs together with the hash of its judge, which is no effect.
    number = _number(f"{text} {choice + body['again'] if body.get('temperature') else 0}")
    if "response_format" in body:
        return _json(text, number)
    if "checklist" in text:
        return "- [essential] It is short.\n- [pitfall] It is rude.\n- [optional] It is sweet."
    if "Text N" in text or "text N" in text.lower():
        rows = [f"Text {i}\nRating: {1 + (number + i) % 5}\nRationale: so" for i in (1, 2, 3, 4)]
        return "\n\n".join(rows)
    if "Verdict: WORD" in text:
        return f"So.\nVerdict: {('rude', 'plain', 'kind')[number % 3]}"
    letters = "answer A" in text or "[A " in text
    slot = ("A", "B") if letters else ("1", "2")
    if "Verdict:" in text:
        return f"So.\nVerdict: {slot[number % 2]}"
    if re.search(r"\[RESULT\] (A|\(A)", text) or "A or B" in text:
        return f"So. [RESULT] {slot[number % 2]}"
    return f"So. [RESULT] {1 + number % 5}\nScore: {1 + number % 5}"


def _json(text: str, number: int) -> str:
    if "checklist" in text:
        return '{"items": [{"kind": "essential", "text": "It is short."}]}'
    return f'{{"reasons": "so", "score": "{1 + number % 5}", "verdict": "1"}}'


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
