"""vLLM answers with an adapter that training exported: what it writes and the log-probs of it are
those of the merged weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="VLLM IS NOT INSTALLED HERE: make test-vllm")

from rlaif.config.models import ModelSpec
from rlaif.config.training import LoraOptions
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.engines.build import load_engine
from rlaif.train.checkpoint import export, from_masters
from rlaif.train.loading import load_module
from rlaif.train.model import prepare

CPU = torch.device("cpu")


def exported(start: Path, out: Path, lora: LoraOptions) -> Path:
    """An adapter with matrices large enough to change what is written."""
    torch.manual_seed(2)
    model = prepare(
        load_module(start, CPU, False, from_masters(start, lora)), CPU, torch.float32, lora
    )
    with torch.no_grad():
        for name in sorted(model.masters):
            master = model.masters[name]
            master.add_(0.06 * torch.randn(master.shape))
    export(model, start, out, lora)
    return out


def answers(spec: ModelSpec, folder: Path) -> list[tuple[str, list[float]]]:
    engine = load_engine(spec, folder, "m")
    try:
        asked = [
            GenerateRequest(
                f"r{i}",
                [{"role": "user", "content": f"Say something about the number {i}."}],
                Sampling(max_new_tokens=12, temperature=0, seed=i),
            )
            for i in range(4)
        ]
        made = {r.request_id: r for batch in engine.generate(asked) for r in batch}
        return [(made[f"r{i}"].text, made[f"r{i}"].logprobs) for i in range(4)]
    finally:
        engine.close()


def test_vllm_writes_with_an_exported_adapter_what_the_merged_weights_write(
    model_folder: Path, tmp_path: Path
) -> None:
    lora = LoraOptions(r=5, alpha=7.0, export="both")
    both = exported(model_folder, tmp_path / "both", lora)
    keys = {"path": str(model_folder), "dtype": "float32", "max_context": 256}
    adapter = str(both / "adapter")
    plain = answers(ModelSpec(**keys, engine="hf"), model_folder)
    wanted = answers(ModelSpec(**keys, engine="hf", adapter=adapter), model_folder)
    found = answers(ModelSpec(**keys, engine="vllm", adapter=adapter), model_folder)
    for (_, ours), (_, without) in zip(wanted, plain, strict=True):
        assert ours[0] != pytest.approx(without[0], abs=0.02)
    assert [text for text, _ in found] == [text for text, _ in wanted]
    for (_, ours), (_, theirs) in zip(wanted, found, strict=True):
        assert theirs == pytest.approx(ours, abs=2e-3)
