"""What vLLM is started with, and its server's engine over a stand-in: no vLLM is needed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError, EngineError
from rlaif.engines.base import GenerateRequest, Model, Reloadable, Sampling, ScoreRequest
from rlaif.engines.build import known_capabilities
from rlaif.engines.checkpoints import FolderWeights
from rlaif.engines.remote.cache import RequestCache, cache_path
from rlaif.engines.remote.meter import Account
from rlaif.engines.vllm import vllm_options, vllm_server
from rlaif.engines.vllm.vllm_server import VllmServerEngine
from rlaif.pipeline.experiment_file import Experiment
from tests.servers import standin
from tests.support.processes import children, gone

KEEPER = "rlaif.engines.vllm.keeper"
LABELS = {"yes": ("Yes", " Yes"), "no": ("No", " No")}


@pytest.fixture
def engine(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VllmServerEngine]:
    real = vllm_server.command

    def command(model: str, folder: Path, *rest: Any) -> list[str]:
        return [sys.executable, standin.__file__, *real(model, folder, *rest)[3:]]

    monkeypatch.setattr(vllm_server, "command", command)
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    # What a keeper that is killed leaves there goes with the test.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    spec = ModelSpec(path=str(tiny_model), engine="vllm-server", limits={"retries": 1})
    made = VllmServerEngine(spec, tiny_model, "judge", Account(tmp_path / "run/spend.jsonl"))
    yield made
    made.close()


def ask(name: str, text: str = "Hello") -> GenerateRequest:
    return GenerateRequest(name, [{"role": "user", "content": text}], Sampling(max_new_tokens=9))


def answer(engine: VllmServerEngine, text: str = "Hello") -> str:
    [[result]] = engine.generate([ask("r", text)])
    assert result.error is None
    return result.text


def test_the_first_request_starts_the_server_and_close_ends_it(
    engine: VllmServerEngine, tmp_path: Path, tiny_model: Path
) -> None:
    assert not children(KEEPER)
    assert answer(engine) == f"{tiny_model.name} Hello"
    assert (tmp_path / "run/servers/judge.log").read_text().startswith("pids ")
    [keeper] = children(KEEPER)
    pids = [keeper.pid, *(process.pid for process in keeper.children(recursive=True))]
    assert len(pids) == 3
    engine.close()
    assert not children(KEEPER)
    assert gone(pids, 2)


def test_label_probabilities_ask_for_the_labels_own_tokens(engine: VllmServerEngine) -> None:
    user = ask("r").messages
    tokens = {
        t
        for forms in LABELS.values()
        for f in forms
        for t in engine.encoding.tokenizer(f)["input_ids"]
    }
    [[result]] = engine.score([ScoreRequest("s", user, labels=LABELS)])
    # The stand-in's log-probs are minus the number of tokens that it was asked for.
    assert result.label_probs["yes"] == pytest.approx(2.718281828 ** -len(tokens))


def test_other_weights_are_taken_in_place_under_another_key_of_the_cache(
    engine: VllmServerEngine, tiny_model: Path, tmp_path: Path
) -> None:
    assert isinstance(engine, Reloadable)
    first, digest = answer(engine), engine.weights_hash
    started = [keeper.pid for keeper in children(KEEPER)]
    other = tmp_path / "other"
    other.symlink_to(tiny_model)
    engine.load_weights(FolderWeights(other), "others")
    assert answer(engine) == "other Hello"
    engine.load_weights(FolderWeights(tiny_model), digest)
    assert answer(engine) == first
    # Not only from the cache.
    assert answer(engine, "Again") == f"{tiny_model.name} Again"
    assert [keeper.pid for keeper in children(KEEPER)] == started
    # The second one of the first weights came from the cache.
    cache = RequestCache(cache_path(), 1 << 30)
    found = {row["base_url"]: row["answers"] for row in cache.stats()["models"]}
    cache.close()
    assert found == {f"weights:{digest}": 2, "weights:others": 1}


@pytest.mark.parametrize("why", ["not taken", "other tokens"])
def test_a_server_that_cannot_take_weights_is_started_again_with_them(
    engine: VllmServerEngine,
    tiny_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    why: str,
) -> None:
    answer(engine)
    [keeper] = children(KEEPER)
    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    if why == "not taken":
        (other / "torn").touch()
    else:
        (other / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    caplog.set_level("INFO")
    engine.load_weights(FolderWeights(other), "others")
    refused = "has not taken the weights: /update_weights answers 500"
    assert (refused in caplog.text) == (why == "not taken")
    assert "started again with other weights" in caplog.text
    assert answer(engine) == "other Hello"
    assert [again.pid for again in children(KEEPER)] != [keeper.pid]


def test_a_server_that_has_ended_is_started_again(
    engine: VllmServerEngine, caplog: pytest.LogCaptureFixture
) -> None:
    answer(engine)
    [keeper] = children(KEEPER)
    keeper.kill()
    keeper.wait()
    # As vLLM's own processes do when their parent has gone.
    pids = engine.log.read_text().split()[1:3]
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    assert answer(engine, "Again").endswith("Again")
    assert "started again" in caplog.text


def test_the_command_says_what_the_model_and_its_adapter_are(tmp_path: Path) -> None:
    values = {"dtype": "float32", "enforce_eager": True, "async_scheduling": False, "seed": 0}
    values |= {"rope_scaling": {"factor": 2}, "quantization": None, "enable_lora": True}
    plain = vllm_server.command("mine", tmp_path, values, None, 81)
    assert plain[:3] == [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"]
    given = dict(pairwise(plain))
    assert (given["--dtype"], given["--seed"], given["--port"]) == ("float32", "0", "81")
    assert (given["--host"], given["--served-model-name"]) == ("127.0.0.1", "mine")
    assert given["--model"] == str(tmp_path)
    assert json.loads(given["--rope-scaling"]) == {"factor": 2}
    assert "--enforce-eager" in plain
    assert "--no-async-scheduling" in plain
    assert "--quantization" not in plain
    # The model's own generation_config.json decides nothing.
    assert json.loads(given["--override-generation-config"])["top_p"] == 1.0
    adapted = vllm_server.command("mine", tmp_path, values, tmp_path / "a=b", 81)
    given = dict(pairwise(adapted))
    assert json.loads(given["--lora-modules"]) == {"name": "mine", "path": str(tmp_path / "a=b")}
    assert given["--served-model-name"] != "mine"


def test_the_rank_that_vllm_is_made_ready_for_holds_the_adapter(tmp_path: Path) -> None:
    spec = ModelSpec(path="m", engine="vllm")
    for rank, wanted in ((4, 8), (16, 16), (17, 32), (600, 600)):
        config = {"r": 2, "rank_pattern": {"q_proj": rank}}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert vllm_options.options(spec, 99, False, tmp_path)["max_lora_rank"] == wanted
    assert "enable_lora" not in vllm_options.options(spec, 99, False, None)


@pytest.mark.parametrize(
    ("cores", "processes", "binding"),
    [
        ({1, 0}, 1, "0,1"),
        (range(4), 2, "0,1|2,3"),
        (range(5), 2, "0,1|2,3"),
        (range(2), 3, "nobind"),
    ],
)
def test_each_process_computes_on_cores_of_its_own(
    cores: Iterable[int], processes: int, binding: str
) -> None:
    assert vllm_options.binding(cores, processes) == binding


def test_settings_of_the_environment_are_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(path="m", engine="vllm", engine_args={"pipeline_parallel_size": 2})
    values = vllm_options.environment(spec, False, logged="INFO")
    assert values["VLLM_LOGGING_LEVEL"] == "INFO"
    assert values["VLLM_CPU_OMP_THREADS_BIND"] == vllm_options.binding(os.sched_getaffinity(0), 2)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert "VLLM_LOGGING_LEVEL" not in vllm_options.environment(spec, False, logged="INFO")


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def on_gpus(*gpus: int, **keys: Any) -> ModelSpec:
    args = {"tensor_parallel_size": len(gpus)}
    return ModelSpec(path="m", engine="vllm", gpus=list(gpus), engine_args=args, **keys)


@pytest.mark.usefixtures("four_gpus")
def test_gpus_are_numbers_among_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vllm_options.environment(on_gpus(3, 1), True)["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert "CUDA_VISIBLE_DEVICES" not in vllm_options.environment(ModelSpec(path="m"), True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8f,6,7")
    with vllm_options.within(vllm_options.environment(on_gpus(1, 2), True)):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-8f,6"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,GPU-8f,6,7"


@pytest.mark.usefixtures("four_gpus")
def test_absent_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"names \[4\], and numbers 0 to 3 are here"):
        vllm_options.visible_gpus(on_gpus(0, 4))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match="no GPU is here"):
        vllm_options.visible_gpus(on_gpus(0))


@pytest.mark.parametrize(
    ("spec", "stays"),
    [
        (ModelSpec(path="m", engine="vllm"), False),
        (on_gpus(0), False),
        (on_gpus(2, 1), True),
        (on_gpus(2, 1, device="cuda:1"), False),
    ],
)
def test_a_model_on_gpus_of_its_own_stays_while_others_train(
    spec: ModelSpec, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vllm_options.trains_beside(spec, True) == stays
    assert vllm_options.trains_beside(spec, False)
    # One of two training processes is on GPU 1, and one of three on GPU 2.
    assert not vllm_options.trains_beside(spec, True, 2)
    apart = on_gpus(2, device="cuda")
    assert vllm_options.trains_beside(apart, True, 2)
    assert not vllm_options.trains_beside(apart, True, 3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"engine": "hf", "gpus": [0]}, "`gpus` is read by engine vllm or vllm-server"),
        ({"gpus": []}, "must be numbers of different GPUs"),
        ({"gpus": [1, 1]}, "must be numbers of different GPUs"),
        ({"gpus": [-1]}, "greater than or equal to 0"),
        ({"gpus": [0, 1]}, "names 2 GPUs and the model uses 1"),
        (
            {"gpus": [0], "engine_args": {"tensor_parallel_size": "2"}},
            "must be a whole number from 1",
        ),
        ({"engine_args": {"port": 1}}, "`port` is set from the start of the server"),
        ({"engine_args": {"enable_lora": True}}, "`enable_lora` is set from `adapter`"),
        ({"system_prompt": "drop"}, "the server renders"),
        ({"base_url": "http://host/v1"}, "`base_url` is read by engine openai"),
        ({"engine": "openai", "adapter": "a"}, "`adapter` is read by engine hf"),
        ({"engine": "vllm", "start_seconds": 5}, "`start_seconds` is read by engine vllm-server"),
    ],
)
def test_settings_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSpec.model_validate({"path": "m", "engine": "vllm-server"} | keys)


def together(first: ModelSpec, second: ModelSpec) -> Experiment:
    models = {"policy": first, "judge": second}
    data = {"name": "x", "models": models, "prompts": {"path": "p"}, "steps": [{"sample": {}}]}
    return Experiment.model_validate(data)


def test_two_models_on_one_gpu_must_say_how_much_of_it_they_take() -> None:
    assert together(on_gpus(0), on_gpus(1)).models["judge"].gpus == [1]
    with pytest.raises(ValidationError, match="GPU 1 is among the `gpus` of 'policy' and 'judge'"):
        together(on_gpus(0, 1), on_gpus(1))
    keys = {"path": "m", "engine": "vllm-server", "gpus": [0]}
    half = ModelSpec(**keys, engine_args={"gpu_memory_utilization": 0.5})
    most = ModelSpec(**keys, engine_args={"gpu_memory_utilization": 0.6})
    assert together(half, half)
    with pytest.raises(ValidationError, match="sum of at most 1"):
        together(half, most)


def test_what_the_server_is_sent_is_part_of_the_models_identity() -> None:
    def identity(**keys: Any) -> list[Any]:
        return Model("weights:x", "m", ModelSpec(path="m", engine="vllm-server", **keys)).identity()

    plain = identity()
    changed = [{"extra_body": {"min_p": 0.1}}, {"samples_per_call": 4}, {"engine_args": {"a": 1}}]
    assert all(identity(**keys) != plain for keys in changed)
    same: list[dict[str, Any]] = [{"gpus": [0]}, {"cache": False}, {"start_seconds": 5}]
    assert all(identity(**keys) == plain for keys in same)


def test_without_vllm_the_package_is_named(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    spec = ModelSpec(path=str(tiny_model), engine="vllm-server")
    with pytest.raises(EngineError, match="pip install vllm"):
        vllm_server.load(spec, tiny_model, "m", Account())


def test_beside_an_adapter_vllm_gives_no_log_probs_of_a_text(tiny_model: Path) -> None:
    plain, adapted = (
        known_capabilities(ModelSpec(path=str(tiny_model), engine="vllm", adapter=adapter))
        for adapter in (None, "adapters/judge")
    )
    assert plain is not None and adapted is not None
    assert plain - adapted == {"token_logprobs"}
