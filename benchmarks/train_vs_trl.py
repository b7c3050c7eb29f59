"""Training speed and memory next to TRL: the same model, data, batch, precision and allocator.

    python benchmarks/train_vs_trl.py [dpo rm grpo] [--data PAIRS.jsonl] [--pairs 128] [--repeats 2]
        [--dtype bf16|fp32] [--device cpu|cuda] [--random-weights small|135m|1b|3b|8b]
        [--tuned-allocator] [--vocabulary 49152] [--quick] [--json]

Every measurement is a process of its own, and the sides take turns (A B A B). The clock starts
after the model and the data are loaded and stops after the last optimiser step; the reference pass,
ours and TRL's precomputed one, is counted. Medians are printed. "useful" tokens are those of every
prompt with its answer, once for each answer; "unique" ones count a shared prompt once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MAX_LENGTH = 512
SIZES = {
    "tiny": (64, 128, 2, 4, 2),
    "small": (256, 1024, 6, 4, 2),
    "135m": (576, 1536, 30, 9, 3),
    "1b": (2048, 8192, 16, 32, 8),
    "3b": (3072, 8192, 28, 24, 8),
    "8b": (4096, 14336, 32, 32, 8),
}
TUNED = ":".join(
    (
        "glibc.malloc.mmap_threshold=4294967296",
        "glibc.malloc.trim_threshold=4294967296",
        "glibc.malloc.hugetlb=1",
    )
)
SIDES = {
    "dpo": ("ours", "trl", "trl_precomputed"),
    "rm": ("ours", "trl"),
    "grpo": ("ours", "trl"),
}


@dataclass(frozen=True)
class Job:
    """One measurement."""

    method: str
    side: str
    data: str
    model: str
    pairs: int
    batch: int
    dtype: str
    device: str
    steps: int


def make_data(path: Path, count: int) -> None:
    """Pairs from the shipped prompts, about as long as those of HH: answers are made of the words
    of other prompts, since only their length matters here."""
    rows = (ROOT / "prompts/seeds/everyday.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(r)["messages"][-1]["content"] for r in rows if r.strip()]
    words = " ".join(texts).split()
    draw = random.Random(0)

    def text(mean: float) -> str:
        length = max(3, int(draw.lognormvariate(0.0, 0.7) * mean))
        start = draw.randrange(len(words) - 1)
        return " ".join((words * 3)[start : start + min(length, 180)])

    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            prompt = f"{texts[i % len(texts)]} {text(55)}"
            row = {"prompt": prompt, "chosen": text(32), "rejected": text(32)}
            file.write(json.dumps(row) + "\n")


def make_model(folder: Path, size: str, vocabulary: int) -> None:
    """A Llama of random weights with a byte tokenizer, for machines without the real model."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|pad|>", bos_token="<|im_start|>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    width, inner, layers, heads, groups = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_rows(job: Job) -> list[dict[str, Any]]:
    """Explicit-prompt conversations, as both sides take them."""
    from rlaif.pipeline.steps.load import load_preferences

    found = load_preferences(Path(job.data))[: job.pairs]
    return [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in found]


