"""Does a student come nearer to its teacher on prompts that neither has seen?

    python benchmarks/distillation.py [reverse_kl jsd given] [--seeds 1 2 3] [--rollouts 6]
        [--model NAME] [--tiny] [--out DIR] [--quick] [--json]

The teacher is made in the same run: the model, trained by SFT on answers that follow a rule ("In
short: ..."). The student begins as the model was and samples its own answers; `given` learns from
the demonstrations in every second rollout. Measured is the KL from teacher to student in nats per
token, over the whole vocabulary at every token of the student's own held-out answers, before and
after, with an interval over prompts. `--tiny` takes a random model of two layers, all of whose
weights are trained, in many more rollouts. A run that is in DIR is not run again.
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

METHODS: dict[str, dict[str, Any]] = {
    # One token of a distribution says less than all of it: smaller steps, and more answers.
    "reverse_kl": {"learning_rate": 1e-4, "n": 4},
    "jsd": {"divergence": "jsd"},
    "given": {"divergence": "jsd", "given": 0.5, "uses": ["demos"]},
}
THINGS = (
    *("apple", "bridge", "candle", "desk", "engine", "forest", "garden", "hammer", "island"),
    *("jacket", "kettle", "ladder", "mirror", "needle", "orchard", "pillow"),
)
MAX_NEW_TOKENS = 16
HELD_OUT = 16


def experiment(
    method: str, seed: int, rollouts: int, model: str, folder: Path, heldout: int, tiny: bool
) -> dict[str, Any]:
    """The experiment file of one run; its demonstrations lie in `folder`."""
    rows = [
        {"prompt": f"What is a {thing}?", "completion": f"In short: a {thing} is a useful thing."}
        for thing in THINGS
    ]
    demos = folder / "demos.jsonl"
    demos.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lora = {"r": 16, "alpha": 32}
    fast = {"warmup_ratio": 0.0, "schedule": "constant", "lora": lora, "batch_size": 4}
    student = {
        "id": "student",
        "method": "on_policy_distillation",
        "teacher": "teacher",
        "rollouts": rollouts,
        "n": 2,
        "max_new_tokens": MAX_NEW_TOKENS,
        "learning_rate": 5e-4,
        **fast,
        **METHODS[method],
    }
    teacher = {"id": "teacher", "method": "sft", "uses": ["demos"], "policy": False}
    teacher |= {"learning_rate": 1e-3, "epochs": 3, **fast}
    if tiny:
        teacher |= {"learning_rate": 3e-3, "lora": None, "epochs": 10}
        student |= {"learning_rate": 3e-3, "lora": None, "n": 4}
    return {
        "name": f"distillation-{method}",
        "seed": seed,
        "models": {"policy": {"path": model}},
        "constitution": str(ROOT / "constitutions/concise_helper.yaml"),
        "prompts": {"path": str(ROOT / "prompts/seeds/everyday.jsonl"), "holdout": heldout},
        "judges": [{"id": "checks", "kind": "rules"}],
        "steps": [
            {"load": {"id": "demos", "type": "demonstrations", "path": str(demos)}},
            {"train": teacher},
            {"train": student},
            {
                "evaluate": {
                    "temperature": 1.0,
                    "max_new_tokens": MAX_NEW_TOKENS,
                    "against": ["initial"],
                }
            },
        ],
    }


def kl_by_prompt(run: Path, name: str, teacher: str) -> dict[str, float]:
    """By held-out prompt the mean over the tokens of a model's own answer of its KL to another
    model. Both are steps of the run, or "" for M0."""
    import torch
    from transformers import AutoConfig

    from rlaif.core.records import Prompt, from_json
    from rlaif.core.store import Store
    from rlaif.engines.local.encoding import load_encoding
    from rlaif.engines.model_folders import resolve
    from rlaif.pipeline.manifest import read_manifest
    from rlaif.pipeline.runs import load_run
    from rlaif.train.loading import load_module
    from rlaif.train.losses.distillation import full_kl
    from rlaif.train.model import prepare

    steps, store = read_manifest(run)["steps"], Store(run)
    spec = load_run(run).experiment().models["policy"]

    def folder_of(step_id: str) -> Path:
        """The folder of a step's model."""
        if not step_id:
            return resolve(spec.path)
        return store.model_path(next(s["hash"] for s in steps if s["id"] == step_id))

    cpu = torch.device("cpu")
    folders = [folder_of(name), folder_of(teacher)]
    own, other = (prepare(load_module(f, cpu), cpu, torch.float32, trainable=False)
                  for f in folders)  # fmt: skip
    encoding = load_encoding(folders[0], spec, AutoConfig.from_pretrained(folders[0]), name)
    label = name or "M0"
    answered = next(
        s for s in steps
        if s["kind"] == "sample" and "." in s["id"] and s["models"]["by"][0] == label
    )  # fmt: skip
    lines = (run / "prompts.jsonl").read_text().splitlines()
    prompts = {row["prompt_id"]: from_json(Prompt, row) for row in map(json.loads, lines)}
    found: dict[str, float] = {}
    for row in store.step(answered["hash"]).rows("completions"):
        ids = encoding.render(prompts[row["prompt_id"]].messages)[1]
        branches = [(ids, [row["token_ids"]])]
        with torch.no_grad():
            logprobs = [m.read_vocabulary()(m.predicting(m.layout(branches))) for m in (own, other)]
        found[row["prompt_id"]] = float(full_kl(*logprobs).double().mean())
    return found


