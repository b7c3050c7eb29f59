"""The parts of `speed` that are this package's side."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gpu_parts.plan import empty_folder
from gpu_parts.setting import (
    ROOT,
    Checks,
    Setting,
    examples_of_random_tokens,
    free,
    kernel_seconds,
    llama,
    load_tokenizer,
    make_module,
    refuse_slow_paths,
    seconds,
)
from rlaif.config.models import ModelSpec
from rlaif.config.training import LoraOptions
from rlaif.core.chat import KEEP
from rlaif.engines.base import GenerateRequest, Sampling, ScoreRequest
from rlaif.engines.local.encoding import Encoding
from rlaif.engines.local.hf import HfEngine
from rlaif.engines.local.weights import Weights
from rlaif.kernels.batching import plan_epoch
from rlaif.train.loading import load_module
from rlaif.train.loop import Task, TrainJob, TrainProgress, run_training
from rlaif.train.methods.on_policy import GrpoTrain
from rlaif.train.methods.pairs import DpoTrain
from rlaif.train.methods.reward_models import BradleyTerryDistill
from rlaif.train.model import TrainModel, prepare
from rlaif.train.on_policy import run_on_policy
from rlaif.train.preference import PreferenceTask, compute_reference
from rlaif.train.reward_model import RewardTask
from rlaif.train.rollout import Answer, Group
from rlaif.train.tokenise import Example

NARROW = torch.bfloat16
VOCABULARY = 49152
WARM_STEPS = 3
_rates: dict[str, float] = {}


@dataclass(frozen=True)
class Work:
    """Pairs to train on, the same for every side: random tokens, `batch` pairs a step."""

    size: str
    batch: int
    steps: int
    prompt: tuple[int, int]
    answer: tuple[int, int]
    tokens_a_pass: int = 16384
    max_length: int = 2048
    vocabulary: int = VOCABULARY

    @property
    def examples(self) -> list[Example]:
        """The warm-up steps' pairs included."""
        count = self.batch * (WARM_STEPS + self.steps)
        return examples_of_random_tokens(count, self.prompt, self.answer, self.vocabulary)

    def config(self) -> Any:
        """The model's."""
        return llama(self.size, self.vocabulary)


def work(setting: Setting, size: str, batch: int = 32, steps: int = 4) -> Work:
    """About a thousand tokens a pair: a prompt of 256 and two answers of 384."""
    if setting.tiny:
        return Work("tiny", 4, 2, (5, 9), (3, 8), 64, 64, 256)
    return Work(size, batch, steps, (128, 384), (256, 512))


# The machine ----------------------------------------------------------------------------------


def rates(setting: Setting, checks: Checks) -> None:
    """The matmul rate that every MFU below is a share of, and the copy rate."""
    flops, bytes_ = matmul_rate(setting), copy_rate(setting)
    checks.gpu("bf16 matmul", flops > 0, tflops=flops / 1e12)
    checks.gpu("copy, read and write", bytes_ > 0, tb_per_s=bytes_ / 1e12)


def matmul_rate(setting: Setting) -> float:
    """FLOP per second of a bf16 product of squares of 8192: the median of twenty in one go."""
    if "matmul" not in _rates:
        size = setting.pick(8192, 128)
        a, b = (torch.randn(size, size, device=setting.device).to(NARROW) for _ in range(2))
        for _ in range(3):
            a @ b

        def twenty() -> None:
            for _ in range(20):
                a @ b

        taken = sorted(seconds(setting, twenty) for _ in range(5))[2]
        _rates["matmul"] = 20 * 2 * size**3 / taken
    return _rates["matmul"]


def copy_rate(setting: Setting) -> float:
    """Bytes per second, read and written, of copying 4 GiB on the device."""
    source = torch.zeros(setting.pick(1 << 31, 1 << 16), dtype=NARROW, device=setting.device)
    target = torch.empty_like(source)
    target.copy_(source)
    taken = sorted(seconds(setting, lambda: target.copy_(source)) for _ in range(5))[2]
    return 2 * source.nbytes / taken


# Training on pairs ----------------------------------------------------------------------------


def dpo_1b(setting: Setting, checks: Checks) -> None:
    """Every weight of 1B, packed, 16,384 tokens a pass."""
    train_pairs(setting, checks, "dpo", work(setting, "1b"))


