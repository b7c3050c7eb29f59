"""From a model's spec to a loaded engine. Back ends are imported on use."""

from __future__ import annotations

import logging
import os
import threading
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from rlaif.config.models import ENGINES, REMOTE, TRAINABLE, EngineKind, ModelSpec
from rlaif.core.errors import ConfigError, EngineError
from rlaif.core.store import Store, read_json
from rlaif.engines.base import Engine, Model, ModelWeights, Reloadable, Sharing
from rlaif.engines.model_folders import COPIES, is_adapter, locate, model_hash, resolve
from rlaif.engines.remote import api
from rlaif.engines.remote.meter import Account, run_account

log = logging.getLogger(__name__)

REWARD = EngineKind("rlaif.engines.local.reward:load", frozenset({"reward"}))
"""Serves the checkpoints of trainable engines that have a classification head."""

# A prompt's log-probs beside an adapter end vLLM 0.32 on a CPU.
BESIDE_AN_ADAPTER = {"vllm": frozenset({"token_logprobs"})}
"""What an engine cannot do when it serves an adapter."""


def known_capabilities(spec: ModelSpec) -> frozenset[str] | None:
    """What the engine of `spec` can do, or None where only loading it tells."""
    if spec.engine in REMOTE:
        return api.capabilities(spec)
    folder = locate(spec.path)
    if spec.engine not in ENGINES or (spec.engine in TRAINABLE and folder is None):
        return None
    kind = REWARD if is_reward_model(folder) else ENGINES[spec.engine]
    lost = BESIDE_AN_ADAPTER.get(spec.engine, frozenset()) if spec.adapter else frozenset()
    return kind.capabilities - lost


def server_key(spec: ModelSpec) -> str | None:
    """The key of a model's server from the environment; None where none is named. Raises
    ConfigError when the variable is not set."""
    if spec.key_env is None:
        return None
    key = os.environ.get(spec.key_env, "").strip()
    if not key:
        # Where the key itself was written, its text is not for a message.
        plain = spec.key_env if spec.key_env.isupper() else "(not shown: it may be the key itself)"
        raise ConfigError(
            f"model {spec.path}: `key_env` names the environment variable {plain}, and it is not "
            "set"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"model {spec.path}: the key in ${spec.key_env} holds a character that no key has, "
            "such as a typographic quote or a line break; copy it again"
        )
    return key


def is_reward_model(folder: Path | None) -> bool:
    """Whether the checkpoint in `folder` has a classification head in place of a language head."""
    advice = "Mend this file, or name another model."
    config = (read_json(folder / "config.json", advice) or {}) if folder is not None else {}
    kinds = config.get("architectures")
    return isinstance(kinds, list) and any("ForSequenceClassification" in str(k) for k in kinds)


def refuse_no_reward_model(folder: Path) -> None:
    """Raises ConfigError where `folder` has no reward model."""
    if not is_reward_model(folder):
        raise ConfigError("no reward model in this folder: `rlaif distill` makes one", folder)


def whole(folder: Path, copies: Path | None = None) -> Path:
    """The folder of a whole model: `folder` itself or, where training exported an adapter alone
    to it, a merged copy in `copies` (None: in the user's cache). Raises EngineError where the
    adapter's base is not to be found or is another than it was."""
    if not is_adapter(folder):
        return folder
    from rlaif.engines.merging import merged_copy

    return merged_copy(folder, copies)


def load_engine(
    spec: ModelSpec, folder: str | Path | None, name: str, account: Account | None = None
) -> Engine:
    """The engine of `spec`; `engine: package.module:Name` is called as Name(spec, folder, name).
    Remote calls are put on `account`."""
    folder = None if folder is None else whole(Path(folder))
    kind = ENGINES.get(spec.engine, EngineKind(spec.engine))
    if kind.trainable and is_reward_model(folder):
        if spec.adapter is not None:
            fault = "`adapter` is for language models, not for reward models"
            raise ConfigError(f"model {name}: {fault}")
        kind = REWARD
    module, _, attribute = kind.load.partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(
            f"model {name}: engine {spec.engine!r} cannot be loaded: {error}"
        ) from None
    counted = (account or Account(),) if kind.accounted else ()
    engine: Engine = factory(spec, folder, name, *counted)
    return engine


class Loader(Protocol):
    """What loads an engine: `load_engine`, or what has another machine load it."""

    def __call__(
        self, spec: ModelSpec, folder: str | Path | None, name: str, account: Account | None = None
    ) -> Engine:
        """See `load_engine`."""
        ...


