"""Loaded pairs and their labels: annotators, places, weights, rounds and scores that all differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.steps import LabelStep, LoadStep
from rlaif.core.labelled import GivenPair
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, Judgement, Preference, make_prompt
from rlaif.core.store import Store
from rlaif.data.sources import PromptSet
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.plan.base import PlanInputs, Planned
from rlaif.pipeline.steps import label, load
from rlaif.pipeline.steps.context import StepContext

FRUIT = make_prompt([{"role": "user", "content": "Name a fruit."}])
BIRD = make_prompt([{"role": "user", "content": "Name a bird."}])
PAIRS = [
    GivenPair("l0", FRUIT.prompt_id, "0a", "0b"),
    GivenPair("l1", BIRD.prompt_id, "1a", "1b"),
]
DATA: dict[str, Any] = {
    "name": "pairs",
    "models": {"policy": {"path": "policy"}},
    "prompts": {"path": "p.jsonl"},
    "steps": [{"sample": {}}],
}


def context(
    folder: Path, planned: Planned, records: Mapping[str, Mapping[str, Sequence[Any]]] = {}
) -> StepContext:
    store = Store(folder / "run")
    for name, files in records.items():
        for file, rows in files.items():
            store.step(planned.inputs[name]).append(file, rows)
    inputs = PlanInputs(
        Experiment.model_validate(DATA),
        folder / "experiment.yaml",
        {},
        None,
        PromptSet([FRUIT, BIRD], [], 0),
        {},
        {},
    )
    prompts = {p.prompt_id: p for p in (FRUIT, BIRD)}
    made: Any = (planned, store.step("h"), store, inputs, prompts, None, QuietProgress())
    return StepContext(*made)


def scored(judge: str, name: str, number: int, **by: float) -> list[Judgement]:
    prompt = PAIRS[number].prompt_id
    made = []
    for principle, score in by.items():
        who: Any = ("completion", [name], name, judge, judge, "model", principle, "ok", score)
        made.append(
            Judgement(f"j{judge}{name}{principle}", f"c{judge}{name}{principle}", prompt, *who)
        )
    return made


def answer(name: str, prompt: Any) -> Completion:
    turns: Any = [{"role": "assistant", "content": f"says {name}"}]
    return Completion(name, prompt.prompt_id, 0, turns, "m", "w", {}, "stop")


def test_judges_label_by_the_weights_of_judges_and_of_principles(tmp_path: Path) -> None:
    """Without any of the weights the other answer would be chosen."""
    answers = [
        answer(n, p)
        for n, p in zip(("0a", "0b", "1a", "1b"), [FRUIT] * 2 + [BIRD] * 2, strict=True)
    ]
    records: dict[str, dict[str, Sequence[Any]]] = {
        "pairs/people": {"pairs": [asdict(p) for p in PAIRS], "completions": answers},
        # Kindness counts three times: 0.375 and 0.475 of the first pair, 0.7 and 0.3 of the second.
        "judgements/j": {
            "judgements": scored("j", "0a", 0, kind=0.2, true=0.9)
            + scored("j", "0b", 0, kind=0.5, true=0.4)
            + scored("j", "1a", 1, kind=0.9, true=0.1)
            + scored("j", "1b", 1, kind=0.1, true=0.9)
        },
        # 0.6 and 0.4, and 0.4 and 0.6.
        "judgements/k": {
            "judgements": scored("k", "0a", 0, kind=0.6, true=0.6)
            + scored("k", "0b", 0, kind=0.4, true=0.4)
            + scored("k", "1a", 1, kind=0.4, true=0.4)
            + scored("k", "1b", 1, kind=0.6, true=0.6)
        },
        # A judge that does not count: it is none of the experiment's.
        "judgements/strange": {"judgements": scored("strange", "0a", 0, kind=1.0)},
    }
    options: dict[str, Any] = {
        "labels": "ai",
        "flip": None,
        "labellers": ["ai"],
        "judges": ["j", "k"],
        "judge_weights": {"j": 5.0, "k": 1.0},
        "principle_weights": {"kind": 3.0, "true": 1.0},
    }
    inputs = {name: name.replace("/", "-") for name in records}

    def chosen(folder: str, **changes: Any) -> list[Preference]:
        planned = Planned(
            "h", "label", "label", 7, 4, LabelStep(), inputs, options=options | changes
        )
        run = context(tmp_path / folder, planned, records)
        assert label.run(run)["counts"] == {"preferences": 2, "undecided": 0, "turned": 0}
        return sorted(run.folder.records(Preference), key=lambda p: p.chosen_id)

    first, second = chosen("both")
    assert (first.chosen_id, first.rejected_id) == ("0b", "0a")
    assert (second.chosen_id, second.rejected_id) == ("1a", "1b")
    assert first.chosen[0]["content"] == "says 0b" and first.prompt == FRUIT.messages
    assert {p.round for p in (first, second)} == {4} and {p.source for p in (first, second)} == {
        "ai"
    }
    for found in (first, second):
        assert found.score_chosen is not None and found.margin is not None
        assert found.score_chosen + found.score_rejected == pytest.approx(1.0)  # type: ignore[operator]
        assert found.margin == pytest.approx(2 * found.score_chosen - 1) and found.margin > 0
    # By the second judge alone, and by the first with principles that count alike.
    (one, other) = chosen("second", judge_weights={"j": 0.0, "k": 1.0})
    assert [one.chosen_id, other.chosen_id] == ["0a", "1b"]
    assert chosen("by id", labels="k", labellers=["k"])[0].chosen_id == "0a"
    alike = {"judge_weights": {"j": 1.0, "k": 0.0}, "principle_weights": {"kind": 1.0, "true": 2.0}}
    assert [p.chosen_id for p in chosen("alike", **alike)] == ["0a", "1b"]


def test_loaded_pairs_say_who_said_what_wherever_an_answer_stood(tmp_path: Path) -> None:
    rows = [
        {"q": "Name a fruit.", "one": "Plum.", "two": "Pear.", "better": 0.75, "who": "ann"},
        {"q": "Name a fruit.", "one": "Pear.", "two": "Plum.", "better": 0.9, "who": "bob"},
        {"q": "Name a bird.", "one": "Crow.", "two": "Wren.", "better": 0.0, "who": "ann"},
        {"q": "Name a fish.", "one": "Cod.", "two": "Eel.", "better": 1.0, "who": "ann"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {
        "prompt": "q",
        "first": "one",
        "second": "two",
        "label": "better",
        "annotator": "who",
    }
    step = LoadStep.model_validate(
        {"id": "people", "type": "pairs", "path": str(path), "columns": columns}
    )
    ids = (FRUIT.prompt_id, BIRD.prompt_id)
    run = context(tmp_path, Planned("h", "load", "held.people", 7, 4, step, prompts=ids))
    counts = load.run(run)["counts"]
    assert counts == {"pairs": 2, "completions": 4, "judgements": 3, "skipped": 0}
    texts = {c.completion_id: c.text for c in run.folder.records(Completion)}
    assert {c.sample_index for c in run.folder.records(Completion)} == {0}
    assert sorted(texts.values()) == ["Crow.", "Pear.", "Plum.", "Wren."]
    pairs = {r["pair_id"]: r for r in run.folder.rows("pairs")}
    assert all(row["first"] < row["second"] for row in pairs.values())
    said = {}
    for j in run.folder.records(Judgement):
        assert (j.judge, j.annotator_kind) == ("people", "human")
        assert j.shown == sorted(j.shown) and j.subject == j.shown[0]
        assert j.prob_first is not None
        better = {j.shown[0]: j.prob_first, j.shown[1]: 1 - j.prob_first}
        said[j.annotator_id, j.prompt_id] = {texts[name]: value for name, value in better.items()}
    assert said == {
        ("ann", FRUIT.prompt_id): pytest.approx({"Plum.": 0.75, "Pear.": 0.25}),
        ("bob", FRUIT.prompt_id): pytest.approx({"Pear.": 0.9, "Plum.": 0.1}),
        ("ann", BIRD.prompt_id): pytest.approx({"Crow.": 0.0, "Wren.": 1.0}),
    }
