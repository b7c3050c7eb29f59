"""What training writes: checkpoints to resume from, and the finished model.

A checkpoint is safetensors and JSON, whole or absent, only the latest. Beside it lies
metrics.jsonl, one row for every optimiser step; a checkpoint relies on the rows before it. `export`
publishes the finished model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlaif.config.training import LoraOptions
from rlaif.core.errors import StoreError
from rlaif.core.integrity import (
    CHECKSUMS_NAME,
    digest,
    file_digest,
    publish_folder,
    sync_to_disk,
    verify_folder,
)
from rlaif.engines.checkpoints import (
    copy_text_files,
    is_reward,
    load_classifier,
    pad_apart_from_end,
    read_at_last,
    save_module,
    write_checkpoint,
    write_older_names,
)
from rlaif.engines.local.distance import Region, save_region
from rlaif.engines.merging import earlier_adapter, save_adapter, write_on_base
from rlaif.engines.model_folders import ADAPTER, MEMBERS
from rlaif.kernels.device import release_freed_memory
from rlaif.kernels.heads import Head, save_head
from rlaif.train import parallel
from rlaif.train.depth import cut
from rlaif.train.loading import load_module
from rlaif.train.model import TrainModel, add_lora, causal
from rlaif.train.quantile_tokens import widen_vocabulary

PREFIX = "checkpoint-"
ROWS = "metrics.jsonl"


def save(
    work: Path,
    step: int,
    masters: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    sharded: bool = False,
    older: int | None = None,
) -> None:
    """Write masters, optimiser state, random states and `state`, then drop older checkpoints but
    that of step `older`.

    With `sharded` every rank writes its part; else the ranks differ in their random states alone,
    and the first writes.
    """
    # Dropout draws as much as a rank's own micro-batches ask for.
    random = parallel.gather(_random_state())
    final = _checkpoint_folder(work, step)
    temporary = work / f"partial-{step:08d}"
    first = parallel.rank() == 0
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    # The folder is there before any rank writes into it.
    parallel.wait()
    if first or sharded:
        _write_tensors(temporary / _name_part(sharded), masters, optimizer)
    # Every part is written before the folder gets its checksums and its name.
    parallel.wait()
    if first:
        states = {f"{kind}|{n}": v for n, own in enumerate(random) for kind, v in own.items()}
        save_file(states, temporary / "random.safetensors")
        # What the checkpoint counts on is on disk before it.
        log = describe_log(work / ROWS)
        kept = {**state, "step": step, "parts": _count_parts(sharded), "metrics": log}
        (temporary / "state.json").write_text(json.dumps(kept))
        _publish_checkpoint(temporary, final, older)
    # No rank goes on, and perhaps ends, before the checkpoint counts.
    parallel.wait()


def _checkpoint_folder(work: Path, step: int) -> Path:
    return work / f"{PREFIX}{step:08d}"


def _count_parts(sharded: bool) -> int:
    return parallel.world() if sharded else 1


def _name_part(sharded: bool) -> str:
    """The folder of this rank's tensors in a checkpoint."""
    return f"part-{parallel.rank() if sharded else 0}"


