"""Which way other weights take to vLLM, and what it is told: no vLLM is needed."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.engines.checkpoints import FolderWeights
from rlaif.engines.vllm import transfer, vllm
from rlaif.engines.vllm.server import RequireKey
from rlaif.engines.vllm.transfer import (
    FILE,
    INSECURE,
    PLUGIN,
    DeviceSource,
    LocalClient,
    Transfer,
    choose_transport,
    connect,
)


def spec(*gpus: int, size: int = 1, **keys: Any) -> ModelSpec:
    args = {"tensor_parallel_size": len(gpus) or size}
    return ModelSpec(path="m", engine="vllm", gpus=list(gpus) or None, engine_args=args, **keys)


@pytest.mark.parametrize(
    ("model", "count", "transport"),
    [
        pytest.param(spec(), 1, "ipc", id="the only GPU"),
        pytest.param(spec(1), 2, "nccl", id="another GPU"),
        pytest.param(spec(1, 2), 4, "nccl", id="two other GPUs"),
        pytest.param(spec(0, device="cuda:1"), 2, "nccl", id="trained on the second"),
        pytest.param(spec(device="cuda:3"), 4, "nccl", id="trained on the last"),
        # Training processes on the other GPUs would have to take part in an exchange of handles.
        pytest.param(spec(), 2, FILE, id="one of two GPUs"),
        pytest.param(spec(0, 1), 2, FILE, id="partly the same"),
        pytest.param(spec(size=2), 2, FILE, id="the first two"),
        pytest.param(spec(device="cpu"), 1, FILE, id="trained on the CPU"),
    ],
)
def test_the_transport_follows_from_where_training_and_engine_are(
    model: ModelSpec, count: int, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert choose_transport(model, on_gpu=True) == transport
    # vLLM's build for a CPU, on whatever machine.
    assert choose_transport(model, on_gpu=False) == FILE


@pytest.mark.parametrize(
    ("names", "allowed", "message"),
    [
        (["rlaif"], None, "Install rlaif again"),
        (["rlaif", PLUGIN], "rlaif,other", "Add rlaif_transfer"),
        (["rlaif", PLUGIN], f"rlaif,{PLUGIN}", None),
        (["rlaif", PLUGIN], None, None),
    ],
)
def test_vllm_must_be_able_to_load_what_registers_the_file_backend(
    names: list[str], allowed: str | None, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [SimpleNamespace(name=name) for name in names]
    monkeypatch.setattr(transfer, "entry_points", lambda group: entries)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if allowed is not None:
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
    refused = nullcontext() if message is None else pytest.raises(EngineError, match=message)
    with refused:
        transfer.require_plugin("policy")


class Calls:
    """Stands in for `vllm.LLM`, and writes down what it is told."""

    def __init__(self, fails: str = "", clears: bool = True):
        self.told: list[Any] = []
        self.fails = fails
        self.clears = clears

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> bool | None:
            self.told.append((name, *given))
            if name == self.fails:
                raise ValueError("worker 0 is out of memory")
            return self.clears if name == "reset_prefix_cache" else None

        return call


def test_a_folder_is_sent_in_the_order_of_the_protocol(tmp_path: Path) -> None:
    llm = Calls()
    way = Transfer(FILE, LocalClient(llm), spec(), "policy")
    way.send(FolderWeights(tmp_path))
    assert llm.told == [
        ("start_weight_update",),
        ("update_weights", {"update_info": {"folder": str(tmp_path)}}),
        ("finish_weight_update", None),
    ]
    way.close()


def test_weights_that_do_not_arrive_are_an_error_and_are_not_finished(tmp_path: Path) -> None:
    llm = Calls("update_weights")
    with pytest.raises(EngineError, match=r"'policy': vLLM has not taken.*out of memory"):
        Transfer(FILE, LocalClient(llm), spec(), "policy").send(FolderWeights(tmp_path))
    assert [name for name, *_ in llm.told] == ["start_weight_update", "update_weights"]


class Sent:
    """Weights in memory, which are never written."""

    def __init__(self, value: float):
        self.value = value

    def list_tensors(self) -> list[tuple[str, Any, tuple[int, ...]]]:
        return [("w", torch.float32, (2, 3))]

    def read_tensors(self) -> Any:
        yield "w", torch.full((2, 3), self.value)

    def write(self) -> Path:
        raise AssertionError("written")


@pytest.mark.parametrize("kind", ["nccl", "ipc"])
def test_tensors_are_sent_over_one_connection(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    def connect(chosen: str, client: Any, source: Any, workers: int) -> Any:
        events.append((chosen, workers))

        def send() -> None:
            events.append({name: tensor.tolist()[0][0] for name, tensor in source})

        return SimpleNamespace(send_weights=send, shutdown=lambda: events.append("shutdown"))

    monkeypatch.setattr(transfer, "connect", connect)
    here = torch.device("cpu")
    monkeypatch.setattr(transfer, "training_device", lambda _: here)
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext(events.append(device)))
    way = Transfer(kind, LocalClient(Calls()), spec(1, 2), "policy")
    way.close()
    way.send(Sent(1.0))
    way.send(Sent(2.0))
    way.close()
    way.close()
    assert events == [here, (kind, 2), {"w": 1.0}, here, {"w": 2.0}, "shutdown"]


def test_vllms_trainer_is_the_first_of_a_group_with_all_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def install(name: str, **members: Any) -> None:
        module = f"vllm.distributed.weight_transfer.{name}"
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**members))

    def init(info: Any, client: Any, source: Any) -> Any:
        return info, client, source

    install("factory", WeightTransferTrainerFactory=SimpleNamespace(trainer_init=init))
    install("nccl_engine", NCCLTrainerInitInfo=lambda host, port, size, rank: (host, size, rank))
    default = {"packed": False, "packed_buffer_size_bytes": 20}
    install("ipc_engine", IPCTrainerInitInfo=lambda **keys: SimpleNamespace(**default | keys))
    install("base", ParamMeta=lambda name, dtype, shape: SimpleNamespace(dtype=dtype, shape=shape))
    source, client = DeviceSource(Sent(1.0), torch.device("cpu")), LocalClient(Calls())
    assert connect("nccl", client, source, 2) == (("127.0.0.1", 3, 0), client, source)
    info, *rest = connect("ipc", client, source, 2)
    # One tensor of six numbers of four bytes is more than vLLM's own piece.
    assert (info.packed, info.packed_buffer_size_bytes, info.rank) == (True, 24, 0)
    assert rest == [client, source]


def test_vllm_is_started_for_the_transport_that_its_weights_will_take(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[Any, str | None]] = []

    def start(name: str, folder: Path, values: dict[str, Any]) -> Calls:
        started.append((values["weight_transfer_config"], os.environ.get(INSECURE)))
        return Calls()

    monkeypatch.setattr(vllm, "_start_llm", start)
    monkeypatch.delenv(INSECURE, raising=False)
    for kind in ("ipc", "nccl", FILE):
        monkeypatch.setattr(vllm, "choose_transport", lambda spec, on_gpu, kind=kind: kind)
        model = ModelSpec(path=str(tiny_model), engine="vllm")
        assert vllm.load(model, tiny_model, "policy").transfer.transport == kind
    # Handles of memory alone are pickled.
    assert started == [
        ({"backend": "ipc"}, "1"),
        ({"backend": "nccl"}, None),
        ({"backend": FILE}, None),
    ]
    assert INSECURE not in os.environ


def test_new_weights_have_their_hash_once_no_prefix_of_the_old_ones_is_left(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = Calls(clears=False)
    monkeypatch.setattr(vllm, "_start_llm", lambda *given: llm)
    engine = vllm.load(ModelSpec(path=str(tiny_model), engine="vllm"), tiny_model, "policy")
    before = engine.weights_hash
    with pytest.raises(EngineError, match="keeps prefixes that the old weights computed"):
        engine.load_weights(FolderWeights(tmp_path), "new")
    assert engine.weights_hash == before != "new"
    llm.told.clear()
    llm.clears = True
    engine.load_weights(FolderWeights(tmp_path), "new")
    assert engine.weights_hash == "new"
    assert [name for name, *_ in llm.told] == [
        *("start_weight_update", "update_weights", "finish_weight_update"),
        "reset_prefix_cache",
    ]


def test_every_path_of_the_server_but_its_health_needs_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")

    def path(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.url.path)

    app = Starlette(routes=[Route("/{rest:path}", path, methods=["GET", "POST"])])
    client = TestClient(RequireKey(app))
    assert client.get("/health").text == "/health"
    for route in ("/v1/models", "/metrics", "/collective_rpc", "/update_weights", "/health/x"):
        assert client.post(route).status_code == 401
        wrong = {"Authorization": "Bearer secre"}
        assert client.post(route, headers=wrong).status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert client.post(route, headers=right).text == route
