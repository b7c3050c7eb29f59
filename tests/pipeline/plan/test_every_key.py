"""Every key of every spec reaches what it is for: another value gives other hashes and does
something else. The keys are read off the config classes, so a new one is here at once: without a
second value in `values`, or with one that reaches nothing, its test fails."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.errors import ConfigError, RlaifError
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.steps import STEPS, step_module
from tests.pipeline.plan.files import write_files
from tests.pipeline.plan.judging_server import JudgingServer
from tests.pipeline.plan.models import write_models
from tests.pipeline.plan.more_files import write_more_files
from tests.pipeline.plan.observed import Sweep, changed
from tests.pipeline.plan.places import PLACES, SWEPT, UNSWEPT
from tests.pipeline.plan.schema import classes, keys
from tests.pipeline.plan.values import (
    ELSEWHERE,
    NOTHING,
    UNHASHED,
    VALUES,
    Case,
    Inner,
    Refused,
    Untried,
)

OWNERS = {owner.__name__: owner for owner in classes()}
KEYS = [f"{name}.{key}" for name, owner in OWNERS.items() if name in PLACES for key in keys(owner)]
ROOT = Path(__file__).parents[3]

FIRST = {
    **dict.fromkeys(("JudgeBase", "ModelJudge", "VerdictJudge", "LabelJudge"), "YesNoJudge"),
    **dict.fromkeys(("WritingJudge", "RatingJudge"), "RatingJudge"),
    "PairwiseJudge": "PairwiseJudge",
    **dict.fromkeys(("TextStep", "TrainStep"), "SftTrain"),
    "ReferenceTrain": "DpoTrain",
    **dict.fromkeys(
        ("RolloutTrain", "OnPolicyTrain", "ConstrainedTrain", "GroupTrain"), "GrpoTrain"
    ),
    "DistillStep": "BradleyTerryDistill",
    "FitStep": "LinearDistill",
    "GatedDistill": "MultiObjectiveDistill",
}
"""Of each parent class the child whose run shows the parent's keys; that of its other children
takes the same way through the code, and is slow."""
DIFFERENT = {"id", "template", "beta"}
"""Keys that each class uses in a way of its own."""
SLOW = {
    *("OrdinalDistill", "QuantileDistill", "LoraOptions", "Gates", "PromptCondition", "CheckSpec"),
    *("Experiment.primary", "Experiment.margin"),
    *("Refresh", "BradleyTerryDistill.members", "SftTrain.lora", "SftTrain.trackers"),
    *("GspoTrain", "CispoTrain", "ReinforceTrain", "ReinforcePpTrain", "SppoTrain"),
    "QuarkTrain",
    *("PpoTrain", "RlooTrain", "OnlineDpoTrain", "MultiObjectiveDistill", "SftTrain.optimizer"),
    *("KWiseDistill", "CostDistill", "ConditionalDistill", "LinearDistill", "GrpoTrain"),
    *("RubricJudge", "RubricWriting", "RubricItem", "UltraFeedbackJudge", "MetaJudge", "JuryJudge"),
    "JudgementsJudge",
    *("OnPolicyDistillationTrain", "AverageStep"),
    *("RbrJudge", "ParseSpec", "RewardEnsembleJudge", "ImplicitRewardJudge", "RewardTerm", "Gate"),
    "CostTerm",
    *("BradleyTerryDistill.replay", "EvaluateStep"),
    *(f"PairStep.{key}" for key in ("max_overlap", "tier", "standardise", "max_pairs", "uses")),
}
"""Classes and keys whose experiments take seconds, or that show beside others of their kind."""
NAMED = {
    *("YesNoJudge", "PairwiseJudge", "RandomJudge", "JuryJudge", "SftTrain", "BradleyTerryDistill"),
    *("SampleStep", "PairStep", "LabelStep", "LoadStep", "FilterStep", "EvaluateStep"),
    "AverageStep",
    "ReviseStep",
    *("RubricClass", "CheckSpec"),
}
"""Classes whose other id is tried by default: that of the others goes the same way."""
NAMED_BY_CHANCE = {"RandomJudge"}
"""Classes whose output hangs together with their id."""


def _is_shown(name: str) -> bool:
    """Whether a key is tried by default: in the class whose own it is or, of a parent class, in the
    first child. What a child makes of its parent's key is slow, but for what differs most."""
    owner, _, key = name.partition(".")
    said = [p.__name__ for p in OWNERS[owner].__mro__ if key in VALUES.get(p.__name__, {})]
    if key == "id":
        return owner in NAMED
    if not said:
        return True
    if key in DIFFERENT:
        return said[0] == owner
    return len(said) == 1 and FIRST.get(said[0], owner) == owner


