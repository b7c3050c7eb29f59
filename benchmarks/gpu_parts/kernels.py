"""Parts 1 to 4 of `correct`: the kernels, each against plain fp32 arithmetic."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_parts.setting import Checks, Setting, worst
from rlaif.kernels import attention, fused, logprobs
from rlaif.kernels.batching import Group

WIDE, NARROW = torch.float32, torch.bfloat16


# 1. Graphs of FlexAttention -------------------------------------------------------------------


def graphs(setting: Setting, checks: Checks) -> None:
    """Forty random packed layouts in each way of calling make at most one graph."""
    low, high = setting.pick((64, 4096), (64, 300))
    draw = random.Random(0)
    layouts = [random_groups(draw.randint(low, high), draw) for _ in range(40)]
    heads = setting.pick((9, 3), (3, 1))
    modes: dict[str, Callable[[], Any]] = {
        "no_grad": torch.no_grad,
        "grad": torch.enable_grad,
        "inference_mode": torch.inference_mode,
    }
    window = setting.pick(512, 48)
    fewer = layouts[: setting.pick(40, 10)]
    with flex_attention_on(setting):
        for name, mode in modes.items():
            _count(setting, checks, f"bf16 {name}", layouts, mode, NARROW, heads, None)
        for name in ("grad", "no_grad"):
            call = (modes[name], NARROW, heads, window)
            _count(setting, checks, f"bf16 {name} window {window}", fewer, *call)
        _count(setting, checks, "bf16 grad without GQA", fewer, modes["grad"], NARROW, (4, 4), None)
        _count(setting, checks, "fp32 grad", fewer, modes["grad"], WIDE, heads, None)


def _count(
    setting: Setting,
    checks: Checks,
    name: str,
    layouts: Sequence[tuple[Group, ...]],
    mode: Callable[[], Any],
    dtype: torch.dtype,
    heads: tuple[int, int],
    window: int | None,
) -> None:
    from torch._dynamo.utils import counters

    before = counters["stats"]["unique_graphs"]
    width = setting.pick(64, 8)
    with checks.attempt(name), warnings.catch_warnings(record=True) as said, mode():
        warnings.simplefilter("always")
        draw = torch.Generator().manual_seed(0)
        learns = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        for number, groups in enumerate(layouts):
            query, key, value = draws(setting, draw, groups, heads, width, dtype)
            if learns:
                for tensor in (query, key, value):
                    tensor.requires_grad_()
            out = flex_attention(query, key, value, groups, window)
            # Without a compiler a backward pass is slow, and it makes no graph of its own.
            if learns and (setting.cuda or number % 10 == 0):
                out.float().square().mean().backward()
        setting.wait()
        made = counters["stats"]["unique_graphs"] - before
        unfused = [str(w.message) for w in said if "without torch.compile" in str(w.message)]
        checks.add(name, made <= 1 and not unfused, graphs=made, unfused=bool(unfused))


def random_groups(tokens: int, draw: random.Random) -> tuple[Group, ...]:
    """A packed row of so many tokens, half of all with a stem; a group has one to four branches."""
    stem = draw.choice((0, draw.randint(1, max(1, tokens // 8))))
    groups: list[Group] = []
    start = stem
    while start < tokens:
        left = tokens - start
        branches = draw.randint(1, 4)
        size = left if left < 48 else draw.randint(24, left)
        prompt = max(1, size // 3)
        rest = size - prompt
        lengths = [rest // branches] * branches
        lengths[0] += rest - sum(lengths)
        groups.append(Group(start, prompt, tuple(lengths), stem))
        start += size
    return tuple(groups)


def draws(
    setting: Setting,
    draw: torch.Generator,
    groups: Sequence[Group],
    heads: tuple[int, int],
    width: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values of a packed row."""
    last = groups[-1]
    tokens = last.start + last.prompt + sum(last.branches)
    shapes = [(1, count, tokens, width) for count in (heads[0], heads[1], heads[1])]
    made = [torch.randn(*shape, generator=draw).to(setting.device, dtype) for shape in shapes]
    return made[0], made[1], made[2]


