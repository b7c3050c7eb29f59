"""LoRA adapters beside a model: the same answers as peft's, another identity, clear refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError, EngineError
from rlaif.engines.base import ScoreRequest
from rlaif.engines.build import load_engine
from rlaif.engines.model_folders import resolve
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import model_key, prepare
from tests.support.adapters import adapter


@pytest.fixture(scope="module")
def spec(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = adapter(tiny_model, tmp_path_factory.mktemp("lora"))
    return ModelSpec(path=str(tiny_model), adapter=str(folder), dtype="float32", device="cpu")


def test_log_probs_are_those_of_peft_with_the_adapter(spec: ModelSpec, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    engine = load_engine(spec, tiny_model, "m")
    messages = [{"role": "user", "content": "Name a river."}]
    ask = ScoreRequest("s", messages, continuation_ids=[30, 40, 50])
    [[result]] = engine.score([ask])
    prompt = engine.render(messages)[1]
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert spec.adapter is not None
    whole = PeftModel.from_pretrained(base, spec.adapter)
    with torch.inference_mode():
        logits = whole(input_ids=torch.tensor([[*prompt, 30, 40, 50]])).logits[0].log_softmax(-1)
    wanted = [float(logits[len(prompt) - 1 + i, t]) for i, t in enumerate((30, 40, 50))]
    assert result.token_logprobs == pytest.approx(wanted, abs=1e-4)
    plain = load_engine(spec.model_copy(update={"adapter": None}), tiny_model, "plain")
    [[other]] = plain.score([ask])
    assert result.token_logprobs != pytest.approx(other.token_logprobs, abs=1e-2)
    assert engine.weights_hash != plain.weights_hash


def test_the_adapters_files_are_part_of_the_models_identity(
    spec: ModelSpec, tmp_path: Path
) -> None:
    assert spec.adapter is not None
    copied = tmp_path / "copied"
    shutil.copytree(spec.adapter, copied)
    key = model_key(spec, True)
    again = spec.model_copy(update={"adapter": str(copied)})
    assert model_key(again, True) == key
    assert model_key(spec.model_copy(update={"adapter": None}), True) != key
    config = copied / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    assert model_key(again, True) != key


def test_a_folder_without_a_lora_adapter_is_refused(spec: ModelSpec, tmp_path: Path) -> None:
    wrong = spec.model_copy(update={"adapter": str(tmp_path)})
    with pytest.raises(EngineError, match=r"no adapter_config.json and no adapter_model"):
        model_key(wrong, True)
    assert spec.adapter is not None
    shutil.copytree(spec.adapter, tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "r": 1}))
    with pytest.raises(EngineError, match="its type is IA3"):
        model_key(wrong, True)
    with pytest.raises(EngineError, match="this folder as `adapter`"):
        resolve(str(tmp_path))


def test_an_adapter_of_another_model_is_refused(
    spec: ModelSpec, tiny_model: Path, tmp_path: Path
) -> None:
    assert spec.adapter is not None
    shutil.copytree(spec.adapter, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["target_modules"] = ["query_key_value"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    wrong = spec.model_copy(update={"adapter": str(tmp_path)})
    with pytest.raises(EngineError, match="does not fit"):
        load_engine(wrong, tiny_model, "m")


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"adapter": "HERE"}, "starts from a whole checkpoint"),
        ({"engine": "vllm-server"}, "use engine vllm or hf for the policy"),
    ],
)
def test_what_training_cannot_start_from_is_refused_before_anything_runs(
    spec: ModelSpec,
    tmp_path: Path,
    tiny_model: Path,
    write_experiment: Callable[..., Path],
    models: dict[str, str],
    message: str,
) -> None:
    policy = {"path": str(tiny_model)} | models
    if "adapter" in policy:
        policy["adapter"] = str(spec.adapter)
    train = {"method": "grpo", "rewards": {"checks": 1.0}, "rollouts": 1}
    path = write_experiment(
        tmp_path,
        tiny_model,
        models={"policy": policy},
        judges=[{"id": "checks", "kind": "rules"}],
        steps=[{"train": train}],
    )
    with pytest.raises(ConfigError, match=message):
        make_plan(prepare(path))
