"""A distilled reward model: it learns, it scores as transformers does, and it judges."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlaif.config.models import ModelSpec
from rlaif.config.training import LoraOptions
from rlaif.core.errors import EngineError
from rlaif.engines.base import RewardRequest
from rlaif.engines.build import is_reward_model, load_engine
from rlaif.train.loading import load_module
from rlaif.train.methods.reward_models import BradleyTerryDistill
from rlaif.train.model import prepare
from rlaif.train.run import train
from rlaif.train.tokenise import encode

CPU = torch.device("cpu")


def distil(start: Path, folder: Path, preferences, **changes):
    keys = {"learning_rate": 3e-3, "batch_size": 4, "epochs": 6, "precision": "fp32"}
    options = BradleyTerryDistill.model_validate({**keys, **changes})
    outcome = train(options, preferences, {}, start, None, folder / "rm", folder / "work", 0)
    return outcome, folder / "rm"


def rewards(folder: Path, preferences):
    engine = load_engine(ModelSpec(path=str(folder), dtype="float32"), folder, "rm")
    requests = [
        RewardRequest(f"{i}/{side}", p.prompt, getattr(p, side)[0])
        for i, p in enumerate(preferences)
        for side in ("chosen", "rejected")
    ]
    found = {r.request_id: r.reward for batch in engine.reward(requests) for r in batch}
    return engine, [(found[f"{i}/chosen"], found[f"{i}/rejected"]) for i in range(len(preferences))]


@pytest.mark.parametrize("lora", [None, LoraOptions(r=4), LoraOptions(r=4, dora=True)])
def test_it_starts_at_log_two_learns_and_judges_as_it_learned(
    tmp_path, make_model, make_preferences, lora
):
    preferences = make_preferences(8)
    outcome, folder = distil(make_model(0), tmp_path, preferences, lora=lora)
    assert outcome.metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert outcome.metrics["last_accuracy"] == 1.0
    assert is_reward_model(folder)
    engine, found = rewards(folder, preferences)
    assert sum(chosen > rejected for chosen, rejected in found) == 8
    assert engine.capabilities == {"reward"}
    with pytest.raises(EngineError, match="cannot generate"):
        engine.generate([])


def test_transformers_gives_the_same_reward_with_either_padding(
    tmp_path, make_model, make_preferences
):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    preferences = make_preferences(4)
    _, folder = distil(make_model(0), tmp_path, preferences)
    engine, found = rewards(folder, preferences)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    rows = [engine.render([*p.prompt, p.chosen[0]])[1] for p in preferences]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        with torch.no_grad():
            logits = theirs(**batch).logits[:, 0].tolist()
        assert logits == pytest.approx([chosen for chosen, _ in found], abs=1e-4)


def test_packed_and_padded_rewards_are_equal_and_a_head_is_kept(
    tmp_path, make_model, make_preferences
):
    preferences = make_preferences(4)
    _, folder = distil(make_model(0), tmp_path, preferences)
    model = prepare(load_module(folder, CPU, reward=True), CPU, torch.float32)
    assert model.packed
    examples = [([1, 2, 3], [[4, 5], [6]]), ([7, 8], [[9, 10, 11]])]
    packed = model.rewards(model.layout(examples))
    model.choice = replace(model.choice, packed=False)
    model.module.set_attn_implementation("sdpa")
    torch.testing.assert_close(model.rewards(model.layout(examples)), packed)
    assert float(packed.abs().min()) > 0
    outcome, _ = distil(folder, tmp_path / "again", preferences, epochs=1, learning_rate=1e-9)
    assert outcome.metrics["first_accuracy"] == 1.0


def test_the_margin_is_asked_for(tmp_path, make_model, make_preferences):
    preferences = make_preferences(8)
    plain, _ = distil(make_model(0), tmp_path / "a", preferences)
    asked, _ = distil(make_model(0), tmp_path / "b", preferences, margin="score")
    assert {p.margin for p in preferences} != {0.0}
    assert asked.metrics["first_loss"] > plain.metrics["first_loss"]


def test_a_classifier_of_many_classes_is_no_reward_model(tmp_path, make_model):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    start = make_model(0)
    AutoModelForSequenceClassification.from_pretrained(start, num_labels=3).save_pretrained(
        tmp_path
    )
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="3 outputs"):
        load_engine(ModelSpec(path=str(tmp_path)), tmp_path, "rm")


def test_an_answer_that_was_cut_off_is_read_at_the_conversation_s_end_all_the_same(
    make_preferences, tokenizer
):
    preferences = make_preferences(1)
    text = preferences[0].chosen[0]["content"]
    cut = tokenizer(text, add_special_tokens=False)["input_ids"]
    options = {"both": True, "max_length": 99, "overlong": "refuse", "train_on_eos": True}
    plain = encode(preferences, tokenizer, {"c0": cut}, **options).examples[0]
    ended = encode(preferences, tokenizer, {"c0": cut}, **options, always_end=True).examples[0]
    line = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert plain.completions[0] == cut
    assert ended.completions[0] == [*cut, tokenizer.eos_token_id, *line]
    assert [*plain.completions[1], *line] == ended.completions[1]
