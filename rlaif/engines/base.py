"""The protocol every engine speaks, and the requests and results that cross it.

An engine receives the *full* set of requests and yields whole batches of results. How an engine in
this process lays requests out in batches is a pure function of that set, so a caller that passes
the ids it already has (`done`) gets exactly the batches that are missing, bit for bit as an
uninterrupted run makes them. A remote engine (`concurrent`) treats every request alone, pulls them
as it goes, and yields what has come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from rlaif.config.models import THINKING, ModelSpec
from rlaif.core.chat import is_unicode
from rlaif.core.records import Message

Capability = Literal[
    "generate",
    "token_logprobs",
    "label_logprobs",
    "prefill",
    "json_schema",
    "reward",
    "user_turn",
    "token_ids",
]
"""`json_schema`: the model is held to a request's schema, as far as the engine knows its words.
`user_turn`: the model can write the user's turn. `token_ids`: it goes on from given token ids, and
says which it sampled."""


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
    the assistant's turn. The prefill is not part of the returned text.

    With `writes` user the next user turn is what the model writes, after `messages`, which may be
    none (engines with the capability `user_turn`).

    `json_schema` is what the text should be an instance of. An engine that can hold the model to it
    does; the reader of the text must not count on it.

    With `ids` the model goes on from exactly these, in place of the rendered `messages` (engines
    with the capability `token_ids`).
    """

    request_id: str
    messages: list[Message]
    sampling: Sampling
    prefill: str = ""
    json_schema: dict[str, Any] | None = None
    writes: Literal["assistant", "user"] = "assistant"
    ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """A generated answer. `finish_reason` failed means `error` says why and `text` is empty.

    `token_ids` are exactly what was sampled, the end token included when the model gave it;
    `logprobs` are theirs at temperature 1. Both are empty where the engine does not know them, and
    `new_tokens` is then what the server counted; counts are None where nobody counted. `reasoning`
    is what a reasoning model thought before its answer, and is not in `text`; `cut`: the thinking
    has no end, so that there is no answer. `seconds` and `cost` (in the price's currency) are a
    remote call's, None elsewhere.
    """

    request_id: str
    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length", "failed"]
    prompt_tokens: int | None
    error: str | None = None
    logprobs: list[float] = field(default_factory=list)
    rendered_hash: str | None = None
    new_tokens: int | None = None
    reasoning: str = ""
    seconds: float | None = None
    cost: float | None = None
    cut: bool = False

    @property
    def tokens_made(self) -> int | None:
        """How many tokens were sampled; None where nobody counted."""
        return len(self.token_ids) or self.new_tokens


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Log-probabilities of what may follow `messages` (+ `prefill`).

    With `labels` (a label to its surface forms: {"yes": ("Yes", " yes")}): the distribution over
    the labels at the next token. With `continuation` or `continuation_ids`: the log-prob of each
    of its tokens. A `continuation` is the text of an answer, whose tokens are those that training
    has (`rlaif.core.answers`), without the end of the turn.
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
    in fp32. A server names its likeliest tokens only: a label that is not among them has 0 here,
    and its probability is part of the missing mass. `token_logprobs` are natural logs, one per
    continuation token. `seconds` and `cost` as in GenerateResult."""

    request_id: str
    label_probs: dict[str, float]
    label_mass: float | None
    token_logprobs: list[float]
    prompt_tokens: int | None
    error: str | None = None
    seconds: float | None = None
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class RewardRequest:
    """The reward of `answer` (one assistant message) to `messages`."""

    request_id: str
    messages: list[Message]
    answer: Message


MEMBER, SPREAD, DISTANCE = "member/", "spread", "distance"
"""Parts of a reward: of each member of an ensemble, their standard deviation, and how far the
answer lies from those of the training (`rlaif.engines.local.distance`; about 1 is near)."""


@dataclass(frozen=True, slots=True)
class RewardResult:
    """`reward` is the head's number as it is, or None where `error` says why there is none; `parts`
    are what the head made it of and what is known of it, by name. `seconds` and `cost` as in
    GenerateResult."""

    request_id: str
    reward: float | None
    prompt_tokens: int
    error: str | None = None
    seconds: float | None = None
    cost: float | None = None
    parts: dict[str, float] = field(default_factory=dict)


def refusal(request: GenerateRequest | ScoreRequest) -> str | None:
    """Why no engine takes a request, or None. Scraped text can hold half a surrogate pair, which no
    tokenizer and no file takes."""
    asks = isinstance(request, ScoreRequest) or request.writes == "assistant"
    if asks and not any(m["content"].strip() for m in request.messages):
        return "the prompt is empty"
    texts = [*(m["content"] for m in request.messages), request.prefill]
    if isinstance(request, ScoreRequest):
        texts.append(request.continuation or "")
    return None if is_unicode(texts) else "the text is not valid Unicode"


def overflow(prompt_tokens: int, new: int, context: int) -> str | None:
    """Why a prompt with `new` tokens to come does not fit `context` tokens, or None."""
    if prompt_tokens + new <= context:
        return None
    return f"{prompt_tokens} prompt tokens + {new} new do not fit the context of {context}"


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
        local = [self.key, spec.engine, spec.dtype, spec.batch_tokens, spec.max_context]
        sent: list[Any] = [spec.api, spec.samples_per_call, spec.top_logprobs, spec.extra_body]
        # Keys that the engine does not read, and new ones at their default, stay out of its hashes,
        # as they were before.
        more: list[Any] = [spec.engine_args] if spec.engine_args else []
        if spec.base_url is not None:
            more = sent
        elif spec.engine == "vllm-server":
            more = [spec.engine_args, *sent]
        if spec.thinking != THINKING:
            more = [*more, {"thinking": spec.thinking.model_dump(mode="json")}]
        if spec.system_role != "keep":
            more = [*more, {"system_role": spec.system_role}]
        if spec.chat_template_kwargs:
            more = [*more, {"chat_template_kwargs": spec.chat_template_kwargs}]
        return [*local, spec.system_prompt, *more]


class Sampler(Protocol):
    """A model that writes. Results come in whole batches; ids say which is which."""

    name: str
    weights_hash: str

    def generate(
        self, requests: Iterable[GenerateRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[GenerateResult]]:
        """Yield the batches of `requests` that are not wholly in `done`."""
        ...


class Engine(Sampler, Protocol):
    """A loaded model.

    `concurrent`: the model runs elsewhere, so its work goes on while this process computes, and
    `requests` may be drawn one by one from an iterator that is never held whole. Such an engine may
    be asked from several threads.
    """

    capabilities: frozenset[str]
    concurrent: bool

    def score(
        self, requests: Iterable[ScoreRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[ScoreResult]]:
        """Yield the batches of `requests` that are not wholly in `done`."""
        ...

    def reward(
        self, requests: Iterable[RewardRequest], done: AbstractSet[str] = frozenset()
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
class Losing(Protocol):
    """An engine that knows which parts of a conversation do not reach its model."""

    def lost(self, messages: Sequence[Message]) -> Counter[str]:
        """How many turns have such a part, by the names in `rlaif.core.chat.LOST`."""
        ...


@runtime_checkable
class Sharing(Protocol):
    """An engine over whose weights engines of other settings can compute."""

    def sharing(self, spec: ModelSpec, folder: Path, name: str) -> Engine | None:
        """An engine of `spec`'s settings over the weights that are here, where those are the ones
        in `folder`; else None."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """An engine whose batches can be computed by several engines of the same model and settings:
    `generate`, `score` and `reward` yield what `answer` makes of each batch of `lay_out`."""

    def lay_out(self, requests: Sequence[Any], done: AbstractSet[str] = frozenset()) -> list[Any]:
        """The batches of requests of one kind that are not wholly in `done`, which can be
        pickled."""
        ...

    def answer(self, batch: Any) -> list[Any]:
        """The results of one batch."""
        ...


class ModelWeights(Protocol):
    """The weights of a model, under the names of its checkpoint."""

    def list_tensors(self) -> list[tuple[str, Any, tuple[int, ...]]]:
        """Name, dtype and shape of each, in the order of `read_tensors`; none is computed."""
        ...

    def read_tensors(self) -> Iterator[tuple[str, Any]]:
        """Names and tensors, on the device that they are on."""
        ...

    def write(self) -> Path:
        """The folder that has them as safetensors, which are written where they are not yet."""
        ...


@runtime_checkable
class Reloadable(Protocol):
    """An engine that stays loaded while its weights change."""

    spec: ModelSpec

    def close(self) -> None:
        """Free the model."""
        ...

    def load_weights(self, weights: ModelWeights, digest: str) -> None:
        """Take weights of the same architecture in place; `digest` is their hash."""
        ...

    def rest(self, processes: int = 1) -> bool:
        """Release memory for a training in so many processes, until the next call. Returns False if
        only `close` can do so."""
        ...


THINKING_ADVICE = (
    "turn its thinking off (by the chat template's own switch, such as `chat_template_kwargs: "
    "{enable_thinking: false}`, which a server takes in `extra_body`), or let it think and write "
    "its verdict (`verdict: written`, or `expected: false`)"
)
"""What helps where label probabilities are read and the model thinks first."""

THINKS = f"the chat template opens the model's thinking, where no label stands: {THINKING_ADVICE}"

MOST_OPENING = 0.5
"""More probability than this on a marker that opens thinking is no answer with a label."""


def thinks_first(found: float, labels: float) -> str | None:
    """Why label probabilities are no verdict where `found` is the probability of beginning to think
    and `labels` that of all labels; None where they are one."""
    if found < MOST_OPENING or labels > found:
        return None
    return (
        f"the model thinks before it answers (a marker that opens thinking has probability "
        f"{found:.3g}, all labels together {labels:.2g}): {THINKING_ADVICE}"
    )
