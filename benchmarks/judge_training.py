"""Does a judge learn from marks of its own verdicts, and does GRPO add to the cold start?

    python benchmarks/judge_training.py [--seeds 1 2 3] [--rollouts 25] [--pairs 256] [--epochs 6]
        [--no-start] [--out DIR] [--quick] [--json]

Of two answers the better one is that which names a digit, which nobody tells the judge. It begins
as a small model that has learned the form of a verdict and no more: its verdicts in the examples
are coins. Then it answers questions about pairs, and a program marks the answers: SFT on its own
right verdicts (the cold start), GRPO with `both_orders` from there, and GRPO from the beginning.
Fewer `--epochs` of the cold start leave GRPO something to add.
Each is measured on held-out pairs in both orders; a verdict that cannot be read is wrong. Intervals
are over pairs and seeds. A run that is in DIR is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlaif.metrics.intervals import Interval, show_interval  # noqa: E402
from rlaif.metrics.pooled import seeds_interval  # noqa: E402

TEMPLATE = """\
---user---
1: {{ response_1 }}
2: {{ response_2 }}
Better?
"""
ADJECTIVES = ("red", "green", "small", "old", "sweet", "soft", "round", "fresh", "dry", "ripe")
NOUNS = ("plums", "pears", "nuts", "figs", "beans", "limes", "dates", "herbs", "grapes", "roots")
HELD_OUT, DEMONSTRATIONS = 64, 800
MODELS = ("start", "cold", "j1", "grpo")
COMPARE = {
    "id": "compare",
    "kind": "pairwise",
    "by": "policy",
    "verdict": "written",
    "template": "compare.j2",
    "tie_labels": [],
    "abstain_labels": [],
    "max_new_tokens": 2,
}


def make_pairs(count: int) -> list[dict[str, str]]:
    """Pairs of which the better one names a digit."""
    draw = random.Random(7)
    plain = [f"{a} {n}" for a in ADJECTIVES for n in NOUNS]
    named = [f"{d} {n}" for d in range(2, 10) for n in NOUNS]
    return [
        {"prompt": f"Case {n}", "chosen": draw.choice(named), "rejected": draw.choice(plain)}
        for n in range(count)
    ]


def write_demonstrations(folder: Path) -> None:
    """Questions about other pairs, with coins for verdicts."""
    draw = random.Random(8)
    rows = []
    for pair in make_pairs(2000)[-DEMONSTRATIONS:]:
        texts = [pair["chosen"], pair["rejected"]]
        draw.shuffle(texts)
        rows.append(
            {
                "prompt": f"1: {texts[0]}\n2: {texts[1]}\nBetter?",
                "completion": draw.choice("12"),
            }
        )
    _write_rows(folder / "format.jsonl", rows)


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_model(folder: Path, seed: int) -> None:
    """A random small Llama with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rlaif.engines.model_folders import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve("builtin/smollm2-135m-instruct"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_experiment(
    folder: Path, seed: int, rollouts: int, epochs: int, models: Sequence[str]
) -> dict[str, Any]:
    """The experiment file of one seed, which makes some of MODELS."""
    scratch = {"id": "grpo", "from": "start", "policy": False}
    train = {"schedule": "constant", "warmup_ratio": 0.0, "precision": "fp32"}
    sft = train | {"method": "sft", "batch_size": 16, "learning_rate": 2e-3}
    grpo = train | {
        "method": "grpo",
        "prompts": "cases",
        "n": 8,
        "batch_size": 32,
        "rollouts": rollouts,
        "max_new_tokens": 2,
        "learning_rate": 5e-4,
        "beta": 0.0,
        "rewards": {"consistent": 1},
    }
    policy = {"path": str(folder / "model"), "dtype": "float32", "system_prompt": "drop"}
    return {
        "name": "judge-training",
        "seed": seed,
        "models": {"policy": policy},
        "prompts": {"holdout": HELD_OUT},
        "judges": [
            COMPARE,
            {"id": "right", "kind": "verdict", "of": "compare"},
            {"id": "consistent", "kind": "verdict", "of": "compare", "both_orders": True},
        ],
        "stages": [
            {
                "id": "form",
                "steps": [
                    {"load": {"id": "format", "type": "demonstrations", "path": "format.jsonl"}},
                    {"train": sft | {"id": "start", "uses": ["format"], "epochs": 4}},
                ],
            },
            {
                "id": "judge",
                "steps": [
                    {"load": {"id": "labelled", "type": "pairs", "path": "pairs.jsonl"}},
                    {"questions": {"id": "cases", "judge": "compare"}},
                    {
                        "sample": {
                            "id": "tries",
                            "n": 4,
                            "prompts": "cases",
                            "temperature": 1.0,
                            "max_new_tokens": 2,
                        }
                    },
                    {"judge": {"id": "right", "uses": ["tries"]}},
                    {
                        "filter": {
                            "id": "correct",
                            "records": "completions",
                            "filters": [
                                {"kind": "score", "by": "right", "least": 1},
                                {"kind": "balance", "by": "reference"},
                            ],
                        }
                    },
                    {"train": sft | {"id": "cold", "uses": ["correct"], "epochs": epochs}},
                    {"train": grpo | {"id": "j1"}},
                    *({"train": grpo | scratch} for name in models if name == "grpo"),
                    {"bench": {"judges": ["compare"], "pairs": "labelled", "by": list(models)}},
                ],
            },
        ],
    }


def measure(
    seed: int, rollouts: int, pairs: int, epochs: int, models: Sequence[str], base: Path
) -> dict[str, Any]:
    """Train with one seed; by model and pair, whether the verdict is right in both orders, and the
    share of orders in which it is."""
    from rlaif.core.progress import QuietProgress
    from rlaif.core.records import Judgement
    from rlaif.core.store import Store
    from rlaif.pipeline.experiment import run_experiment
    from rlaif.pipeline.manifest import read_manifest

    folder = base / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.j2").write_text(TEMPLATE)
    _write_rows(folder / "pairs.jsonl", make_pairs(pairs + HELD_OUT))
    write_demonstrations(folder)
    if not (folder / "model").exists():
        make_model(folder / "model", seed)
    path = folder / "experiment.yaml"
    path.write_text(
        yaml.safe_dump(make_experiment(folder, seed, rollouts, epochs, models), sort_keys=False)
    )
    began = time.monotonic()
    run_experiment(path, folder / "run", (), QuietProgress())
    store, steps = Store(folder / "run"), read_manifest(folder / "run")["steps"]
    labels = next(s for s in steps if s["id"] == "bench.pairs")
    better = {
        j.prompt_id: j.shown[0] if (j.prob_first or 0.0) > 0.5 else j.shown[1]
        for j in store.step(labels["hash"]).records(Judgement)
    }
    found: dict[str, dict[str, dict[str, float]]] = {"both": {}, "each": {}}
    for place, model in enumerate(models):
        (step,) = [s for s in steps if s["id"] == f"bench.compare.{place}"]
        right: dict[str, list[float]] = defaultdict(list)
        for j in store.step(step["hash"]).records(Judgement):
            prob = 0.5 if j.prob_first is None else j.prob_first
            won = j.shown[0] if prob > 0.5 else j.shown[1] if prob < 0.5 else None
            right[j.prompt_id].append(float(won == better[j.prompt_id]))
        found["both"][model] = {name: min(own) for name, own in right.items()}
        found["each"][model] = {name: sum(own) / len(own) for name, own in right.items()}
    return {"seed": seed, "seconds": round(time.monotonic() - began, 1), **found}


def over_seeds(rows: list[dict[str, Any]], kind: str, model: str, less: str | None) -> Interval:
    """The mean over pairs and seeds of a model's marks, or of what it has more than another."""
    values = [
        {
            name: mark - (row[kind][less][name] if less else 0.0)
            for name, mark in row[kind][model].items()
        }
        for row in rows
    ]
    found = seeds_interval(values, 0.0 if less else None)
    assert found is not None
    return found


def show_seed(row: dict[str, Any]) -> str:
    """One line per seed: the share of held-out pairs that are right in both orders, and of orders
    that are."""
    parts = []
    for model in row["both"]:
        both, each = (list(row[kind][model].values()) for kind in ("both", "each"))
        parts.append(f"{model} {sum(both) / len(both):.3f} ({sum(each) / len(each):.3f})")
    return f"seed {row['seed']:>3}  {'  '.join(parts)}  {row['seconds']:.0f} s"


CLAIMS = (("cold", "start"), ("j1", "cold"), ("j1", "start"), ("grpo", "start"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rollouts", type=int, default=25)
    parser.add_argument("--pairs", type=int, default=256, help="pairs to train on")
    parser.add_argument("--epochs", type=int, default=6, help="of the cold start")
    parser.add_argument("--no-start", action="store_true", help="leave GRPO from the start out")
    parser.add_argument("--out", type=Path, help="where the runs are kept [default: a new folder]")
    parser.add_argument("--quick", action="store_true", help="one seed, two rollouts, few pairs")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    base = options.out or Path(tempfile.mkdtemp(prefix="judge-training-"))
    seeds = options.seeds[:1] if options.quick else options.seeds
    rollouts, pairs = (2, 32) if options.quick else (options.rollouts, options.pairs)
    models = MODELS[:-1] if options.no_start else MODELS
    print("held-out pairs right in both orders (and orders right)")
    rows = []
    for seed in seeds:
        rows.append(measure(seed, rollouts, pairs, options.epochs, models, base.resolve()))
        print(show_seed(rows[-1]), flush=True)
    said: dict[str, Any] = {}
    for model in models:
        said[model] = over_seeds(rows, "both", model, None).to_json()
        print(f"{model:15} {show_interval(said[model])}")
    for model, less in (claim for claim in CLAIMS if claim[0] in models):
        name = f"{model} less {less}"
        said[name] = over_seeds(rows, "both", model, less).to_json()
        print(f"{name:15} {show_interval(said[name], signed=True)}")
    if options.json:
        sizes = {"rollouts": rollouts, "pairs": pairs, "epochs": options.epochs}
        print(json.dumps({"runs": rows, **sizes, "over_seeds": said}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