def reward_1b(setting: Setting, checks: Checks) -> None:
    """A Bradley-Terry reward model of 1B."""
    train_pairs(setting, checks, "reward", work(setting, "1b"))


def dpo_135m(setting: Setting, checks: Checks) -> None:
    """Every weight of 135M."""
    train_pairs(setting, checks, "dpo", work(setting, "135m"))


def dpo_8b_lora(setting: Setting, checks: Checks) -> None:
    """Adapters on 8B with gradient checkpointing."""
    lora = LoraOptions(r=16)
    train_pairs(setting, checks, "dpo", work(setting, "8b", 16, 3), lora, checkpointing=True)


def dpo_8b_full(setting: Setting, checks: Checks) -> None:
    """Every weight of 8B: 18 bytes a parameter, so with few words and tied embeddings alone."""
    train_pairs(setting, checks, "dpo", work(setting, "8b", 16, 2), checkpointing=True)


def train_pairs(
    setting: Setting,
    checks: Checks,
    method: str,
    job: Work,
    lora: LoraOptions | None = None,
    checkpointing: bool = False,
) -> None:
    """One line: `steps` optimiser steps after the warm-up, the reference pass counted."""
    free(setting)
    reward = method == "reward"
    model = _prepared(setting, job.config(), reward, lora, checkpointing)
    keys: dict[str, Any] = {
        "batch_size": job.batch,
        "max_length": job.max_length,
        "micro_batch_tokens": job.tokens_a_pass,
        "learning_rate": 1e-6,
        "lora": lora,
        "gradient_checkpointing": checkpointing,
    }
    options = (BradleyTerryDistill if reward else DpoTrain).model_validate(keys)
    examples = job.examples
    folder = empty_folder(setting.out, f"speed-{method}")
    timed = _measured(model, examples, options, job)
    reference_warm = reference = 0.0
    if reward:
        task: Task = RewardTask(examples, None, options)
    else:
        # Once for what it compiles, and again for the pairs that are timed.
        stored: dict[str, tuple[float, ...]] = {}

        def compute(name: str, some: Sequence[Example]) -> Callable[[], None]:
            path = folder / f"{name}.jsonl"
            return lambda: stored.update(compute_reference(model, some, options, 0, path))

        reference_warm = seconds(setting, compute("all", examples))
        reference = seconds(setting, compute("timed", [examples[i] for i in timed]))
        task = PreferenceTask(examples, stored, options)
    times = [time.perf_counter()]

    def told(progress: TrainProgress) -> None:
        setting.wait()
        times.append(time.perf_counter())

    setting.wait()
    times[0] = time.perf_counter()
    run_training(task, model, options, folder, 0, told)
    refuse_slow_paths(model)
    taken = times[-1] - times[WARM_STEPS] + reference
    tokens = sum(model.size(examples[i].branches) for i in timed)
    parameters = sum(p.numel() for p in model.module.parameters())
    outside = parameters - _embedding(model).numel()
    factor = (4 if lora else 6) + (0 if reward else 2)
    share = factor * outside * tokens / taken / matmul_rate(setting)
    name = f"{method} {job.size}"
    checks.gpu(
        name,
        taken > 0 and len(times) == WARM_STEPS + job.steps + 1,
        pairs_per_s=len(timed) / taken,
        unique_tokens_per_s=tokens / taken,
        mfu=share,
        seconds=taken,
        reference_seconds=reference,
        warm_seconds=times[WARM_STEPS] - times[0] + reference_warm,
        peak_gb=setting.peak_gb(),
        parameters=parameters,
    )
    # Last, and apart: a profiler that fails or hangs must not take the figures with it.
    busy, wall = kernel_seconds(setting, lambda: _one_pass(task, model, examples, job))
    checks.rows[name] |= {"pass_wall": wall, "pass_kernels": busy}
    shutil.rmtree(folder, ignore_errors=True)


def _prepared(
    setting: Setting,
    config: Any,
    reward: bool = False,
    lora: LoraOptions | None = None,
    checkpointing: bool = False,
) -> TrainModel:
    """A model made on the device, ready to be trained. Raises AssertionError where it would be
    padded: nothing may be timed then."""
    module = make_module(config, setting.device, NARROW, reward=reward)
    module = load_module(module, setting.device, reward)
    model = prepare(module, setting.device, NARROW, lora, checkpointing)
    refuse_slow_paths(model)
    return model


