"""Which device and which precision to use when the config says `auto`."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

import torch

DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "fp32": torch.float32,
}

# M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of <malloc.h>; 32 MiB is the largest that glibc
# takes for the last.
MALLOPT = {-1: 1 << 30, -2: 1 << 26, -3: 1 << 25}


def pick_device(name: str) -> str:
    """`name`, or the first GPU, or the CPU."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_fast_bf16(device: str) -> bool:
    """Whether bf16 matrix products have hardware behind them.

    A CPU without AMX or AVX512-BF16 emulates them, some ten times slower than fp32.
    """
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    if device == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


def pick_dtype(name: str, device: str) -> torch.dtype:
    """The compute dtype of `auto`, bfloat16/bf16 or float32/fp32 on `device`."""
    if name == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    return DTYPES[name]


def compiled_on(device: torch.device, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` fused into few kernels on a GPU, and as it is on a CPU, where the tensors lie in
    the cache and a pass over them costs little next to a compiler's start."""
    return compiled(function) if device.type == "cuda" else function


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` through torch's compiler, once for all shapes."""
    return torch.compile(function, dynamic=True)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back to the kernel at every large tensor.

    Without it most of the time on a CPU goes into page faults. Elsewhere than on glibc: nothing.
    """
    libc = _load_glibc()
    if libc is not None:
        for parameter, value in MALLOPT.items():
            libc.mallopt(parameter, value)


def release_freed_memory() -> None:
    """Give what is free back to the kernel: once a model is closed, before another is loaded.

    The counterpart of `keep_freed_memory`, without which a closed model would stay resident.
    """
    gc.collect()
    libc = _load_glibc()
    if libc is not None:
        libc.malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load_glibc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libc.so.6")
    except OSError:
        return None


def total_memory(device: torch.device) -> int:
    """Bytes of the device's memory, or of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# Dense bf16 FLOP per second, from the makers' data sheets, by a part of the device's name.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 FLOP per second; None where it is not known, as on a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process has held, on a GPU in tensors, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
