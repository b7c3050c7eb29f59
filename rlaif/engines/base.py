"""The protocol every engine speaks, and the requests and results that cross it.

An engine receives the *full* set of requests and yields whole batches of results. How requests are
laid out in batches is a pure function of that set, so a caller that passes the ids it already has
(`done`) gets exactly the batches that are missing, bit for bit as an uninterrupted run makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from rlaif.config import ModelSpec
from rlaif.records import Message

Capability = Literal["generate", "token_logprobs", "label_logprobs", "prefill", "reward"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy; `seed` belongs to one request, not to a batch."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One text to generate: `messages` through the chat template, then `prefill` as the start of
    the assistant's turn. The prefill is not part of the returned text."""

    request_id: str
    messages: list[Message]
    sampling: Sampling
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """A generated text. `finish_reason` failed means `error` says why and `text` is empty.

    `token_ids` are exactly what was sampled, the end token included when the model gave it;
    `logprobs` are theirs at temperature 1, empty where the engine does not know them.
    """

    request_id: str
    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length", "failed"]
    prompt_tokens: int
    error: str | None = None
    logprobs: list[float] = field(default_factory=list)
    rendered_hash: str | None = None


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Log-probabilities of what may follow `messages` (+ `prefill`).

    With `labels` (a label to its surface forms: {"yes": ("Yes", " yes")}): the distribution over
    the labels at the next token. With `continuation` or `continuation_ids`: the log-prob of each
    of its tokens.
    """

    request_id: str
    messages: list[Message]
    prefill: str = ""
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    continuation: str | None = None
    continuation_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """`label_probs` are over the whole vocabulary (they sum to `label_mass`, at most 1), computed
    in fp32. `token_logprobs` are natural logs, one per continuation token."""

    request_id: str
    label_probs: dict[str, float]
    label_mass: float | None
    token_logprobs: list[float]
    prompt_tokens: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RewardRequest:
    """The reward of `answer` (one assistant message) to `messages`."""

    request_id: str
    messages: list[Message]
    answer: Message


@dataclass(frozen=True, slots=True)
class RewardResult:
    """`reward` is the head's number as it is, or None where `error` says why there is none."""

    request_id: str
    reward: float | None
    prompt_tokens: int
    error: str | None = None


@dataclass(frozen=True)
class Model:
    """One set of weights, known before it exists: a named model, or what a train step will make."""

    key: str
    label: str
    spec: ModelSpec
    train_hash: str | None = None

    def identity(self) -> list[Any]:
        """What of the model decides the bits of its answers."""
        spec = self.spec
        # Not in the list where there are none, so that older hashes stay.
        more = [spec.engine_args] if spec.engine_args else []
        return [
            self.key,
            spec.engine,
            spec.dtype,
            spec.batch_tokens,
            spec.max_context,
            spec.system_prompt,
            *more,
        ]


class Sampler(Protocol):
    """A model that writes. Results come in whole batches; ids say which is which."""

    name: str
    weights_hash: str

    def generate(
        self, requests: Sequence[GenerateRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[GenerateResult]]:
        """Yield the batches of `requests` that are not wholly in `done`."""
        ...


class Engine(Sampler, Protocol):
    """A loaded model."""

    capabilities: frozenset[str]

    def score(
        self, requests: Sequence[ScoreRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[ScoreResult]]:
        """Yield the batches of `requests` that are not wholly in `done`."""
        ...

    def reward(
        self, requests: Sequence[RewardRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[RewardResult]]:
        """Yield the batches of `requests` that are not wholly in `done`. Only for engines with the
        capability `reward`."""
        ...

    def render(self, messages: list[Message], prefill: str = "") -> tuple[str, list[int]]:
        """The exact text and token ids the model sees for `messages` and `prefill`."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


@runtime_checkable
class Reloadable(Protocol):
    """What an engine has besides that stays while its weights change."""

    spec: ModelSpec

    def load_weights(self, folder: Path, digest: str) -> None:
        """Take the weights in `folder`, of the same architecture, in place; `digest` is theirs."""
        ...

    def rest(self) -> bool:
        """Give up the memory that training needs until the next call, and say whether it is
        given up; where it is not, only `close` does."""
        ...
