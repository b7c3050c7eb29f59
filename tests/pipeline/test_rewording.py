"""Rewording one principle asks about that one alone, and `constitution diff --run` says so before.
A real server counts the questions; its answers are not cached."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.analysis.reach import measure_reach
from rlaif.constitution.model import load_constitution
from rlaif.core.store import Store
from rlaif.pipeline.experiment import RunResult, run_experiment
from rlaif.pipeline.runs import load_run
from tests.servers.scripted import ScriptedServer, prompt_text

WORDS = {"rule": "word_limits", "params": {"min": 1, "max": 9}}
PRINCIPLES: list[dict[str, Any]] = [
    {"id": "brief", "text": "It has few words."},
    {"id": "kind", "text": "It is friendly."},
    {"id": "neat", "text": "It is short.", "check": WORDS},
]
YES_NO = {"kind": "yes_no", "by": "asked"}
JUDGES: dict[str, dict[str, Any]] = {
    "labels": YES_NO,
    "reasons first": {**YES_NO, "cot": True},
    "pairs": {"kind": "pairwise", "by": "asked"},
    "written": {"kind": "rating", "by": "asked", "samples": 2, "temperature": 1.0},
    "a jury": {"kind": "jury", "of": [{**YES_NO, "id": "one"}, {**YES_NO, "id": "two"}]},
    "a jury of one that reasons": {
        "kind": "jury",
        "of": [{**YES_NO, "id": "one", "cot": True}, {**YES_NO, "id": "two"}],
    },
}
TOPS = {"Yes": -0.3, "No": -1.9, "1": -0.4, "2": -1.4}
Write = Callable[..., Path]


def write(make: Write, folder: Path, url: str, judge: dict[str, Any]) -> Path:
    remote = {"path": "m", "engine": "openai", "base_url": url, "cache": False}
    path = make(
        folder,
        None,
        models={
            "policy": {"path": "none", "engine": "fake", "script": "script.yaml"},
            "asked": remote,
        },
        rounds=1,
        steps=[
            {"sample": {"n": 3, "temperature": 1.0, "max_new_tokens": 40}},
            {"judge": {"id": "checks", "kind": "rules"}},
            {"judge": {"id": "self", **judge}},
            {"pair": {"strategy": "all"}},
        ],
    )
    replies = ["a brief answer", "many long words of an answer", "some words"]
    rules = [{"match": ".", "replies": replies}]
    (folder / "script.yaml").write_text(yaml.safe_dump({"rules": rules}), "utf-8")
    say(folder)
    return path


def say(folder: Path, **texts: str) -> None:
    """Write the constitution with other words for some principles."""
    rows = [{**p, "text": texts.get(p["id"], p["text"])} for p in PRINCIPLES]
    content = {"name": "small", "principles": rows}
    (folder / "constitution.yaml").write_text(yaml.safe_dump(content), "utf-8")


def answered(body: dict[str, Any], choice: int) -> str:
    return "Score: 3"


def about(server: ScriptedServer, text: str) -> int:
    return sum(text in prompt_text(body) for body in server.asked)


@pytest.fixture(params=JUDGES.values(), ids=JUDGES)
def judge(request: pytest.FixtureRequest) -> dict[str, Any]:
    kept: dict[str, Any] = request.param
    return kept


def test_a_reworded_principle_alone_is_asked_about(
    tmp_path: Path, write_experiment: Write, judge: dict[str, Any]
) -> None:
    with ScriptedServer(answered, tops=TOPS, context=9999) as server:
        path, out = write(write_experiment, tmp_path, server.url, judge), tmp_path / "out"
        run_experiment(path, out)
        questions = len(server.asked)
        old = load_constitution(tmp_path / "constitution.yaml")
        say(tmp_path, kind="It is warm.")
        new = load_constitution(tmp_path / "constitution.yaml")
        told = {j.judge: j for j in measure_reach(load_run(out), old, new).judges}
        result = run_experiment(path, out)
        asked = server.asked[questions:]
    assert questions and len(asked) == questions / 2
    assert {row["status"] for row in load_run(out).rows("judgements")} <= {"ok", "tie"}
    assert all("It is warm." in prompt_text(body) for body in asked)
    assert (told["self"].asked, told["self"].kept) == (len(asked), False)
    assert told["checks"].kept
    assert result.ran == 2
    whole = fresh(tmp_path, write_experiment, judge)
    assert judgements(out) == judgements(whole)


def fresh(folder: Path, make: Write, judge: dict[str, Any]) -> Path:
    """The same from the beginning."""
    with ScriptedServer(answered, tops=TOPS, context=9999) as server:
        path = write(make, folder / "fresh", server.url, judge)
        say(folder / "fresh", kind="It is warm.")
        run_experiment(path, folder / "fresh" / "out")
    return folder / "fresh" / "out"


def judgements(out: Path) -> list[str]:
    """What was judged, without what a call took and whom it asked."""
    left_out = ("latency", "cost", "step", "annotator_id", "judgement_id")
    rows = load_run(out).rows("judgements")
    kept = ({k: v for k, v in row.items() if k not in left_out} for row in rows)
    return sorted(json.dumps(row, sort_keys=True) for row in kept)


def test_words_that_only_a_program_stands_for_change_nothing(
    tmp_path: Path, write_experiment: Write
) -> None:
    with ScriptedServer(answered, tops=TOPS, context=9999) as server:
        path, out = write(write_experiment, tmp_path, server.url, YES_NO), tmp_path / "out"
        run_experiment(path, out)
        questions = len(server.asked)
        old = load_constitution(tmp_path / "constitution.yaml")
        say(tmp_path, neat="It does not go on and on.")
        new = load_constitution(tmp_path / "constitution.yaml")
        told = measure_reach(load_run(out), old, new)
        result: RunResult = run_experiment(path, out)
        assert len(server.asked) == questions
    assert (result.ran, result.reused) == (0, 4)
    assert all(judge.kept for judge in told.judges)
    assert told.unknown == ()


def test_a_model_that_is_asked_about_a_checked_principle_is_asked_again(
    tmp_path: Path, write_experiment: Write
) -> None:
    named = {**YES_NO, "principles": ["brief", "neat"]}
    with ScriptedServer(answered, tops=TOPS, context=9999) as server:
        path, out = write(write_experiment, tmp_path, server.url, named), tmp_path / "out"
        run_experiment(path, out)
        questions = len(server.asked)
        old = load_constitution(tmp_path / "constitution.yaml")
        say(tmp_path, neat="It does not go on and on.")
        new = load_constitution(tmp_path / "constitution.yaml")
        told = measure_reach(load_run(out), old, new)
        run_experiment(path, out)
        assert len(server.asked) == questions * 1.5
    assert told.unknown == ("neat",)
    assert [j.asked for j in told.judges] == [0, questions / 2]


def test_words_that_come_back_are_not_asked_about_again(
    tmp_path: Path, write_experiment: Write
) -> None:
    """Of three wordings the last takes each principle from the step that has it."""
    with ScriptedServer(answered, tops=TOPS, context=9999) as server:
        path, out = write(write_experiment, tmp_path, server.url, YES_NO), tmp_path / "out"
        run_experiment(path, out)
        say(tmp_path, kind="It is warm.", brief="It is not long.")
        run_experiment(path, out)
        questions = len(server.asked)
        say(tmp_path, kind="It is warm.")
        result = run_experiment(path, out)
        assert len(server.asked) == questions
    assert result.ran == 2


def test_a_kill_while_answers_are_taken_over_asks_nothing_twice(
    tmp_path: Path, write_experiment: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlaif.pipeline.steps import asking

    with ScriptedServer(answered, tops=TOPS, context=9999) as server:
        path, out = write(write_experiment, tmp_path, server.url, YES_NO), tmp_path / "out"
        run_experiment(path, out)
        questions = len(server.asked)
        say(tmp_path, kind="It is warm.")
        monkeypatch.setattr(asking, "BATCH", 4)
        taken = asking.Carried._find_rows
        left = 7

        def dies(self: asking.Carried, call: str) -> list[dict[str, Any]]:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return taken(self, call)

        with monkeypatch.context() as killed:
            killed.setattr(asking.Carried, "_find_rows", dies)
            with pytest.raises(KeyboardInterrupt):
                run_experiment(path, out)
        run_experiment(path, out)
        assert len(server.asked) == questions * 1.5
    steps = [s for s in load_run(out).manifest["steps"] if s["id"] == "self"]
    rows = Store(out).step(steps[0]["hash"]).read("judgements")
    assert len({row["judgement_id"] for row in rows}) == len(rows) == questions
    assert len({row["judge_hash"] for row in rows}) == 1