class EnginePool:
    """Loaded engines; the same weights load once.

    Of those in this process's memory the `keep` most recently used stay. One that takes weights in
    place stays for as long as its model's settings are wanted. Engines of servers hold no model:
    they all stay, and share an account, which counts against `budget` what the run folder ever
    spent. May be asked from several threads. `load` decides where a model is loaded; by default it
    is this process.
    """

    def __init__(
        self,
        store: Store,
        keep: int = 2,
        budget: float | None = None,
        account: Account | None = None,
        load: Loader | None = None,
    ):
        self.load = load or load_engine
        self.store = store
        self.keep = keep
        self.account = account or run_account(store.root, budget)
        self._local: dict[str, Engine] = {}
        self._remote: dict[str, Engine] = {}
        self._lock = threading.RLock()
        self._closed = False

    def beside(self) -> EnginePool:
        """A pool for a step that asks servers while another step runs: it spends the same budget,
        and closing it ends that step's calls alone."""
        return EnginePool(self.store, account=self.account.beside(), load=self.load)

    def folder(self, model: Model) -> str:
        """The folder of the model's weights, merged from an adapter where that is all there is."""
        if model.train_hash is not None:
            return str(whole(self.store.model_path(model.train_hash), self.store.root / COPIES))
        return str(whole(resolve(model.spec.path)))

    def get(self, model: Model) -> Engine:
        """The loaded engine of `model`."""
        with self._lock:
            if self._closed:
                raise EngineError(f"model {model.label} is asked for after the engines were closed")
            if model.spec.engine in REMOTE:
                # Two models on one server may differ in their keys and prices alone.
                key = model.spec.model_dump_json()
                if key not in self._remote:
                    self._remote[key] = self.load(model.spec, None, model.label, self.account)
                return self._remote[key]
            key = repr(model.identity())
            engine = (
                self._local.pop(key, None) or self._reuse_engine(model) or self._start_engine(model)
            )
            self._local[key] = engine
            return engine

    def with_weights(self, model: Model, weights: ModelWeights, digest: str) -> Engine:
        """An engine of `model`'s kind with `weights` in place of the model's own; it is loaded in
        this process."""
        with self._lock:
            engine: Any = self._take_reloadable(model) or self._start_engine(model, load_engine)
            if not isinstance(engine, Reloadable):
                engine.close()
                raise EngineError(f"engine {model.spec.engine} cannot take other weights in place")
            _load_weights(engine, weights, digest)
            # Its own weights have another key: nobody gets these by mistake.
            self._local |= {digest: cast(Engine, engine)}
            return self._local[digest]

    def _reuse_engine(self, model: Model) -> Any:
        """An engine of the model's settings with its weights put in place, if there is one."""
        if not any(_can_serve(engine, model) for engine in self._local.values()):
            return None
        from rlaif.engines.checkpoints import FolderWeights

        folder = Path(self.folder(model))
        if is_reward_model(folder):
            return None
        engine = self._take_reloadable(model)
        log.info(
            "model %s: the running engine %s takes its weights", model.label, model.spec.engine
        )
        _load_weights(engine, FolderWeights(folder), model_hash(folder, model.spec))
        return engine

    def _take_reloadable(self, model: Model) -> Any:
        """An engine that takes weights and has the model's settings, out of the pool."""
        for key, engine in self._local.items():
            if _can_serve(engine, model):
                return self._local.pop(key)
        return None

    def _start_engine(self, model: Model, load: Loader | None = None) -> Engine:
        weightless = model.key.startswith(("fake:", "plugin:"))
        folder = None if weightless else Path(self.folder(model))
        shared = self._share_weights(model, folder)
        if shared is not None:
            return shared
        plain = [key for key, e in self._local.items() if not isinstance(e, Reloadable)]
        for key in plain[: max(0, len(plain) - self.keep + 1)]:
            self._local.pop(key).close()
        return (load or self.load)(model.spec, folder, model.label, self.account)

    def _share_weights(self, model: Model, folder: Path | None) -> Engine | None:
        """An engine over weights that are in memory with other settings, if there are any."""
        for engine in self._local.values():
            if folder is not None and isinstance(engine, Sharing):
                shared = engine.sharing(model.spec, folder, model.label)
                if shared is not None:
                    return shared
        return None

    def make_room(self, processes: int = 1) -> None:
        """Free memory for training in so many processes: close every engine that cannot release its
        memory otherwise."""
        with self._lock:
            for key, engine in list(self._local.items()):
                if not (isinstance(engine, Reloadable) and engine.rest(processes)):
                    self._local.pop(key).close()

    def close(self) -> None:
        """Close every engine; calls that other threads have open end."""
        with self._lock:
            self._closed = True
            for engine in [*self._local.values(), *self._remote.values()]:
                engine.close()
            self._local.clear()
            self._remote.clear()


def _can_serve(engine: Engine, model: Model) -> bool:
    return isinstance(engine, Reloadable) and engine.spec == model.spec


def _load_weights(engine: Reloadable, weights: ModelWeights, digest: str) -> None:
    """Load weights in place; an engine that fails at it is closed."""
    try:
        engine.load_weights(weights, digest)
    except BaseException:
        engine.close()
        raise
