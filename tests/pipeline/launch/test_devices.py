"""The GPUs that a plan uses, and those that hold it. Sizes are worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.errors import ConfigError
from rlaif.pipeline.launch.devices import GPUS, count_gpus, find_types, main_memory
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from tests.support.launching import JUDGE, STEPS

Plan = Callable[..., list[Planned]]
SMALL = {"path": "some/model", "parameters": "1B"}
DPO = {"train": {"method": "dpo"}}
GRPO = {"train": {"method": "grpo", "rewards": [{"judge": "rules"}]}}


@pytest.fixture
def plan(tmp_path: Path, write_experiment: Callable[..., Path]) -> Plan:
    def make(*more: dict[str, Any], steps: Any = STEPS, **models: Any) -> list[Planned]:
        given = {
            "models": models,
            "steps": [*steps, *more],
            "judges": [{"id": "rules", "kind": "rules"}],
        }
        path = write_experiment(tmp_path, None, rounds=1, **given)
        return list(make_plan(prepare(path, fetch=False)))

    return make


def train(**keys: Any) -> dict[str, Any]:
    return {"train": DPO["train"] | keys}


def vllm(**args: int) -> dict[str, Any]:
    return SMALL | {"engine": "vllm", "engine_args": args}


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ({"path": "none", "engine": "fake"}, 0),
        ({"path": "served"} | JUDGE, 0),
        (SMALL, 1),
        (SMALL | {"device": "cpu"}, 0),
        (SMALL | {"device": "cuda:2"}, 3),
        (vllm(), 1),
        (vllm(tensor_parallel_size=2, pipeline_parallel_size=3), 6),
        (vllm(tensor_parallel_size=2) | {"gpus": [2, 3]}, 4),
        (vllm(tensor_parallel_size=2) | {"engine": "vllm-server"}, 2),
    ],
)
def test_models_that_sample_use_what_their_engines_do(
    plan: Plan, model: dict[str, Any], count: int
) -> None:
    assert count_gpus(plan(policy=model)).count == count


@pytest.mark.parametrize(
    ("step", "count"),
    [
        (train(), 1),
        (train(processes="auto"), 1),
        (train(processes=4), 4),
        (train(processes=8, sharding="full"), 8),
    ],
)
def test_a_training_uses_one_for_each_process(plan: Plan, step: dict[str, Any], count: int) -> None:
    use = count_gpus(plan(step, policy=SMALL))
    assert use.count == count
    assert count == 1 or use.words == f"step train: `processes: {count}`"


def test_a_training_on_the_cpu_uses_none(plan: Plan) -> None:
    assert count_gpus(plan(train(processes=4), policy=SMALL | {"device": "cpu"})).count == 0


def test_an_on_policy_training_shares_devices_with_its_sampler(plan: Plan) -> None:
    made = plan(GRPO, steps=[], policy=vllm(tensor_parallel_size=2))
    assert count_gpus(made).count == 2


def hashes(made: list[Planned]) -> set[str]:
    return {planned.hash for planned in made}


def test_every_type_holds_a_small_model_and_few_hold_a_training_of_a_large_one(plan: Plan) -> None:
    made = plan(policy=SMALL | {"dtype": "bfloat16"})
    assert find_types(made, hashes(made), None, None).types == tuple(GPUS)
    # 8B: copy in bf16, master, gradient, two moments: 18 bytes each, 134 GiB.
    large = {"path": "some/model", "parameters": "8B", "dtype": "bfloat16"}
    made = plan(train(precision="bf16"), policy=large)
    held = find_types(made, hashes(made), None, None)
    assert held.most == pytest.approx(18 * 8e9 / 2**30, rel=0.05)
    assert held.types == ("H200", "B200")


@pytest.mark.parametrize(
    ("gpu", "stated", "which"),
    [("H100", None, "H100"), ("h100", None, "h100"), (None, 79.0, "this device"), ("X", 79.0, "X")],
)
def test_what_fits_no_stated_device_is_refused_with_what_to_set(
    plan: Plan, gpu: str | None, stated: float | None, which: str
) -> None:
    made = plan(train(), policy={"path": "some/model", "parameters": "8B"})
    with pytest.raises(ConfigError, match=f"does not fit {which}:\n.*step train takes") as caught:
        find_types(made, hashes(made), gpu, stated)
    assert "`lora: {}`" in str(caught.value)


def test_what_fits_no_device_at_all_is_refused(plan: Plan) -> None:
    made = plan(train(), policy={"path": "some/model", "parameters": "200B"})
    with pytest.raises(ConfigError, match="`sharding: full` with `processes"):
        find_types(made, hashes(made), None, None)


def test_finished_steps_need_no_room(plan: Plan) -> None:
    made = plan(train(), policy={"path": "some/model", "parameters": "200B"})
    left = {planned.hash for planned in made if planned.kind == "pair"}
    assert find_types(made, left, "T4", None).most == 0


def test_an_unknown_type_is_not_checked_and_an_unknown_size_is_said(plan: Plan) -> None:
    made = plan(policy={"path": "some/model"})
    held = find_types(made, hashes(made), "X9", None)
    assert (held.types, held.checked) == (("X9",), False)
    assert held.unknown == ("policy (some/model)",) or "some/model" in held.unknown[0]


def test_main_memory_holds_each_process_in_fp32(plan: Plan) -> None:
    model = {"path": "some/model", "parameters": "2147483648"}  # 8 GiB in fp32.
    assert main_memory(plan(policy=model)) == 16 + 8
    assert main_memory(plan(train(), policy=model)) == 16 + 8
    assert main_memory(plan(train(processes=4), policy=model)) == 16 + 4 * 8
    # It is gathered for the export.
    sharded = plan(train(processes=4, sharding="full"), policy=model)
    assert main_memory(sharded) == 16 + 5 * 8
    assert main_memory(plan(policy={"path": "none", "engine": "fake"})) == 16
