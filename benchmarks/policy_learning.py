"""Does every on-policy algorithm learn a verifiable task on the real model?

    python benchmarks/policy_learning.py [METHOD ...] [--seeds 1 2 3] [--rollouts 6]
        [--out DIR] [--quick] [--json]

Half of the reward are the checks of constitutions/concise_helper.yaml: a finished answer of 12 to
36 plain words that takes up the question and repeats nothing. The other half is that the answer has
no comma, which the start fails in three of four. Empty, short and repetitive text cannot win.
Each run is an experiment: the reward curve is that of the training prompts, the difference is on
held-out prompts with a paired bootstrap over prompts. A run that is in DIR is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlaif.metrics.intervals import IntervalJson, show_interval  # noqa: E402
from rlaif.metrics.pooled import seeds_interval  # noqa: E402

SCORE = "score/checks"
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"n": 4, "batch_size": 6, "beta": 0.02},
    "rloo": {"n": 4, "batch_size": 6, "beta": 0.02},
    "ppo": {"n": 4, "batch_size": 6, "epochs": 2, "beta": 0.005, "lam": 1.0},
    "online_dpo": {"n": 4, "batch_size": 6, "beta": 0.1},
    # As many answers per rollout, learned from in two steps: in one, both are GRPO.
    "gspo": {"n": 4, "batch_size": 3, "sync_every": 2, "beta": 0.02},
    "cispo": {"n": 4, "batch_size": 3, "sync_every": 2, "beta": 0.02},
    "reinforce": {"n": 4, "batch_size": 6, "beta": 0.005, "critic": "head"},
    "reinforce_pp": {"n": 4, "batch_size": 6, "beta": 0.01, "learning_rate": 6e-4},
    "sppo": {"n": 4, "batch_size": 6, "beta": 0.01, "learning_rate": 1e-3},
    # The tokens have to be learned before sampling after them helps: more steps a rollout, and no
    # bonus for entropy. The evaluation is after the best token, as its rollouts are.
    "quark": {
        "n": 4,
        "batch_size": 6,
        "epochs": 6,
        "quantiles": 3,
        "entropy_weight": 0.0,
        "keep_tokens": True,
    },
}
LEARNING_RATE = 3e-4
MAX_NEW_TOKENS = 48
NO_COMMAS = {
    "id": "no_commas",
    "text": "The answer has no comma.",
    "check": {"rule": "forbidden_pattern", "params": {"pattern": ","}},
}


def task() -> dict[str, Any]:
    """The constitution of the reward."""
    concise = yaml.safe_load((ROOT / "constitutions/concise_helper.yaml").read_text())
    checks = [principle for principle in concise["principles"] if "check" in principle]
    weight = sum(principle.get("weight", 1) for principle in checks)
    return {"name": "task", "version": "1", "principles": [*checks, NO_COMMAS | {"weight": weight}]}


def experiment(method: str, seed: int, rollouts: int, constitution: Path) -> dict[str, Any]:
    """The experiment file of one run."""
    train = {
        "method": method,
        "rewards": {"checks": 1.0},
        "rollouts": rollouts,
        "max_new_tokens": MAX_NEW_TOKENS,
        "learning_rate": LEARNING_RATE,
        "warmup_ratio": 0.0,
        "schedule": "constant",
        "lora": {"r": 16, "alpha": 32},
        **METHODS[method],
    }
    system = "Reply in one short sentence."
    return {
        "name": f"policy-learning-{method}",
        "seed": seed,
        "models": {"policy": {"path": "builtin/smollm2-135m-instruct", "system_prompt": system}},
        "constitution": str(constitution),
        "prompts": {"path": str(ROOT / "prompts/seeds/everyday.jsonl"), "holdout": 48},
        "judges": [{"id": "checks", "kind": "rules"}],
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


def measure(method: str, seed: int, rollouts: int, base: Path) -> dict[str, Any]:
    """Run one algorithm with one seed."""
    from rlaif.core.progress import QuietProgress
    from rlaif.pipeline.experiment import run_experiment
    from rlaif.pipeline.runs import load_run
    from rlaif.report.merged import change_values

    base.mkdir(parents=True, exist_ok=True)
    constitution = base / "task.yaml"
    constitution.write_text(yaml.safe_dump(task(), sort_keys=False))
    path = base / f"{method}-{seed}.yaml"
    text = yaml.safe_dump(experiment(method, seed, rollouts, constitution), sort_keys=False)
    path.write_text(text)
    began = time.monotonic()
    run = base / f"{method}-{seed}"
    last = run_experiment(path, run, (), QuietProgress()).rounds[-1]
    curve: list[dict[str, Any]] = []
    for file in run.glob("steps/*/work/metrics.jsonl"):
        curve = [json.loads(line) for line in file.read_text().splitlines()]
    rewards = {row["rollout"]: row["reward"] for row in curve}
    stored = load_run(run)
    return {
        "method": method,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "rewards": [round(value, 3) for value in rewards.values()],
        "difference": last.metrics["deltas"]["initial"][SCORE],
        "by_prompt": change_values(
            SCORE, *(stored.values(last.arm, seed, number) for number in (last.round, 0))
        ),
        "kl": last.metrics["metrics"]["kl/initial"]["mean"],
        "value_loss": [round(row["value_loss"], 4) for row in curve if "value_loss" in row],
        "alarms": [a["name"] for a in last.metrics["alarms"] if a["severity"] == "alarm"],
    }


def over_seeds(rows: list[dict[str, Any]]) -> IntervalJson:
    """The mean difference over the seeds, which share their held-out prompts."""
    found = seeds_interval([row["by_prompt"] for row in rows], 0.0)
    assert found is not None
    return found.to_json()


def show(row: dict[str, Any]) -> str:
    """One line per run."""
    interval = show_interval(row["difference"], signed=True)
    curve = row["rewards"]
    third = max(1, len(curve) // 3)
    early, late = sum(curve[:third]) / third, sum(curve[-third:]) / third
    return (
        f"{row['method']:11} {row['seed']:>4}  reward {early:.3f} -> {late:.3f}  "
        f"held out {interval}  KL {row['kl']:.2f}  {row['seconds']:.0f} s  "
        f"{', '.join(row['alarms'])}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rollouts", type=int, default=6)
    parser.add_argument("--out", type=Path, help="where the runs are kept [default: a new folder]")
    parser.add_argument("--quick", action="store_true", help="one seed, three rollouts")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    base = options.out or Path(tempfile.mkdtemp(prefix="policy-learning-"))
    seeds = options.seeds[:1] if options.quick else options.seeds
    rollouts = 3 if options.quick else options.rollouts
    rows = []
    for seed in seeds:
        for method in options.methods:
            rows.append(measure(method, seed, rollouts, base))
            print(show(rows[-1]), flush=True)
    pooled = {m: over_seeds([r for r in rows if r["method"] == m]) for m in options.methods}
    for method, change in pooled.items():
        print(f"{method:11}  all  held out {show_interval(change, signed=True)}")
    if options.json:
        print(json.dumps({"runs": rows, "rollouts": rollouts, "over_seeds": pooled}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
