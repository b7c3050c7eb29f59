"""How logits follow from hidden states is read off the model, whatever its config calls it."""

from __future__ import annotations

import pytest
import torch
import transformers

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.engines.base import ScoreRequest
from rlaif.engines.local.encoding import load_encoding
from rlaif.engines.local.hf import HfEngine
from rlaif.engines.local.weights import Head, Weights, head_of
from tests.support.architectures import SMALL

SIZES = {name: value for name, value in SMALL.items() if name != "head_dim"}
HEADS = {
    "llama": ("LlamaConfig", {}, Head()),
    "granite divides": ("GraniteConfig", {"logits_scaling": 8.0}, Head(1 / 8)),
    "hyperclovax multiplies": ("HyperCLOVAXConfig", {"logits_scaling": 8.0}, Head(8.0)),
    "cohere": ("CohereConfig", {"logit_scale": 0.3}, Head(0.3)),
    "minicpm3 divides before": (
        "MiniCPM3Config",
        {"dim_model_base": 24, "num_key_value_heads": 4},
        Head(0.75),
    ),
    "gemma2": ("Gemma2Config", {"final_logit_softcapping": 3.0}, Head(1.0, 3.0)),
    "recurrent_gemma": ("RecurrentGemmaConfig", {"logits_soft_cap": 3.0}, Head(1.0, 3.0)),
    "phi has a bias": ("PhiConfig", {}, Head()),
}


def model(kind, options, dtype=torch.float32):
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**SIZES, **options})
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, param in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(param)
    return made.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HEADS)
def test_scale_and_cap_are_those_of_the_model(name, dtype):
    kind, options, head = HEADS[name]
    assert head_of(model(kind, options, dtype)) == head


def test_the_engine_finishes_logits_as_the_model_does():
    made = model("HyperCLOVAXConfig", {"logits_scaling": 8.0})
    ids = torch.arange(12)[None]
    weights = Weights(made, "x")
    hidden = made.base_model(input_ids=ids).last_hidden_state
    with torch.no_grad():
        found = weights.head.finish(made.get_output_embeddings()(hidden))
        torch.testing.assert_close(found, made(input_ids=ids).logits)


def test_log_probs_are_those_of_the_finished_logits(tiny_model):
    spec = ModelSpec(path=str(tiny_model))
    config = transformers.AutoConfig.from_pretrained(tiny_model)
    encoding = load_encoding(tiny_model, spec, config, "m")
    options = {"logits_scaling": 8.0, "vocab_size": config.vocab_size}
    made = model("HyperCLOVAXConfig", options)
    engine = HfEngine(Weights(made, "x"), encoding, spec)
    messages, ids = [{"role": "user", "content": "Hello."}], [5, 6, 7]
    ((result,),) = engine.score([ScoreRequest("a", messages, continuation_ids=ids)])
    _, prompt = engine.render(messages)
    with torch.no_grad():
        logits = made(input_ids=torch.tensor([[*prompt, *ids]])).logits[0]
    expected = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(ids)[:, None])
    assert result.token_logprobs == pytest.approx(expected[:, 0].tolist(), abs=1e-4)


def test_logits_of_another_form_are_refused():
    bert = model("BertConfig", {"is_decoder": True})
    with pytest.raises(EngineError, match="BertLMHeadModel: its logits are more than the product"):
        Weights(bert, "x")
