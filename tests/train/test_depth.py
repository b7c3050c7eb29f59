"""Reward models that are read from the first layers of their start."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from rlaif.config.methods import AnyDistill
from rlaif.config.models import ModelSpec
from rlaif.core.errors import RlaifError
from rlaif.engines.base import RewardRequest
from rlaif.engines.build import load_engine
from rlaif.train.depth import cut, depths
from rlaif.train.fits import Comparisons, Features, fit_depth
from rlaif.train.loading import load_module
from rlaif.train.methods.heads import LinearDistill
from rlaif.train.probe import read_depths
from rlaif.train.reward_model import by_prompt
from rlaif.train.run import train
from rlaif.train.tokenise import encode, load_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def deep(tmp_path_factory, tokenizer) -> Path:
    """A Qwen3 of five layers, whose config says of each what attention it has."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("deep")
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other_stack(tmp_path_factory, tokenizer) -> Path:
    """A GPT-2: its layers and its norm have other names."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def step(**keys) -> LinearDistill:
    keys = {"method": "linear", "precision": "fp32", "micro_batch_tokens": 64, **keys}
    return TypeAdapter(AnyDistill).validate_python(keys)


def fitted(start: Path, folder: Path, preferences, **keys):
    where = (start, None, folder / "rm", folder / "work", 0, "cpu")
    return train(step(**keys), preferences, {}, *where), folder / "rm"


def test_states_at_a_depth_are_those_of_a_model_cut_there(deep, tmp_path, make_preferences):
    tokenizer = load_tokenizer(deep)
    kept = {"both": True, "max_length": 256, "overlong": "refuse", "train_on_eos": True}
    encoded = encode(make_preferences(8), tokenizer, {}, always_end=True, **kept)
    examples = by_prompt(encoded.examples)
    found = read_depths(examples, deep, step(), tmp_path, CPU, torch.float32, "auto")
    assert list(found) == [1, 2, 3, 4, 5]
    rows = [(e.prompt_ids, b) for e in examples for b in e.completions]
    for depth, features in found.items():
        module = load_module(deep, CPU, reward=True).eval()
        cut(module, depth)
        assert len(module.base_model.layers) == module.config.num_hidden_layers == depth
        for (prompt, answer), last in zip(rows, features.last, strict=True):
            with torch.no_grad():
                ids = torch.tensor([[*prompt, *answer]])
                states = module.base_model(input_ids=ids).last_hidden_state[0]
            torch.testing.assert_close(last, states[-1], atol=1e-4, rtol=1e-4)
            place = features.prompt[[e.prompt_ids for e in examples].index(prompt)]
            torch.testing.assert_close(place, states[len(prompt) - 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layers", [2, "all", "auto"])
def test_the_model_has_the_layers_that_its_reward_is_read_from(
    deep, tmp_path, make_preferences, layers
):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    preferences = make_preferences(20)
    outcome, folder = fitted(deep, tmp_path, preferences, layers=layers)
    metrics = outcome.metrics
    wanted = {2: [2], "all": [5], "auto": [1, 2, 3, 4, 5]}[layers]
    losses = {d: metrics[f"held_out_loss/{d}"] for d in wanted}
    assert losses[int(metrics["layers"])] == min(losses.values()) == metrics["held_out_loss"]
    assert len([name for name in metrics if "/" in name]) == len(wanted)

    module = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert len(module.model.layers) == metrics["layers"]
    assert len(module.config.layer_types) == metrics["layers"]
    engine = load_engine(ModelSpec(path=str(folder), dtype="float32"), folder, "rm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for p in preferences[:3]:
        ((found,),) = engine.reward([RewardRequest("r", p.prompt, p.chosen[0])])
        text = tokenizer.apply_chat_template([*p.prompt, p.chosen[0]], tokenize=False)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            theirs = float(module(**ids).logits[0, 0])
        assert found.reward == pytest.approx(theirs, abs=1e-5)


def test_the_depth_that_tells_answers_apart_is_taken():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 80, 4, generator=generator)
    of = torch.arange(40).repeat_interleave(2)
    names = [f"p{i}" for i in range(40)]
    one = torch.ones(40)
    pairs = Comparisons(torch.arange(0, 80, 2), torch.arange(1, 80, 2), one, one)
    told = noise[1].clone()
    told[pairs.chosen, 0] += 3.0
    features = {
        d: Features(x, torch.zeros(40, 4), of, names)
        for d, x in {4: noise[0], 8: told, 12: noise[2]}.items()
    }
    depth, head, losses = fit_depth(features, pairs, 0)
    assert depth == 8 and losses[8] < 0.3 and min(losses[4], losses[12]) > 0.9 * math.log(2)
    assert head.weight[0, 0] > head.weight[0, 1:].abs().max()


def test_of_equal_depths_the_first_is_taken():
    states = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    names = [f"p{i}" for i in range(20)]
    same = Features(states, torch.zeros(20, 4), torch.arange(20).repeat_interleave(2), names)
    one = torch.ones(20)
    pairs = Comparisons(torch.arange(0, 40, 2), torch.arange(1, 40, 2), one, one)
    assert fit_depth({2: same, 4: same}, pairs, 0)[0] == 2


def test_a_model_that_cannot_be_cut_is_read_at_its_end(other_stack, tmp_path, make_preferences):
    assert depths(load_module(other_stack, CPU, reward=True), "auto") == (2,)
    outcome, _ = fitted(other_stack, tmp_path, make_preferences(20))
    assert outcome.metrics["layers"] == 2
    with pytest.raises(RlaifError, match="GPT2ForSequenceClassification has no plain stack"):
        fitted(other_stack, tmp_path / "b", make_preferences(20), layers=1)


def test_more_layers_than_there_are_is_refused(deep, tmp_path, make_preferences):
    with pytest.raises(RlaifError, match="layers: 9 of a model that has 5; set 5 or less"):
        fitted(deep, tmp_path, make_preferences(20), layers=9)
    for wrong in (0, "half"):
        with pytest.raises(ValidationError):
            step(layers=wrong)
