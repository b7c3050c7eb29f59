"""From a model's spec to a loaded engine. Back ends are imported on use."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from rlaif.config import TRAINABLE, ModelSpec
from rlaif.engines import api
from rlaif.engines.account import Account
from rlaif.engines.base import Engine, Model, Reloadable
from rlaif.engines.builtin import locate, resolve, weights_hash
from rlaif.errors import ConfigError, EngineError
from rlaif.store import Store, read_json

ENGINES = {
    "hf": "rlaif.engines.hf:load",
    "vllm": "rlaif.engines.vllm:load",
    "fake": "rlaif.engines.fake:load",
    "reward": "rlaif.engines.reward:load",
    "openai": "rlaif.engines.openai:load",
}
REMOTE = frozenset({"openai"})
"""Engines that ask a server: they get the run's account, and need no folder."""
CAPABILITIES = {
    "hf": frozenset({"generate", "token_logprobs", "label_logprobs", "prefill"}),
    "vllm": frozenset({"generate", "token_logprobs", "label_logprobs", "prefill"}),
    "fake": frozenset({"generate", "token_logprobs", "label_logprobs", "prefill"}),
    "reward": frozenset({"reward"}),
}


def known_capabilities(spec: ModelSpec) -> frozenset[str] | None:
    """What the engine of `spec` can do, or None where only loading it tells."""
    if spec.engine in REMOTE:
        return api.capabilities(spec)
    folder = locate(spec.path)
    if spec.engine not in CAPABILITIES or (spec.engine in TRAINABLE and folder is None):
        return None
    return CAPABILITIES["reward" if is_reward_model(folder) else spec.engine]


def server_key(spec: ModelSpec) -> str | None:
    """The key of a model's server from the environment; None where none is named. Raises
    ConfigError when the variable is not set."""
    if spec.key_env is None:
        return None
    key = os.environ.get(spec.key_env, "").strip()
    if not key:
        raise ConfigError(
            f"model {spec.path}: `key_env` names the environment variable {spec.key_env}, and it "
            "is not set"
        )
    return key


def is_reward_model(folder: Path | None) -> bool:
    """Whether the checkpoint in `folder` has a classification head in place of a language head."""
    config = (read_json(folder / "config.json") or {}) if folder is not None else {}
    return any("ForSequenceClassification" in name for name in config.get("architectures") or [])


def load_engine(
    spec: ModelSpec, folder: Path | None, name: str, account: Account | None = None
) -> Engine:
    """The engine of `spec`; `engine: package.module:Name` is called as Name(spec, folder, name).
    Remote calls are put on `account`."""
    kind = "reward" if spec.engine in TRAINABLE and is_reward_model(folder) else spec.engine
    reference = ENGINES.get(kind, kind)
    module, _, attribute = reference.partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(
            f"model {name}: engine {spec.engine!r} cannot be loaded: {error}"
        ) from None
    remote = (account or Account(),) if kind in REMOTE else ()
    engine: Engine = factory(spec, folder, name, *remote)
    return engine


class EnginePool:
    """Loaded engines by weights, the most recently used ones; the same weights load once.

    Remote ones share an account, which counts against `budget` what the run folder ever spent.
    """

    def __init__(self, store: Store, keep: int = 2, budget: float | None = None):
        self.store = store
        self.keep = keep
        self.account = Account(store.root / "spend.jsonl", budget)
        self._loaded: dict[str, Engine] = {}

    def folder(self, model: Model) -> str:
        """The folder of the model's weights."""
        if model.train_hash is not None:
            return str(self.store.model_path(model.train_hash))
        return str(resolve(model.spec.path))

    def get(self, model: Model) -> Engine:
        """The loaded engine of `model`."""
        key = repr(model.identity())
        engine = self._loaded.pop(key, None)
        if engine is None and (reused := self._reloadable(model)) is not None:
            folder = Path(self.folder(model))
            reused.load_weights(folder, weights_hash(folder))
            engine = reused
        self._loaded[key] = engine or self._started(model)
        return self._loaded[key]

    def with_weights(self, model: Model, folder: Path, digest: str) -> Engine:
        """An engine of `model`'s kind with the weights in `folder` in place of the model's own."""
        engine: Any = (
            self._loaded.pop(digest, None) or self._reloadable(model) or self._started(model)
        )
        self._loaded[digest] = engine
        if not isinstance(engine, Reloadable):
            raise EngineError(f"engine {model.spec.engine} cannot take other weights in place")
        engine.load_weights(folder, digest)
        return self._loaded[digest]

    def _reloadable(self, model: Model) -> Any:
        """A loaded engine that only needs the model's weights; it is taken out of the pool."""
        for key, engine in self._loaded.items():
            if isinstance(engine, Reloadable) and engine.spec == model.spec:
                del self._loaded[key]
                return engine
        return None

    def _started(self, model: Model) -> Engine:
        while len(self._loaded) >= self.keep:
            self._loaded.pop(next(iter(self._loaded))).close()
        weightless = model.key.startswith(("fake:", "plugin:", "server:"))
        folder = None if weightless else Path(self.folder(model))
        return load_engine(model.spec, folder, model.label, self.account)

    def make_room(self) -> None:
        """Free what training needs the memory of. Engines that can give it up otherwise stay."""
        for key, engine in list(self._loaded.items()):
            if not (isinstance(engine, Reloadable) and engine.rest()):
                engine.close()
                del self._loaded[key]

    def close(self) -> None:
        """Free every engine."""
        for engine in self._loaded.values():
            engine.close()
        self._loaded.clear()