def _random_state() -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def _write_tensors(
    folder: Path, masters: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    folder.mkdir()
    save_file({n: m.detach().cpu() for n, m in masters.items()}, folder / "weights.safetensors")
    tensors = {
        f"{key}|{name}": _state_to_tensor(key, value)
        for name, master in masters.items()
        for key, value in optimizer.state.get(master, {}).items()
    }
    save_file(tensors, folder / "optimizer.safetensors")


def _state_to_tensor(key: str, value: Tensor | int) -> Tensor:
    """A value of an optimiser's state as a tensor: bitsandbytes counts steps in a plain int."""
    if isinstance(value, int):
        return torch.tensor(value)
    # Its code books are shared by all weights, and safetensors refuses shared memory.
    return value.detach().cpu().clone() if key.startswith("qmap") else value.detach().cpu()


def _state_from_tensor(value: Tensor, device: torch.device) -> Tensor | int:
    # Fused AdamW counts in a float, and wants it beside the weights.
    return int(value) if value.dtype == torch.int64 else value.to(device)


def _publish_checkpoint(temporary: Path, final: Path, older: int | None) -> None:
    """Make the checkpoint last, then visible, and drop the older ones but that of step `older`."""
    publish_folder(temporary, final)
    kept = {final} if older is None else {final, _checkpoint_folder(final.parent, older)}
    for old in final.parent.glob(PREFIX + "*"):
        if old not in kept:
            shutil.rmtree(old)


def drop_after(work: Path, step: int) -> None:
    """Remove the checkpoints of more than the first `step` steps, the latest first, so that after a
    kill at any time the latest of those that are left is restored."""
    last = _checkpoint_folder(work, step)
    for folder in sorted(work.glob(PREFIX + "*"), reverse=True):
        if folder.name > last.name:
            shutil.rmtree(folder)


def restore(
    work: Path,
    masters: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
    sharded: bool = False,
) -> dict[str, Any] | None:
    """Load the latest checkpoint into `masters` and `optimizer`; its state, or None without one.

    Raises StoreError when it is damaged, belongs to another training, or was split in another way.
    """
    if parallel.rank() == 0:
        for torn in work.glob("partial-*"):
            shutil.rmtree(torn)
    parallel.wait()
    found = sorted(work.glob(PREFIX + "*"))
    if not found:
        return None
    folder = found[-1]
    state = _whole_state(folder)
    if state["fingerprint"] != fingerprint:
        raise StoreError(
            f"{folder}: this checkpoint is of a training with other data or options. "
            f"Delete {work} to start again."
        )
    # Before any tensor is read: a rank beyond those that wrote would find no part.
    if state["parts"] != _count_parts(sharded):
        raise StoreError(
            f"{folder}: this checkpoint was written by {state['parts']} processes that split the "
            f"weights. Set `processes: {state['parts']}`, or delete {work} to start again."
        )
    own = folder / _name_part(sharded)
    weights = load_file(own / "weights.safetensors")
    tensors = load_file(own / "optimizer.safetensors")
    # In place: the optimiser and the module hold these very tensors.
    with torch.no_grad():
        for name, master in masters.items():
            master.copy_(weights[name])
    for path, value in tensors.items():
        key, name = path.split("|", 1)
        optimizer.state[masters[name]][key] = _state_from_tensor(value, masters[name].device)
    _set_random_state(load_file(folder / "random.safetensors"))
    return state


def _whole_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's state, after a look at all of its files. Raises StoreError where one is not
    what was written."""
    advice = f"Delete the folder {folder} to train again from the start."
    # Every rank reads its own part; the first one looks at them all.
    compared = verify_folder(folder, advice) if parallel.rank() == 0 else 0
    try:
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError, RecursionError):
        state = None
    known = isinstance(state, dict) and {"fingerprint", "step", "parts"} <= state.keys()
    # Earlier versions wrote neither checksums nor where the log of metrics was.
    if not known or (compared is None and "metrics" in state):
        raise StoreError(f"{folder}: damaged. {advice}")
    whole: dict[str, Any] = state
    return whole


def _set_random_state(states: dict[str, Tensor]) -> None:
    """This rank's; one that did not exist when the checkpoint was written goes on from the seed."""
    cpu, cuda = (states.get(f"{kind}|{parallel.rank()}") for kind in ("cpu", "cuda"))
    if cpu is not None:
        torch.set_rng_state(cpu)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)


def clear(work: Path) -> None:
    """Remove every checkpoint in `work`."""
    for folder in [*work.glob(PREFIX + "*"), *work.glob("partial-*")]:
        shutil.rmtree(folder)


def write_row(work: Path, row: dict[str, Any]) -> None:
    """Append one row, by rank 0."""
    if parallel.rank() == 0:
        with (work / ROWS).open("a") as file:
            file.write(json.dumps(row) + "\n")


def describe_log(path: Path) -> dict[str, Any]:
    """What a checkpoint keeps of a file that rows are appended to, which is then on disk: its size
    and checksum."""
    if not path.exists():
        return {"size": 0, "digest": digest(b"")}
    sync_to_disk(path)
    return {"size": path.stat().st_size, "digest": file_digest(path)}


