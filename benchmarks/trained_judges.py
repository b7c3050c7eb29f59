"""What each published way to train a judge does to the embedded model, once and small.

    python benchmarks/trained_judges.py [METHOD ...] [--seed 1] [--out DIR] [--quick] [--json]

`self-rewarding`, `meta-rewarding`, `self-taught-from-own-answers`, `j1` and `genrm` are the files
of docs/judge-training.md, with the embedded 135M model and short templates, at sizes that one core
finishes in minutes; `constitutional_ai` and `llama3` are those of experiments/, as they stand. The
judges are measured on short facts: the worse of two answers answers another question of the same
kind. GenRM verifies sums that the model worked out itself.

Measured on held-out pairs, with every model of the run: the share of pairs that are right (of a
judge that compares, in both orders; no verdict is wrong), its difference to the first model with an
interval over pairs, the share of judgements with a verdict, and the share of verdicts for the first
slot. The other methods have the checks' score of held-out answers. The trace is what the steps
made. Whichever result comes is printed. A run that is in DIR is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
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

from rlaif.core.records import Judgement  # noqa: E402
from rlaif.metrics.intervals import IntervalJson, paired_interval, show_interval  # noqa: E402
from rlaif.pipeline.runs import Run, load_run  # noqa: E402

Marks = dict[str, float]

FACTS = {
    ("What is the capital of {}?", "The capital of {} is {}."): (
        "France Paris, Spain Madrid, Italy Rome, Japan Tokyo, Egypt Cairo, Norway Oslo, Cuba "
        "Havana, Peru Lima, Kenya Nairobi, Greece Athens, Poland Warsaw, Austria Vienna, Ireland "
        "Dublin, Portugal Lisbon, Hungary Budapest, Sweden Stockholm, Finland Helsinki, Denmark "
        "Copenhagen, Turkey Ankara, Canada Ottawa, Iran Tehran, Iraq Baghdad, Chile Santiago, "
        "Thailand Bangkok, Russia Moscow, Germany Berlin, Belgium Brussels, Nepal Kathmandu, "
        "Jordan Amman, Ghana Accra, Bulgaria Sofia, Vietnam Hanoi"
    ),
    ("What is the opposite of {}?", "The opposite of {} is {}."): (
        "hot cold, big small, fast slow, high low, old new, light dark, wet dry, hard soft, full "
        "empty, early late, strong weak, rich poor, happy sad, clean dirty, open closed, loud "
        "quiet, thick thin, wide narrow, deep shallow, heavy weightless, sharp blunt, rough "
        "smooth, cheap expensive, safe dangerous, true false, same different, near far, brave "
        "cowardly, young aged, sweet bitter, tall short, alive dead"
    ),
    ("What is a young {} called?", "A young {} is called a {}."): (
        "cat kitten, dog puppy, cow calf, horse foal, sheep lamb, goat kid, pig piglet, duck "
        "duckling, swan cygnet, goose gosling, bear cub, deer fawn, hen chick, frog tadpole, owl "
        "owlet, kangaroo joey, seal pup, eagle eaglet, hare leveret, eel elver, salmon parr, "
        "pigeon squab, fish fry, turkey poult, zebra colt, lion whelp, bee larva, butterfly "
        "caterpillar, spider spiderling, hawk eyas, otter kit, oyster spat"
    ),
}
COMPARE = """\
---user---
Question: {{ conversation }}

Answer 1: {{ response_1 }}

Answer 2: {{ response_2 }}

Which answer is better? Reply with "Verdict: 1" or "Verdict: 2" only.
---form---
Verdict: VALUE
"""
GRADE = """\
---user---
Score each answer with {{ high }} if it is right and {{ low }} if it is wrong.

Question: What is the capital of Mexico?
Answer: The capital of Mexico is Mexico City.
Score: {{ high }}

Question: What is the capital of India?
Answer: The capital of India is Rome.
Score: {{ low }}

Question: What is a young rabbit called?
Answer: A young rabbit is called a kit.
Score: {{ high }}

Question: What is a young elephant called?
Answer: A young elephant is called a puppy.
Score: {{ low }}

Question: {{ conversation }}
Answer: {{ response }}

Write "Score: {{ high }}" or "Score: {{ low }}".
---form---
Score: VALUE
"""
VERIFY = """\
---user---
Question: {{ conversation }}

Answer: {{ response }}

{{ principle }}{% if reason %} Work it out in a few words, and do not say yes or no yet.{% else %}
 Answer Yes or No.{% endif %}
