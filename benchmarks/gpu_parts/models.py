"""Parts 5 and 6 of `correct`: whole models, and one step on two devices."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpu_parts.plan import empty_folder
from gpu_parts.setting import (
    Checks,
    Setting,
    examples_of_random_tokens,
    free,
    llama,
    make_module,
    refuse_slow_paths,
    worst,
)
from rlaif.config.training import LoraOptions
from rlaif.kernels.batching import Branches, padded_layout
from rlaif.train.loop import TrainJob, run_training
from rlaif.train.methods.on_policy import GrpoTrain
from rlaif.train.methods.pairs import DpoTrain
from rlaif.train.model import TrainModel, add_lora, prepare
from rlaif.train.on_policy import run_on_policy
from rlaif.train.preference import PreferenceTask, compute_reference
from rlaif.train.rollout import Answer, Group
from rlaif.train.tokenise import Example

WIDE, NARROW = torch.float32, torch.bfloat16
CPU = torch.device("cpu")


# 5. Whole models ------------------------------------------------------------------------------


def whole_model(setting: Setting, checks: Checks) -> None:
    """Packed and fused against the architecture's own code on padded rows."""
    for name, config in architectures(setting).items():
        for dtype in (WIDE, NARROW):
            case = f"{'fp32' if dtype is WIDE else 'bf16'} {name}"
            with checks.attempt(case):
                _compare_whole(setting, checks, case, config, dtype)
            free(setting)
    config = architectures(setting)["llama"]
    for dtype in (WIDE, NARROW):
        short = "fp32" if dtype is WIDE else "bf16"
        with checks.attempt(f"{short} LoRA"):
            _compare_whole(setting, checks, f"{short} LoRA", config, dtype, LoraOptions(r=8))
        with checks.attempt(f"{short} gradient checkpointing"):
            name = f"{short} gradient checkpointing"
            _compare_whole(setting, checks, name, config, dtype, checkpointing=True)
        free(setting)