@contextlib.contextmanager
def flex_attention_on(setting: Setting) -> Iterator[None]:
    """The GPU's attention; on a CPU its graphs are made and run without a compiler."""
    if setting.cuda:
        yield
        return
    from torch.nn.attention import flex_attention as code

    own, check = attention.compiled_flex, code._validate_device
    eager = own("eager")
    attention.compiled_flex = lambda: eager  # type: ignore[assignment, misc]
    # A CPU's FlexAttention refuses gradients, for want of a kernel and not of a formula.
    code._validate_device = lambda *tensors: None  # type: ignore[assignment]
    try:
        yield
    finally:
        attention.compiled_flex, code._validate_device = own, check


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: tuple[Group, ...],
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """What `branch_attention` calls on a GPU, without its fallback: each failure is seen."""
    return attention._attend_flex(query, key, value, groups, None, window, softcap)


# 2. FlexAttention's values and gradients ------------------------------------------------------


def flex(setting: Setting, checks: Checks) -> None:
    """FlexAttention forward and backward against dense attention under the same mask in fp32."""
    cases = [
        # head size, heads, window, soft-cap
        (64, (9, 3), None, None),
        (128, (32, 8), None, None),
        (128, (8, 8), 300, None),
        (64, (9, 3), None, 30.0),
        (128, (32, 8), 300, 30.0),
    ]
    lengths = setting.pick((130, 700, 4096), (64, 130))
    if setting.tiny:
        cases = [(16 if w == 64 else 32, (h, k), s and 40, c) for w, (h, k), s, c in cases]
    for width, heads, window, softcap in cases:
        for dtype in (NARROW, WIDE):
            if dtype is WIDE and softcap is None and heads != (9, 3):
                continue
            for tokens in lengths:
                said = f"{(window and f' window {window}') or ''}{(softcap and ' soft-cap') or ''}"
                name = f"{_short(dtype)} D{width} {heads[0]}:{heads[1]}{said} T{tokens}"
                with checks.attempt(name), flex_attention_on(setting):
                    _attend(setting, checks, name, tokens, width, heads, window, softcap, dtype)


def _attend(
    setting: Setting,
    checks: Checks,
    name: str,
    tokens: int,
    width: int,
    heads: tuple[int, int],
    window: int | None,
    softcap: float | None,
    dtype: torch.dtype,
) -> None:
    groups = random_groups(tokens, random.Random(tokens))
    draw = torch.Generator().manual_seed(1)
    inputs = draws(setting, draw, groups, heads, width, dtype)
    upstream = torch.randn(inputs[0].shape, generator=draw).to(setting.device, dtype)
    dense = partial(dense_attention, groups=groups, window=window, softcap=softcap)
    exact = _with_gradients(dense, inputs, upstream, WIDE)
    plain = _with_gradients(dense, inputs, upstream, dtype) if dtype is NARROW else None
    ours = partial(flex_attention, groups=groups, window=window, softcap=softcap)
    found = _with_gradients(ours, inputs, upstream, dtype)
    ok, figures = worst(found, plain, exact)
    checks.gpu(name, ok, **figures)