---then---
So, is it right? Answer Yes or No.
"""
CORRECT = {
    "name": "correct",
    "principles": [
        {"id": "right_number", "text": "The sum is right.", "check": {"rule": "numeric_match"}},
        {"id": "correct", "text": "Is the result of this answer right?"},
    ],
}
MODEL = {"path": "builtin/smollm2-135m-instruct"}
LORA = {"r": 16, "alpha": 32}
SHORT, BRIEF = 24, 8
"""New tokens of an answer, and of a verdict: asked for reasons first, the embedded model writes no
verdict that can be read (of 128 answers in one run a single one was right)."""
TRAIN, HELD_OUT = 16, 24

GRADES = {"samples": 4, "temperature": 0.4, "max_new_tokens": BRIEF, "template": "grade.j2"}
LEARN = {"learning_rate": 1e-4, "batch_size": 8, "lora": LORA}

SEED_STAGE: dict[str, Any] = {
    "judges.self": GRADES,
    "steps.sft": LEARN,
    "steps.sample": {"n": 4, "prompts": 8, "max_new_tokens": 32},
    "steps.dpo": LEARN,
}
SIZES: dict[str, dict[str, Any]] = {
    "self-rewarding": SEED_STAGE,
    "meta-rewarding": SEED_STAGE
    | {
        "judges.self": GRADES,
        "steps.sample": {"n": 3, "prompts": 8, "max_new_tokens": 32},
    },
    "self-taught-from-own-answers": {
        "judges.compare": {"max_new_tokens": BRIEF, "template": "compare.j2"},
        "steps.good": {"max_new_tokens": SHORT},
        "steps.changed": {"max_new_tokens": SHORT},
        "steps.tries": {"n": 4, "max_new_tokens": BRIEF},
        "steps.evaluator": LEARN,
    },
    "j1": {
        "judges.compare": {"max_new_tokens": BRIEF, "template": "compare.j2"},
        "steps.tries": {"n": 4, "max_new_tokens": BRIEF},
        "steps.cold": LEARN,
        "steps.j1": LEARN | {"n": 4, "rollouts": 4, "max_new_tokens": BRIEF},
    },
    "genrm": {
        "judges.direct": {"template": "verify.j2"},
        "judges.reasoned": {"template": "verify.j2", "samples": 2, "max_new_tokens": SHORT},
        "steps.solutions": {"n": 4, "max_new_tokens": SHORT},
        "steps.genrm": LEARN,
        "steps.genrm_cot": LEARN,
    },
    "constitutional_ai": {},
    "llama3": {},
}
"""What is set in each file: by place the keys and their values."""
QUICK: dict[str, dict[str, Any]] = {
    "constitutional_ai": {"prompts": {"holdout": 4}, "steps.drafts": {"prompts": 4}},
    "llama3": {
        "prompts": {"holdout": 4},
        "steps.compared": {"prompts": 4},
        "steps.answers": {"prompts": 2},
    },
}
"""What `--quick` sets beside fewer pairs."""
SHOWN = ("questions", "pair", "filter", "revise", "train", "distill")
"""The kinds of steps whose counts are the trace of a method."""


def make_facts() -> list[dict[str, str]]:
    """Labelled pairs in an order that is always the same, no two of one question."""
    rows = []
    for (question, answer), text in FACTS.items():
        facts = [fact.split() for fact in text.split(", ")]
        for number, (name, value) in enumerate(facts):
            rows.append(
                {
                    "prompt": question.format(name),
                    "chosen": answer.format(name, value),
                    "rejected": answer.format(*facts[(number + 7) % len(facts)]),
                }
            )
    random.Random(5).shuffle(rows)
    return rows


def make_sums(count: int) -> list[dict[str, str]]:
    """Different sums of a number below 30 and one below 10, with their results."""
    terms = [(a, b) for a in range(2, 30) for b in range(2, 10)]
    drawn = random.Random(6).sample(terms, count)
    return [{"prompt": f"What is {a} + {b}?", "reference": str(a + b)} for a, b in drawn]


def label_sums(sums: list[dict[str, str]]) -> list[dict[str, str]]:
    """A pair of each sum: its result, and one that is off by a little."""
    rows = []
    for number, row in enumerate(sums):
        task = row["prompt"].removeprefix("What is ").rstrip("?")
        right = int(row["reference"])
        wrong = right + (-10, -2, -1, 1, 2, 10)[number % 6]
        rows.append(
            {
                "prompt": row["prompt"],
                "chosen": f"{task} = {right}",
                "rejected": f"{task} = {wrong}",
            }
        )
    return rows


def list_files(method: str, train: int, heldout: int) -> dict[str, list[dict[str, str]]]:
    """The files of rows that a method reads: `train` pairs or prompts, and `heldout` pairs."""
    facts, sums = make_facts(), make_sums(train + heldout + 2)
    questions = [{"prompt": fact["prompt"]} for fact in facts]
    # A set has a prompt that is not held out, and one that is.
    last = slice(train + 1, train + heldout + 2)
    if method == "j1":
        return {"labelled.jsonl": facts[: train + heldout]}
    if method == "genrm":
        return {"problems.jsonl": sums[: train + 1], "pairs.jsonl": label_sums(sums[last])}
    if method == "self-taught-from-own-answers":
        return {"prompts.jsonl": questions[: train + 1], "pairs.jsonl": facts[last]}
    shown = (ROOT / "prompts/seeds/answered.jsonl").read_text().splitlines()
    demos = [
        {"prompt": row["prompt"], "completion": row["reference"]} for row in map(json.loads, shown)
    ]
    return {"demos.jsonl": demos, "pairs.jsonl": facts[: train + heldout]}


def write_files(folder: Path, method: str, train: int, heldout: int) -> None:
    """All that a method's file names."""
    for name, rows in list_files(method, train, heldout).items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("compare.j2", COMPARE), ("grade.j2", GRADE), ("verify.j2", VERIFY)):
        (folder / name).write_text(text)
    (folder / "correct.yaml").write_text(yaml.safe_dump(CORRECT, sort_keys=False))