def _marked(name: str, slow: Collection[str] = ()) -> Any:
    takes_long = name.split(".")[0] in slow or name in slow
    shown = _is_shown(name) and not takes_long
    return pytest.param(name, marks=[] if shown else [pytest.mark.slow])


def test_every_class_has_a_place_in_an_experiment() -> None:
    unknown = OWNERS.keys() - PLACES.keys() - UNSWEPT.keys()
    assert not unknown, "give them a place in tests/pipeline/plan/places.py"
    assert not PLACES.keys() & UNSWEPT.keys()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch, JudgingServer() as server:
        patch.setenv("RLAIF_CACHE", str(folder / "cache"))
        patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
        # So that `precision: bf16` is computed, as slowly as it may be.
        patch.setattr("rlaif.train.model.has_fast_bf16", lambda device: True)
        write_files(folder)
        write_more_files(folder)
        write_models(folder)
        yield Sweep(folder, server)


def case_of(name: str) -> Case | Inner | Refused | Untried:
    """The second value of a key, of the nearest parent class that has one."""
    owner, _, key = name.partition(".")
    for parent in OWNERS[owner].__mro__:
        if key in VALUES.get(parent.__name__, {}):
            value = VALUES[parent.__name__][key]
            return value if isinstance(value, Case | Inner | Refused | Untried) else Case(value)
    raise AssertionError(f"{name}: give it a second value in tests/pipeline/plan/values.py")


