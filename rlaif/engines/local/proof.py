"""Which faster forms compute what a model's own code computes.

That is decided on a copy of two to four layers with the model's own layer kinds, head sizes and
dtype, and random weights:

1. each part by itself against the model's own code;
2. the whole copy, packed and fused, against the plain and padded one: the log-probs and the
   gradient of every parameter. The plain copy in the next wider dtype is the truth, and our error
   may be twice the plain one's in the same dtype, plus 1e-5 for rounding in another order.

What fails is left as it is, with a warning. `shrink` makes the small config that a proof computes
with: few layers of every kind, the same heads.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import logging
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.core.records import content_hash
from rlaif.core.store import write_atomic
from rlaif.engines import model_folders
from rlaif.engines.local import forward
from rlaif.engines.local import forward as paths
from rlaif.engines.local.forward import (
    PLAIN,
    ROTARY,
    Choice,
    PartKind,
    body_of,
    class_name,
    epsilon_of,
    fast_paths,
    form_of,
    hidden_states,
    plain_attention,
    with_rotary,
)
from rlaif.kernels import attention, batching, fused, logprobs
from rlaif.kernels.batching import Branches, Layout, packed_layout, padded_layout
from rlaif.kernels.fused import rotate

log = logging.getLogger(__name__)

WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float64,
    torch.float64: torch.float64,
}
ROUNDING = 1e-5
"""The error that another order of addition may add, relative to a tensor's norm."""
SMALLEST = 1e-3
"""Gradients below this part of the largest parameter's are compared with that: a gradient that is
zero but for rounding has no digits to agree on."""
PART_TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}


def choose(module: Any, dtype: torch.dtype, device: torch.device) -> Choice:
    """The forms that `module`, a causal language model or one with a reward head, may take when it
    computes in `dtype` on `device`. The answer is kept by class, config, versions, device and
    dtype: in memory, and on disk where nothing was left out. What fails is logged, once in a
    process, and tried again by the next: a compiler that was missing may be there."""
    config = copy.deepcopy(module.config)
    failure: Exception | None = None
    try:
        shrink(config)
    except Exception as error:
        # Configs can be anything; one that has no small copy costs speed, and nothing else.
        failure = error
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    key = content_hash(
        type(module).__qualname__,
        _describe_shape(config),
        *versions(),
        named,
        str(dtype),
        _own_code(),
    )
    if key not in _known:
        _known[key] = (
            _make_untried_choice(failure)
            if failure is not None
            else _read_choice(key) or prove(type(module), config, dtype, device)
        )
        # A choice made without FlexAttention may hold only as long as the compiler is missing.
        if not _known[key].reasons and attention.flex_failure() is None:
            _store_choice(key, _known[key])
        for reason in _known[key].reasons:
            log.warning("%s: %s", type(module).__name__, reason)
    return _known[key]


_known: dict[str, Choice] = {}


def versions() -> tuple[str, str]:
    """The versions of torch and transformers."""
    import transformers

    return torch.__version__, transformers.__version__


@functools.cache
def _own_code() -> str:
    """A hash of the code whose choice is kept."""
    files = [attention, batching, fused, logprobs, forward, paths]
    names = [__file__, *(module.__file__ or "" for module in files)]
    return content_hash(*(Path(name).read_text(encoding="utf-8") for name in names))


def _describe_shape(config: Any) -> dict[str, Any]:
    """What of a config decides how its models compute."""
    given = config.to_dict()
    return {k: str(v) for k, v in sorted(given.items()) if k not in ("_name_or_path", "dtype")}


def _locate_choice(key: str) -> Path:
    return model_folders.cache_folder() / "fast-paths" / f"{key}.json"


