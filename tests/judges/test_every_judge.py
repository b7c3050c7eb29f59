"""What holds for every kind of judge: it reads good answers, invents nothing from bad ones, follows
the answer and not its place, does not depend on the order of arrival, and is known by its hash."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from rlaif.bench.entrants import BASELINES
from rlaif.compare.aggregate import candidate_scores
from rlaif.config import JudgeStep, ModelSpec
from rlaif.constitution import Constitution
from rlaif.engines.base import Model, ScoreResult
from rlaif.engines.fake import FakeEngine, FakeScript
from rlaif.errors import ConfigError
from rlaif.judges.base import Judge, roles_of
from rlaif.judges.build import JUDGES, build_judge
from rlaif.records import VALUED, Completion, Judgement, content_hash, make_prompt
from rlaif.steps.asking import Kept, Memory, verdicts

PROMPT = make_prompt([{"role": "user", "content": "Name a red fruit."}], tags=["fruit"])
RULES: Any = {
    "name": "test",
    "principles": [
        {
            "id": "kind",
            "text": "The answer is kind.",
            "examples": [{"prompt": "Hi", "better": "Hello!", "worse": "Go.", "why": "Warmth."}],
        },
        {"id": "brief", "check": {"rule": "word_limits", "params": {"min": 1, "max": 3}}},
    ],
}
TABLES = [
    {"tags": ["fruit"], "rewards": {"names": 1.0, "refuses": 0.0}},
    {"rewards": {"names": 0.2, "refuses": 0.8}},
]
CLASSES = [{"id": "names", "text": "It names one."}, {"id": "refuses", "text": "It does not."}]
EVERY: dict[str, dict[str, Any]] = {
    "rules": {"kind": "rules"},
    "yes_no": {"kind": "yes_no"},
    "yes_no_cot": {"kind": "yes_no", "cot": True, "samples": 2, "temperature": 0.7},
    "rating": {"kind": "rating"},
    "rating_expected": {"kind": "rating", "expected": True},
    "rating_cot": {"kind": "rating", "expected": True, "cot": True},
    "direct": {"kind": "direct"},
    "critique": {"kind": "critique"},
    "prometheus": {"kind": "prometheus"},
    "additive": {"kind": "additive"},
    "additive_expected": {"kind": "additive", "expected": True},
    "pairwise": {"kind": "pairwise"},
    "pairwise_cot": {"kind": "pairwise", "cot": True},
    "pairwise_detailed": {"kind": "pairwise", "preamble": "detailed", "shots": 1},
    "pairwise_written": {"kind": "pairwise", "verdict": "written"},
    "pairwise_fixed": {"kind": "pairwise", "order": "fixed"},
    "pairwise_random": {"kind": "pairwise", "order": "random", "soft": False},
    "constitutional": {"kind": "constitutional"},
    "constitutional_cot": {"kind": "constitutional", "cot": True, "clamp": [0.4, 0.6]},
    "prometheus_pair": {"kind": "prometheus_pair"},
    "template": {
        "kind": "template",
        "template": "prompts/judges/template_example.j2",
        "parse": {
            "pattern": r"verdict:\W*(rude|plain|kind|unsure)",
            "values": {"rude": 0, "plain": 1, "kind": 2, "unsure": None},
        },
        "scale": [0, 2],
    },
    "ultrafeedback": {"kind": "ultrafeedback"},
    "ultrafeedback_fixed": {"kind": "ultrafeedback", "order": "fixed"},
    "rbrm": {"kind": "rbrm", "classes": CLASSES, "tables": TABLES},
    "rbrm_hard_cot": {
        "kind": "rbrm",
        "classes": CLASSES,
        "tables": TABLES,
        "soft": False,
        "cot": True,
    },
    "rubric": {
        "kind": "rubric",
        "items": [
            {"text": "It names a fruit."},
            {"text": "It is short.", "check": "word_limits", "params": {"min": 1, "max": 3}},
        ],
    },
    "rubric_implicit": {
        "kind": "rubric",
        "items": [{"text": "It names a fruit."}],
        "aggregate": "implicit",
    },
    "rubric_generate": {"kind": "rubric", "generate": {"most": 3}},
    "rubric_generate_implicit": {"kind": "rubric", "generate": {}, "aggregate": "implicit"},
    "implicit_reward": {"kind": "implicit_reward"},
    "meta": {"kind": "meta", "judge": {"kind": "additive"}},
    "jury": {
        "kind": "jury",
        "of": [{"kind": "yes_no", "by": "policy"}, {"kind": "pairwise", "cot": True}],
    },
    "jury_vote": {
        "kind": "jury",
        "of": [{"kind": "rating"}, {"kind": "additive"}, {"kind": "implicit_reward"}],
        "pool": "vote",
        "accuracy": {"rating": 0.8, "additive": 0.7, "implicit_reward": 0.6},
    },
}
MODEL_JUDGES = [name for name in EVERY if name != "rules"]


def constitution() -> Constitution:
    return Constitution.model_validate(RULES)


def judge_of(spec: Mapping[str, Any], **more: Any) -> Judge:
    model: Any = TypeAdapter(JudgeStep).validate_python({**spec, **more})
    return build_judge(model, constitution())


def completion(text: str, index: int) -> Completion:
    return Completion(
        completion_id="k_" + content_hash(text, index),
        prompt_id=PROMPT.prompt_id,
        sample_index=index,
        messages=[{"role": "assistant", "content": text}],
        model="policy",
        weights_hash="w",
        sampling={},
        finish_reason="stop",
        digest=content_hash(text),
    )


GOOD, BAD = completion("Cherry", 0), completion("A stupid grey stone of no use", 1)
HIGH = {"yes": 0.6, "5": 0.4, "J": 0.4, "A": 0.3, "3": 0.1}
LOW = {"no": 0.6, "1": 0.4, "A": 0.4, "0": 0.1, "B": 0.5}


class Preferring(FakeEngine):
    """A scripted model that likes `liked`, wherever it stands."""

    def __init__(self, liked: str, disliked: str):
        super().__init__(FakeScript(), "fake")
        self.liked, self.disliked = liked, disliked

    def _likes(self, text: str) -> str:
        """Which of the texts in a request it likes: first, second, one, other or none."""
        one, other = text.rfind(self.liked), text.rfind(self.disliked)
        if one >= 0 and other >= 0:
            return "first" if one < other else "second"
        return "one" if one >= 0 else "other" if other >= 0 else "none"

    def _answer(self, request: Any) -> Any:
        text = "\n".join(m["content"] for m in request.messages)
        made = super()._answer(request)
        return type(made)(made.request_id, self._text(text, request), [], "stop", 1)

    def _text(self, text: str, request: Any) -> str:
        said = self._likes(text)
        if "checklist" in text:
            return "Here:\n- [essential] It names a fruit.\n- [pitfall] It insults nobody."
        if "Text N" in text:
            first, second = (5, 1) if said == "first" else (1, 5)
            return f"Text 1\nRating: {first}\nRationale: a\n\nText 2\nRating: {second}\n"
        if said in ("first", "second"):
            return f"I thought about it. [RESULT] {self._slot(said, text)}"
        if "Verdict: WORD" in text:
            return f"Verdict: {'kind' if said == 'one' else 'rude'}"
        return f"Number {request.sampling.seed % 97}. Score: {5 if said == 'one' else 1}"

    @staticmethod
    def _slot(said: str, text: str) -> str:
        letters = "answer A" in text
        return {"first": "A" if letters else "1", "second": "B" if letters else "2"}[said]

    def _score(self, request: Any) -> ScoreResult:
        text = "\n".join(m["content"] for m in request.messages)
        if request.continuation is not None:
            liked = request.continuation == self.liked
            return ScoreResult(request.request_id, {}, None, [-0.5 if liked else -3.0], 1)
        said = self._likes(text)
        if said in ("first", "second") or "first" in request.labels:
            probs = {"first": 0.6, "second": 0.2} if said == "first" else {"second": 0.6}
            probs = {"first": 0.2, **probs}
        elif "Which class" in text:
            probs = {"A": 0.5, "B": 0.1} if said == "one" else {"A": 0.1, "B": 0.5}
        else:
            probs = HIGH if said == "one" else LOW
        kept = {label: probs.get(label, 0.0) for label in request.labels}
        return ScoreResult(request.request_id, kept, sum(kept.values()), [], 1)


class Reference(Preferring):
    """Finds every answer equally likely."""

    def _score(self, request: Any) -> ScoreResult:
        return ScoreResult(request.request_id, {}, None, [-1.5], 1)


class Mumbling(FakeEngine):
    """Says nothing that could be read."""

    def __init__(self) -> None:
        super().__init__(FakeScript(default="Hard to say, really."), "fake")

    def _score(self, request: Any) -> ScoreResult:
        found = super()._score(request)
        if request.continuation is None:
            return found
        return ScoreResult(request.request_id, {}, None, [], 1, "the prompt does not fit")


class Engines:
    """`engines` as a step has them; counts what is asked."""

    def __init__(self, by: FakeEngine, reference: FakeEngine | None = None):
        self.engines = {"by": by, "reference": reference or by}

    def get(self, model: Model) -> FakeEngine:
        return self.engines["reference" if model.label.endswith("reference") else "by"]


def models(judge: Judge) -> dict[str, Model]:
    spec = ModelSpec(path="none", engine="fake")
    return {role: Model(role, role, spec) for role in roles_of(judge)}


def judged(
    judge: Judge, engines: Engines, completions: Sequence[Completion], kept: Kept | None = None
) -> list[Judgement]:
    groups = [(PROMPT, completions)]
    used: Any = engines
    return verdicts(judge, models(judge), used, groups, 3, kept or Kept(Memory()))


def preferring(liked: str, disliked: str) -> Engines:
    return Engines(Preferring(liked, disliked), Reference(liked, disliked))


def scores(judgements: list[Judgement]) -> dict[str, float | None]:
    return candidate_scores(judgements)


def test_every_kind_is_tried_here() -> None:
    # Reward models have tests of their own, in tests/train/test_reward_model.py; the propositions'
    # weights are a file, see test_rbr.py; baselines follow no principle, see test_baselines.py.
    elsewhere = {"reward_model", "rbr", *BASELINES}
    assert set(JUDGES) == {spec["kind"] for spec in EVERY.values()} | elsewhere


@pytest.mark.parametrize("name", MODEL_JUDGES)
def test_the_better_answer_wins_and_swapping_the_verdict_swaps_it(name: str) -> None:
    judge = judge_of(EVERY[name])
    read = judged(judge, preferring(GOOD.text, BAD.text), [GOOD, BAD])
    assert read and all(j.status in VALUED for j in read), [(j.status, j.raw) for j in read]
    found = scores(read)
    good, bad = found[GOOD.completion_id], found[BAD.completion_id]
    assert good is not None and bad is not None and 1 >= good > bad >= 0
    swapped = scores(judged(judge, preferring(BAD.text, GOOD.text), [GOOD, BAD]))
    if not name.startswith("rubric") or "implicit" in name or "generate" in name:
        assert swapped[BAD.completion_id] > swapped[GOOD.completion_id]  # type: ignore[operator]


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_arrival_changes_nothing(name: str) -> None:
    judge, engines = judge_of(EVERY[name]), preferring(GOOD.text, BAD.text)
    third = completion("A tomato", 2)
    one = judged(judge, engines, [GOOD, BAD, third])
    other = judged(judge, engines, [third, BAD, GOOD])
    plain = [{**vars_of(j), "latency": None} for j in one]
    assert plain == [{**vars_of(j), "latency": None} for j in other]
    assert len({j.judgement_id for j in one}) == len(one)


@pytest.mark.parametrize("name", EVERY)
def test_an_answer_beside_itself_is_judged_once_and_is_a_tie(name: str) -> None:
    judge, engines = judge_of(EVERY[name]), preferring(GOOD.text, BAD.text)
    twice = [GOOD, replace(GOOD, sample_index=1)]
    read = judged(judge, engines, twice)
    assert read and len({j.judgement_id for j in read}) == len(read)
    assert not judge.comparative or {j.prob_first for j in read} == {0.5}
    if not judge.comparative and name != "jury":
        assert [j.score for j in read] == [j.score for j in judged(judge, engines, [GOOD])]
    third = [j.shown for j in judged(judge, engines, [*twice, BAD])]
    assert third == [j.shown for j in judged(judge, engines, [GOOD, BAD])]


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "jury", "of": [{"kind": "pairwise"}]},
        {"kind": "jury", "of": [{"kind": "yes_no"}, {"kind": "ultrafeedback"}]},
        {"kind": "meta", "judge": {"kind": "ultrafeedback", "samples": 2, "temperature": 0.7}},
        {"kind": "ultrafeedback"},
    ],
)
def test_a_score_that_depends_on_the_others_has_an_id_of_its_group(spec: dict[str, Any]) -> None:
    judge, engines = judge_of(spec), preferring(GOOD.text, BAD.text)
    one, other = (judged(judge, engines, [GOOD, b]) for b in (BAD, completion("A tomato", 1)))
    assert not {j.judgement_id for j in one} & {j.judgement_id for j in other}
    assert not {j.call_id for j in one} & {j.call_id for j in other}


def test_a_jury_with_a_meta_judge_is_about_the_answers_alone() -> None:
    jury = judge_of({"kind": "jury", "of": [{"kind": "meta", "judge": {"kind": "additive"}}]})
    read = judged(jury, preferring(GOOD.text, BAD.text), [GOOD, BAD])
    assert sorted(j.subject for j in read) == sorted([GOOD.completion_id, BAD.completion_id])


def test_a_score_that_depends_on_no_other_keeps_its_id() -> None:
    judge, engines = judge_of({"kind": "jury", "of": [{"kind": "yes_no"}]}), Engines(Mumbling())
    (alone,) = judged(judge, engines, [GOOD])
    assert alone.judgement_id in {j.judgement_id for j in judged(judge, engines, [GOOD, BAD])}


def vars_of(judgement: Judgement) -> dict[str, Any]:
    return {name: getattr(judgement, name) for name in judgement.__slots__}


@pytest.mark.parametrize("name", MODEL_JUDGES)
def test_answers_that_cannot_be_read_are_missing(name: str) -> None:
    judge = judge_of(EVERY[name])
    read = judged(judge, Engines(Mumbling()), [GOOD, BAD])
    checked = [j for j in read if j.annotator_kind != "rule"]
    assert checked
    assert all(j.status in ("unparsed", "failed") for j in checked), [j.status for j in checked]
    assert all(value is None for value in scores(checked).values())


@pytest.mark.parametrize("name", EVERY)
def test_the_hash_ignores_who_answers(name: str) -> None:
    plain = judge_of(EVERY[name]).judge_hash
    assert judge_of(EVERY[name]).judge_hash == plain
    assert judge_of(EVERY[name], uses=["sample"]).judge_hash == plain
    if name not in ("rules", "jury", "jury_vote"):
        assert judge_of(EVERY[name], by="other").judge_hash == plain
    assert judge_of(EVERY[name], id="other").judge_hash != plain


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("yes_no", {"cot": True}),
    ("yes_no", {"abstain_labels": ["?"]}),
    ("yes_no", {"yes_labels": ["Yes"]}),
    ("yes_no_cot", {"temperature": 0.5}),
    ("yes_no_cot", {"samples": 3}),
    ("yes_no_cot", {"max_new_tokens": 9}),
    ("rating", {"scale": [1, 4]}),
    ("direct", {"scale": [1, 7]}),
    ("direct", {"cot": True, "template": "prompts/judges/critique.j2"}),
    ("critique", {"max_new_tokens": 9}),
    ("prometheus", {"temperature": 0.5}),
    ("additive", {"principles": ["kind"]}),
    ("pairwise", {"order": "fixed"}),
    ("pairwise", {"soft": False}),
    ("pairwise", {"clamp": [0.4, 0.6]}),
    ("pairwise", {"preamble": "detailed"}),
    ("pairwise", {"shots": 1}),
    ("pairwise", {"verdict": "written"}),
    ("pairwise", {"tie_labels": ["0"]}),
    ("pairwise", {"abstain_labels": ["?"]}),
    ("constitutional", {"draw": "each"}),
    ("prometheus_pair", {"first_labels": ["X"]}),
    ("ultrafeedback", {"aspects": ["honesty"]}),
    ("ultrafeedback", {"order": "random"}),
    ("rbrm", {"tables": TABLES[1:]}),
    ("rbrm", {"soft": False}),
    ("rubric", {"aggregate": "implicit", "items": [{"text": "It names a fruit."}]}),
    ("rubric", {"items": [{"text": "It names a fruit.", "weight": 2.0}]}),
    ("rubric_generate", {"generate": {"most": 4}}),
    ("rubric", {"category_weights": {"essential": 2, "important": 1, "optional": 1, "pitfall": 1}}),
    ("implicit_reward", {"beta": 0.2}),
    ("implicit_reward", {"per_token": True}),
    ("meta", {"judge": {"kind": "additive", "samples": 4}}),
    ("meta", {"first_labels": ["X"]}),
    ("jury", {"weights": {"yes_no": 2.0}}),
    ("jury", {"pool": "vote"}),
    ("jury", {"missing": "drop"}),
    ("jury_vote", {"accuracy": {"rating": 0.9, "additive": 0.7, "implicit_reward": 0.6}}),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_the_hash_covers_what_can_change_a_verdict(name: str, change: dict[str, Any]) -> None:
    assert judge_of(EVERY[name], **change).judge_hash != judge_of(EVERY[name]).judge_hash


class Counting(Memory):
    """A log that keeps its rows, as a folder does."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Any]] = {}

    def read(self, name: str) -> list[dict[str, Any]]:
        from rlaif.records import to_json

        rows = self.rows.get(name, [])
        return [dict(r) if isinstance(r, dict) else to_json(r) for r in rows]

    def append(self, name: str, records: Sequence[Any]) -> None:
        self.rows.setdefault(name, []).extend(records)


