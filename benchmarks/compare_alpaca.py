"""Two AlpacaFarm models, trained alike by PPO on people's and on simulated GPT-4 feedback, head to
head by AlpacaEval's judge.

    python benchmarks/compare_alpaca.py FOLDER [--quick] [--json]

FOLDER holds `alpaca_eval_gpt4_annotations.jsonl.gz`, the judge's preferences for several models'
outputs against the baseline, and `alpaca_eval_baseline.jsonl.gz`, the baseline's outputs
(tatsu-lab/alpaca_eval, CC BY-NC 4.0). They are not part of the project: without them the benchmark
says SKIPPED and measures nothing. --quick takes every fourth instruction.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from rlaif.analysis.comparison.compute import Choices, compare_inputs  # noqa: E402
from rlaif.metrics.intervals import show_interval  # noqa: E402

PREFERENCES, BASELINE = "alpaca_eval_gpt4_annotations.jsonl.gz", "alpaca_eval_baseline.jsonl.gz"
HUMAN, AI = "alpaca-farm-ppo-human", "alpaca-farm-ppo-sim-gpt4-20k"
QUICK = 4


def main() -> None:
    """Print the pair's figures and the answers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    lacking = [name for name in (PREFERENCES, BASELINE) if not (given.folder / name).is_file()]
    if lacking:
        print(f"SKIPPED: {given.folder} has no {' and no '.join(lacking)}", file=sys.stderr)
        print("SKIPPED: nothing was measured")
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = _choose_rows(given.folder, Path(scratch)) if given.quick else given.folder
        result = compare_inputs([str(path / PREFERENCES)], Choices(between=((HUMAN, AI),)))
    row = next(row for row in result["contests"] if row["asked"])
    answers = [answer["sentence"] for answer in result["answers"]]
    if given.json:
        print(json.dumps({**row, "answers": answers}))
        return
    models = len({name for r in result["contests"] for name in (r["first"], r["second"])})
    print(f"{result['prompts']} instructions, {models} models, the baseline among them")
    print(f"win rate against {row['opponent']}, {AI} less {HUMAN}: ", end="")
    print(show_interval(row["difference"], signed=True))
    print(f"share of prompts that {AI} won: {show_interval(row['won'])}")
    print(f"the same at equal length (LC-minimal): {show_interval(row['equal'])}")
    print("mean lengths in characters: {:.0f} and {:.0f}".format(*row["lengths"]))
    print("\n".join(answers))


def _choose_rows(folder: Path, scratch: Path) -> Path:
    """Every fourth instruction of the baseline, and what was preferred there."""
    kept: set[str] = set()
    for name in (BASELINE, PREFERENCES):
        with gzip.open(folder / name, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        if not kept:
            kept = {row["instruction"] for row in rows[::QUICK]}
        with gzip.open(scratch / name, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows if row["instruction"] in kept)
    return scratch


if __name__ == "__main__":
    main()
