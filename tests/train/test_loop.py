"""The optimisation loop end to end on tiny models: resume, accumulation, schedule, export."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace as copy
from importlib.util import find_spec

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from rlaif.config.methods import METHODS
from rlaif.core.errors import EngineError, RlaifError, StoreError
from rlaif.core.store import StepFolder
from rlaif.engines.checkpoints import MASTERS
from rlaif.train import loop
from rlaif.train import model as model_module
from rlaif.train import run as run_module
from rlaif.train.loading import load_module
from rlaif.train.loop import (
    learning_rate,
    make_optimizer,
    memory_advice,
    run_training,
    training_fingerprint,
)
from rlaif.train.methods.pairs import DpoTrain
from rlaif.train.model import compute_dtype, prepare
from rlaif.train.preference import SftTask
from rlaif.train.run import train
from rlaif.train.tokenise import Example

CPU = torch.device("cpu")


class Stop(Exception):
    pass


def _options(**changes):
    defaults = {
        "batch_size": 4,
        "micro_batch_tokens": 80,
        "epochs": 2,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "checkpoint_every": 2,
    }
    method = changes.get("method", "dpo")
    if method == "sft":
        changes.pop("nll_weight", None)
    return METHODS[method].model_validate({**defaults, **changes})


def _train(folder, start, preferences, options, reference=None, seed=3, progress=None):
    return train(
        options,
        preferences,
        {},
        start,
        reference,
        folder / "out",
        folder / "work",
        seed,
        "cpu",
        progress,
    )


def _files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _rows(folder):
    lines = (folder / "work/metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "timing"} for line in lines]


NEEDS_8BIT = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
LORA = {"r": 4, "alpha": 8.0, "dropout": 0.3}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "sft"},
        {"precision": "bf16"},
        {"lora": LORA, "precision": "bf16"},
        {"gradient_checkpointing": True},
        pytest.param({"optimizer": "adamw_8bit"}, marks=NEEDS_8BIT),
    ],
    ids=["dpo", "sft", "bf16", "lora", "checkpointing", "8bit"],
)
def test_interrupted_training_ends_in_the_same_bytes(
    tmp_path, make_model, make_preferences, changes, monkeypatch
):
    if changes.get("precision") == "bf16":
        monkeypatch.setattr(loop, "compute_dtype", lambda *_: torch.bfloat16)
    start, preferences, options = make_model(0), make_preferences(10), _options(**changes)
    whole = _train(tmp_path / "a", start, preferences, options)
    assert whole.steps == 6

    def stop(progress):
        if progress.step == 5:
            raise Stop

    with pytest.raises(Stop):
        _train(tmp_path / "b", start, preferences, options, progress=stop)
    assert not (tmp_path / "b/out").exists()
    seen = []
    resumed = _train(
        tmp_path / "b", start, preferences, options, progress=lambda p: seen.append(p.step)
    )
    assert seen == [5, 6]
    assert _files(tmp_path / "a/out") == _files(tmp_path / "b/out")
    assert _rows(tmp_path / "a") == _rows(tmp_path / "b")
    assert resumed.metrics == whole.metrics
    assert resumed.tokens == whole.tokens
    assert not list((tmp_path / "b/work").glob("checkpoint-*"))
    assert _train(tmp_path / "b", start, preferences, options).seconds == resumed.seconds


def test_what_follows_a_long_training_does_not_cost_it_when_it_is_killed(
    tmp_path, make_model, make_preferences, monkeypatch
):
    start, preferences, options = make_model(0), make_preferences(10), _options(checkpoint_every=50)
    _train(tmp_path / "a", start, preferences, options)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

    def killed(*_):
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "export", killed)
        with pytest.raises(Stop):
            _train(tmp_path / "b", start, preferences, options)
    seen = []
    _train(tmp_path / "b", start, preferences, options, progress=lambda p: seen.append(p.step))
    assert seen == []
    assert _files(tmp_path / "a/out") == _files(tmp_path / "b/out")


def test_accumulation_equals_the_whole_batch(tmp_path, make_model, make_preferences):
    start, preferences = make_model(0), make_preferences(10)
    for method in ("dpo", "sft"):
        for size in (1, 9999):
            options = _options(micro_batch_tokens=size, epochs=1, method=method, nll_weight=0.2)
            _train(tmp_path / f"{method}{size}", start, preferences, options)
        one, two = (_rows(tmp_path / f"{method}{size}")[-1] for size in (1, 9999))
        assert one.keys() == two.keys()
        for name in one:
            assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-5), name


def test_dpo_starts_at_log_two_exactly_and_learns(tmp_path, make_model, make_preferences):
    outcome = _train(tmp_path, make_model(0), make_preferences(8), _options(epochs=6))
    assert outcome.metrics["first_margin"] == 0.0
    assert outcome.metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert outcome.metrics["last_loss"] < 0.6
    assert outcome.metrics["last_accuracy"] == 1.0


def test_another_reference(tmp_path, make_model, make_preferences):
    preferences = make_preferences(4)
    same = _train(tmp_path / "a", make_model(0), preferences, _options(), make_model(0))
    other = _train(tmp_path / "b", make_model(0), preferences, _options(), make_model(1))
    assert same.metrics["first_margin"] == 0.0
    assert abs(other.metrics["first_margin"]) > 1e-3
    lines = (tmp_path / "b/work/reference.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["example_id"] for line in lines) == ["r0", "r1", "r2", "r3"]


def test_a_reference_of_another_vocabulary_is_refused_before_any_computing(
    tmp_path, make_model, make_preferences, other_vocabulary, monkeypatch
):
    start = make_model(0)
    _train(tmp_path / "free", start, make_preferences(2), _options(method="simpo"), None)
    monkeypatch.setattr(run_module, "load_module", None)
    with pytest.raises(RlaifError, match="another vocabulary") as refused:
        _train(tmp_path, start, make_preferences(2), _options(), other_vocabulary)
    assert str(start) in str(refused.value) and str(other_vocabulary) in str(refused.value)


def test_a_reference_may_differ_in_tokens_that_are_not_used(
    tmp_path, make_model, make_preferences, other_vocabulary
):
    swapped = [
        replace(p, chosen=[{"role": "assistant", "content": f"no {i}"}])
        for i, p in enumerate(make_preferences(4))
    ]
    # "Say" has the y.
    texts = [replace(p, prompt=[{"role": "user", "content": "x"}]) for p in swapped]
    _train(tmp_path / "a", make_model(0), texts, _options(), other_vocabulary)
    with pytest.raises(RlaifError, match="1 of"):
        _train(tmp_path / "b", make_model(0), swapped, _options(), other_vocabulary)


def test_a_changed_reference_is_noticed(tmp_path, make_model, make_preferences):
    work = tmp_path / "work"
    work.mkdir()
    rows = [{"example_id": f"r{i}", "logprobs": [-1.0, -1.0]} for i in range(4)]
    StepFolder(work).append("reference", rows)
    with pytest.raises(RlaifError, match="reference log-probs differ"):
        _train(tmp_path, make_model(0), make_preferences(4), _options())


def test_tiny_steps_move_the_masters_and_the_next_round_starts_from_them(
    tmp_path, make_model, make_preferences, monkeypatch
):
    monkeypatch.setattr(loop, "compute_dtype", lambda *_: torch.bfloat16)
    start = make_model(0)
    options = _options(learning_rate=1e-6, warmup_ratio=0.0, precision="bf16", epochs=1)
    outcome = _train(tmp_path, start, make_preferences(4), options)
    assert outcome.compute_dtype == "bfloat16"
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / "out" / MASTERS)
    assert "lm_head.weight" not in after
    moved = [float((after[n] - before[n].float()).abs().max()) for n in after]
    assert all(0 < m < 1e-5 for m in moved)
    again = dict(load_module(tmp_path / "out", CPU).named_parameters())
    assert all(torch.equal(again[n], after[n]) for n in after)
    narrow = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(narrow[n], after[n].to(torch.bfloat16)) for n in after)


@pytest.mark.parametrize(
    ("precision", "fast", "dtype"),
    [
        ("auto", True, torch.bfloat16),
        ("bf16", True, torch.bfloat16),
        ("fp32", True, torch.float32),
        ("auto", False, torch.float32),
        ("bf16", False, torch.float32),
    ],
)
def test_auto_precision_is_bf16_where_that_is_fast(precision, fast, dtype, monkeypatch):
    monkeypatch.setattr(model_module, "has_fast_bf16", lambda _: fast)
    assert compute_dtype(precision, CPU) == dtype


def test_lora_is_merged(tmp_path, make_model, make_preferences):
    options = _options(lora={"r": 2, "alpha": 4.0, "target_modules": ["q_proj"]})
    outcome = _train(tmp_path, make_model(0), make_preferences(8), options)
    assert outcome.metrics["first_margin"] == 0.0
    before = load_file(make_model(0) / "model.safetensors")
    after = load_file(tmp_path / "out" / MASTERS)
    changed = {n for n in after if not torch.equal(after[n], before[n].float())}
    assert changed == {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)}
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name].float(), rtol=1e-4) == 2


def test_lora_on_the_output_head_is_refused(tmp_path, make_model, make_preferences):
    options = _options(lora={"target_modules": ["lm_head"]})
    with pytest.raises(EngineError, match="output head"):
        _train(tmp_path, make_model(0), make_preferences(4), options)


@NEEDS_8BIT
def test_adamw_8bit_follows_adamw_with_its_state_in_bytes(make_model):
    moved, kinds = {}, {}
    for name in ("adamw", "adamw_8bit"):
        model = prepare(load_module(make_model(0), CPU), CPU, torch.float32)
        options = _options(optimizer=name, weight_decay=0.5, adam_betas=(0.8, 0.9))
        optimizer = make_optimizer(model, options)
        before = {n: m.detach().clone() for n, m in model.masters.items()}
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            for master in model.masters.values():
                master.grad = torch.randn(master.shape, generator=generator) + 0.5
            optimizer.step()
        moved[name] = {n: (m - before[n]).detach() for n, m in model.masters.items()}
        kinds[name] = {n: _largest_state(optimizer.state[m]) for n, m in model.masters.items()}
    # bitsandbytes leaves tensors of less than 4096 numbers in 32 bits.
    coarse = {n for n, dtype in kinds["adamw_8bit"].items() if dtype == torch.uint8}
    assert coarse == {"model.embed_tokens.weight"}
    assert set(kinds["adamw"].values()) == {torch.float32}
    for n, one in moved["adamw"].items():
        two = moved["adamw_8bit"][n]
        if n in coarse:
            assert 1e-5 < float((two - one).norm() / one.norm()) < 0.1
        else:
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


def _largest_state(state):
    return max((v for v in state.values() if torch.is_tensor(v)), key=torch.numel).dtype


def test_adamw_8bit_without_bitsandbytes(make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    model = prepare(load_module(make_model(0), CPU), CPU, torch.float32)
    with pytest.raises(EngineError, match=r"optimizer: adamw_8bit.*pip install bitsandbytes"):
        make_optimizer(model, _options(optimizer="adamw_8bit"))


def test_schedule():
    linear = DpoTrain(learning_rate=1.0, warmup_ratio=0.2, schedule="linear", min_lr_ratio=0.5)
    assert [learning_rate(s, 10, linear) for s in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.75]
    cosine = DpoTrain(learning_rate=2.0, warmup_ratio=0.0)
    assert learning_rate(0, 8, cosine) == 2.0
    assert learning_rate(4, 8, cosine) == pytest.approx(1.0)
    flat = DpoTrain(learning_rate=3.0, warmup_ratio=0.0, schedule="constant")
    assert {learning_rate(s, 5, flat) for s in range(5)} == {3.0}


class Broken(SftTask):
    def loss(self, model, micro, total, step):
        loss, sums, tokens = super().loss(model, micro, total, step)
        return loss * (math.nan if step == 1 else 1.0), sums, tokens


def test_a_non_finite_loss_stops_and_names_the_prompts(tmp_path, make_model):
    examples = [Example(f"e{i}", f"p{i}", [1, 2], ([3, 4],)) for i in range(8)]
    model = prepare(load_module(make_model(0), CPU), CPU, torch.float32)
    options = _options(epochs=1)
    with pytest.raises(RlaifError, match="step 2: the loss is nan"):
        run_training(Broken(examples), model, options, tmp_path, 0)
    saved = json.loads((tmp_path / "nonfinite.json").read_text())
    assert len(saved["prompt_ids"]) == 4
    assert saved["step"] == 2


def test_refusals(tmp_path, make_model, make_preferences):
    with pytest.raises(RlaifError, match="min_margin"):
        _train(tmp_path, make_model(0), [], _options())
    with pytest.raises(RlaifError, match="max_length"):
        _train(tmp_path, make_model(0), make_preferences(2), _options(max_length=3))
    with (
        pytest.raises(EngineError, match=r"micro_batch_tokens.*max_length.*gradient_checkpointing"),
        memory_advice(_options()),
    ):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
    with pytest.raises(RuntimeError, match="something else"), memory_advice(_options()):
        raise RuntimeError("something else")


def test_a_checkpoint_of_another_training_is_refused(tmp_path, make_model, make_preferences):
    def stop(progress):
        if progress.step == 3:
            raise Stop

    start, preferences = make_model(0), make_preferences(8)
    with pytest.raises(Stop):
        _train(tmp_path, start, preferences, _options(), progress=stop)
    with pytest.raises(StoreError, match="other data or options"):
        _train(tmp_path, start, preferences, _options(beta=0.2))


def test_a_fingerprint_covers_all_that_is_learned_from():
    example = Example("e", "p", [1, 2], ([3, 4], [5]), 1.0, 1.0, 0.5, (True, False), (0.9, 0.4))
    options = DpoTrain()
    known = training_fingerprint([example], options, 0)
    changes = {
        "example_id": "f",
        "prompt_ids": [1],
        "completions": ([3], [5]),
        "weight": 0.5,
        "prob": 0.5,
        "margin": None,
        "scores": (0.9, 0.5),
    }
    others = [
        *(training_fingerprint([copy(example, **{k: v})], options, 0) for k, v in changes.items()),
        training_fingerprint([example], DpoTrain(beta=0.2), 0),
        training_fingerprint([example], options, 1),
    ]
    assert len({known, *others}) == 1 + len(others)
    assert training_fingerprint([example], DpoTrain(checkpoint_every=1), 0) == known


def test_the_clock_of_checkpoints_begins_anew_with_each(tmp_path, monkeypatch):
    saved = []
    seconds = loop.CHECKPOINT_SECONDS * 0.6

    def step(task, model, optimizer, batch, options, number, total, work):
        return {
            "step": number + 1,
            "tokens": 1,
            "timing": {"seconds": seconds, "tokens_per_second": 1},
        }

    monkeypatch.setattr(loop, "optimiser_step", step)
    monkeypatch.setattr(loop, "_plan_batches", lambda *given: [[[0]]] * 6)
    monkeypatch.setattr(loop, "make_optimizer", lambda *given: None)
    monkeypatch.setattr(loop, "kernels_in_use", lambda model: {})
    monkeypatch.setattr(loop.checkpoint, "restore", lambda *given: None)
    monkeypatch.setattr(loop.checkpoint, "save", lambda work, number, *rest: saved.append(number))

    class Model:
        masters, sharded, dtype = {}, False, torch.float32

    class Task:
        examples = ()

    run_training(Task(), Model(), _options(checkpoint_every=50), tmp_path, 0)
    # Two steps take longer than the clock.
    assert saved == [2, 4, 6]


def test_a_summary_has_the_first_the_last_and_the_mean_of_each_metric():
    rows = [
        {"step": 1, "tokens": 5, "timing": {}, "loss": 3.0, "kl": 8.0},
        {"step": 2, "tokens": 5, "timing": {}, "loss": 4.0},
        {"step": 3, "tokens": 5, "timing": {}, "loss": 2.0, "kl": 1.0},
    ]
    assert loop.summary_of(rows) == {
        "first_loss": 3.0, "last_loss": 2.0, "mean_loss": 3.0,
        "first_kl": 8.0, "last_kl": 1.0, "mean_kl": 4.5,
    }  # fmt: skip


@pytest.mark.parametrize("order", [1, -1])
def test_extremes_stay_extremes_and_other_metrics_add_up(order):
    parts = [
        {"loss": (2.0, 4.0), "ratio_min": (0.5, 1.0), "ratio_max": (1.5, 1.0)},
        {"loss": (3.0, 1.0), "ratio_min": (0.7, 1.0), "ratio_max": (1.2, 1.0)},
    ]
    joined = {}
    for part in parts[::order]:
        loop.join_sums(joined, part)
    assert joined == {"loss": (5.0, 5.0), "ratio_min": (0.5, 1.0), "ratio_max": (1.5, 1.0)}


def test_the_optimizer_has_the_keys_of_the_step(make_model):
    model = prepare(load_module(make_model(1), CPU), CPU, torch.float32)
    options = _options(adam_betas=(0.8, 0.9), weight_decay=0.25, learning_rate=0.5)
    (group,) = make_optimizer(model, options).param_groups
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.8, 0.9), 0.25, 0.5)
