"""Engagement in an experiment: the weights of an events file reach preferences and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.core.errors import ConfigError
from rlaif.core.records import Preference
from rlaif.core.resources import find
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import Run, load_run

SMALL = {
    "prompts.holdout": 2,
    "prompts.limit": 4,
    "steps.train": {"method": "dpo", "batch_size": 16, "precision": "fp32", "max_length": 256},
    "steps.evaluate.max_new_tokens": 4,
}


def loaded(run: Run, arm: str) -> list[Preference]:
    (step,) = [s for s in run.manifest["steps"] if s["kind"] == "load" and s["arms"] == [arm]]
    return list(run.store.step(step["hash"]).records(Preference))


def share_of_plain(preferences: list[Preference]) -> float:
    wordy = [p.chosen[0]["content"].startswith("That is a great question") for p in preferences]
    weights = [p.weight for p in preferences]
    plain = sum(w for w, is_wordy in zip(weights, wordy, strict=True) if not is_wordy)
    return plain / sum(weights)


@pytest.mark.slow
def test_the_shipped_experiment_trains_on_weighted_and_on_raw_clicks(
    tmp_path: Path, tiny_model: Path
) -> None:
    changes = SMALL | {"models.policy": {"path": str(tiny_model), "dtype": "float32"}}
    overrides = [f"{path}={json.dumps(value)}" for path, value in changes.items()]
    run_experiment(find("experiments/engagement.yaml"), tmp_path / "run", overrides)
    run = load_run(tmp_path / "run")
    weighted, raw = loaded(run, "weighted"), loaded(run, "raw")
    # The same pairs by other weights: raw clicks prefer what the ranker showed first.
    assert {p.preference_id for p in weighted} == {p.preference_id for p in raw}
    assert share_of_plain(raw) < 0.5 < share_of_plain(weighted)
    for preferences in (weighted, raw):
        assert sum(p.weight for p in preferences) == pytest.approx(len(preferences))
        assert {p.source for p in preferences} == {"engagement"}
    notes = [note for step in run.status()["steps"] for note in step["notes"]]
    assert any("clicks: examination by position: 1: 1, 2: 0.123" in note for note in notes)
    assert any("an effective sample size of 83.2" in note for note in notes)
    models = [s["models"]["made"][1] for s in run.manifest["steps"] if s["kind"] == "train"]
    assert len(set(models)) == 2


def write(folder: Path, **load: Any) -> Path:
    rows = [
        {
            "impression": n,
            "prompt": f"Is it {n % 3}?",
            "response": answer,
            "position": position,
            "thumbs": "up" if answer == "Yes." else "down",
        }
        for n in range(6)
        for position, answer in enumerate(("Yes.", "No."), start=1)
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = "".join(json.dumps({"prompt": f"Is it {n}?"}) + "\n" for n in range(4))
    (folder / "prompts.jsonl").write_text(asked)
    step = {"type": "preferences", "path": "events.jsonl"} | load
    whole = {
        "name": "engaged",
        "models": {"policy": {"engine": "fake", "path": "none"}},
        "prompts": {"path": "prompts.jsonl", "holdout": 1},
        "steps": [{"load": step}],
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def test_answers_that_stand_alone_are_what_kto_takes(tmp_path: Path) -> None:
    spec = {"signal": "thumbs", "form": "answers", "examination": [1.0, 0.5], "max_weight": 1.5}
    run_experiment(write(tmp_path, engagement=spec, source="thumbs"), tmp_path / "run")
    run = load_run(tmp_path / "run")
    found = loaded(run, "main")
    assert len(found) == 6 and not any(p.paired for p in found)
    # Two thumbs for each answer: up counts 1, down 1.5 in place of 2, scaled to a mean of 1.
    good = {p.weight for p in found if p.chosen}
    bad = {p.weight for p in found if p.rejected}
    assert [*good] == [pytest.approx(2 / 2.5)] and [*bad] == [pytest.approx(3 / 2.5)]
    assert {p.source for p in found} == {"thumbs"}
    (step,) = run.status()["steps"]
    assert step["counts"] == {
        "preferences": 6,
        "impressions": 6,
        "shown": 12,
        "signals": 12,
        "clipped": 6,
    }
    assert "load: 6 inverse probabilities clipped: a biased estimate" in step["notes"]


@pytest.mark.parametrize(
    "load",
    [
        {"type": "demonstrations"},
        {"format": "trl"},
        {"columns": {"prompt": "a", "chosen": "b", "rejected": "c"}},
    ],
    ids=["type", "format", "columns"],
)
def test_engagement_is_of_preferences_alone(tmp_path: Path, load: dict[str, Any]) -> None:
    path = write(tmp_path, engagement={"signal": "thumbs"}, **load)
    with pytest.raises(ConfigError, match="engagement: only for `type: preferences`"):
        make_plan(prepare(path))
