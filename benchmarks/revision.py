"""Does revising by the constitution's own texts raise the score of the rule that they ask for?

    python benchmarks/revision.py [--seeds 1 2 3] [--prompts 32] [--times 2] [--out DIR]
        [--quick] [--json]

The embedded 135M model answers questions, criticises its answers and writes them again by the
principle `brief` of constitutions/concise_helper.yaml, whose rule scores lengths of 12 to 36 words.
The same rule scores answers and revisions. Differences are paired by prompt, and their intervals
are over prompts and seeds. Whichever result comes is printed. A run that is in DIR is not run
again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlaif.metrics.intervals import IntervalJson, paired_interval, show_interval  # noqa: E402
from rlaif.metrics.pooled import seeds_interval  # noqa: E402
from rlaif.pipeline.runs import Run  # noqa: E402

RULE = "brief"
MAX_NEW_TOKENS = 64


def experiment(seed: int, prompts: int, times: int) -> dict[str, Any]:
    """The experiment file of one run."""
    return {
        "name": "revision",
        "seed": seed,
        "models": {"policy": {"path": "builtin/smollm2-135m-instruct"}},
        "constitution": str(ROOT / "constitutions/concise_helper.yaml"),
        "prompts": {"path": str(ROOT / "prompts/seeds/everyday.jsonl"), "holdout": 1},
        "steps": [
            {
                "sample": {
                    "id": "drafts",
                    "n": 1,
                    "prompts": prompts,
                    "max_new_tokens": MAX_NEW_TOKENS,
                }
            },
            {
                "revise": {
                    "id": "revisions",
                    "principles": [RULE],
                    "times": times,
                    "keep": "all",
                    "max_new_tokens": MAX_NEW_TOKENS,
                }
            },
            {
                "judge": {
                    "id": "rule",
                    "kind": "rules",
                    "principles": [RULE],
                    "uses": ["drafts", "revisions"],
                }
            },
        ],
    }


def scores_by_time(run: Run) -> list[dict[str, float]]:
    """The rule's score by prompt: of the answers, then of the revisions of each time. Only prompts
    of which all are there."""
    folders = {step["id"]: run.store.step(step["hash"]) for step in run.manifest["steps"]}
    scores = {
        row["subject"]: row["score"]
        for row in folders["rule"].rows("judgements")
        if row["score"] is not None
    }
    times = {row["completion_id"]: row["time"] for row in folders["revisions"].rows("critiques")}
    found: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name in ("drafts", "revisions"):
        for row in folders[name].rows("completions"):
            score = scores.get(row["completion_id"])
            if score is not None:
                found[times.get(row["completion_id"], 0)][row["prompt_id"]].append(score)
    whole = set.intersection(*(set(values) for values in found.values()))
    return [{name: fmean(found[turn][name]) for name in sorted(whole)} for turn in sorted(found)]


def change(scores: list[dict[str, float]], turn: int) -> dict[str, float]:
    """By prompt, how much higher the revision of a time scores than the answer."""
    return {name: value - scores[0][name] for name, value in scores[turn].items()}


def measure(seed: int, prompts: int, times: int, base: Path) -> dict[str, Any]:
    """Run one seed."""
    from rlaif.core.progress import QuietProgress
    from rlaif.pipeline.experiment import run_experiment
    from rlaif.pipeline.runs import load_run

    base.mkdir(parents=True, exist_ok=True)
    path = base / f"revision-{seed}.yaml"
    path.write_text(yaml.safe_dump(experiment(seed, prompts, times), sort_keys=False))
    began = time.monotonic()
    run_experiment(path, base / f"run-{seed}", (), QuietProgress())
    run = load_run(base / f"run-{seed}")
    scores = scores_by_time(run)
    step = next(s for s in run.manifest["steps"] if s["id"] == "revisions")
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "counts": (run.store.step(step["hash"]).done() or {})["counts"],
        "scores": [round(fmean(values.values()), 3) for values in scores],
        "by_prompt": [change(scores, turn) for turn in range(1, len(scores))],
        "differences": [_interval(scores, turn) for turn in range(1, len(scores))],
    }


def _interval(scores: list[dict[str, float]], turn: int) -> IntervalJson:
    found = paired_interval(scores[turn], scores[0])
    assert found is not None
    return found.to_json()


def over_seeds(by_prompt: list[dict[str, float]]) -> IntervalJson:
    """The mean difference over the seeds, which share their prompts."""
    found = seeds_interval(by_prompt, 0.0)
    assert found is not None
    return found.to_json()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where the runs are kept [default: a new folder]")
    parser.add_argument("--quick", action="store_true", help="one seed, eight prompts, once")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    base = options.out or Path(tempfile.mkdtemp(prefix="revision-"))
    seeds = options.seeds[:1] if options.quick else options.seeds
    prompts, times = (8, 1) if options.quick else (options.prompts, options.times)
    rows = []
    for seed in seeds:
        rows.append(row := measure(seed, prompts, times, base))
        shown = ", ".join(show_interval(each, signed=True) for each in row["differences"])
        scores = " -> ".join(f"{score:.3f}" for score in row["scores"])
        print(f"seed {seed}: score {scores}; change {shown}; {row['seconds']:.0f} s", flush=True)
    pooled = [over_seeds([row["by_prompt"][turn] for row in rows]) for turn in range(times)]
    for number, found in enumerate(pooled if len(seeds) > 1 else (), 1):
        print(
            f"after revision {number}: {show_interval(found, signed=True)} over {len(seeds)} seeds"
        )
    if options.json:
        print(json.dumps({"runs": rows, "over_seeds": pooled}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