def read_page() -> dict[str, dict[str, Any]]:
    """The files of docs/judge-training.md by their names."""
    page = (ROOT / "docs/judge-training.md").read_text("utf-8")
    files = [yaml.safe_load(body) for body in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    return {file["name"]: file for file in files}


def make_experiment(method: str) -> dict[str, Any]:
    """A method's file. Self-rewarding has a bench of its judge after the rounds; Meta-Rewarding has
    its seed stage too, and the two rounds in which its judge learns."""
    pages = read_page()
    if method not in pages:
        text = (ROOT / f"experiments/{method}.yaml").read_text("utf-8")
        found: dict[str, Any] = yaml.safe_load(text)
        return found
    file = pages[method]
    if "rewarding" not in method:
        return file
    stages = [pages["self-rewarding"]["stages"][0], file["stages"][-1]]
    stages[1]["rounds"] = 2
    stages[1].pop("at", None)
    models = ["initial", "sft", "dpo@1", "dpo@2"]
    bench = {"bench": {"judges": ["self"], "pairs": "ranked", "by": models}}
    prompts = {"path": str(ROOT / "prompts/seeds/everyday.jsonl"), "holdout": 16}
    return file | {"prompts": prompts, "stages": [*stages, {"id": "measure", "steps": [bench]}]}


def list_settings(method: str, heldout: int, quick: bool) -> list[str]:
    """What is set in a method's file."""
    sizes = [SIZES[method], QUICK.get(method, {}) if quick else {}]
    if method in read_page():
        # Of the labelled pairs the held-out ones are measured on.
        loads = {
            "j1": "prompts",
            "self-rewarding": "steps.ranked",
            "meta-rewarding": "steps.ranked",
        }
        sizes.append({loads.get(method, "steps.labelled"): {"holdout": heldout}})
        if method in ("genrm", "self-taught-from-own-answers"):
            sizes.append({"prompts": {"holdout": 1}})
    return [
        f"{place}.{key}={json.dumps(value)}"
        for own in sizes
        for place, keys in own.items()
        for key, value in keys.items()
    ]


def mark_pairs(judgements: list[Judgement], better: dict[str, str]) -> Marks:
    """By pair, 1 if the judge was right. Of a comparison all orders are right, and of scores that
    of the better answer is higher."""
    orders: dict[str, list[bool]] = defaultdict(list)
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for j in judgements:
        if len(j.shown) == 2:
            prob = 0.5 if j.prob_first is None else j.prob_first
            won = j.shown[0] if prob > 0.5 else j.shown[1] if prob < 0.5 else None
            orders[j.prompt_id].append(won == better[j.prompt_id])
        elif j.score is not None:
            scores[j.prompt_id][j.subject].append(j.score)
    marks = {pair: float(all(own)) for pair, own in orders.items()}
    for pair, own in scores.items():
        means = {answer: fmean(values) for answer, values in own.items()}
        best = means.pop(better[pair], None)
        marks[pair] = float(best is not None and bool(means) and best > max(means.values()))
    return {pair: marks.get(pair, 0.0) for pair in better}


def difference(new: Marks, old: Marks) -> IntervalJson | None:
    """The paired difference, None of a model to itself."""
    found = paired_interval(new, old) if new is not old else None
    return found.to_json() if found is not None else None


def measure_judges(run: Run) -> list[dict[str, Any]]:
    """A row for each judge and model of every bench."""
    rows = []
    for step in (s for s in run.manifest["steps"] if s["kind"] == "bench"):
        labels = run.store.step(step["inputs"]["pairs"]).records(Judgement)
        better = {j.prompt_id: j.shown[0 if (j.prob_first or 0) > 0.5 else 1] for j in labels}
        (found,) = run.store.step(step["hash"]).rows("bench")
        first: dict[str, Marks] = {}
        for place, figures in found["judges"].items():
            judge = figures["judge"]
            folder = run.store.step(step["inputs"][f"judged/{place}"])
            judgements = list(folder.records(Judgement))
            marks = mark_pairs(judgements, better)
            slot = figures.get("slot_one_rate")
            rows.append(
                {
                    "measure": f"{judge}: right",
                    "model": step["models"][place][0],
                    "value": fmean(marks.values()),
                    "change": difference(marks, first.setdefault(judge, marks)),
                    "parsed": fmean(j.status in ("ok", "tie") for j in judgements),
                    "first_slot": None if slot is None else slot["mean"],
                }
            )
    return rows


def measure_answers(run: Run) -> list[dict[str, Any]]:
    """A row for each model that was evaluated and each score of its held-out answers."""
    rows = []
    for row in run.round_rows():
        metrics = row["metrics"]
        for name in (n for n in metrics["metrics"] if n.startswith("score/") and n.count("/") == 1):
            rows.append(
                {
                    "measure": name,
                    "model": row["label"],
                    "value": metrics["metrics"][name]["mean"],
                    "change": metrics["deltas"].get("initial", {}).get(name),
                    "parsed": None,
                    "first_slot": None,
                }
            )
    return rows


def trace_steps(run: Run) -> list[dict[str, Any]]:
    """What the steps of interest made, in the order of running."""
    rows = []
    for step in run.manifest["steps"]:
        if step["kind"] in SHOWN and "." not in step["id"]:
            done = run.store.step(step["hash"]).done() or {}
            counts = {name: n for name, n in done["counts"].items() if n}
            rows.append({"step": step["id"], "round": step["round"], "counts": counts})
            rows[-1] |= {"summary": done.get("summary", {})}
    return rows


def measure(method: str, seed: int, quick: bool, base: Path) -> dict[str, Any]:
    """Run one method; its figures, or `stopped` with the reason where a step had nothing to do."""
    from rlaif.core.errors import ConfigError
    from rlaif.core.progress import QuietProgress
    from rlaif.pipeline.experiment import run_experiment

    folder = base / method
    folder.mkdir(parents=True, exist_ok=True)
    train, heldout = (8, 4) if quick else (TRAIN, HELD_OUT)
    write_files(folder, method, train, heldout)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(make_experiment(method), sort_keys=False))
    began = time.monotonic()
    settings = [f"seed={seed}", *list_settings(method, heldout, quick)]
    try:
        run_experiment(path, folder / "run", settings, QuietProgress())
    except ConfigError as error:
        seconds = round(time.monotonic() - began)
        return {"method": method, "seconds": seconds, "stopped": str(error), "rows": []}
    run = load_run(folder / "run")
    return {
        "method": method,
        "seconds": round(time.monotonic() - began),
        "stopped": None,
        "rows": [*measure_judges(run), *measure_answers(run)],
        "trace": trace_steps(run),
    }


