"""Any OpenAI-compatible server: chat or plain completions, by the `openai` client."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast
from weakref import WeakSet

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.core.records import Message, content_hash
from rlaif.engines.base import GenerateRequest, GenerateResult, Sampling, ScoreRequest, ScoreResult
from rlaif.engines.build import server_key
from rlaif.engines.remote import api
from rlaif.engines.remote.attempt import IN_A_ROW
from rlaif.engines.remote.connection import SHORTEST
from rlaif.engines.remote.meter import Account
from rlaif.engines.remote.session import Learned, Session
from rlaif.engines.remote.streaming import Outlet, streamed

log = logging.getLogger(__name__)

ROOM = 16
"""Results that may wait for their reader, for each call that may be open: answers of 13 ms and more
fill it no faster than a reader that is not slow empties it."""


def load(spec: ModelSpec, folder: Path | None, name: str, account: Account) -> OpenAIEngine:
    """The engine of the server that `spec` names."""
    return OpenAIEngine(spec, name, account)


@dataclass(frozen=True)
class Own:
    """What is known of a server that this process has started: its key, its weights' hash, and its
    labels' tokens."""

    key: str
    weights_hash: str
    label_tokens: api.LabelTokens


class OpenAIEngine:
    """See `rlaif.engines.base.Engine`. `weights_hash` stands for the weights, in records and in the
    cache: a hash of the server, the model's name and what `weights` says of them."""

    concurrent = True

    def __init__(
        self,
        spec: ModelSpec,
        name: str,
        account: Account,
        own: Own | None = None,
        learned: Learned | None = None,
    ):
        self.spec = spec
        self.name = name
        said = () if spec.weights is None else (spec.weights,)
        named = content_hash("openai", spec.base_url, spec.path, *said)
        self.weights_hash = named if own is None else own.weights_hash
        self.own = own
        self.account = account
        self.capabilities = api.capabilities(spec)
        self.learned = learned or Learned()
        self._outlets: WeakSet[Outlet[api.Result]] = WeakSet()
        self._closed = self._warned = False
        self._lock = threading.Lock()

    def generate(
        self, requests: Iterable[GenerateRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[GenerateResult]]:
        """See `Engine.generate`. Raises ConfigError without the key that the server needs."""
        wanted = (r for r in requests if r.request_id not in done)
        return cast(Iterator[list[GenerateResult]], self._stream_results(wanted))

    def score(
        self, requests: Iterable[ScoreRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[ScoreResult]]:
        """See `Engine.score`. Labels only: raises EngineError for a continuation."""
        wanted = (self._require_labels(r) for r in requests if r.request_id not in done)
        return cast(Iterator[list[ScoreResult]], self._stream_results(wanted))

    def reward(self, requests: Any, done: Any = frozenset()) -> NoReturn:
        """A language model has no reward head."""
        raise EngineError(f"{self.name} is a language model on a server: it has no reward head")

    def lost(self, messages: Sequence[Message]) -> Counter[str]:
        """See `rlaif.engines.base.Losing`."""
        return api.lost(messages)

    def _require_labels(self, request: ScoreRequest) -> ScoreRequest:
        if request.continuation is not None or request.continuation_ids is not None:
            raise EngineError(
                f"{self.name}: a server gives no log-probs of a given text; use engine hf"
            )
        return request

    def _stream_results(self, requests: Iterable[api.Request]) -> Iterator[list[api.Result]]:
        own, spec = self.own, self.spec
        calls = api.calls(spec, self.weights_hash, requests, own.label_tokens if own else None)
        key = own.key if own else server_key(spec)
        if key is not None and len(key) < SHORTEST and not self._warned:
            self._warned = True
            log.warning(
                "model %s: the key in $%s has fewer than %d characters, so it is not taken out of "
                "errors and logs",
                self.name,
                spec.key_env,
                SHORTEST,
            )
        # The address of a server of our own is another at every start.
        place = f"weights:{own.weights_hash}" if own else spec.base_url
        session = Session(spec, self.name, key, self.account, calls, place or "", self.learned)
        # Withheld results take room too.
        room = max(ROOM * spec.limits.concurrency, 2 * IN_A_ROW)
        outlet: Outlet[api.Result] = Outlet(room * spec.samples_per_call)
        with self._lock:
            self._outlets.add(outlet)
            if self._closed:
                outlet.stop()
        return streamed(session.run, outlet)

    def render(self, messages: list[Message], prefill: str = "") -> tuple[str, list[int]]:
        """What the server is sent, as JSON or as text. It renders that itself, and its token ids
        are not known."""
        request = GenerateRequest("", messages, Sampling(), prefill)
        (call,) = api.calls(self.spec, self.weights_hash, [request])
        if "prompt" in call.body:
            return call.body["prompt"], []
        return json.dumps(call.body.get("messages", messages), ensure_ascii=False, indent=1), []

    def close(self) -> None:
        """End what other threads are asking, at once; answers that have come are still given out.
        Nothing else is to free: connections end with the requests that they were opened for."""
        with self._lock:
            self._closed = True
            for outlet in self._outlets:
                outlet.stop()
