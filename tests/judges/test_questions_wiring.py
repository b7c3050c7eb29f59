"""What a question is made of and what is read of its answer: every switch at both of its values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.chat import CUT, WAS_CUT
from rlaif.core.errors import ConfigError
from rlaif.core.records import Judgement, make_prompt
from rlaif.data.constitutions import import_constitution
from rlaif.engines.base import GenerateRequest, GenerateResult, Sampling, ScoreResult
from rlaif.judges.base import LIMIT, Call
from rlaif.judges.baselines import Comparing, Overlap, Perplexity
from rlaif.judges.pairwise import Pairwise, Reading, presentations
from rlaif.judges.questions import (
    Written,
    answer_notes,
    judgement_notes,
    label_mass,
    label_share,
    likeliest,
    sampling_seed,
    scalar,
    written,
)
from rlaif.judges.rbr import Rbr
from rlaif.judges.scored import Scored
from tests.support.wiring import ONE, PROMPT, SEED, THREE, TWO, completion, judge_of

approx: Any = pytest.approx
BROKEN = '{"reasons": 3,'


def test_a_broken_object_counts_where_one_was_asked_for() -> None:
    text = f'{{"verdict": "B"}} {BROKEN}'
    # Where none was asked for, the whole one is the answer; else nobody knows which of the two.
    free, asked = (Written(text, structured=s).object("verdict") for s in (False, True))
    assert free is not None and free.members == {"verdict": "B"}
    assert asked is not None and "verdict" not in asked.members
    request = GenerateRequest("r", [], Sampling(), json_schema={"type": "object"})
    plain = GenerateRequest("r", [], Sampling())
    for given, wanted in ((request, True), (plain, False)):
        call = Call("c", PROMPT, (ONE,), request=given, fence="mark")
        made = written(call, GenerateResult("r", text, [], "length", 1))
        assert (made.structured, made.fence, made.cut) == (wanted, "mark", True)
    made = written(Call("c", PROMPT, (), request=plain), GenerateResult("r", "x", [], "stop", 1))
    assert (made.text, made.cut) == ("x", False)


def test_what_stands_under_a_field_is_a_word_or_a_number() -> None:
    for value, said in ((3, "3"), (2.5, "2.5"), ("a", "a"), (True, None), ([1], None)):
        found = Written(json.dumps({"score": value})).object("score")
        assert found is not None and scalar(found, "score") == said


def test_shares_of_labels() -> None:
    assert (label_share(0.1, 0.3), label_share(0.0, 0.0)) == (approx(0.25), None)
    assert likeliest({"a": 0.1, "b": 0.3, "c": 0.2}) == "b"
    assert likeliest({"a": 0.3, "b": 0.3, "c": 0.2}) is None and likeliest({}) is None
    assert likeliest({"a": 0.0}) == "a"
    told = ScoreResult("s", {"a": 0.1, "b": 0.2}, 0.75, [], 1)
    assert label_mass(told) == 0.75
    assert label_mass(ScoreResult("s", {"a": 0.1, "b": 0.2}, None, [], 1)) == approx(0.3)
    assert len({sampling_seed(s, c) for s in (1, 2) for c in ("a", "b")}) == 4


def test_notes_name_their_judge_cause_and_count() -> None:
    one, two, three = answer_notes("j", 9, {CUT: 2, LIMIT: 3, "other": 4}, [0.05, 0.1])
    assert one.startswith(
        f"judge j: 2 of 9 verdicts could not be read, since the answer was {WAS_CUT}"
    )
    assert two.startswith(
        f"judge j: 3 of 9 verdicts could not be read, since the answer was {LIMIT}"
    )
    assert "mean probability of 0.075 together" in three
    assert answer_notes("j", 9, {"other": 4}, [0.1, 0.1]) == []
    rows: Any = (
        ("1", "ok", 0.5, 0.02, None),
        ("2", "ok", 0.5, 0.06, None),
        ("3", "unparsed", None, None, CUT),
    )
    judged = [
        Judgement(
            n, n, "p", "completion", ["c"], "c", "j", "a", "ai", None, status, score,
            label_mass=mass, error=error,
        )
        for n, status, score, mass, error in rows
    ]  # fmt: skip
    first, second = judgement_notes("k", judged)
    assert first.startswith("judge k: 1 of 3 ") and "of 0.04 together" in second


@pytest.mark.parametrize(
    ("soft", "clamp", "given", "kept"),
    [
        (True, None, 0.7, 0.7),
        (False, None, 0.7, 1.0),
        (False, None, 0.5, 0.5),
        (False, None, 0.3, 0.0),
        (True, (0.4, 0.6), 0.7, 0.6),
        (True, (0.4, 0.6), 0.3, 0.4),
        (True, (0.4, 0.6), 0.55, 0.55),
        (False, (0.2, 0.8), 0.7, 0.8),
    ],
)
def test_a_probability_is_kept_as_the_spec_says(
    soft: bool, clamp: Any, given: float, kept: float
) -> None:
    assert Reading(soft, clamp).prob(given) == kept


def test_pairs_are_shown_in_the_order_that_is_asked_for() -> None:
    assert presentations("both", TWO, ONE, None, 1) == [(TWO, ONE), (ONE, TWO)]
    assert presentations("fixed", TWO, ONE, None, 1) == [(TWO, ONE)]
    drawn = {
        (s, p): presentations("random", ONE, TWO, p, s)[0] for s in range(8) for p in ("a", "b")
    }
    assert {shown[0] is ONE for shown in drawn.values()} == {True, False}
    for (seed, principle), shown in drawn.items():
        assert presentations("random", TWO, ONE, principle, seed) == [shown]
    assert any(drawn[s, "a"] != drawn[s, "b"] for s in range(8))


def test_a_kind_is_built_by_its_own_class(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("weights: {north: 2}", "utf-8")
    kinds: list[tuple[dict[str, Any], Any]] = [
        ({"kind": "pairwise", "id": "a"}, Pairwise),
        ({"kind": "rbr", "id": "b", "weights": "w.yaml"}, Rbr),
        ({"kind": "longer", "id": "c"}, Comparing),
        ({"kind": "overlap", "id": "d"}, Overlap),
        ({"kind": "perplexity", "id": "e"}, Perplexity),
        ({"kind": "rating", "id": "f"}, Scored),
    ]
    for keys, kind in kinds:
        made = judge_of(tmp_path, **keys)
        assert type(made) is kind and made.id == keys["id"]
        again = judge_of(tmp_path, **keys | {"id": "other"})
        assert again.judge_hash != made.judge_hash == judge_of(tmp_path, **keys).judge_hash


def test_baselines_look_at_the_pair_or_the_answer_that_is_shown() -> None:
    texts = [completion(text, n) for n, text in enumerate(("Rome is mild.", "No", "Rome is mild."))]

    def probs(kind: str, seed: int = SEED) -> list[tuple[str, str, Any, str]]:
        judge = judge_of(kind=kind)
        calls = judge.calls(PROMPT, texts, seed)
        read = [judge.read(call, None, "m")[0] for call in calls]
        return [(*j.shown, j.prob_first, j.status) for j in read]

    longer = {("k0", "k1"): (1.0, "ok"), ("k0", "k2"): (0.5, "tie"), ("k1", "k2"): (0.0, "ok")}
    assert {(a, b): (p, s) for a, b, p, s in probs("longer")} == longer
    first = {("k0", "k1"): (1.0, "ok"), ("k0", "k2"): (0.5, "tie"), ("k1", "k2"): (1.0, "ok")}
    assert {(a, b): (p, s) for a, b, p, s in probs("first")} == first
    assert probs("longer", 1) == probs("longer", 2)
    judge = judge_of(kind="overlap")
    prompt = make_prompt([{"role": "user", "content": "Where is mild weather in Rome?"}])
    scores = [judge.read(c, None, "m")[0].score for c in judge.calls(prompt, texts, SEED)]
    assert scores[0] == scores[2] > scores[1] == 0.0
    model = judge_of(kind="perplexity")
    calls = model.calls(PROMPT, [THREE, ONE], SEED)
    assert [c.request.continuation for c in calls] == [c.shown[0].text for c in calls]
    assert {c.shown[0].text for c in calls} == {"Oslo", "Bonn"}
    assert calls[0].request.messages == PROMPT.messages
    answer = ScoreResult(calls[0].call_id, {}, None, [-0.5, -1.5], 1)
    [read] = model.read(calls[0], answer, "who")
    assert (read.raw_value, read.distribution) == (-1.0, {"mean_logprob": -1.0})
    assert read.score == approx(0.36788, abs=1e-5) and read.annotator_id == "who"


def test_constitutions_of_others_keep_each_critique_with_its_revision(tmp_path: Path) -> None:
    pairs = [{"critic": f"Critique {n}?", "revision": f"Revise {n}."} for n in (1, 2)]
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({"constitutions": pairs}), "utf-8")
    made, _ = import_constitution(path, "mine")
    assert made.name == "mine"
    assert [(p.id, p.critique, p.revision) for p in made.principles] == [
        ("principle-1", "Critique 1?", "Revise 1."),
        ("principle-2", "Critique 2?", "Revise 2."),
    ]
    keyed = {
        "One": {"prompt": ["A?", "B?"], "edit_request": "Mend."},
        "Two": {"prompt": "C?", "edit_request": "Fix."},
    }
    path.write_text(json.dumps(keyed), "utf-8")
    made, _ = import_constitution(path, None)
    assert made.name == "theirs"
    assert [(p.id, p.critique, p.revision) for p in made.principles] == [
        ("one-1", "A?", "Mend."),
        ("one-2", "B?", "Mend."),
        ("two", "C?", "Fix."),
    ]
    strange: list[Any] = [[], {}, ""]
    for prompt in strange:
        path.write_text(json.dumps({"One": {"prompt": prompt, "edit_request": "x"}}), "utf-8")
        with pytest.raises(ConfigError, match=r"One\.prompt"):
            import_constitution(path, None)
