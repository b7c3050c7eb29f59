"""What is trained is what the model writes with: no chance, and no row that sees another."""

from __future__ import annotations

import pytest
import torch
import transformers

from rlaif.config.methods import METHODS
from rlaif.config.training import LoraOptions
from rlaif.core.errors import EngineError
from rlaif.train.loading import ROWS, load_module
from rlaif.train.model import prepare
from rlaif.train.run import train
from tests.support.architectures import CPU, EXAMPLES, SMALL, build

CHANCE = {
    "a module": ("GPT2Config", {"n_layer": 2, "n_head": 4, "n_embd": 32, "resid_pdrop": 0.5}),
    "the config": ("FalconConfig", {"attention_dropout": 0.5, "hidden_dropout": 0.5}),
    "a number of another name": ("MptConfig", {"attn_config": {"attn_pdrop": 1}}),
    "skipped layers": ("OPTConfig", {"ffn_dim": 48, "layerdrop": 0.9, "word_embed_proj_dim": 32}),
    "a router's noise": (
        "MixtralConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.5},
    ),
}

pytestmark = pytest.mark.usefixtures("nothing_proved")


def random_model(kind, **options):
    torch.manual_seed(0)
    sizes = {k: v for k, v in SMALL.items() if k != "head_dim"}
    config = getattr(transformers, kind)(**{**sizes, **options})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", CHANCE)
def test_nothing_is_drawn_in_training(name, checkpointing):
    kind, options = CHANCE[name]
    module = random_model(kind, **options)
    wanted = []
    for prompt, branches in EXAMPLES:
        for branch in branches:
            logits = module(input_ids=torch.tensor([[*prompt, *branch]]), use_cache=False).logits
            steps = list(range(len(prompt) - 1, len(prompt) + len(branch) - 1))
            wanted.append(logits[0].log_softmax(-1)[steps, branch].sum())
    model = prepare(module, CPU, torch.float32, None, checkpointing)
    values = model.logprobs(model.layout(EXAMPLES))
    torch.testing.assert_close(values, torch.stack(wanted), rtol=1e-4, atol=1e-4)
    values.sum().backward()
    with model.generating():
        pass
    again = model.logprobs(model.layout(EXAMPLES))
    torch.testing.assert_close(again, values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapters_own_dropout_is_drawn(checkpointing, dora):
    options = LoraOptions(r=4, dropout=0.5, dora=dora)
    model = prepare(build("llama"), CPU, torch.float32, options, checkpointing)
    for name, param in model.masters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(param)
    first, second = (model.logprobs(model.layout(EXAMPLES)) for _ in range(2))
    assert not torch.allclose(first, second)


def test_layers_are_recomputed_where_that_is_asked_for():
    counts = []
    for checkpointing in (False, True):
        module = build("llama")
        calls = []
        module.model.layers[0].mlp.down_proj.register_forward_pre_hook(
            lambda *given, calls=calls: calls.append(1)
        )
        model = prepare(module, CPU, torch.float32, None, checkpointing)
        calls.clear()
        model.logprobs(model.layout(EXAMPLES)).sum().backward()
        counts.append(len(calls))
    assert counts == [1, 2]


@pytest.mark.parametrize("decoder", [False, True])
def test_a_model_that_sees_what_it_predicts_is_refused(decoder):
    module = random_model("BertGenerationConfig", is_decoder=decoder)
    if decoder:
        prepare(module, CPU, torch.float32)
        return
    with pytest.raises(EngineError, match=r"depends on the tokens after it[^$]*`is_decoder`"):
        prepare(module, CPU, torch.float32)


def test_rows_of_the_check_are_unlike_in_length():
    lengths = {len(p) + len(b) for p, branches in ROWS for b in branches}
    assert len(lengths) == sum(len(branches) for _, branches in ROWS)


def test_a_model_that_needs_more_than_tokens_is_refused_in_a_sentence(monkeypatch):
    module = build("llama")

    def forward(input_ids=None, **others):
        raise AttributeError("'NoneType' object has no attribute 'shape'\nand more")

    monkeypatch.setattr(module.model, "forward", forward)
    with pytest.raises(EngineError, match="does not compute from token ids alone: AttributeError"):
        prepare(module, CPU, torch.float32)


def test_an_architecture_without_a_sequence_classifier_has_no_reward_model(tmp_path):
    random_model("GraniteConfig").save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="transformers has no sequence classifier of granite"):
        load_module(tmp_path, CPU, reward=True)


def test_code_that_asserts_chance_in_training_is_refused_in_a_sentence(
    monkeypatch, tmp_path, make_model, make_preferences
):
    class Chance(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise AssertionError("make sure to use `model.train()`")

    norm = transformers.models.llama.modeling_llama.LlamaRMSNorm
    plain = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, x: Chance.apply(plain(self, x)))
    options = METHODS["sft"](method="sft", batch_size=2, precision="fp32")
    places = make_model(0), None, tmp_path / "out", tmp_path / "work"
    with pytest.raises(EngineError, match="LlamaForCausalLM cannot be trained here: make sure"):
        train(options, make_preferences(2), {}, *places, seed=0)
