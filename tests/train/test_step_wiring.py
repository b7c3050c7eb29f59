"""One optimiser step, the models of on-policy training, and what a train step reports and keeps:
each number has one place where it can come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from pydantic import TypeAdapter

from rlaif.config.methods import AnyDistill, AnyTrain
from rlaif.config.models import ModelSpec
from rlaif.core.progress import QuietProgress
from rlaif.core.store import Store
from rlaif.engines.base import Model, RewardResult
from rlaif.metrics.intervals import Interval
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.steps import train
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.training_data import TrainingData
from rlaif.train import loop, on_policy
from rlaif.train.loop import TrainJob, TrainOutcome, TrainProgress, learning_rate, make_optimizer
from rlaif.train.methods.pairs import DpoTrain
from rlaif.train.reward_model import read_trained, write_trained
from rlaif.train.rollout import Critic
from rlaif.train.tokenise import Encoded, Example
from rlaif.train.trackers import Tracked


def training(**keys: Any) -> Any:
    return TypeAdapter(AnyTrain).validate_python(keys)


class Trained:
    """A model of one weight, which notes by what norm it is clipped."""

    sharded = False
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.module = torch.nn.Linear(2, 1, bias=False)
        self.masters = {"w": torch.nn.Parameter(torch.tensor([1.0, 2.0]))}
        self.said: list[Any] = []

    def sum_gradients(self) -> None:
        self.said.append("sum")

    def gather(self) -> None:
        self.said.append("gather")

    def clip_gradients(self, norm: float) -> float:
        gradient = self.masters["w"].grad
        assert gradient is not None
        self.said.append((norm, gradient.tolist()))
        return 5.0

    def sync(self) -> None:
        self.said.append("sync")


@dataclass
class Summing:
    """A task whose loss of a micro-batch is that of its examples' numbers, times the weight."""

    model: Trained
    examples: Sequence[Any] = (1.0, 10.0, 100.0, 1000.0)
    asked: list[Any] = field(default_factory=list)

    def total(self, batch: Sequence[int]) -> float:
        self.asked.append(list(batch))
        return 4.0

    def loss(self, model: Any, micro: Sequence[int], total: float, step: int) -> Any:
        self.asked.append((list(micro), total, step))
        value = sum(self.examples[i] for i in micro)
        loss = (self.model.masters["w"] * torch.tensor([value, 1.0])).sum() / total
        sums = {
            "margin": (value, float(len(micro))),
            "gap_min": (value, 1.0),
            "gap_max": (value, 1.0),
        }
        return loss, sums, 7 * len(micro)


def test_a_step_sums_its_micro_batches_clips_and_takes_the_rate_of_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "trainable_code", lambda module: nullcontext())
    options = training(
        method="sft",
        learning_rate=0.25,
        adam_betas=[0.5, 0.75],
        weight_decay=0.125,
        max_grad_norm=0.375,
        schedule="linear",
        warmup_ratio=0.0,
        min_lr_ratio=0.2,
    )
    model: Any = Trained()
    optimizer = make_optimizer(model, options)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.25, (0.5, 0.75), 0.125)
    assert group["params"] == [model.masters["w"]]
    task: Any = Summing(model)
    row = loop.optimiser_step(task, model, optimizer, [[3, 1], [2]], options, 6, 10, tmp_path)
    assert task.asked == [[3, 1, 2], ([3, 1], 4.0, 6), ([2], 4.0, 6)]
    # 1010 and 100 times 1 and once 2 in each: the gradients of both parts.
    assert row["loss"] == pytest.approx((1010 + 2 + 100 + 2) / 4)
    assert model.said == ["sum", (0.375, [1110 / 4, 0.5]), "sync"]
    rate = learning_rate(6, 10, options)
    assert rate == pytest.approx(0.25 * (0.2 + 0.8 * 0.4))
    assert (row["step"], row["learning_rate"], row["grad_norm"]) == (7, rate, 5.0)
    assert (row["margin"], row["gap_min"], row["gap_max"]) == (370.0, 100.0, 1010.0)
    assert row["tokens"] == 21
    # Adam's first step is the rate, after the weight has decayed by its share of it.
    wanted = [w * (1 - rate * 0.125) - rate for w in (1.0, 2.0)]
    assert model.masters["w"].tolist() == pytest.approx(wanted, rel=1e-4)
    assert group["lr"] == rate and model.masters["w"].grad.tolist() == [0.0, 0.0]


def job(tmp_path: Path, options: Any, reference: str | None = None, **keys: Any) -> TrainJob[Any]:
    return TrainJob(
        options,
        tmp_path / "start",
        tmp_path / "out",
        tmp_path / "work",
        11,
        torch.device("cpu"),
        reference=None if reference is None else tmp_path / reference,
        **keys,
    )


REWARDED: dict[str, Any] = {"rewards": {"r": 1.0}}


