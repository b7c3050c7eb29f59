"""One rank of a training in several processes: `python -m rlaif.train.worker REQUEST`, with its
number and their count in RANK, LOCAL_RANK and WORLD_SIZE. Ray calls `main` in processes of its
own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlaif.config.methods import DISTILLATIONS, METHODS
from rlaif.config.models import ModelSpec
from rlaif.core.chat import ChatSettings
from rlaif.core.errors import RlaifError
from rlaif.core.records import Preference, from_json
from rlaif.core.resources import find_object
from rlaif.train import parallel
from rlaif.train.loop import TrainJob, TrainProgress
from rlaif.train.run import train_on_preferences


def print_row(row: str) -> None:
    """Print a line at once."""
    print(row, flush=True)


def main(path: Path, write_progress: Callable[[str], None] = print_row) -> int:
    """Train as `path` says; rank 0 writes the outcome, or why there is none, beside it, and its
    progress as lines of JSON."""
    request = json.loads(path.read_text())
    meeting = Path(request["meeting"]) if "meeting" in request else None
    rank, processes, local = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = parallel.meet(rank, processes, local, request["device"], meeting)
    if "threads" in request:
        torch.set_num_threads(request["threads"])
    answer = path.with_name(parallel.ANSWER)
    kind = request["kind"]
    method: Any = METHODS[kind] if kind in METHODS.rows else DISTILLATIONS[kind]
    options = method.model_validate(request["options"])
    trainer = train_on_preferences if request["member"] else find_object(options.trainer)

    def report_progress(progress: TrainProgress) -> None:
        """The first rank says how far all are."""
        if rank == 0:
            write_progress(json.dumps(asdict(progress)))

    try:
        outcome = trainer(
            TrainJob(
                options=options,
                start=Path(request["start"]),
                reference=Path(request["reference"]) if request["reference"] else None,
                out=Path(request["out"]),
                work=Path(request["work"]),
                seed=request["seed"],
                device=device,
                preferences=[from_json(Preference, row) for row in request["preferences"]],
                token_ids=request["token_ids"],
                texts=request["texts"],
                unfinished=frozenset(request["unfinished"]),
                chat=ChatSettings(**request["chat"]),
                fingerprint=request["fingerprint"],
                spec=ModelSpec.model_validate(request["spec"]) if request["spec"] else None,
                member=request["member"],
                progress=report_progress,
            )
        )
        found: dict[str, Any] = {"outcome": asdict(outcome)}
    except RlaifError as error:
        found = {"error": type(error).__name__, "message": str(error)}
    # Rank 0 may be waiting for one that failed, and would never get to write.
    if rank == 0 or "error" in found:
        temporary = answer.with_name(f"launched.{rank}.json")
        temporary.write_text(json.dumps(found))
        os.replace(temporary, answer)
    if "error" in found:
        # The others may be inside a collective call, and are stopped.
        os._exit(1)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
