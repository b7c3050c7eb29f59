"""Reading a model before its end: the hidden states after its first layers, and a model of these
layers alone.

What tells answers apart often stands clearer in the middle of a model than at its end, where the
next token is what counts (Skean et al., arXiv 2502.02013).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlaif.core.errors import RlaifError
from rlaif.engines.local.forward import body_of
from rlaif.kernels.batching import Layout
from rlaif.train.model import TrainModel, causal

EIGHTHS = range(2, 9)
"""What `auto` tries, in eighths of the layers."""


def depths(module: Any, layers: int | Literal["auto", "all"]) -> tuple[int, ...]:
    """After how many first layers of a module, not yet prepared, to read: ascending. Raises
    RlaifError for more layers than there are, and for fewer of a module that has no plain stack."""
    whole = _text_config(module).num_hidden_layers
    if layers == "all":
        return (whole,)
    plain = _has_plain_stack(module)
    if layers == "auto":
        tried = {max(1, round(whole * share / 8)) for share in EIGHTHS}
        return tuple(sorted(tried)) if plain else (whole,)
    if layers > whole:
        raise RlaifError(f"layers: {layers} of a model that has {whole}; set {whole} or less")
    if layers < whole and not plain:
        raise RlaifError(
            f"layers: {type(module).__name__} has no plain stack of layers to cut; set "
            "`layers: all`"
        )
    return (layers,)


@torch.no_grad()
def hidden_at(
    model: TrainModel, layout: Layout, places: Tensor, depths: tuple[int, ...]
) -> dict[int, Tensor]:
    """By depth the (P, H) fp32 hidden states at `places` (P,) of the layout's flat rows, normed as
    a model that ended there would."""
    whole = _text_config(model.module).num_hidden_layers
    seen: dict[int, Tensor] = {}

    def keep_states(depth: int) -> Any:
        def store_states(layer: nn.Module, inputs: Any, output: Any) -> None:
            seen[depth] = _layer_states(output).flatten(0, 1).index_select(0, places)

        return store_states

    body = body_of(causal(model.module))
    hooks = [body.layers[d - 1].register_forward_hook(keep_states(d)) for d in depths if d < whole]
    try:
        last = model.hidden(layout).index_select(0, places)
    finally:
        for hook in hooks:
            hook.remove()
    found = {d: body.norm(states).float() for d, states in seen.items()}
    return {**found, whole: last.float()} if whole in depths else found


def cut(module: Any, layers: int) -> None:
    """Leave only the first `layers` of a module, and say so in its config."""
    config = _text_config(module)
    whole = config.num_hidden_layers
    if layers == whole:
        return
    body = body_of(module)
    body.layers = body.layers[:layers]
    # Some configs describe every layer in a list.
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == whole:
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers


def _text_config(module: Any) -> Any:
    return causal(module).config.get_text_config()


@torch.no_grad()
def _has_plain_stack(module: Any) -> bool:
    """Whether the last hidden states are the norm of what the last of `layers` puts out."""
    body = body_of(module)
    if not isinstance(getattr(body, "layers", None), nn.ModuleList) or not hasattr(body, "norm"):
        return False
    seen: list[Tensor] = []
    hook = body.layers[-1].register_forward_hook(lambda *call: seen.append(_layer_states(call[-1])))
    try:
        ids = torch.arange(8, device=next(body.parameters()).device)[None]
        last = body(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        hook.remove()
    return torch.equal(body.norm(seen[0]), last)


def _layer_states(output: Any) -> Tensor:
    """A layer's hidden states, which older versions of transformers give in a tuple."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
