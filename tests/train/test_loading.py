"""A module that was made already is loaded as the same weights in a folder are."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlaif.train.loading import load_module

CPU = torch.device("cpu")


def test_a_made_module_is_taken_in_place_of_a_folder(make_model):
    folder = make_model(0)
    made = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager"
    )
    found, wanted = load_module(made, CPU), load_module(folder, CPU)
    assert found.config._attn_implementation == wanted.config._attn_implementation == "sdpa"
    weights = dict(wanted.named_parameters())
    for name, param in found.named_parameters():
        assert param.dtype == torch.float32
        assert torch.equal(param, weights[name])


def test_a_made_reward_models_head_starts_at_zero(make_model):
    made = AutoModelForSequenceClassification.from_pretrained(make_model(0), num_labels=1)
    assert made.score.weight.any()
    assert not load_module(made, CPU, reward=True).score.weight.any()
