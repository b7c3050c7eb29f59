"""What a training was computed with: the facts that a speed or a difference can be explained by."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from rlaif.engines.local.proof import versions
from rlaif.kernels.attention import flex_failure, uses_flex
from rlaif.kernels.logprobs import uses_cut_cross_entropy
from rlaif.train.model import TrainModel


def kernels_in_use(model: TrainModel) -> dict[str, Any]:
    """By part what computes it, with versions; `left_out` says what the model could not take, and
    why. To be asked when training is over: a kernel may be given up on the way."""
    torch_version, transformers_version = versions()
    named = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu"
    left_out = list(model.choice.reasons)
    failure = flex_failure()
    if failure is not None and model.device.type == "cuda":
        left_out.append(f"FlexAttention: {failure}")
    return {
        "packed": model.packed,
        "attention": _attention(model),
        "fused": dict(sorted(model.choice.parts.items())),
        "logprobs": _logprobs(model),
        "left_out": left_out,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": named,
        "torch": torch_version,
        "transformers": transformers_version,
    }


def _attention(model: TrainModel) -> str:
    if not model.packed:
        return f"{model.attention} (transformers)"
    return "FlexAttention" if uses_flex(model.device) else "group by group"


def _logprobs(model: TrainModel) -> str:
    if model.device.type == "cuda" and uses_cut_cross_entropy(model.dtype):
        return f"cut-cross-entropy {_version('cut-cross-entropy')}"
    return "tiles"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of an unknown version"
