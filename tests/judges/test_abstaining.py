"""Every judge whose model gives a verdict may abstain: apart from a tie, from what cannot be read
and from what does not apply, without a number, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rlaif.analysis.bench.run import BenchRequest, run_bench
from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError
from rlaif.core.progress import QuietProgress
from rlaif.data.readers.base import make_pair, user
from rlaif.engines.base import GenerateRequest, ScoreRequest, ScoreResult
from rlaif.judges.base import is_staged
from rlaif.judges.choices import choice_reading
from rlaif.judges.parsing import text_ratings
from rlaif.judges.scores import score_reading
from tests.support.kinds import (
    BAD,
    EVERY,
    GOOD,
    PROMPT,
    Abstaining,
    Engines,
    judge_of,
    judged,
    scores,
)

# These give no verdict of their own that could be declined: programs, log-probs of answers, and
# which of two judgements is better.
NEVER = {"rules", "reward_model", "reward_ensemble", "implicit_reward", "judgements"}
# Their own keys say what an abstention is; a jury and a meta-judge abstain as those within do.
OWN_WAY = {"template", "jury", "jury_vote", "meta"}
SHY = {"abstain_labels": ["abstain", "?"]}


def shy(name: str) -> dict[str, Any]:
    spec = EVERY[name]
    if name.startswith("jury"):
        jurors = [j | SHY for j in spec["of"] if j["kind"] not in NEVER]
        return {"kind": "jury", "of": jurors, "pool": spec.get("pool", "mean")}
    return spec if name in OWN_WAY else spec | SHY


@pytest.mark.parametrize("name", sorted(set(EVERY) - NEVER))
def test_every_judge_may_abstain(name: str) -> None:
    judge = judge_of(shy(name))
    read = judged(judge, Engines(Abstaining()), [GOOD, BAD])
    assert {j.status for j in read} == {"abstain"}
    assert all(j.score is None and j.prob_first is None for j in read)
    assert set(scores(read).values()) == {None}


@pytest.mark.parametrize("name", sorted(set(EVERY) - NEVER - OWN_WAY))
def test_a_judge_that_may_abstain_is_told_so_and_no_other_is(name: str) -> None:
    written = EVERY[name].get("structured") is not None and "generate" not in name
    for words, told in ((["dunno"], True), ([], False)):
        judge = judge_of(EVERY[name], abstain_labels=words)
        calls = judge.calls(PROMPT, [GOOD, BAD], 3)
        if is_staged(judge) and "generate" in name:
            return
        requests = [call.request for call in calls if call.request is not None]
        assert requests
        for call, request in zip(calls, requests, strict=False):
            assert isinstance(request, GenerateRequest | ScoreRequest)
            last = call.then.turn if call.then else request.messages[-1]["content"]
            assert ("dunno" in last) is told
            if written:
                assert isinstance(request, GenerateRequest)
                assert ("dunno" in str(request.json_schema)) is told


@pytest.mark.parametrize("name", ["yes_no", "rating_expected", "pairwise", "rbrm", "rubric"])
def test_too_little_probability_on_the_labels_is_an_abstention(name: str) -> None:
    class Vague(Abstaining):
        def _score(self, request: Any) -> ScoreResult:
            probs = dict.fromkeys(request.labels, 0.0) | {next(iter(request.labels)): 0.04}
            return ScoreResult(request.request_id, probs, 0.04, [], 1)

    for least, status in ((0.05, "abstain"), (0.04, "ok"), (0.0, "ok")):
        judge = judge_of(EVERY[name], min_label_mass=least)
        read = judged(judge, Engines(Vague()), [GOOD, BAD])
        assert {j.status for j in read} == {status}


def test_a_label_that_is_not_the_likeliest_stays_out_of_the_shares() -> None:
    judge: Any = judge_of({"kind": "rating", "expected": True}, **SHY)
    call = judge.calls(PROMPT, [GOOD], 1)[0]
    probs = dict.fromkeys(call.request.labels, 0.0) | {"1": 0.3, "5": 0.1, "abstain": 0.2}
    (read,) = judge.read(call, ScoreResult(call.call_id, probs, 0.6, [], 1), "m")
    assert read.score == pytest.approx(0.25)
    assert read.label_mass == 0.6


WORDS = ("abstain", "N/A", "cannot tell")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hard to say. Score: N/A", "abstain"),
        ("**Score:** abstain.", "abstain"),
        ("[RESULT] N/A", "abstain"),
        ("Final rating (1-5): cannot tell from this", "abstain"),
        ("n/a", "abstain"),
        (" **Abstain**. ", "abstain"),
        ("score: abstain", "abstain"),
        ("Score: abstain, since 4/5 of it is odd.", "abstain"),
        ("Score: 4\nOn reflection, score: N/A", "abstain"),
        ("Score: abstain\nOn reflection, score: 4", 4.0),
        ("Score: abstain\nNo: score: 9", None),
        ("I abstain from hasty words. Score: 2", 2.0),
        ("I cannot tell what it means.", None),
        ("Score: abstaining", None),
        ("Score: N", None),
        ("", None),
    ],
)
def test_words_in_place_of_a_score(text: str, expected: float | str | None) -> None:
    assert score_reading(1, 5, WORDS).read(text) == expected
    if expected == "abstain":
        assert score_reading(1, 5, ()).read(text) in (None, 4.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Verdict: N/A", "abstain"),
        ("Verdict: 1. On reflection, verdict: cannot tell.", "abstain"),
        ("[RESULT] **abstain**", "abstain"),
        ("Verdict: abstain. No, verdict: 2", "second"),
        ("Verdict: 1 or abstain", None),
        ("I cannot tell.", None),
    ],
)
def test_words_in_place_of_a_choice(text: str, expected: str | None) -> None:
    labels = {"first": ("1",), "second": ("2",), "abstain": WORDS}
    assert choice_reading(labels).read(text) == expected


def test_words_in_place_of_a_rating_of_several() -> None:
    said = "Text 1\nRating: abstain\nText 2\nRating: N/A\nText 3\nRating: 2"
    assert text_ratings(said, 3, 1, 5, WORDS) == {1: "abstain", 2: "not applicable", 3: 2.0}
    assert text_ratings(said, 3, 1, 5) == {2: "not applicable", 3: 2.0}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "yes_no", "abstain_labels": ["No"]}, "both answers"),
        ({"kind": "direct", "abstain_labels": ["A"]}, "both answers"),
        ({"kind": "additive", "expected": True, "abstain_labels": [" 0"]}, "both answers"),
        ({"kind": "pairwise", "abstain_labels": ["?"], "tie_labels": ["?"]}, "both answers"),
        ({**EVERY["rbrm"], "abstain_labels": ["B"]}, "both answers"),
        ({"kind": "rating", "min_label_mass": 0.1}, "no effect"),
        ({"kind": "rating", "expected": True, "structured": True}, "no effect"),
        ({"kind": "yes_no", "cot": True, "structured": True}, "no effect"),
        ({**EVERY["template"], "structured": True}, "json_schema"),
    ],
)
def test_keys_that_cannot_work_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValidationError), match=message):
        judge_of(spec)


def test_judge_bench_counts_abstentions(tmp_path: Path) -> None:
    rules = [{"match": "odd", "replies": ["Score: N/A"]}, {"match": ".", "replies": ["Score: 4"]}]
    (tmp_path / "script.yaml").write_text(yaml.safe_dump({"rules": rules}))
    models = {"m": {"path": "none", "engine": "fake", "script": "script.yaml"}}
    path = tmp_path / "judges.yaml"
    judges = [{"id": "r", "kind": "rating", "by": "m"}]
    path.write_text(yaml.safe_dump({"models": models, "judges": judges}))
    pairs = [
        make_pair(f"f:{n}", user(f"Question {n}?"), (f"odd {n}" if n < 3 else "a", "b"), 1.0)
        for n in range(12)
    ]
    request = BenchRequest(
        name="f",
        judges=[str(path)],
        out=tmp_path / "out",
        model=ModelSpec(path="none", engine="fake"),
        baselines=False,
    )
    row = run_bench(request, pairs, QuietProgress())["judges"]["r"]
    assert row["abstain_rate"]["mean"] == pytest.approx(3 / 24)
    assert row["unread_rate"]["mean"] == 0
    assert row["coverage"]["mean"] == pytest.approx(9 / 12)
