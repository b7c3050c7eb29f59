"""The methods that TRL has give TRL's loss and TRL's gradients on the same batch, in fp32."""

from __future__ import annotations

import copy

import pytest
import torch

from rlaif.train.loading import load_module
from rlaif.train.methods.pairs import (
    ApoZeroTrain,
    DpoTrain,
    HingeTrain,
    IpoTrain,
    NcaTrain,
    RobustTrain,
)
from rlaif.train.model import prepare
from rlaif.train.preference import PreferenceTask, SftTask, compute_reference
from rlaif.train.tokenise import Example

trl = pytest.importorskip("trl", reason="trl is not installed: nothing to compare with")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")
CPU = torch.device("cpu")


def _common(tmp_path):
    return {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "max_length": 256,
        "remove_unused_columns": False,
    }


def _split(ids, mask, completion):
    """(prompt_ids, completion_ids) of one padded row."""
    kept = [(i, c) for i, m, c in zip(ids, mask, completion, strict=True) if m]
    return [i for i, c in kept if not c], [i for i, c in kept if c]


def _compare(ours, our_model, theirs, their_module):
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    ours.backward()
    theirs.backward()
    wanted = dict(their_module.named_parameters())
    for name, master in our_model.masters.items():
        torch.testing.assert_close(master.grad, wanted[name].grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("loss_type", "ours", "theirs"),
    [
        ("sigmoid", DpoTrain(beta=0.3), {}),
        ("robust", RobustTrain(method="robust", label_smoothing=0.2), {"label_smoothing": 0.2}),
        ("ipo", IpoTrain(method="ipo", length_normalise=True), {}),
        ("hinge", HingeTrain(method="hinge", beta=0.3), {}),
        ("apo_zero", ApoZeroTrain(method="apo_zero"), {}),
        ("nca_pair", NcaTrain(method="nca"), {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_preference_methods_equal_trl(
    tmp_path, make_model, make_preferences, tokenizer, loss_type, ours, theirs
):
    policy, reference = (load_module(make_model(seed), CPU) for seed in (0, 1))
    rows = [
        {"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected}
        for p in make_preferences(4)
    ]
    trainer = trl.DPOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(reference),
        args=trl.DPOConfig(beta=ours.beta, loss_type=[loss_type], **theirs, **_common(tmp_path)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch)
    parts = [
        _split(*row)
        for row in zip(
            batch["input_ids"].tolist(),
            batch["attention_mask"].tolist(),
            batch["completion_mask"].tolist(),
            strict=True,
        )
    ]
    half = len(parts) // 2
    examples = [
        Example(f"e{i}", f"p{i}", parts[i][0], (parts[i][1], parts[half + i][1]))
        for i in range(half)
    ]
    frozen = prepare(reference, CPU, torch.float32, trainable=False)
    stored = compute_reference(frozen, examples, ours, 0, tmp_path / "reference.jsonl")
    model = prepare(policy, CPU, torch.float32)
    assert model.packed and frozen.packed
    task = PreferenceTask(examples, stored, ours)
    loss, _, _ = task.loss(model, range(half), task.total(range(half)), 0)
    _compare(loss, model, expected, trainer.model)


def test_sft_equals_trl(tmp_path, make_model, make_preferences, tokenizer):
    policy = load_module(make_model(0), CPU)
    rows = [{"prompt": p.prompt, "completion": p.chosen} for p in make_preferences(4)]
    trainer = trl.SFTTrainer(
        model=copy.deepcopy(policy),
        args=trl.SFTConfig(completion_only_loss=True, **_common(tmp_path)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    labels, mask = batch["labels"], batch["attention_mask"]
    parts = [
        _split(*row)
        for row in zip(
            batch["input_ids"].tolist(), mask.tolist(), (labels != -100).tolist(), strict=True
        )
    ]
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    examples = [Example(f"e{i}", f"p{i}", p, (c,)) for i, (p, c) in enumerate(parts)]
    model = prepare(policy, CPU, torch.float32)
    task = SftTask(examples)
    ours, _, _ = task.loss(model, range(4), task.total(range(4)), 0)
    _compare(ours, model, theirs, trainer.model)
