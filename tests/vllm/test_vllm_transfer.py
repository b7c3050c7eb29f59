"""Weights that a running vLLM takes, by its own protocol: `make test-vllm`.

By a file they really arrive, in this process's engine and in a server. NCCL and CUDA IPC need GPUs:
there vLLM's own trainers run up to the bytes, and what they tell the engine is read by the classes
that its workers read it with.
"""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="VLLM IS NOT INSTALLED HERE: make test-vllm")

import torch
from safetensors.torch import load_file, save_file
from vllm.distributed.weight_transfer import ipc_engine, nccl_engine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.engines.base import GenerateRequest, Sampling, ScoreRequest
from rlaif.engines.build import load_engine
from rlaif.engines.checkpoints import FolderWeights
from rlaif.engines.remote.meter import Account
from rlaif.engines.vllm import transfer
from rlaif.engines.vllm.transfer import FILE, DeviceSource, LocalClient, connect

CPU = torch.device("cpu")
GREEDY = Sampling(max_new_tokens=12, temperature=0.0)
ASKED = [
    GenerateRequest(
        f"r{i}", [{"role": "user", "content": f"Say something about the number {i}."}], GREEDY
    )
    for i in range(3)
]
LABELS = {"yes": ("Yes", " Yes"), "no": ("No", " No")}
SCORED = [ScoreRequest(r.request_id, r.messages, labels=LABELS) for r in ASKED]


@pytest.fixture(scope="module")
def changed(model_folder, tmp_path_factory):
    """Two models that differ from the embedded one, and from each other, in every weight."""
    folders = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("changed") / f"model{seed}"
        shutil.copytree(model_folder, folder)
        generator = torch.Generator().manual_seed(seed)
        tensors = load_file(folder / "model.safetensors")
        for tensor in tensors.values():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor += (0.1 * tensor.float().abs().mean() * noise).to(tensor.dtype)
        (folder / "model.safetensors").unlink()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        folders.append(folder)
    yield folders
    for folder in folders:
        shutil.rmtree(folder)


def start(folder, engine="vllm", account=None, **keys):
    spec = ModelSpec(path=str(folder), engine=engine, dtype="float32", max_context=256, **keys)
    return load_engine(spec, folder, "m", account)


def serve(folder, run):
    return start(folder, "vllm-server", Account(run / "spend.jsonl"), cache=False)


def answers(engine):
    """Texts, tokens, log-probs and the labels' probabilities."""
    made = {r.request_id: r for batch in engine.generate(ASKED) for r in batch}
    assert {r.error for r in made.values()} == {None}
    scored = {r.request_id: r for batch in engine.score(SCORED) for r in batch}
    results = [(made[r.request_id], scored[r.request_id]) for r in ASKED]
    return [(m.text, m.token_ids, m.logprobs, s.label_probs) for m, s in results]


