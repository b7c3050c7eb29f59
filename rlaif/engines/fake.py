"""A deterministic, scripted engine: what users test their experiments with, without a model.

The script is a YAML file:

    default: "I do not know."
    rules:
      - match: "capital of France"     # a pattern searched in the last user turn
        replies: ["Paris.", "It is Paris."]   # picked by the request's seed
        labels: {"yes": 0.7, "no": 0.2}       # probabilities for score requests
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from rlaif.config.base import Strict
from rlaif.config.models import THINKING, ModelSpec, ThinkingSpec
from rlaif.core.chat import split
from rlaif.core.records import Message, content_hash
from rlaif.core.yamlio import load_yaml, validate
from rlaif.engines.base import (
    GenerateRequest,
    GenerateResult,
    ScoreRequest,
    ScoreResult,
    overflow,
    refusal,
)

BATCH = 32
WINDOW = 512 * BATCH
"""Requests that are held at once: a script answers a million prompts in little memory."""


class FakeRule(Strict):
    """What to answer when `match` is found in the last user turn."""

    match: str
    replies: list[str] = Field(default=[], description="One is picked by the seed.")
    labels: dict[str, float] = {}

    @field_validator("match")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class FakeScript(Strict):
    """The rules, tried in order, and the answer when none matches."""

    default: str = "I do not know."
    rules: list[FakeRule] = []


def load(spec: ModelSpec, folder: Path | None, name: str) -> FakeEngine:
    """The engine of the script that the model's `script` names (none: the default answer)."""
    if spec.script is None:
        return FakeEngine(FakeScript(), name, spec.max_context, spec.thinking)
    path = Path(spec.script)
    data, lines = load_yaml(path)
    script = validate(FakeScript, data, lines, path)
    return FakeEngine(script, name, spec.max_context, spec.thinking)


class FakeEngine:
    """See `rlaif.engines.base.Engine`. A token is a word; label probabilities are the script's."""

    capabilities = frozenset(
        {"generate", "token_logprobs", "label_logprobs", "prefill", "user_turn"}
    )
    concurrent = False

    def __init__(
        self,
        script: FakeScript,
        name: str = "fake",
        context: int | None = None,
        thinking: ThinkingSpec = THINKING,
    ):
        self.script = script
        self.thinking = thinking
        self.name = name
        self.context = context or 1 << 30
        self.weights_hash = content_hash("fake", script.model_dump(mode="json"))

    def _find_rule(self, messages: Sequence[Message]) -> FakeRule | None:
        text = messages[-1]["content"] if messages else ""
        return next((r for r in self.script.rules if re.search(r.match, text)), None)

    def _explain_refusal(self, request: GenerateRequest | ScoreRequest, new: int) -> str | None:
        length = len(self.render(request.messages, request.prefill)[1])
        return refusal(request) or overflow(length, new, self.context)

    def render(self, messages: list[Message], prefill: str = "") -> tuple[str, list[int]]:
        """A plain transcript; its tokens are hashes of its words."""
        text = "".join(f"{m['role']}: {m['content']}\n" for m in messages) + prefill
        return text, _make_tokens(text)

    def generate(
        self, requests: Iterable[GenerateRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[GenerateResult]]:
        """See `Engine.generate`."""
        for batch in _split_batches(requests, done):
            yield [self._answer(r) for r in batch]

    def lay_out(
        self, requests: Sequence[Any], done: AbstractSet[str] = frozenset()
    ) -> list[list[Any]]:
        """See `rlaif.engines.base.Divisible`."""
        return list(_split_batches(requests, done))

    def answer(self, batch: list[Any]) -> list[GenerateResult] | list[ScoreResult]:
        """See `rlaif.engines.base.Divisible`."""
        if isinstance(batch[0], ScoreRequest):
            return [self._score(r) for r in batch]
        return [self._answer(r) for r in batch]

    def _answer(self, request: GenerateRequest) -> GenerateResult:
        why = self._explain_refusal(request, request.sampling.max_new_tokens)
        if why is not None:
            return GenerateResult(request.request_id, "", [], "failed", 0, why)
        rule = self._find_rule(request.messages)
        replies = rule.replies if rule and rule.replies else [self.script.default]
        words = replies[request.sampling.seed % len(replies)].split(" ")
        kept = words[: request.sampling.max_new_tokens]
        text, reason = " ".join(kept), "stop" if len(kept) == len(words) else "length"
        for stop in request.sampling.stop:
            if stop in text:
                text, reason = text[: text.index(stop)], "stop"
        prompt, ids = self.render(request.messages, request.prefill)
        tokens = _make_tokens(text)
        said = split(text, self.thinking, request.prefill)
        return GenerateResult(
            request.request_id,
            said.answer,
            tokens,
            reason,  # type: ignore[arg-type]
            len(ids),
            logprobs=[-1.0] * len(tokens),
            rendered_hash=content_hash(prompt),
            reasoning=said.reasoning,
            cut=said.cut,
        )

    def score(
        self, requests: Iterable[ScoreRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[ScoreResult]]:
        """See `Engine.score`. Every continuation token has log-prob -1."""
        for batch in _split_batches(requests, done):
            yield [self._score(r) for r in batch]

    def _score(self, request: ScoreRequest) -> ScoreResult:
        why = self._explain_refusal(request, 0)
        if why is not None:
            return ScoreResult(request.request_id, {}, None, [], 0, why)
        rule = self._find_rule(request.messages)
        scripted = rule.labels if rule else {}
        probs = {label: scripted.get(label, 0.0) for label in request.labels}
        ids = request.continuation_ids
        count = len(ids if ids is not None else _make_tokens(request.continuation or ""))
        prompt_tokens = len(self.render(request.messages, request.prefill)[1])
        mass = sum(probs.values()) if request.labels else None
        return ScoreResult(request.request_id, probs, mass, [-1.0] * count, prompt_tokens)

    def close(self) -> None:
        """Nothing to free."""


def _make_tokens(text: str) -> list[int]:
    return [_make_token(word) for word in text.split()]


# Scripts say the same words again and again.
@lru_cache(maxsize=1024)
def _make_token(word: str) -> int:
    return int(content_hash(word, length=6), 16)


def _split_batches(requests: Iterable[Any], done: AbstractSet[str]) -> Iterator[list[Any]]:
    """The batches that are not wholly `done`, of one `WINDOW` of the requests after the other, each
    in the order of ids."""
    left = iter(requests)
    while window := sorted(islice(left, WINDOW), key=lambda r: r.request_id):
        batches = (window[i : i + BATCH] for i in range(0, len(window), BATCH))
        yield from (batch for batch in batches if not all(r.request_id in done for r in batch))
