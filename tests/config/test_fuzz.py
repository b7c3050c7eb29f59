"""Malformed constitutions, templates and data files: each a named error, none a traceback.

Seeded, so that a failure is found again: the case's number is in the message. RLAIF_FUZZ is how
many cases of each of the three kinds are made (200; 10,000 before a release).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from rlaif.constitution.edit import with_weights
from rlaif.constitution.model import load_constitution
from rlaif.core.errors import ConfigError
from rlaif.data.readers import read_labelled
from rlaif.judges.templates import load_template

COUNT = int(os.environ.get("RLAIF_FUZZ", "200"))
GOOD: dict[str, Any] = {
    "name": "fuzz",
    "version": "1",
    "principles": [
        {"id": "brief", "text": "The answer is brief.", "weight": 2, "scale": {1: "no", 2: "yes"}},
        {"id": "short", "check": {"rule": "word_limits", "params": {"min": 1, "max": 9}}},
        {"id": "told", "text": "The answer is true.", "applies_when": {"pattern": "who|what"}},
    ],
}
TEMPLATE = (
    "{# c #}\n---system---\nBe fair. {{ principle }}\n---user---\n{{ prompt }} {{ response }}\n"
)
WRONG: list[Any] = [None, -1, 1.5, float("nan"), "", " ", "A b", [], {}, [None], {"x": {}}, True]
WRONG += ["\u0000".strip("\u0000"), "é" * 70, 10**30, {1: 2}, [[]], "(", "<<", "0x"]

Mutation = Callable[[random.Random, dict[str, Any]], None]


def copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: copy(v) for k, v in value.items()}
    return [copy(v) for v in value] if isinstance(value, list) else value


def unknown_key(rng: random.Random, data: dict[str, Any]) -> None:
    place = rng.choice([data, *data["principles"], data["principles"][1]["check"]])
    place[rng.choice(["txt", "wieght", "", "Id", "rules", "x" * 300, "é"])] = rng.choice(WRONG)


def lost_name(rng: random.Random, data: dict[str, Any]) -> None:
    data["name"] = rng.choice([None, [], {}, 3.5, "", "   ", True])


def bad_id(rng: random.Random, data: dict[str, Any]) -> None:
    entry = rng.choice(data["principles"])
    entry["id"] = rng.choice([None, "", "Two words", "-a", "é", 7, [], "x" * 65, {"a": 1}])


def same_id(rng: random.Random, data: dict[str, Any]) -> None:
    first, second = rng.sample(data["principles"], 2)
    second["id"] = first["id"]


def bad_weight(rng: random.Random, data: dict[str, Any]) -> None:
    bad = [None, -0.1, "much", [], {}, float("inf"), float("nan"), "1,5"]
    rng.choice(data["principles"])["weight"] = rng.choice(bad)


def nothing_to_judge(rng: random.Random, data: dict[str, Any]) -> None:
    data["principles"].append({"id": "empty", **rng.choice([{}, {"weight": 3}, {"text": "  "}])})


def bad_check(rng: random.Random, data: dict[str, Any]) -> None:
    check = data["principles"][1]["check"]
    rules: list[Any] = ["word_limit", None, 3, []]
    params: list[Any] = [[1], None, "x", {"min": 1}, {"min": 9, "max": 1}, {"min": "a", "max": 3}]
    params.append({"min": 1, "max": 2, "z": 0})
    key, value = rng.choice([*(("rule", r) for r in rules), *(("params", p) for p in params)])
    check[key] = value


def bad_condition(rng: random.Random, data: dict[str, Any]) -> None:
    bad = [{}, {"pattern": "("}, {"pattern": 3}, {"tags": 5}, "x", [], {"tag": ["a"]}]
    rng.choice(data["principles"])["applies_when"] = rng.choice(
        [*bad, {"pattern": "[z-a]"}, {"pattern": "(?P<n>"}, {"pattern": "*"}]
    )


def bad_scale(rng: random.Random, data: dict[str, Any]) -> None:
    bad = [[], "x", {"one": "no"}, {1: None}, {1.5: "x"}, {1: {}}, {None: "x"}, 3]
    rng.choice(data["principles"])["scale"] = rng.choice(bad)


def bad_principles(rng: random.Random, data: dict[str, Any]) -> None:
    bad = [None, {}, "x", 3, [], [[]], ["x"], [None], [3], [{"text": "no id"}]]
    data["principles"] = rng.choice(bad)


def bad_extends(rng: random.Random, data: dict[str, Any]) -> None:
    bad = ["nowhere.yaml", 3, {}, ["nowhere.yaml"], [3], [[]], ".", "case.yaml", "\n", "x" * 300]
    data["extends"] = rng.choice(bad)


def bad_version(rng: random.Random, data: dict[str, Any]) -> None:
    data["version"] = rng.choice([1.1, None, [], {}, float("nan")])


def bad_removal(rng: random.Random, data: dict[str, Any]) -> None:
    data["principles"].append({"id": "gone", "remove": rng.choice([True, "perhaps", 7, [], None])})


MUTATIONS: list[Mutation] = [
    *(unknown_key, lost_name, bad_id, same_id, bad_weight, nothing_to_judge, bad_check),
    *(bad_condition, bad_scale, bad_principles, bad_extends, bad_version, bad_removal),
]


def loads_or_is_refused(
    path: Path, content: str | bytes, load: Callable[[Path], Any], case: str
) -> bool:
    """Whether it was refused; anything but a ConfigError that names the file fails."""
    path.write_bytes(as_bytes(content))
    try:
        load(path)
    except ConfigError as error:
        if path.name in str(error):
            return True
        raise AssertionError(f"{case}: the file is not named: {error}") from None
    except Exception as error:
        shown = f"{type(error).__name__}: {error}\n{content[:500]!r}"
        raise AssertionError(f"{case}: {shown}") from error
    return False


def refused(path: Path, content: str | bytes, load: Callable[[Path], Any], case: str) -> None:
    """`load` says in one error what is wrong with the file, and names it."""
    if not loads_or_is_refused(path, content, load, case):
        raise AssertionError(f"{case}: no error for\n{content[:500]!r}")


def as_bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.__name__)
def test_malformed_constitutions_are_refused_with_file(mutation: Mutation, tmp_path: Path) -> None:
    for number in range(COUNT // 2 // len(MUTATIONS) + 1):
        rng = random.Random(f"{mutation.__name__} {number}")
        data = copy(GOOD)
        mutation(rng, data)
        for extra in rng.sample(MUTATIONS, rng.randrange(3)):
            # A later change may have taken away what this one would change.
            if isinstance(data["principles"], list) and len(data["principles"]) >= 3:
                extra(rng, data)
        text = yaml.safe_dump(data, sort_keys=rng.random() < 0.5, allow_unicode=True)
        refused(tmp_path / "case.yaml", text, load_constitution, f"{mutation.__name__} {number}")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(8)
)


def wounds(rng: random.Random, text: str) -> list[str | bytes]:
    """The good file's text made no YAML, no constitution or no text, in many ways."""
    lines = text.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    deep = rng.randrange(300, 4000)
    digits = rng.randrange(4301, 6000)

    def put(line: str) -> str:
        return "".join([*lines[:at], line + "\n", *lines[at:]])

    def weight(value: str) -> str:
        return text.replace("weight: 2", f"weight: {value}")

    return [
        *(
            put("\tname: x"),
            put("name: [1, 2"),
            put("'"),
            put("*nobody"),
            put("&a &b"),
            put("}: x"),
        ),
        *(put("\x00"), put("\x07"), put("\ud800"), put("%TAG x"), put("--- !!x"), put("? ? :")),
        *(text + "name: again\n", text + "---\nname: second\n", text + "principles: []\n"),
        *(text + "...\nmore: 1\n", text + '"' + "x" * 70, text + "- {id: " + "[" * deep),
        text + f"description: {'[' * deep}{']' * deep}\n",
        text + "".join(" " * n + "a:\n" for n in range(deep % 900)),
        *([BOMB + text.replace("name: fuzz", "name: *a8")] if rng.random() < 0.1 else []),
        *(text + "extends: &a [*a]\n", text + "description: &a {b: *a}\n"),
        *(weight("0x" + "f" * digits), weight("9" * digits), weight("1" + "0" * 400)),
        *(weight(value) for value in (".nan", "-.inf", "1e999", "0b12", "~", "<<", "2020-13-45")),
        *(weight(f"!!{tag} x") for tag in ("binary", "set", "timestamp", "map", "bool", "int")),
        *(weight(f"!!{tag} ''") for tag in ("float", "int", "omap", "pairs", "seq", "null")),
        weight("!!python/object/apply:os.getcwd []"),
        text.replace("weight: 2", "<<: [1]"),
        text.replace("id: short", rng.choice(["id: brief", "id: &i [*i]", "id: |", "id: 'a\\0b'"])),
        *(text.encode("utf-16"), text.encode("utf-32"), b"\xff\xfe" + text.encode(), b"\xc3("),
        *(text.replace("fuzz", "f\xfc").encode("latin-1"), bytes(rng.randbytes(200)), b"", b"\n"),
        gzip.compress(text.encode()),
    ]


