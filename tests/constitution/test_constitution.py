"""Loading, merging, hashing, linting, showing and comparing constitutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from rlaif.constitution.lint import Finding, find_stale_principles, lint, list_changes
from rlaif.constitution.model import (
    Constitution,
    Principle,
    constitution_schema,
    load_constitution,
    load_with_places,
    principle_hash,
    reweight_principles,
    show_constitution,
    summarise_constitution,
)
from rlaif.core.errors import ConfigError
from rlaif.core.records import make_prompt
from rlaif.core.resources import shipped_root

SHIPPED = sorted((shipped_root() / "constitutions").glob("*.yaml"))
BASE = """\
name: base
version: "1"
principles:
  - id: brief
    text: Choose the response that is shorter.
    weight: 0.5
    check: {rule: word_limits, params: {min: 2, max: 9}}
    critique: Too long?
  - id: kind
    text: Choose the response that is kinder.
    scale: {1: rude, 2: plain, 3: kind}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def one(**fields: Any) -> Principle:
    return Principle.model_validate({"id": "p", "text": "The answer is short and clear."} | fields)


def several(*principles: dict[str, Any]) -> Constitution:
    return Constitution.model_validate({"name": "t", "principles": list(principles)})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_constitutions_load_lint_clean_and_round_trip(path: Path, tmp_path: Path) -> None:
    constitution, places = load_with_places(path)
    assert [f for f in lint(constitution, places) if f.level != "note"] == []
    again = load_constitution(write(tmp_path, "again.yaml", show_constitution(constitution)))
    assert again.principles == constitution.principles
    assert Constitution.model_validate(constitution.model_dump()) == constitution
    assert set(places) == {p.id for p in constitution.principles}
    jsonschema.validate(_as_json(yaml.safe_load(path.read_text("utf-8"))), constitution_schema())


def _as_json(value: Any) -> Any:
    """Mapping keys as JSON has them."""
    if isinstance(value, dict):
        return {str(k): _as_json(v) for k, v in value.items()}
    return [_as_json(v) for v in value] if isinstance(value, list) else value


def test_shipped_names_differ() -> None:
    assert len(SHIPPED) >= 5
    assert len({load_constitution(path).name for path in SHIPPED}) == len(SHIPPED)


