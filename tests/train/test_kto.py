"""KTO on pairs and on answers that stand alone; other methods refuse what they cannot use."""

from __future__ import annotations

import json

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from rlaif.config.methods import METHODS
from rlaif.core.errors import RlaifError
from rlaif.train import run as run_module
from rlaif.train.loading import load_module
from rlaif.train.losses import preference as losses
from rlaif.train.methods.reward_models import BradleyTerryDistill
from rlaif.train.model import prepare
from rlaif.train.preference import KtoTask, add_mismatched
from rlaif.train.run import train
from rlaif.train.tokenise import Example

CPU = torch.device("cpu")


def options_of(method, **changes):
    keys = {"learning_rate": 1e-2, "batch_size": 4, "precision": "fp32", "warmup_ratio": 0.0}
    spec = BradleyTerryDistill if method == "bradley_terry" else METHODS[method]
    return spec.model_validate({"method": method, **keys, **changes})


def run(folder, options, start, preferences, reference=None, progress=None):
    work = folder / "work"
    return train(
        options, preferences, {}, start, reference, folder / "out", work, 3, "cpu", progress
    )


def alone(preferences):
    """Of every second pair the good answer, of the others the bad one."""
    empty = {"chosen": [], "chosen_id": ""}, {"rejected": [], "rejected_id": ""}
    return [replace(p, **empty[i % 2]) for i, p in enumerate(preferences)]


def test_mixed_examples_by_hand(make_model):
    options = options_of("kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)
    model = prepare(load_module(make_model(0), CPU), CPU, torch.float32)
    examples = add_mismatched(
        [
            Example("a", "a", [1, 2], ([3, 4], [5])),
            Example("b", "b", [6], ([7, 8, 9],), desirable=(True,), weight=2.0),
            Example("c", "c", [1], ([9, 9],), desirable=(False,)),
        ]
    )
    assert [len(e.completions) for e in examples] == [3, 2, 2]
    stored = {e.example_id: tuple(-5.0 - i for i in range(len(e.completions))) for e in examples}
    task = KtoTask(examples, stored, options)
    loss, sums, _ = task.loss(model, [0, 1, 2], task.total([0, 1, 2]), 1)
    rho = {
        e.example_id: model.logprobs(model.layout([e.branches])).detach()
        - torch.tensor(stored[e.example_id])
        for e in examples
    }
    z = losses.kto_baseline(torch.stack([rho[x][-1] for x in "abc"]))

    def one(value, good):
        return losses.kto(value[None], torch.tensor([good]), z, **options.loss_options)[0]

    a = (one(rho["a"][0], True) + one(rho["a"][1], False)) / 2
    expected = (a + 2.0 * one(rho["b"][0], True) + one(rho["c"][0], False)) / 3
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert sums["kl_baseline"] == (pytest.approx(3 * float(z)), 3.0)
    assert sums["margin"] == (pytest.approx(0.3 * float(rho["a"][0] - rho["a"][1]), rel=1e-4), 1.0)
    good = 0.3 * float(rho["a"][0] + rho["b"][0])
    assert sums["reward_chosen"] == (pytest.approx(good, rel=1e-4), 2.0)
    assert sums["reward_rejected"][1] == sums["logprob_rejected"][1] == 2.0


def test_kto_learns_from_answers_that_stand_alone(tmp_path, make_model, make_preferences):
    outcome = run(tmp_path, options_of("kto", epochs=6), make_model(0), alone(make_preferences(8)))
    # The first step asserts that policy and reference are equal, so both rewards are 0.
    assert outcome.metrics["first_reward_chosen"] == outcome.metrics["first_reward_rejected"] == 0
    assert outcome.metrics["last_reward_chosen"] > outcome.metrics["last_reward_rejected"] + 0.1
    assert "last_margin" not in outcome.metrics


def test_an_interrupted_kto_on_single_answers_ends_in_the_same_bits(
    tmp_path, make_model, make_preferences
):
    options = options_of("kto", epochs=2, checkpoint_every=2)
    preferences = [*alone(make_preferences(6)), *make_preferences(8)[6:]]

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    run(tmp_path / "a", options, make_model(0), preferences)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", options, make_model(0), preferences, progress=stop)
    run(tmp_path / "b", options, make_model(0), preferences)
    one, two = (load_file(tmp_path / f"{x}/out/masters/model.safetensors") for x in "ab")
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_sft_learns_from_good_answers_and_refuses_bad_ones(tmp_path, make_model, make_preferences):
    pairs = make_preferences(6)
    good = [replace(p, rejected=[], rejected_id="") for p in pairs]
    run(tmp_path / "pairs", options_of("sft"), make_model(0), pairs)
    run(tmp_path / "good", options_of("sft"), make_model(0), good)
    rows = [
        [
            {k: v for k, v in json.loads(line).items() if k != "timing"}
            for line in (tmp_path / name / "work/metrics.jsonl").read_text().splitlines()
        ]
        for name in ("pairs", "good")
    ]
    assert rows[0] == rows[1]
    with pytest.raises(RlaifError, match="3 of 6 rows are answers labelled bad, and sft"):
        run(tmp_path / "bad", options_of("sft"), make_model(0), alone(pairs))


PAIRED = [m for m, spec in METHODS.items() if not spec.SAMPLES]


@pytest.mark.parametrize("method", sorted({*PAIRED, "bradley_terry"} - {"sft", "kto"}))
def test_no_method_reads_a_missing_side_as_an_answer(
    tmp_path, make_model, make_preferences, monkeypatch, method
):
    monkeypatch.setattr(run_module, "load_module", None)
    mixed = [*make_preferences(3), *alone(make_preferences(2))]
    with pytest.raises(RlaifError, match=f"2 of 5 rows.*{method} learns from pairs.*kto"):
        run(tmp_path, options_of(method), make_model(0), mixed)


@pytest.mark.parametrize(("good", "said"), [(True, "good"), (False, "bad")])
def test_kto_refuses_answers_that_are_all_alike(tmp_path, make_model, make_preferences, good, said):
    rows = [p for p in alone(make_preferences(6)) if bool(p.chosen) is good]
    with pytest.raises(RlaifError, match=f"all {len(rows)} answers are {said}.*other `label`"):
        run(tmp_path, options_of("kto"), make_model(0), rows)


def test_kto_refuses_soft_labels(tmp_path, make_model, make_preferences):
    soft = [replace(p, prob=0.7) for p in make_preferences(4)]
    with pytest.raises(RlaifError, match="soft label"):
        run(tmp_path, options_of("kto"), make_model(0), soft)
