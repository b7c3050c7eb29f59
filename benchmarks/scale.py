"""How a whole run grows: sample, judge, pair, dataset and report of 10^4 to 10^6 prompts.

    python benchmarks/scale.py [--prompts 10000 100000 1000000] [--quick] [--json]

The model is scripted (engine `fake`), so that what is measured is all but the model: two answers to
each prompt, a rule's score of each answer, and a pair of each prompt whose answers differ. Each
command is a process of its own; its peak is that of its resident memory, and its seconds are those
of the processor, its children's included, since other work may run beside it. Growth is by record:
a completion, a judgement or a preference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from report_memory import environment

ANSWERS = 2
SCRIPT = {
    "rules": [
        {
            "match": ".",
            "replies": [
                "Yes.",
                "It is as you say, for most people and most of the time.",
                "Start with the simplest thing that can work, look at it closely, and then mend "
                "what you find; after a week you will know enough to begin anew.",
            ],
        }
    ]
}
BRIEF = {"rule": "word_limits", "params": {"min": 4, "max": 20}}
COMMANDS = {
    "run": ["run", "{folder}/experiment.yaml", "--out", "{folder}/run", "--quiet", "--no-report"],
    "dataset": ["build", "{folder}/dataset.yaml", "--out", "{folder}/run", "--quiet"],
    "report": ["report", "{folder}/run"],
}


def write_experiment(count: int, folder: Path) -> None:
    """The experiment's files, and the same with a dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "prompts.jsonl").open("w") as file:
        for i in range(count + 1):
            file.write(json.dumps({"prompt": f"How do I begin with number {i}?"}) + "\n")
    (folder / "script.yaml").write_text(yaml.safe_dump(SCRIPT))
    principles = [{"id": "brief", "check": BRIEF}]
    constitution = yaml.safe_dump({"name": "brief", "principles": principles})
    (folder / "constitution.yaml").write_text(constitution)
    data: dict[str, Any] = {
        "name": "scale",
        "models": {
            "policy": {"path": "none", "engine": "fake", "script": str(folder / "script.yaml")}
        },
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 1},
        "steps": [
            {"sample": {"n": ANSWERS, "max_new_tokens": 64}},
            {"judge": {"id": "rules", "kind": "rules"}},
            {"pair": {"strategy": "best_vs_worst"}},
        ],
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    data["dataset"] = {"formats": ["trl", "ultrafeedback"]}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def count_records(run: Path) -> int:
    """Completions, judgements and preferences of a run."""
    counts = [json.loads(path.read_text())["counts"] for path in run.glob("steps/*/done.json")]
    return sum(
        count.get(name, 0)
        for count in counts
        for name in ("completions", "judgements", "preferences")
    )


def measured(command: list[str]) -> tuple[float, float]:
    """(megabytes at most, processor seconds) of a command of rlaif."""
    words = [sys.executable, "-m", "rlaif", *command]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment())
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: ended with status {status}")
    # Linux counts in kB, as does no other system.
    return usage.ru_maxrss * 1024 / 1e6, usage.ru_utime + usage.ru_stime


def measure(count: int, folder: Path) -> dict[str, Any]:
    """(megabytes, processor seconds) of each command at one size."""
    write_experiment(count, folder)
    figures = {}
    for name, words in COMMANDS.items():
        figures[name] = measured([word.format(folder=folder) for word in words])
        peak, seconds = figures[name]
        print(f"{count:>9,} prompts  {name:8} {seconds:8.1f} s  {peak:7.0f} MB", flush=True)
    records = count_records(folder / "run")
    files = (folder / "run" / "steps").glob("*/*")
    stored = sum(path.stat().st_size for path in files) / records
    print(f"{count:>9,} prompts  {records:,} records, {stored:.0f} bytes each on disk", flush=True)
    return {"prompts": count, "records": records, "stored": stored, "figures": figures}


def grow(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """From each size to the next: seconds for a million records more, and bytes for one."""
    found = []
    for before, after in pairwise(rows):
        more = after["records"] - before["records"]
        for name in COMMANDS:
            (low, early), (high, late) = before["figures"][name], after["figures"][name]
            growth = {"bytes_per_record": (high - low) * 1e6 / more}
            growth |= {"seconds_per_million": (late - early) / more * 1e6}
            sizes = {"from": before["prompts"], "to": after["prompts"]}
            found.append({"command": name, **sizes, **growth})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--quick", action="store_true", help="1,000 and 10,000 prompts")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    sizes = [1_000, 10_000] if options.quick else options.prompts
    with tempfile.TemporaryDirectory(prefix="scale-") as base:
        rows = [measure(count, Path(base) / str(count)) for count in sizes]
    growth = grow(rows)
    for row in growth:
        print(
            f"{row['from']:>9,} to {row['to']:,} prompts  {row['command']:8} "
            f"{row['seconds_per_million']:8.1f} s a million records, "
            f"{row['bytes_per_record']:6.0f} bytes a record"
        )
    if options.json:
        print(json.dumps({"sizes": rows, "growth": growth}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