def _read_choice(key: str) -> Choice | None:
    try:
        found = json.loads(_locate_choice(key).read_text(encoding="utf-8"))
        return Choice(bool(found["packed"]), dict(found["parts"]), tuple(found["reasons"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store_choice(key: str, choice: Choice) -> None:
    try:
        _locate_choice(key).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_locate_choice(key), json.dumps(asdict(choice)))
    except OSError as error:
        log.info("the choice of fast paths is not kept: %s", error)


def prove(kind: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Choice:
    """The choice for models of the class `kind` with `config`, which is a small one."""
    try:
        exact = _make_small_copy(kind, config, dtype, device)
        parts = _equal_parts(copy.deepcopy(exact).to(dtype))
        # In a mixture of experts rounding picks other experts, which is no error of ours.
        compared = torch.float32 if _is_mixture(config) else dtype
        # Some models keep what they computed last, and could not be copied afterwards.
        fresh = copy.deepcopy(exact).to(compared)
        theirs = _compute_values(copy.deepcopy(fresh), PLAIN)
        truth = _wider_values(exact.to(WIDER[compared]), theirs)
    except torch.OutOfMemoryError:
        # A lack of memory says nothing of a form, and callers know what to advise.
        raise
    except Exception as error:
        return _make_untried_choice(error)
    problems: dict[tuple[bool, bool], str] = {}
    # From the fastest to the slowest: the first that holds is taken.
    for packed, with_parts in ((True, True), (True, False), (False, True)):
        tried = Choice(packed, parts if with_parts else {})
        if with_parts and not parts:
            continue
        problem = _find_problem(copy.deepcopy(fresh), tried, truth, theirs)
        if problem is None:
            return replace(tried, reasons=_left_out(tried, problems))
        problems[packed, with_parts] = problem
    return replace(PLAIN, reasons=_left_out(PLAIN, problems))


def _wider_values(exact: Any, theirs: list[Tensor]) -> list[Tensor]:
    """What the wider copy gives, or `theirs` where its code knows no fp64."""
    if hasattr(exact, "set_experts_implementation"):
        # The product of all experts at once is not there in fp64.
        exact.set_experts_implementation("eager")
    try:
        return _compute_values(exact, PLAIN)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        if exact.dtype != torch.float64:
            raise
        return theirs


PADDED = "branches are padded and not packed, which is slower"
UNFUSED = "norms, gates and rotary embeddings stay as they are, which is slower"


def _left_out(choice: Choice, problems: dict[tuple[bool, bool], str]) -> tuple[str, ...]:
    """What a choice leaves out, and why: `problems` are those of (packed rows, fused parts)."""
    reasons = []
    if not choice.packed:
        reasons.append(f"{PADDED}: {problems[True, False]}")
    if not choice.parts:
        reasons += [
            f"{UNFUSED}: {problems[p, True]}" for p in (choice.packed,) if (p, True) in problems
        ]
    return tuple(reasons)


def _make_untried_choice(error: Exception) -> Choice:
    return replace(
        PLAIN, reasons=(f"{PADDED}: no small copy could be tried: {_first_line(error)}",)
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _find_problem(
    model: Any, choice: Choice, truth: list[Tensor], theirs: list[Tensor]
) -> str | None:
    """Why the forms of `choice` are not to be taken, or None."""
    try:
        ours = _compute_values(model, choice)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # A kernel whose backward cannot be compiled shows here; without it the rest may do.
        if not choice.packed or not attention.uses_flex(_device_of(model)):
            return _first_line(error)
        attention.give_up_flex(error)
        return _find_problem(model, choice, truth, theirs)
    scale = max(float(t.norm()) for t in truth[1:])
    names = ["the log-probs", *(f"the gradient of {n}" for n, _ in model.named_parameters())]
    for name, exact, plain, own in zip(names, truth, theirs, ours, strict=True):
        size = max(float(exact.norm()), SMALLEST * (scale if name != names[0] else 0.0), 1e-30)
        off, rounded = (float((t.double() - exact).norm()) / size for t in (own, plain))
        # `not <=` rather than `>`: NaN is a problem too.
        if not off <= 2 * rounded + ROUNDING:
            return f"{name} differ by {off:.2g} of their size, and {rounded:.2g} is rounding"
    return None


def _device_of(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device


EXAMPLES: list[Branches] = [
    (list(range(2, 16)), [list(range(20, 32)), [33, 34, 35], list(range(36, 42))]),
    ([2, 3, 4, 50, 51, 52], [[60, 61, 62, 63, 64], [65]]),
]
"""Two prompts that begin alike, with three and two branches, longer than a copy's window."""


def _compute_values(model: Any, choice: Choice) -> list[Tensor]:
    """fp64: the log-probs of the examples' answers (for a model without an output layer fixed sums
    of its hidden states), and the gradient of their weighted sum for every parameter."""
    made = packed_layout(EXAMPLES) if choice.packed else padded_layout(EXAMPLES)
    layout = made.to(_device_of(model))
    model.zero_grad(set_to_none=True)
    with torch.enable_grad(), fast_paths(model, choice):
        values = _compute_logprobs(model, layout)
        # A weight of its own for each token: with equal ones, swapped tokens would not show.
        slope = torch.linspace(-1, 1.5, values.numel(), device=values.device, dtype=values.dtype)
        torch.autograd.backward((values * slope).sum())
    found = [values.detach(), *(p.grad for p in model.parameters())]
    return [
        torch.zeros((), dtype=torch.float64) if value is None else value.double() for value in found
    ]


def _compute_logprobs(model: Any, layout: Layout) -> Tensor:
    states = hidden_states(body_of(model), layout).index_select(0, layout.predict)
    wide = torch.promote_types(states.dtype, torch.float32)
    output = model.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        turns = torch.arange(states.shape[-1], device=states.device, dtype=wide)
        sums: Tensor = states.to(wide) @ torch.cos(turns)
        return sums
    bias = None if output.bias is None else output.bias.to(wide)
    # Scales and caps of logits are the same code either way.
    logits = F.linear(states.to(wide), output.weight.to(wide), bias)
    return logits.log_softmax(-1).gather(1, layout.targets[:, None])[:, 0]


def _make_small_copy(kind: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of `config` in fp32 whose weights are random and exact in `dtype`."""
    attention_name = plain_attention(config)
    # The caller's random state must not notice the proof.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with device:
            model = kind._from_config(
                copy.deepcopy(config), dtype=torch.float32, attn_implementation=attention_name
            )
        with torch.no_grad():
            for param in model.parameters():
                # Weights that were all equal would hide what is done with them.
                spread = 0.3 if param.dim() < 2 else param.shape[-1] ** -0.5
                noise = torch.randn(param.shape, device=param.device) * spread
                param.copy_((param + noise if param.dim() < 2 else noise).to(dtype))
    return model.to(device).eval()


def _is_mixture(config: Any) -> bool:
    return any("expert" in name and value for name, value in vars(config.get_text_config()).items())


def _equal_parts(model: Any) -> dict[str, PartKind]:
    """By class name the fused form of every kind of part whose own code computes the same."""
    found: dict[str, PartKind] = {}
    refused: set[str] = set()
    for part in model.modules():
        name = class_name(part)
        kind = None if name in refused else _part_kind(part, found.get(name))
        if kind is None:
            # Forms are chosen by class, so one part that differs speaks for all of its class.
            refused.add(name)
            found.pop(name, None)
        else:
            found[name] = kind
    for name, kind in _find_rotating_parts(model).items():
        found.setdefault(name, kind)
    return found


def _part_kind(part: Any, known: PartKind | None) -> PartKind | None:
    """Which form a part can take; with `known` only that one."""
    weight = getattr(part, "weight", None)
    kinds: Sequence[PartKind] = ()
    width = 0
    if class_name(part).endswith("RMSNorm") and isinstance(weight, Tensor) and weight.dim() == 1:
        if epsilon_of(part) is not None:
            kinds, width = ("norm", "shifted norm"), weight.shape[0]
    elif all(
        isinstance(getattr(part, f"{n}_proj", None), nn.Linear) for n in ("gate", "up", "down")
    ):
        kinds, width = ("gate",), cast(nn.Linear, part.gate_proj).in_features
    for kind in kinds if known is None else [k for k in kinds if k == known]:
        matrix = cast(Tensor, part.gate_proj.weight if kind == "gate" else weight)
        if _computes_same(part, form_of(part, kind), matrix.new_empty(1, 3, width)):
            return kind
    return None


@torch.no_grad()
def _computes_same(part: Any, forward: Callable[..., Any], like: Tensor) -> bool:
    """Whether `forward` computes what the part's own does, on rows that have no symmetry and are
    in shape and dtype `like` that tensor."""
    probe = torch.linspace(-2.0, 3.0, like.numel(), device=like.device).sin_() * 1.7
    probe = probe.view(like.shape).to(like.dtype)
    try:
        return _is_close(forward(part, probe), part(probe))
    except (TypeError, ValueError, RuntimeError):
        return False


def _is_close(ours: Any, own: Any) -> bool:
    if not isinstance(own, Tensor) or not isinstance(ours, Tensor):
        return False
    tolerance = PART_TOLERANCE.get(own.dtype, 1e-9)
    same_kind = own.dtype == ours.dtype and own.shape == ours.shape
    return same_kind and torch.allclose(ours, own, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def _find_rotating_parts(model: Any) -> dict[str, PartKind]:
    """The classes of attention that call ROTARY as `rotate` is called, with the same outcome: tried
    on what the model itself gives them."""
    verdicts: dict[str, bool] = {}
    changed: list[Any] = []
    for part in model.modules():
        forward = type(part).forward
        code = getattr(forward, "__code__", None)
        if code is None or ROTARY not in code.co_names or hasattr(forward, "__wrapped__"):
            continue
        own = forward.__globals__.get(ROTARY)
        if not inspect.isfunction(own):
            continue

        # Bound as defaults, since the loop moves on to other parts.
        def compare_rotation(
            *args: Any, own: Any = own, name: str = class_name(part), **named: Any
        ) -> tuple[Tensor, Tensor]:
            wanted = own(*args, **named)
            try:
                ours = rotate(*args, **named)
                same = all(_is_close(a, b) for a, b in zip(ours, wanted, strict=True))
            except (TypeError, ValueError, RuntimeError, AttributeError):
                same = False
            verdicts[name] = verdicts.get(name, True) and same
            result: tuple[Tensor, Tensor] = wanted
            return result

        vars(part)["forward"] = types.MethodType(with_rotary(forward, compare_rotation), part)
        changed.append(part)
    try:
        layout = padded_layout(EXAMPLES).to(_device_of(model))
        hidden_states(body_of(model), layout)
    finally:
        for part in changed:
            del vars(part)["forward"]
    return {name: "rotary" for name, same in verdicts.items() if same}


WINDOW = 8
"""The window and chunk of the copy: shorter than the probe, so that a lost window shows."""


MOST_LAYERS = 4


def shrink(config: Any) -> None:
    """Make a config small in place: few layers of every kind, a short vocabulary and window, narrow
    feed-forward parts. Heads and their sizes stay."""
    text = config.get_text_config()
    nested: list[Any] = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    # Parts beside the text model, such as a vision tower, are not what is tried here.
    for other in nested:
        if other is not text and getattr(other, "num_hidden_layers", None):
            other.num_hidden_layers = 1
    layers = int(text.num_hidden_layers)
    # Lists with an entry for each layer, such as `layer_types`, shrink with the layers.
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
        # A bool is an int too.
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if name.startswith("vocab_size"):
            setattr(text, name, min(value, 512))
        elif name in ("sliding_window", "attention_chunk_size"):
            setattr(text, name, min(value, WINDOW))
        elif name.endswith("intermediate_size"):
            setattr(text, name, min(value, 128))
        # DeepSeek's dense layers come first: one at most, so that a mixture is left to try.
        elif name == "first_k_dense_replace":
            setattr(text, name, min(value, 1))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        # They must lie in the short vocabulary.
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
    # Where no list tells the kinds of layers, more are kept in case one of them differs.
    least = 2 if lists or layers <= 2 else MOST_LAYERS
    return sorted([*kept, *more[: max(0, min(least, layers) - len(kept))]])