def test_extends_overrides_field_by_field(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", BASE)
    child = """\
name: child
extends: base.yaml
principles:
  - {id: brief, weight: 2, critique: null}
  - {id: kind, remove: true}
  - {id: new, text: Choose the response that is newer.}
"""
    path = write(tmp_path, "child.yaml", child)
    constitution, places = load_with_places(path)
    brief, new = constitution.principles
    assert (brief.id, new.id) == ("brief", "new")
    assert brief.text == "Choose the response that is shorter."
    assert brief.weight == 2
    assert brief.critique is None
    assert brief.check is not None
    assert constitution.extends == ("base.yaml",)
    assert constitution.name == "child"
    assert (places["brief"].path, places["brief"].line) == (path, 4)


def test_a_file_reached_twice_is_merged_once(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", BASE)
    write(
        tmp_path,
        "left.yaml",
        "name: left\nextends: base.yaml\nprinciples: [{id: brief, weight: 3}]\n",
    )
    write(tmp_path, "right.yaml", "name: right\nextends: base.yaml\n")
    both = write(tmp_path, "both.yaml", "name: both\nextends: [left.yaml, right.yaml]\n")
    assert load_constitution(both).select(["brief"])[0].weight == 3


def test_of_several_parents_the_later_one_wins_and_names_are_the_files_own(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", BASE)
    for name, weight in (("left", 3), ("right", 4)):
        text = f"name: {name}\nextends: base.yaml\nprinciples: [{{id: kind, weight: {weight}}}]\n"
        write(tmp_path, f"{name}.yaml", text)
    head = "name: both\nversion: 7\ndescription: Ours.\nextends: [left.yaml, right.yaml]\n"
    both = load_constitution(write(tmp_path, "both.yaml", head))
    [kind] = both.select(["kind"])
    assert kind.weight == 4 and kind.scale == {1: "rude", 2: "plain", 3: "kind"}
    assert (both.name, both.version, both.description) == ("both", "7", "Ours.")
    assert both.extends == ("left.yaml", "right.yaml")


def test_a_circle_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path, "a.yaml", "name: a\nextends: b.yaml\n")
    b = write(tmp_path, "b.yaml", "name: b\nextends:\n  - a.yaml\n")
    with pytest.raises(ConfigError) as error:
        load_constitution(a)
    assert f"{b}:3: " in str(error.value)
    assert "a.yaml -> b.yaml -> a.yaml" in str(error.value)


PRINCIPLES = "name: x\nprinciples:\n"
FAULTS = [
    (PRINCIPLES + "  - id: a\n    txt: Choose.\n", 4, "did you mean 'text'"),
    (PRINCIPLES + "  - id: a\n    text: t\n  - id: a\n    text: u\n", 5, "already used on line 3"),
    (PRINCIPLES + "  - id: a\n    check: {rule: word_limit}\n", 4, "did you mean 'word_limits'"),
    (
        PRINCIPLES + "  - id: a\n    check: {rule: word_limits, params: {min: 3, mx: 4}}\n",
        4,
        "did you mean 'max'",
    ),
    (PRINCIPLES + "  - id: a\n    weight: 1\n", 3, "neither `text` nor `check`"),
    (PRINCIPLES + "  - id: a\n    text: t\n    weight: -1\n", 5, "greater than or equal to 0"),
    (PRINCIPLES + "  - id: A b\n    text: t\n", 3, "pattern"),
    (PRINCIPLES + "  - id: a\n    text: t\n    applies_when: {}\n", 5, "`tags`, `pattern` or both"),
    (
        PRINCIPLES + "  - id: a\n    text: t\n    applies_when: {pattern: '('}\n",
        5,
        "not a regular expression",
    ),
    (
        PRINCIPLES + "  - id: a\n    text: t\n    examples: [{prompt: p, better: b, worse: b}]\n",
        5,
        "the same text",
    ),
    (PRINCIPLES + "  - id: a\n    remove: true\n", 3, "no principle 'a' to remove"),
    (PRINCIPLES + "  - id: a\n    text: t\n    remove: true\n", 3, "stands alone"),
    (PRINCIPLES + "  - id: a\n    text: t\nversion: 1.10\n", 5, "in quotes"),
    ("name: x\nextends: nowhere.yaml\n", 2, "not found"),
    ("name: x\n", None, "no principles"),
    ("principles: [{id: a, text: t}]\n", 1, "'name' is missing"),
]


@pytest.mark.parametrize(("text", "line", "message"), FAULTS)
def test_faults_name_the_line(text: str, line: int | None, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", text)
    with pytest.raises(ConfigError) as error:
        load_constitution(path)
    place = f"{path}:{line}: " if line else f"{path}: "
    assert place in str(error.value)
    assert message in str(error.value)


def test_a_constitution_in_code_is_checked_too() -> None:
    with pytest.raises(ValidationError, match="given twice: a"):
        several({"id": "a", "text": "t"}, {"id": "a", "text": "u"})
    with pytest.raises(ValidationError, match="neither"):
        several({"id": "a"})
    with pytest.raises(ValidationError, match="at least one"):
        several()
    principle: Any = one()
    with pytest.raises(ValidationError, match="frozen"):
        principle.weight = 2.0


def test_hash_covers_what_can_change_a_judgement() -> None:
    plain = principle_hash(one())
    for same in ({"weight": 3}, {"critique": "c"}, {"revision": "r"}, {"id": "q"}):
        assert principle_hash(one(**same)) == plain
    different: list[dict[str, Any]] = [
        {"text": "The answer is long."},
        {"scale": {1: "bad", 2: "good"}},
        {"applies_when": {"tags": ["a"]}},
        {"applies_when": {"pattern": "a"}},
        {"check": {"rule": "finished_sentence"}},
        {"check": {"rule": "no_refusal"}},
        {"examples": [{"prompt": "p", "better": "b", "worse": "w"}]},
    ]
    hashes = {principle_hash(one(**fields)) for fields in different} | {plain}
    assert len(hashes) == len(different) + 1


def test_hash_of_a_check_fills_in_defaults_and_ignores_order() -> None:
    def hashed(**params: Any) -> str:
        return principle_hash(one(check={"rule": "no_repeated_ngrams", "params": params}))

    assert hashed() == hashed(n=3) == hashed(allow=0.0, n=3) != hashed(n=2)
    first = one(applies_when={"tags": ["a", "b"]})
    second = one(applies_when={"tags": ["b", "a"]})
    assert principle_hash(first) == principle_hash(second)


def test_hash_ignores_comments_and_descriptions(tmp_path: Path) -> None:
    plain = load_constitution(write(tmp_path, "a.yaml", BASE))
    noted = BASE.replace("name: base", "name: base  # note\ndescription: Something else.")
    other = load_constitution(write(tmp_path, "b.yaml", noted))
    assert [principle_hash(p) for p in plain.principles] == [
        principle_hash(p) for p in other.principles
    ]


def test_applies() -> None:
    eggs = make_prompt([{"role": "user", "content": "How do I boil EGGS?"}], tags=["howto", "food"])
    assert one().applies(eggs)
    assert one(applies_when={"tags": ["howto", "x"]}).applies(eggs)
    assert not one(applies_when={"tags": ["x"]}).applies(eggs)
    assert one(applies_when={"pattern": r"\beggs\b"}).applies(eggs)
    assert not one(applies_when={"tags": ["howto"], "pattern": "ham"}).applies(eggs)
    earlier = make_prompt(
        [
            {"role": "user", "content": "Eggs?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "And ham?"},
        ]
    )
    assert not one(applies_when={"pattern": "eggs"}).applies(earlier)


def test_select() -> None:
    constitution = several({"id": "a", "text": "t"}, {"id": "b", "text": "u"})
    assert [p.id for p in constitution.select(None)] == ["a", "b"]
    assert [p.id for p in constitution.select(["b", "a", "b"])] == ["b", "a"]
    named = several({"id": "brief", "text": "t"})
    with pytest.raises(ConfigError, match="did you mean 'brief'"):
        named.select(["breif"])


def messages(*principles: dict[str, Any], prompts: Any = ()) -> list[tuple[str, str | None, str]]:
    return [
        (finding.level, finding.principle, finding.message)
        for finding in lint(several(*principles), prompts=prompts)
    ]


GOOD = {"text": "Choose the response that is shorter.", "critique": "c", "revision": "r"}
DOUBTS = [
    ({"text": "Be nice."}, "warning", "under 5 words"),
    ({"text": "Kindness and goodness above everything, always."}, "warning", "neither compares"),
    ({"text": "", "check": {"rule": "no_refusal"}}, "note", "no text"),
    ({"critique": None}, "note", "no critique:"),
    ({"critique": None, "revision": None}, "note", "no critique and no revision"),
    ({"weight": 0}, "warning", "weight 0"),
    ({"scale": {1: "bad"}}, "warning", "at least 2 levels"),
    ({"scale": {1: "bad", 3: "good"}}, "warning", "gaps"),
    ({"scale": {1: "bad", 2: "Bad"}}, "warning", "same description"),
    ({"scale": {0: "bad", 1: "fair", 3: "good"}}, "warning", "gaps"),
    ({"applies_when": {"pattern": "a$b"}}, "warning", "can never match"),
    ({"applies_when": {"pattern": "a^b"}}, "warning", "can never match"),
    ({"applies_when": {"pattern": ".*"}}, "warning", "matches every prompt"),
]


@pytest.mark.parametrize(("fields", "level", "message"), DOUBTS)
def test_lint_doubts(fields: dict[str, Any], level: str, message: str) -> None:
    found = messages(
        {"id": "a"} | GOOD | fields, {"id": "b", "text": "Is the answer true and fair?"}
    )
    assert any(x[0] == level and x[1] == "a" and message in x[2] for x in found)


def test_lint_leaves_good_principles_alone() -> None:
    anchored = {"applies_when": {"pattern": r"^(how|why)\b.*\$[^$]\?$"}}
    assert messages({"id": "a"} | GOOD | anchored) == []
    assert messages({"id": "a"} | GOOD | {"text": "The answer names a source for its claim."}) == []
    assert messages({"id": "a"} | GOOD | {"text": "The answer is very short."}) == []
    assert messages({"id": "a"} | GOOD | {"scale": {2: "bad", 3: "fair", 4: "good"}}) == []
    # In lines, ^ stands behind the end of another one.
    lines = {"applies_when": {"pattern": r"(?m)a\n^b"}}
    assert messages({"id": "a"} | GOOD | lines) == []
    # A program judges it, so nothing has to be revised by it.
    checked = {"check": {"rule": "no_refusal"}, "critique": None}
    assert messages({"id": "a"} | GOOD | checked) == []


def test_lint_finds_texts_that_are_nearly_the_same() -> None:
    texts = [
        f"Choose the response that names one good source for {what}." for what in ("facts", "it")
    ]
    found = messages(*({"id": i} | GOOD | {"text": t} for i, t in zip("ab", texts, strict=True)))
    # Nine words of ten.
    assert [text for *_, text in found] == [
        "text is nearly the same as that of 'a', which counts it twice; merge them"
    ]
    texts[1] = "Choose the response that names one good source for us."
    texts[0] = "Choose the response that gives one good source for it."
    assert (
        messages(*({"id": i} | GOOD | {"text": t} for i, t in zip("ab", texts, strict=True))) == []
    )


def test_lint_finds_duplicates_and_unused_conditions(tmp_path: Path) -> None:
    twin = {"text": "Choose the response that is  SHORTER"}
    found = messages({"id": "a"} | GOOD, {"id": "b"} | GOOD | twin)
    assert found == [
        ("warning", "b", "text is the same as that of 'a', which counts it twice; merge them")
    ]
    eggs = make_prompt([{"role": "user", "content": "Eggs?"}], tags=["food"])
    condition = {"applies_when": {"tags": ["law"]}}
    assert "none of the 1 prompts" in messages({"id": "a"} | GOOD | condition, prompts=[eggs])[0][2]
    zero = messages({"id": "a"} | GOOD | {"weight": 0})
    assert zero[-1][:2] == ("error", None)


def test_lint_gives_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", PRINCIPLES + "  - id: a\n    text: Be nice.\n")
    constitution, places = load_with_places(path)
    warning = lint(constitution, places)[0]
    assert isinstance(warning, Finding)
    assert (warning.level, warning.line, warning.path) == ("warning", 3, path)


def test_diff() -> None:
    a = several({"id": "a", "text": "t"}, {"id": "b", "text": "u"})
    b = several({"id": "b", "text": "v", "weight": 2}, {"id": "c", "text": "w"})
    assert list_changes(a, a) == []
    assert [str(change) for change in list_changes(a, b)] == [
        "- a: removed",
        "+ c: added",
        "~ b.text: 'u' -> 'v' (judged again)",
        "~ b.weight: 1.0 -> 2.0",
    ]


def test_what_is_new_or_changed_has_to_be_judged() -> None:
    a = several({"id": "a", "text": "t"}, {"id": "b", "text": "u"}, {"id": "d", "text": "x"})
    b = several(
        {"id": "b", "text": "v"}, {"id": "c", "text": "w"}, {"id": "d", "text": "x", "weight": 2}
    )
    assert find_stale_principles(list_changes(a, b)) == {"b", "c"}


def test_a_principle_that_gets_or_loses_its_check_is_judged_again_by_its_words() -> None:
    words = several({"id": "a", "text": "t"})
    checked = several({"id": "a", "text": "u", "check": {"rule": "no_refusal"}})
    for before, after in ((words, checked), (checked, words)):
        found = {change.field: change.judged_again for change in list_changes(before, after)}
        assert found == {"text": True, "check": True}


def test_a_row_for_each_principle_says_its_share_and_who_judges_it() -> None:
    check = {"rule": "word_limits", "params": {"min": 1, "max": 9}}
    when = {"tags": ["x", "y"], "pattern": "a"}
    rows = summarise_constitution(
        several(
            {"id": "a", "text": "t", "critique": "c", "check": check},
            {"id": "b", "text": "u", "weight": 3, "critique": "c", "revision": "r"},
            {"id": "c", "weight": 0, "check": check, "applies_when": when},
        )
    )
    assert [tuple(row.values()) for row in rows] == [
        ("a", "1 (25%)", "word_limits(min=1, max=9) or a model", "always", "no", "t"),
        ("b", "3 (75%)", "a model", "always", "yes", "u"),
        ("c", "0 (0%)", "word_limits(min=1, max=9)", "tags x, y and /a/", "no", ""),
    ]


def test_words_beside_a_check_are_judged_again_only_where_a_model_is_asked() -> None:
    check = {"rule": "word_limits", "params": {"min": 1, "max": 9}}
    a, b = (several({"id": "a", "text": text, "check": check}) for text in ("t", "u"))
    assert [change.judged_again for change in list_changes(a, b)] == [False]
    assert [change.judged_again for change in list_changes(a, b, {"a"})] == [True]


def test_new_weights_leave_the_other_principles() -> None:
    given = several({"id": "a", "text": "t", "weight": 2}, {"id": "b", "text": "u", "weight": 3})
    made = reweight_principles(given, {"a": 0.5})
    assert {p.id: p.weight for p in made.principles} == {"a": 0.5, "b": 3}


def test_show_names_what_it_extends(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", BASE)
    child = write(tmp_path, "child.yaml", "name: child\nextends: base.yaml\n")
    text = show_constitution(load_constitution(child))
    assert text.startswith("# resolved; extends base.yaml\nname: child\n")
    assert "    1: rude\n" in text


def test_schema_knows_the_rules() -> None:
    schema = constitution_schema()

    def valid(check: dict[str, Any]) -> bool:
        row = {"name": "x", "principles": [{"id": "a", "check": check}]}
        return jsonschema.Draft202012Validator(schema).is_valid(row)

    assert valid({"rule": "word_limits", "params": {"min": 1, "max": 4}})
    assert valid({"rule": "no_refusal"})
    assert valid({"rule": "ours.rules:polite", "params": {"least": 2}})
    assert not valid({"rule": "word_limits"})
    assert not valid({"rule": "word_limits", "params": {"min": 1, "max": 4, "x": 1}})
    assert not valid({"rule": "nothing"})


CLASHES: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    (
        {"text": "Choose the longer of the two responses."},
        {},
        "says the opposite of 'a' (shorter against",
    ),
    ({"text": "Choose the response that is not shorter."}, {}, "one of them says not"),
    ({"text": "Choose the response that is never not shorter."}, {}, None),
    ({"text": "Choose the response that is kinder."}, {}, None),
    (
        {"check": {"rule": "word_limits", "params": {"min": 50, "max": 90}}},
        {"check": {"rule": "word_limits", "params": {"min": 1, "max": 9}}},
        "no answer can be within the limits",
    ),
    (
        {"check": {"rule": "forbidden_pattern", "params": {"pattern": "x"}}},
        {"check": {"rule": "required_pattern", "params": {"pattern": "x"}}},
        "forbids what that of 'a' requires",
    ),
    (
        {"check": {"rule": "sentence_limits", "params": {"min": 1, "max": 2}}},
        {"check": {"rule": "sentence_limits", "params": {"min": 3, "max": 9}}},
        "no answer can be within the limits",
    ),
    (
        {"check": {"rule": "word_limits", "params": {"min": 9, "max": 20}}},
        {"check": {"rule": "word_limits", "params": {"min": 1, "max": 9}}},
        None,
    ),
    ({"check": {"rule": "no_refusal"}}, {"check": {"rule": "no_refusal"}}, "check is the same"),
    (
        {"check": {"rule": "language", "params": {"code": "en"}}},
        {"check": {"rule": "language", "params": {"code": "de"}}},
        "no answer can be in the language",
    ),
    ({"check": {"rule": "no_boilerplate"}}, {"check": {"rule": "no_refusal"}}, None),
    (
        {"text": "Choose the longer of the two responses.", "applies_when": {"tags": ["x"]}},
        {},
        "says the opposite of 'a' (shorter against",
    ),
    (
        {"text": "Choose the longer of the two responses.", "applies_when": {"tags": ["x"]}},
        {"applies_when": {"tags": ["y"]}},
        None,
    ),
]


@pytest.mark.parametrize(("second", "first", "message"), CLASHES)
def test_lint_finds_contradictions(
    second: dict[str, Any], first: dict[str, Any], message: str | None
) -> None:
    shorter = {"id": "a", "text": "Choose the response that is shorter."}
    if "longer" in str(second):
        shorter["text"] = "Choose the shorter of the two responses."
    rows = {"critique": "c", "revision": "r"}
    texts = {"id": "b", "text": "Is the answer what a friend would say?"}
    found = messages(shorter | rows | first, texts | rows | second)
    if message is None:
        assert found == []
    else:
        assert [(level, name) for level, name, _ in found] == [("warning", "b")]
        assert message in found[0][2]


def test_lint_finds_ids_that_look_alike() -> None:
    found = messages(
        {"id": "no-lists"} | GOOD, {"id": "no_lists"} | GOOD | {"text": "Is it true and fair now?"}
    )
    assert [(name, "in - and _ alone" in text) for _, name, text in found] == [("no_lists", True)]


def test_lint_for_revising_needs_both_texts() -> None:
    found = lint(several({"id": "a"} | GOOD | {"revision": None}), revising=True)
    assert [(f.level, f.principle) for f in found] == [("error", "a")]
    assert lint(several({"id": "a"} | GOOD), revising=True) == []


def test_lint_finds_checks_that_never_count() -> None:
    def found(question: str) -> list[str]:
        asked = make_prompt([{"role": "user", "content": question}])
        rule = {"id": "a"} | GOOD | {"check": {"rule": "answers_terms"}}
        return [text for _, _, text in messages(rule, prompts=[asked])]

    [doubt] = found("And?")
    assert doubt.startswith("check answers_terms gives nothing on any of the 1 prompts")
    assert found("How do I boil an egg?") == []


def test_a_check_counts_on_prompts_that_its_principle_is_for() -> None:
    texts = {"And?": ["short"], "How do I boil an egg?": ["long"]}
    asked = [make_prompt([{"role": "user", "content": q}], tags=tags) for q, tags in texts.items()]
    rule = {"id": "a"} | GOOD | {"check": {"rule": "answers_terms"}}
    [doubt] = messages(rule | {"applies_when": {"tags": ["short"]}}, prompts=asked)
    assert doubt[2].startswith("check answers_terms gives nothing on any of the 1 prompts")
    assert messages(rule | {"applies_when": {"tags": ["long"]}}, prompts=asked) == []
    # It is enough that it counts on some.
    assert messages(rule, prompts=asked) == []
