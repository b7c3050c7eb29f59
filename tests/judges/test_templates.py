"""Templates: what is refused at loading, what enters the hash, and that data stays data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlaif.core.errors import ConfigError
from rlaif.core.resources import shipped_root
from rlaif.engines.base import GenerateResult
from rlaif.judges.forms import Form
from rlaif.judges.template import TemplateJudge
from rlaif.judges.templates import (
    CLASSES,
    ITEM,
    ITEMS,
    JOINT,
    PAIRWISE,
    SUGGESTING,
    WRITING,
    Template,
    conversation_text,
    fence_mark,
    inert,
    load_template,
)
from tests.support.kinds import GOOD, PROMPT, judge_of

SHIPPED = sorted((shipped_root() / "prompts" / "judges").glob("*.j2"))


def load(tmp_path: Path, text: str, required: frozenset[str] = frozenset()) -> Template:
    path = tmp_path / "judge.j2"
    path.write_text(text, encoding="utf-8")
    return load_template(str(path), required=required)


def test_an_unknown_variable_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "One\nTwo {{ respons }}\n")
    message = str(caught.value)
    assert "judge.j2:2: unknown variable 'respons'; did you mean 'response'?" in message
    assert "conversation" in message and "fence" in message


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\n{{ response", 2), ("{% if response %}\nx", 2), ("a\nb\n{{ response | nofilter }}", 3)],
)
def test_a_syntax_error_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.line == line


def test_other_files_may_not_be_drawn_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"judge\.j2:1: .*include"):
        load(tmp_path, "{% include 'secret.txt' %}")


def test_a_template_that_ignores_what_it_judges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must use \{\{ response \}\}"):
        load(tmp_path, "{{ prompt }}", required=frozenset({"response"}))


def test_a_missing_template_names_the_places_tried() -> None:
    with pytest.raises(ConfigError, match="looked in"):
        load_template("prompts/judges/absent.j2")


def test_comments_and_white_space_at_line_ends_change_nothing(tmp_path: Path) -> None:
    plain = load(tmp_path, "Rate:\n{{ response }}\nNow.\n")
    noted = load(tmp_path, "{# why\n so #}\nRate:  \n{{ response }}\n{# b #}\nNow.{# c #}\n\n")
    assert noted.hash == plain.hash
    assert noted.messages({"response": "x"}) == plain.messages({"response": "x"})
    assert plain.messages({"response": "x"}) == [{"role": "user", "content": "Rate:\nx\nNow."}]


def test_words_change_the_hash(tmp_path: Path) -> None:
    assert load(tmp_path, "Rate {{ response }}").hash != load(tmp_path, "Mark {{ response }}").hash


def test_a_comment_may_show_section_marks(tmp_path: Path) -> None:
    template = load(tmp_path, "{#\n---user---\n#}\n---system---\nS\n---user---\n{{ response }}\n")
    assert template.messages({"response": "x"}) == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "x"},
    ]


def test_sections_and_prefill(tmp_path: Path) -> None:
    template = load(tmp_path, '---user---\n{{ response }}\n---prefill---\nScore:{{ " " }}\n')
    assert template.has_prefill
    assert template.prefill({"response": "x"}) == "Score: "
    assert [m["role"] for m in template.messages({"response": "x"})] == ["user"]


@pytest.mark.parametrize(
    "text",
    [
        "before\n---user---\n{{ response }}",
        "---system---\n{{ response }}",
        "---user---\n{{ response }}\n---user---\nx",
        "---user---\n{{ response }}\n---system---\nx",
        "---system---\n{% if low %}\n---user---\n{{ response }}\n{% endif %}",
    ],
)
def test_bad_sections_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, text)


def test_a_template_declares_the_form_of_its_verdict(tmp_path: Path) -> None:
    template = load(
        tmp_path, "---user---\nJudge: {{ response }}\n---form---\n<score>VALUE</score>\n"
    )
    assert template.form == Form(("<score>",), "</score>")
    assert template.messages({"response": "x"}) == [{"role": "user", "content": "Judge: x"}]
    assert load(tmp_path, "{{ response }}").form is None


@pytest.mark.parametrize("form", ["", "Score:", "VALUE", "Score: VALUE of VALUE", "Score:\nVALUE"])
def test_a_form_without_a_place_for_the_verdict_is_refused(tmp_path: Path, form: str) -> None:
    with pytest.raises(ConfigError, match=r"section form: .*VALUE") as caught:
        load(tmp_path, f"---user---\n{{{{ response }}}}\n---form---\n{form}")
    assert caught.value.line == 3


@pytest.mark.parametrize(
    ("form", "text", "score"),
    [
        ("<score>VALUE</score>", "It is fine.\n<score>4</score>", 0.75),
        ("<score>VALUE</score>", "Score: 2\nIt is <score>4</score>, as I said.", 0.75),
        ("<score>VALUE</score>", "<score>4", None),
        ("\\boxed{VALUE}", "So \\boxed{4}.", 0.75),
        ("Mark: VALUE", "Mark: 4\nScore: 1", 0.75),
        ("Mark: VALUE", "Score: 1", 0.0),
        ("Mark: VALUE", "<score>4</score>", None),
    ],
)
def test_a_judge_reads_the_form_that_its_template_declares(
    tmp_path: Path, form: str, text: str, score: float | None
) -> None:
    path = tmp_path / "own.j2"
    path.write_text(f"---user---\n{{{{ principle }}}} {{{{ response }}}}\n---form---\n{form}\n")
    judge: Any = judge_of({"kind": "rating", "template": str(path)})
    call = judge.calls(PROMPT, [GOOD], 3)[0]
    (read,) = judge.read(call, GenerateResult(call.call_id, text, [], "stop", 1), "m")
    assert read.score == score


def test_model_text_is_never_rendered(tmp_path: Path) -> None:
    template = load(tmp_path, "{{ response }}")
    text = "{{ 7 * 7 }} {% if x %} {# c #} ---system--- & <b>"
    assert template.messages({"response": text})[0]["content"] == text


def test_the_sandbox_holds(tmp_path: Path) -> None:
    template = load(tmp_path, "{{ response.__class__.__mro__ }}")
    with pytest.raises(ConfigError, match="cannot be rendered"):
        template.messages({"response": "x"})


def test_nothing_random_is_offered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, "{{ lipsum() }} {{ response }}")
    with pytest.raises(ConfigError):
        load(tmp_path, "{{ response | random }}")


@pytest.mark.parametrize(
    "token", ["<|im_end|>", "<|im_start|>", "</s>", "[INST]", "<end_of_turn>", "<|eot_id|>"]
)
def test_control_tokens_are_broken(token: str) -> None:
    assert token not in inert(f"a{token}b")


@given(st.text(alphabet="abc <>|/s[]=\n", max_size=40))
def test_inert_is_idempotent(text: str) -> None:
    assert inert(inert(text)) == inert(text)


def test_ordinary_text_is_left_alone() -> None:
    text = "if a <b> c || d[INSTALL] <s2>"
    assert inert(text) == text


@given(st.integers(), st.lists(st.text(), max_size=3))
def test_a_fence_is_in_no_text_and_ignores_order(seed: int, texts: list[str]) -> None:
    mark = fence_mark(seed, *texts)
    assert len(mark) == 8
    assert not any(mark in text for text in texts)
    assert mark == fence_mark(seed, *reversed(texts))


def test_a_fence_cannot_be_copied_into_the_text() -> None:
    mark = fence_mark(1, "text")
    assert fence_mark(1, f"text [end {mark}]") != mark
    assert fence_mark(2, "text") != mark


def test_conversation_text() -> None:
    one = [{"role": "user", "content": "Hi"}]
    assert conversation_text(one) == "Hi"  # type: ignore[arg-type]
    two = [*one, {"role": "assistant", "content": "Yes?"}]
    assert conversation_text(two) == "User: Hi\n\nAssistant: Yes?"  # type: ignore[arg-type]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_templates_fence_every_judged_text(path: Path) -> None:
    known = PAIRWISE | JOINT | CLASSES | ITEM | ITEMS | WRITING | SUGGESTING
    template = load_template(str(path), known)
    texts = {"response": "JUDGED", "response_1": "JUDGED ONE,", "response_2": "JUDGED TWO,"}
    texts["state"] = "SEEN NOW"
    values: dict[str, Any] = dict.fromkeys(template.variables)
    values |= texts | {"responses": ["FIRST OF ALL", "LAST OF ALL"], "count": 2, "most": 8}
    values |= {"fence": "f00d", "conversation": "ASKED", "prompt": "ASKED", "principle": "P"}
    values |= {"principles": ["P"], "scale": [(1, "bad"), (5, "good")], "low": 1, "high": 5}
    values |= {"levels": [("1", 1), ("5", 5)], "classes": [("A", "a")], "items": [("i", 1.0)]}
    values |= {"item": "i", "examples": [], "aspect": "honesty"}
    shown = [texts[name] for name in template.variables if name in texts]
    shown += values["responses"] if "responses" in template.variables else []
    for explain, reason in ((True, False), (False, False), (False, True)):
        content = template.messages(values | {"explain": explain, "reason": reason})[-1]["content"]
        for text in [*shown, "ASKED"]:
            before, after = content.split(text)
            assert before.rstrip().endswith("f00d]")
            assert after.lstrip().startswith("[end f00d]")
        assert "\n\n\n" not in content
        assert "obey" in content or path.stem == "yes_no_short"


def test_the_yaml_in_the_example_is_a_valid_judge() -> None:
    source = (shipped_root() / "prompts" / "judges" / "template_example.j2").read_text()
    start, end = source.index("   - judge:"), source.index("   What the one group")
    (entry,) = yaml.safe_load(source[start:end])
    spec = TemplateJudge.model_validate(entry["judge"])
    assert spec.parse.values == {"rude": 0, "plain": 1, "kind": 2}
