"""A generative verifier (arXiv 2408.15240) in a whole run: what it learns of right verdicts and of
its own reasons, and that this is what it is asked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlaif.pipeline.steps.train as train_step
from rlaif.core.records import Completion, Judgement, canonical_json, make_prompt
from rlaif.core.store import Store
from rlaif.judges.yes_no import YesNo
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.forecast import forecast
from rlaif.pipeline.manifest import read_manifest
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.steps.judged_filters import _value_of
from rlaif.pipeline.steps.training_data import TrainingData, read_data
from rlaif.preferences.agreement import AGAINST, EQUAL, NO_VERDICT, UNMARKED, find_contradicting
from tests.pipeline.written_judges import GENRM

SEED = 3
PLAIN = {"rule": "forbidden_pattern", "params": {"pattern": "e[aeiou]"}}
CONSTITUTION = {
    "name": "correct",
    "principles": [
        {"id": "right_number", "text": "No vowel follows an e.", "check": PLAIN},
        {"id": "correct", "text": "The result is right."},
    ],
}


def write_genrm(folder: Path, model: Path) -> Path:
    """The method's file at a tiny size. A rule that random answers may pass stands for the one that
    knows the right number."""
    problems = [{"prompt": f"What is {n} plus 2?", "reference": str(n + 2)} for n in range(4)]
    pairs = [{"prompt": f"Which {n}?", "chosen": f"The {n}th.", "rejected": "No."} for n in (1, 2)]
    for name, rows in (("problems", problems), ("pairs", pairs)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "correct.yaml").write_text(yaml.safe_dump(CONSTITUTION))
    whole: dict[str, Any] = yaml.safe_load(GENRM)
    whole["models"]["policy"] = {"path": str(model), "dtype": "float32"}
    whole["prompts"]["holdout"], whole["seed"] = 1, SEED
    whole["judges"][2] |= {"samples": 2, "max_new_tokens": 5}
    for entry in whole["steps"]:
        if "load" in entry:
            entry["load"]["holdout"] = 1
        if "sample" in entry:
            entry["sample"] |= {"n": 4, "max_new_tokens": 20}
        if "train" in entry:
            entry["train"] |= {"batch_size": 4, "max_length": 2000, "precision": "fp32"}
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    return path


def taught(data: TrainingData, reason: str) -> Counter[tuple[str, str]]:
    return Counter(
        (canonical_json(p.prompt), p.chosen[0]["content"])
        for p in data.preferences
        if p.reason == reason
    )


def test_genrm_learns_verdicts_and_reasons_as_it_is_asked(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[TrainingData] = []

    def read(context: Any) -> TrainingData:
        learned.append(read_data(context))
        return learned[-1]

    monkeypatch.setattr(train_step, "read_data", read)
    path, run = write_genrm(tmp_path, small_model), tmp_path / "run"
    inputs = prepare(path)
    planned = {row.id: row for row in forecast(inputs, Store(run))}
    run_experiment(path, run)
    steps = {step["id"]: step for step in read_manifest(run)["steps"]}
    store = Store(run)
    folders = {name: store.step(step["hash"]) for name, step in steps.items()}
    trained = [(s["id"], s["models"]["start"][0]) for s in steps.values() if "start" in s["models"]]
    assert trained == [("genrm", "M0"), ("genrm_cot", "M0")]
    marks = {j.subject: j.score for j in folders["exact"].records(Judgement)}
    answers = {c.completion_id: c for c in folders["solutions"].records(Completion)}
    assert len(answers) == 3 * 4 == planned["solutions"].calls and set(marks.values()) == {0, 1}
    direct, reasoned = learned
    prompts = {p.prompt_id: p for p in inputs.prompts.train}
    # Verdicts alone: the request at whose next token the probability is read, and the right word;
    # of each pair both, so that as many are Yes as are No.
    judge = inputs.judges["direct"]
    assert isinstance(judge, YesNo)
    right = {}
    for answer in answers.values():
        (call,) = judge.calls(prompts[answer.prompt_id], [answer], SEED)
        assert call.request is not None
        word = "Yes" if marks[answer.completion_id] == 1 else "No"
        right[canonical_json(call.request.messages)] = word
    words = taught(direct, "right verdict")
    assert words and set(words) <= set(right.items())
    assert sum(n for (_, word), n in words.items() if word == "Yes") * 2 == words.total()
    assert planned["cases"].units >= words.total() == direct.counts["questions"]
    # Reasons: those written by the model whose verdict after them the rule shares; first they are
    # learned, and then the verdict after them.
    rows = {j.judgement_id: j for j in folders["rationales"].records(Judgement)}
    every = list(folders["reasoned"].records(Judgement))
    assert len(every) == 3 * 4 * 2 and 0 < len(rows) < len(every)
    sides = Counter(str((j.score or 0) > 0.5) for j in rows.values())
    # A random model may say one of them alone, and then there is nothing to balance.
    assert len(set(sides.values())) == 1
    wrote = {row["call_id"]: row["answer"]["text"] for row in folders["reasoned"].rows("reasons")}
    expected: Counter[tuple[str, str]] = Counter()
    cot = inputs.judges["reasoned"]
    assert isinstance(cot, YesNo)
    calls = {
        call.call_id: call
        for answer in answers.values()
        for call in cot.calls(prompts[answer.prompt_id], [answer], SEED)
    }
    for row in rows.values():
        assert row.score is not None
        assert (row.score > 0.5) == (marks[row.subject] == 1)
        call = calls[row.call_id]
        assert call.request is not None
        assert call.then is not None
        reasons = wrote[row.call_id].strip()
        expected[canonical_json(call.request.messages), reasons] += 1
        after = [
            *call.request.messages,
            {"role": "assistant", "content": reasons},
            {"role": "user", "content": call.then.turn},
        ]
        expected[canonical_json(after), "Yes" if row.score > 0.5 else "No"] += 1
    assert taught(reasoned, "judged") == expected
    # Both learn to solve, too.
    solved = [c for c in answers if marks[c] == 1]
    assert direct.counts["completions"] == reasoned.counts["completions"] == len(solved)
    # The score of a verifier is the mean over its sampled reasons.
    for step, samples in (("bench.direct.1", 1), ("bench_cot.reasoned.1", 2)):
        judged = Counter(j.subject for j in folders[step].records(Judgement))
        assert set(judged.values()) == {samples}, step


def mark(name: str, shown: list[str], **value: Any) -> Judgement:
    known = {"status": "ok"} | value
    return Judgement(
        name, name, "p", "completion", shown, shown[0], "j", "m", "model", None, **known
    )


def test_judgements_agree_with_another_judges_scores() -> None:
    marks = {"a": 1.0, "b": 0.25, "c": 0.5, "d": 0.25}
    rows = [
        mark("right", ["a"], score=0.7),
        mark("wrong", ["b"], score=0.7),
        mark("middle", ["a"], score=0.5),
        mark("nothing", ["a"], status="unparsed"),
        mark("unsure", ["c"], score=0.9),
        mark("unknown", ["x"], score=0.9),
        mark("first", ["a", "b"], prob_first=0.9),
        mark("second", ["a", "b"], prob_first=0.1),
        mark("equal", ["b", "d"], prob_first=0.9),
        mark("tie", ["a", "b"], prob_first=0.5, status="tie"),
    ]
    wanted = {
        "wrong": AGAINST,
        "middle": EQUAL,
        "nothing": NO_VERDICT,
        "unsure": UNMARKED,
        "unknown": UNMARKED,
        "second": AGAINST,
        "equal": UNMARKED,
        "tie": EQUAL,
    }
    assert find_contradicting(rows, marks) == wanted
    without = {name: why for name, why in wanted.items() if why != EQUAL}
    assert find_contradicting(rows, marks, strict=False) == without


@pytest.mark.parametrize(
    ("row", "side"),
    [
        ({"status": "ok", "score": 0.7, "prob_first": None}, "first"),
        ({"status": "ok", "score": 0.3, "prob_first": None}, "second"),
        ({"status": "ok", "score": 0.5, "prob_first": None}, "tie"),
        ({"status": "ok", "score": None, "prob_first": 0.2}, "second"),
        ({"status": "unparsed", "score": None, "prob_first": None}, None),
    ],
    ids=["yes", "no", "neither", "comparison", "unparsed"],
)
def test_the_verdict_that_is_balanced_is_the_side_of_a_score(
    row: dict[str, Any], side: str | None
) -> None:
    assert _value_of(row, make_prompt([{"role": "user", "content": "?"}]), "verdict") == side