def measure(
    method: str, seed: int, rollouts: int, model: str, base: Path, heldout: int, tiny: bool
) -> dict[str, Any]:
    """Run one way to distil with one seed."""
    from rlaif.core.progress import QuietProgress
    from rlaif.pipeline.experiment import run_experiment

    base.mkdir(parents=True, exist_ok=True)
    path, run = base / f"{method}-{seed}.yaml", base / f"{method}-{seed}"
    content = experiment(method, seed, rollouts, model, base, heldout, tiny)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    began = time.monotonic()
    run_experiment(path, run, (), QuietProgress())
    before, after = kl_by_prompt(run, "", "teacher"), kl_by_prompt(run, "student", "teacher")
    curve: list[dict[str, Any]] = []
    for file in run.glob("steps/*/work/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        curve = rows if "kl_teacher" in rows[-1] else curve
    return {
        "method": method,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "kl_before": round(sum(before.values()) / len(before), 4),
        "kl_after": round(sum(after.values()) / len(after), 4),
        "kl_training": [round(row["kl_teacher"], 4) for row in curve],
        "by_prompt": {prompt: after[prompt] - before[prompt] for prompt in before},
    }


def over_seeds(rows: list[dict[str, Any]]) -> IntervalJson:
    """The mean change over the seeds, which share their held-out prompts."""
    found = seeds_interval([row["by_prompt"] for row in rows], 0.0)
    assert found is not None
    return found.to_json()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rollouts", type=int, default=6)
    parser.add_argument("--model", default="builtin/smollm2-135m-instruct")
    parser.add_argument("--tiny", action="store_true", help="a random model of two layers")
    parser.add_argument("--out", type=Path, help="where the runs are kept [default: a new folder]")
    parser.add_argument("--quick", action="store_true", help="one seed, two rollouts")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    base = options.out or Path(tempfile.mkdtemp(prefix="distillation-"))
    seeds = options.seeds[:1] if options.quick else options.seeds
    rollouts = 2 if options.quick else options.rollouts * (6 if options.tiny else 1)
    model = options.model
    if options.tiny:
        from tests.support.damage import tiny_model

        base.mkdir(parents=True, exist_ok=True)
        model = str(tiny_model(base / "tiny"))
    heldout = 8 if options.quick else HELD_OUT
    rows = []
    for seed in seeds:
        for method in options.methods:
            rows.append(measure(method, seed, rollouts, model, base, heldout, options.tiny))
            row = rows[-1]
            print(
                f"{method:11} {seed:>4}  KL to the teacher {row['kl_before']:.3f} -> "
                f"{row['kl_after']:.3f} nats per token  {row['seconds']:.0f} s",
                flush=True,
            )
    pooled = {m: over_seeds([r for r in rows if r["method"] == m]) for m in options.methods}
    for method, change in pooled.items():
        print(f"{method:11}  all  change {show_interval(change, signed=True)}")
    if options.json:
        print(json.dumps({"runs": rows, "rollouts": rollouts, "over_seeds": pooled}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