def keep_rows(work: Path, steps: int, state: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows up to step `steps`, that of the checkpoint with this `state`; later rows are dropped
    from the file. Raises StoreError where those that the checkpoint counts on are damaged."""
    path = work / ROWS
    if state is None:
        return keep_log(path, None)
    return keep_log(path, state.get("metrics") or _up_to(path, steps))


def keep_log(path: Path, log: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows that a checkpoint counts on by what `describe_log` said then (None: no rows); later
    ones are dropped from the file. Raises StoreError where they are damaged."""
    # Read whole: each row is wanted.
    data = path.read_bytes() if path.exists() else b""
    size = 0 if log is None else log["size"]
    if log is not None and digest(data[:size]) != log["digest"]:
        raise StoreError(
            f"{path}: damaged: it is not what the last checkpoint counts on. Delete the folder "
            f"{path.parent} to train again from the start."
        )
    # All ranks have read the file before the first one cuts it.
    parallel.wait()
    if parallel.rank() == 0 and size < len(data):
        temporary = path.with_suffix(".partial")
        temporary.write_bytes(data[:size])
        temporary.rename(path)
    parallel.wait()
    return [json.loads(line) for line in data[:size].splitlines()]


def _up_to(path: Path, steps: int) -> dict[str, Any]:
    """`describe_log` of the rows up to a step, for a checkpoint of an earlier version, which did
    not say. What cannot be read as rows up to there has no checksum."""
    data = path.read_bytes() if path.exists() else b""
    size = 0
    for line in data.splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > steps:
                break
        except (ValueError, TypeError, KeyError):
            break
        size += len(line)
    return {"size": size, "digest": digest(data[:size])}


@torch.no_grad()
def export(
    model: TrainModel,
    start: Path,
    out: Path,
    lora: LoraOptions | None,
    region: Region | None = None,
    tokens: Tensor | None = None,
) -> None:
    """Write `out`, complete or not at all: a bf16 checkpoint with its tokenizer and fp32 masters,
    or with `lora` what its `export` says; beside a reward model the `region` of its training
    answers. The vocabulary gets quantile tokens with the embeddings in `tokens`.

    Adapters are merged in fp32 into the weights of `start`. The model cannot be used afterwards. A
    sharded one must have been gathered.
    """
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    masters, module = model.masters, model.module
    if lora is not None or model.sharded or tokens is not None:
        # The local name too: two copies in fp32 may not fit.
        del module
        module = _reload_exact(model, start, lora, is_reward(causal(model.module)))
        masters = dict(module.named_parameters())
    if lora is not None and lora.export != "merged":
        _write_adapter(module, start, temporary, lora)
    if lora is None or lora.export != "adapter":
        if lora is not None:
            # Merging uses the adapter up, so it has been written by now.
            module = module.merge_and_unload()
            masters = dict(module.named_parameters())
        tokenizer = None
        if tokens is not None:
            tokenizer = widen_vocabulary(module, tokens, start)
            masters = dict(module.named_parameters())
        write_checkpoint(module, masters, start, temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
            write_older_names(temporary)
    if region is not None:
        save_region(region, temporary)
    publish_folder(temporary, out)


def _write_adapter(module: Any, start: Path, out: Path, lora: LoraOptions) -> None:
    """The module's adapter: beside the merged weights to come, or as all that there is in `out`,
    with the tokenizer."""
    folder = out / ADAPTER if lora.export == "both" else out
    save_adapter(module, folder)
    write_on_base(folder, start, lora)
    copy_text_files(start, folder)
    if is_reward(causal(module)):
        pad_apart_from_end(causal(module), folder)
    write_older_names(folder)


def _reload_exact(model: TrainModel, start: Path, lora: LoraOptions | None, reward: bool) -> Any:
    """`start` loaded anew in fp32, with the masters of `model`, whose own module is let go."""
    model.module = model.root = model.copy = None
    release_freed_memory()
    exact = from_masters(start, lora)
    module = load_module(start, torch.device("cpu"), reward, exact)
    if lora is not None:
        module = add_lora(module, lora)
    for name, param in module.named_parameters():
        if name in model.masters:
            param.copy_(model.masters[name])
    return module


def from_masters(start: Path, lora: LoraOptions | None) -> bool:
    """Whether training starts from the fp32 masters of `start` where it has some. An adapter that
    is kept is trained on the weights that it will be used with, which are those of the checkpoint,
    unless `start` is itself exactly an adapter on such weights."""
    if lora is None or lora.export == "merged":
        return True
    return earlier_adapter(start, lora) is not None


@torch.no_grad()
def export_member(model: TrainModel, start: Path, out: Path, lora: LoraOptions) -> None:
    """Write `out`, complete or not at all: the trained adapter and reward head alone, in fp32 and
    peft's format. The model cannot be used afterwards."""
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    save_adapter(_reload_exact(model, start, lora, reward=True), temporary)
    publish_folder(temporary, out)


@torch.no_grad()
def export_members(start: Path, adapters: Sequence[Path], out: Path) -> None:
    """Write `out`, complete or not at all: the body of `start` in bf16, once, and beside it the
    adapters of an ensemble. Its own head is zero: without an adapter it is no reward model."""
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    module, _ = load_classifier(start, 1, {"dtype": torch.bfloat16})
    module.score.weight.zero_()
    copy_text_files(start, temporary)
    pad_apart_from_end(module, temporary)
    read_at_last(module)
    save_module(module, temporary)
    for number, adapter in enumerate(adapters):
        own = temporary / MEMBERS / str(number)
        # Their checksums are taken with those of the whole folder.
        shutil.copytree(adapter, own, ignore=shutil.ignore_patterns(CHECKSUMS_NAME))
    publish_folder(temporary, out)


@torch.no_grad()
def export_head(
    start: Path,
    head: Head,
    out: Path,
    region: Region | None = None,
    layers: int | None = None,
) -> None:
    """Write `out`, complete or not at all: the body of `start` in bf16, or the first `layers` of
    it, with the head's weights as its `score`, and beside it the head in fp32 and the `region` of
    its training answers."""
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    module, _ = load_classifier(start, head.config.outputs, {"dtype": torch.bfloat16})
    if layers is not None:
        cut(module, layers)
    # Kept in fp32, so that transformers gives the same numbers as the head beside it.
    module.score.float()
    module.score.weight.copy_(head.weight)
    names = [
        f"{name} {q + 1}" if head.config.quantiles > 1 else name
        for name in head.config.objectives
        for q in range(head.config.quantiles)
    ]
    if names:
        module.config.id2label = dict(enumerate(names))
        module.config.label2id = {name: i for i, name in enumerate(names)}
    copy_text_files(start, temporary)
    pad_apart_from_end(module, temporary)
    read_at_last(module)
    save_module(module, temporary)
    save_head(head, temporary)
    if region is not None:
        save_region(region, temporary)
    publish_folder(temporary, out)
