"""Judges and samplers whose model thinks: what is kept, what is read, what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.analysis.bench.run import BenchRequest, run_bench
from rlaif.cli import cli
from rlaif.config.models import ModelSpec
from rlaif.core.chat import CUT, WAS_CUT
from rlaif.core.progress import QuietProgress
from rlaif.data.readers.base import make_pair, user
from rlaif.engines.base import ScoreRequest, ScoreResult
from rlaif.engines.fake import FakeEngine, FakeScript
from rlaif.judges.questions import answer_notes
from rlaif.pipeline.steps.asking import Kept
from tests.support.kinds import BAD, EVERY, GOOD, Engines, judge_of, judged
from tests.support.memory import Memory

WRITTEN = [name for name in EVERY if "written" in name or name in ("rating", "ultrafeedback")]
WRITTEN += ["prometheus", "prometheus_pair", "additive", "template", "rating_structured"]


class Thinking(FakeEngine):
    """Thinks, and may not come to an end."""

    def __init__(self, answer: str | None):
        closing = "" if answer is None else f"</think>\n{answer}"
        text = f"<think>Score: 1? Verdict: 2? Text 1\nRating: 2{closing}"
        super().__init__(FakeScript(default=text), "thinking")
        self.scored: list[ScoreRequest] = []

    def _score(self, request: Any) -> ScoreResult:
        self.scored.append(request)
        probs = {label: 0.5 / len(request.labels) for label in request.labels}
        probs |= {next(iter(request.labels)): 0.4}
        return ScoreResult(request.request_id, probs, sum(probs.values()), [], 1)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_thought_without_an_end_is_no_verdict(name: str) -> None:
    read = judged(judge_of(EVERY[name]), Engines(Thinking(None)), [GOOD, BAD])
    assert read
    for judgement in read:
        assert (judgement.status, judgement.error) == ("unparsed", CUT)
        assert judgement.rationale is not None and "Score: 1?" in judgement.rationale


@pytest.mark.parametrize("name", ["jury_vote", "meta", "rubric_generate"])
def test_so_it_is_in_judges_of_several_answers(name: str) -> None:
    spec = dict(EVERY[name])
    if name == "jury_vote":
        spec = {"kind": "jury", "of": [{"kind": "rating"}, {"kind": "additive"}], "pool": "vote"}
    read = judged(judge_of(spec), Engines(Thinking(None)), [GOOD, BAD])
    assert {(j.status, j.error) for j in read} == {("unparsed", CUT)}


def test_the_verdict_is_read_behind_the_thought() -> None:
    (read,) = judged(judge_of(EVERY["rating"]), Engines(Thinking("Score: 5")), [GOOD])
    assert (read.status, read.score, read.raw) == ("ok", 1.0, "Score: 5")
    assert read.rationale == "Score: 1? Verdict: 2? Text 1\nRating: 2"


@pytest.mark.parametrize("answer", ["It names a fruit.", ""])
def test_labels_are_read_after_reasons_and_not_after_a_cut_thought(answer: str) -> None:
    judge = judge_of(EVERY["pairwise_cot"])
    engine, log = Thinking(answer), Memory()
    read = judged(judge, Engines(engine), [GOOD, BAD], Kept(log))
    assert {j.status for j in read} == {"ok"}
    said = engine.scored[0].messages[-2]["content"]
    # A model that only thought has thought its reasons.
    assert said == (answer or "Score: 1? Verdict: 2? Text 1\nRating: 2")
    assert all(j.rationale and "Score: 1?" in j.rationale for j in read)
    engine = Thinking(None)
    read = judged(judge, Engines(engine), [GOOD, BAD])
    assert not engine.scored
    assert {(j.status, j.error) for j in read} == {("unparsed", CUT)}


def sampled(folder: Path, replies: list[str], *keys: str) -> tuple[Any, list[dict[str, Any]]]:
    (folder / "script.yaml").write_text(
        yaml.safe_dump({"rules": [{"match": ".", "replies": replies}]})
    )
    model = {"path": "none", "engine": "fake", "script": str(folder / "script.yaml")}
    (folder / "m.yaml").write_text(yaml.safe_dump(model))
    (folder / "p.jsonl").write_text('{"prompt": "Name a fruit."}\n{"prompt": "Name a stone."}\n')
    words = ["sample", folder / "p.jsonl", "--model", folder / "m.yaml", "--out", folder / "out"]
    done = CliRunner().invoke(cli, [str(w) for w in [*words, *keys, "--quiet"]])
    path = folder / "out" / "completions.jsonl"
    rows = [json.loads(x) for x in path.read_text().split("\n") if x] if path.exists() else []
    return done, rows


def test_the_answer_is_sampled_and_its_thought_is_kept(tmp_path: Path) -> None:
    done, rows = sampled(tmp_path, ["<think>A red one.</think>Cherry."])
    assert done.exit_code == 0, done.output
    for row in rows:
        assert row["messages"] == [{"role": "assistant", "content": "Cherry."}]
        assert row["reasoning"] == "A red one."
        # All that was sampled: three words of thinking and answer.
        assert len(row["token_ids"]) == len(["<think>A", "red", "one.</think>Cherry."])


def test_a_thought_without_an_end_is_no_answer(tmp_path: Path) -> None:
    done, rows = sampled(tmp_path, ["<think>A red one, so", "Cherry."], "--set", "n=6")
    assert done.exit_code == 0, done.output
    failed = [row for row in rows if row["finish_reason"] == "failed"]
    assert failed and len(failed) < len(rows)
    for row in failed:
        assert row["messages"] == [] and row["token_ids"]
        assert row["error"].startswith(CUT) and "max_new_tokens" in row["error"]
        assert row["reasoning"] == "A red one, so"
    marker = json.loads((tmp_path / "out" / "done.json").read_text())
    assert marker["counts"]["cut_while_thinking"] == len(failed)
    assert f"{len(failed)} of 12 answers were {WAS_CUT}" in done.output


def test_when_no_thought_ends_the_step_stops_and_says_why(tmp_path: Path) -> None:
    done, _ = sampled(tmp_path, ["<think>A red one, so"])
    assert done.exit_code != 0 and "all 8 answers failed" in str(done.exception)
    assert CUT in str(done.exception)


def test_a_run_whose_labels_get_little_probability_says_so(tmp_path: Path) -> None:
    assert answer_notes("j", 9, {}, [0.3, 0.2]) == []
    (note,) = answer_notes("j", 9, {}, [0.002, 0.004])
    assert "mean probability of 0.003" in note and "min_label_mass" in note
    rules = [{"match": ".", "labels": {"first": 0.0002, "second": 0.0001}}]
    (tmp_path / "script.yaml").write_text(yaml.safe_dump({"rules": rules}))
    models = {"m": {"path": "none", "engine": "fake", "script": "script.yaml"}}
    judges = [{"id": "vague", "kind": "pairwise", "by": "m"}]
    (tmp_path / "j.yaml").write_text(yaml.safe_dump({"models": models, "judges": judges}))
    pairs = [make_pair(f"f:{n}", user(f"Q {n}?"), ("a", "b"), 1.0) for n in range(3)]
    request = BenchRequest(
        name="f",
        judges=[str(tmp_path / "j.yaml")],
        out=tmp_path / "out",
        model=ModelSpec(path="none", engine="fake"),
        baselines=False,
    )
    (note,) = run_bench(request, pairs, QuietProgress())["judges"]["vague"]["notes"]
    assert note.startswith("judge vague: its labels have a mean probability of 0.0003 together")


def test_a_run_and_its_status_say_how_many_thoughts_were_cut(tmp_path: Path) -> None:
    rules = [
        {"match": "Judge the answer", "replies": ["<think>Score: 2, or"]},
        {"match": ".", "replies": ["Yes.", "No."]},
    ]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"rules": rules}))
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "Say {n}."}}\n' for n in range(4)))
    model = {"path": "none", "engine": "fake", "script": "s.yaml"}
    steps = [{"sample": {"n": 2}}, {"judge": {"id": "r", "kind": "rating", "by": "policy"}}]
    experiment = {
        "name": "cut",
        "models": {"policy": model},
        "prompts": {"path": "p.jsonl", "holdout": 1},
        "rounds": 1,
        "steps": steps,
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(experiment))
    run = str(tmp_path / "run")
    words = ["run", str(tmp_path / "e.yaml"), "--quiet", "--no-report", "--out", run]
    for command in (words, ["status", run]):
        done = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert "note: judge r: 6 of 6 verdicts could not be read" in done.output
        assert f"{WAS_CUT}: raise `max_new_tokens` of the judge" in done.output
