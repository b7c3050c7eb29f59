"""Run the quickstart with several seeds and say how often its score really rose, and at what cost.

    python benchmarks/quickstart_seeds.py [--seeds 201 202 203 204 205] [--out DIR] [--quick]
        [--json]

"others" is the same weighted mean over the principles other than `finished`, which the token limit
decides: what changed of the answers apart from where they were cut.

Each seed is a run of its own by the command line, measured from outside: wall time and peak memory.
Run folders that are finished and were measured are used again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlaif.metrics import metrics  # noqa: E402
from rlaif.metrics.intervals import IntervalJson, direction, show_interval  # noqa: E402
from rlaif.pipeline.runs import load_run  # noqa: E402

EXPERIMENT = ROOT / "experiments" / "quickstart.yaml"
SCORE = "score/checks"
CUT = "finished"
"""The principle that an answer fails where the token limit cut it."""
LENGTH = "length/words"
LENGTH_RANGE = (0.5, 2.0)
COMMAND = [sys.executable, "-m", "rlaif"]


def environment() -> dict[str, str]:
    """The package of this checkout, whether or not it is installed."""
    return os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}


def run_seed(experiment: Path, seed: int, out: Path) -> dict[str, float]:
    """Run one seed, or find it finished; {seconds, peak_gb} of the run that was measured."""
    measured = out.with_name(f"{out.name}.measured.json")
    if measured.exists() and status(out)["state"] == "done":
        found: dict[str, float] = json.loads(measured.read_text(encoding="utf-8"))
        return found
    resumed = out.exists()
    began = time.monotonic()
    process = subprocess.Popen(
        [*COMMAND, "run", str(experiment), "--out", str(out), "--set", f"seed={seed}", "--quiet"],
        stdout=subprocess.DEVNULL,
        env=environment(),
    )
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode != 0:
        sys.exit(f"seed {seed}: the run ended with exit code {process.returncode}; see {out}")
    # Linux counts in KiB.
    peak = usage.ru_maxrss * 1024 / 1e9
    row = {"seconds": round(time.monotonic() - began, 1), "peak_gb": round(peak, 2)}
    row["resumed"] = float(resumed)
    measured.write_text(json.dumps(row), encoding="utf-8")
    return row


def status(out: Path) -> dict[str, Any]:
    """What `rlaif status --json` says."""
    done = subprocess.run(
        [*COMMAND, "status", str(out), "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def untrained(name: str) -> bool:
    """Whether nothing was trained on this metric."""
    return name.startswith("check/") or name in ("distinct_2", "loglik/initial")


def change_of_others(out: Path, seed: int, last: int) -> IntervalJson:
    """The change from M0 of the score over the principles other than `CUT`, with its interval."""
    run = load_run(out)
    principles = run.manifest["constitution"]["principles"]

    sides = [run.values("main", seed, number) for number in (last, 0)]
    weights = {f"{SCORE}/{p['id']}": p["weight"] for p in principles if p["id"] != CUT}
    # Not every principle is for every prompt.
    held = {
        prompt: [n for n in weights if all(prompt in side.get(n, {}) for side in sides)]
        for prompt in sides[0][SCORE]
    }
    new, old = (
        {
            prompt: sum(weights[n] * side[n][prompt] for n in names)
            / sum(weights[n] for n in names)
            for prompt, names in held.items()
            if names
        }
        for side in sides
    )
    found: IntervalJson = metrics.compute_differences({SCORE: new}, {SCORE: old})[SCORE]
    return found


def figures(seed: int, out: Path, cost: dict[str, float]) -> dict[str, Any]:
    """Everything that the table and the verdict need about one seed."""
    state = status(out)
    first, last = state["rounds"][0], state["rounds"][-1]
    changes = last["deltas"]["initial"]
    ratio = last["metrics"][LENGTH]["mean"] / first["metrics"][LENGTH]["mean"]
    of_others = change_of_others(out, seed, last["round"])
    others = {name: change for name, change in changes.items() if untrained(name)}
    return {
        "seed": seed,
        "rounds": last["round"],
        "score_initial": first["metrics"][SCORE],
        "score_final": last["metrics"][SCORE],
        "difference": changes[SCORE],
        "others": of_others,
        "truncated_initial": first["metrics"]["truncated_rate"]["mean"],
        "truncated_final": last["metrics"]["truncated_rate"]["mean"],
        "length_ratio": ratio,
        "untrained": others,
        "alarms": [a for a in state["alarms"] if a["severity"] == "alarm"],
        "notices": [a for a in state["alarms"] if a["severity"] != "alarm"],
        **cost,
        "rose": direction(changes[SCORE]) > 0,
        "others_rose": direction(of_others) > 0,
        "length_kept": LENGTH_RANGE[0] <= ratio <= LENGTH_RANGE[1],
        "nothing_fell": all(direction(change) >= 0 for change in others.values()),
        "no_alarm": not any(a["severity"] == "alarm" for a in state["alarms"]),
    }


def shown(change: IntervalJson) -> str:
    """A difference with its interval."""
    return show_interval(change, signed=True)


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line per seed, and one per untrained metric under it."""
    print(
        f"{'seed':>5} {'M0':>6} {'last':>6}  {'difference in ' + SCORE:28} "
        f"{'others':28} {'cut M0':>6} {'last':>6} {'length':>7} "
        f"{'alarms':>6} {'seconds':>8} {'peak GB':>8}"
    )
    for row in rows:
        print(
            f"{row['seed']:>5} {row['score_initial']['mean']:6.3f} "
            f"{row['score_final']['mean']:6.3f}  {shown(row['difference']):28} "
            f"{shown(row['others']):28} {row['truncated_initial']:6.3f} "
            f"{row['truncated_final']:6.3f} "
            f"{row['length_ratio']:6.2f}x {len(row['alarms']):>6} "
            f"{row['seconds']:>8.0f} {row['peak_gb']:>8.2f}"
        )
        for name, change in row["untrained"].items():
            fell = "  FELL" if direction(change) < 0 else ""
            print(f"      {name:20} {shown(change)}{fell}")
        for alarm in row["alarms"]:
            print(f"      round {alarm['round']}: {alarm['message']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203, 204, 205])
    parser.add_argument("--experiment", type=Path, default=EXPERIMENT)
    parser.add_argument("--out", type=Path, help="where the runs are kept [default: a new folder]")
    parser.add_argument("--quick", action="store_true", help="the first seed alone")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    base = options.out or Path(tempfile.mkdtemp(prefix="quickstart-seeds-"))
    base.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in options.seeds[:1] if options.quick else options.seeds:
        out = base / f"seed-{seed}"
        cost = run_seed(options.experiment, seed, out)
        rows.append(figures(seed, out, cost))
        print(f"seed {seed}: {shown(rows[-1]['difference'])}, {cost['seconds']:.0f} s", flush=True)
    print()
    print_table(rows)
    verdict = {
        name: sum(row[name] for row in rows)
        for name in ("rose", "others_rose", "length_kept", "nothing_fell", "no_alarm")
    }
    verdict["all_four"] = sum(
        row["rose"] and row["length_kept"] and row["nothing_fell"] and row["no_alarm"]
        for row in rows
    )
    print(f"\nof {len(rows)} seeds:")
    print(f"  {verdict['rose']} have the whole interval of the difference above zero")
    print(f"  {verdict['others_rose']} have that of the principles other than `{CUT}` above zero")
    print(f"  {verdict['length_kept']} keep the answers' length within {LENGTH_RANGE} times M0's")
    print(f"  {verdict['nothing_fell']} have no untrained metric whose whole interval fell")
    print(f"  {verdict['no_alarm']} have no alarm")
    print(f"  {verdict['all_four']} have all four")
    if options.json:
        summary = {
            "experiment": str(options.experiment),
            "seeds": len(rows),
            "verdict": verdict,
            "seconds_max": max(row["seconds"] for row in rows),
            "peak_gb_max": max(row["peak_gb"] for row in rows),
            "runs": rows,
        }
        print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