def both(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The experiments with the first and the second value of a key."""
    owner, _, key = name.partition(".")
    case = case_of(name)
    assert not isinstance(case, Inner | Untried)
    if isinstance(case, Refused):
        base, place = PLACES[owner]
        return SWEPT[base], changed(SWEPT[base], place, {key: case.value})
    base, place = case.base or PLACES[owner]
    base = base.format(method=PLACES[owner][0].split()[-1])
    if case.strict:
        base = "strict " + base.split()[1]
    whole = {"rounds": case.rounds} if case.rounds else {}
    first = changed(SWEPT[base] | whole, place, case.given)
    return first, changed(first, place, {key: case.value} | case.also)


@pytest.mark.parametrize("name", [_marked(name) for name in KEYS])
def test_another_value_gives_other_hashes(name: str, sweep: Sweep) -> None:
    case = case_of(name)
    if isinstance(case, Inner | Untried):
        return
    first, second = both(name)
    if isinstance(case, Refused):
        assert sweep.hashes(first)
        with pytest.raises(ConfigError):
            sweep.hashes(second)
        return
    try:
        before = sweep.hashes(first)
    except ConfigError:
        assert case.refused
        assert sweep.hashes(second)
        return
    assert (sweep.hashes(second) == before) == (_declared(name, UNHASHED) is not None)


@pytest.mark.parametrize("name", [_marked(name, SLOW) for name in KEYS])
def test_another_value_does_something_else(name: str, sweep: Sweep) -> None:
    case = case_of(name)
    if isinstance(case, Inner | Refused | Untried) or _declared(name, ELSEWHERE) is not None:
        return
    before, after = both(name)
    if case.strict or case.refused:
        with pytest.raises(RlaifError):
            sweep.observe(before)
        assert sweep.observe(after)
        return
    if case.ends:
        assert sweep.observe(before)
        with pytest.raises(RlaifError):
            sweep.observe(after)
        return
    first, second = sweep.observe(before), sweep.observe(after)
    # Compared before, since a diff of these texts takes minutes.
    same = first == second
    assert same == (_declared(name, NOTHING) is not None)
    named = name.endswith(".id") and isinstance(case.value, str)
    if named and name.split(".")[0] not in NAMED_BY_CHANCE:
        # Were seeds or the order of ids part of what is seen, every key would seem to do something.
        alone = _renamed(first, name) == _renamed(second, name)
        assert alone, "another id changes more than the name"


def _renamed(text: str, name: str) -> list[str]:
    """The lines of what a run does, with one word for the first and the second id."""
    owner, case = OWNERS[name.split(".")[0]], case_of(name)
    _, place = PLACES[owner.__name__]
    first: Any = both(name)[0]
    for part in place:
        first = first[part]
    old = first.get("id", owner.model_fields["id"].default)
    assert isinstance(case, Case)
    return sorted(re.sub(rf"\b({old}|{case.value})\b", "NAME", text).splitlines())


VERSIONED = {
    "sample": "sample",
    "judge": "judge yes_no",
    "pair": "pair",
    "label": "label",
    "distill": "train bradley_terry",
    "train": "train sft",
    "on_policy": "train grpo",
    "logprobs": "evaluate",
    "evaluate": "evaluate",
    "load": "load",
    "filter": "filter rule",
    "revise": "revise",
    "compare": "arms trained",
    "choose": "until",
    "average": "average",
    "questions": "asked pairs",
    "bench": "asked pairs",
    "arena": "arena",
}
"""An experiment with a step of each kind that has a number of its own."""
SLOWLY = {
    "pair",
    "label",
    "distill",
    "train",
    "on_policy",
    "logprobs",
    "evaluate",
    "compare",
    "choose",
    "average",
}


def test_every_kind_of_step_has_an_experiment() -> None:
    assert VERSIONED.keys() == {*STEPS, "on_policy"}


@pytest.mark.parametrize("kind", VERSIONED)
def test_a_raised_number_makes_the_steps_of_its_kind_anew(
    kind: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sweep.plan(SWEPT[VERSIONED[kind]])
    _raise_number(kind, monkeypatch)
    after = sweep.plan(SWEPT[VERSIONED[kind]])
    anew = {old.hash for old, new in zip(before, after, strict=True) if old.hash != new.hash}
    mine = {step.hash for step in before if _is_of(kind, step)}
    assert mine
    assert mine <= anew
    assert all(step.hash in mine or step.sources & anew for step in before if step.hash in anew)


def _raise_number(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = step_module("train"), "ON_POLICY_VERSION"
    if kind != "on_policy":
        module, name = step_module(kind), "VERSION"
    monkeypatch.setattr(module, name, getattr(module, name) + 1)


def _is_of(kind: str, step: Planned) -> bool:
    return step.kind == ("train" if kind == "on_policy" else kind)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.slow] if k in SLOWLY else []) for k in VERSIONED],
)
def test_other_hashes_alone_do_nothing_else(
    kind: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what the sweep sees of a key is what it does, and not that it is in a hash."""
    data = SWEPT[VERSIONED[kind]]
    before = sweep.observe(data)
    _raise_number(kind, monkeypatch)
    same = sweep.observe_again(data) == before
    assert same


def _pointed() -> Iterator[tuple[str, list[str], str]]:
    """(what is not swept, its keys, the test that looks at it)"""
    for name, tests in UNSWEPT.items():
        text = "\n".join((ROOT / test.split("::")[0]).read_text() for test in tests)
        assert all(key in text for key in keys(OWNERS[name])), name
        yield from ((name, [], test) for test in tests)
    for name, test in ELSEWHERE.items():
        yield name, [name.split(".")[1]], test
    for name in KEYS:
        case = case_of(name)
        if isinstance(case, Untried):
            yield name, [name.split(".")[1]], case.test


def test_what_is_looked_at_elsewhere_is_looked_at_there() -> None:
    for name, named, test in _pointed():
        path, function = test.split("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {function}\(", text, re.MULTILINE), f"{name}: no {test}"
        assert all(re.search(rf"\b{key}\b", text) for key in named), (
            f"{test} says nothing of {name}"
        )


def test_what_is_declared_is_a_key() -> None:
    parents = {p.__name__: p for owner in OWNERS.values() for p in owner.__mro__}
    for name in [*UNHASHED, *ELSEWHERE, *NOTHING]:
        owner, _, key = name.partition(".")
        assert key in getattr(parents[owner], "model_fields", {}), name


def _declared(name: str, table: Mapping[str, str]) -> str | None:
    """What a table says of a key, or of that of a parent class; None where it says nothing."""
    owner, _, key = name.partition(".")
    parents = [parent.__name__ for parent in OWNERS[owner].__mro__]
    return next((table[f"{p}.{key}"] for p in parents if f"{p}.{key}" in table), None)
