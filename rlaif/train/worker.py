"""One rank of a training in several processes: `python -m rlaif.train.worker REQUEST`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlaif.config.methods import DISTILLATIONS, METHODS
from rlaif.core.chat import ChatSettings
from rlaif.core.errors import RlaifError
from rlaif.core.records import Preference, from_json
from rlaif.train.loop import TrainJob, TrainProgress
from rlaif.train.run import train_on_preferences


def main(path: Path) -> int:
    """Train as `path` says; rank 0 writes the outcome, or why there is none, beside it."""
    request = json.loads(path.read_text())
    cuda = request["device"].startswith("cuda")
    local = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(local)
    else:
        count = int(os.environ["LOCAL_WORLD_SIZE"])
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    # One rank writes checkpoints and exports while the others wait.
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=2))
    answer = path.with_name("launched.json")
    kind = request["kind"]
    spec: Any = METHODS[kind] if kind in METHODS.rows else DISTILLATIONS[kind]

    def print_progress(progress: TrainProgress) -> None:
        """The first rank says how far all are."""
        if dist.get_rank() == 0:
            print(json.dumps(asdict(progress)), flush=True)

    try:
        outcome = train_on_preferences(
            TrainJob(
                options=spec.model_validate(request["options"]),
                start=Path(request["start"]),
                reference=Path(request["reference"]) if request["reference"] else None,
                out=Path(request["out"]),
                work=Path(request["work"]),
                seed=request["seed"],
                device=torch.device(f"cuda:{local}" if cuda else "cpu"),
                preferences=[from_json(Preference, row) for row in request["preferences"]],
                token_ids=request["token_ids"],
                texts=request["texts"],
                unfinished=frozenset(request["unfinished"]),
                chat=ChatSettings(**request["chat"]),
                member=request["member"],
                progress=print_progress,
            )
        )
        found: dict[str, Any] = {"outcome": asdict(outcome)}
    except RlaifError as error:
        found = {"error": type(error).__name__, "message": str(error)}
    # Rank 0 may be waiting for one that failed, and would never get to write.
    if dist.get_rank() == 0 or "error" in found:
        temporary = answer.with_name(f"launched.{dist.get_rank()}.json")
        temporary.write_text(json.dumps(found))
        os.replace(temporary, answer)
    if "error" in found:
        # The others may be inside a collective call; torchrun stops them all.
        os._exit(1)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
