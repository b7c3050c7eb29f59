"""Rules that a user wrote: found, checked, run, and part of what steps are known by."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from rlaif.constitution.model import Check, Principle, principle_hash
from rlaif.constitution.own_rules import own_rule
from rlaif.constitution.rules import apply_check, resolved_params, validate_check
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.records import make_prompt
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare

CODE = """
def has(prompt, text, *, word: str, least: int = 1):
    if "skip" in prompt.question:
        return None
    return min(1.0, text.lower().split().count(word) / least)


def wrong(prompt, text):
    return 7


def fails(prompt, text):
    raise KeyError("lost")


def one_argument(text):
    return 1.0


number = 3
"""
PROMPT = make_prompt([{"role": "user", "content": "Name a red fruit."}])


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "house_rules.py"
    path.write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "house_rules", raising=False)
    own_rule.cache_clear()
    return path


def test_an_own_rule_scores_as_a_shipped_one(module: Path) -> None:
    params = {"word": "apple", "least": 2}
    assert apply_check("house_rules:has", params, PROMPT, "An apple.  apple") == 0.5
    assert apply_check("house_rules:has", {"word": "apple"}, PROMPT, "an apple") == 1.0
    skipped = make_prompt([{"role": "user", "content": "skip this"}])
    assert apply_check("house_rules:has", params, skipped, "apple") is None
    assert apply_check("house_rules:has", params, PROMPT, "  ") == 0.0, "saying nothing never wins"


@pytest.mark.parametrize(
    ("rule", "params", "words"),
    [
        ("house_rules:hsa", {}, "has no 'hsa'; did you mean 'has'"),
        ("no_such_module:has", {}, "there is no module 'no_such_module'; is it installed"),
        ("house_rules:number", {}, "is no function of"),
        ("house_rules:one_argument", {}, "must be a function of (prompt, text)"),
        ("house_rules:has", {}, "parameter 'word' is missing"),
        ("house_rules:has", {"word": "a", "lest": 2}, "did you mean 'least'"),
        ("house_rules:has", {"word": "a", "least": "2"}, "least: Input should be a valid integer"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(
    module: Path, rule: str, params: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match="rule") as caught:
        validate_check(rule, params)
    assert words in str(caught.value)
    with pytest.raises(ValidationError):
        Check(rule=rule, params=params)


def test_what_is_no_score_is_refused_by_name(module: Path) -> None:
    with pytest.raises(RlaifError, match=r"'house_rules:wrong' gave 7 .* from 0 to 1"):
        apply_check("house_rules:wrong", {}, PROMPT, "text")
    with pytest.raises(RlaifError, match=r"'house_rules:fails' failed .* KeyError: 'lost'"):
        apply_check("house_rules:fails", {}, PROMPT, "text")


def test_a_step_is_known_by_the_code_of_its_rules(
    module: Path, tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    check = {"rule": "house_rules:has", "params": {"word": "red"}}
    path = write_experiment(
        tmp_path / "config",
        None,
        steps=[
            {"sample": {"n": 2}},
            {"judge": {"id": "checks", "kind": "rules"}},
            {"filter": {"records": "completions", "filters": [{"kind": "rule", **check}]}},
            {"evaluate": {"checks": [{"id": "red", **check}], "judges": []}},
        ],
    )
    given = yaml.safe_load((path.parent / "constitution.yaml").read_text())
    given["principles"][0]["check"] = check
    (path.parent / "constitution.yaml").write_text(yaml.safe_dump(given))

    def hashes() -> dict[str, str]:
        return {p.kind: p.hash for p in make_plan(prepare(path, fetch=False))}

    before, again = hashes(), hashes()
    module.write_text(CODE + "\n# counted otherwise\n")
    after = hashes()
    assert before == again
    assert before["sample"] == after["sample"]
    for kind in ("judge", "filter", "evaluate"):
        assert before[kind] != after[kind], kind


def test_shipped_rules_have_no_code_in_their_hash() -> None:
    assert resolved_params("no_repeated_ngrams", {}) == {"n": 3, "allow": 0.0}
    principle = Principle(id="a", check=Check(rule="finished_sentence"))
    assert principle_hash(principle) == principle_hash(principle.model_copy())


def test_a_constitution_names_the_rule_that_is_missing(tmp_path: Path) -> None:
    from rlaif.constitution.model import load_constitution

    path = tmp_path / "c.yaml"
    entry = {"id": "a", "check": {"rule": "nowhere:rule"}}
    path.write_text(yaml.safe_dump({"name": "c", "version": "1", "principles": [entry]}))
    with pytest.raises(ConfigError, match="there is no module 'nowhere'"):
        load_constitution(path)
