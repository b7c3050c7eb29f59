"""Planted proofs of revise: a reviser that shortens raises the score of a rule on length, and one
that writes the same again does not; and Constitutional AI's supervised stage learns from both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.revision import change, over_seeds, scores_by_time
from rlaif.core.records import Completion
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.forecast import forecast
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import Run, load_run
from tests.conftest import QUESTIONS
from tests.pipeline.test_revise import CONSTITUTION, DRAFTS, LONG, folder_of, revise, write

Writer = Callable[..., Path]
DRAWN = {"match": ".", "replies": [LONG, "It is a plum.", f"{LONG} {LONG}", f"So: {LONG}"]}


def scored(folder: Path, write_experiment: Writer, seed: int, replies: list[str]) -> Run:
    """A run of one seed in which a scripted model revises answers that are mostly too long."""
    script = {"rules": [{"match": "in one word", "replies": replies}, DRAWN]}
    reviser = {"path": "none", "engine": "fake", "script": "reviser.yaml"}
    judge = {"id": "rule", "kind": "rules", "uses": ["drafts", "revisions"]}
    steps = [DRAFTS, revise(by="reviser", principles=["brief"], keep="all"), {"judge": judge}]
    models = {"policy": reviser, "reviser": reviser}
    path = write(folder, write_experiment, steps, seed=seed, models=models)
    (folder / "reviser.yaml").write_text(yaml.safe_dump(script))
    run_experiment(path, folder / "out")
    return load_run(folder / "out")


def changes(folder: Path, write_experiment: Writer, replies: list[str]) -> Any:
    made = []
    for seed in (1, 2, 3):
        run = scored(folder / str(seed), write_experiment, seed, replies)
        made.append(change(scores_by_time(run), 1))
    # The prompts that are held out differ with no seed, so the seeds share all of theirs.
    assert len({tuple(sorted(one)) for one in made}) == 1
    return over_seeds(made)


def test_a_scripted_reviser_raises_the_score_of_its_rule_over_three_seeds(
    tmp_path: Path, write_experiment: Writer
) -> None:
    # One reply of four is as long as what it revises.
    found = changes(tmp_path, write_experiment, ["Plums.", "A plum.", "Some plums.", LONG])
    assert found["low"] > 0, found
    assert 0 < found["mean"] < 1


def test_a_reviser_that_writes_what_was_there_raises_nothing(
    tmp_path: Path, write_experiment: Writer
) -> None:
    found = changes(tmp_path, write_experiment, DRAWN["replies"])
    assert not found["low"] or found["low"] <= 0, found


def test_constitutional_ais_supervised_stage_runs_on_a_small_model(
    small_model: Path, tmp_path: Path, write_experiment: Writer
) -> None:
    policy = {"path": str(small_model), "dtype": "float32", "system_prompt": "drop"}
    sampled = {"temperature": 1.0, "max_new_tokens": 6}
    stage = {
        "id": "supervised",
        "steps": [
            {"sample": {"id": "drafts", "n": 1, "prompts": "red_team", **sampled}},
            revise(by="policy", times=2, keep="all", **sampled),
            {"sample": {"id": "helpful", "n": 1, **sampled}},
            {
                "train": {
                    "id": "sl",
                    "method": "sft",
                    "from": "pretrained",
                    "uses": ["revisions", "helpful"],
                    "learning_rate": 1e-3,
                    "batch_size": 4,
                    "precision": "fp32",
                }
            },
            {"evaluate": {"prompts": ["main", "red_team"], "judges": ["checks"], **sampled}},
        ],
    }
    path = write(
        tmp_path,
        write_experiment,
        None,
        rounds=None,
        stages=[stage],
        models={"policy": policy, "pretrained": policy},
        judges=[{"id": "checks", "kind": "rules"}],
        prompt_sets={"red_team": {"path": "red.jsonl", "holdout": 1}},
    )
    red = "".join(f'{{"prompt": "{text} Now."}}\n' for text in QUESTIONS[:4])
    (tmp_path / "red.jsonl").write_text(red)
    run_experiment(path, tmp_path / "out")
    run = load_run(tmp_path / "out")
    drafts = {c.completion_id for c in folder_of(run, "drafts").records(Completion)}
    revisions = list(folder_of(run, "revisions").records(Completion))
    assert len(drafts) == 3 and len(revisions) == 6
    assert {c.parent_id for c in revisions} == drafts
    assert {c.principle for c in revisions} <= {p["id"] for p in CONSTITUTION["principles"]}
    trained = folder_of(run, "sl").done()
    # Six revisions, and five helpful answers of the set `main`.
    assert trained["counts"]["completions"] == 11
    assert set(trained["inputs"].values()) == {
        step["hash"] for step in run.manifest["steps"] if step["id"] in ("revisions", "helpful")
    }
    sizes = {row.id: (row.units, row.calls) for row in forecast(prepare(path), run.store)}
    counts = folder_of(run, "revisions").done()["counts"]
    assert sizes["revisions"] == (counts["completions"], counts["calls"]) == (6, 12)
    last = run.round_rows()[-1]
    assert last["policy_out"] == "M1"
    assert {"score/checks", "red_team:score/checks"} <= last["metrics"]["metrics"].keys()
