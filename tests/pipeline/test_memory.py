"""What a dry run says of a device's memory and of the time at a stated FLOP/s, by numbers computed
by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.config.methods import METHODS
from rlaif.config.models import ModelSpec
from rlaif.config.steps import SampleStep
from rlaif.engines.base import Model
from rlaif.engines.local import encoding
from rlaif.kernels.device import has_fast_bf16
from rlaif.pipeline import memory
from rlaif.pipeline.flops import count_flops
from rlaif.pipeline.memory import (
    GIB,
    Device,
    Part,
    Sizes,
    StepMemory,
    advise,
    estimate_memory,
    planned_device,
)
from rlaif.pipeline.memory_table import LargestMemory, advise_memory
from rlaif.pipeline.plan.base import Known, Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.stages import Until
from rlaif.pipeline.steps import step_module
from tests.engines.test_model_size import CONFIG, LLAMA, write_model

GPU = Device("cuda", True)
CPU = Device("cpu", False)
TOKEN = 4 * 8 + 2 * 8 + 2 * 4 + 3 * 20
"""Numbers that a layer of the small model keeps of a token."""


@pytest.fixture
def small(tmp_path: Path) -> ModelSpec:
    """Of 1872 parameters."""
    return ModelSpec(path=str(write_model(tmp_path / "small", LLAMA, CONFIG)))


def named(name: str, spec: ModelSpec) -> Model:
    return Model(f"weights:{name}", name, spec)


def training(spec: ModelSpec, method: str = "dpo", **keys: Any) -> Planned:
    """A training that is planned; with `other` its reference is another model than its start."""
    other = keys.pop("other", None)
    judge = keys.pop("judge", None)
    step = METHODS[method].model_validate({"method": method, "id": "t", **keys})
    start = named("M0", spec)
    models = {"start": start, "made": named("M1", spec)}
    models["reference"] = start if other is None else named("other", other)
    if judge is not None:
        models["judge/j"] = named("judge", judge)
    return Planned("h", "train", "t", 0, 1, step, models=models)


def held(*plan: Planned, device: Device = GPU) -> list[StepMemory]:
    return estimate_memory(plan, {planned.hash for planned in plan}, device)


def states(one: StepMemory) -> list[tuple[str, int]]:
    return [(part.role, part.state) for part in one.parts]


@pytest.mark.parametrize(
    ("keys", "device", "bytes_of"),
    [
        # 2 + 4 + 4 + 8; in fp32 the weights are their own masters.
        ({}, GPU, 18 * 1872),
        ({}, CPU, 16 * 1872),
        ({"precision": "fp32"}, GPU, 16 * 1872),
        # 2 + 4 + 4 + 2 with a scale in fp32 for 256 numbers of each moment.
        ({"optimizer": "adamw_8bit"}, GPU, round(12.03125 * 1872)),
        # Adapters of 3 x 56 parameters on weights in bf16: less than the weights in fp32.
        ({"lora": {"r": 3}, "micro_batch_tokens": 1, "max_length": 1}, GPU, 2 * 1872 + 18 * 168),
        ({"lora": {"r": 3}}, CPU, 4 * 1872 + 16 * 168),
        # A quarter of fp32 weights, gradients and moments; 1608 outside of layers and two layers of
        # 160 in bf16, and the gradient of 1608 in bf16 and fp32.
        (
            {"sharding": "full", "processes": 4},
            GPU,
            16 * 1872 // 4 + 2 * (1608 + 320) + 6 * 1608,
        ),
        ({"sharding": "full"}, GPU, 18 * 1872),
        ({"processes": 4}, GPU, 18 * 1872),
    ],
)
def test_what_stays_in_a_training(
    small: ModelSpec, keys: dict[str, Any], device: Device, bytes_of: int
) -> None:
    (one,) = held(training(small, **keys), device=device)
    assert states(one) == [("start", bytes_of)]


@pytest.mark.parametrize(
    ("method", "keys", "device", "tokens", "kept"),
    [
        # A pair may be twice as long as an answer, and the budget of a CPU is less.
        ("dpo", {"max_length": 500}, CPU, 1000, 4 * (2 * TOKEN + 32)),
        ("dpo", {"max_length": 300}, CPU, 768, 4 * (2 * TOKEN + 32)),
        ("sft", {"max_length": 900}, CPU, 900, 4 * (2 * TOKEN + 32)),
        ("dpo", {"max_length": 500}, GPU, 16384, 2 * (2 * TOKEN + 32)),
        ("dpo", {"max_length": 50, "micro_batch_tokens": 70}, GPU, 100, 2 * (2 * TOKEN + 32)),
        # The inputs of both layers and all of one.
        ("dpo", {"gradient_checkpointing": True}, GPU, 16384, 2 * (16 + TOKEN + 32)),
        # The prompt with an answer, and the other three.
        (
            "grpo",
            {"max_length": 500, "max_new_tokens": 100, "n": 4, "rewards": {"j": 1},
             "micro_batch_tokens": 70},
            GPU, 800, 2 * (2 * TOKEN + 32),
        ),
    ],
)  # fmt: skip
def test_what_a_backward_pass_keeps(
    small: ModelSpec, method: str, keys: dict[str, Any], device: Device, tokens: int, kept: int
) -> None:
    (one,) = held(training(small, method, **keys), device=device)
    assert one.parts[0].work == tokens * kept
    assert f"of {tokens} tokens" in one.parts[0].words
    assert one.total == sum(part.state for part in one.parts) + tokens * kept


def test_references_are_there_when_they_are_needed(small: ModelSpec) -> None:
    large = ModelSpec(path="org/large", parameters=10**6)
    quick = {"micro_batch_tokens": 1, "max_length": 2, "max_new_tokens": 1}
    # DPO: before the training, without gradients, and in fp32 while it is loaded.
    before = training(small, other=large, micro_batch_tokens=1, max_length=2)
    assert states(held(before)[0]) == [("reference", 4 * 10**6)]
    rewards = {"rewards": {"j": 1}, "beta": 0.1, **quick}
    # On-policy: beside it; in fp32 while it is loaded, beside a policy without moments.
    (both,) = held(training(small, "grpo", other=large, **rewards))
    assert states(both) == [("start", 10 * 1872), ("reference", 4 * 10**6)]
    (both,) = held(training(small, "grpo", **rewards))
    assert states(both) == [("start", 18 * 1872), ("reference", 2 * 1872)]
    # With adapters the policy itself is the reference; without a KL there is none.
    (one,) = held(training(small, "grpo", lora={"r": 3}, **rewards))
    assert [role for role, _ in states(one)] == ["start"]
    (one,) = held(training(small, "grpo", **rewards | {"beta": 0}))
    assert [role for role, _ in states(one)] == ["start"]


def test_critics_and_judges_are_beside_an_on_policy_training(small: ModelSpec) -> None:
    judge = ModelSpec(path="org/judge", parameters=10**6)
    keys = {"rewards": {"j": 1}, "critic": "separate"}
    (one,) = held(training(small, "ppo", judge=judge, **keys))
    assert states(one) == [
        ("start", 18 * 1872),
        ("reference", 2 * 1872),
        ("critic", 18 * 1872),
        ("judge/j", 2 * 10**6),
    ]
    # One model computes at a time.
    works = [part.work or 0 for part in one.parts]
    assert one.total == sum(part.state for part in one.parts) + max(works)


def sampling(name: str, spec: ModelSpec) -> Planned:
    model = named(name, spec)
    return Planned(f"of {name}", "sample", name, 0, 1, SampleStep(), models={"by": model})


def test_engines_stay_loaded_as_the_pool_keeps_them(small: ModelSpec) -> None:
    specs = {n: ModelSpec(path=f"org/{n}", parameters=n) for n in (10, 20, 30)}
    plan = [sampling(str(n), spec) for n, spec in specs.items()]
    found = held(*plan, training(small), sampling("10", specs[10]))
    # Two engines at most; none before a training.
    assert [[part.state for part in one.parts] for one in found] == [
        [20], [20, 40], [40, 60], [18 * 1872], [20]
    ]  # fmt: skip
    remote = ModelSpec(path="far", engine="openai", base_url="http://127.0.0.1:9/v1")
    assert held(sampling("far", remote), sampling("fake", ModelSpec(path="x", engine="fake"))) == []
    # What is finished is not loaded again.
    assert estimate_memory(plan, {plan[2].hash}, GPU)[0].parts[0].state == 60


def test_keys_and_values_are_those_of_the_largest_batch(small: ModelSpec) -> None:
    # Two layers with keys and values of 4 numbers each.
    def cached(device: Device, **keys: Any) -> int | None:
        spec = small.model_copy(update=keys)
        return held(sampling("m", spec), device=device)[0].parts[0].work

    assert cached(GPU, batch_tokens=100) == 100 * 16 * 2
    assert cached(CPU) == 16384 * 16 * 4
    assert cached(GPU) == 2**18 * 16 * 2
    # Half of what the weights leave, down to a power of two.
    memory_of = 2 * 1872 + 2 * 5000 * 32
    assert cached(Device("cuda", True, memory_of)) == 4096 * 32
    assert cached(GPU, dtype="float32", batch_tokens=10) == 10 * 16 * 4


def test_the_constants_are_those_of_what_runs() -> None:
    assert memory.MOST_CACHED == encoding.MOST_TOKENS
    assert memory.CACHE_SHARE == encoding.CACHE_SHARE
    assert planned_device().bf16 == has_fast_bf16("cpu") or planned_device().kind == "cuda"


def test_vllm_divides_its_weights_over_its_gpus() -> None:
    spec = ModelSpec(
        path="org/x", engine="vllm", parameters=1000, engine_args={"tensor_parallel_size": 4}
    )
    (one,) = held(sampling("m", spec))
    assert [(part.state, part.work) for part in one.parts] == [(500, None)]


def test_a_step_that_keeps_a_model_holds_none(small: ModelSpec) -> None:
    kept = {"round 1": named("M1", small), "made": named("best", small)}
    choice = Planned("c", "choose", "choice", 0, 1, Until(by="j"), models=kept)
    assert held(choice) == []


def test_what_is_not_known_is_said(small: ModelSpec) -> None:
    absent = ModelSpec(path="org/absent")
    (one,) = held(training(absent))
    assert (one.parts, one.unknown) == ((), ("M0 (org/absent)",))
    (one,) = held(sampling("m", absent))
    assert (one.parts, one.unknown) == ((), ("m (org/absent)",))


def test_settings_that_would_do_are_named(small: ModelSpec) -> None:
    spec = ModelSpec(path="org/8b", parameters="8B")

    def ways(gib: float, **keys: Any) -> list[str]:
        return advise(training(spec, **keys), Device("cuda", True, gib * 2**30))

    # 134 GiB for all weights, 89.6 with moments in 8 bits, 29.8 with adapters while loading.
    assert ways(100) == [
        "`optimizer: adamw_8bit`",
        "`lora: {}`",
        "`sharding: full` with `processes: 2`",
    ]
    assert ways(40) == ["`lora: {}`", "`sharding: full` with `processes: 4`"]
    assert ways(0.2) == []
    # Fewer tokens, where they are what takes it.
    tokens = advise(
        training(small, micro_batch_tokens=10**6, max_length=10), Device("cuda", True, 10**6)
    )
    assert "`micro_batch_tokens: 1024`" in tokens
    # On-policy every device also has the whole policy in bf16, 14.9 GiB, beside an eighth of 18
    # bytes a parameter with the reference.
    fresh = training(spec, "grpo", rewards={"j": 1})
    found = advise(fresh, Device("cuda", True, 40 * 2**30))
    assert found == ["`lora: {}`", "`sharding: full` with `processes: 8`"]
    assert all("sharding" not in way for way in advise(fresh, Device("cuda", True, 14 * 2**30)))


def test_a_divided_policy_is_whole_where_it_samples(small: ModelSpec) -> None:
    keys = {"rewards": {"j": 1}, "sharding": "full", "processes": 4, "beta": 0.1}
    divided = 16 * 1872 // 4 + 2 * (1608 + 320) + 6 * 1608
    spec = small.model_copy(update={"batch_tokens": 100})
    (one,) = held(training(spec, "grpo", **keys))
    # Neither is loaded on the device in fp32.
    assert states(one) == [("start", divided), ("reference", 468 * 2), ("sampler", 2 * 1872)]
    assert one.parts[2].work == 100 * 16 * 2
    (one,) = held(training(spec, "grpo", lora={"r": 3}, **keys))
    assert states(one)[-1] == ("sampler", 2 * (1872 + 168))
    other = spec.model_copy(update={"engine": "vllm", "gpus": "1"})
    (one,) = held(training(other, "grpo", **keys))
    assert "sampler" not in dict(states(one))


def test_what_a_sampling_that_is_too_large_could_set() -> None:
    spec = ModelSpec(path="org/8b", parameters="8B")

    def ways(gib: float, **keys: Any) -> list[str]:
        model = spec.model_copy(update=keys)
        return advise(sampling("m", model), Device("cuda", True, gib * 2**30))

    # 14.9 GiB in bf16, twice that in fp32; 0.8 of a device for a part of the weights.
    assert ways(16) == [
        "fewer `batch_tokens`, or one model at a time",
        "`engine: vllm` with `engine_args: {tensor_parallel_size: 2}`",
    ]
    assert ways(16, dtype="float32")[0] == "`dtype: bfloat16`"
    assert ways(5) == ["`engine: vllm` with `engine_args: {tensor_parallel_size: 4}`"]
    assert ways(0.5) == []


def test_an_engine_of_its_own_samples_beside_an_on_policy_training(small: ModelSpec) -> None:
    keys = {"rewards": {"j": 1}, "beta": 0}
    spec = small.model_copy(update={"engine": "vllm"})
    (one,) = held(training(spec, "grpo", **keys))
    assert states(one) == [("start", 18 * 1872), ("sampler", 2 * 1872)]
    # On GPUs of its own it takes nothing of those that train.
    (one,) = held(training(spec.model_copy(update={"gpus": [1]}), "grpo", **keys))
    assert [role for role, _ in states(one)] == ["start"]


FILE = """\
name: memory
models: {policy: {path: org/absent, parameters: 1B}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 2}
steps:
  - sample: {n: 2, max_new_tokens: 10}
  - judge: {kind: rating, by: policy}
  - pair: {}
  - train: {max_length: 20, LORA}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # 40 bytes, which are 10 tokens.
    lines = "".join(f'{{"prompt": "{"Question":36}{n:4}"}}\n' for n in range(8))
    (tmp_path / "prompts.jsonl").write_text(lines)
    return tmp_path / "experiment.yaml"


