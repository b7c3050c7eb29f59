"""What a judge's spec says reaches its questions and its verdicts: every key at a value of its own,
several principles, texts and samples, and outcomes computed by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rlaif.judges.base import Answered, ending_request
from rlaif.judges.questions import sampling_seed
from rlaif.judges.templates import fence_mark
from tests.support.wiring import (
    ONE,
    PROMPT,
    SEED,
    THREE,
    TWO,
    asked,
    completion,
    enums,
    judge_of,
    labels,
    said,
    template,
)


def test_a_written_comparison_is_asked_as_its_spec_says(tmp_path: Path) -> None:
    path = template(
        tmp_path,
        "{{ principle_id }}|{{ principle }}|{{ principles | join('+') }}|{{ preamble }}",
        "{{ tie }}|{{ abstain }}|{{ structured }}|{{ explain }}|{{ reason }}|{{ reference }}",
        "{% for e in examples %}{{ e.better }}>{{ e.worse }};{% endfor %}",
        "{{ prompt }}|{{ conversation | length }}|{{ response_1 }}|{{ response_2 }}|{{ fence }}",
    )
    judge = judge_of(
        tmp_path,
        kind="pairwise",
        verdict="written",
        order="fixed",
        template=path,
        principles=["south", "north", "west"],
        samples=2,
        temperature=0.4,
        max_new_tokens=77,
        preamble="detailed",
        shots=2,
        structured=True,
        first_labels=["L", "left"],
        second_labels=["R"],
        tie_labels=[" draw", "even"],
        abstain_labels=[" pass", "skip"],
    )
    calls = judge.calls(PROMPT, [TWO, ONE], SEED)
    about = [(c.principle, c.sample_index, c.request is not None) for c in calls]
    assert about == [
        ("south", 0, True),
        ("south", 1, True),
        ("north", 0, True),
        ("north", 1, True),
        ("west", 0, False),
    ]
    mark = fence_mark(
        SEED,
        "User: Hello.\n\nAssistant: Hi.\n\nUser: Where is it mild?",
        "In Lisbon.",
        "Oslo",
        "Rome",
    )
    common = "draw|pass|True|True|False|In Lisbon."
    texts = f"Where is it mild?|53|Oslo|Rome|{mark}"
    assert asked(calls[0]) == f"south|Be warm.|Be warm.+Be cool.|detailed\n{common}\n{texts}"
    assert asked(calls[3]) == (
        f"north|Be cool.|Be warm.+Be cool.|detailed\n{common}\nb1>w1;b2>w2;{texts}"
    )
    for call in calls[:4]:
        sampling = call.request.sampling
        assert (sampling.temperature, sampling.max_new_tokens) == (0.4, 77)
        assert sampling.seed == sampling_seed(SEED, call.call_id)
        assert call.fence == mark and call.template_hash == judge.asking.template.hash
        assert enums(call.request.json_schema) == {
            "reasons": None,
            "verdict": ["L", "R", "draw", "pass"],
        }
    answers = {"left": 1.0, "R": 0.0, "even": 0.5, "skip": None}
    for call, (word, prob) in zip(calls[:4], answers.items(), strict=True):
        (read,) = judge.read(call, said(call, f'{{"reasons": "x", "verdict": "{word}"}}'), "m")
        assert (read.status == "abstain") == (prob is None)
        assert (read.prob_first, read.principle, read.sample_index) == (
            prob,
            call.principle,
            call.sample_index,
        )
    assert judge.read(calls[4], None, "m")[0].status == "not_applicable"


def test_a_comparison_by_labels_after_reasons_is_asked_and_read_as_its_spec_says() -> None:
    judge = judge_of(
        rules=None,
        kind="pairwise",
        cot=True,
        order="fixed",
        samples=2,
        temperature=0.4,
        max_new_tokens=33,
        first_labels=["L"],
        second_labels=["R"],
        tie_labels=["T"],
        abstain_labels=["?"],
        min_label_mass=0.2,
        clamp=[0.3, 0.7],
    )
    calls = judge.calls(PROMPT, [ONE, TWO], SEED)
    assert [call.sample_index for call in calls] == [0, 1]
    forms = {"first": ("L",), "second": ("R",), "tie": ("T",), "abstain": ("?",)}
    for call in calls:
        sampling = call.request.sampling
        assert (sampling.temperature, sampling.max_new_tokens) == (0.4, 33)
        assert sampling.seed == sampling_seed(SEED, call.call_id)
        end = ending_request(call, said(call, "It is <|im_end|> warm."))
        assert end is not None and end.labels == forms and end.request_id == call.call_id
        assert [m["content"] for m in end.messages[-2:]] == [
            "It is < |im_end|> warm.",
            call.then.turn,
        ]
        assert end.prefill == call.then.prefill
    call = calls[0]
    for first, second, kept in ((0.6, 0.2, 0.7), (0.3, 0.2, 0.6), (0.1, 0.3, 0.3)):
        (read,) = judge.read(call, labels(call, {"first": first, "second": second}), "m")
        share = first / (first + second)
        assert read.prob_first == pytest.approx(kept)
        assert read.distribution == pytest.approx({"first": share, "second": 1 - share})
        assert read.label_mass == pytest.approx(first + second)
    (read,) = judge.read(call, labels(call, {"first": 0.1, "second": 0.05}), "m")
    assert read.status == "abstain"


def test_a_principle_is_drawn_by_the_seed_among_those_that_apply() -> None:
    judge = judge_of(kind="constitutional", principles=["west", "south"])
    pairs = [[ONE, completion(f"text {n}", n)] for n in range(1, 30)]
    drawn = {c.principle for pair in pairs for c in judge.calls(PROMPT, pair, SEED)}
    assert drawn == {"south"}
    both = judge_of(kind="constitutional", principles=["north", "south"], order="fixed")
    once, again, other = (
        [judge.calls(PROMPT, pair, seed)[0].principle for pair in pairs]
        for judge, seed in ((both, SEED), (both, SEED), (both, SEED + 1))
    )
    assert once == again != other and set(once) == {"north", "south"}


def test_a_pairs_random_order_is_drawn_for_each_principle() -> None:
    judge = judge_of(kind="pairwise", order="random", principles=["north", "south"])
    pairs = [[ONE, completion(f"text {n}", n)] for n in range(1, 30)]
    calls = [judge.calls(PROMPT, pair, SEED) for pair in pairs]
    first = [[c.shown[0] is ONE for c in row] for row in calls]
    assert {tuple(row) for row in first} == {(a, b) for a in (0, 1) for b in (0, 1)}


def test_a_rating_is_asked_and_read_on_the_scale_of_its_principle(tmp_path: Path) -> None:
    path = template(
        tmp_path,
        "{{ principle_id }} {{ low }}-{{ high }}{% for n, words in scale %} {{ n }}:{{ words }}"
        "{% endfor %} of",
        "{{ principles | join('+') }}|{{ principle }}|{{ response }}",
    )
    keys: dict[str, Any] = {"scale": [2, 6], "principles": ["south", "north"], "template": path}
    judge = judge_of(
        tmp_path,
        kind="rating",
        structured=True,
        samples=2,
        temperature=0.6,
        max_new_tokens=21,
        abstain_labels=["none"],
        **keys,
    )
    south, _, north, last = judge.calls(PROMPT, [ONE], SEED)
    assert asked(south) == "south 2-6 of\nBe warm.+Be cool.|Be warm.|Oslo"
    assert asked(north) == "north 0-3 0:hot 1:warm 3:cold of\nBe warm.+Be cool.|Be cool.|Oslo"
    assert enums(south.request.json_schema)["score"] == ["2", "3", "4", "5", "6", "none"]
    assert enums(north.request.json_schema)["score"] == ["0", "1", "2", "3", "none"]
    assert (last.sample_index, last.principle) == (1, "north")
    assert (last.request.sampling.temperature, last.request.sampling.max_new_tokens) == (0.6, 21)
    for call, score in ((south, 0.25), (north, 1.0)):
        (read,) = judge.read(call, said(call, '{"reasons": "", "score": 3}'), "m")
        assert read.score == pytest.approx(score)
    (read,) = judge.read(south, said(south, '{"reasons": "", "score": "none"}'), "m")
    assert read.status == "abstain"


def test_expected_levels_are_those_of_the_principle(tmp_path: Path) -> None:
    path = template(
        tmp_path,
        "---user---",
        "{{ principle }} {{ response }}{% for label, level in levels %} {{ label }}={{ level }}"
        "{% endfor %}",
        "---prefill---",
        "Grade of {{ principle_id }}:",
    )
    judge = judge_of(
        tmp_path,
        kind="rating",
        expected=True,
        scale=[8, 10],
        principles=["south", "north"],
        template=path,
        min_label_mass=0.35,
        abstain_labels=["?"],
    )
    south, north = judge.calls(PROMPT, [TWO], SEED)
    assert asked(south) == "Be warm. Rome A=8 B=9 C=10"
    assert asked(north) == "Be cool. Rome 0=0 1=1 2=2 3=3"
    assert north.request.prefill == "Grade of north:"
    assert list(south.request.labels) == ["A", "B", "C", "abstain"]
    assert north.request.labels["abstain"] == ("?",)
    (read,) = judge.read(south, labels(south, {"A": 0.1, "C": 0.3}), "m")
    assert read.score == pytest.approx(0.75)
    assert read.distribution == pytest.approx({"8": 0.25, "9": 0.0, "10": 0.75})
    (read,) = judge.read(north, labels(north, {"0": 0.3, "1": 0.1}), "m")
    assert read.score == pytest.approx(0.25 / 3)
    (read,) = judge.read(north, labels(north, {"0": 0.2, "1": 0.1}), "m")
    assert (read.status, read.label_mass) == ("abstain", pytest.approx(0.3))


def test_a_template_judge_reads_the_field_on_its_scale_and_says_who_is_listed(
    tmp_path: Path,
) -> None:
    path = template(
        tmp_path,
        "{{ principle_id }}: {{ principle }} of {{ principles | join('+') }}",
        "{{ low }}-{{ high }} {{ abstain }} {{ response }}",
    )
    schema = {"type": "object", "required": ["grade"]}
    judge = judge_of(
        tmp_path,
        kind="template",
        template=path,
        per_principle=True,
        principles=["south", "north"],
        scale=[2, 10],
        samples=2,
        temperature=0.8,
        max_new_tokens=15,
        abstain_labels=["pass"],
        parse={"json_schema": schema, "field": "grade"},
    )
    calls = judge.calls(PROMPT, [THREE], SEED)
    assert [(c.principle, c.sample_index) for c in calls] == [
        ("south", 0),
        ("south", 1),
        ("north", 0),
        ("north", 1),
    ]
    assert asked(calls[2]) == "north: Be cool. of Be warm.+Be cool.\n2-10 pass Bonn"
    sampling = calls[1].request.sampling
    assert (sampling.temperature, sampling.max_new_tokens) == (0.8, 15)
    assert calls[1].request.json_schema == schema
    for text, status, score in (
        ('{"grade": 4, "score": 9}', "ok", 0.25),
        ('{"grade": "pass"}', "abstain", None),
        ('{"grade": 1}', "unparsed", None),
    ):
        (read,) = judge.read(calls[3], said(calls[3], text), "m")
        assert (read.status, read.score) == (status, score)


def test_propositions_are_asked_as_the_spec_says_and_weigh_what_the_file_says(
    tmp_path: Path,
) -> None:
    (tmp_path / "w.yaml").write_text("weights: {north: 2, south: -1, west: 7}", "utf-8")
    path = template(tmp_path, "{{ principle_id }} {{ principle }} {{ response }}")
    judge = judge_of(
        tmp_path,
        kind="rbr",
        weights="w.yaml",
        principles=["south", "north"],
        template=path,
        yes_labels=["J"],
        no_labels=["N", " N"],
        abstain_labels=["?"],
        min_label_mass=0.4,
    )
    calls = judge.calls(PROMPT, [TWO, ONE], SEED)
    assert [asked(call) for call in calls] == [
        "south Be warm. Oslo",
        "north Be cool. Oslo",
        "south Be warm. Rome",
        "north Be cool. Rome",
    ]
    assert calls[0].request.labels == {"yes": ("J",), "no": ("N", " N"), "abstain": ("?",)}
    given = {("k0", "south"): 0.2, ("k0", "north"): 0.6, ("k1", "south"): 0.5, ("k1", "north"): 0.1}
    answers = {}
    for call in calls:
        yes = given[call.shown[0].completion_id, call.principle]
        answers[call.call_id] = Answered(labels(call, {"yes": yes, "no": 0.8 - yes}), "m")
    one, two = judge.conclude(calls, answers)
    # Shares of 0.8: Oslo 0.25 and 0.75, Rome 0.625 and 0.125.
    assert (one.subject, one.raw_value) == ("k0", pytest.approx(2 * 0.75 - 0.25))
    assert (two.subject, two.raw_value) == ("k1", pytest.approx(2 * 0.125 - 0.625))
    assert one.score == pytest.approx(1 / (1 + math.exp(-1.25)))
    assert one.distribution == pytest.approx({"south": 0.25, "north": 0.75, "reward": 1.25})
    assert one.rests_on == [c.call_id for c in calls[:2]]
    unsure = answers | {calls[0].call_id: Answered(labels(calls[0], {"yes": 0.2, "no": 0.1}), "m")}
    assert judge.conclude(calls, unsure)[0].status == "abstain"


CLASSES = [{"id": f"c{n}", "text": f"Class {n}."} for n in (1, 2, 3)]
TABLES = [
    {"tags": ["north"], "rewards": {"c1": 1, "c2": 1, "c3": 1}},
    {"tags": ["east", "south"], "rewards": {"c3": 1.0, "c1": 0.3, "c2": 0.0}},
    {"rewards": {"c1": 0, "c2": 0.5, "c3": 0}},
]


@pytest.mark.parametrize(("soft", "score", "other"), [(True, 0.55, 0.06), (False, 1.0, 0.0)])
def test_a_class_is_named_by_its_letter_and_paid_by_the_prompts_table(
    tmp_path: Path, soft: bool, score: float, other: float
) -> None:
    path = template(
        tmp_path,
        "---user---",
        "{{ response }}{% for letter, words in classes %} {{ letter }}={{ words }}{% endfor %}",
        "---then---",
        "Which class?",
    )
    judge = judge_of(
        tmp_path,
        kind="rbrm",
        classes=CLASSES,
        tables=TABLES,
        soft=soft,
        template=path,
        cot=True,
        samples=2,
        temperature=0.3,
        max_new_tokens=11,
        abstain_labels=["?"],
    )
    calls = judge.calls(PROMPT, [ONE, TWO], SEED)
    assert [(c.shown[0], c.sample_index) for c in calls] == [
        (t, n) for t in (ONE, TWO) for n in (0, 1)
    ]
    assert asked(calls[2]) == "Rome A=Class 1. B=Class 2. C=Class 3."
    assert calls[2].then.labels["B"] == ("B", " B") and calls[2].then.labels["abstain"] == ("?",)
    sampling = calls[1].request.sampling
    assert (sampling.temperature, sampling.max_new_tokens) == (0.3, 11)
    (read,) = judge.read(calls[1], labels(calls[1], {"A": 0.1, "B": 0.2, "C": 0.3}), "m")
    assert read.score == pytest.approx(score) and read.sample_index == 1
    assert read.distribution == pytest.approx({"c1": 1 / 6, "c2": 1 / 3, "c3": 1 / 2})
    (read,) = judge.read(calls[1], labels(calls[1], {"A": 0.2, "B": 0.8}), "m")
    assert read.score == pytest.approx(other)


def test_a_checklist_weighs_each_item_by_its_own_weight_or_its_categorys(tmp_path: Path) -> None:
    path = template(tmp_path, "{{ item }} {{ response }} {{ abstain }}")
    items = [
        {"text": "mild"},
        {"text": "far", "category": "optional"},
        {
            "text": "short",
            "category": "pitfall",
            "check": "word_limits",
            "params": {"min": 1, "max": 2},
        },
        {"text": "big", "category": "important", "weight": 6},
    ]
    judge = judge_of(
        tmp_path,
        kind="rubric",
        items=items,
        template=path,
        category_weights={"essential": 1, "important": 2, "optional": 3, "pitfall": 4},
        yes_labels=["J"],
        no_labels=["N"],
        abstain_labels=["?"],
        min_label_mass=0.5,
    )
    long = completion("A town of many people", 1)
    calls = judge.calls(PROMPT, [ONE, long], SEED)
    assert [c.principle for c in calls] == ["mild", "far", "short", "big"] * 2
    assert asked(calls[1]) == "far Oslo ?" and calls[2].request is None
    assert calls[0].request.labels == {"yes": ("J",), "no": ("N",), "abstain": ("?",)}
    yes = {"mild": 0.9, "far": 0.2, "big": 0.5}
    answers = {
        c.call_id: Answered(labels(c, {"yes": yes[c.principle], "no": 1 - yes[c.principle]}), "m")
        for c in calls
        if c.request is not None
    }
    one, two = judge.conclude(calls, answers)
    assert one.score == pytest.approx((0.9 + 3 * 0.2 + 4 * 1 + 6 * 0.5) / 14)
    assert two.score == pytest.approx((0.9 + 3 * 0.2 + 4 * 0 + 6 * 0.5) / 14)
    assert one.distribution == pytest.approx({**yes, "short": 1.0})
    assert two.rests_on == [c.call_id for c in calls[4:] if c.request is not None]
    silent = answers | {calls[0].call_id: Answered(labels(calls[0], {"yes": 0.4}), "m")}
    assert [j.status for j in judge.conclude(calls, silent)] == ["abstain", "ok"]


def test_a_checklist_is_written_as_the_spec_says_and_no_longer_than_it_says(
    tmp_path: Path,
) -> None:
    (tmp_path / "write.j2").write_text("{{ most }} {{ structured }} {{ conversation }}", "utf-8")
    path = template(tmp_path, "{{ items | join(' ') }} {{ response }} {{ low }}-{{ high }}")
    judge = judge_of(
        tmp_path,
        kind="rubric",
        generate={"most": 2, "max_new_tokens": 55, "template": "write.j2", "structured": True},
        aggregate="implicit",
        template=path,
        category_weights={"essential": 1, "important": 2, "optional": 3, "pitfall": 4},
    )
    (first,) = judge.calls(PROMPT, [TWO, ONE], SEED)
    assert asked(first).startswith("2 True User: Hello.") and first.shown == (ONE, TWO)
    sampling = first.request.sampling
    assert (sampling.temperature, sampling.max_new_tokens) == (0.0, 55)
    assert sampling.seed == sampling_seed(SEED, first.call_id)
    assert judge.most_calls([first]) == 3
    rows = '{"items": [{"kind": "pitfall", "text": "wet"}, {"kind": "good", "text": "dry"},'
    wrote = Answered(said(first, rows + ' {"kind": "optional", "text": "cut off"}]}'), "writer")
    more = judge.follow([first], {first.call_id: wrote}, SEED)
    assert [asked(c) for c in more] == [
        "('wet', 4.0) ('dry', 2.0) Oslo 1-10",
        "('wet', 4.0) ('dry', 2.0) Rome 1-10",
    ]
    answers = {first.call_id: wrote}
    for call, letter in zip(more, "JA", strict=True):
        answers[call.call_id] = Answered(labels(call, {letter: 0.6, "B": 0.2}), "reader")
    one, two = judge.conclude([first, *more], answers)
    # Levels 1 to 10 are A to J: (3 * 10 + 2) / 4 and (3 * 1 + 2) / 4.
    assert one.score == pytest.approx((8 - 1) / 9) and two.score == pytest.approx((1.25 - 1) / 9)
    assert two.rests_on == [first.call_id, more[1].call_id]
    assert (two.annotator_id, two.distribution) == ("reader", {"label_mass": pytest.approx(0.8)})


def test_texts_are_rated_together_as_the_spec_says(tmp_path: Path) -> None:
    path = template(
        tmp_path,
        "{{ aspect }} {{ count }} {{ low }}-{{ high }} {{ responses | join('+') }} {{ abstain }}",
    )
    judge = judge_of(
        tmp_path,
        rules=None,
        kind="ultrafeedback",
        aspects=["helpfulness", "honesty"],
        order="fixed",
        samples=2,
        temperature=0.2,
        max_new_tokens=88,
        structured=True,
        template=path,
        abstain_labels=["pass"],
    )
    calls = judge.calls(PROMPT, [THREE, ONE, TWO], SEED)
    assert [(c.principle, c.sample_index) for c in calls] == [
        ("helpfulness", 0),
        ("helpfulness", 1),
        ("honesty", 0),
        ("honesty", 1),
    ]
    assert asked(calls[0]) == "helpfulness 3 1-5 Oslo+Rome+Bonn pass"
    sampling = calls[1].request.sampling
    assert (sampling.temperature, sampling.max_new_tokens) == (0.2, 88)
    for call, last in ((calls[1], ["5", "pass"]), (calls[2], ["pass", "N/A"])):
        texts = call.request.json_schema["properties"]
        assert list(texts) == ["text_1", "text_2", "text_3"]
        assert enums(texts["text_3"])["rating"][-2:] == last
    answer = '{"text_1": {"rating": "2"}, "text_2": {"rating": "pass"}, "text_3": {"rating": "5"}}'
    read = judge.read(calls[3], said(calls[3], answer), "m")
    assert [(j.subject, j.status, j.score) for j in read] == [
        ("k0", "ok", 0.25),
        ("k1", "abstain", None),
        ("k2", "ok", 1.0),
    ]
    assert {(j.principle, j.sample_index) for j in read} == {("honesty", 1)}
    assert [j.distribution for j in read] == [{"place": n, "texts": 3.0} for n in (1.0, 2.0, 3.0)]
