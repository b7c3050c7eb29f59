"""A checkpoint as a module in fp32, ready to be prepared for training.

A training refuses to start where what is trained is not what the model writes with: its own code
without chance, and rows that know nothing of what comes after them or stands beside them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rlaif.core.errors import EngineError, explain_library
from rlaif.engines.checkpoints import MASTERS, is_reward, load_classifier
from rlaif.engines.local.forward import body_of, hidden_states, plain_attention
from rlaif.engines.local.weights import PLAIN, Head, head_of, reading_tokens
from rlaif.engines.model_folders import member_folders
from rlaif.kernels.batching import Branches, padded_layout


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
        return _prepare_module(folder, device, reward)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if member_folders(folder):
        raise EngineError(
            f"{folder} is an ensemble of adapters, and training needs one model to start from"
        )
    with explain_library(f"{folder}: this model cannot be loaded for training", EngineError):
        attention = plain_attention(AutoConfig.from_pretrained(folder))
        options = {"dtype": torch.float32, "attn_implementation": attention}
        module, fresh = _load_weights(folder, reward, options)
    exact = folder / MASTERS
    if masters and exact.exists():
        _copy_weights(module, load_file(exact), exact, reward)
    if fresh:
        nn.init.zeros_(module.score.weight)
    return module.to(device)


def _prepare_module(module: Any, device: torch.device, reward: bool) -> Any:
    # As for a folder: eager attention where scores are capped.
    module.set_attn_implementation(plain_attention(module.config))
    if reward:
        nn.init.zeros_(module.score.weight)
    return module.to(device, torch.float32)


def _load_weights(folder: Path, reward: bool, options: dict[str, Any]) -> tuple[Any, bool]:
    """The module, and whether its reward head is new."""
    from transformers import AutoModelForCausalLM

    if not reward:
        return AutoModelForCausalLM.from_pretrained(folder, **options), False
    module, report = load_classifier(folder, 1, options)
    score = getattr(module, "score", None)
    if not isinstance(score, nn.Linear) or score.bias is not None:
        raise EngineError(f"{folder}: {type(module).__name__} has no plain `score` head to train")
    new = [*report["missing_keys"], *(row[0] for row in report["mismatched_keys"])]
    # A head is new where the checkpoint has none, or one of another number of outputs.
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


ROWS: list[Branches] = [
    ([0, 1, 2, 3, 4], [[5, 6, 7], [8]]),
    ([9], [[10, 11, 12, 13, 14, 15, 16, 17, 18]]),
]
"""Token ids of three rows, so unlike in length that padding shows."""
TOLERANCE = 2e-2


@torch.no_grad()
def proved_head(module: Any) -> Head:
    """How logits follow from hidden states, once those of padded rows are found equal to those of
    each row by itself; PLAIN for a reward head. Raises EngineError where they are not, or where
    the model has no such head."""
    module.eval()
    words = int(module.get_input_embeddings().weight.shape[0])
    # A small vocabulary has fewer ids than the rows name.
    examples = [([i % words for i in p], [[i % words for i in b] for b in bs]) for p, bs in ROWS]
    layout = padded_layout(examples).to(next(module.parameters()).device)
    with reading_tokens(module):
        _refuse_other_rows(module, examples, hidden_states(body_of(module), layout))
    return PLAIN if is_reward(module) else head_of(module)


def _refuse_other_rows(module: Any, examples: Sequence[Branches], states: Tensor) -> None:
    """Raise EngineError where hidden states of the padded rows are not those of each by itself."""
    rows = [(p, [branch]) for p, branches in examples for branch in branches]
    # [rows * width, hidden] in one chunk for each row.
    for (prompt, (branch,)), own in zip(rows, states.chunk(len(rows)), strict=True):
        layout = padded_layout([(prompt, [branch])]).to(states.device)
        wanted = hidden_states(body_of(module), layout)
        off = own[: len(prompt) + len(branch)] - wanted
        # `not <=` rather than `>`: NaN is refused too.
        if not float(off.norm()) <= TOLERANCE * float(wanted.norm()):
            raise EngineError(
                f"{type(module).__name__}: what it computes at a token depends on the tokens after "
                "it or on other rows, so an answer has no probability to train on. Where its "
                "config.json has `is_decoder`, set that to true."
            )


def compute_as_sampling(module: nn.Module) -> None:
    """Switch off what a model does by chance when it trains: dropout, skipped layers, noise in its
    router. The log-probs of a policy in training are then those that it samples with. Only an
    adapter's own dropout remains, and the recomputing of layers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    module.eval()
    for name, part in module.named_modules():
        recomputed = isinstance(part, GradientCheckpointingLayer) and part.gradient_checkpointing
        if recomputed or hasattr(part, "lora_dropout") or "lora_dropout" in name:
            # The flag alone: `train()` would reach what lies within.
            part.training = True


@contextmanager
def trainable_code(module: nn.Module) -> Iterator[None]:
    """Raise EngineError for a model whose own code asserts that it draws by chance in training, as
    Reformer's hashes do."""
    try:
        yield
    except AssertionError as error:
        raise EngineError(f"{type(module).__name__} cannot be trained here: {error}") from error


def recompute_layers(module: Any) -> None:
    """Keep no activations of a layer but its inputs, and compute it again in the backward pass.
    Raises EngineError where transformers cannot do that for the model."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    with explain_library("gradient_checkpointing", EngineError):
        # The other kind wants an input with a gradient, which a frozen embedding does not give.
        module.gradient_checkpointing_enable({"use_reentrant": False})
    layers: list[Any] = [p for p in module.modules() if isinstance(p, GradientCheckpointingLayer)]
    for layer in layers:
        layer._gradient_checkpointing_func = functools.partial(
            _recompute_layer, layers, layer._gradient_checkpointing_func
        )


def _recompute_layer(
    layers: Sequence[nn.Module],
    checkpoint: Callable[..., Any],
    function: Callable[..., Any],
    *args: Any,
) -> Any:
    """What `checkpoint` makes of a layer's function. The layers say that they train, or they would
    not come here; what they compute must not depend on it."""

    def compute_in_eval(*inputs: Any) -> Any:
        for layer in layers:
            layer.training = False
        try:
            return function(*inputs)
        finally:
            for layer in layers:
                layer.training = True

    return checkpoint(compute_in_eval, *args)
