"""Measure every judge that the embedded model can serve on files that people labelled.

    python benchmarks/judges_vs_humans.py FILE [FILE ...] [--limit N] [--out DIR] [--quick]
        [--attack NAME] [--json]

Each FILE is anything that `rlaif judge-bench` reads. Judgements are kept in --out, so a run that
was stopped goes on, and a finished one is printed again without asking the model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ONE_PASS = ROOT / "benchmarks" / "judges_vs_humans.yaml"
WRITING = ROOT / "benchmarks" / "judges_that_write.yaml"
QUICK_PAIRS = 12


def measure(file: Path, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """What `rlaif judge-bench --json` says of one file."""
    command = [sys.executable, "-m", "rlaif", "judge-bench", str(file), "--out", str(out), "--json"]
    command += ["--model", options.model]
    for judges in options.judges or [ONE_PASS] + [WRITING] * (not options.quick):
        command += ["--judge", str(judges)]
    for attack in options.attack:
        command += ["--attack", attack]
    limit = QUICK_PAIRS if options.quick else options.limit
    if limit is not None:
        command += ["--limit", str(limit)]
    path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    if done.returncode != 0:
        sys.exit(f"{file}: judge-bench ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def shown(value: dict[str, float] | None) -> str:
    """A figure with its interval."""
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" if value else "-"


def print_table(name: str, result: dict[str, Any]) -> None:
    """One line per judge, baselines last."""
    pairs = result["pairs"]
    print(f"\n{name}: {pairs['n']} pairs, {pairs['prompts']} prompts, {pairs['label_ties']} ties")
    print(
        f"  {'judge':16} {'agreement':22} {'n':>5} {'ties':>5} "
        f"{'same slot':22} {'P(longer)':22} {'label mass':22} {'s/pair':>7}"
    )
    for judge, row in sorted(result["judges"].items(), key=lambda item: item[1]["baseline"]):
        headline = None
        if row["agreement"] is not None:
            headline = {"mean": row["agreement"], "low": row["low"], "high": row["high"]}
        seconds = row.get("seconds_per_pair")
        print(
            f"  {judge:16} {shown(headline):22} {row['n']:>5} {row['ties']:>5} "
            f"{shown(row.get('same_slot')):22} {shown(row.get('prefers_longer')):22} "
            f"{shown(row.get('label_mass')):22} {seconds['mean'] if seconds else 0.0:7.2f}"
        )
        for attack, found in row["attacks"].items():
            if found is not None:
                missing = f"{found['missing']} of {found['attacked']} without a verdict"
                print(f"      {attack:24} won {shown(found.get('success'))} {missing}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument(
        "--judges", type=Path, action="append", help="a YAML file, in place of ours"
    )
    parser.add_argument("--model", default="builtin/smollm2-135m-instruct")
    parser.add_argument("--attack", action="append", default=[], help="as of judge-bench")
    parser.add_argument("--limit", type=int, help="pairs per file [default: all]")
    parser.add_argument("--out", type=Path, help="for judgements [default: a new folder]")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PAIRS} pairs, one pass")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    base = options.out or Path(tempfile.mkdtemp(prefix="judges-vs-humans-"))
    results = {}
    for file in options.files:
        name = file.name.removesuffix(".gz").removesuffix(".jsonl")
        results[name] = measure(file, options, base / name)
        print_table(name, results[name])
    if options.json:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
