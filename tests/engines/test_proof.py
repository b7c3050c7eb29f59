"""Which faster forms a model takes: only those that compute what its own code computes."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers
from torch import nn

import rlaif.engines.local.forward as fast_paths
import rlaif.engines.local.proof as proof
from rlaif.engines.local.proof import choose
from rlaif.train.model import prepare
from tests.support.architectures import CPU, EXAMPLES, SMALL, build

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
OTHERS = {
    "gpt_neox": ("GPTNeoXConfig", {"rotary_pct": 0.25}, True, {"rotary"}),
    "phi4_mini": ("Phi3Config", {"partial_rotary_factor": 0.5}, True, {"rotary", "norm"}),
    "olmo2": ("Olmo2Config", {}, True, {"rotary", "norm", "gate"}),
    "gpt2": ("GPT2Config", {"n_layer": 2, "n_head": 4, "n_embd": 32}, True, set()),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 4}, False, set()),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, **EXPERTS}, False, {"norm"}),
    "llama4": (
        "Llama4TextConfig",
        {"num_local_experts": 4, "intermediate_size_mlp": 48, "attention_chunk_size": 64},
        False,
        {"norm", "gate"},
    ),
    "mamba": ("MambaConfig", {}, False, {"norm"}),
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 4, **EXPERTS}, True, {"rotary", "norm"}),
}


pytestmark = pytest.mark.usefixtures("nothing_proved")


def other(name):
    kind, options, *_ = OTHERS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**SMALL, **options})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def plain_gradients(module):
    """Each answer by itself through the model's own logits; and every parameter's gradient."""
    module.zero_grad()
    found = []
    for prompt, branches in EXAMPLES:
        for branch in branches:
            logits = module(input_ids=torch.tensor([[*prompt, *branch]]), use_cache=False).logits
            steps = list(range(len(prompt) - 1, len(prompt) + len(branch) - 1))
            found.append(logits[0].float().log_softmax(-1)[steps, branch].sum())
    values = torch.stack(found)
    (values * torch.linspace(-1, 1, len(values))).sum().backward()
    return values.detach(), {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in module.named_parameters()
    }


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_model_takes_and_that_it_trains_as_by_its_own_code(name):
    _, _, packed, kinds = OTHERS[name]
    module = other(name)
    wanted, wanted_gradients = plain_gradients(module)
    model = prepare(module, CPU, torch.float32)
    assert model.packed == packed
    assert set(model.choice.parts.values()) == kinds
    values = model.logprobs(model.layout(EXAMPLES))
    (values * torch.linspace(-1, 1, len(values))).sum().backward()
    torch.testing.assert_close(values.detach(), wanted, rtol=1e-4, atol=1e-4)
    for key, master in model.masters.items():
        torch.testing.assert_close(
            master.grad,
            wanted_gradients[key],
            rtol=1e-3,
            atol=1e-4,
            msg=lambda m, k=key: f"{k} {m}",
        )


@pytest.mark.parametrize("name", ["gpt_neox", "phi4_mini", "olmo2", "qwen3_moe"])
def test_in_bf16_too(name):
    choice = choose(other(name), torch.bfloat16, CPU)
    assert choice.packed
    assert set(choice.parts.values()) == OTHERS[name][3]


class ShiftedRMSNorm(nn.Module):
    """Called a norm like the others, and is another."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.eps = 1e-6

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight + 0.01


def test_a_part_that_computes_something_else_is_left_alone():
    norm = ShiftedRMSNorm()
    assert proof._part_kind(norm, None) is None
    assert "forward" not in vars(norm)


def test_a_class_of_which_one_part_differs_is_left_alone_as_a_whole(monkeypatch):
    plain = transformers.models.llama.modeling_llama.LlamaRMSNorm.forward

    def forward(self, hidden_states):
        return plain(self, hidden_states) + (0.01 if self.weight.shape[0] == 32 else 0.0)

    monkeypatch.setattr(transformers.models.llama.modeling_llama.LlamaRMSNorm, "forward", forward)
    choice = choose(build("llama"), torch.float32, CPU)
    assert set(choice.parts.values()) == {"gate", "rotary"}


def test_a_fused_part_whose_gradient_is_wrong_is_found_by_the_whole_copy(monkeypatch, caplog):
    """Its values are right, so that only the comparison of all gradients can tell."""
    right = fast_paths.gated_silu

    def wrong(gate, up):
        return right(gate.detach(), up)

    monkeypatch.setattr(fast_paths, "gated_silu", wrong)
    with caplog.at_level(logging.WARNING):
        choice = choose(build("llama"), torch.float32, CPU)
    assert choice.packed
    assert choice.parts == {}
    assert "rotary embeddings stay as they are, which is slower: the gradient of" in caplog.text


def test_a_config_without_a_small_copy_trains_padded_and_says_so(monkeypatch, caplog):
    def refuse(*arguments):
        raise ValueError("no such layers")

    monkeypatch.setattr(proof, "_make_small_copy", refuse)
    with caplog.at_level(logging.WARNING):
        assert choose(build("llama"), torch.float32, CPU).packed is False
    assert "no small copy could be tried: no such layers" in caplog.text