def test_the_reference_of_a_rollout_is_the_other_model_the_start_or_no_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_policy, "load_frozen", lambda job, folder: ("frozen", folder.name))
    model: Any = object()
    plain = training(method="grpo", beta=0.1, **REWARDED)
    lora = training(method="grpo", beta=0.1, lora={"r": 2}, **REWARDED)
    free = training(method="grpo", beta=0.0, **REWARDED)
    watched = training(method="grpo", beta=0.0, gates={"kl": {"stop": 9}}, **REWARDED)
    find: Any = on_policy._reference_model
    assert find(job(tmp_path, plain), model) == ("frozen", "start")
    assert find(job(tmp_path, plain, "other"), model) == ("frozen", "other")
    assert find(job(tmp_path, lora), model) is model
    assert find(job(tmp_path, lora, "other"), model) == ("frozen", "other")
    assert find(job(tmp_path, free, "other"), model) is None
    assert find(job(tmp_path, watched), model) == ("frozen", "start")


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_on_policy_training_gets_its_critic_reference_and_chosen_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    said: list[Any] = []
    models: Any = iter([Trained(), Trained()])
    loaded: list[Any] = []

    def load(given: Any) -> Any:
        loaded.append(next(models))
        return loaded[-1]

    outcome = TrainOutcome(3, 5, {})
    head = Critic(torch.nn.Linear(2, 1))
    mixed = [Example("e", "p", [1], ([2], [3]))]
    monkeypatch.setattr(on_policy, "load_trainable", load)
    monkeypatch.setattr(on_policy, "_reference_model", lambda job, model: ("reference", model))
    monkeypatch.setattr(on_policy, "add_critic", lambda *given: said.append(given) or head)
    monkeypatch.setattr(on_policy, "drop_critic", lambda model: said.append(("drop", model)))
    monkeypatch.setattr(on_policy, "run_on_policy", lambda *given: said.append(given) or outcome)
    monkeypatch.setattr(on_policy, "encode_data", lambda job: Encoded(mixed))
    monkeypatch.setattr(on_policy, "write_outcome", lambda *given: said.append(given))
    monkeypatch.setattr(on_policy, "export", lambda *given, **keys: said.append((*given, keys)))
    monkeypatch.setattr(on_policy, "refuse_other_tokens", lambda *given: said.append(given))
    keys: Any = {"lora": {"r": 3, "export": "both"}, "beta": 0.1}
    if method == "ppo":
        keys |= {"ptx_weight": 0.5, "critic": "separate"}
    options = training(method=method, **REWARDED, **keys)
    asked = job(tmp_path, options, "other", preferences=["some"])
    assert on_policy.train_on_policy(asked) == outcome
    model = loaded[0]
    compared = (asked.start, asked.reference)
    exported = (model, asked.start, asked.out, options.lora, {"tokens": None})
    ended = [(asked.work, outcome), exported]
    if method == "ppo":
        assert said == [
            compared,
            (model, loaded[1], 0),
            (asked, model, ("reference", model), head, mixed),
            ("drop", model),
            *ended,
        ]
    else:
        assert said == [compared, (asked, model, ("reference", model), None, []), *ended]
    assert model.said == ["gather"]
    if method == "rloo":
        assert len(loaded) == 1


