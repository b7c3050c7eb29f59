"""A model's size is counted from headers and config alone, by hand-computed numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlaif.config.models import ModelSpec
from rlaif.config.training import LoraOptions
from rlaif.engines.model_size import Widths, measure_folder, measure_model

LLAMA = {
    "model.embed_tokens.weight": (100, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.norm.weight": (8,),
    "model.layers.1.mlp.up_proj.weight": (20, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (100, 8),
}
CONFIG = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
}


def write_model(folder: Path, shapes: dict[str, tuple[int, ...]], config: Any = CONFIG) -> Path:
    """A folder whose safetensors have headers alone."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    rows = {n: {"dtype": "BF16", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **rows}).encode()
    file = len(header).to_bytes(8, "little") + header
    (folder / "model.safetensors").write_bytes(file)
    return folder


def test_parameters_layers_and_widths_are_counted(tmp_path: Path) -> None:
    size = measure_folder(write_model(tmp_path, LLAMA))
    assert size is not None
    # 800 + 64 + 32 + 8 + 160 + 8 + 800; a layer of 104 and one of 160; no layer: 1608.
    assert (size.parameters, size.active) == (1872, 1872)
    assert (size.largest_layer, size.outside) == (160, 1608)
    assert size.widths == Widths(2, 8, 20, 8, 4)
    assert size.widths.cached == 2 * 2 * 4


@pytest.mark.parametrize(
    ("lora", "count"),
    [
        # 3 x (8 + 8) + 3 x (4 + 8) + 3 x (20 + 8): no embedding and no head.
        ({"r": 3}, 168),
        ({"r": 3, "target_modules": ["q_proj", "up_proj"]}, 132),
        ({"r": 3, "target_modules": ["proj"]}, 0),
        ({"r": 3, "target_modules": r".*\.(k|up)_proj"}, 120),
        # One magnitude more for each row.
        ({"r": 3, "dora": True}, 168 + 32),
    ],
)
def test_adapters_are_counted_as_peft_makes_them(
    tmp_path: Path, lora: dict[str, Any], count: int
) -> None:
    size = measure_folder(write_model(tmp_path, LLAMA))
    assert size is not None and size.adapters(LoraOptions(**lora)) == count


MIXTURE = {
    "model.layers.0.mlp.experts.0.up_proj.weight": (10, 10),
    "model.layers.0.mlp.experts.1.up_proj.weight": (10, 10),
    "model.layers.1.mlp.experts.gate_up": (4, 10, 5),
    "model.layers.1.mlp.shared_experts.up_proj.weight": (10, 3),
}


@pytest.mark.parametrize(
    ("config", "active"),
    [
        # 400 in experts, of which one in four is used, and 30 that all use.
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, 130),
        ({"text_config": {"n_routed_experts": 4, "num_experts_per_tok": 3}}, 330),
        ({"num_local_experts": 8}, None),
    ],
)
def test_of_a_mixture_what_a_token_goes_through_is_counted(
    tmp_path: Path, config: dict[str, Any], active: int | None
) -> None:
    size = measure_folder(write_model(tmp_path, MIXTURE, config))
    assert size is not None and (size.parameters, size.active) == (430, active)


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("8B", 8 * 10**9),
        ("8.0e9", 8 * 10**9),
        ("8e9", 8 * 10**9),
        ("1.5B", 15 * 10**8),
        ("350M", 350 * 10**6),
        ("70 B", 70 * 10**9),
        (8.0e9, 8 * 10**9),
        (123, 123),
    ],
)
def test_a_model_that_is_not_here_has_the_parameters_that_are_stated(
    written: Any, count: int
) -> None:
    spec = ModelSpec(path="org/absent", parameters=written)
    size = measure_model(spec)
    assert size is not None and (size.parameters, size.active) == (count, count)
    assert size.adapters(LoraOptions()) is None and size.widths is None


@pytest.mark.parametrize("written", ["8 billion", "B", "", "-3B", 0, -1, 1e16, float("inf")])
def test_what_is_no_number_of_parameters_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError, match="parameters"):
        ModelSpec(path="org/absent", parameters=written)


def test_a_folder_that_is_here_is_counted_whatever_is_stated(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "here", LLAMA)
    size = measure_model(ModelSpec(path=str(folder), parameters=7))
    assert size is not None and size.parameters == 1872
    (folder / "model.safetensors").write_bytes(b"x" * 40)
    damaged = measure_model(ModelSpec(path=str(folder)))
    assert damaged is None and measure_model(ModelSpec(path="org/absent")) is None


def test_no_tensor_library_is_loaded_for_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "here", LLAMA)
    code = (
        "import sys; from pathlib import Path; from rlaif.engines.model_size import measure_folder;"
        f"assert measure_folder(Path({str(folder)!r})).parameters == 1872;"
        "assert not {'torch', 'transformers', 'safetensors'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
