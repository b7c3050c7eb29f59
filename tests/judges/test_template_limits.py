"""Templates within limits: those that would run for ever, or fill memory or a disk, are stopped
with their line, and ordinary ones never leave this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.constitution.model import Example
from rlaif.core.errors import ConfigError
from rlaif.core.resources import find
from rlaif.judges import rendering
from rlaif.judges.rendering import is_bounded
from rlaif.judges.templates import (
    CLASSES,
    ITEM,
    ITEMS,
    JOINT,
    PAIRWISE,
    SUGGESTING,
    WRITING,
    load_template,
)

EVERY = CLASSES | PAIRWISE | JOINT | ITEM | ITEMS | WRITING | SUGGESTING
SHIPPED = sorted(find("prompts/judges").glob("*.j2"))


def values(response: str = "An answer.") -> dict[str, object]:
    found = dict.fromkeys(EVERY)
    return found | {
        "response": response,
        "principles": ["Be brief.", "Be kind."],
        "examples": [Example(prompt="p", better="b", worse="w")],
        "high": 5,
    }


def rendered(tmp_path: Path, text: str, response: str = "An answer.") -> str:
    path = tmp_path / "judge.j2"
    path.write_text(text, "utf-8")
    return load_template(str(path), EVERY).messages(values(response))[-1]["content"]


ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over a text": "{% for a in response %}{% for b in response %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "recursive loops": "{% for n in [60] recursive %}{% if n %}{{ loop([n - 1, n - 1]) }}"
    "{% endif %}{% endfor %}",
    "a number": "{% if 9 ** (9 ** 9) %}x{% endif %}",
}
LARGE = {
    "a text": "{{ 'x' * 10 ** 9 }}",
    "a list": "{% set many = [0] * 10 ** 9 %}",
    "a list of one variable": "{{ ([response] * 10 ** 9) | length }}",
    "a range": "{{ range(10 ** 9) | list | length }}",
    "doubling": "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}{{ n.x }}",
    "lists of lists": "{% set n = namespace(x=[1]) %}{% for i in range(40) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "a width": "{{ response.center(10 ** 9) }}",
    "a filter's width": "{{ response | center(10 ** 9) }}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "the new format": "{{ '{:1000000000}'.format(1) }}",
    "a join": "{{ response | join(response) }}",
    "joins of joins": "{{ response" + f" | join('{'x' * 40}')" * 4 + " }}",
    "replaced in what was replaced": "{{ response" + ".replace('l', 'llllllllll')" * 9 + " }}",
    "JSON of JSON": "{{ response | replace('l', '\"')" + " | tojson" * 40 + " }}",
    "a macro": "{% macro f() %}{% for i in range(99999) %}{{ response }}{% endfor %}{% endmacro %}"
    "{{ f() }}",
    "output": "{% for i in range(99999) %}{{ response }}{% endfor %}",
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.usefixtures("quick")
def test_what_never_ends_is_stopped_with_its_line(tmp_path: Path, text: str) -> None:
    note = "{# why\n so #}\n---system---\nJudge.\n---user---\nRate {{ response[:9] }}\n"
    with pytest.raises(ConfigError, match=r"cannot be rendered: it takes longer than") as caught:
        rendered(tmp_path, note + text, "long " * 4000)
    assert f"{tmp_path / 'judge.j2'}:7:" in str(caught.value)


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE)
def test_what_is_too_large_is_stopped_with_its_line(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for memory to be the limit that is met where both are near, on a busy machine too.
    monkeypatch.setattr(rendering, "SECONDS", 2.0)
    response = "long " * 20_000
    # Whichever limit is met first.
    with pytest.raises(ConfigError, match=r"cannot be rendered: (it takes|it writes|Range)") as e:
        rendered(tmp_path, "{{ response[:9] }}\n{# note #}\n" + text, response)
    assert f"{tmp_path / 'judge.j2'}:3:" in str(e.value)


def test_what_takes_much_memory_and_little_time_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"judge.j2:2: .*takes more than 256 MB of memory"):
        rendered(tmp_path, "Rate:\n{% set many = [0] * 10 ** 8 %}{{ response }}")


def test_a_template_that_was_stopped_does_no_harm_to_the_next(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        rendered(tmp_path, "{{ 'x' * 10 ** 9 }}")
    text = "{% set n = namespace(count=0) %}{% for e in examples %}{% set n.count = n.count + 1 %}"
    assert rendered(tmp_path, text + "{% endfor %}{{ n.count }} {{ response }}") == "1 An answer."


def test_the_output_of_a_bounded_template_has_a_limit_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "OUTPUT", 100)
    with pytest.raises(ConfigError, match=r"judge.j2:2: .*writes more than 100 characters"):
        rendered(tmp_path, "Rate:\n{{ response }}\n", "x" * 101)


@pytest.mark.parametrize("path", SHIPPED, ids=[path.name for path in SHIPPED])
def test_shipped_templates_are_rendered_in_this_process(path: Path) -> None:
    template = load_template(str(path), EVERY)
    assert all(is_bounded(source) for _, source in template.sections)


@pytest.mark.parametrize(
    "text",
    [
        "{% for p in principles %}{{ loop.index }}. {{ p | trim }}{% endfor %}",
        "{{ response | replace('a', 'b') | upper }} {{ '-' * 40 }} {{ principles | join(', ') }}",
        "{{ 'x' if response is defined and high > 3 else 'y' }}{{ response[:200] }}",
    ],
)
def test_ordinary_templates_are_rendered_in_this_process(text: str) -> None:
    assert is_bounded(text)


@pytest.mark.parametrize("text", [*ENDLESS.values(), *LARGE.values()])
def test_nothing_that_may_grow_is_rendered_in_this_process(text: str) -> None:
    assert not is_bounded(text)


@pytest.mark.parametrize(
    "text",
    [
        "{{ response * high }}",
        "{% for principles in [response] %}{% for c in principles %}{% endfor %}{% endfor %}",
        "{% set principles = response %}{% for c in principles %}{{ response }}{% endfor %}",
        "{% for p in principles %}{% for q in principles %}{% endfor %}{% endfor %}",
        "{{ response.replace('', response) }}",
        "{{ response | indent(10 ** 9) }}",
        "{{ response | indent(1000000000) }}",
        "{{ response | join('" + "x" * 41 + "') }}",
        "{{ response | join(d='" + "x" * 41 + "') }}",
        "{{ (response | join('xx') ~ 'a') | join('xx') }}",
    ],
)
def test_what_is_not_plainly_bounded_is_not_called_so(text: str) -> None:
    assert not is_bounded(text)


@pytest.mark.parametrize("text", ["{{ 1 / 0 }}", "{{ response.nothing() }}", "{{ high.real() }}"])
def test_an_expression_that_fails_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"judge.j2:2: this template cannot be rendered"):
        rendered(tmp_path, f"{{{{ response }}}}\n{text}\n")


def test_the_worker_says_the_same_as_this_process(tmp_path: Path) -> None:
    here = "{% for p in principles %}{{ loop.index }}{{ p }} {% endfor %}{{ examples[0].better }}"
    there = "{% set unused = namespace(a=1) %}" + here
    assert is_bounded(here) and not is_bounded(there)
    assert rendered(tmp_path, here) == rendered(tmp_path, there) == "1Be brief. 2Be kind. b"
    odd = "a lone \ud800 surrogate"
    text = "{% set unused = namespace(a=1) %}{{ response }}"
    assert rendered(tmp_path, text, odd) == odd