class Watched(QuietProgress):
    """Progress that is written down."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def start(self, name: str, total: int, already: int = 0, unit: str = "") -> None:
        self.said.append((name, total, already))

    def advance(self, count: int, tokens: int = 0, note: str = "") -> None:
        self.said.append((count, note))


SPEC = ModelSpec(path="hub/start", device="cpu")


class Engines:
    """One engine, which gives chosen answers the higher reward in `right` of the pairs."""

    def __init__(self, right: Sequence[str]):
        self.right, self.asked = right, []  # type: ignore[var-annotated]

    def get(self, model: Model) -> Any:
        self.asked.append(model.label)
        return self

    def reward(self, requests: Any) -> Any:
        for request in requests:
            name, side = request.request_id.split("/")
            value = float((side == "chosen") == (name in self.right))
            yield [RewardResult(request.request_id, value, 3)]

    def close(self) -> None:
        self.asked.append("closed")


def context(folder: Path, step: Any, engines: Any, **models: Model) -> StepContext:
    store = Store(folder)
    made = {"start": Model("k", "M1", SPEC), "made": Model("m", "rm2", SPEC, "made")}
    planned = Planned("made", "distill", "rm", 7, 2, step, models=made | models)
    given: Any = (planned, store.step("made"), store, None, {}, engines, Watched())
    return StepContext(*given)


def test_progress_goes_on_where_it_was_and_trackers_get_every_step(tmp_path: Path) -> None:
    seen: list[Any] = []
    run = context(tmp_path, None, None)
    logs: Any = [
        lambda *given: seen.append(("a", *given)),
        lambda *given: seen.append(("b", *given)),
    ]
    report = train._report_steps(run, logs)
    report(TrainProgress(5, 20, 0.5, 300.0, {"loss": 0.5}))
    report(TrainProgress(8, 20, None, 200.0, {"loss": 9.0, "reward": 0.25}))
    assert run.progress.said == [  # type: ignore[attr-defined]
        ("optimiser steps", 20, 4),
        (1, "300 tok/s, loss 0.500"),
        (3, "200 tok/s, reward 0.250"),
    ]
    later = {"loss": 9.0, "reward": 0.25}
    assert seen == [
        ("a", 5, {"loss": 0.5}),
        ("b", 5, {"loss": 0.5}),
        ("a", 8, later),
        ("b", 8, later),
    ]


def test_a_reward_model_is_kept_by_its_own_accuracy_and_the_steps_drop(
    tmp_path: Path, make_preferences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh = {"drop": 0.3, "held_out": 0.2}
    step: Any = TypeAdapter(AnyDistill).validate_python(
        {"id": "rm", "method": "bradley_terry", "refresh": refresh}
    )
    last = Model("l", "rm1", SPEC, "last")
    pairs = [replace(p, round=2) for p in make_preferences(4)]
    engines = Engines(["r0", "r1", "r2"])
    run = context(tmp_path, step, engines, last=last)
    folder = run.store.model_path("last")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(train, "weights_hash", lambda folder: ("hash of", folder))
    # It had 1 and has 3/4 now, which is no fall by more than 0.3.
    write_trained(folder, 1, Interval(1.0, None, None, 4))
    kept = train._keep_fresh(run, step.refresh, pairs)
    out = run.store.model_path("made")
    assert kept == {
        "counts": {"preferences": 0, "steps": 0, "kept_since_round": 1},
        "summary": {"held_out_accuracy": 0.75, "accuracy_when_trained": 1.0},
        "weights_hash": ("hash of", out),
    }
    assert engines.asked == ["rm1"]
    assert (out / "model.safetensors").read_bytes() == b"weights"
    engines.right = ["r0", "r1"]
    assert train._keep_fresh(run, step.refresh, pairs) is None
    assert train._keep_fresh(context(tmp_path, step, engines), step.refresh, pairs) is None
    # What is trained anew is measured on the pairs that it has not seen, and kept with its round.
    loaded: list[Any] = []
    engines.load = lambda *given: loaded.append(given) or engines
    monkeypatch.setattr(train, "whole", lambda folder, copies: folder)
    found = train._with_accuracy(run, {"summary": {"last_loss": 0.1}, "tokens": 3}, pairs)
    assert found == {"summary": {"last_loss": 0.1, "held_out_accuracy": 0.5}, "tokens": 3}
    assert loaded == [(SPEC, out, "rm2")]
    assert engines.asked[-1] == "closed"
    trained = read_trained(out)
    assert (trained.round, trained.mean, trained.n) == (2, 0.5, 4)


@pytest.mark.parametrize(("export", "again"), [(None, True), ("merged", True), ("adapter", False)])
def test_a_training_gets_its_data_and_is_made_again_for_masters_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: str | None, again: bool
) -> None:
    """What was trained and has no fp32 masters is trained again, unless it never has any."""
    lora = {} if export is None else {"lora": {"export": export}}
    step = DpoTrain.model_validate({"id": "dpo", "processes": 3, **lora})
    rooms: list[int] = []
    run = context(tmp_path, step, SimpleNamespace(make_room=rooms.append))
    run = dataclasses.replace(run, planned=dataclasses.replace(run.planned, kind="train"))
    out, work = run.store.model_path("made"), run.folder.path / "work"
    for folder in (out, work):
        folder.mkdir(parents=True)
        (folder / "old").write_text("")
    data = TrainingData(["p"], ["text"], frozenset({"k"}), {"texts": 1})  # type: ignore[list-item]
    jobs: list[TrainJob[Any]] = []

    def trained(job: TrainJob[Any]) -> TrainOutcome:
        jobs.append(job)
        assert [(folder / "old").exists() for folder in (out, work)] == [not again, not again]
        out.mkdir(parents=True, exist_ok=True)
        return TrainOutcome(3, 40, {"mean_loss": 0.5}, {"overlong": 2})

    job = TrainJob(step, out, out, work, 7, torch.device("cpu"))
    monkeypatch.setattr(train, "read_data", lambda context: data)
    monkeypatch.setattr(train, "_make_job", lambda context, preferences, report: job)
    monkeypatch.setattr("rlaif.train.run.find_trainer", lambda job: trained)
    monkeypatch.setattr(train, "model_card", lambda context, preferences, texts: f"{texts} texts")
    monkeypatch.setattr(train, "add_file", lambda folder, name: None)
    monkeypatch.setattr(train, "weights_hash", lambda folder: "w")
    monkeypatch.setattr(train, "_describe_training", lambda *given: Tracked("", "", out))
    summary = train.run(run)
    ((texts, unfinished),) = [(job.texts, job.unfinished) for job in jobs]
    assert (texts, unfinished) == (["text"], frozenset({"k"}))
    assert rooms == [3]
    assert (out / "README.md").read_text() == "1 texts"
    assert summary["counts"] == {"preferences": 1, "steps": 3, "texts": 1, "overlong": 2}