def architectures(setting: Setting) -> dict[str, Any]:
    """Two layers each, with the parts in which families differ."""
    from transformers import Gemma2Config, LlamaConfig, Olmo2Config, Qwen3Config

    width, inner, heads, groups, head, words = setting.pick(
        (512, 1024, 8, 2, 64, 8192), (32, 48, 4, 2, 8, 97)
    )
    shared = {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head,
        "max_position_embeddings": 4096,
        "initializer_range": 0.05 if not setting.tiny else 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    sliding = {
        "sliding_window": setting.pick(96, 6),
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": head,
    }
    no_head = {key: value for key, value in shared.items() if key != "head_dim"}
    return {
        "llama": LlamaConfig(**shared),
        "qwen3": Qwen3Config(**shared),
        "gemma2": Gemma2Config(**shared, **sliding),
        "olmo2": Olmo2Config(**no_head),
    }


def branches_of(setting: Setting) -> list[Branches]:
    """Four examples that begin alike, of two and three answers."""
    words, (prompt, answer) = setting.pick((8192, ((60, 300), (30, 200))), (97, ((5, 14), (2, 9))))
    stem = [5, 6, 7, 8, 9]
    pairs = examples_of_random_tokens(2, prompt, answer, words, seed=1)
    more = examples_of_random_tokens(2, prompt, answer, words, seed=2, branches=3)
    return [([*stem, *e.prompt_ids], e.completions) for e in [*pairs, *more]]


def _compare_whole(
    setting: Setting,
    checks: Checks,
    name: str,
    config: Any,
    dtype: torch.dtype,
    lora: LoraOptions | None = None,
    checkpointing: bool = False,
) -> None:
    rows = branches_of(setting)

    def fresh() -> Any:
        return make_module(copy.deepcopy(config), setting.device, WIDE, seed=3)

    def adapted() -> Any:
        module = fresh()
        return module if lora is None else with_adapters(module, lora)

    exact = plain_gradients(adapted(), rows)
    near = plain_gradients(adapted().to(dtype), rows) if dtype is NARROW else None
    module = fresh()
    model = prepare(module, setting.device, dtype, lora, checkpointing)
    if lora is not None:
        randomise_adapters(model.module)
        with torch.no_grad():
            for key, param in model.params.items():
                model.masters[key].copy_(param)
    refuse_slow_paths(model)
    found = our_gradients(model, rows)
    refuse_slow_paths(model)
    if set(found) != set(exact):
        raise AssertionError(f"gradients of other weights: {sorted(set(found) ^ set(exact))[:4]}")
    order = sorted(exact)
    ok, figures = worst(
        [found[key] for key in order],
        near and [near[key] for key in order],
        [exact[key] for key in order],
    )
    checks.add(name, ok, **figures, tensors=len(order))


def with_adapters(module: Any, lora: LoraOptions) -> Any:
    """The module with adapters whose products are not 0, as the packed side's."""
    wrapped = add_lora(module, lora)
    randomise_adapters(wrapped)
    return wrapped


@torch.no_grad()
def randomise_adapters(module: Any) -> None:
    """Draw all adapters' weights; new ones would have a gradient of 0 on one side."""
    draw = torch.Generator().manual_seed(11)
    for key, param in sorted(module.named_parameters()):
        if "lora_" in key:
            values = torch.randn(param.shape, generator=draw) * 0.05
            param.copy_(values.to(param.device, param.dtype))


def _loss(logprobs: Tensor) -> Tensor:
    """A sum in which every token counts differently."""
    count = len(logprobs)
    weights = torch.linspace(-1.0, 2.0, count, device=logprobs.device)
    return (logprobs * weights).sum() / count


def plain_gradients(module: Any, rows: Sequence[Branches]) -> dict[str, Tensor]:
    """Log-probs and every gradient by the architecture's own code on padded rows."""
    module.eval()
    device = next(module.parameters()).device
    layout = padded_layout(rows).to(device)
    logits = module(input_ids=layout.input_ids, use_cache=False).logits.flatten(0, 1)
    logs = logits.index_select(0, layout.predict).float().log_softmax(-1)
    picked = logs.gather(1, layout.targets[:, None])[:, 0]
    _loss(picked).backward()
    grads = {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
    return {"log-probs": picked.detach(), **grads}


def our_gradients(model: TrainModel, rows: Sequence[Branches]) -> dict[str, Tensor]:
    """The same in the way that training computes them."""
    picked = model.token_logprobs(model.layout(rows))
    _loss(picked).backward()
    grads = {key: m.grad for key, m in model.masters.items() if m.grad is not None}
    return {"log-probs": picked.detach(), **grads}


# 6. The CPU and the device agree --------------------------------------------------------------


def devices_agree(setting: Setting, checks: Checks) -> None:
    """One DPO and one GRPO step, and log-probs, from the same weights and tokens on both."""
    words = setting.pick(2048, 128)
    size = {"hidden_size": setting.pick(256, 32), "intermediate_size": setting.pick(512, 48)}
    config = llama("tiny", words, **size, initializer_range=0.1)
    rows = examples_of_random_tokens(4, (10, 60), (5, 40), words, seed=5)
    for step in (_dpo_step, _grpo_step):
        name = step.__name__.strip("_").replace("_", " ")
        with checks.attempt(name):
            ours, grads = step(setting, config, CPU, rows)
            theirs, _ = step(setting, config, setting.device, rows)
            start = dict(make_module(copy.deepcopy(config), CPU, WIDE, seed=6).named_parameters())
            # AdamW's first step is the gradient's sign: where that is rounding, so is the step.
            decided, all_, worst_gap, moved = 0, 0, 0.0, 0.0
            for key, weight in ours.items():
                clear = grads[key].abs() > 1e-3 * grads[key].square().mean().sqrt()
                gap = (weight - theirs[key]).abs()[clear]
                decided += int(clear.sum())
                all_ += weight.numel()
                worst_gap = max(worst_gap, float(gap.max()) if len(gap) else 0.0)
                moved = max(moved, float((weight - start[key]).abs().max()))
            ok = worst_gap <= 1e-5 and moved > 1e-4
            checks.gpu(name, ok, gap=worst_gap, moved=moved, compared=decided / all_)
    for dtype, limit in ((WIDE, 1e-3), (NARROW, 0.1)):
        name = f"log-probs {'fp32' if dtype is WIDE else 'bf16'}"
        with checks.attempt(name):
            values = []
            for device in (CPU, setting.device):
                model = _model(config, device, dtype)
                with torch.no_grad():
                    layout = model.layout([e.branches for e in rows])
                    values.append(model.token_logprobs(layout).cpu())
            gap = float((values[0] - values[1]).abs().max())
            checks.gpu(name, gap <= limit, gap=gap)


def _model(config: Any, device: torch.device, dtype: torch.dtype = WIDE) -> TrainModel:
    """The same weights on every device: made on the CPU."""
    module = make_module(copy.deepcopy(config), CPU, WIDE, seed=6).to(device)
    model = prepare(module, device, dtype)
    refuse_slow_paths(model)
    return model


def _weights(model: TrainModel) -> dict[str, Tensor]:
    return {key: master.detach().cpu().clone() for key, master in model.masters.items()}


def _dpo_step(
    setting: Setting, config: Any, device: torch.device, rows: Sequence[Example]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights after one DPO step, and the gradients that led to it."""
    model = _model(config, device)
    options = DpoTrain(
        batch_size=4, learning_rate=1e-3, warmup_ratio=0.0, schedule="constant", max_grad_norm=1e9
    )
    work = empty_folder(setting.out, f"agree-dpo-{device.type}")
    stored = compute_reference(model, rows, options, 0, work / "reference.jsonl")
    task = PreferenceTask(rows, stored, options, same_start=True)
    loss, _, _ = task.loss(model, range(len(rows)), task.total(range(len(rows))), 0)
    loss.backward()
    grads = {key: m.grad.cpu().clone() for key, m in model.masters.items() if m.grad is not None}
    for master in model.masters.values():
        if master.grad is not None:
            master.grad.zero_()
    run_training(task, model, options, work, 0)
    return _weights(model), grads


def _grpo_step(
    setting: Setting, config: Any, device: torch.device, rows: Sequence[Example]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights after one GRPO step on given answers and rewards, and its direction."""
    model = _model(config, device)
    groups = []
    for number, row in enumerate(rows):
        answers = tuple(
            Answer(list(ids), [], (float((number + i) % 3),), True)
            for i, ids in enumerate(row.completions)
        )
        groups.append(Group(f"p{number}", row.prompt_ids, answers))
    options = GrpoTrain(
        method="grpo",
        rewards={"r": 1.0},
        rollouts=1,
        n=2,
        batch_size=4,
        beta=0.04,
        importance="none",
        learning_rate=1e-3,
        warmup_ratio=0.0,
        schedule="constant",
        max_grad_norm=1e9,
        max_new_tokens=64,
    )
    start = _weights(model)
    reference = prepare(
        make_module(copy.deepcopy(config), CPU, WIDE, seed=7).to(device),
        device,
        WIDE,
        trainable=False,
    )
    work = empty_folder(setting.out, f"agree-grpo-{device.type}")
    job = TrainJob(
        options,
        start=work,
        out=work / "out",
        work=work,
        seed=0,
        device=device,
        collect=lambda number, policy: groups,
        fingerprint="f",
    )
    run_on_policy(job, model, reference)
    after = _weights(model)
    # Of AdamW's first step g / (|g| + 1e-8): what is not nearly 1 had a gradient of rounding.
    step = {key: (after[key] - start[key]).abs() for key in after}
    return after, {key: value * (value > 0.99e-3) for key, value in step.items()}
