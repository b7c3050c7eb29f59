"""How other weights reach a running vLLM: by its own protocol of weight transfer (start, update,
finish), over the transport that fits where training and the engine are.

| transport | where | what is sent |
|---|---|---|
| `nccl` | training and engine on different GPUs | tensors, broadcast from the training's GPU |
| `ipc` | both on the only GPU that is visible | tensors, as handles of its memory |
| `rlaif_file` | otherwise, and for a server | the path of a folder that the workers read |

The first two are vLLM's. The third is ours (`rlaif.engines.vllm.vllm_worker`), and is registered in
each of vLLM's processes by the entry point `vllm.general_plugins`.
"""

from __future__ import annotations

import base64
import math
import os
import pickle
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import torch

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.engines.base import ModelWeights
from rlaif.engines.vllm.server import Server, free_port
from rlaif.kernels.device import pick_device

FILE = "rlaif_file"
PLUGINS = "vllm.general_plugins"
PLUGIN = "rlaif_transfer"
INSECURE = "VLLM_ALLOW_INSECURE_SERIALIZATION"


@cache
def register() -> None:
    """Make `FILE` known to vLLM in this process (runs in each of its processes)."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    WeightTransferEngineFactory.register_engine(
        FILE, "rlaif.engines.vllm.vllm_worker", "FileWeightTransferEngine"
    )


def require_plugin(name: str) -> None:
    """Raise EngineError where vLLM's processes will not call `register` for model `name`."""
    if PLUGIN not in {entry.name for entry in entry_points(group=PLUGINS)}:
        raise EngineError(
            f"model {name!r}: this installation of rlaif does not name its plugin {PLUGIN} for "
            "vLLM. Install rlaif again in this environment."
        )
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        raise EngineError(
            f"model {name!r}: VLLM_PLUGINS allows {allowed!r} alone. Add {PLUGIN} and rlaif, or "
            "unset it."
        )


def choose_transport(spec: ModelSpec, on_gpu: bool) -> str:
    """The transport of weights to an engine of ours in this process's charge: `nccl`, `ipc` or
    `FILE`."""
    device = training_device(spec)
    if not on_gpu or device.type != "cuda":
        return FILE
    own = set(range(spec.processes) if spec.gpus is None else spec.gpus)
    if device.index not in own:
        return "nccl"
    # Handles are exchanged among all training processes, of which only the first has the engine:
    # where there are more GPUs, there may be more processes.
    return "ipc" if torch.cuda.device_count() == 1 else FILE


def needed_environment(transport: str) -> dict[str, str]:
    """What vLLM reads from the environment to take weights in this way."""
    # Handles of memory are pickled; only this process can send them.
    return {INSECURE: "1"} if transport == "ipc" else {}


class Client(Protocol):
    """The calls of vLLM's protocol (its `VLLMWeightSyncClient`)."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect the workers."""
        ...

    def start_weight_update(self) -> None:
        """Begin an update."""
        ...

    def update_weights(self, update_info: Any) -> None:
        """Have the workers take weights."""
        ...

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update."""
        ...


class LocalClient:
    """The protocol with a `vllm.LLM`."""

    def __init__(self, llm: Any):
        self.llm = llm

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """See `Client`."""
        self.llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        """See `Client`."""
        self.llm.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        """See `Client`."""
        self.llm.update_weights({"update_info": _pickle_handles(update_info)})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See `Client`."""
        self.llm.finish_weight_update(weight_version)


def _pickle_handles(info: Mapping[str, Any]) -> dict[str, Any]:
    """`info` with handles of GPU memory in the form that vLLM's messages can carry."""
    handles = info.get("ipc_handles")
    if handles is None:
        return dict(info)
    text = base64.b64encode(pickle.dumps(handles)).decode()
    return {**info, "ipc_handles": None, "ipc_handles_pickled": text}


class HttpClient:
    """The protocol with a server of ours, over its HTTP routes. A call takes up to `seconds`."""

    def __init__(self, server: Server, seconds: float):
        self.server = server
        self.seconds = seconds

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """See `Client`."""
        self._post("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        """See `Client`."""
        self._post("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """See `Client`."""
        self._post("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See `Client`."""
        self._post("finish_weight_update", {"weight_version": weight_version})

    def reset_prefix_cache(self) -> bool:
        """Drop what was computed with the old weights; False where it is in use."""
        return bool(self._post("reset_prefix_cache")["success"])

    def _post(self, route: str, body: Mapping[str, Any] | None = None) -> Any:
        return self.server.post(f"/{route}", body or {}, self.seconds)


def send_folder(client: Client, folder: Path) -> None:
    """Have the workers read the weights in `folder`."""
    client.start_weight_update()
    client.update_weights({"folder": str(folder.absolute())})
    client.finish_weight_update()


class DeviceSource:
    """What vLLM's trainer sends (its `WeightSource`): the weights that were set last, on a GPU."""

    def __init__(self, weights: ModelWeights, device: torch.device):
        self.weights = weights
        self.device = device

    def metadata(self) -> list[Any]:
        """Name, dtype and shape of each tensor."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(*row) for row in self.weights.list_tensors()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.weights.read_tensors():
            yield name, tensor.to(self.device)


class Transfer:
    """Gives a running engine other weights, over one transport. It connects at the first."""

    def __init__(self, transport: str, client: Client, spec: ModelSpec, name: str):
        self.transport = transport
        self.client = client
        self.spec = spec
        self.name = name
        self._source: DeviceSource | None = None
        self._trainer: Any = None

    def send(self, weights: ModelWeights) -> None:
        """Put `weights` in place of the engine's. Raises EngineError where they do not arrive."""
        try:
            if self.transport == FILE:
                send_folder(self.client, weights.write())
            else:
                self._send_tensors(weights)
        # vLLM's errors in its workers come as any class.
        except Exception as error:
            raise EngineError(
                f"model {self.name!r}: vLLM has not taken the new weights ({self.transport}): "
                f"{error}"
            ) from error

    def close(self) -> None:
        """Release the connection."""
        if self._trainer is not None:
            self._trainer.shutdown()
        self._trainer = None

    def _send_tensors(self, weights: ModelWeights) -> None:
        device = training_device(self.spec)
        # vLLM's trainer opens its end on the current device.
        with torch.cuda.device(device), torch.no_grad():
            if self._trainer is None or self._source is None:
                self._source = DeviceSource(weights, device)
                workers = self.spec.processes
                self._trainer = connect(self.transport, self.client, self._source, workers)
            self._source.weights = weights
            self._trainer.send_weights()


def training_device(spec: ModelSpec) -> torch.device:
    """Where the first process trains the model."""
    device = torch.device(pick_device(spec.device))
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def connect(transport: str, client: Client, source: DeviceSource, workers: int) -> Any:
    """vLLM's trainer for `transport`, connected with that many workers."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    info = (_nccl_info if transport == "nccl" else _ipc_info)(source, workers)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)


def _nccl_info(source: DeviceSource, workers: int) -> Any:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    # This process is the group's first, and all are on this machine.
    return NCCLTrainerInitInfo("127.0.0.1", free_port(), workers + 1, rank=0)


def _ipc_info(source: DeviceSource, workers: int) -> Any:
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    # In pieces: a second copy of all weights would not fit beside the engine.
    default = IPCTrainerInitInfo(rank=0).packed_buffer_size_bytes
    largest = max(math.prod(m.shape) * m.dtype.itemsize for m in source.metadata())
    return IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=max(default, largest), rank=0)
