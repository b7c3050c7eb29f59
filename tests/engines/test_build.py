"""What the pool keeps, reuses and frees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.core.store import Store
from rlaif.engines import build
from rlaif.engines.base import GenerateRequest, Model, ModelWeights, Sampling
from rlaif.engines.build import EnginePool
from rlaif.engines.checkpoints import FolderWeights

URL = "http://127.0.0.1:9/v1"


class Plain:
    """An engine that notes whether it was closed."""

    def __init__(self, spec: ModelSpec, folder: Path | None):
        self.spec, self.folder, self.closed = spec, folder, False

    def close(self) -> None:
        self.closed = True


class Reloading(Plain):
    """One that takes weights in place, and gives up its memory when it may."""

    rests = True
    breaks = False
    trained_in = 0

    def load_weights(self, weights: ModelWeights, digest: str) -> None:
        if self.breaks:
            raise EngineError("torn file")
        self.folder = weights.write()

    def rest(self, processes: int = 1) -> bool:
        self.trained_in = processes
        return self.rests


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EnginePool:
    def load(spec: ModelSpec, folder: Path | None, name: str, account: Any = None) -> Plain:
        serving = spec.engine == "vllm" and not build.is_reward_model(folder)
        return (Reloading if serving else Plain)(spec, folder)

    monkeypatch.setattr(build, "load_engine", load)
    return EnginePool(Store(tmp_path / "run"))


def checkpoint(folder: Path, reward: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kind = "LlamaForSequenceClassification" if reward else "LlamaForCausalLM"
    (folder / "config.json").write_text(json.dumps({"architectures": [kind]}))
    (folder / "model.safetensors").write_bytes(folder.name.encode())
    return folder


def model(tmp_path: Path, name: str, engine: str = "hf") -> Model:
    spec = ModelSpec(path=str(checkpoint(tmp_path / name)), engine=engine)
    return Model(f"weights:{name}", name, spec)


def made_from(start: Model, pool: EnginePool, digest: str, reward: bool = False) -> Model:
    """A model that was trained from `start`: its settings, and weights of its own."""
    checkpoint(pool.store.model_path(digest), reward)
    return Model(f"train:{digest}", digest, start.spec, digest)


def server(name: str, **keys: Any) -> Model:
    return Model(f"server:{name}", name, ModelSpec(path="m", engine="openai", base_url=URL, **keys))


def test_the_most_recently_used_of_this_process_stay(pool: EnginePool, tmp_path: Path) -> None:
    a, b, c = (pool.get(model(tmp_path, name)) for name in "abc")
    assert [e.closed for e in (a, b, c)] == [True, False, False]
    assert pool.get(model(tmp_path, "b")) is b


def test_servers_take_no_place_and_free_nobody(pool: EnginePool, tmp_path: Path) -> None:
    policy = pool.get(model(tmp_path, "policy", "vllm"))
    local = pool.get(model(tmp_path, "judge"))
    far = [pool.get(server(f"s{i}", key_env=f"KEY{i}")) for i in range(4)]
    assert not any(e.closed for e in (policy, local, *far))
    pool.close()
    assert all(e.closed for e in (policy, local, *far))


def test_models_of_one_server_with_different_keys_are_two(pool: EnginePool) -> None:
    one, two = (pool.get(server("same", key_env=key)) for key in ("ONE", "TWO"))
    assert one is not two
    assert pool.get(server("same", key_env="ONE")) is one


def test_weights_in_place_are_never_taken_for_the_models_own(
    pool: EnginePool, tmp_path: Path
) -> None:
    start = model(tmp_path, "policy", "vllm")
    engine = pool.get(start)
    assert pool.with_weights(start, FolderWeights(tmp_path / "now"), "digest") is engine
    assert engine.folder == tmp_path / "now"
    assert pool.get(start) is engine
    assert engine.folder == tmp_path / "policy"
    after = made_from(start, pool, "m1")
    assert pool.get(after) is engine
    assert engine.folder == pool.store.model_path("m1")
    assert not engine.closed


def test_a_reward_model_is_no_weights_of_its_start(pool: EnginePool, tmp_path: Path) -> None:
    start = model(tmp_path, "policy", "vllm")
    engine = pool.get(start)
    reward = pool.get(made_from(start, pool, "rm", reward=True))
    assert reward is not engine
    assert reward.folder == pool.store.model_path("rm")
    assert engine.folder == tmp_path / "policy"


def test_an_engine_whose_weights_failed_is_closed_and_forgotten(
    pool: EnginePool, tmp_path: Path
) -> None:
    start = model(tmp_path, "policy", "vllm")
    engine = pool.get(start)
    engine.breaks = True
    with pytest.raises(EngineError, match="torn file"):
        pool.with_weights(start, FolderWeights(tmp_path / "now"), "digest")
    assert engine.closed
    assert pool.get(start) is not engine


def test_an_engine_without_weights_in_place_says_so(pool: EnginePool, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot take other weights"):
        pool.with_weights(model(tmp_path, "policy"), FolderWeights(tmp_path / "now"), "digest")


@pytest.mark.parametrize("rests", [True, False])
def test_training_gets_the_memory_of_engines_that_cannot_rest(
    pool: EnginePool, tmp_path: Path, rests: bool
) -> None:
    start = model(tmp_path, "policy", "vllm")
    engine, other = pool.get(start), pool.get(model(tmp_path, "judge"))
    engine.rests = rests
    pool.make_room(3)
    assert engine.trained_in == 3
    assert (engine.closed, other.closed) == (not rests, True)
    assert (pool.get(start) is engine) == rests


@pytest.mark.parametrize("key", ["max_model_len", "model", "dtype"])
def test_arguments_that_follow_from_other_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"`{key}` is set from"):
        ModelSpec(path="x", engine="vllm", engine_args={key: 1})


def test_the_same_weights_with_other_settings_are_loaded_once(
    tiny_model: Path, tmp_path: Path
) -> None:
    pool = EnginePool(Store(tmp_path / "run"))

    def asked(**keys: Any) -> Any:
        spec = ModelSpec(path=str(tiny_model), **{"dtype": "float32", **keys})
        return pool.get(Model(f"weights:{tiny_model}", "m", spec))

    policy, judge = asked(), asked(system_prompt="Be brief.", max_context=64)
    assert judge is not policy and judge.model is policy.model
    assert judge.encoding.context == 64 != policy.encoding.context
    said = [{"role": "user", "content": "Hello"}]
    assert judge.render(said) != policy.render(said)
    # Both are in the middle of an answer at once, and the model is as it was afterwards.
    requests = [GenerateRequest(f"{i}", said, Sampling(max_new_tokens=3, seed=i)) for i in range(2)]
    before = [list(e.generate(requests)) for e in (policy, judge)]
    one, other = policy.generate(requests), judge.generate(requests)
    assert [[next(one), *one], [next(other), *other]] == before
    kept = judge.model
    policy.close()
    assert judge.model is kept
    assert asked(dtype="bfloat16").model is not kept
