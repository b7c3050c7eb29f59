"""The memory of what reads a whole run: its report, its dataset, its exports.

    python benchmarks/report_memory.py [--quick] [--json] [--keep FOLDER]

A scripted run of many prompts of 1 kB, four answers of 1 kB to each, six checks of each answer and
all pairs above a margin. Each command is a process of its own, and the peak of its resident memory
is what the system says when it ends. `rlaif run` is measured twice: the second finds all finished.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from step_memory import long_text

ROOT = Path(__file__).resolve().parents[1]
SIZES = {True: (1_000, 10_000), False: (10_000, 100_000)}
BYTES = 1_000
LIMITS = {"min": 1, "max": 40}
CHECKS = {
    "words": {"rule": "word_limits", "params": LIMITS},
    "sentences": {"rule": "sentence_limits", "params": LIMITS},
    "characters": {"rule": "word_limits", "params": {"min": 20, "max": 200}},
    "repetition": {"rule": "no_repeated_ngrams", "params": {}},
    "fewer": {"rule": "word_limits", "params": {"min": 1, "max": 20}},
    "more": {"rule": "word_limits", "params": {"min": 60, "max": 90}},
}
COMMANDS = {
    "run": ["run", "{folder}/experiment.yaml", "--out", "{run}", "--quiet", "--no-report"],
    "report": ["report", "{run}"],
    "run again": ["run", "{folder}/experiment.yaml", "--out", "{run}", "--quiet"],
    "run, all finished": ["run", "{folder}/experiment.yaml", "--out", "{run}", "--quiet"],
    "dataset": ["build", "{folder}/dataset.yaml", "--out", "{run}", "--quiet"],
    "dataset again": ["build", "{folder}/dataset.yaml", "--out", "{run}", "--quiet"],
    "export to JSONL": ["export", "{run}", "{folder}/pairs.jsonl"],
    "export to Parquet": ["export", "{run}", "{folder}/pairs.parquet"],
    "export of judgements": ["export", "{run}", "{folder}/j.jsonl", "--records", "judgements"],
    "status": ["status", "{run}"],
}


def experiment(count: int, folder: Path) -> None:
    """The experiment's files, and the same with a dataset."""
    with (folder / "prompts.jsonl").open("w") as file:
        for i in range(count + 1):
            file.write(json.dumps({"prompt": long_text(f"prompt {i}", BYTES)}) + "\n")
    principles = [{"id": name, "check": check} for name, check in CHECKS.items()]
    text = yaml.safe_dump({"name": "six", "principles": principles})
    (folder / "constitution.yaml").write_text(text)
    data: dict[str, Any] = {
        "name": "memory",
        "models": {"policy": {"path": "none", "engine": "report_memory:Varied"}},
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 1},
        "steps": [
            {"sample": {"n": 4, "max_new_tokens": 500}},
            {"judge": {"id": "rules", "kind": "rules"}},
            {"pair": {"strategy": "best_vs_worst"}},
        ],
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    data["dataset"] = {"formats": ["trl", "ultrafeedback"]}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def measured(command: list[str]) -> tuple[float, float]:
    """(megabytes at most, seconds) of a command of rlaif."""
    places = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "rlaif", *command],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": places},
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: ended with status {status}")
    # Linux counts in kB, as does no other system.
    return usage.ru_maxrss * 1024 / 1e6, time.monotonic() - began


def at_size(count: int, folder: Path) -> dict[str, tuple[float, float]]:
    """What each command takes for a run of `count` prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    experiment(count, folder)
    places = {"folder": str(folder), "run": str(folder / "run")}
    found = {}
    for name, words in COMMANDS.items():
        found[name] = measured([word.format(**places) for word in words])
        peak, seconds = found[name]
        print(f"{count:,} prompts, {name}: {peak:.0f} MB, {seconds:.1f} s", file=sys.stderr)
    return found


def __getattr__(name: str) -> Any:
    """`Varied`, an engine whose answers differ in length: as in step_memory, where rlaif is."""
    if name != "Varied":
        raise AttributeError(name)
    from step_memory import Instant

    class Varied(Instant):
        """Answers of a half to one and a half kB."""

        def _text(self, request: Any) -> str:
            size = BYTES // 2 + int(request.request_id[-4:], 16) % BYTES
            return long_text(request.request_id, size)

    return Varied


def main() -> None:
    """Print the table, and with --json every figure in one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 and 10,000 prompts")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="Keep the runs in this folder.")
    options = parser.parse_args()
    sizes = SIZES[options.quick]
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = {count: at_size(count, folder / str(count)) for count in sizes}
    rows = {
        name: {
            count: {
                "peak_mb": round(found[count][name][0]),
                "seconds": round(found[count][name][1], 1),
            }
            for count in sizes
        }
        for name in COMMANDS
    }
    for name, row in rows.items():
        cells = [f"{n:,} prompts: {c['peak_mb']} MB, {c['seconds']} s" for n, c in row.items()]
        print(f"{name}: {'; '.join(cells)}")
    if options.json:
        print(json.dumps({"prompts": list(sizes), "commands": rows}))


if __name__ == "__main__":
    main()
