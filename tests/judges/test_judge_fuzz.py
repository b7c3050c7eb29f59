"""Malformed specs and templates give one named error, never a traceback."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlaif.config.base import Strict
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, make_prompt
from rlaif.core.yamlio import validate
from rlaif.judges.build import JUDGES, JudgeStep, build_judge
from rlaif.judges.templates import PAIRWISE, POINTWISE, load_template

RULES = Constitution.model_validate(
    {"name": "t", "principles": [{"id": "kind", "text": "The answer is kind."}]}
)
EXAMPLES = int(os.environ.get("RLAIF_FUZZ", "150"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
KEYS = [
    "id",
    "by",
    "template",
    "principles",
    "samples",
    "temperature",
    "max_new_tokens",
    "cot",
    "expected",
    "scale",
    "order",
    "verdict",
    "first_labels",
    "tie_labels",
    "soft",
    "clamp",
    "draw",
    "shots",
    "parse",
    "values",
    "weights",
    "accuracy",
    "pool",
    "of",
    "judge",
    "items",
    "items_file",
    "generate",
    "aggregate",
    "classes",
    "tables",
    "aspects",
    "beta",
    "reference",
    "uses",
    "yes_labels",
    "abstain_labels",
    "min_label_mass",
    "structured",
    "x",
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 30),
    st.floats(allow_nan=True),
    st.text(max_size=8),
    st.sampled_from(["both", "labels", "written", "one", "kind", "policy", "vote", "a:b"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([*KEYS, "text", "kind"]), inner, max_size=3),
    ),
    max_leaves=6,
)
PIECES = st.sampled_from(
    [
        "{{ response }}",
        "{{ response_1 }}{{ response_2 }}",
        "{{ principle }}",
        "{{ 1 / 0 }}",
        "{{ fence.missing() }}",
        "{{ response",
        "{% if explain %}",
        "{% endif %}",
        "{% for x in scale %}",
        "{% endfor %}",
        "{{ scale[9] }}",
        "{{ range(10000000) | list }}",
        "{% include 'x' %}",
        "{# note",
        "#}",
        "\n---user---\n",
        "\n---system---\n",
        "\n---then---\n",
        "\n---prefill---\n",
        "{{ ''.__class__ }}",
        "{{ unknown }}",
        "text ",
    ]
)


class Holder(Strict):
    """A step as an experiment holds it."""

    judge: JudgeStep


def completion(text: str, index: int) -> Completion:
    said: Any = [{"role": "assistant", "content": text}]
    return Completion(f"k{index}", PROMPT.prompt_id, index, said, "", "", {}, "stop", digest=text)


PROMPT = make_prompt([{"role": "user", "content": "Hi"}])
TEXTS = [completion("one", 0), completion("two", 1)]


def refusal(work: Callable[[], None]) -> str | None:
    """The message of the named error that `work` raises, or None where it raises nothing."""
    try:
        work()
    except ConfigError as error:
        return str(error).strip()
    return None


@FUZZ
@given(
    kind=st.one_of(st.sampled_from(sorted(JUDGES)), SCALARS),
    keys=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5),
)
def test_a_spec_works_or_is_refused_by_name(kind: Any, keys: dict[str, Any]) -> None:
    data = {"judge": {"kind": kind, **keys}}

    def build() -> None:
        judge = build_judge(validate(Holder, data, {}, Path("e.yaml")).judge, RULES)
        judge.calls(PROMPT, TEXTS, 1)

    assert refusal(build) != ""


@FUZZ
@given(source=st.lists(st.one_of(PIECES, st.text(max_size=10)), max_size=8).map("".join))
def test_a_template_works_or_is_refused_by_name(
    source: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.j2"
    path.write_bytes(source.encode("utf-8", "surrogatepass"))
    for allowed in (POINTWISE, PAIRWISE):
        why = refusal(partial(_render, path, allowed))
        assert why is None or "fuzz.j2" in why


def _render(path: Path, allowed: frozenset[str]) -> None:
    template = load_template(str(path), allowed)
    values = {"response": "a", "response_1": "a", "response_2": "b", "scale": []}
    assert template.messages(values)
    template.then(values)
    template.prefill(values)
