"""Training by several processes, each with a copy of the model: every rank takes its share of a
batch's micro-batches, and the gradients are summed before the step.

The losses are normalised by the whole batch, so the sum is the very gradient that one process has.
Ranks are started by torchrun and work on files; only rank 0 writes, and none takes the run's lock.

With `sharding: full` (FSDP2) every rank keeps a part of each weight, its gradient and optimiser
state. A layer's weights are gathered in the compute dtype just before it runs, and its gradients
are summed over the ranks in fp32 just after: all ranks must run forward and backward equally often.
The masters are this rank's parts as plain tensors, which optimisers and checkpoints take as any
other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlaif.core.errors import EngineError, RlaifError

T = TypeVar("T")
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
    asked, answer = work / "launch.json", work / "launched.json"
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
    found: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
    if "error" in found:
        kind = EngineError if found["error"] == "EngineError" else RlaifError
        raise kind(found["message"])
    if process.returncode != 0 or "outcome" not in found:
        raise EngineError(
            f"training in {processes} processes failed (exit code {process.returncode}); what they "
            f"said is in {work / 'workers.log'}"
        )
    # Kept where anything failed, as what the ranks were asked.
    asked.unlink(missing_ok=True)
    outcome: dict[str, Any] = found["outcome"]
    return outcome


class Gathered(nn.Module):
    """Runs any computation with `inner` as its own forward.

    FSDP gathers a module's weights for its forward alone, and log-probs read the output head, which
    may be the embedding, outside of the model's.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` returns; its gradients reach the parts when it is differentiated."""
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


def whole(tensor: Any) -> Tensor:
    """The whole of a split tensor. All ranks must ask for it."""
    full: Tensor = tensor.detach().full_tensor()
    return full


def whole_norm(norm: Tensor) -> Tensor:
    """The norm over all ranks' parts from that of this rank's."""
    squares = norm.square()
    dist.all_reduce(squares)
    return squares.sqrt()
