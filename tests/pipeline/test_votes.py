"""A votes database wherever a file of labelled pairs is taken."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.config.steps import LoadStep
from rlaif.core.errors import ConfigError, StoreError
from rlaif.core.records import Judgement
from rlaif.core.store import StepFolder
from rlaif.data.readers import read_labelled
from rlaif.data.rows import file_rows, rows_hash
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import load_run
from rlaif.pipeline.steps.load import load_preferences, run
from tests.pipeline.test_arms import BRIEF
from tests.support.voting import make_votes, pair_of, vote_on

ITEMS = [pair_of(n, probability=0.5 if n < 4 else 1.0) for n in range(12)]
SAID = ["aaa", "aab", "abb", "bbb", *["aa"] * 6, ["tie", "a"], ["skip", "both_bad"]]
"""What up to three people said of each item."""


def votes(seconds: float = 1.0) -> list[Any]:
    return [
        vote_on(item, who, {"a": "a", "b": "b"}.get(said, said), seconds=seconds)
        for item, row in zip(ITEMS, SAID, strict=True)
        for who, said in zip(("ann", "bob", "cat"), row, strict=False)
    ]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return make_votes(tmp_path / "votes.db", ITEMS, votes())


def test_the_label_is_the_share_of_people(db: Path) -> None:
    found = {p.prompt.question: p for p in read_labelled(db)}
    labels = [found[f"Name fruit {n}."].label for n in range(12)]
    assert labels[:4] == [1.0, pytest.approx(2 / 3), pytest.approx(1 / 3), 0.0]
    assert labels[4:] == [1.0] * 6 + [0.75, None]
    assert found["Name fruit 0."].annotator == "3 people"
    assert found["Name fruit 10."].place == f"{db}: item i0010"
    assert {p.annotator_kind for p in found.values()} == {"human"}


def test_items_without_a_vote_are_no_pairs(tmp_path: Path) -> None:
    db = make_votes(tmp_path / "v.sqlite", ITEMS, [vote_on(ITEMS[3], "ann", "b")])
    (pair,) = read_labelled(db)
    assert (pair.label, pair.annotator, pair.prompt.question) == (0.0, "ann", "Name fruit 3.")


def test_preferences_have_the_majority_its_share_and_the_weight_of_the_draw(db: Path) -> None:
    found = {p.prompt[0]["content"]: p for p in load_preferences(db)}
    # A tie of one person leaves the other's vote; nobody decided the last pair.
    assert len(found) == 11
    second, third = found["Name fruit 1."], found["Name fruit 2."]
    assert second.chosen[0]["content"] == "Plum 1." and third.rejected[0]["content"] == "Plum 2."
    assert [second.prob, third.prob] == pytest.approx([2 / 3, 2 / 3])
    assert (found["Name fruit 0."].prob, found["Name fruit 0."].margin) == (1.0, None)
    assert second.source == "human" and second.reason == "labelled by 3 people"
    weights = [p.weight for p in found.values()]
    assert sum(weights) / 11 == pytest.approx(1.0)
    assert second.weight == pytest.approx(2 * found["Name fruit 5."].weight)


def loaded(folder: Path, path: Path, **step: Any) -> StepFolder:
    kept = StepFolder(folder / "step")
    run(
        SimpleNamespace(  # type: ignore[arg-type]
            planned=SimpleNamespace(step=LoadStep(path=str(path), **step), round=0, prompts=[]),
            inputs=SimpleNamespace(
                experiment=SimpleNamespace(loaded_name=lambda step: step.path), path=folder / "e"
            ),
            folder=kept,
            prompts={},
        )
    )
    return kept


def test_judgements_keep_people_apart(db: Path, tmp_path: Path) -> None:
    rows = loaded(tmp_path, db, type="judgements", id="people").read("judgements")
    assert len(rows) == len(votes())
    third = [r for r in rows if r["shown"] == ["c_2a", "c_2b"]]
    assert [(r["annotator_id"], r["prob_first"]) for r in third] == [
        ("ann", 1.0),
        ("bob", 0.0),
        ("cat", 0.0),
    ]
    assert {r["status"] for r in rows} == {"ok", "tie", "abstain", "both_bad"}
    assert {Judgement(**r).annotator_kind for r in rows} == {"human"}


def write(folder: Path, data: Path, **changes: Any) -> Path:
    (folder / "brief.yaml").write_text(yaml.safe_dump(BRIEF))
    path = folder / "experiment.yaml"
    steps = [
        {"load": {"id": "people", "type": "pairs"}},
        {"judge": {"id": "brief", "kind": "rules"}},
        {"label": {}},
    ]
    experiment = {
        "name": "voted",
        "models": {"policy": {"path": "none", "engine": "fake"}},
        "constitution": "brief.yaml",
        "data": str(data),
        "prompts": {"holdout": 2},
        "arms": {"human": {"labels": "human"}, "ai": {"labels": "ai"}},
        "steps": steps,
    }
    path.write_text(yaml.safe_dump(experiment | changes, sort_keys=False))
    return path


def test_arms_are_labelled_by_people_and_by_a_judge(db: Path, tmp_path: Path) -> None:
    run_experiment(write(tmp_path, db), tmp_path / "run")
    made = load_run(tmp_path / "run")
    by_arm: dict[str, dict[str, str]] = {}
    for row in made.rows("preferences"):
        for arm in row["run_arms"].split():
            by_arm.setdefault(arm, {})[row["prompt"][0]["content"]] = row["chosen"][0]["content"]
    assert by_arm["human"].keys() == by_arm["ai"].keys() != set()
    for number, row in enumerate(SAID[:10]):
        chosen = by_arm["human"].get(f"Name fruit {number}.")
        if chosen is not None:
            assert chosen.startswith("Plum") == (row.count("a") > row.count("b"))
    assert all(text.startswith("Plum") for text in by_arm["ai"].values())
    human = [row for row in made.rows("judgements") if row["annotator_kind"] == "human"]
    assert {row["annotator_id"] for row in human} == {"ann", "bob", "cat"}


def test_the_plan_depends_on_the_votes_and_not_on_the_bytes(db: Path, tmp_path: Path) -> None:
    def hashes(data: Path) -> list[str]:
        inputs = prepare(write(tmp_path, data), {}, fetch=False)
        return [planned.hash for planned in make_plan(inputs)]

    same = make_votes(tmp_path / "same.db", ITEMS[::-1], votes(seconds=9.0)[::-1])
    assert same.read_bytes() != db.read_bytes()
    assert rows_hash(file_rows(same)) == rows_hash(file_rows(db))
    with sqlite3.connect(same) as opened:
        opened.execute("VACUUM")
    assert hashes(same) == hashes(db)
    other = make_votes(tmp_path / "other.db", ITEMS, votes()[:-1])
    assert hashes(other) != hashes(db)


def test_commands_take_the_database_as_a_file(db: Path, tmp_path: Path) -> None:
    def ran(*words: Any) -> Any:
        return CliRunner().invoke(cli, [str(word) for word in words])

    out = tmp_path / "pairs.jsonl"
    done = ran("convert", db, out, "--to", "trl")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 11 and rows[0]["chosen"][0]["role"] == "assistant"
    done = ran("data", "stats", db, "--json")
    assert done.exit_code == 0, done.output
    (tmp_path / "brief.yaml").write_text(yaml.safe_dump(BRIEF))
    judged = tmp_path / "judges.yaml"
    judged.write_text("constitution: brief.yaml\njudges: [{kind: rules, id: brief}]\n")
    done = ran("judge-bench", db, "--judge", judged, "--out", tmp_path / "bench", "--json", "-q")
    assert done.exit_code == 0, done.output
    bench = json.loads((tmp_path / "bench" / "bench.json").read_text())
    # It always takes the shorter answer; people do so in nine of the eleven pairs they decided.
    assert bench["judges"]["brief"]["agreement"] == pytest.approx(9 / 11)


def test_ratings_are_judgements_and_no_pairs(tmp_path: Path) -> None:
    item = pair_of(1, kind="rating", b=None, b_id=None)
    db = make_votes(
        tmp_path / "v.db",
        [item],
        [vote_on(item, "ann", "rated", rating=2.0)],
        scale={1: "poor", 2: "fair", 3: "good"},
    )
    (row,) = loaded(tmp_path, db, type="judgements").read("judgements")
    assert (row["score"], row["shown"]) == (0.5, ["c_1a"])
    with pytest.raises(ConfigError, match="item i0001: a rating of a single answer"):
        list(read_labelled(db))


def test_another_version_of_the_database_is_refused(db: Path) -> None:
    with sqlite3.connect(db) as opened:
        opened.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="version 99"):
        list(read_labelled(db))
