"""Training by several processes, each with a copy of the model: every rank takes its share of a
batch's micro-batches, and the gradients are summed before the step.

The losses are normalised by the whole batch, so the sum is the very gradient that one process has.
Of what is given from the start all ranks are started by torchrun (`launch`). On-policy the run's
own process, which asks the judges, is rank 0, and the others follow it (`joined`). The others work
on files; only rank 0 writes, and none of them takes the run's lock.

With `sharding: full` (FSDP2) every rank keeps a part of each weight, its gradient and optimiser
state. A layer's weights are gathered in the compute dtype just before it runs, and its gradients
are summed over the ranks in fp32 just after: all ranks must run forward and backward equally often.
The masters are this rank's parts as plain tensors, which optimisers and checkpoints take as any
other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlaif.core.errors import EngineError, RlaifError

S = TypeVar("S")
T = TypeVar("T")
REQUEST, ANSWER = "launch.json", "launched.json"
"""What the ranks are asked and what they answer, in a training's work folder."""
BUCKET = 64 * 1024 * 1024
"""Elements of gradients that are summed in one call."""


def rank() -> int:
    """This process's number; 0 when there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(items: Sequence[T]) -> list[T]:
    """This rank's items: every world-th, so that neighbours of like size are spread."""
    return list(items[rank() :: world()])


