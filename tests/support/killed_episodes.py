"""Runs an experiment that is killed (SIGKILL) at a write of an episode's turn or of the episode.

python -m tests.support.killed_episodes EXPERIMENT OUT FILE NUMBER

before the batch NUMBER (from 1) of FILE (turns or completions) is written.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.core.store import StepFolder
from rlaif.pipeline.experiment import run_experiment


def main(path: Path, out: Path, file: str, number: int) -> None:
    """See the module."""
    real = StepFolder.append
    seen: Counter[str] = Counter()

    def append(self: StepFolder, name: str, records: Sequence[Any]) -> None:
        seen[name] += 1
        if (name, seen[name]) == (file, number):
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, name, records)

    StepFolder.append = append  # type: ignore[method-assign]
    run_experiment(path, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