def dry_run(file: Path, *words: str) -> str:
    result = CliRunner().invoke(cli, ["run", str(file), "--dry-run", *words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("keys", "passes"),
    [("", 6), ("lora: {}", 4), ("gradient_checkpointing: true", 8), ("epochs: 2", 2 * 6)],
)
def test_time_follows_from_parameters_tokens_and_a_stated_speed(
    file: Path, keys: str, passes: int
) -> None:
    file.write_text(FILE.replace("LORA", keys))
    found = json.loads(dry_run(file, "--flops", "1e9", "--json"))
    seconds = {step["id"]: step["seconds"] for step in found["steps"]}
    # 6 prompts with 2 answers: 12 x (10 + 10) tokens, 2 for each parameter and token.
    assert seconds["sample"] == 2 * 240
    # 6 pairs of 2 x 20 tokens, and once by the reference, whatever the epochs.
    assert seconds["train"] == (passes + 2) * 240
    assert found["device"]["flops"] == 1e9
    text = dry_run(file, "--flops", "1e9")
    assert "at 1e+09 FLOP/s, as stated" in text and "unknown" not in text
    # Nothing is stated: no rate is known for a model of that size.
    none = json.loads(dry_run(file, "--json"))
    assert {s["seconds"] for s in none["steps"] if s["kind"] in ("sample", "train")} == {None}
    assert "an unknown time in" in dry_run(file)


def test_what_a_server_judges_is_computed_elsewhere(file: Path) -> None:
    """The calls of a reward's judge are none of the answers that the policy samples."""
    train = "{method: grpo, rewards: {rate: 1}, n: 2, batch_size: 2, max_new_tokens: 10}"
    found = []
    for judge in ("{id: rate, kind: rules}", "{id: rate, kind: rating, by: far}"):
        file.write_text(
            "name: judged\nconstitution: constitutions/concise_helper.yaml\n"
            "models: {policy: {path: org/absent, parameters: 1B}, far: {engine: openai, "
            "path: m, base_url: 'http://127.0.0.1:1/v1'}}\n"
            "prompts: {path: prompts.jsonl, holdout: 2}\n"
            f"judges: [{judge}]\nsteps: [train: {train}]\n"
        )
        inputs = prepare(file, fetch=False)
        (step,) = [p for p in make_plan(inputs) if p.kind == "train"]
        size = step_module("train").size(inputs, step, Known())
        found.append((size.calls, count_flops(inputs, step, size, {}, Sizes())))
    (alone, flops), (judged, same) = found
    assert judged > alone and flops == same is not None


def test_the_memory_is_in_the_table_and_in_json(file: Path) -> None:
    file.write_text(FILE.replace("LORA", ""))
    found = json.loads(dry_run(file, "--device-memory", "10", "--json"))
    by_step = {row["step"]: row for row in found["memory"]}
    assert by_step["train"]["bytes"] == 18 * 10**9 and by_step["sample"]["bytes"] == 2 * 10**9
    assert by_step["train"]["models"][0]["parameters"] == 10**9
    assert [note for note in found["notes"] if "step train takes about 16.8 GiB" in note]
    assert not any("step sample" in note for note in found["notes"])
    text = dry_run(file, "--device-memory", "10")
    assert "note: step train takes about 16.8 GiB of a device that has 10. It would fit" in text
    row = next(line for line in text.splitlines() if line.startswith("  train"))
    assert row.split()[1:7] == ["16.76", "M0", "(org/absent)", "1B", "16.76", "-"]
    assert "18 bytes a parameter" in row
    assert "takes about" not in dry_run(file, "--device-memory", "17", "--strict")
    words = ["run", str(file), "--dry-run", "--strict", "--device-memory", "10"]
    refused = CliRunner().invoke(cli, words)
    assert "--strict: step train takes about 16.8 GiB of a device that has" in str(
        refused.exception
    )


def test_a_run_takes_neither_option(file: Path) -> None:
    file.write_text(FILE.replace("LORA", ""))
    for words in (["--flops", "1"], ["--device-memory", "1"]):
        result = CliRunner().invoke(cli, ["run", str(file), *words])
        assert result.exit_code == 2 and "--dry-run" in result.output


def test_a_step_that_just_fits_fits() -> None:
    whole = Part("policy", "start", 1, GIB, 0, "fp32 weights")
    row = LargestMemory("train", StepMemory("train", "train", "h", (whole,)))
    assert advise_memory([row], [], Device("cuda", True, float(GIB))) == []
    assert advise_memory([row], [], Device("cuda", True)) == []
