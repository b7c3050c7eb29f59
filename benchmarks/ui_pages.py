"""The pages of `rlaif ui` on a run of 1,000,000 judgements: building the index, and every page.

    python benchmarks/ui_pages.py [--quick] [--json] [--keep FOLDER]

The run has prompts of 300 bytes, four answers of about 600 bytes to each, 25 judgements of each
answer by two judges (one of which writes 150 bytes) and a pair of each prompt; its steps are written
through the store, as a run would leave them. The index is built by the server that is then measured,
each page asked for over HTTP by one client. Printed are the seconds and bytes of the index, the
median and the 95th percentile of each page in milliseconds, and the server's resident memory before
and after. --quick takes a run of 50,000 judgements; with --keep the run stays for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = {True: 500, False: 10_000}
ANSWERS, CHECKS, ASKED, SAMPLES = 4, 5, 10, 2
REPEATS = 40
"""How often each page is asked for."""
BATCH = 64
"""Prompts whose records are one commit."""
WORDS = [f"{a}{b}{c}" for a in "bdfklmnprstv" for b in "aeiou" for c in ("n", "r", "st", "l", "m")]
RARE, COMMON, MISSING = "zyzzyva", "ban", "notthere"
PAGE_LIMIT_MS = 200


def words_of(rng: random.Random, size: int) -> str:
    """A text of about `size` bytes: COMMON is in nearly all of them, RARE in one of 5,000."""
    text = " ".join(rng.choices(WORDS, k=size // 5))
    rare = f" {RARE}" if rng.random() < 1 / 5_000 else ""
    return f"{COMMON} {text}{rare}."


def write_experiment(folder: Path, count: int) -> None:
    """An experiment of two judges and one round on `count` prompts."""
    rng = random.Random(7)
    with (folder / "prompts.jsonl").open("w") as file:
        for number in range(count + 1):
            prompt = {"prompt": f"Question {number}: {words_of(rng, 280)}"}
            file.write(json.dumps(prompt) + "\n")
    check = {"rule": "word_limits", "params": {"min": 1, "max": 40}}
    principles = [{"id": f"check{n}", "check": check} for n in range(CHECKS)]
    principles += [{"id": f"text{n}", "text": f"Be good in way {n}."} for n in range(ASKED)]
    constitution = {"name": "many", "principles": principles}
    (folder / "constitution.yaml").write_text(yaml.safe_dump(constitution))
    asked = [f"text{n}" for n in range(ASKED)]
    data = {
        "name": "many judgements",
        "models": {"policy": {"path": "none", "engine": "fake"}},
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 1},
        "steps": [
            {"sample": {"n": ANSWERS}},
            {"judge": {"id": "rules", "kind": "rules"}},
            {"judge": {"id": "self", "kind": "yes_no", "by": "policy", "principles": asked}},
            {"pair": {"strategy": "best_vs_worst"}},
        ],
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def write_run(folder: Path) -> int:
    """The finished run of the experiment in `folder`; how many judgements it has."""
    from rlaif.core.store import Store
    from rlaif.pipeline.manifest import write_manifest, write_rounds
    from rlaif.pipeline.plan.unroll import make_plan
    from rlaif.pipeline.prepare import prepare

    store = Store(folder / "run")
    store.prepare()
    inputs = prepare(folder / "experiment.yaml")
    plan = make_plan(inputs)
    write_manifest(store, inputs, plan)
    folders = {planned.id: store.step(planned.hash) for planned in plan}
    files = {"sample": "completions", "rules": "judgements", "self": "judgements"}
    files["pair"] = "preferences"
    counts = dict.fromkeys(files, 0)
    prompts = inputs.prompts.train
    for start in range(0, len(prompts), BATCH):
        made = [make_records(prompt) for prompt in prompts[start : start + BATCH]]
        for step, name in files.items():
            rows = [row for found in made for row in found[step]]
            folders[step].append(name, rows)
            counts[step] += len(rows)
    for planned in plan:
        if planned.id in files:
            own = {files[planned.id]: counts[planned.id]}
            summary = {"hash": planned.hash, "kind": planned.kind, "id": planned.id}
            summary |= {"inputs": planned.inputs, "seconds": 1.0, "counts": own}
            folders[planned.id].finish(summary)
    write_rounds(inputs, plan, store)
    return counts["rules"] + counts["self"]


def make_records(prompt: Any) -> dict[str, list[Any]]:
    """What the steps leave of a prompt, by step."""
    from rlaif.config.steps import PairStep
    from rlaif.core.records import Completion, content_hash
    from rlaif.preferences.pairing import Candidate, make_preference

    rng = random.Random(prompt.prompt_id)
    answers = []
    for index in range(ANSWERS):
        said: Any = [{"role": "assistant", "content": words_of(rng, rng.randint(300, 900))}]
        name = "x_" + content_hash(prompt.prompt_id, index)
        answers.append(
            Completion(name, prompt.prompt_id, index, said, "policy", "none", {}, "stop")
        )
    rules = [
        make_judgement(answer, "rules", f"check{n}", 0, rng.random(), None)
        for answer in answers
        for n in range(CHECKS)
    ]
    asked = [
        make_judgement(answer, "self", f"text{n}", sample, rng.random(), words_of(rng, 140))
        for answer in answers
        for n in range(ASKED)
        for sample in range(SAMPLES)
    ]
    scored = sorted((Candidate(answer, rng.random()) for answer in answers), key=lambda c: -c.score)
    judged = {"rules": rules, "self": asked}
    pair = make_preference(prompt, (scored[0], scored[-1]), PairStep(), 1, judged, {})
    return {"sample": answers, "rules": rules, "self": asked, "pair": [pair]}


def make_judgement(
    answer: Any, judge: str, principle: str, sample: int, score: float, raw: str | None
) -> Any:
    """A judgement of one answer; of those that were asked for, one in 50 could not be read."""
    from rlaif.core.records import Judgement, content_hash

    name = content_hash(answer.completion_id, judge, principle, sample)
    unread = raw is not None and score < 0.02
    return Judgement(
        "j_" + name, "c_" + name, answer.prompt_id, "completion", [answer.completion_id],
        answer.completion_id, judge, f"program:{judge}", "ai" if raw else "rule", principle,
        "unparsed" if unread else "ok", score=None if unread else score, raw=raw,
        sample_index=sample, judge_hash="none",
    )  # fmt: skip


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write_experiment(folder, PROMPTS[False] if len(sys.argv) < 3 else int(sys.argv[2]))
    began = time.time()
    print(write_run(folder), time.time() - began)
