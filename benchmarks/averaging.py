"""What averaging does to policies that were trained on the same pairs in three ways.

    python benchmarks/averaging.py [--seeds 1 2 3] [--model NAME] [--tiny] [--out DIR] [--quick]
        [--json]

Three DPO trainings from one start on the same pairs, at three learning rates; their mean, the point
halfway between two of them on the sphere, the greedy soup and the best one, by the checks of
constitutions/concise_helper.yaml. Greedy and best are chosen on validation prompts, on which the
greedy soup cannot be worse than the best; what all of them are worth shows on held-out prompts,
with intervals. `--tiny` takes a random model of two layers: its answers are noise, and only that
greedy is not below the best is to be seen. A run that is in DIR is not run again.
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

from rlaif.metrics.intervals import show_interval  # noqa: E402
from rlaif.metrics.pooled import seeds_interval  # noqa: E402

SCORE = "score/checks"
RATES = {"low": 1e-4, "middle": 3e-4, "high": 6e-4}
AVERAGES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "slerp": {"models": ["low", "high"]},
    "greedy": {"by": "checks"},
    "best": {"by": "checks"},
}
MAX_NEW_TOKENS = 32


def experiment(seed: int, model: str, prompts: int, heldout: int) -> dict[str, Any]:
    """The experiment file of one run."""
    dpo = {
        "from": "initial",
        "uses": ["pair"],
        "batch_size": 4,
        "epochs": 2,
        "warmup_ratio": 0.0,
        "lora": {"r": 16, "alpha": 32},
        "policy": False,
    }
    names = list(RATES)
    averages = [
        {"average": {"id": method, "method": method, "models": names, "policy": False, **keys}}
        for method, keys in AVERAGES.items()
    ]
    measured = [*names, *AVERAGES]
    sampling = {"temperature": 1.0, "max_new_tokens": MAX_NEW_TOKENS}
    spec = {"path": model, "system_prompt": "Reply in one short sentence."}
    return {
        "name": "averaging",
        "seed": seed,
        "models": {"policy": spec},
        "constitution": str(ROOT / "constitutions/concise_helper.yaml"),
        "prompts": {
            "path": str(ROOT / "prompts/seeds/everyday.jsonl"),
            "holdout": heldout,
            "validation": heldout,
        },
        "steps": [
            {"sample": {"n": 4, "prompts": prompts, **sampling}},
            {"judge": {"id": "checks", "kind": "rules"}},
            {"pair": {}},
            *({"train": {**dpo, "id": name, "learning_rate": rate}}
              for name, rate in RATES.items()),
            *averages,
            *({"evaluate": {"id": f"of_{name}", "model": name, "against": ["initial"]}}
              for name in measured),
        ],
    }  # fmt: skip


def measure(seed: int, model: str, prompts: int, heldout: int, base: Path) -> dict[str, Any]:
    """Run one seed."""
    from rlaif.core.progress import QuietProgress
    from rlaif.core.store import Store
    from rlaif.pipeline.experiment import run_experiment
    from rlaif.pipeline.manifest import read_manifest

    base.mkdir(parents=True, exist_ok=True)
    path, run = base / f"averaging-{seed}.yaml", base / f"averaging-{seed}"
    content = experiment(seed, model, prompts, heldout)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    began = time.monotonic()
    run_experiment(path, run, (), QuietProgress())
    steps, store = read_manifest(run)["steps"], Store(run)
    greedy = next(s for s in steps if s["id"] == "greedy")
    done = store.step(greedy["hash"]).done() or {}
    means = done["summary"]
    members = {name: means[f"mean_of_{name}"] for name in RATES}
    soups = [value for name, value in means.items() if name.startswith("mean_of_soup_")]
    values: dict[str, dict[str, float]] = {}
    for step in steps:
        if step["kind"] == "evaluate" and step["round"]:
            rows = store.step(step["hash"]).rows("values")
            values[step["id"].removeprefix("of_")] = next(
                row["values"] for row in rows if row["metric"] == SCORE
            )
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "validation": {name: round(value, 4) for name, value in members.items()},
        "soups": [round(value, 4) for value in soups],
        "greedy": done["members"],
        # A soup is kept where it is no worse than what is kept before it.
        "greedy_validation": round(max([*members.values(), *soups]), 4),
        "held_out": {n: round(sum(v.values()) / len(v), 4) for n, v in values.items()},
        "by_prompt": values,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--model", default="builtin/smollm2-135m-instruct")
    parser.add_argument("--tiny", action="store_true", help="a random model of two layers")
    parser.add_argument("--out", type=Path, help="where the runs are kept [default: a new folder]")
    parser.add_argument("--quick", action="store_true", help="one seed, few prompts")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    base = options.out or Path(tempfile.mkdtemp(prefix="averaging-"))
    seeds = options.seeds[:1] if options.quick else options.seeds
    model = options.model
    if options.tiny:
        from tests.support.damage import tiny_model

        base.mkdir(parents=True, exist_ok=True)
        model = str(tiny_model(base / "tiny"))
    prompts, heldout = (4, 6) if options.quick else (8, 12)
    rows = []
    for seed in seeds:
        row = measure(seed, model, prompts, heldout, base)
        rows.append(row)
        said = ", ".join(f"{name} {value:.3f}" for name, value in row["validation"].items())
        print(
            f"seed {seed}  validation: {said}; greedy {'+'.join(row['greedy'])} "
            f"{row['greedy_validation']:.3f}  {row['seconds']:.0f} s",
            flush=True,
        )
        assert row["greedy_validation"] >= max(row["validation"].values())
    pooled = {}
    for name in [*RATES, *AVERAGES]:
        found = seeds_interval([row["by_prompt"][name] for row in rows], 0.0)
        if found is not None:
            pooled[name] = found.to_json()
            print(f"{name:8} held out {show_interval(pooled[name])}")
    if options.json:
        print(json.dumps({"runs": rows, "over_seeds": pooled}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
