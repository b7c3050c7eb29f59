"""metrics.jsonl: a row for every optimiser step, and how much of it a checkpoint counts on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.core.checksums import digest, file_digest, fsync
from rlaif.core.errors import StoreError
from rlaif.train import parallel

FILE = "metrics.jsonl"


def write(work: Path, row: dict[str, Any]) -> None:
    """Append one row, by rank 0."""
    if parallel.rank() == 0:
        with (work / FILE).open("a") as file:
            file.write(json.dumps(row) + "\n")


def seen(work: Path) -> dict[str, Any]:
    """What a checkpoint keeps of the file, which is then on disk: its size and checksum."""
    path = work / FILE
    if not path.exists():
        return {"size": 0, "digest": digest(b"")}
    fsync(path)
    return {"size": path.stat().st_size, "digest": file_digest(path)}


def keep(work: Path, steps: int, state: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows up to step `steps`, that of the checkpoint with this `state`; later rows are dropped
    from the file. Raises StoreError where those that the checkpoint counts on are damaged."""
    path = work / FILE
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
    """`seen` of the rows up to a step, beside a checkpoint of an earlier version, which did not
    say. What cannot be read as rows up to there has no checksum."""
    size = 0
    for line in data.splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > steps:
                break
        except (ValueError, TypeError, KeyError):
            break
        size += len(line)
    return {"size": size, "digest": digest(data[:size])}
