"""Runs an experiment that is killed (SIGKILL) at a row of its training's log.

python -m tests.support.killed_training EXPERIMENT OUT STEP
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from rlaif.pipeline.experiment import run_experiment
from rlaif.train import checkpoint


def main(path: Path, out: Path, step: int) -> None:
    """See the module."""
    real = checkpoint.write_row

    def write_row(work: Path, row: dict[str, Any]) -> None:
        real(work, row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.write_row = write_row
    run_experiment(path, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
