"""One process of the GPU check: runs the parts of a group, one after the other.

python -m gpu_parts.worker COMMAND OUT DEVICE TINY DEADLINE CODE PART...
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from gpu_parts.plan import PARTS, Part, write_result

LEAST_SECONDS = 8.0
"""With less time left than this no part is begun."""
HUNG = 15.0
"""Seconds after its limit at which a part that no signal reaches is given up with the process."""
UNFINISHED = 75
NO_GPU = 76


class OutOfTime(BaseException):
    """The part's time is over. No `except Exception` on the way may take it for its own."""


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, even by SIGKILL (Linux only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextlib.contextmanager
def time_limit(limit: float, give_up: Any) -> Iterator[None]:
    """Raise OutOfTime after `limit` seconds; where code in C holds on, call `give_up` later."""

    def over(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    watch = threading.Timer(limit + HUNG, give_up)
    watch.daemon = True
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, limit)
    watch.start()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        watch.cancel()


def prepare_torch(command: str, device: str) -> None:
    """The switches under which every part runs, and what is known of the device."""
    import torch
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    if command == "correct":
        torch.set_float32_matmul_precision("highest")
    print(
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.get_num_threads()} threads"
    )
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        print(
            f"{about.name}, {about.total_memory / 2**30:.1f} GiB, {about.multi_processor_count} SMs"
        )


def run_part(part: Part, setting: Any, code: str, limit: float, own: bool) -> bool:
    """Run one part and write its line. False where time ran out: a process that was interrupted
    anywhere is not trusted with the next part. Where the limit is not its `own` but what is left
    for all, the part counts as not run."""
    from gpu_parts.setting import Checks, describe, free

    checks = Checks(setting)
    began = time.perf_counter()

    def taken() -> float:
        return time.perf_counter() - began

    def give_up() -> None:
        if own:
            error = f"hung: {HUNG:.0f} s after its limit of {limit:.0f} s it still ran"
            write_result(setting.out, code, part.name, False, taken(), checks.rows, error)
        os._exit(UNFINISHED)

    print(f"-- {part.name}, at most {limit:.0f} s", flush=True)
    error, late = None, False
    try:
        with time_limit(limit, give_up):
            module, name = part.function.split(":")
            getattr(import_module(f"gpu_parts.{module}"), name)(setting, checks)
            setting.wait()
    except OutOfTime:
        if not own:
            return False
        error, late = f"took more than its limit of {limit:.0f} s", True
    except Exception as raised:
        import traceback

        traceback.print_exc()
        error = describe(raised)
    ok = False if error else checks.ok
    failed = [name for name, row in checks.rows.items() if row["ok"] is False]
    if error is None and failed:
        error = f"failed: {', '.join(failed[:6])}" + (" ..." if len(failed) > 6 else "")
    write_result(setting.out, code, part.name, ok, taken(), checks.rows, error)
    print(f"   {part.name}: {ok} in {taken():.1f} s {error or ''}", flush=True)
    free(setting)
    return not late


def main(arguments: list[str]) -> int:
    """Run the named parts until they are done or the deadline (seconds of the epoch) is there."""
    end_with_parent()
    command, out, device, tiny, deadline, code, *names = arguments
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return NO_GPU
    prepare_torch(command, device)
    from gpu_parts.setting import Setting

    setting = Setting(torch.device(device), tiny == "True", Path(out))
    for part in PARTS[command]:
        if part.name not in names:
            continue
        left = float(deadline) - time.time()
        if left < LEAST_SECONDS:
            return UNFINISHED
        limit = min(float(part.seconds), left)
        if not run_part(part, setting, code, limit, limit == part.seconds):
            return UNFINISHED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
