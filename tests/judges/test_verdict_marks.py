"""Questions of a judge as prompts, and answers to them marked: see METHODS of J1 and SPCT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rlaif.constitution.model import Constitution, Principle
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Completion, Judgement, Prompt, content_hash, make_prompt
from rlaif.engines.base import GenerateRequest, GenerateResult
from rlaif.judges.base import calls_of, cases_beside, roles_of
from rlaif.judges.build import JudgeStep, build_judge
from rlaif.judges.posed import pose_questions, read_written

WRITTEN = {"kind": "pairwise", "id": "compare", "by": "policy", "verdict": "written"}
RATING = {"kind": "rating", "id": "score", "by": "policy", "scale": [1, 10]}
RULES = Constitution(
    name="two",
    principles=[
        Principle(id="kind", text="Be kind.", scale={1: "no", 2: "yes"}),
        Principle(id="brief", text="Be brief."),
    ],
)


def answer(text: str, prompt: Prompt, index: int = 0, end: str = "stop") -> Completion:
    messages = [] if end == "failed" else [{"role": "assistant", "content": text}]
    name = content_hash(prompt.prompt_id, text, index)
    return Completion(name, prompt.prompt_id, index, messages, "m", "", {}, end, digest=text)


def pair(first: str, second: str, label: float | None = 1.0, question: str = "Why?") -> Any:
    prompt = make_prompt([{"role": "user", "content": question}], "file", ["a tag"])
    one, two = answer(first, prompt), answer(second, prompt)
    return LabelledPair(content_hash(first, second), prompt, one, two, label)


def judge_of(spec: dict[str, Any], *others: dict[str, Any], rules: Constitution | None = None):
    adapter = TypeAdapter(JudgeStep)
    every = [adapter.validate_python(one) for one in (spec, *others)]
    return build_judge(every[0], rules, judges={one.id: one for one in every})


def marker(of: dict[str, Any], both: bool = False, rules: Constitution | None = None):
    spec = {"kind": "verdict", "id": "mark", "of": of["id"], "both_orders": both}
    return judge_of(spec, of, rules=rules)


def marks(judge: Any, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Any]]:
    """The scores by prompt of answers that are these texts, in their order."""
    cases = [
        (p, [answer(t, p, i) for i, t in enumerate(own)])
        for p, own in zip(prompts, texts, strict=True)
    ]
    found = []
    for case, beside in zip(cases, cases_beside(cases), strict=True):
        calls = calls_of(judge, case, beside, 0)
        said: list[Judgement] = [j for c in calls for j in judge.read(c, None, "program")]
        by_subject = {j.subject: j for j in said}
        found.append([by_subject[c.completion_id].score for c in case[1]])
    return found


def questions(spec: dict[str, Any], *pairs: Any, orders: str = "both", rules: Any = None):
    return pose_questions(judge_of(spec, rules=rules), pairs, orders, 3)  # type: ignore[arg-type]


def right_text(prompt: Prompt, right: bool) -> str:
    return f"Verdict: {prompt.reference if right else '12'.replace(prompt.reference or '', '')}"


def test_a_question_is_the_request_of_the_judges_call() -> None:
    given_pair = pair("Yes.", "No.")
    (one, two), left_out = questions(WRITTEN, given_pair)
    loaded = given_pair.as_loaded()
    calls = judge_of(WRITTEN).calls(loaded.prompt, [loaded.first, loaded.second], 3)
    asked = [c.request.messages for c in calls if isinstance(c.request, GenerateRequest)]
    assert [one.messages, two.messages] == asked and not left_out
    assert one.group == two.group and {one.reference, two.reference} == {"1", "2"}
    shown_first = [re.search(r"\[answer 1 \w+\]\n(.*)\n", p.messages[-1]["content"])
                   for p in (one, two)]  # fmt: skip
    better_first = [m is not None and m[1] == "Yes." for m in shown_first]
    assert [p.reference for p in (one, two)] == ["1" if b else "2" for b in better_first]
    assert one.tags == ["a tag"] and one.source == "file"


def test_orders_that_are_asked_for_are_those_that_are_asked() -> None:
    pairs = [pair(f"Yes {n}.", f"No {n}.", question=f"Why {n}?") for n in range(20)]
    fixed, _ = questions(WRITTEN, *pairs, orders="fixed")
    drawn, _ = questions(WRITTEN, *pairs, orders="random")
    both, _ = questions(WRITTEN | {"order": "fixed"}, *pairs)
    assert (len(fixed), len(drawn), len(both)) == (20, 20, 40)
    assert {p.prompt_id for p in drawn} != {p.prompt_id for p in fixed}
    assert {p.prompt_id for p in (*drawn, *fixed)} < {p.prompt_id for p in both}


def test_pairs_that_say_nothing_give_no_question() -> None:
    asked = [pair("Same.", "Same."), pair("a", "b", 0.5), pair("c", "d", None)]
    found, left_out = questions(WRITTEN, *asked, pair("e", "f", 0.3), pair("e", "f", 0.4))
    assert len(found) == 2 and left_out == {"alike": 1, "tied": 1, "unlabelled": 1}
    # Two people whose labels cancel out, in either order of the file.
    split = [pair("g", "h", 1.0), pair("h", "g", 1.0)]
    assert questions(WRITTEN, *split) == ([], {"tied": 1})


def test_the_golden_groups_of_j1() -> None:
    prompts, _ = questions(WRITTEN, pair("Yes.", "No."))
    ab, ba = [1, 1, 0, 0], [1, 0, 1, 0]
    texts = [
        [right_text(p, bool(x)) for x in own] for p, own in zip(prompts, (ab, ba), strict=True)
    ]
    assert marks(marker(WRITTEN), prompts, texts) == [ab, ba]
    assert marks(marker(WRITTEN, True), prompts, texts) == [[1, 0, 0, 0], [1, 0, 0, 0]]


def test_a_judge_that_always_says_1_has_half_of_the_verdicts_and_no_group() -> None:
    pairs = [pair(f"Yes {n}.", f"No {n}.", n % 2, f"Why {n}?") for n in range(6)]
    prompts, _ = questions(WRITTEN, *pairs)
    texts = [["Verdict: 1"] * 2 for _ in prompts]
    alone = [m for own in marks(marker(WRITTEN), prompts, texts) for m in own]
    assert sum(alone) / len(alone) == 0.5
    assert not any(m for own in marks(marker(WRITTEN, True), prompts, texts) for m in own)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_turning_the_pair_round_changes_no_mark(rights: list[tuple[bool, bool]]) -> None:
    one, _ = questions(WRITTEN, pair("Yes.", "No.", 1.0))
    other, _ = questions(WRITTEN, pair("No.", "Yes.", 0.0))
    assert one == other
    texts = [[right_text(p, own[i]) for own in rights] for i, p in enumerate(one)]
    expected = [float(a and b) for a, b in rights]
    assert marks(marker(WRITTEN, True), one, texts) == [expected, expected]


@pytest.mark.parametrize("text", ["I like both.", "", "Verdict: tie", "Verdict: abstain"])
def test_what_is_no_right_verdict_is_wrong(text: str) -> None:
    prompts, _ = questions(WRITTEN, pair("Yes.", "No."))
    assert marks(marker(WRITTEN), prompts, [[text], [text]]) == [[0.0], [0.0]]


def test_an_answer_is_read_as_the_judge_reads_its_models() -> None:
    judge = judge_of(WRITTEN)
    given_pair = pair("Yes.", "No.").as_loaded()
    prompts, _ = questions(WRITTEN, given_pair)
    calls = {c.request.messages[-1]["content"]: c for c in judge.calls(
        given_pair.prompt, [given_pair.first, given_pair.second], 3)}  # type: ignore[union-attr]  # fmt: skip
    for prompt in prompts:
        call = calls[prompt.messages[-1]["content"]]
        quoted = f"[answer 1 {call.fence}]\nVerdict: 2\n[end {call.fence}]\nVerdict: 1"
        for text in ("Verdict: 1", quoted, "Verdict: 1. Wait, no.", "Answer 2 is better.", "12"):
            for end in ("stop", "length"):
                result = GenerateResult("", text, [], end, None)  # type: ignore[arg-type]
                (own,) = judge.read(call, result, "")
                read = read_written(judge, prompt, answer(text, prompt, end=end))
                assert (read.status, read.prob_first) == (own.status, own.prob_first), text
        # What it quotes of the judged text is not what it says.
        assert marks(marker(WRITTEN), [prompt], [[quoted]]) == [[float(prompt.reference == "1")]]


def test_a_verdict_in_json_is_read_in_json() -> None:
    spec = WRITTEN | {"structured": True}
    prompts, _ = questions(spec, pair("Yes.", "No."))
    texts = [[f'{{"reasons": "x", "verdict": "{p.reference}"}}', "{}"] for p in prompts]
    assert marks(marker(spec), prompts, texts) == [[1.0, 0.0], [1.0, 0.0]]


def test_the_thinking_in_an_answer_may_be_left_out() -> None:
    prompts, _ = questions(WRITTEN, pair("Yes.", "No."))
    texts = [[f"<think>Verdict: 1\nVerdict: 2\nHm</think>Verdict: {p.reference}"] for p in prompts]
    spec = {"kind": "verdict", "id": "mark", "of": "compare", "both_orders": True}
    kept, stripped = (judge_of(spec | {"reasoning": how}, WRITTEN) for how in ("keep", "strip"))
    assert marks(stripped, prompts, texts) == [[1.0], [1.0]]
    cut = [[f"{own[0]} I thought so."] for own in texts]
    assert marks(kept, prompts, cut) == [[0.0], [0.0]]
    assert marks(stripped, prompts, cut) == [[1.0], [1.0]]


def test_scores_of_a_pair_are_marked_together() -> None:
    prompts, _ = questions(RATING, pair("Yes.", "No."))
    assert sorted(p.reference or "" for p in prompts) == ["higher", "lower"]
    prompts = sorted(prompts, key=lambda p: p.reference or "")
    higher = ["Score: 7", "Score: 7", "no score", "Score: 4", "Score: 9"]
    lower = ["Score: 4", "Score: 7", "Score: 4", "Score: 7", "no score"]
    expected = [1.0, 0.0, 0.0, 0.0, 0.0]
    assert marks(marker(RATING), prompts, [higher, lower]) == [expected, expected]


def test_an_answer_in_two_pairs_is_asked_about_once() -> None:
    prompts, left_out = questions(RATING, pair("a", "b"), pair("a", "c"))
    assert len(prompts) == 2 and left_out == {"asked in another pair": 1}


def test_questions_about_principles_have_their_own_groups_and_scales() -> None:
    spec = {"kind": "rating", "id": "score", "by": "policy", "scale": [1, 10]}
    prompts, _ = questions(spec, pair("Yes.", "No."), rules=RULES)
    assert len({p.group for p in prompts}) == 2 and len(prompts) == 4
    about = {p.prompt_id: p.tags[-1] for p in prompts}
    # 9 is on one scale and not on the other.
    texts = [["Score: 9" if p.reference == "higher" else "Score: 1"] for p in prompts]
    found = marks(marker(spec, rules=RULES), prompts, texts)
    said = {(about[p.prompt_id], own[0]) for p, own in zip(prompts, found, strict=True)}
    assert said == {("principle:kind", 0.0), ("principle:brief", 1.0)}


def test_what_is_missing_is_not_wrong() -> None:
    prompts, _ = questions(WRITTEN, pair("Yes.", "No."))
    right = [right_text(p, True) for p in prompts]
    found = marks(marker(WRITTEN, True), prompts, [[right[0]] * 2, [right[1]]])
    assert found == [[1.0, None], [1.0]]
    alone = marker(WRITTEN, True).calls(prompts[0], [answer(right[0], prompts[0])], 0)
    assert marker(WRITTEN, True).read(alone[0], None, "")[0].status == "not_applicable"
    cases = [(prompts[1], [])]
    (call,) = calls_of(
        marker(WRITTEN, True), (prompts[0], [answer(right[0], prompts[0])]), cases, 0
    )
    (said,) = marker(WRITTEN, True).read(call, None, "")
    assert said.status == "failed" and "no answer of the same index" in (said.error or "")
    # Once it is there, it is another question.
    assert call.call_id != alone[0].call_id
    # A wrong one needs no other.
    wrong = right_text(prompts[0], False)
    assert marks(marker(WRITTEN, True), prompts, [[right[0], wrong], [right[1]]])[0] == [1.0, 0.0]
    plain = make_prompt([{"role": "user", "content": "Hello?"}])
    assert marks(marker(WRITTEN), [plain], [["Verdict: 1"]]) == [[None]]


def test_a_mark_needs_no_model_and_its_hash_covers_the_judge() -> None:
    one, other = marker(WRITTEN), marker(WRITTEN | {"tie_labels": ["draw"]})
    assert not roles_of(one) and one.judge_hash != other.judge_hash
    assert one.judge_hash != marker(WRITTEN, True).judge_hash


@pytest.mark.parametrize(
    ("of", "both", "said"),
    [
        ({"kind": "pairwise", "id": "x"}, False, "set `verdict: written`"),
        ({"kind": "pairwise", "id": "x", "cot": True}, False, "without `cot`"),
        ({"kind": "direct", "id": "x"}, False, "set `expected: false`"),
        ({"kind": "longer", "id": "x"}, False, "gives no single verdict that is written"),
        ({"kind": "additive", "id": "x"}, True, "`both_orders` has no effect"),
    ],
)
def test_a_judge_that_writes_no_verdict_is_refused(
    of: dict[str, Any], both: bool, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        marker(of, both)


def test_a_judge_that_is_not_there_is_refused() -> None:
    spec = {"kind": "verdict", "id": "mark", "of": "compere"}
    with pytest.raises(ConfigError, match=r"'compere' is no other judge here.*compare"):
        judge_of(spec, WRITTEN)
