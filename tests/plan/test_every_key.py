"""Every key of every spec reaches what it is for: another value gives other hashes and does
something else. The keys are read off the config classes, so a new one is here at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from rlaif.errors import ConfigError, RlaifError
from tests.plan.files import write_files
from tests.plan.judging_server import JudgingServer
from tests.plan.models import write_models
from tests.plan.more_files import write_more_files
from tests.plan.observed import Sweep, changed
from tests.plan.places import PLACES, SWEPT, UNSWEPT
from tests.plan.schema import classes, keys
from tests.plan.values import ELSEWHERE, UNHASHED, VALUES, Case, Refused, Untried

OWNERS = {owner.__name__: owner for owner in classes()}
KEYS = [f"{name}.{key}" for name, owner in OWNERS.items() if name in PLACES for key in keys(owner)]


FIRST = {
    **dict.fromkeys(("TextStep", "TrainStep"), "SftTrain"),
    "ReferenceTrain": "DpoTrain",
    "OnPolicyTrain": "GrpoTrain",
    "DistillStep": "BradleyTerryDistill",
    "FitStep": "LinearDistill",
    "GatedDistill": "MultiObjectiveDistill",
}
"""Of each parent class of trainings the child whose training shows the parent's keys; that of its
other children takes the same way through the code, and is slow."""


def _marked(name: str) -> Any:
    owner, _, key = name.partition(".")
    parents = [
        p.__name__ for p in OWNERS[owner].__mro__ if key in getattr(p, "__annotations__", {})
    ]
    first = FIRST.get(parents[0], owner) if parents else owner
    # Where a child gives a parent's key another default alone.
    again = parents[0] == owner and any(p in FIRST for p in parents[1:]) if parents else False
    slow = first != owner or again
    return pytest.param(name, marks=[pytest.mark.slow] if slow else [])


def test_every_class_has_a_place_in_an_experiment() -> None:
    unknown = OWNERS.keys() - PLACES.keys() - UNSWEPT.keys()
    assert not unknown, "give them a place in tests/plan/places.py"
    assert not PLACES.keys() & UNSWEPT.keys()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch, JudgingServer() as server:
        patch.setenv("RLAIF_CACHE", str(folder / "cache"))
        write_files(folder)
        write_more_files(folder)
        write_models(folder)
        yield Sweep(folder, server)


def case_of(name: str) -> Case | Refused | Untried:
    """The second value of a key, of the nearest parent class that has one."""
    owner, _, key = name.partition(".")
    for parent in OWNERS[owner].__mro__:
        if key in VALUES.get(parent.__name__, {}):
            value = VALUES[parent.__name__][key]
            return value if isinstance(value, Case | Refused | Untried) else Case(value)
    raise AssertionError(f"{name}: give it a second value in tests/plan/values.py")


def both(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The experiments with the first and the second value of a key."""
    owner, _, key = name.partition(".")
    case = case_of(name)
    assert not isinstance(case, Untried)
    if isinstance(case, Refused):
        base, place = PLACES[owner]
        return SWEPT[base], changed(SWEPT[base], place, {key: case.value})
    base, place = case.base or PLACES[owner]
    if case.strict:
        base = "strict " + base.split()[1]
    whole = {"rounds": case.rounds} if case.rounds else {}
    first = changed(SWEPT[base] | whole, place, case.given)
    return first, changed(first, place, {key: case.value} | case.also)


@pytest.mark.parametrize("name", KEYS)
def test_another_value_gives_other_hashes(name: str, sweep: Sweep) -> None:
    case = case_of(name)
    if isinstance(case, Untried):
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
    assert (sweep.hashes(second) == before) == (unhashed(name) is not None)


@pytest.mark.parametrize("name", [_marked(name) for name in KEYS])
def test_another_value_does_something_else(name: str, sweep: Sweep) -> None:
    if isinstance(case_of(name), Refused | Untried) or elsewhere(name) is not None:
        return
    before, after = both(name)
    case = case_of(name)
    if isinstance(case, Case) and (case.strict or case.refused):
        with pytest.raises(RlaifError):
            sweep.observe(before)
        assert sweep.observe(after)
        return
    first, second = sweep.observe(before), sweep.observe(after)
    # Compared before, since a diff of these texts takes minutes.
    same = first == second
    assert not same


def unhashed(name: str) -> str | None:
    """Why a key is in no hash; None where it is in one."""
    return _declared(name, UNHASHED)


def elsewhere(name: str) -> str | None:
    """Why a key's effect is not looked at; None where it is."""
    return _declared(name, ELSEWHERE)


def _declared(name: str, table: Mapping[str, str]) -> str | None:
    owner, _, key = name.partition(".")
    parents = [parent.__name__ for parent in OWNERS[owner].__mro__]
    return next((table[f"{p}.{key}"] for p in parents if f"{p}.{key}" in table), None)
