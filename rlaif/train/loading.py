"""A checkpoint as a module in fp32, ready to be prepared for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rlaif.core.errors import EngineError, explain_library
from rlaif.engines.checkpoints import MASTERS, load_classifier
from rlaif.engines.local.adapters import member_folders
from rlaif.engines.local.packing import plain_attention


def load_module(
    folder: Path | nn.Module, device: torch.device, reward: bool = False, masters: bool = True
) -> Any:
    """The model in `folder` in fp32, from its masters where it has them and `masters` says so: a
    causal language model, or with `reward` the body of one with a head of one number. A module that
    was made already is taken in place of a folder, and its reward head for a new one.

    A new reward head starts at zero, so that every answer's first reward is 0. Raises EngineError
    for an ensemble of adapters, which is no one model.
    """
    from transformers import AutoConfig
    from transformers.utils import logging as transformers_logging

    if isinstance(folder, nn.Module):
        return _made(folder, device, reward)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if member_folders(folder):
        raise EngineError(
            f"{folder} is an ensemble of adapters, and training needs one model to start from"
        )
    with explain_library(f"{folder}: this model cannot be loaded for training", EngineError):
        attention = plain_attention(AutoConfig.from_pretrained(folder))
        options = {"dtype": torch.float32, "attn_implementation": attention}
        module, fresh = _loaded(folder, reward, options)
    exact = folder / MASTERS
    if masters and exact.exists():
        _copy_weights(module, load_file(exact), exact, reward)
    if fresh:
        nn.init.zeros_(module.score.weight)
    return module.to(device)


def _made(module: Any, device: torch.device, reward: bool) -> Any:
    module.set_attn_implementation(plain_attention(module.config))
    if reward:
        nn.init.zeros_(module.score.weight)
    return module.to(device, torch.float32)


def _loaded(folder: Path, reward: bool, options: dict[str, Any]) -> tuple[Any, bool]:
    """The module, and whether its reward head is new."""
    from transformers import AutoModelForCausalLM

    if not reward:
        return AutoModelForCausalLM.from_pretrained(folder, **options), False
    module, report = load_classifier(folder, 1, options)
    score = getattr(module, "score", None)
    if not isinstance(score, nn.Linear) or score.bias is not None:
        raise EngineError(f"{folder}: {type(module).__name__} has no plain `score` head to train")
    new = [*report["missing_keys"], *(row[0] for row in report["mismatched_keys"])]
    return module, any(name.startswith("score") for name in new)


@torch.no_grad()
def _copy_weights(
    module: nn.Module, weights: dict[str, Tensor], source: Path, reward: bool
) -> None:
    params = dict(module.named_parameters())
    if reward:
        # A language model's masters have no reward head, and its own head is not wanted.
        params = {n: p for n, p in params.items() if n in weights or not n.startswith("score.")}
        weights = {n: w for n, w in weights.items() if n in params or not n.startswith("lm_head.")}
    if params.keys() != weights.keys() or any(params[n].shape != weights[n].shape for n in params):
        raise EngineError(f"{source}: these masters belong to another architecture; remove them")
    for name, param in params.items():
        param.copy_(weights[name])