def test_weights_by_the_file_backend_are_those_of_an_engine_started_from_them(changed, tmp_path):
    first, second = changed
    engine = start(first)
    assert engine.transfer.transport == FILE
    expected = answers(engine)
    engine.load_weights(FolderWeights(second), "second")
    other = answers(engine)
    assert all(ours != theirs for ours, theirs in zip(other, expected, strict=True))
    engine.load_weights(FolderWeights(first), "first")
    assert answers(engine) == expected
    # A file that was not written to its end changes nothing.
    half = tmp_path / "half"
    shutil.copytree(second, half)
    with (half / "model.safetensors").open("r+b") as file:
        file.truncate((second / "model.safetensors").stat().st_size // 2)
    with pytest.raises(EngineError, match=r"model\.safetensors is absent or not whole"):
        engine.load_weights(FolderWeights(half), "half")
    assert engine.weights_hash == "first"
    assert answers(engine) == expected
    engine.load_weights(FolderWeights(second), "second")
    assert answers(engine) == other
    # One that lacks a parameter leaves a mixture, and that is said from then on.
    tensors = load_file(first / "model.safetensors")
    kept = {name: t.clone() for name, t in tensors.items() if ".layers.7.mlp.down" not in name}
    (half / "model.safetensors").unlink()
    save_file(kept, half / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"no weights for .*layers\.7\.mlp\.down_proj"):
        engine.load_weights(FolderWeights(half), "lacking")
    with pytest.raises(EngineError, match="start the engine again"):
        engine.load_weights(FolderWeights(first), "first")
    engine.close()


def test_a_server_takes_weights_in_place(changed, tmp_path):
    first, second = changed
    engine = serve(first, tmp_path)
    expected = answers(engine)
    server = engine.running()
    stranger = SimpleNamespace(root=server.root, key="no key")
    with pytest.raises(EngineError, match="answers 401"):
        type(server).post(stranger, "/update_weights", {"update_info": {"folder": "/"}}, 5.0)
    engine.load_weights(FolderWeights(second), "second")
    assert all(ours != theirs for ours, theirs in zip(answers(engine), expected, strict=True))
    engine.load_weights(FolderWeights(first), "first")
    assert answers(engine) == expected
    assert engine.running() is server
    engine.close()


class Calls:
    """Stands in for `vllm.LLM`, and writes down what it is told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *given: self.told.append((name, *given))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    tensors = {"a": torch.ones(2, 3), "b": torch.full((4,), 2.0, dtype=torch.bfloat16)}
    save_file(tensors, folder / "model.safetensors")
    return FolderWeights(folder)


def test_the_backend_is_registered_once_in_a_process():
    transfer.register()
    transfer.register()
    config = SimpleNamespace(backend=FILE)
    made = WeightTransferEngineFactory.create_engine(
        config, SimpleNamespace(parallel_config=None, model_config=None), CPU, torch.nn.Module()
    )
    assert type(made).__name__ == "FileWeightTransferEngine"
    assert made.parse_update_info({"folder": "here"}).folder == "here"
    with pytest.raises(ValueError, match="Invalid update_info"):
        made.parse_update_info({"path": "here"})


def test_over_nccl_vllms_trainer_names_each_tensor_and_broadcasts_it(small, monkeypatch):
    group, opened, sent = object(), [], []
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda i: opened.append(i) or group)
    monkeypatch.setattr(
        nccl_engine,
        "packed_nccl_broadcast_producer",
        lambda iterator, group, **_: sent.append((group, list(iterator))),
    )
    llm = Calls()
    trainer = connect("nccl", LocalClient(llm), DeviceSource(small, CPU), 2)
    [(name, told)] = llm.told
    assert name == "init_weight_transfer_engine"
    workers = NCCLWeightTransferInitInfo(**told["init_info"])
    [ours] = opened
    # The trainer is the first of three; both ends meet at one port and pack alike.
    assert (workers.rank_offset, workers.world_size, ours.world_size) == (1, 3, 3)
    assert (workers.master_address, workers.master_port) == ("127.0.0.1", ours.master_port)
    assert workers.packed and ours.packed
    trainer.send_weights()
    names = [name for name, *_ in llm.told[1:]]
    assert names == ["start_weight_update", "update_weights", "finish_weight_update"]
    info = nccl_engine.NCCLWeightTransferUpdateInfo(**llm.told[2][1]["update_info"])
    assert (info.names, info.dtype_names) == (["a", "b"], ["float32", "bfloat16"])
    assert info.shapes == [[2, 3], [4]]
    [(used, pairs)] = sent
    assert used is group
    assert [(name, tensor.float().mean().item()) for name, tensor in pairs] == [("a", 1), ("b", 2)]


def test_over_ipc_vllms_trainer_sends_handles_that_its_workers_can_read(small, monkeypatch):
    handle = {"GPU-1": (torch.Tensor, torch.Size([9]), "handle")}
    asked = []

    def produce(iterator, gpu_uuid, buffer_size_bytes, **_):
        pairs = list(iterator)
        asked.append((gpu_uuid, buffer_size_bytes, [name for name, _ in pairs]))
        names, shapes = [n for n, _ in pairs], [list(t.shape) for _, t in pairs]
        yield SimpleNamespace(
            names=names,
            shapes=shapes,
            dtype_names=["float32", "bfloat16"],
            tensor_sizes=[24, 8],
            ipc_handle=handle,
        )

    monkeypatch.setattr(ipc_engine, "packed_ipc_producer", produce)
    monkeypatch.setattr("torch.accelerator.current_device_index", lambda: 0)
    properties = SimpleNamespace(uuid="GPU-1")
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: properties)
    monkeypatch.setattr("torch.cuda.ipc_collect", lambda: None)
    llm = Calls()
    trainer = connect("ipc", LocalClient(llm), DeviceSource(small, CPU), 1)
    assert llm.told == [("init_weight_transfer_engine", {"init_info": {"packed": True}})]
    trainer.send_weights()
    names = [name for name, *_ in llm.told[1:]]
    assert names == ["start_weight_update", "update_weights", "finish_weight_update"]
    [(uuid, _, sent)] = asked
    assert (uuid, sent) == ("GPU-1", ["a", "b"])
    told = llm.told[2][1]["update_info"]
    monkeypatch.delenv(transfer.INSECURE, raising=False)
    with pytest.raises(ValueError, match=transfer.INSECURE):
        ipc_engine.IPCWeightTransferUpdateInfo(**told)
    monkeypatch.setenv(*transfer.needed_environment("ipc").popitem())
    info = ipc_engine.IPCWeightTransferUpdateInfo(**told)
    assert (info.ipc_handles, info.tensor_sizes) == (handle, [24, 8])


def test_the_buffer_for_ipc_holds_the_largest_tensor():
    huge = SimpleNamespace(
        metadata=lambda: [
            SimpleNamespace(shape=(1 << 20, 1 << 11), dtype=torch.bfloat16),
            SimpleNamespace(shape=(4,), dtype=torch.bfloat16),
        ]
    )
    usual = ipc_engine.IPCTrainerInitInfo(rank=0).packed_buffer_size_bytes
    assert transfer._ipc_info(huge, 1).packed_buffer_size_bytes == 1 << 32 > usual
