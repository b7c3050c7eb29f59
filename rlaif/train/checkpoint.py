"""Checkpoints of a training under way: safetensors and JSON, whole or absent, only the latest.

Beside them is metrics.jsonl, a row for every optimiser step; a checkpoint counts on the rows before
it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlaif.core.checksums import digest, file_digest, publish_folder, sync_to_disk, verify_folder
from rlaif.core.errors import StoreError
from rlaif.train import parallel

PREFIX = "checkpoint-"
ROWS = "metrics.jsonl"


def save(
    work: Path,
    step: int,
    masters: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    sharded: bool = False,
) -> None:
    """Write masters, optimiser state, random states and `state`, then drop older checkpoints.

    With `sharded` every rank writes its part; else the ranks differ in their random states alone,
    and the first writes.
    """
    # Dropout draws as much as a rank's own micro-batches ask for.
    random = parallel.gather(_random_state())
    final = work / f"{PREFIX}{step:08d}"
    temporary = work / f"partial-{step:08d}"
    first = parallel.rank() == 0
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    parallel.wait()
    if first or sharded:
        _write_tensors(temporary / _name_part(sharded), masters, optimizer)
    parallel.wait()
    if first:
        states = {f"{kind}|{n}": v for n, own in enumerate(random) for kind, v in own.items()}
        save_file(states, temporary / "random.safetensors")
        # What the checkpoint counts on is on disk before it.
        log = describe_rows(work)
        kept = {**state, "step": step, "parts": _count_parts(sharded), "metrics": log}
        (temporary / "state.json").write_text(json.dumps(kept))
        _publish_checkpoint(temporary, final)
    parallel.wait()


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


def _publish_checkpoint(temporary: Path, final: Path) -> None:
    """Make the checkpoint last, then visible, and drop the older ones."""
    publish_folder(temporary, final)
    for old in final.parent.glob(PREFIX + "*"):
        if old != final:
            shutil.rmtree(old)


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
    if state["parts"] != _count_parts(sharded):
        raise StoreError(
            f"{folder}: this checkpoint was written by {state['parts']} processes that split the "
            f"weights. Set `processes: {state['parts']}`, or delete {work} to start again."
        )
    own = folder / _name_part(sharded)
    weights = load_file(own / "weights.safetensors")
    tensors = load_file(own / "optimizer.safetensors")
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


def describe_rows(work: Path) -> dict[str, Any]:
    """What a checkpoint keeps of the file, which is then on disk: its size and checksum."""
    path = work / ROWS
    if not path.exists():
        return {"size": 0, "digest": digest(b"")}
    sync_to_disk(path)
    return {"size": path.stat().st_size, "digest": file_digest(path)}


def keep_rows(work: Path, steps: int, state: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows up to step `steps`, that of the checkpoint with this `state`; later rows are dropped
    from the file. Raises StoreError where those that the checkpoint counts on are damaged."""
    path = work / ROWS
    data = path.read_bytes() if path.exists() else b""
    size = 0
    if state is not None:
        log = state.get("metrics") or _up_to(data, steps)
        size = log["size"]
        if digest(data[:size]) != log["digest"]:
            raise StoreError(
                f"{path}: damaged: it is not what the last checkpoint counts on. Delete the folder "
                f"{work} to train again from the start."
            )
    parallel.wait()
    if parallel.rank() == 0 and size < len(data):
        temporary = path.with_suffix(".partial")
        temporary.write_bytes(data[:size])
        temporary.rename(path)
    parallel.wait()
    return [json.loads(line) for line in data[:size].splitlines()]


def _up_to(data: bytes, steps: int) -> dict[str, Any]:
    """`describe_rows` of the rows up to a step, for a checkpoint of an earlier version, which did
    not say. What cannot be read as rows up to there has no checksum."""
    size = 0
    for line in data.splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > steps:
                break
        except (ValueError, TypeError, KeyError):
            break
        size += len(line)
    return {"size": size, "digest": digest(data[:size])}