def test_a_choice_is_kept_on_disk_and_belongs_to_its_dtype(monkeypatch, tmp_path):
    first = choose(build("llama"), torch.float32, CPU)
    (path,) = (tmp_path / "cache/fast-paths").iterdir()
    assert json.loads(path.read_text())["packed"] is True
    monkeypatch.setattr(proof, "_known", {})
    monkeypatch.setattr(proof, "prove", lambda *arguments: pytest.fail("it was proved already"))
    assert choose(build("llama"), torch.float32, CPU) == first
    path.write_text("{}")
    monkeypatch.setattr(proof, "_known", {})
    monkeypatch.setattr(proof, "prove", lambda *arguments: fast_paths.PLAIN)
    assert choose(build("llama"), torch.float32, CPU) == fast_paths.PLAIN
    assert choose(build("llama"), torch.bfloat16, CPU) == fast_paths.PLAIN
    assert len(list((tmp_path / "cache/fast-paths").iterdir())) == 2


def test_what_was_left_out_is_tried_again_by_the_next_process(monkeypatch, tmp_path, caplog):
    left_out = fast_paths.Choice(False, {}, ("no compiler",))
    monkeypatch.setattr(proof, "prove", lambda *arguments: left_out)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert choose(build("llama"), torch.float32, CPU) == left_out
    assert caplog.text.count("no compiler") == 1
    assert not (tmp_path / "cache/fast-paths").exists()


def test_a_copy_keeps_every_kind_of_layer_and_the_heads():
    config = build("gemma3").config
    config.num_hidden_layers, config.vocab_size, config.sliding_window = 12, 5000, 4096
    config.layer_types = ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"] * 6
    proof.shrink(config)
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert (config.num_hidden_layers, config.sliding_window, config.vocab_size) == (2, 8, 512)
    assert (config.head_dim, config.num_attention_heads, config.num_key_value_heads) == (8, 4, 2)


def test_a_copy_keeps_layers_that_use_the_keys_of_others():
    kinds = [*["sliding_attention"] * 4, "full_attention"] * 3
    config = transformers.Gemma3nTextConfig(
        num_hidden_layers=15, layer_types=kinds, num_kv_shared_layers=5
    )
    proof.shrink(config)
    assert config.layer_types == ["sliding_attention", "full_attention"] * 2
    assert config.num_kv_shared_layers == 2
    assert len(config.kv_sharing_modes) == 4


def test_a_copy_has_the_special_tokens_that_its_config_asks_for():
    config = transformers.CwmConfig()
    proof.shrink(config)
    assert (config.bos_token_id, config.vocab_size) == (0, 512)
    assert config.eos_token_id == 0


def test_a_config_that_cannot_be_made_small_trains_padded(monkeypatch, caplog):
    def refuse(config):
        raise AttributeError("no number of layers")

    monkeypatch.setattr(proof, "shrink", refuse)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert choose(build("llama"), torch.float32, CPU).packed is False
    assert caplog.text.count("could be tried: no number of layers") == 1


def test_a_model_that_keeps_what_it_computed_is_proved_all_the_same(monkeypatch):
    layer = transformers.models.llama.modeling_llama.LlamaDecoderLayer
    plain = layer.forward

    def forward(self, *given, **named):
        self.kept = plain(self, *given, **named)
        return self.kept

    monkeypatch.setattr(layer, "forward", forward)
    assert choose(build("llama"), torch.float32, CPU).packed


def test_code_that_knows_no_fp64_is_proved_in_fp32(monkeypatch):
    own = proof._compute_values

    def values(model, choice):
        if model.dtype == torch.float64:
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        return own(model, choice)

    monkeypatch.setattr(proof, "_compute_values", values)
    choice = choose(build("llama"), torch.float32, CPU)
    assert choice.packed
    assert set(choice.parts.values()) == {"rotary", "norm", "gate"}


def test_a_norm_whose_weight_is_no_parameter_is_compared_too():
    norm = transformers.models.llama.modeling_llama.LlamaRMSNorm(8)
    weight = norm.weight.detach() + torch.arange(8) / 8
    del norm.weight
    norm.register_buffer("weight", weight)
    assert proof._part_kind(norm, None) == "norm"


def test_what_computed_a_training_stands_in_its_outcome(tmp_path, make_model, make_preferences):
    from rlaif.config.methods import METHODS
    from rlaif.train.run import train

    options = METHODS["dpo"](method="dpo", batch_size=2, precision="fp32")
    places = make_model(0), None, tmp_path / "out", tmp_path / "work"
    outcome = train(options, make_preferences(4), {}, *places, seed=0)
    assert outcome.kernels["packed"] is True
    assert outcome.kernels["attention"] == "group by group"
    assert outcome.kernels["fused"]["LlamaRMSNorm"] == "norm"
    assert outcome.kernels["torch"] == torch.__version__
    assert outcome.kernels["left_out"] == []
