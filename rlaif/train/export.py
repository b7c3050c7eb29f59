"""What leaves training: a finished checkpoint, or the weights of the moment for a sampler."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlaif.config.training import LoraOptions
from rlaif.core.checksums import NAME, publish_folder
from rlaif.engines.checkpoints import (
    copy_text_files,
    is_reward,
    load_classifier,
    pad_apart_from_end,
    read_at_last,
    save,
    write_checkpoint,
    write_older_names,
)
from rlaif.engines.local.adapters import MEMBERS
from rlaif.engines.local.distance import Region, save_region
from rlaif.engines.merging import ADAPTER, earlier_adapter, save_adapter, write_on_base
from rlaif.kernels.device import release_freed_memory
from rlaif.kernels.heads import Head, save_head
from rlaif.train.depth import cut
from rlaif.train.loading import load_module
from rlaif.train.model import TrainModel, add_lora, causal


@torch.no_grad()
def export(
    model: TrainModel,
    start: Path,
    out: Path,
    lora: LoraOptions | None,
    region: Region | None = None,
) -> None:
    """Write `out`, complete or not at all: a bf16 checkpoint with its tokenizer and fp32 masters,
    or with `lora` what its `export` says; beside a reward model the `region` of its training
    answers.

    Adapters are merged in fp32 into the weights of `start`. The model cannot be used afterwards. A
    sharded one must have been gathered.
    """
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    masters, module = model.masters, model.module
    if lora is not None or model.sharded:
        del module
        module = _reload_exact(model, start, lora, is_reward(causal(model.module)))
        masters = dict(module.named_parameters())
    if lora is not None and lora.export != "merged":
        _write_adapter(module, start, temporary, lora)
    if lora is None or lora.export != "adapter":
        if lora is not None:
            module = module.merge_and_unload()
            masters = dict(module.named_parameters())
        write_checkpoint(module, masters, start, temporary)
    if region is not None:
        save_region(region, temporary)
    publish_folder(temporary, out)


def _write_adapter(module: Any, start: Path, out: Path, lora: LoraOptions) -> None:
    """The module's adapter: beside the merged weights to come, or as all that there is in `out`,
    with the tokenizer."""
    folder = out / ADAPTER if lora.export == "both" else out
    save_adapter(module, folder)
    write_on_base(folder, start, lora)
    copy_text_files(start, folder)
    if is_reward(causal(module)):
        pad_apart_from_end(causal(module), folder)
    write_older_names(folder)


def _reload_exact(model: TrainModel, start: Path, lora: LoraOptions | None, reward: bool) -> Any:
    """`start` loaded anew in fp32, with the masters of `model`, whose own module is let go."""
    model.module = model.root = None
    release_freed_memory()
    exact = from_masters(start, lora)
    module = load_module(start, torch.device("cpu"), reward, exact)
    if lora is not None:
        module = add_lora(module, lora)
    for name, param in module.named_parameters():
        if name in model.masters:
            param.copy_(model.masters[name])
    return module


def from_masters(start: Path, lora: LoraOptions | None) -> bool:
    """Whether training starts from the fp32 masters of `start` where it has some. An adapter that
    is kept is trained on the weights that it will be used with, which are those of the checkpoint,
    unless `start` is itself exactly an adapter on such weights."""
    if lora is None or lora.export == "merged":
        return True
    return earlier_adapter(start, lora) is not None


@torch.no_grad()
def export_member(model: TrainModel, start: Path, out: Path, lora: LoraOptions) -> None:
    """Write `out`, complete or not at all: the trained adapter and reward head alone, in fp32 and
    peft's format. The model cannot be used afterwards."""
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    save_adapter(_reload_exact(model, start, lora, reward=True), temporary)
    publish_folder(temporary, out)


@torch.no_grad()
def export_members(start: Path, adapters: Sequence[Path], out: Path) -> None:
    """Write `out`, complete or not at all: the body of `start` in bf16, once, and beside it the
    adapters of an ensemble. Its own head is zero: without an adapter it is no reward model."""
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    module, _ = load_classifier(start, 1, {"dtype": torch.bfloat16})
    module.score.weight.zero_()
    copy_text_files(start, temporary)
    pad_apart_from_end(module, temporary)
    read_at_last(module)
    save(module, temporary)
    for number, adapter in enumerate(adapters):
        own = temporary / MEMBERS / str(number)
        shutil.copytree(adapter, own, ignore=shutil.ignore_patterns(NAME))
    publish_folder(temporary, out)


@torch.no_grad()
def export_head(
    start: Path,
    head: Head,
    out: Path,
    region: Region | None = None,
    layers: int | None = None,
) -> None:
    """Write `out`, complete or not at all: the body of `start` in bf16, or the first `layers` of
    it, with the head's weights as its `score`, and beside it the head in fp32 and the `region` of
    its training answers."""
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    module, _ = load_classifier(start, head.config.outputs, {"dtype": torch.bfloat16})
    if layers is not None:
        cut(module, layers)
    # Kept in fp32, so that transformers gives the same numbers as the head beside it.
    module.score.float()
    module.score.weight.copy_(head.weight)
    names = [
        f"{name} {q + 1}" if head.config.quantiles > 1 else name
        for name in head.config.objectives
        for q in range(head.config.quantiles)
    ]
    if names:
        module.config.id2label = dict(enumerate(names))
        module.config.label2id = {name: i for i, name in enumerate(names)}
    copy_text_files(start, temporary)
    pad_apart_from_end(module, temporary)
    read_at_last(module)
    save(module, temporary)
    save_head(head, temporary)
    if region is not None:
        save_region(region, temporary)
    publish_folder(temporary, out)


@torch.no_grad()
def write_weights(model: TrainModel, folder: Path) -> None:
    """Write `model.safetensors` in `folder`: the policy of this moment as a plain checkpoint has
    it, in the compute dtype, adapters merged. The model stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "weights.partial"
    save_file(dict(_plain_weights(model.module)), temporary, metadata={"format": "pt"})
    temporary.replace(folder / "model.safetensors")


def _plain_weights(module: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and weights without adapters' names, each matrix with its adapter in it."""
    base = causal(module)
    merged = {}
    for name, part in base.named_modules():
        if hasattr(part, "base_layer") and hasattr(part, "merge"):
            merged[f"{name}.weight"] = _merge_layer(part)
    for name, param in base.named_parameters():
        if "lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        weight = merged[plain] if plain in merged else param.detach()
        yield plain, weight.cpu().contiguous()


def _merge_layer(layer: Any) -> Tensor:
    """The layer's weight with its adapter. Taking the adapter off again by subtraction would leave
    rounding errors, so the weight is put back."""
    weight = layer.base_layer.weight
    kept = weight.detach().clone()
    layer.merge()
    merged: Tensor = weight.detach().clone()
    layer.merged_adapters.clear()
    weight.data.copy_(kept)
    return merged
