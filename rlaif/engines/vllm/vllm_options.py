"""What vLLM is started with, in this process's charge or as a server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError
from rlaif.engines.model_folders import adapter_rank
from rlaif.kernels.device import pick_device, pick_dtype

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The highest ranks that vLLM can be made ready for."""
CPU_CACHE_GIB = "2"
VISIBLE = "CUDA_VISIBLE_DEVICES"


def environment(spec: ModelSpec, on_gpu: bool, logged: str = "ERROR") -> dict[str, str]:
    """What vLLM reads from the environment, but for what the user has set there. It logs from level
    `logged` up. Raises ConfigError for GPUs that are not here."""
    values = {
        # A fork would copy torch's threads in an unknown state.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": logged,
        "VLLM_NO_USAGE_STATS": "1",
    }
    if not on_gpu:
        # By itself it would leave cores idle on a small machine.
        values["VLLM_CPU_OMP_THREADS_BIND"] = binding(os.sched_getaffinity(0), spec.processes)
        values["VLLM_CPU_KVCACHE_SPACE"] = CPU_CACHE_GIB
    unset = {key: value for key, value in values.items() if key not in os.environ}
    return unset if spec.gpus is None else unset | {VISIBLE: visible_gpus(spec)}


def binding(cores: Iterable[int], processes: int) -> str:
    """Which of the cores each of vLLM's processes computes on, in its notation: as many for each,
    in order. The system decides where there are fewer cores than processes."""
    known = sorted(cores)
    share = len(known) // processes
    if not share:
        return "nobind"
    parts = [known[i * share : (i + 1) * share] for i in range(processes)]
    return "|".join(",".join(map(str, part)) for part in parts)


@contextmanager
def within(values: Mapping[str, str]) -> Iterator[None]:
    """Set `values` in the environment inside this context, and restore it afterwards."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def visible_gpus(spec: ModelSpec) -> str:
    """CUDA_VISIBLE_DEVICES for the model's `gpus`. Raises ConfigError for absent ones."""
    count = torch.cuda.device_count()
    wanted = spec.gpus or []
    absent = [gpu for gpu in wanted if gpu >= count]
    if absent:
        there = f"numbers 0 to {count - 1} are" if count > 1 else "only number 0 is"
        here = there if count else "no GPU is"
        raise ConfigError(f"model {spec.path}: `gpus` names {absent}, and {here} here")
    names = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return ",".join(names[gpu] if names else str(gpu) for gpu in wanted)


def trains_beside(spec: ModelSpec, on_gpu: bool, processes: int = 1) -> bool:
    """Whether the model may keep its memory while something trains in so many processes, of which
    each uses the GPU of its number: it is on a CPU, or on GPUs that none of them uses."""
    if not on_gpu:
        return True
    if spec.gpus is None:
        return False
    first = torch.device(pick_device(spec.device)).index or 0
    used = {first} if processes == 1 else set(range(processes))
    return not set(spec.gpus) & used


def options(spec: ModelSpec, context: int, on_gpu: bool, adapter: Path | None) -> dict[str, Any]:
    """Arguments that `vllm.LLM` and `vllm serve` share, `engine_args` among them."""
    dtype = pick_dtype(spec.dtype, "cuda" if on_gpu else "cpu")
    values = {
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": context,
        "enable_prefix_caching": True,
        "seed": 0,
        # Compiling pays on a GPU alone: a CPU spends a minute on it at every start.
        "enforce_eager": not on_gpu,
        # Of the model itself, before temperature: what training compares with.
        "logprobs_mode": "raw_logprobs",
        "disable_log_stats": True,
        # A schema allows any white space between its parts, and small models write nothing else.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "use_tqdm_on_load": False,
    }
    if not on_gpu:
        # Where a prompt that has a seed does not fit into a batch whole, vLLM sets its generator
        # back, which torch cannot do on a CPU, and the engine dies.
        values["enable_chunked_prefill"] = False
    if adapter is not None:
        ready = next(
            (known for known in RANKS if known >= adapter_rank(adapter)), adapter_rank(adapter)
        )
        values |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": ready}
    return values | spec.engine_args