def _embedding(model: TrainModel) -> torch.Tensor:
    weight: torch.Tensor = model.module.get_input_embeddings().weight
    return weight


def _measured(model: TrainModel, examples: Sequence[Example], options: Any, job: Work) -> list[int]:
    """The examples that the steps after the warm-up learn from."""
    sizes = [model.size(e.branches) for e in examples]
    plan = plan_epoch(sizes, options.batch_size, model.token_budget(options), 0, 0)
    return [i for batch in plan[WARM_STEPS:] for micro in batch for i in micro]


def _one_pass(task: Task, model: TrainModel, examples: Sequence[Example], job: Work) -> None:
    """Forward and backward of as many examples as fit into one pass."""
    rows, held = [], 0
    for i, example in enumerate(examples):
        held += model.size(example.branches)
        if rows and held > job.tokens_a_pass:
            break
        rows.append(i)
    loss, _, _ = task.loss(model, rows, task.total(rows), WARM_STEPS)
    loss.backward()


# GRPO -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rollouts:
    """Prompts, answers to each, and new tokens of a GRPO step."""

    size: str
    prompts: int
    answers: int
    new: int
    steps: int = 2


def rollouts(setting: Setting) -> Rollouts:
    """8 prompts x 8 answers x 256 tokens."""
    return setting.pick(Rollouts("1b", 8, 8, 256), Rollouts("tiny", 2, 2, 6))  # type: ignore[no-any-return]