def ours_offline(job: Job) -> dict[str, float]:
    """DPO or the reward model by this package, from the loaded model to the last step."""
    import torch

    from rlaif.kernels.device import keep_freed_memory
    from rlaif.pipeline.steps.load import load_preferences
    from rlaif.train.loading import load_module
    from rlaif.train.loop import Task, run_training
    from rlaif.train.methods.pairs import DpoTrain
    from rlaif.train.methods.reward_models import BradleyTerryDistill
    from rlaif.train.model import prepare
    from rlaif.train.preference import PreferenceTask, compute_reference
    from rlaif.train.reward_model import RewardTask
    from rlaif.train.tokenise import encode, load_tokenizer

    keep_freed_memory()
    reward = job.method == "rm"
    keys: dict[str, Any] = {
        "batch_size": job.batch,
        "max_length": MAX_LENGTH,
        "overlong": "truncate_left",
        "learning_rate": 1e-6,
    }
    options = (BradleyTerryDistill if reward else DpoTrain).model_validate(keys)
    start = Path(job.model)
    encoded = encode(
        load_preferences(Path(job.data))[: job.pairs],
        load_tokenizer(start),
        {},
        both=True,
        max_length=MAX_LENGTH,
        overlong="truncate_left",
        train_on_eos=True,
    )
    device = torch.device(job.device)
    dtype = torch.bfloat16 if job.dtype == "bf16" else torch.float32
    model = prepare(load_module(start, device, reward), device, dtype)
    assert model.packed, model.choice.reasons
    parameters = sum(p.numel() for p in model.module.parameters())
    work = Path(tempfile.mkdtemp())
    began = time.perf_counter()
    if reward:
        task: Task = RewardTask(encoded.examples, None, options)
    else:
        path = work / "reference.jsonl"
        stored = compute_reference(model, encoded.examples, options, 0, path)
        task = PreferenceTask(encoded.examples, stored, options, same_start=True)
    referenced = time.perf_counter()
    run_training(task, model, options, work, 0)
    sync(job)
    ended = time.perf_counter()
    unique = sum(len(e.prompt_ids) + sum(map(len, e.completions)) for e in encoded.examples)
    useful = sum(2 * len(e.prompt_ids) + sum(map(len, e.completions)) for e in encoded.examples)
    return {
        "seconds": ended - began,
        "reference_seconds": referenced - began,
        "items": len(encoded.examples),
        "unique_tokens": unique,
        "useful_tokens": useful,
        "parameters": parameters,
        "packed": float(model.packed),
    }


def sync(job: Job) -> None:
    """Wait for the device."""
    if job.device == "cuda":
        import torch

        torch.cuda.synchronize()


