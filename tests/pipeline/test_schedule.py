"""Which steps run beside others, and how two threads end together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.models import ModelSpec
from rlaif.core.store import Store
from rlaif.engines.base import Model
from rlaif.pipeline.experiment import overlap_groups, run_both, split_group, unfinished
from rlaif.pipeline.plan.base import Planned
from rlaif.train.methods.pairs import DpoTrain

HERE = ModelSpec(path="builtin/smollm2-135m-instruct")


def far(name: str, **keys: Any) -> ModelSpec:
    return ModelSpec(path=name, engine="openai", base_url="http://127.0.0.1:9/v1", **keys)


def step(kind: str, name: str, **models: ModelSpec) -> Planned:
    asked = {role: Model(spec.path, role, spec) for role, spec in models.items()}
    return Planned(name, kind, name, 0, 1, None, models=asked)


def names(steps: list[Planned]) -> str:
    return " ".join(planned.id for planned in steps)


def test_steps_that_need_samples_alone_are_a_piece() -> None:
    samples, judges = ["sample"], ["judge"]
    kinds = ["load", *judges * 2, "pair", "train", *samples, *judges, "logprobs", "evaluate"]
    kinds += samples
    plan = [step(kind, f"{kind}{n}") for n, kind in enumerate(kinds)]
    assert [names(piece) for piece in overlap_groups(plan)] == [
        "load0",
        "judge1 judge2",
        "pair3",
        "train4",
        "sample5 judge6",
        "logprobs7",
        "evaluate8",
        "sample9",
    ]


@pytest.mark.parametrize(
    ("judge", "beside"),
    [
        ({"by": far("a")}, True),
        ({"by": far("a"), "other": far("b")}, True),
        ({}, False),
        ({"by": HERE}, False),
        ({"by": far("a"), "other": HERE}, False),
        ({"by": ModelSpec(path="x", engine="package.module:Name")}, False),
        # The sampler's own server, whatever the price.
        ({"by": far("s")}, False),
        ({"by": far("s", price={"input": 1, "output": 1})}, False),
    ],
)
def test_judges_that_only_other_servers_answer_go_beside(judge: Any, beside: bool) -> None:
    steps = [step("sample", "s1", by=HERE), step("sample", "s2", by=far("s"))]
    steps += [step("judge", "j", **judge), step("judge", "k", by=HERE)]
    here, others = split_group(steps)
    assert names(others) == ("j" if beside else "")
    assert names(here) == ("s1 s2 k" if beside else "s1 s2 j k")


def test_a_server_is_asked_by_one_thread() -> None:
    steps = [
        step("sample", "s", by=far("s")),
        step("judge", "first", by=far("b")),
        step("judge", "mixed", by=far("b"), other=far("s")),
        step("judge", "apart", by=far("c")),
    ]
    here, others = split_group(steps)
    assert (names(here), names(others)) == ("s first mixed", "apart")


def test_where_nothing_runs_here_nothing_runs_beside() -> None:
    judges = [step("judge", name, by=far(name)) for name in "ab"]
    assert split_group(judges) == (judges, [])


class Broken(Exception):
    """What a thread fails with."""


@pytest.mark.parametrize("breaks", ["here", "far", "nothing"])
def test_the_first_error_ends_both(breaks: str) -> None:
    ended, done = threading.Event(), []

    def here(check: Callable[[], None]) -> None:
        if breaks == "here":
            raise Broken
        while breaks == "far":
            check()
        done.append("here")

    def beside() -> None:
        if breaks == "far":
            raise Broken
        if breaks == "here":
            assert ended.wait(60)
        done.append("far")

    if breaks == "nothing":
        run_both(here, beside, ended.set)
        assert sorted(done) == ["far", "here"]
        assert not ended.is_set()
        return
    with pytest.raises(Broken):
        run_both(here, beside, ended.set)
    assert ended.is_set()
    assert done == (["far"] if breaks == "here" else [])


@pytest.mark.parametrize("role", ["start", "reference", "last"])
def test_a_training_without_its_masters_is_run_again_for_what_uses_it(
    tmp_path: Path, role: str
) -> None:
    def trained(name: str, **models: Model) -> Planned:
        made = Model(f"train:{name}", name, HERE, name)
        return Planned(name, "train", name, 0, 1, DpoTrain(), models={**models, "made": made})

    store = Store(tmp_path)
    first = trained("first", start=Model("weights:x", "M0", HERE))
    plan = [first, trained("second", **{role: first.models["made"]})]
    store.step("first").finish({"counts": {}})
    masters = store.model_path("first") / "masters"
    masters.mkdir(parents=True)
    assert unfinished(plan, store) == {"second"}
    masters.rmdir()
    assert unfinished(plan, store) == {"first", "second"}
    store.step("second").finish({"counts": {}})
    assert unfinished(plan, store) == set()
