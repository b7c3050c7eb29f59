"""Does a constraint hold, and at what price? PPO-Lagrangian beside plain PPO on the real model.

    python benchmarks/lagrangian.py [ppo lagrangian] [--seeds 1 2 3] [--rollouts 10] [--out DIR]
        [--quick] [--json]

The reward is the checks of constitutions/concise_helper.yaml, the cost the share of answers that
contain a comma: a rule that the reward does not care for, and that the start breaks in three of
four answers. Both arms ask both judges. In `ppo` the multiplier stays at 0, so that the cost is
logged and changes nothing; in `lagrangian` the mean cost is to be at most 0.4. What is printed:

- the mean cost of the last third of the rollouts, with a 95% interval over prompts;
- the path of the multiplier, and whether every step of it went where the window's mean said;
- reward and cost on held-out prompts, the difference of the arms paired by prompt.

A run that is in DIR is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlaif.metrics.intervals import mean_interval, paired_interval, show_interval  # noqa: E402
from rlaif.metrics.pooled import seeds_interval  # noqa: E402

LIMIT = 0.4
ARMS: dict[str, dict[str, float]] = {
    "ppo": {"start": 0.0},
    "lagrangian": {"start": 1.0, "rate": 1.0, "max": 5.0, "window": 16},
}
MAX_NEW_TOKENS = 32
COMMAS = {
    "name": "no-commas",
    "version": "1",
    "principles": [
        {
            "id": "no_commas",
            "text": "The answer has no comma.",
            "check": {"rule": "forbidden_pattern", "params": {"pattern": ","}},
        }
    ],
}


def experiment(arm: str, seed: int, rollouts: int, commas: Path) -> dict[str, Any]:
    """The experiment file of one run."""
    train = {
        "method": "ppo",
        "rewards": [{"judge": "checks"}],
        "costs": [{"judge": "commas", "limit": LIMIT, "higher": "better", **ARMS[arm]}],
        "rollouts": rollouts,
        "n": 4,
        "batch_size": 4,
        "epochs": 2,
        "beta": 0.005,
        "lam": 1.0,
        "max_new_tokens": MAX_NEW_TOKENS,
        "learning_rate": 5e-4,
        "warmup_ratio": 0.0,
        "schedule": "constant",
        "lora": {"r": 16, "alpha": 32},
    }
    system = "Reply in one short sentence."
    return {
        "name": f"lagrangian-{arm}",
        "seed": seed,
        "models": {"policy": {"path": "builtin/smollm2-135m-instruct", "system_prompt": system}},
        "constitution": str(ROOT / "constitutions/concise_helper.yaml"),
        "prompts": {"path": str(ROOT / "prompts/seeds/everyday.jsonl"), "holdout": 48},
        "judges": [
            {"id": "checks", "kind": "rules"},
            {"id": "commas", "kind": "rules", "constitution": str(commas)},
        ],
        "steps": [
            {"train": train},
            {
                "evaluate": {
                    "temperature": 1.0,
                    "max_new_tokens": MAX_NEW_TOKENS,
                    "against": ["initial"],
                }
            },
        ],
    }


def measure(arm: str, seed: int, rollouts: int, base: Path) -> dict[str, Any]:
    """Run one arm with one seed."""
    from rlaif.core.progress import QuietProgress
    from rlaif.pipeline.experiment import run_experiment
    from rlaif.pipeline.runs import load_run

    base.mkdir(parents=True, exist_ok=True)
    commas = base / "no_commas.yaml"
    commas.write_text(yaml.safe_dump(COMMAS, sort_keys=False))
    path = base / f"{arm}-{seed}.yaml"
    path.write_text(yaml.safe_dump(experiment(arm, seed, rollouts, commas), sort_keys=False))
    began = time.monotonic()
    run = base / f"{arm}-{seed}"
    last = run_experiment(path, run, (), QuietProgress()).rounds[-1]
    [work] = run.glob("steps/*/work")
    curve = {}
    for line in (work / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        curve[row["rollout"]] = row
    rows = list(curve.values())
    values = load_run(run).values(last.arm, seed, last.round)
    late = mean_interval(late_costs(work.parent, rollouts))
    assert late is not None
    return {
        "arm": arm,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "rewards": [round(row["reward"], 3) for row in rows],
        "costs": [round(row["cost/commas"], 3) for row in rows],
        "windows": [round(row["cost_window/commas"], 4) for row in rows],
        "multipliers": [round(row["multiplier/commas"], 4) for row in rows],
        "late_cost": late.to_json(),
        "held_out": {judge: dict(values[f"score/{judge}"]) for judge in ("checks", "commas")},
        "kl": last.metrics["metrics"]["kl/initial"]["mean"],
    }


def late_costs(step: Path, rollouts: int) -> dict[str, float]:
    """By prompt, the mean cost of its answers in the last third of the rollouts."""
    answers = {}
    for line in (step / "completions.jsonl").read_text().splitlines():
        row = json.loads(line)
        answers[row["completion_id"]] = int(row["model"].rsplit("rollout ", 1)[1])
    found: dict[str, list[float]] = defaultdict(list)
    first = rollouts - rollouts // 3
    for line in (step / "judgements.jsonl").read_text().splitlines():
        row = json.loads(line)
        late = answers[row["subject"]] > first
        if row["judge"] == "commas" and late and row["score"] is not None:
            found[row["prompt_id"]].append(1 - row["score"])
    return {prompt: fmean(costs) for prompt, costs in found.items()}


def follows(row: dict[str, Any]) -> tuple[int, int, bool]:
    """How often the multiplier rose and fell, and whether it rose exactly where the window's mean
    was above the limit, and fell where below (at `max` it may stay)."""
    path = [ARMS[row["arm"]]["start"], *row["multipliers"]]
    steps = [after - before for before, after in pairwise(path)]
    gaps = [window - LIMIT for window in row["windows"]]
    right = all(
        step * gap > 0 or gap == 0 or (gap > 0 and after == ARMS[row["arm"]]["max"])
        for step, gap, after in zip(steps, gaps, path[1:], strict=True)
    )
    return sum(step > 0 for step in steps), sum(step < 0 for step in steps), right


def show(row: dict[str, Any]) -> str:
    """A run in a few lines."""
    lines = [
        f"{row['arm']:11} {row['seed']:>4}  cost of the last third "
        f"{show_interval(row['late_cost'])}  KL {row['kl']:.2f}  {row['seconds']:.0f} s",
        f"  reward {' '.join(f'{x:.2f}' for x in row['rewards'])}",
        f"  cost   {' '.join(f'{x:.2f}' for x in row['costs'])}",
    ]
    if row["arm"] == "lagrangian":
        rose, fell, right = follows(row)
        lines.append(f"  lambda {' '.join(f'{x:.2f}' for x in row['multipliers'])}")
        lines.append(
            f"  it rose {rose} and fell {fell} times, {'as' if right else 'not as'} it should"
        )
    return "\n".join(lines)


def compare(rows: list[dict[str, Any]], judge: str) -> dict[str, Any]:
    """Lagrangian less plain PPO on held-out prompts: by seed, and over the seeds."""
    by_seed = {}
    for row in rows:
        by_seed.setdefault(row["seed"], {})[row["arm"]] = row["held_out"][judge]
    found: dict[str, Any] = {}
    differences = []
    for seed, own in by_seed.items():
        interval = paired_interval(own["lagrangian"], own["ppo"])
        assert interval is not None
        found[str(seed)] = interval.to_json()
        both = own["lagrangian"].keys() & own["ppo"].keys()
        differences.append({p: own["lagrangian"][p] - own["ppo"][p] for p in both})
    pooled = seeds_interval(differences, 0.0)
    assert pooled is not None
    return found | {"all": pooled.to_json()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arms", nargs="*", default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rollouts", type=int, default=10)
    parser.add_argument("--out", type=Path, help="where the runs are kept [default: a new folder]")
    parser.add_argument("--quick", action="store_true", help="one seed, three rollouts")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    base = options.out or Path(tempfile.mkdtemp(prefix="lagrangian-"))
    seeds = options.seeds[:1] if options.quick else options.seeds
    rollouts = 3 if options.quick else options.rollouts
    rows = []
    for seed in seeds:
        for arm in options.arms:
            rows.append(measure(arm, seed, rollouts, base))
            print(show(rows[-1]), flush=True)
    both = set(options.arms) == set(ARMS)
    compared = {judge: compare(rows, judge) for judge in ("checks", "commas") if both}
    for judge, intervals in compared.items():
        for seed, interval in intervals.items():
            said = show_interval(interval, signed=True)
            print(f"held out, lagrangian - ppo, {judge:6} {seed:>4}  {said}")
    if options.json:
        kept = [{k: v for k, v in row.items() if k != "held_out"} for row in rows]
        print(json.dumps({"runs": kept, "limit": LIMIT, "differences": compared}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