def _with_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """The result, and the gradient of each input."""
    leaves = [t.detach().to(dtype).clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[Group],
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention with the whole matrix of scores, in the inputs' dtype; the softmax is in fp32."""
    group_of, branch_of, position = (t.to(query.device) for t in attention.locate_tokens(groups))
    shared = (branch_of[None] == 0) | (branch_of[None] == branch_of[:, None])
    own = (group_of[None] == group_of[:, None]) | (group_of[None] == attention.STEM)
    back = position[:, None] - position[None]
    seen = shared & own & (back >= 0)
    if window is not None:
        seen = seen & (back < window)
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = scores.float().masked_fill(~seen, -torch.inf).softmax(-1)
    return weights.to(value.dtype) @ value


# 3. Log-probs and entropy ---------------------------------------------------------------------


def token_logprobs(setting: Setting, checks: Checks) -> None:
    """Log-probs and entropy from hidden states, their gradients, and cut cross-entropy's kernel."""
    cases: list[tuple[int, dict[str, Any], bool, bool]] = [
        # vocabulary, options, bias, entropy
        (49152, {}, False, True),
        (49152, {"temperature": 0.7}, True, True),
        (128256, {"softcap": 30.0}, False, True),
        (128256, {"temperature": 1.3, "softcap": 30.0}, True, False),
    ]
    for vocabulary, options, bias, entropy in cases:
        for dtype in (NARROW, WIDE):
            said = "".join(f" {key} {value}" for key, value in options.items())
            name = f"{_short(dtype)} V{vocabulary}{said}{' bias' if bias else ''}"
            name += " entropy" if entropy else ""
            with checks.attempt(name):
                ok, figures = _tiles(setting, vocabulary, options, bias, entropy, dtype)
                checks.gpu(name, ok, **figures)
    for vocabulary, softcap in ((49152, None), (128256, 30.0)):
        name = f"cut cross-entropy V{vocabulary}{(softcap and ' soft-cap') or ''}"
        with checks.attempt(name):
            _cut(setting, checks, name, vocabulary, softcap)


def _inputs(
    setting: Setting, vocabulary: int, bias: bool, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Hidden states, weight and maybe a bias; targets; and upstream gradients (2, N)."""
    tokens, width, words = setting.pick((3000, 1024, vocabulary), (37, 24, vocabulary // 400))
    draw = torch.Generator().manual_seed(vocabulary)
    hidden = torch.randn(tokens, width, generator=draw)
    weight = torch.randn(words, width, generator=draw) * 2 / width**0.5
    made = [hidden, weight, torch.randn(words, generator=draw)][: 3 if bias else 2]
    targets = torch.randint(0, words, (tokens,), generator=draw).to(setting.device)
    upstream = torch.randn(2, tokens, generator=draw).to(setting.device)
    return [t.to(setting.device, dtype) for t in made], targets, upstream


def _tiles(
    setting: Setting,
    vocabulary: int,
    options: dict[str, Any],
    bias: bool,
    entropy: bool,
    dtype: torch.dtype,
) -> tuple[bool, dict[str, float]]:
    inputs, targets, upstream = _inputs(setting, vocabulary, bias, dtype)
    # A tile of its own keeps cut cross-entropy's kernel away.
    tile = setting.pick(logprobs.GPU_TILE, (8, 32))

    def ours(*leaves: Tensor) -> list[Tensor]:
        read = logprobs.token_logprobs_and_entropy if entropy else logprobs.token_logprobs
        made = read(leaves[0], leaves[1], targets, *leaves[2:], tile=tile, **options)
        return list(made) if entropy else [made]

    plain = partial(_plain_logprobs, targets=targets, entropy=entropy, **options)
    exact = _summed(plain, inputs, upstream, WIDE)
    near = _summed(plain, inputs, upstream, dtype) if dtype is NARROW else None
    found = _summed(ours, inputs, upstream, dtype)
    ok, figures = worst(found, near, exact)
    into = torch.zeros(inputs[1].shape, device=setting.device)
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    straight = logprobs.token_logprobs(
        leaves[0], leaves[1], targets, *leaves[2:], tile=tile, weight_grad_into=into, **options
    )
    straight.backward(upstream[0])
    alone = partial(_plain_logprobs, targets=targets, entropy=False, **options)
    wanted = _summed(alone, inputs, upstream, WIDE)[2]
    beside = [_summed(alone, inputs, upstream, dtype)[2]] if dtype is NARROW else None
    good, more = worst([into], beside, [wanted])
    return ok and good and leaves[1].grad is None, {**figures, "into_worst": more["worst"]}


def _plain_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    targets: Tensor,
    entropy: bool,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> list[Tensor]:
    logits = F.linear(hidden, weight, bias).float()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logs = (logits / temperature).log_softmax(-1)
    picked = logs.gather(1, targets[:, None])[:, 0]
    return [picked, -(logs.exp() * logs).sum(-1)] if entropy else [picked]


def _summed(
    function: Callable[..., list[Tensor]],
    inputs: Sequence[Tensor],
    upstream: Tensor,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The outputs, and the gradients of each input."""
    leaves = [t.detach().to(dtype).clone().requires_grad_() for t in inputs]
    outputs = function(*leaves)
    grads = torch.autograd.grad(outputs, leaves, [u for u, _ in zip(upstream, outputs)])  # noqa: B905
    return [*outputs, *grads]


def _cut(
    setting: Setting, checks: Checks, name: str, vocabulary: int, softcap: float | None
) -> None:
    """Cut cross-entropy in the place where a model calls it."""
    kernel = logprobs._cut_cross_entropy()
    if not setting.cuda and kernel is None:
        checks.skip(name)
        return
    if kernel is None:
        raise ImportError("cut_cross_entropy cannot be imported, so the tiles were used")
    inputs, targets, upstream = _inputs(setting, vocabulary, False, NARROW)
    plain = partial(_plain_logprobs, targets=targets, entropy=False, softcap=softcap)
    exact = _summed(plain, inputs, upstream, WIDE)
    near = _summed(plain, inputs, upstream, NARROW)
    own = logprobs._cut_cross_entropy
    if not setting.cuda:
        on_a_cpu = partial(kernel, impl="torch_compile")
        logprobs._cut_cross_entropy = lambda: on_a_cpu  # type: ignore[assignment]
    into = torch.zeros(inputs[1].shape, device=setting.device)
    hidden, weight = (t.detach().clone().requires_grad_() for t in inputs)
    options = logprobs._Options(1.0, softcap, False, None, False, into)
    try:
        found = logprobs._run_cut_cross_entropy(hidden, weight, targets, options)
        found.backward(upstream[0])
    finally:
        logprobs._cut_cross_entropy = own
    assert hidden.grad is not None
    ok, figures = worst([found, hidden.grad, into], near, exact)
    checks.gpu(name, ok, **figures)


# 4. Norm, gate, rotary ------------------------------------------------------------------------


def elementwise(setting: Setting, checks: Checks) -> None:
    """The compiled norm, gate and rotary embedding against plain arithmetic in fp32."""
    rows, width = setting.pick((2048, 2048), (7, 32))
    draw = torch.Generator().manual_seed(4)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(setting.device)

    tokens, head = setting.pick((700, 128), (9, 16))
    queries, keys = made(1, 8, tokens, head), made(1, 2, tokens, head)
    angles = made(1, tokens, head // 2)
    angles = torch.cat([angles, angles], -1)
    part = angles[..., : head // 4].repeat(1, 1, 2)
    cases: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[Tensor]]] = {
        "norm": (partial(fused.rms_norm, eps=1e-6), _norm, [made(rows, width), made(width)]),
        "norm of Gemma": (
            partial(fused.rms_norm, eps=1e-6, offset=1.0),
            partial(_norm, offset=1.0),
            [made(rows, width), made(width) * 0.1],
        ),
        "gate": (fused.gated_silu, _gate, [made(rows, width), made(rows, width)]),
        "rotary": (
            partial(_ours_rotary, angles=angles),
            partial(_plain_rotary, angles=angles),
            [queries, keys],
        ),
        "partial rotary": (
            partial(_ours_rotary, angles=part),
            partial(_plain_rotary, angles=part),
            [queries, keys],
        ),
    }
    for name, (ours, plain, inputs) in cases.items():
        for dtype in (NARROW, WIDE):
            with checks.attempt(f"{_short(dtype)} {name}"):
                # In fp32 too both get the very inputs that bf16 has.
                rounded = [t.to(NARROW) for t in inputs]
                exact = _weighted(plain, rounded, WIDE)
                near = _weighted(plain, rounded, dtype) if dtype is NARROW else None
                ok, figures = worst(_weighted(ours, rounded, dtype), near, exact)
                checks.gpu(f"{_short(dtype)} {name}", ok, **figures)


def _weighted(
    function: Callable[..., Any], inputs: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    leaves = [t.detach().to(dtype).clone().requires_grad_() for t in inputs]
    made = function(*leaves)
    outputs = list(made) if isinstance(made, tuple) else [made]
    draw = torch.Generator().manual_seed(5)
    upstream = [
        torch.randn(o.shape, generator=draw).to(o.device, NARROW).to(o.dtype) for o in outputs
    ]
    return [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]


def _norm(x: Tensor, weight: Tensor, offset: float = 0.0) -> Tensor:
    wide = x.float()
    normed = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    if offset:
        return (normed * (weight.float() + offset)).to(x.dtype)
    return weight * normed.to(x.dtype)


def _gate(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _ours_rotary(query: Tensor, key: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angles.cos().to(query.dtype), angles.sin().to(query.dtype)
    size = angles.shape[-1]
    turned = fused.rotate(query[..., :size], key[..., :size], cos, sin)
    return (
        torch.cat([turned[0], query[..., size:]], -1),
        torch.cat([turned[1], key[..., size:]], -1),
    )


def _plain_rotary(query: Tensor, key: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = (t.to(query.dtype)[:, None] for t in (angles.cos(), angles.sin()))
    size = angles.shape[-1]

    def turn(x: Tensor) -> Tensor:
        own, rest = x[..., :size], x[..., size:]
        first, second = own.chunk(2, -1)
        return torch.cat([own * cos + torch.cat([-second, first], -1) * sin, rest], -1)

    return turn(query), turn(key)


def _short(dtype: torch.dtype) -> str:
    return "bf16" if dtype is NARROW else "fp32"