def questions(count: int) -> list[str]:
    """The shipped prompts, repeated with a number where there are too few."""
    rows = (ROOT / "prompts/seeds/everyday.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["messages"][-1]["content"] for row in rows if row.strip()]
    return [
        texts[i % len(texts)] + (f" ({i // len(texts)})" if i >= len(texts) else "")
        for i in range(count)
    ]


def token_reward(ids: Sequence[int]) -> float:
    """Something cheap that differs between answers."""
    return len(set(ids)) / max(1, len(ids))


def grpo_1b(setting: Setting, checks: Checks) -> None:
    """Sampling and learning, without a reference; the warm-up rollouts have short answers."""
    free(setting)
    job = rollouts(setting)
    tokenizer = load_tokenizer()
    config = llama(job.size, len(tokenizer))
    model = _prepared(setting, config)
    folder = empty_folder(setting.out, "speed-grpo")
    sampled: list[float] = []

    def run(name: str, count: int, new: int) -> float:
        options = GrpoTrain(
            method="grpo",
            rewards={"r": 1.0},
            rollouts=count,
            n=job.answers,
            batch_size=job.prompts,
            max_new_tokens=new,
            max_length=2048,
            beta=0.0,
        )

        def collect(number: int, policy: TrainModel) -> list[Group]:
            began = time.perf_counter()
            groups = sample(tokenizer, policy, job, new, number)
            setting.wait()
            sampled.append(time.perf_counter() - began)
            return groups

        training = TrainJob(
            options,
            start=folder,
            out=folder / "out",
            work=folder / name,
            seed=0,
            device=model.device,
            collect=collect,
            fingerprint="f",
        )
        return seconds(setting, lambda: run_on_policy(training, model))

    warm = run("warm", WARM_STEPS, setting.pick(16, 4))
    sampled.clear()
    taken = run("timed", job.steps, job.new)
    refuse_slow_paths(model)
    made = job.steps * job.prompts * job.answers * job.new
    checks.gpu(
        f"grpo {job.size}",
        len(sampled) == job.steps,
        seconds_a_step=taken / job.steps,
        sampling_seconds=sum(sampled) / job.steps,
        tokens_per_s=made / taken,
        warm_seconds=warm,
        peak_gb=setting.peak_gb(),
    )
    shutil.rmtree(folder, ignore_errors=True)


def sample(tokenizer: Any, policy: TrainModel, job: Rollouts, new: int, number: int) -> list[Group]:
    """Fresh answers by the engine, with the weights in training; none ends early."""
    with policy.generating() as module:
        spec = ModelSpec(path="random", device=policy.device.type)
        engine = HfEngine(Weights(module, "w"), Encoding(tokenizer, KEEP, 2048, "policy"), spec)
        engine.end_ids = frozenset()
        asked = [[{"role": "user", "content": text}] for text in questions(job.prompts)]
        requests = [
            GenerateRequest(f"{p}/{i}", turns, Sampling(new, seed=1000 * number + 10 * p + i))
            for p, turns in enumerate(asked)
            for i in range(job.answers)
        ]
        found = {r.request_id: r for batch in engine.generate(requests) for r in batch}
        groups = []
        for p, turns in enumerate(asked):
            made = [found[f"{p}/{i}"] for i in range(job.answers)]
            answers = tuple(
                Answer(r.token_ids, r.logprobs, (token_reward(r.token_ids),), False) for r in made
            )
            groups.append(Group(str(p), engine.render(turns)[1], answers))
    return groups


# The engine -----------------------------------------------------------------------------------


def _engine(setting: Setting, size: str) -> HfEngine:
    tokenizer = load_tokenizer()
    module = make_module(llama(setting.pick(size, "tiny"), len(tokenizer)), setting.device, NARROW)
    spec = ModelSpec(path="random", device=setting.device.type, dtype="bfloat16")
    encoding = Encoding(tokenizer, KEEP, 4096, "policy")
    engine = HfEngine(Weights(module.eval(), "w"), encoding, spec)
    if not engine.weights.branches:
        raise AssertionError("the engine does not share prompts; see the log for why")
    return engine


def labels_1b(setting: Setting, checks: Checks) -> None:
    """The probabilities of yes and no after each of 10,000 questions about an answer."""
    free(setting)
    engine = _engine(setting, "1b")
    count, words = setting.pick((10_000, (40, 120)), (12, (3, 9)))
    draw = random.Random(0)
    vocabulary = " ".join(questions(64)).split()
    labels = {"yes": ("Yes", " Yes"), "no": ("No", " No")}
    requests = []
    for i, text in enumerate(questions(count)):
        answer = " ".join(draw.choices(vocabulary, k=draw.randint(*words)))
        said = f"Question: {text}\nAnswer: {answer}\nIs the answer useful? Say Yes or No."
        requests.append(ScoreRequest(str(i), [{"role": "user", "content": said}], labels=labels))
    few = requests[: max(4, count // 20)]
    warm = seconds(setting, lambda: sum(len(batch) for batch in engine.score(few)))
    results: list[Any] = []
    taken = seconds(
        setting, lambda: results.extend(r for batch in engine.score(requests) for r in batch)
    )
    good = len(results) == count and all(r.error is None and 0 < r.label_mass < 1 for r in results)
    tokens = sum(r.prompt_tokens for r in results)
    parameters = sum(p.numel() for p in engine.model.parameters())
    outside = parameters - engine.model.get_input_embeddings().weight.numel()
    checks.gpu(
        "label questions",
        good,
        questions_per_s=count / taken,
        tokens_per_s=tokens / taken,
        mfu=2 * outside * tokens / taken / matmul_rate(setting),
        seconds=taken,
        warm_seconds=warm,
        peak_gb=setting.peak_gb(),
    )
    engine.close()


def generate_135m(setting: Setting, checks: Checks) -> None:
    """64 prompts x 4 answers x 128 tokens at 135M."""
    _generate(setting, checks, "135m")


def generate_1b(setting: Setting, checks: Checks) -> None:
    """64 prompts x 4 answers x 128 tokens at 1B."""
    _generate(setting, checks, "1b")


def _generate(setting: Setting, checks: Checks, size: str) -> None:
    free(setting)
    engine = _engine(setting, size)
    engine.end_ids = frozenset()
    prompts, answers, new = setting.pick((64, 4, 128), (3, 2, 5))

    def ask(count: int, length: int) -> int:
        requests = [
            GenerateRequest(
                f"{p}/{i}", [{"role": "user", "content": text}], Sampling(length, seed=10 * p + i)
            )
            for p, text in enumerate(questions(count))
            for i in range(answers)
        ]
        return sum(len(r.token_ids) for batch in engine.generate(requests) for r in batch)

    warm = seconds(setting, lambda: ask(prompts, 4))
    made: list[int] = []
    taken = seconds(setting, lambda: made.append(ask(prompts, new)))
    checks.gpu(
        f"generation {size}",
        made == [prompts * answers * new],
        tokens_per_s=made[0] / taken,
        seconds=taken,
        warm_seconds=warm,
        peak_gb=setting.peak_gb(),
    )
    engine.close()
