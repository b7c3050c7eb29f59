"""Every step that makes training data or a model of models, in one run: killed halfway through each
it ends in the same bytes, and it makes as much as a dry run says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.core.store import Store
from rlaif.pipeline.forecast import Forecast, forecast
from rlaif.pipeline.manifest import read_manifest
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from tests.pipeline.test_kills import killed_in, rows, weights

LONG = "This is an answer with many more words than anybody wants."
HIGH, LOW = (rf"So it is\.\nScore: [{scores}]" for scores in ("45", "12"))
SCRIPT = {
    "rules": [
        # Of two judgements the one with the higher score.
        {"match": rf"{HIGH}[\s\S]*{LOW}", "labels": {"first": 0.9, "second": 0.1}},
        {"match": rf"{LOW}[\s\S]*{HIGH}", "labels": {"first": 0.2, "second": 0.8}},
        {"match": "could go|cold", "replies": ["Nearly all.", "Some of them."]},
        {"match": "in one word", "replies": ["Plums.", LONG]},
        {"match": "with warmth", "replies": ["Dear friend, it is plums.", LONG]},
        {"match": "GRADE", "replies": [f"So it is.\nScore: {n}" for n in (1, 2, 4, 5)]},
        {"match": "Verdict:", "replies": ["Both.\nVerdict: 1", "Both.\nVerdict: 2", "Who knows."]},
        {"match": ".", "replies": ["Two words.", LONG, "It is a plum, no less."]},
    ]
}
PRINCIPLES = [
    {
        "id": "brief",
        "text": "The answer is short.",
        "check": {"rule": "word_limits", "params": {"min": 1, "max": 4}},
        "critique": "Which words of the answer could go?",
        "revision": "Write the answer again in one word.",
    },
    {
        "id": "warm",
        "text": "The answer is warm.",
        "critique": "Is the answer cold?",
        "revision": "Write the answer again with warmth.",
    },
]
GRADE = (
    "---user---\nGRADE {{ fence }} {{ low }} {{ high }}\n{{ response }}\n---form---\nScore: VALUE\n"
)
SHORT = {"max_new_tokens": 6}
TRAIN = {"learning_rate": 1e-2, "batch_size": 4, "precision": "fp32", "max_length": 1500}
FRESH = {**TRAIN, **SHORT, "n": 2, "rollouts": 2, "batch_size": 2, "checkpoint_every": 1}
JUDGES = [
    {"id": "checks", "kind": "rules"},
    {"id": "grade", "kind": "additive", "by": "writer", "samples": 2, "template": "grade.j2"},
    {"id": "meta", "kind": "judgements", "of": "grade", "by": "writer"},
    {"id": "compare", "kind": "pairwise", "by": "policy", "verdict": "written", **SHORT},
    {"id": "right", "kind": "verdict", "of": "compare"},
    {"id": "consistent", "kind": "verdict", "of": "compare", "both_orders": True},
]


def filtered(name: str, records: str, uses: str, *filters: dict[str, Any]) -> dict[str, Any]:
    return {"filter": {"id": name, "records": records, "uses": [uses], "filters": list(filters)}}


def trained(name: str, method: str, **keys: Any) -> dict[str, Any]:
    about = {"id": name, "method": method, "from": "initial", "policy": False}
    return {"train": about | (FRESH if "prompts" in keys or "teacher" in keys else TRAIN) | keys}


STEPS: list[dict[str, Any]] = [
    {"load": {"id": "labelled", "type": "pairs", "path": "labelled.jsonl", "prompts": "own",
              "holdout": 2}},
    {"sample": {"id": "drafts", "n": 2, "by": "writer", "prompts": "main", "temperature": 1.0}},
    {"revise": {"id": "revisions", "by": "writer", "times": 2, "temperature": 1.0}},
    {"pair": {"id": "by_origin", "chosen": "revisions", "rejected": "drafts"}},
    {"judge": {"id": "checks", "uses": ["drafts", "revisions"]}},
    {"pair": {"id": "by_score", "strategy": "length_tiered", "tier": 0, "uses": ["checks"],
              "candidates": ["drafts"]}},
    {"questions": {"id": "own_cases", "judge": "compare", "uses": ["by_score"]}},
    filtered("best", "completions", "drafts", {"kind": "best", "by": "checks", "k": 1}),
    filtered("scored", "completions", "revisions", {"kind": "score", "by": "checks", "least": 0.5},
         {"kind": "balance", "by": "principle"}),
    {"judge": {"id": "grade", "uses": ["labelled"]}},
    filtered("eft", "judgements", "grade", {"kind": "agrees", "with": "labelled"}),
    filtered("even", "judgements", "grade", {"kind": "balance", "by": "score"}),
    {"judge": {"id": "meta", "uses": ["grade"]}},
    {"pair": {"id": "judging", "of": "grade", "better": "meta"}},
    {"questions": {"id": "cases", "judge": "compare", "uses": ["labelled"]}},
    {"sample": {"id": "tries", "n": 3, "by": "writer", "prompts": "cases", "temperature": 1.0}},
    {"judge": {"id": "right", "uses": ["tries"]}},
    {"pair": {"id": "verdicts", "uses": ["right"], "candidates": ["tries"]}},
    trained("sft", "sft", uses=["best", "scored", "eft", "even", "cases"]),
    trained("dpo", "dpo", uses=["by_origin", "judging", "verdicts"]),
    trained("j1", "grpo", prompts="cases", rewards={"consistent": 1}),
    trained("student", "on_policy_distillation", teacher="dpo", prompts="main"),
    {"average": {"id": "mean", "models": ["sft", "student"], "policy": False}},
    {"average": {"id": "soup", "models": ["sft", "dpo"], "method": "greedy", "by": "checks"}},
    {"bench": {"judges": ["compare"], "pairs": "labelled", "by": ["initial", "sft"]}},
]  # fmt: skip
FILES: dict[str, set[str]] = {
    "revisions": {"completions", "critiques", "revisions"},
    "by_origin": {"preferences"},
    "by_score": {"preferences"},
    "own_cases": {"questions"},
    "best": {"completions", "refused"},
    "scored": {"completions", "refused"},
    "grade": {"judgements"},
    "eft": {"judgements", "refused"},
    "even": {"judgements", "refused"},
    "meta": {"judgements"},
    "judging": {"preferences"},
    "cases": {"questions"},
    "tries": {"completions"},
    "right": {"judgements"},
    "verdicts": {"preferences"},
    "sft": {"metrics"},
    "dpo": {"metrics", "reference"},
    "j1": {"completions", "judgements", "metrics"},
    "student": {"completions", "metrics"},
    "mean": set(),
    "soup": set(),
    "bench.compare.1": {"judgements"},
    "bench": {"bench"},
}
"""The steps in which the run is killed, and the files of records that each leaves."""
MODELS = {"sft", "dpo", "j1", "student", "mean", "soup"}
EXACT: dict[str, tuple[str, str | None]] = {
    "revisions": ("completions", "calls"),
    "grade": ("judgements", "judgements"),
    "cases": ("questions", None),
    "tries": ("completions", "completions"),
    "right": ("judgements", None),
    "j1": ("completions", "completions"),
    "student": ("completions", "completions"),
    "bench.compare.1": ("judgements", "judgements"),
    "bench": ("figures", None),
}
"""What a dry run knows: the count that the units of a step are, and that which its calls are."""
AT_MOST = {
    # Of two equal texts there is no pair.
    "by_origin": "preferences",
    "by_score": "preferences",
    "own_cases": "questions",
    "best": "completions",
    "scored": "completions",
    "eft": "judgements",
    "even": "judgements",
    "judging": "preferences",
    "verdicts": "preferences",
}
"""What it knows a bound of, and which count that is."""


@dataclass
class Killed:
    """FOLDER/0 is a whole run, and FOLDER/1 was killed once in each of the steps."""

    folder: Path
    steps: dict[str, dict[str, Any]]
    done: dict[str, int]
    forecast: dict[str, Forecast]

    def read_step(self, number: int, name: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The records that a step left in one of the runs, and its weights."""
        digest, run = self.steps[name]["hash"], self.folder / str(number)
        records = {Path(f).stem: own for f, own in rows(run).items() if digest in f}
        return timeless(records), {f: own for f, own in weights(run).items() if digest in f}

    def count(self, name: str, what: str) -> int:
        """How many records of a kind, or calls, a step made."""
        folder = Store(self.folder / "0").step(self.steps[name]["hash"])
        counts: dict[str, int] = (folder.done() or {})["counts"]
        return counts[what] if what in counts else folder.count(what)


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "timing" and "seconds" not in k}
    return [timeless(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    pairs = [{"prompt": f"Which {n}?", "chosen": f"A {n}.", "rejected": "No."} for n in range(6)]
    files = {
        "labelled.jsonl": pairs,
        "prompts.jsonl": [{"prompt": f"Question number {n}?"} for n in range(8)],
    }
    for name, lines in files.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "grade.j2").write_text(GRADE)
    (folder / "script.yaml").write_text(yaml.safe_dump(SCRIPT))
    constitution = {"name": "revised", "principles": PRINCIPLES}
    (folder / "constitution.yaml").write_text(yaml.safe_dump(constitution))
    whole = {
        "name": "killed",
        "models": {
            "policy": {"path": str(small_model), "dtype": "float32"},
            "writer": {"path": "none", "engine": "fake", "script": "script.yaml"},
        },
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 1, "validation": 2},
        "judges": JUDGES,
        "steps": STEPS,
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    inputs = prepare(path)
    expected = forecast(inputs, Store(folder / "none"), make_plan(inputs))
    done = killed_in(folder, path, *FILES)
    steps = {step["id"]: step for step in read_manifest(folder / "0")["steps"]}
    return Killed(folder, steps, done, {row.id: row for row in expected})


@pytest.mark.parametrize("name", FILES)
def test_a_run_that_is_killed_in_a_step_ends_in_the_same_bytes(killed: Killed, name: str) -> None:
    # It was killed in this step: those before it were done, and it was not.
    assert killed.done[name] == list(killed.steps).index(name) > 0
    records, made = killed.read_step(0, name)
    assert {file for file, own in records.items() if own} == FILES[name]
    assert bool(made) == (name in MODELS)
    assert killed.read_step(1, name) == (records, made)


def test_the_killed_run_has_nothing_else(killed: Killed) -> None:
    whole, again = killed.folder / "0", killed.folder / "1"
    assert timeless(rows(again)) == timeless(rows(whole))
    assert weights(again) == weights(whole) != {}
    assert (again / "prompts.jsonl").read_bytes() == (whole / "prompts.jsonl").read_bytes()
    assert not list(again.rglob("*.partial"))


@pytest.mark.parametrize("name", EXACT)
def test_a_step_makes_as_much_as_a_dry_run_says(killed: Killed, name: str) -> None:
    units, calls = EXACT[name]
    planned = killed.forecast[name]
    assert planned.units == killed.count(name, units) > 0
    assert planned.calls == (killed.count(name, calls) if calls else 0)


@pytest.mark.parametrize("name", AT_MOST)
def test_a_step_makes_no_more_than_a_dry_run_says(killed: Killed, name: str) -> None:
    assert 0 < killed.count(name, AT_MOST[name]) <= killed.forecast[name].units
    assert killed.forecast[name].calls == 0
