"""Full sharding (FSDP2): every rank keeps a part of each weight, its gradient and optimiser state.

A layer's weights are gathered in the compute dtype just before it runs, and its gradients are
summed over the ranks in fp32 just after: all ranks must run forward and backward equally often. The
masters are this rank's parts as plain tensors, which optimisers and checkpoints take as any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlaif.core.errors import EngineError


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
