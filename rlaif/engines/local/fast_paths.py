"""The faster forms that one transformers model may take, given to that one object.

Norms, gates and rotary embeddings get backward passes of their own (`rlaif.kernels.fused`), and
rows are packed, each prompt once (`rlaif.kernels.attention`). Which of these compute what the
model's own code computes is proved in `rlaif.engines.local.proof`.

`shrink` makes the small config that a proof computes with: few layers of every kind, the same
heads.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from rlaif.engines.local.packing import packing
from rlaif.kernels.fused import gated_silu, rms_norm, rotate

ROTARY = "apply_rotary_pos_emb"
PartKind = Literal["norm", "shifted norm", "gate", "rotary"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a model may take: packed rows or not, and by the name of a part's class its fused form.
    `reasons` say what was left as it is, and why."""

    packed: bool
    parts: dict[str, PartKind]
    reasons: tuple[str, ...] = ()


PLAIN = Choice(False, {})


@contextmanager
def fast_paths(module: Any, choice: Choice) -> Iterator[None]:
    """Let `module` compute in the forms of `choice`, and in its own again afterwards."""
    with ExitStack() as stack:
        if choice.packed:
            stack.enter_context(packing(module))
        stack.enter_context(fused_parts(module, choice.parts))
        yield


@contextmanager
def fused_parts(module: nn.Module, parts: dict[str, PartKind]) -> Iterator[int]:
    """Give the parts of `module` their fused forms, and their own forms back afterwards. Yields how
    many parts have them."""
    forms = [
        (part, form_of(part, parts[n]))
        for part in module.modules()
        if (n := class_name(part)) in parts
    ]
    # A part that has a forward of its own, such as one in training, is put back with that.
    before = [vars(part).get("forward") for part, _ in forms]
    for part, forward in forms:
        vars(part)["forward"] = types.MethodType(forward, part)
    try:
        yield len(forms)
    finally:
        for (part, _), own in zip(forms, before, strict=True):
            if own is None:
                vars(part).pop("forward", None)
            else:
                vars(part)["forward"] = own


def class_name(part: nn.Module) -> str:
    """The name of the part's class, by which forms are chosen."""
    return type(part).__name__


def form_of(part: Any, kind: PartKind) -> Callable[..., Any]:
    """The forward of a part's fused form."""
    if kind == "rotary":
        return with_rotary(type(part).forward, rotate)
    if kind == "gate":

        def gated_forward(self: Any, hidden_states: Tensor) -> Tensor:
            gated = gated_silu(self.gate_proj(hidden_states), self.up_proj(hidden_states))
            down: Tensor = self.down_proj(gated)
            return down

        return gated_forward
    offset, eps = float(kind == "shifted norm"), epsilon_of(part)

    def norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, eps, offset)

    return norm_forward


def epsilon_of(part: Any) -> Any:
    """What a norm adds to the mean square, or None where that is not known."""
    return getattr(part, "variance_epsilon", getattr(part, "eps", None))


def with_rotary(forward: Any, turn: Callable[..., Any]) -> Callable[..., Any]:
    """The function `forward`, but that what it calls ROTARY is `turn`: transformers has rotary
    embeddings as a function of a Python module, which other models of the process use as well."""
    changed = types.FunctionType(
        forward.__code__,
        {**forward.__globals__, ROTARY: turn},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    changed.__kwdefaults__ = forward.__kwdefaults__
    return changed


WINDOW = 8
"""The window and chunk of the copy: shorter than the probe, so that a lost window shows."""
MOST_LAYERS = 4


def shrink(config: Any) -> None:
    """Make a config small in place: few layers of every kind, a short vocabulary and window, narrow
    feed-forward parts. Heads and their sizes stay."""
    text = config.get_text_config()
    nested: list[Any] = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    for other in nested:
        if other is not text and getattr(other, "num_hidden_layers", None):
            other.num_hidden_layers = 1
    layers = int(text.num_hidden_layers)
    by_layer = {
        name: value
        for name, value in vars(text).items()
        if isinstance(value, list | tuple) and len(value) == layers > 1
    }
    reuses = _find_reusing_layers(text, layers)
    kept = _kept_layers(layers, [*by_layer.values(), *([reuses] if any(reuses) else [])])
    text.num_hidden_layers = len(kept)
    if any(reuses):
        text.num_kv_shared_layers = sum(reuses[i] for i in kept)
    for name, value in by_layer.items():
        setattr(text, name, [value[i] for i in kept])
    for name, value in list(vars(text).items()):
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if name.startswith("vocab_size"):
            setattr(text, name, min(value, 512))
        elif name in ("sliding_window", "attention_chunk_size"):
            setattr(text, name, min(value, WINDOW))
        elif name.endswith("intermediate_size"):
            setattr(text, name, min(value, 128))
        elif name == "first_k_dense_replace":
            setattr(text, name, min(value, 1))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(text, name, None) is not None:
            setattr(text, name, 0)


def _find_reusing_layers(text: Any, layers: int) -> list[bool]:
    """Of each layer whether it uses the keys of an earlier one: in some models the last ones do."""
    first = layers - int(getattr(text, "num_kv_shared_layers", None) or 0)
    return [index >= first for index in range(layers)]


def _kept_layers(layers: int, lists: Sequence[Sequence[Any]]) -> list[int]:
    """Which layers a copy has: the first of each kind, two at least."""
    seen: dict[str, int] = {}
    for index in range(layers):
        seen.setdefault(str([values[index] for values in lists]), index)
    kept = sorted(seen.values())[:MOST_LAYERS]
    more = [i for i in range(layers) if i not in kept]
    least = 2 if lists or layers <= 2 else MOST_LAYERS
    return sorted([*kept, *more[: max(0, min(least, layers) - len(kept))]])