def trl_arguments(job: Job) -> dict[str, Any]:
    """What all of TRL's configurations share."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": job.batch,
        "num_train_epochs": 1,
        "learning_rate": 1e-6,
        "bf16": job.dtype == "bf16",
        "use_cpu": job.device == "cpu",
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "dataloader_pin_memory": False,
    }


def trl_offline(job: Job) -> dict[str, float]:
    """DPO or the reward model by TRL."""
    import datasets
    import torch
    import trl
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    data = datasets.Dataset.from_list(load_rows(job))
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    shared = trl_arguments(job) | {"max_length": MAX_LENGTH}
    # fp32 masters with bf16 autocast, as ours.
    options: dict[str, Any] = {"dtype": torch.float32}
    began = time.perf_counter()
    if job.method == "rm":
        model = AutoModelForSequenceClassification.from_pretrained(
            job.model, num_labels=1, **options
        )
        trainer = trl.RewardTrainer(
            model=model,
            args=trl.RewardConfig(**shared),
            train_dataset=data,
            processing_class=tokenizer,
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(job.model, **options)
        ahead = job.side == "trl_precomputed"
        extra: dict[str, Any] = {"precompute_ref_log_probs": ahead}
        if ahead and job.device == "cuda":
            extra |= {"padding_free": True, "use_liger_kernel": has("liger_kernel")}
        began = time.perf_counter()
        trainer = trl.DPOTrainer(
            model=model,
            args=trl.DPOConfig(**shared, **extra),
            train_dataset=data,
            processing_class=tokenizer,
        )
    if job.side != "trl_precomputed":
        # There the reference pass is part of the trainer's construction.
        began = time.perf_counter()
    trainer.train()
    sync(job)
    return {"seconds": time.perf_counter() - began, "items": len(data)}


def has(module: str) -> bool:
    """Whether a module can be imported."""
    import importlib.util

    return importlib.util.find_spec(module) is not None


def token_reward(ids: list[int]) -> float:
    """Something cheap that differs between answers."""
    return len(set(ids)) / max(1, len(ids))


def ours_grpo(job: Job) -> dict[str, float]:
    """GRPO by this package, sampling included."""
    import torch

    from rlaif.config.methods import METHODS
    from rlaif.config.models import ModelSpec
    from rlaif.engines.base import GenerateRequest, Sampling
    from rlaif.engines.local.encoding import Encoding
    from rlaif.engines.local.hf import HfEngine
    from rlaif.engines.local.weights import Weights
    from rlaif.kernels.device import keep_freed_memory
    from rlaif.train.loading import load_module
    from rlaif.train.loop import TrainJob
    from rlaif.train.model import prepare
    from rlaif.train.on_policy import run_on_policy
    from rlaif.train.rollout import Answer, Group
    from rlaif.train.tokenise import load_tokenizer

    keep_freed_memory()
    prompts = [row["prompt"] for row in load_rows(job)]
    options = METHODS["grpo"].model_validate(
        {
            "method": "grpo",
            "rewards": {"r": 1.0},
            "rollouts": job.steps,
            "batch_size": 4,
            "n": 4,
            "max_new_tokens": 64,
            "beta": 0.0,
            "learning_rate": 1e-6,
        }
    )
    device = torch.device(job.device)
    dtype = torch.bfloat16 if job.dtype == "bf16" else torch.float32
    model = prepare(load_module(Path(job.model), device), device, dtype)
    assert model.packed, model.choice.reasons
    tokenizer = load_tokenizer(Path(job.model))
    spec = ModelSpec(path=job.model)
    made: list[int] = []

    def collect(number: int, policy: Any) -> list[Group]:
        chosen = [prompts[(4 * number + i) % len(prompts)] for i in range(4)]
        with policy.generating() as module:
            encoding = Encoding(tokenizer, spec.chat, 2048, "policy")
            engine = HfEngine(Weights(module, "x"), encoding, spec)
            requests = [
                GenerateRequest(f"{p}/{i}", messages, Sampling(64, seed=100 * number + 4 * p + i))
                for p, messages in enumerate(chosen)
                for i in range(4)
            ]
            found = {r.request_id: r for batch in engine.generate(requests) for r in batch}
            groups = []
            for p, messages in enumerate(chosen):
                rows = [found[f"{p}/{i}"] for i in range(4)]
                answers = tuple(
                    Answer(
                        r.token_ids,
                        r.logprobs,
                        (token_reward(r.token_ids),),
                        r.finish_reason == "stop",
                    )
                    for r in rows
                )
                made.extend(len(a.ids) for a in answers)
                groups.append(Group(str(p), engine.render(messages)[1], answers))
        return groups

    began = time.perf_counter()
    work = Path(tempfile.mkdtemp())
    training: TrainJob[Any] = TrainJob(
        options,
        start=Path(job.model),
        out=work / "out",
        work=work,
        seed=0,
        device=device,
        collect=collect,
        fingerprint="f",
    )
    run_on_policy(training, model)
    sync(job)
    return {"seconds": time.perf_counter() - began, "items": job.steps, "tokens": sum(made)}


def trl_grpo(job: Job) -> dict[str, float]:
    """GRPO by TRL, sampling included."""
    import datasets
    import torch
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [{"prompt": row["prompt"]} for row in load_rows(job)]
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    made: list[int] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        made.extend(map(len, completion_ids))
        return [token_reward(ids) for ids in completion_ids]

    shared = trl_arguments(job)
    shared |= {"per_device_train_batch_size": 16, "max_steps": job.steps}
    trainer = trl.GRPOTrainer(
        model=model,
        args=trl.GRPOConfig(
            **shared, num_generations=4, max_completion_length=64, beta=0.0, temperature=1.0
        ),
        reward_funcs=reward,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    began = time.perf_counter()
    trainer.train()
    sync(job)
    return {"seconds": time.perf_counter() - began, "items": job.steps, "tokens": sum(made)}


WORKERS: dict[tuple[str, bool], Callable[[Job], dict[str, float]]] = {
    ("dpo", True): ours_offline,
    ("rm", True): ours_offline,
    ("grpo", True): ours_grpo,
    ("dpo", False): trl_offline,
    ("rm", False): trl_offline,
    ("grpo", False): trl_grpo,
}


def work(job: Job) -> None:
    """One measurement, in this process; the result is the last line of stdout."""
    result = WORKERS[job.method, job.side == "ours"](job)
    if job.device == "cuda":
        import torch

        peak = torch.cuda.max_memory_allocated() / 1e9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps(result | {"peak_gb": peak}))


def measure(job: Job, tuned: bool) -> dict[str, float]:
    """The job in a process of its own."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if tuned:
        environment["GLIBC_TUNABLES"] = TUNED
    command = [sys.executable, __file__, "--work", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"{job.method} by {job.side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def matmul_rate(dtype: str, device: str) -> float:
    """FLOP per second of a square matrix product of 2048 (8192 on a GPU), the best of ten."""
    import torch

    size = 8192 if device == "cuda" else 2048
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def compare(job: Job, repeats: int, tuned: bool) -> dict[str, Any]:
    """Every side in turn, `repeats` times; medians and ratios."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES[job.method]}
    for _ in range(repeats):
        for side in runs:
            found = measure(Job(**{**asdict(job), "side": side}), tuned)
            runs[side].append(found)
            print(
                f"{job.method:5} {side:16} {found['seconds']:8.1f} s  "
                f"{found['items'] / found['seconds']:7.3f} per s  "
                f"{found['peak_gb']:6.2f} GB",
                flush=True,
            )
    middle = {
        side: {key: statistics.median(r[key] for r in rows) for key in rows[0]}
        for side, rows in runs.items()
    }
    ours = middle["ours"]
    # Rates and not times, since one side may skip a pair.
    rate = {side: found["items"] / found["seconds"] for side, found in middle.items()}
    result: dict[str, Any] = {"sides": middle, "speedup": rate["ours"] / rate["trl"]}
    result["memory_ratio"] = ours["peak_gb"] / middle["trl"]["peak_gb"]
    if job.method == "dpo":
        result["speedup_default"] = result["speedup"]
        result["speedup_best"] = rate["ours"] / max(rate["trl"], rate["trl_precomputed"])
    if job.method in ("dpo", "rm"):
        peak = matmul_rate(job.dtype, job.device)
        training = ours["seconds"] - ours["reference_seconds"]
        flops = 6 * ours["parameters"] * ours["unique_tokens"]
        result |= {
            "matmul_tflops": peak / 1e12,
            "matmul_share": flops / training / peak,
            "useful_tokens_per_second": ours["useful_tokens"] / ours["seconds"],
        }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", default=["dpo", "rm", "grpo"])
    parser.add_argument("--data", type=Path, help="a TRL-format file [default: made here]")
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="GRPO steps")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--random-weights", choices=list(SIZES))
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--tuned-allocator", action="store_true", help="glibc's, on both sides")
    parser.add_argument("--quick", action="store_true", help="16 pairs, one run of each side")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Job(**json.loads(options.work)))
        return 0
    sys.path.insert(0, str(ROOT))
    pairs, repeats = (16, 1) if options.quick else (options.pairs, options.repeats)
    folder = Path(tempfile.mkdtemp(prefix="train-vs-trl-"))
    data = options.data
    if data is None:
        data = folder / "pairs.jsonl"
        make_data(data, pairs)
    if options.random_weights:
        make_model(folder / "model", options.random_weights, options.vocabulary)
        model = str(folder / "model")
    else:
        from rlaif.engines.model_folders import resolve

        model = str(resolve("builtin/smollm2-135m-instruct"))
    results: dict[str, Any] = {}
    for method in options.methods:
        job = Job(
            method,
            "",
            str(data),
            model,
            pairs,
            options.batch,
            options.dtype,
            options.device,
            1 if options.quick else options.steps,
        )
        results[method] = compare(job, repeats, options.tuned_allocator)
        shown = {k: v for k, v in results[method].items() if isinstance(v, float)}
        print(f"{method}: " + ", ".join(f"{k} {v:.3g}" for k, v in shown.items()) + "\n")
    if options.json:
        about = {"pairs": pairs, "dtype": options.dtype, "device": options.device}
        print(json.dumps({**results, **about, "tuned_allocator": options.tuned_allocator}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
