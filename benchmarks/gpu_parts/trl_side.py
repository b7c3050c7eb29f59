"""The parts of `speed` that are TRL's side: the same tokens, the same sizes, the same steps.

bf16 autocast over fp32 weights, SDPA, the reference's log-probs computed ahead, Liger's kernels;
`padding_free` needs FlashAttention, and sampling is transformers' own, since vLLM is not there.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu_parts.plan import empty_folder
from gpu_parts.setting import Checks, Setting, free, llama, load_tokenizer, make_module
from gpu_parts.speed import WARM_STEPS, Work, questions, rollouts, token_reward, work


def with_liger(setting: Setting, checks: Checks, run: Callable[[bool], None]) -> None:
    """TRL's side with Liger's kernels; where these fail on a GPU, that is said, and it runs
    without them."""
    if setting.cuda:
        with checks.attempt("with Liger's kernels"):
            if importlib.util.find_spec("liger_kernel") is None:
                raise ImportError("liger_kernel is not installed")
            run(True)
            return
        free(setting)
    run(False)


def dpo_1b(setting: Setting, checks: Checks) -> None:
    """TRL's DPO on the pairs of `speed.dpo_1b`."""
    import trl

    class Tokenised(trl.DPOTrainer):
        """Takes token ids as they are, and keeps the time of the reference pass."""

        reference_seconds = 0.0

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            found = super()._precompute_ref_logps(*arguments, **named)
            setting.wait()
            self.reference_seconds += time.perf_counter() - began
            return found

    job = work(setting, "1b")
    rows = [
        {
            "prompt_ids": e.prompt_ids,
            "chosen_ids": e.completions[0],
            "rejected_ids": e.completions[1],
        }
        for e in job.examples
    ]

    def run(liger: bool) -> None:
        arguments = _arguments(setting, job, "trl-dpo", liger)
        config = trl.DPOConfig(**arguments, precompute_ref_log_probs=True, beta=0.1)
        _train(setting, checks, "dpo", job, Tokenised, config, rows, reward=False)

    with_liger(setting, checks, run)


def reward_1b(setting: Setting, checks: Checks) -> None:
    """TRL's reward model on the pairs of `speed.reward_1b`."""
    import trl

    job = work(setting, "1b")
    rows = [
        {
            "chosen_ids": [*e.prompt_ids, *e.completions[0]],
            "rejected_ids": [*e.prompt_ids, *e.completions[1]],
        }
        for e in job.examples
    ]

    def run(liger: bool) -> None:
        config = trl.RewardConfig(**_arguments(setting, job, "trl-reward", liger))
        _train(setting, checks, "reward", job, trl.RewardTrainer, config, rows, reward=True)

    with_liger(setting, checks, run)


def _arguments(setting: Setting, job: Work, name: str, liger: bool) -> dict[str, Any]:
    folder = empty_folder(setting.out, name)
    # As many pairs at once as our passes hold, by their padded size.
    micro = setting.pick(8, 2)
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": job.batch // micro,
        "max_length": job.max_length,
        **_common(setting, liger),
    }


def _common(setting: Setting, liger: bool) -> dict[str, Any]:
    return {
        "num_train_epochs": 1,
        "learning_rate": 1e-6,
        "bf16": setting.cuda,
        "use_cpu": not setting.cuda,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "use_liger_kernel": liger,
    }


def _clock(setting: Setting) -> Any:
    """A callback that keeps the time at the start and after every optimiser step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """See `_clock`."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            """Once, before the first step."""
            self._note()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """After each optimiser step."""
            self._note()

        def _note(self) -> None:
            setting.wait()
            self.times.append(time.perf_counter())

    return Clock()


def _train(
    setting: Setting,
    checks: Checks,
    method: str,
    job: Work,
    kind: Any,
    config: Any,
    rows: list[dict[str, Any]],
    reward: bool,
) -> None:
    import datasets

    free(setting)
    model = make_module(job.config(), setting.device, torch.float32, reward=reward)
    clock = _clock(setting)
    trainer = kind(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=load_tokenizer(),
        callbacks=[clock],
    )
    trainer.train()
    steps = WARM_STEPS + job.steps
    timed = job.batch * job.steps
    reference = getattr(trainer, "reference_seconds", 0.0) * timed / len(rows)
    taken = clock.times[-1] - clock.times[WARM_STEPS] + reference
    checks.gpu(
        f"{method} {job.size}",
        len(clock.times) == steps + 1,
        pairs_per_s=timed / taken,
        seconds=taken,
        reference_seconds=reference,
        warm_seconds=clock.times[WARM_STEPS] - clock.times[0],
        peak_gb=setting.peak_gb(),
        **_how(config),
    )
    shutil.rmtree(Path(config.output_dir), ignore_errors=True)


def _how(config: Any) -> dict[str, Any]:
    """What TRL's side ran with, for the table."""
    return {"liger": bool(config.use_liger_kernel), "padding_free": False, "attention": "sdpa"}


def grpo_1b(setting: Setting, checks: Checks) -> None:
    """TRL's GRPO of the size of `speed.grpo_1b`. Nothing of it compiles: one warm-up step."""
    with_liger(setting, checks, lambda liger: _grpo(setting, checks, liger))


def _grpo(setting: Setting, checks: Checks, liger: bool) -> None:
    import datasets
    import trl

    free(setting)
    job = rollouts(setting)
    tokenizer = load_tokenizer()
    # No answer ends early, as on our side: the end is a token that is never drawn.
    model = make_module(llama(job.size, len(tokenizer)), setting.device, torch.float32)
    clock = _clock(setting)
    folder = empty_folder(setting.out, "trl-grpo")
    config = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=job.prompts * job.answers,
        num_generations=job.answers,
        max_completion_length=job.new,
        max_steps=1 + job.steps,
        beta=0.0,
        temperature=1.0,
        generation_kwargs={"min_new_tokens": job.new},
        **_common(setting, liger),
    )
    made: list[int] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        made.extend(map(len, completion_ids))
        return [token_reward(ids) for ids in completion_ids]

    rows = [
        {"prompt": [{"role": "user", "content": text}]}
        for text in questions(job.prompts * (1 + job.steps))
    ]
    trainer = trl.GRPOTrainer(
        model=model,
        args=config,
        reward_funcs=reward,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    taken = clock.times[-1] - clock.times[1]
    tokens = job.prompts * job.answers * job.new
    checks.gpu(
        f"grpo {job.size}",
        len(clock.times) == job.steps + 2 and sum(made) == tokens * (1 + job.steps),
        seconds_a_step=taken / job.steps,
        tokens_per_s=tokens * job.steps / taken,
        warm_seconds=clock.times[1] - clock.times[0],
        tokens=sum(made),
        peak_gb=setting.peak_gb(),
        **_how(config),
    )
    shutil.rmtree(folder, ignore_errors=True)
