"""What engines are started with: every setting, folder, name and account is one of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlaif.config.models import ModelSpec
from rlaif.core.store import Store
from rlaif.engines import build
from rlaif.engines.base import GenerateRequest, Model, ModelWeights, Sampling, ScoreRequest
from rlaif.engines.build import EnginePool, known_capabilities, load_engine
from rlaif.engines.checkpoints import FolderWeights
from rlaif.engines.fake import FakeEngine, FakeScript
from rlaif.engines.fake import load as load_fake
from rlaif.engines.remote.meter import Account
from rlaif.engines.vllm import vllm_options

URL = "http://127.0.0.1:9/v1"


class Reloading:
    """An engine that takes weights in place, and says what it was given."""

    def __init__(self, spec: ModelSpec, folder: Any, name: str, account: Any):
        self.spec, self.given, self.closed = spec, [(folder, name, account)], False
        self.loaded: list[Any] = []

    def load_weights(self, weights: ModelWeights, digest: str) -> None:
        self.loaded.append((weights.write(), digest))

    def rest(self, processes: int = 1) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def model(tmp_path: Path, name: str, engine: str = "vllm") -> Model:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(name.encode())
    spec = ModelSpec(path=str(folder), engine=engine)
    return Model(f"weights:{name}", f"label {name}", spec)


def test_the_pool_starts_each_engine_with_its_own_folder_name_and_the_runs_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "load_engine", Reloading)
    monkeypatch.setattr(build, "model_hash", lambda folder, spec: ("hash of", folder, spec))
    store = Store(tmp_path / "run")
    pool = EnginePool(store, budget=2.5)
    assert pool.account.budget == 2.5
    policy = model(tmp_path, "policy")
    engine: Any = pool.get(policy)
    assert engine.given == [(tmp_path / "policy", "label policy", pool.account)]
    # The weights of a training go into the engine of its start, under their own hash.
    made = Model("train:m1", "M1", policy.spec, "m1")
    out = store.model_path("m1")
    out.mkdir(parents=True)
    assert pool.get(made) is engine
    assert engine.loaded == [(out, ("hash of", out, policy.spec))]
    assert pool.with_weights(made, FolderWeights(tmp_path / "now"), "digest") is engine
    assert engine.loaded[-1] == (tmp_path / "now", "digest")
    server = Model("s", "far", ModelSpec(path="m", engine="openai", base_url=URL))
    far: Any = pool.get(server)
    assert far.given == [(None, "far", pool.account)]
    # A pool beside it spends from the same budget; what it asks is ended by itself alone.
    other = pool.beside()
    assert other.store is store and other.account is not pool.account
    assert other.account.meters is not pool.account.meters
    pool.account.spend("far", 1.5)
    assert other.account.hold(1.25) is None and other.account.hold(0.75)
    near: Any = other.get(server)
    assert near is not far
    other.close()
    assert (near.closed, far.closed) == (True, False)


def test_an_engine_of_ones_own_gets_its_settings_folder_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("own_engines")
    vars(module)["Mine"] = lambda *given: given
    monkeypatch.setitem(sys.modules, "own_engines", module)
    account = Account()
    spec = ModelSpec(path="somewhere", engine="own_engines:Mine")
    found: Any = load_engine(spec, tmp_path, "mine", account)
    # Only servers are on the account.
    assert found == (spec, tmp_path, "mine")
    kind = build.ENGINES["openai"]
    assert kind.accounted and not build.ENGINES["hf"].accounted
    monkeypatch.setitem(
        build.ENGINES,
        "openai",
        build.EngineKind("own_engines:Mine", kind.capabilities, accounted=True),
    )
    far = ModelSpec(path="m", engine="openai", base_url=URL)
    told: Any = load_engine(far, None, "far", account)
    assert told == (far, None, "far", account)


def test_a_scripted_engine_takes_its_context_thinking_and_seed(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text(
        "default: none\n"
        "rules:\n"
        "  - {match: fruit, replies: [one, two, three], labels: {'yes': 0.5, 'no': 0.125}}\n"
        "  - {match: bird, replies: ['<a>Hm.</a>Four five six']}\n"
    )
    thinking = {"markers": [["<a>", "</a>"]]}
    keys: Any = {"script": str(script), "max_context": 9, "thinking": thinking}
    engine: Any = load_fake(ModelSpec(path="none", engine="fake", **keys), None, "scripted")
    assert (engine.name, engine.context) == ("scripted", 9)

    def ask(text: str, new: int = 3, seed: int = 0, **sampling: Any) -> Any:
        turns: Any = [{"role": "user", "content": text}]
        request = GenerateRequest("r", turns, Sampling(new, seed=seed, **sampling))
        ((found,),) = engine.generate([request])
        return found

    assert [ask("A fruit?", seed=n).text for n in (0, 1, 5)] == ["one", "two", "three"]
    cut = ask("A bird?", 2)
    assert (cut.text, cut.reasoning, cut.finish_reason) == ("Four five"[:9], "Hm.", "length")
    stopped = ask("A bird?", 3, stop=(" six",))
    assert (stopped.text, stopped.finish_reason) == ("Four five", "stop")
    refused = ask("A fruit of seven words or even more?", 3)
    assert (refused.finish_reason, refused.error is None) == ("failed", False)
    turns: Any = [{"role": "user", "content": "A fruit?"}]
    labels = {"no": ("No",), "yes": ("Yes",)}
    ((scored,),) = engine.score([ScoreRequest("s", turns, labels=labels)])
    assert (scored.label_probs, scored.label_mass) == ({"no": 0.125, "yes": 0.5}, 0.625)
    bare = load_fake(ModelSpec(path="none", engine="fake", **keys | {"script": None}), None, "bare")
    assert (bare.name, bare.context, bare.thinking) == ("bare", 9, engine.thinking)
    assert bare.weights_hash == FakeEngine(FakeScript()).weights_hash != engine.weights_hash


def test_vllm_is_started_with_the_models_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlaif.kernels.device.has_fast_bf16", lambda kind: kind == "cuda")
    spec = ModelSpec(path="m", engine="vllm", engine_args={"max_num_seqs": 7, "seed": 3})
    shared = {
        "max_model_len": 321,
        "enable_prefix_caching": True,
        "seed": 3,
        "logprobs_mode": "raw_logprobs",
        "disable_log_stats": True,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "use_tqdm_on_load": False,
        "max_num_seqs": 7,
    }
    on_gpu = {"dtype": "bfloat16", "enforce_eager": False}
    on_cpu = {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}
    assert vllm_options.options(spec, 321, True, None) == shared | on_gpu
    assert vllm_options.options(spec, 321, False, None) == shared | on_cpu
    fixed = spec.model_copy(update={"dtype": "float32"})
    assert vllm_options.options(fixed, 321, True, None)["dtype"] == "float32"
    (tmp_path / "adapter_config.json").write_text('{"r": 9}')
    adapted = vllm_options.options(spec, 321, True, tmp_path)
    lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": 16}
    assert adapted == shared | on_gpu | lora
    # The environment: of a CPU its cores for as many processes, of GPUs those of the model.
    for key in [key for key in os.environ if key.startswith(("VLLM_", "CUDA_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6, 7})
    two = ModelSpec(path="m", engine="vllm", engine_args={"tensor_parallel_size": 2})
    every = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_NO_USAGE_STATS": "1"}
    assert vllm_options.environment(two, False, "INFO") == every | {
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_CPU_OMP_THREADS_BIND": "4,5|6,7",
        "VLLM_CPU_KVCACHE_SPACE": "2",
    }
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    placed = two.model_copy(update={"gpus": [3, 1]})
    assert vllm_options.environment(placed, True) == {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "CUDA_VISIBLE_DEVICES": "3,1",
    }


def test_what_a_model_can_do_is_known_from_its_engine_folder_and_adapter(tmp_path: Path) -> None:
    plain = model(tmp_path, "plain").spec
    reward = model(tmp_path, "reward").spec
    (tmp_path / "reward/config.json").write_text(
        '{"architectures": ["LlamaForSequenceClassification"]}'
    )
    vllm = build.ENGINES["vllm"].capabilities
    assert known_capabilities(plain) == vllm
    assert known_capabilities(reward) == {"reward"}
    adapted = plain.model_copy(update={"adapter": "a"})
    assert known_capabilities(adapted) == vllm - {"token_logprobs"}
    local = adapted.model_copy(update={"engine": "hf"})
    assert known_capabilities(local) == build.ENGINES["hf"].capabilities
    absent = plain.model_copy(update={"path": str(tmp_path / "absent")})
    assert known_capabilities(absent) is None