class Silent(Engines):
    """Must not be asked."""

    def __init__(self) -> None:
        pass

    def get(self, model: Model) -> FakeEngine:
        raise AssertionError("a model was asked again")


@pytest.mark.parametrize("name", EVERY)
def test_what_was_answered_is_not_asked_again(name: str) -> None:
    judge, log = judge_of(EVERY[name]), Counting()
    first = judged(judge, preferring(GOOD.text, BAD.text), [GOOD, BAD], Kept(log))
    count = len(log.rows["judgements"])
    assert judged(judge, Silent(), [GOOD, BAD], Kept(log)) == first
    assert len(log.rows["judgements"]) == count
    # Killed before the verdicts were stored: what was written before them is not written again.
    if "reasons" in log.rows:
        del log.rows["judgements"]
        log.rows.pop("answers", None)
        engines = preferring(GOOD.text, BAD.text)
        engines.engines["by"].generate = _refuse  # type: ignore[method-assign]
        again = judged(judge, engines, [GOOD, BAD], Kept(log))
        assert [j.judgement_id for j in again] == [j.judgement_id for j in first]


@pytest.mark.parametrize("name", ["rules", "pairwise", "jury"])
def test_a_pair_that_comes_twice_is_asked_and_kept_once(name: str) -> None:
    judge, log = judge_of(EVERY[name]), Counting()
    used: Any = preferring(GOOD.text, BAD.text)
    groups = [(PROMPT, [GOOD, BAD])]
    once = verdicts(judge, models(judge), used, groups, 3, Kept(Memory()))
    twice = verdicts(judge, models(judge), used, groups * 2, 3, Kept(log))
    assert len(twice) == 2 * len(once)
    assert len(log.rows["judgements"]) == len(once)


def _refuse(requests: Any, done: Any = frozenset()) -> Any:
    assert all(r.request_id in done for r in requests)
    return iter(())


def test_a_juror_without_a_measured_accuracy_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    rows = {"rating": {"agreement": 0.7}, "additive": {"agreement": None}}
    path.write_text(json.dumps({"judges": rows}))
    jurors = [{"kind": "rating"}, {"kind": "additive"}]
    with pytest.raises(ConfigError, match="`accuracy` lacks juror 'additive'"):
        judge_of({"kind": "jury", "of": jurors, "pool": "vote", "accuracy": str(path)})