def deal(items: Sequence[S], compute: Callable[[S], T], equally: bool = False) -> list[T]:
    """What `compute` makes of each item, in their order: each rank computes its share, and all have
    all results. `equally`: all ranks must compute equally often."""
    own = [compute(item) for item in share(items)]
    if equally:
        for item in filler(items):
            compute(item)
    by_rank = gather(own)
    return [by_rank[place % world()][place // world()] for place in range(len(items))]


def tell(value: T | None = None) -> T:
    """The first rank's value, on every rank."""
    if world() == 1:
        return cast(T, value)
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return cast(T, held[0])


def filler(items: Sequence[T]) -> list[T]:
    """What this rank must run besides its share where all ranks run equally often: one item more
    where it has one less than the first rank."""
    return list(items[-1:]) if len(share(items)) < len(items[:: world()]) else []


def gather(value: T) -> list[T]:
    """Every rank's value, by rank."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def wait() -> None:
    """Until every rank is here."""
    if world() > 1:
        dist.barrier()


def sum_gradients(masters: Iterable[Tensor]) -> None:
    """Replace every gradient by its sum over the ranks."""
    if world() == 1:
        return
    # One collective for many small gradients, each of which would cost a round trip.
    bucket: list[Tensor] = []
    held = 0
    for master in masters:
        if master.grad is None:
            continue
        bucket.append(master.grad)
        held += master.grad.numel()
        if held >= BUCKET:
            _sum_gradients(bucket)
            bucket, held = [], 0
    if bucket:
        _sum_gradients(bucket)


def _sum_gradients(gradients: list[Tensor]) -> None:
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def launch(
    request: Mapping[str, Any],
    processes: int,
    work: Path,
    progress: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Run `request` (see `rlaif.train.worker`) in that many processes; the outcome.

    `progress` gets a dict after each optimiser step. Raises what the workers raised.
    """
    work.mkdir(parents=True, exist_ok=True)
    asked, answer = work / REQUEST, work / ANSWER
    asked.write_text(json.dumps(request))
    # The answer of an earlier launch must not be taken for this one's.
    answer.unlink(missing_ok=True)
    command = [
        *[sys.executable, "-m", "torch.distributed.run", "--standalone"],
        *["--nproc_per_node", str(processes), "-m", "rlaif.train.worker", str(asked)],
    ]
    with (work / "workers.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            for line in process.stdout or ():
                # Libraries print on the same pipe; a line of progress is JSON.
                if line.startswith("{"):
                    progress(json.loads(line))
            process.wait()
        finally:
            # A Ctrl-C or an error here must not leave ranks behind.
            if process.poll() is None:
                process.terminate()
                process.wait()
    found = read_answer(work)
    if process.returncode != 0 or "outcome" not in found:
        raise _explain_failure(work, processes, process.returncode)
    # Kept where anything failed, as what the ranks were asked.
    asked.unlink(missing_ok=True)
    outcome: dict[str, Any] = found["outcome"]
    return outcome


def read_answer(work: Path) -> dict[str, Any]:
    """What the ranks have written in the end: the outcome, or what one raised; empty where they
    have not."""
    answer = work / ANSWER
    found: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
    return found


def read_failure(work: Path) -> RlaifError | None:
    """What a rank raised; None where none said that it did."""
    found = read_answer(work)
    if "error" not in found:
        return None
    kind = EngineError if found["error"] == "EngineError" else RlaifError
    return kind(found["message"])


def _explain_failure(work: Path, processes: int, code: int | None) -> RlaifError:
    """What a rank raised, or that one ended with this exit code."""
    return read_failure(work) or EngineError(
        f"training in {processes} processes failed (exit code {code}); what they said is in "
        f"{work / 'workers.log'}"
    )


@contextmanager
def joined(request: Mapping[str, Any], processes: int, work: Path) -> Iterator[None]:
    """Inside, this process is rank 0 of so many. The others are started here as
    `rlaif.train.worker`, do `request`, and end with this.

    Raises what one of them raised, or EngineError where one ended otherwise.
    """
    work.mkdir(parents=True, exist_ok=True)
    asked, answer, meeting = (work / n for n in (REQUEST, ANSWER, "meeting"))
    for old in (answer, *work.glob("meeting*")):
        old.unlink(missing_ok=True)
    asked.write_text(json.dumps({**request, "meeting": str(meeting)}))
    threads = torch.get_num_threads()
    others: list[subprocess.Popen[bytes]] = []
    code: int | None = None
    with (work / "workers.log").open("w") as log:
        try:
            for number in map(str, range(1, processes)):
                place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": str(processes)}
                command = [sys.executable, "-m", "rlaif.train.worker", str(asked)]
                environment = {**os.environ, **place}
                others.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
            _await_others(others, meeting)
            meet(0, processes, 0, request["device"], meeting)
            yield
            for other in others:
                other.wait()
            code = _first_failure(others, 0.0)
        except RuntimeError:
            # A rank that waits for one that has ended learns of it by the broken connection. Asked
            # before the others are ended, which is no failure of theirs.
            code = _first_failure(others, 10.0)
            if code is None:
                raise
        finally:
            # An error or a Ctrl-C here must not leave ranks behind.
            for other in others:
                if other.poll() is None:
                    other.terminate()
            for other in others:
                other.wait()
            if dist.is_initialized():
                dist.destroy_process_group()
            torch.set_num_threads(threads)
    if code is not None:
        raise _explain_failure(work, processes, code)
    for file in (asked, *work.glob("meeting*")):
        file.unlink(missing_ok=True)


def _first_failure(others: Sequence[subprocess.Popen[bytes]], seconds: float) -> int | None:
    """The exit code of a process that failed, waited for so long at most."""
    end = time.monotonic() + seconds
    while True:
        failed = [code for code in (other.poll() for other in others) if code]
        if failed or time.monotonic() >= end:
            return failed[0] if failed else None
        time.sleep(0.05)


def _await_others(others: Sequence[subprocess.Popen[bytes]], meeting: Path) -> None:
    """Until all others are about to meet. Raises RuntimeError where one has ended before, for
    which a meeting would wait in vain."""
    names = [meeting.with_name(f"{meeting.name}-{number}") for number in range(1, len(others) + 1)]
    while not all(name.exists() for name in names):
        if _first_failure(others, 0.05) is not None:
            raise RuntimeError("a process ended before the others had met")


def meet(rank: int, processes: int, local: int, device: str, meeting: Path | None) -> torch.device:
    """Take this process's place among so many, and return its device: they meet by a file, by
    torchrun's environment, or where Ray started them they have met already."""
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(local)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    if meeting is not None and rank > 0:
        meeting.with_name(f"{meeting.name}-{rank}").touch()
    found = torch.device(f"cuda:{local}" if cuda else "cpu")
    if dist.is_initialized():
        return found
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method="env://" if meeting is None else meeting.resolve().as_uri(),
        rank=rank,
        world_size=processes,
        # One rank writes checkpoints and exports, or asks the judges, while the others wait.
        timeout=timedelta(hours=2) if meeting is None else timedelta(days=30),
    )
    return found


class Gathered(nn.Module):
    """Runs any computation with `inner` as its own forward.

    FSDP gathers a module's weights for its forward alone, and log-probs read the output head, which
    may be the embedding, outside of the model's.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, compute: Callable[[], T]) -> T:
        """What `compute` returns, a tensor or several; its gradients reach the parts when it is
        differentiated."""
        return compute()


def shard(module: nn.Module, layers: set[str], device: torch.device, dtype: torch.dtype) -> Any:
    """Split the parameters of `module` over the ranks, each layer for itself, and return the
    `Gathered` that runs it. `layers` names the classes of its layers."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Bottom-up, as `fully_shard` wants it.
    found = [inner for inner in module.modules() if type(inner).__name__ in layers][::-1]
    if not found:
        raise EngineError(
            f"{type(module).__name__} does not say which of its parts are layers, so it cannot be "
            "split: set `sharding: none`"
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    root = Gathered(module)
    for each in [*found, root]:
        split = fully_shard(each, mesh=mesh, mp_policy=policy)
        # The losses are normalised by the whole batch: a sum is wanted and no mean. gloo knows no
        # scaled sum.
        split.set_gradient_divide_factor(1.0)
        split.set_force_sum_reduction_for_comms(True)
    return root


def part(tensor: Any) -> Tensor:
    """This rank's part of a split tensor; it shares its memory."""
    local: Tensor = tensor.detach().to_local()
    return local


def is_split(tensor: Tensor) -> bool:
    """Whether each rank has a part of it alone."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The whole of a split tensor, in `dtype` where that is given. All ranks must ask for it."""
    # Cast first: half as much is sent.
    full: Tensor = tensor.detach().to(dtype or tensor.dtype).full_tensor()
    return full


def whole_norm(norm: Tensor) -> Tensor:
    """The norm over all ranks' parts from that of this rank's."""
    squares = norm.square()
    dist.all_reduce(squares)
    return squares.sqrt()
