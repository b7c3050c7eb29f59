"""That what is trained is what the model writes with: its own code without chance, and rows that
know nothing of what comes after them or stands beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlaif.core.errors import EngineError, explain_library
from rlaif.engines.checkpoints import is_reward
from rlaif.engines.local.output_head import PLAIN, Head, head_of, reading_tokens
from rlaif.engines.local.packing import body_of, hidden_states
from rlaif.kernels.batching import Branches, padded_layout

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
    examples = [([i % words for i in p], [[i % words for i in b] for b in bs]) for p, bs in ROWS]
    layout = padded_layout(examples).to(next(module.parameters()).device)
    with reading_tokens(module):
        _refuse_other_rows(module, examples, hidden_states(body_of(module), layout))
    return PLAIN if is_reward(module) else head_of(module)


def _refuse_other_rows(module: Any, examples: Sequence[Branches], states: Tensor) -> None:
    """Raise EngineError where hidden states of the padded rows are not those of each by itself."""
    rows = [(p, [branch]) for p, branches in examples for branch in branches]
    for (prompt, (branch,)), own in zip(rows, states.chunk(len(rows)), strict=True):
        layout = padded_layout([(prompt, [branch])]).to(states.device)
        wanted = hidden_states(body_of(module), layout)
        off = own[: len(prompt) + len(branch)] - wanted
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
        module.gradient_checkpointing_enable({"use_reentrant": False})
    layers: list[Any] = [p for p in module.modules() if isinstance(p, GradientCheckpointingLayer)]
    for layer in layers:
        layer._gradient_checkpointing_func = functools.partial(
            _recomputed, layers, layer._gradient_checkpointing_func
        )


def _recomputed(
    layers: Sequence[nn.Module],
    checkpoint: Callable[..., Any],
    function: Callable[..., Any],
    *args: Any,
) -> Any:
    """What `checkpoint` makes of a layer's function. The layers say that they train, or they would
    not come here; what they compute must not depend on it."""

    def compute(*inputs: Any) -> Any:
        for layer in layers:
            layer.training = False
        try:
            return function(*inputs)
        finally:
            for layer in layers:
                layer.training = True

    return checkpoint(compute, *args)
