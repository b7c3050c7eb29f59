"""What leaves training: a finished checkpoint, or the weights of the moment for a sampler."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlaif.checksums import NAME, publish
from rlaif.compare.distance import Region, save_region
from rlaif.config import LoraOptions
from rlaif.device import release_freed_memory
from rlaif.engines.adapters import MEMBERS
from rlaif.engines.reward import POSITION
from rlaif.errors import EngineError
from rlaif.heads import Head, save_head
from rlaif.train.depth import cut
from rlaif.train.likeness import is_reward
from rlaif.train.loading import MASTERS, load_classifier, load_module
from rlaif.train.model import TrainModel, add_lora, causal


@torch.no_grad()
def export(
    model: TrainModel,
    start: Path,
    out: Path,
    lora: LoraOptions | None,
    region: Region | None = None,
) -> None:
    """Write `out`: a bf16 checkpoint with its tokenizer, and fp32 masters, complete or not at all;
    beside a reward model the `region` of its training answers.

    Adapters are merged in fp32 into the weights of `start`. The model cannot be used afterwards. A
    sharded one must have been gathered.
    """
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "masters").mkdir(parents=True)
    masters = model.masters
    module = model.module
    reward = is_reward(causal(module))
    if lora is not None or model.sharded:
        del module
        module = _renewed(model, start, lora, reward)
        if lora is not None:
            module = module.merge_and_unload()
        masters = dict(module.named_parameters())
    # A value head or a critic is trained beside the model, and is no part of it; what of the model
    # is never trained has no master.
    cpu = {
        name: masters.get(name, param).detach().float().cpu().contiguous()
        for name, param in module.named_parameters()
    }
    save_file(cpu, temporary / MASTERS)
    for name, param in module.named_parameters():
        param.grad = None
        param.data = cpu[name].to(torch.bfloat16)
    module.config.dtype = torch.bfloat16
    _copy_text_files(start, temporary)
    if reward:
        _pad_apart_from_end(module, temporary)
        _read_at_last(module)
    if region is not None:
        save_region(region, temporary)
    module.save_pretrained(temporary)
    publish(temporary, out)


def _renewed(model: TrainModel, start: Path, lora: LoraOptions | None, reward: bool) -> Any:
    """`start` loaded anew in fp32, with the masters of `model`, whose own module is let go."""
    model.module = model.root = None
    release_freed_memory()
    module = load_module(start, torch.device("cpu"), reward)
    if lora is not None:
        module = add_lora(module, lora)
    for name, param in module.named_parameters():
        if name in model.masters:
            param.copy_(model.masters[name])
    return module


@torch.no_grad()
def export_adapter(model: TrainModel, start: Path, out: Path, lora: LoraOptions) -> None:
    """Write `out`, complete or not at all: the trained adapter and reward head alone, in fp32 and
    peft's format. The model cannot be used afterwards."""
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    module = _renewed(model, start, lora, reward=True)
    # The adapter is a part of a checkpoint, which may be moved and is known by its files.
    module.peft_config["default"].base_model_name_or_path = None
    module.save_pretrained(temporary)
    (temporary / "README.md").unlink(missing_ok=True)
    publish(temporary, out)


@torch.no_grad()
def export_members(start: Path, adapters: Sequence[Path], out: Path) -> None:
    """Write `out`, complete or not at all: the body of `start` in bf16, once, and beside it the
    adapters of an ensemble. Its own head is zero: without an adapter it is no reward model."""
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    module, _ = load_classifier(start, 1, {"dtype": torch.bfloat16})
    module.score.weight.zero_()
    _copy_text_files(start, temporary)
    _pad_apart_from_end(module, temporary)
    _read_at_last(module)
    module.save_pretrained(temporary)
    for number, adapter in enumerate(adapters):
        own = temporary / MEMBERS / str(number)
        shutil.copytree(adapter, own, ignore=shutil.ignore_patterns(NAME))
    publish(temporary, out)


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
    _copy_text_files(start, temporary)
    _pad_apart_from_end(module, temporary)
    _read_at_last(module)
    module.save_pretrained(temporary)
    save_head(head, temporary)
    if region is not None:
        save_region(region, temporary)
    publish(temporary, out)


def _read_at_last(module: Any) -> None:
    """Say in the config that the reward is read at the last token of the rendered conversation,
    where a sequence classifier reads."""
    setattr(module.config, POSITION, "last")


def _pad_apart_from_end(module: Any, folder: Path) -> None:
    """Sequence classifiers read the last token that is not padding: with the end of turn as
    padding token, they would read the one before it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = {tokenizer.eos_token_id, getattr(module.config, "eos_token_id", None)}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        special = sorted(set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder))
        # The last one is the least likely to stand in any text.
        free = [i for i in special if i not in ends and i != tokenizer.bos_token_id]
        if not free:
            raise EngineError(
                f"{folder}: its tokenizer has no special token to pad with besides its end token"
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(free[-1])
        tokenizer.save_pretrained(folder)
    module.config.pad_token_id = tokenizer.pad_token_id


def _copy_text_files(start: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(start).save_pretrained(target)
    # The starting model's file as it is: saving it anew would add defaults it never had.
    generation = start / "generation_config.json"
    if generation.exists():
        shutil.copyfile(generation, target / generation.name)


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
            merged[f"{name}.weight"] = _merged(part)
    for name, param in base.named_parameters():
        if "lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        weight = merged[plain] if plain in merged else param.detach()
        yield plain, weight.cpu().contiguous()


def _merged(layer: Any) -> Tensor:
    """The layer's weight with its adapter. Taking the adapter off again by subtraction would leave
    rounding errors, so the weight is put back."""
    weight = layer.base_layer.weight
    kept = weight.detach().clone()
    layer.merge()
    merged: Tensor = weight.detach().clone()
    layer.merged_adapters.clear()
    weight.data.copy_(kept)
    return merged
