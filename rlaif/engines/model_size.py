"""How large a model is, from its folder's config.json and safetensors headers: no tensor library
is loaded, and no weight is read."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.config.models import ModelSpec
from rlaif.config.training import LoraOptions
from rlaif.engines.model_folders import METADATA, locate

BUILTIN_PARAMETERS = {"builtin/smollm2-135m-instruct": 134_515_008}
"""Of models that are converted when they are first used."""
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
"""The number of a layer in a tensor's name."""
_EXPERT = re.compile(r"\.experts\.")
"""In the names of what only some tokens go through; experts that all go through are `shared`."""
_OUTSIDE = re.compile(r"(^|\.)(embed_tokens|wte|wpe|lm_head|embed_out|score|embed_in)$")
"""Matrices that are no linear layers, and heads, which take no adapter."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k")


@dataclass(frozen=True)
class Widths:
    """What the memory of one token depends on, from the config. `inner` is the width of the MLPs
    that a token goes through, `keys` that of a layer's keys, and of its values."""

    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int

    @property
    def cached(self) -> int:
        """Numbers that are kept of a token which may be attended to: keys and values."""
        return 2 * self.layers * self.keys


@dataclass(frozen=True)
class ModelSize:
    """`parameters` of the whole model; `active` those that one token goes through, None of a
    mixture whose config does not say how many experts that are. `largest_layer` and `outside` are
    what a sharded model gathers at once, `matrices` the shapes of its linear layers by name. Only
    `parameters` are known of a model that is not here."""

    parameters: int
    active: int | None
    largest_layer: int | None = None
    outside: int | None = None
    matrices: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    widths: Widths | None = None

    def adapters(self, options: LoraOptions) -> int | None:
        """Parameters of the low-rank adapters; None where the linear layers are not known."""
        if not self.matrices:
            return None
        chosen = [shape for name, shape in self.matrices.items() if _is_target(name, options)]
        extra = sum(rows for rows, _ in chosen) if options.dora else 0
        return sum(options.r * (rows + columns) for rows, columns in chosen) + extra


def _is_target(name: str, options: LoraOptions) -> bool:
    """Whether peft puts an adapter on a linear layer."""
    targets = options.target_modules
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def measure_model(spec: ModelSpec) -> ModelSize | None:
    """The size of a model in this machine's memory: counted where its folder is here, else as its
    `parameters` say. None where neither is known."""
    folder = locate(spec.path)
    found = None if folder is None else measure_folder(folder)
    stated = spec.parameters or BUILTIN_PARAMETERS.get(spec.path)
    if found is not None or stated is None:
        return found
    return ModelSize(stated, stated)


def measure_folder(folder: Path) -> ModelSize | None:
    """The size of the model in a folder; None where it holds no readable safetensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found = _read_shapes(path)
        if found is None:
            return None
        shapes |= found
    if not shapes:
        return None
    config = _read_config(folder)
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    layers: Counter[str] = Counter()
    for name, count in counts.items():
        number = _LAYER.search(name)
        layers[number[1] if number else ""] += count
    outside = layers.pop("", 0)
    matrices = {name.removesuffix(".weight"): s for name, s in shapes.items() if len(s) == 2}
    return ModelSize(
        sum(counts.values()),
        _count_active(counts, config),
        max(layers.values(), default=0),
        outside,
        {n: (s[0], s[1]) for n, s in matrices.items() if not _OUTSIDE.search(n)},
        _read_widths(config),
    )


def _count_active(counts: Mapping[str, int], config: Mapping[str, Any]) -> int | None:
    total = sum(counts.values())
    experts = sum(count for name, count in counts.items() if _EXPERT.search(name))
    if not experts:
        return total
    every, chosen = _first(config, _EXPERTS), _first(config, _CHOSEN)
    if every is None or chosen is None:
        return None
    return total - round(experts * (1 - min(1.0, chosen / every)))


def _read_widths(config: Mapping[str, Any]) -> Widths | None:
    layers = _first(config, ("num_hidden_layers", "n_layer", "num_layers"))
    hidden = _first(config, ("hidden_size", "n_embd", "d_model"))
    heads = _first(config, ("num_attention_heads", "n_head", "num_heads"))
    if layers is None or hidden is None or heads is None:
        return None
    size = _first(config, ("head_dim",)) or hidden // heads
    groups = _first(config, ("num_key_value_heads",)) or heads
    inner = _first(config, ("intermediate_size", "n_inner", "ffn_dim")) or 4 * hidden
    expert = _first(config, ("moe_intermediate_size",))
    chosen = _first(config, _CHOSEN)
    if chosen is not None:
        inner = max(inner, chosen * expert) if expert is not None else chosen * inner
    return Widths(layers, hidden, inner, heads * size, groups * size)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    found = (config.get(name) for name in names)
    return next((n for n in found if isinstance(n, int) and n > 0), None)


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        whole = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(whole, dict):
        return {}
    # Models of several modalities have the language model's numbers in a part of their own.
    text = whole.get("text_config")
    return whole | text if isinstance(text, dict) else whole


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]] | None:
    """The tensors' shapes by name; None where the file is no safetensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            return None
        try:
            header = json.loads(file.read(length))
            return {n: tuple(row["shape"]) for n, row in header.items() if n != METADATA}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