def test_wounded_constitutions_are_refused(tmp_path: Path) -> None:
    good = yaml.safe_dump(GOOD, sort_keys=False)
    number = 0
    while number < COUNT // 4:
        for place, content in enumerate(wounds(random.Random(number), good)):
            case = f"wound {number}, {place}"
            refused(tmp_path / "case.yaml", content, load_constitution, case)
            number += 1


def broken(rng: random.Random, text: str) -> str:
    """Characters of `text` deleted, doubled, swapped or put in."""
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(text) + 1)
        size = rng.randrange(1, 12)
        piece = rng.choice(
            ["{", "}", "[", "]", ":", "- ", "\t", "&a ", "*a", "!!x ", "'", '"', "|"]
        )
        piece = rng.choice([piece, "%", "\n", "\u0000", "\ud800", "---\n", "? ", "{{", "{%", "#}"])
        text = rng.choice(
            [text[:at] + text[at + size :], text[:at] + piece + text[at:], text[at:] + text[:at]]
        )
    return text


def test_damaged_constitutions_load_or_are_refused(tmp_path: Path) -> None:
    good = yaml.safe_dump(GOOD, sort_keys=False)

    def load(path: Path) -> None:
        weights = {principle.id: 0.5 for principle in load_constitution(path).principles[:1]}
        path.with_name("again.yaml").write_text(with_weights(path, weights), "utf-8")
        load_constitution(path.with_name("again.yaml"))

    cases = [broken(random.Random(f"yaml {n}"), good) for n in range(COUNT // 2)]
    caught = sum(
        loads_or_is_refused(tmp_path / "case.yaml", text, load, f"yaml {n}")
        for n, text in enumerate(cases)
    )
    assert caught > len(cases) / 2


BAD_PIECES = [
    *("{{ 1 / 0 }}", "{{ response.missing() }}", "{{ response() }}", "{{ response | nofilter }}"),
    *("{{ response is notest }}", "{{ responze }}", "{{ response", "{% if response %}"),
    *("{% for x in scale %}", "{% endfor %}", "{% for x in 3 %}{% endfor %}", "{% include 'x' %}"),
    *("{% extends 'x' %}", "{% import 'x' as x %}", "{% unknown %}", "{# note", "{% raw %}x"),
    *("{% endif %}", "{{ }}"),
    *("{{ range(10000000) | list }}", "{{ ''.__class__.__mro__ }}", "{{ response[::0] }}"),
    *("{{ response | truncate(1) }}", "{{ cycler() }}", "{{ dict(1) }}", '{{ "%d" % response }}'),
    *('{{ "{:d}".format(response) }}', '{{ "x".encode("no") }}', "{{ [1, 'a'] | sort }}"),
    *(
        "{{ response | round }}",
        "{{ self.none() }}",
        "{% set response.x = 1 %}",
        "{{ 9" + "9" * 5000,
    ),
    *("{{ " + "(" * 900 + "1" + ")" * 900 + " }}", "{{ " + "[" * 900 + "]" * 900 + " }}"),
    *("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ 9" + "9" * 5000 + " }}"),
    *("\n---user---\n", "\n---system---\n", "\n---prefill---\n---then---\n"),
]


def load_and_render(path: Path) -> None:
    made = load_template(str(path), required=frozenset({"response"}))
    values = {"response": "r", "prompt": "p", "principle": "q"}
    made.messages(values)
    made.then(values)
    made.prefill(values)


def test_bad_templates_are_refused(tmp_path: Path) -> None:
    for number in range(COUNT // 2):
        rng = random.Random(f"bad {number}")
        lines = TEMPLATE.splitlines(keepends=True)
        # Not in the comment, nor between an expression's braces.
        lines.insert(rng.randrange(2, len(lines) + 1), BAD_PIECES[number % len(BAD_PIECES)] + "\n")
        text = "".join(lines)
        if rng.random() < 0.3:
            text = text.replace("\n", "\r\n")
        refused(tmp_path / "case.j2", text, load_and_render, f"bad {number}")
    for content in (b"\xff{{ response }}", TEMPLATE.encode("utf-16"), b"", b"no response"):
        refused(tmp_path / "case.j2", content, load_and_render, "no text")


def test_damaged_templates_load_or_are_refused(tmp_path: Path) -> None:
    cases = [broken(random.Random(f"template {n}"), TEMPLATE) for n in range(COUNT // 2)]
    caught = sum(
        loads_or_is_refused(tmp_path / "case.j2", text, load_and_render, f"template {n}")
        for n, text in enumerate(cases)
    )
    assert caught > len(cases) / 3


ROWS = [{"prompt": f"Question {n}?", "chosen": "Good.", "rejected": "Bad é."} for n in range(4)]


def data_files() -> dict[str, bytes]:
    """The same pairs in each kind of file."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    table, cells = io.BytesIO(), io.StringIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), table)
    writer = csv.DictWriter(cells, list(ROWS[0]))
    writer.writeheader()
    writer.writerows(ROWS)
    text = cells.getvalue().encode()
    plain = {"case.jsonl": lines, "case.json": json.dumps(ROWS).encode(), "case.csv": text}
    packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in plain.items()}
    return plain | packed | {"case.parquet": table.getvalue()}


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes cut off, changed, taken out, put in or put in front."""
    at = rng.randrange(len(content))
    pieces = [b"\x00", b"\xff", b'"', b"{", b"[" * 3000, b",", b"\r", b"NaN", b"9" * 4400, b"\t"]
    piece = rng.choice(pieces)
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 9)):
        changed[rng.randrange(len(content))] = rng.randrange(256)
    return rng.choice(
        [
            content[:at],
            content[at:],
            bytes(changed),
            content[:at] + content[at + rng.randrange(1, 40) :],
            content[:at] + piece + content[at:],
            rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\x00"]) + content,
        ]
    )


def test_damaged_data_files_are_read_or_refused(tmp_path: Path) -> None:
    files = data_files()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert len(list(read_labelled(tmp_path / name))) == len(ROWS), name

    def load(path: Path) -> None:
        list(read_labelled(path))

    caught = 0
    for number in range(COUNT):
        name = list(files)[number % len(files)]
        content = damaged(random.Random(f"data {number}"), files[name])
        caught += loads_or_is_refused(tmp_path / name, content, load, f"data {number}")
    assert caught > COUNT / 2