def show_method(found: dict[str, Any]) -> str:
    """The lines of the table that are one method's, and its trace."""
    if found["stopped"]:
        return f"{found['method']} stopped after {found['seconds']} s: {found['stopped']}"
    lines = []
    for row in found["rows"]:
        change = "" if row["change"] is None else show_interval(row["change"], signed=True)
        shares = ("" if row[n] is None else f"{row[n]:.2f}" for n in ("parsed", "first_slot"))
        cells = (found["method"], row["measure"], row["model"], f"{row['value']:.3f}", change)
        lines.append("| " + " | ".join((*cells, *shares)) + " |")
    made = (
        f"{row['step']}@{row['round']} "
        + " ".join(f"{name} {n}" for name, n in row["counts"].items())
        for row in found["trace"]
    )
    return "\n".join(lines) + f"\n  {found['seconds']} s; made: {'; '.join(made)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "methods", nargs="*", metavar="METHOD", help=f"[default: {', '.join(SIZES)}]"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where the runs are kept [default: a new folder]")
    parser.add_argument("--quick", action="store_true", help="eight pairs, four held out")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    unknown = [name for name in options.methods if name not in SIZES]
    if unknown:
        parser.error(f"no method {unknown[0]!r}: take {', '.join(SIZES)}")
    base = options.out or Path(tempfile.mkdtemp(prefix="trained-judges-"))
    print("| method | measured | model | value | change | parsed | first slot |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for method in options.methods or SIZES:
        rows.append(measure(method, options.seed, options.quick, base.resolve()))
        print(show_method(rows[-1]), flush=True)
    if options.json:
        print(json.dumps({"seed": options.seed, "methods": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
