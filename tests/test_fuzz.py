"""10,000 malformed constitutions and templates: each a named error, none a traceback.

Seeded, so that a failure is found again: the case's number is in the message.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.amend import with_weights
from rlaif.constitution import load_constitution
from rlaif.errors import ConfigError
from rlaif.templates import load_template

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


def loads_or_is_refused(path: Path, text: str, load: Callable[[Path], Any], case: str) -> bool:
    """Whether it was refused; anything but a ConfigError that names the file fails."""
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        load(path)
    except ConfigError as error:
        if path.name in str(error):
            return True
        raise AssertionError(f"{case}: the file is not named: {error}") from None
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}\n{text[:500]}") from error
    return False


def refused(path: Path, text: str, load: Callable[[Path], Any], case: str) -> None:
    """`load` says in one error what is wrong with `text`, and names the file."""
    if not loads_or_is_refused(path, text, load, case):
        raise AssertionError(f"{case}: no error for\n{text[:500]}")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.__name__)
def test_malformed_constitutions_are_refused_with_file(mutation: Mutation, tmp_path: Path) -> None:
    for number in range(300):
        rng = random.Random(f"{mutation.__name__} {number}")
        data = copy(GOOD)
        mutation(rng, data)
        for extra in rng.sample(MUTATIONS, rng.randrange(3)):
            # A later change may have taken away what this one would change.
            if isinstance(data["principles"], list) and len(data["principles"]) >= 3:
                extra(rng, data)
        text = yaml.safe_dump(data, sort_keys=rng.random() < 0.5, allow_unicode=True)
        refused(tmp_path / "case.yaml", text, load_constitution, f"{mutation.__name__} {number}")


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

    cases = [broken(random.Random(f"yaml {n}"), good) for n in range(3100)]
    caught = sum(
        loads_or_is_refused(tmp_path / "case.yaml", text, load, f"yaml {n}")
        for n, text in enumerate(cases)
    )
    assert caught > 1500


def test_damaged_templates_load_or_are_refused(tmp_path: Path) -> None:
    def load(path: Path) -> None:
        made = load_template(str(path), required=frozenset({"response"}))
        made.messages({"response": "r", "prompt": "p", "principle": "q"})

    cases = [broken(random.Random(f"template {n}"), TEMPLATE) for n in range(3000)]
    caught = sum(
        loads_or_is_refused(tmp_path / "case.j2", text, load, f"template {n}")
        for n, text in enumerate(cases)
    )
    assert caught > 1000
