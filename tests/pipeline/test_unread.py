"""Plans in which a step's output is surely lost are refused before anything is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif.pipeline.plan.base import Planned
from tests.pipeline.test_plan import planned, refusal

Steps = list[dict[str, Any]]
PAIRS = {"load": {"id": "people", "type": "pairs", "path": "pairs.jsonl"}}
JUDGE = {"judge": {"id": "checks", "kind": "rules"}}
TRAIN = {"train": {"beta": 0.1}}


def sample(name: str) -> dict[str, Any]:
    # Steps that ask the same of the same model are one step, whatever they are called.
    return {"sample": {"id": name, "n": 2 + len(name)}}


def judge(name: str, *uses: str) -> dict[str, Any]:
    spec = {"id": name, "kind": "yes_no", "by": "policy", "principles": ["kind"]}
    return {"judge": spec | ({"uses": list(uses)} if uses else {})}


def plan(folder: Path, steps: Steps, **more: Any) -> list[Planned]:
    return planned(folder, lambda data, _: data.update(steps=steps, **more))


def said(folder: Path, steps: Steps, **more: Any) -> str:
    return refusal(folder, lambda data, _: data.update(steps=steps, **more))


def test_samples_that_a_second_sample_step_hides_are_refused(tmp_path: Path) -> None:
    message = said(tmp_path, [sample("one"), sample("second"), JUDGE, {"pair": {}}, TRAIN])
    assert "no step reads the answers of 'one': step 'second' takes their place" in message
    assert "experiment.yaml:" in message and "pool" in message


def test_a_pair_that_sees_the_last_of_two_judged_samples_is_refused(tmp_path: Path) -> None:
    steps = [sample("one"), judge("early"), sample("second"), judge("late"), {"pair": {}}, TRAIN]
    assert "no step reads the judgements of 'early'" in said(tmp_path, steps)
    both = [sample("one"), sample("second"), judge("both", "one", "second"), {"pair": {}}, TRAIN]
    message = said(tmp_path, both)
    assert "sees the answers of second alone, and judge 'both' judged those of one too" in message


def test_answers_of_earlier_rounds_may_be_judged(tmp_path: Path) -> None:
    plan(tmp_path, [sample("one"), judge("all", "one@*"), {"pair": {}}, TRAIN])


def test_what_a_filter_leaves_out_may_be_judged(tmp_path: Path) -> None:
    kept = {"filter": {"records": "completions", "filters": [{"kind": "truncated"}]}}
    plan(tmp_path, [sample("one"), JUDGE, kept, {"pair": {}}, TRAIN])
    plan(tmp_path, [sample("one"), kept, JUDGE, {"pair": {}}, TRAIN])


def test_one_sample_step_of_several_models_is_one_source(tmp_path: Path) -> None:
    pool = {"sample": {"n": 2, "pool": [{"by": "policy"}, {"by": "other"}]}}
    plan(tmp_path, [pool, JUDGE, {"pair": {}}, TRAIN])


def test_a_judge_of_loaded_pairs_that_no_step_uses_is_refused(tmp_path: Path) -> None:
    given = {"load": {"id": "given", "type": "preferences", "path": "given.jsonl"}}
    message = said(tmp_path, [PAIRS, judge("self"), given, TRAIN])
    assert "judge 'self' judges the pairs that 'people' loads, and no step uses them" in message
    assert "judge-bench" in message
    plan(tmp_path, [PAIRS, judge("self"), {"label": {"labels": "ai"}}, TRAIN])
    plan(tmp_path, [PAIRS, judge("self"), {"pair": {}}, TRAIN])


def test_pairs_that_other_pairs_replace_are_refused_unless_something_reads_them(
    tmp_path: Path,
) -> None:
    first, second = {"pair": {"id": "first"}}, {"pair": {"id": "second", "min_margin": 0.3}}
    steps = [sample("one"), JUDGE, first, second, TRAIN]
    assert "no step reads the pairs of 'first'" in said(tmp_path, steps)
    plan(tmp_path, [*steps[:-1], {"train": {"uses": ["first", "second"]}}])
    plan(tmp_path, steps, dataset={"uses": "first"})


def test_what_is_last_may_be_wanted_for_itself(tmp_path: Path) -> None:
    plan(tmp_path, [sample("one"), judge("self")], rounds=1)
    plan(tmp_path, [sample("one"), JUDGE, {"pair": {}}, judge("audit"), TRAIN])
