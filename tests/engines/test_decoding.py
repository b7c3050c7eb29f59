"""Rows padded on the left compute what each row computes by itself, also with learned positions."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlaif.engines.local.decoding import PaddedRows
from tests.engines.test_branch_rows import OWNER, PROMPTS, full_states


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@torch.inference_mode()
def test_padded_rows_have_the_states_of_a_plain_pass(name: str) -> None:
    torch.manual_seed(0)
    if name == "gpt2":
        config = GPT2Config(
            vocab_size=97,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            eos_token_id=0,
            bos_token_id=0,
        )
        model = GPT2LMHeadModel(config).eval()
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=97, num_attention_heads=2, **sizes)).eval()
    tokens = torch.randint(0, 97, (4, len(OWNER)))
    wanted = [full_states(model, PROMPTS[p], tokens[:, r].tolist()) for r, p in enumerate(OWNER)]
    rows = PaddedRows(model, PROMPTS, OWNER, 0)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(rows.first(), torch.stack([w[0] for w in wanted]), **close)
    left = list(range(len(OWNER)))
    for step, given in enumerate(tokens):
        if step == 2:
            left = [0, 2, 5]
            rows.keep(torch.tensor(left))
        expected = torch.stack([wanted[row][step + 1] for row in left])
        torch.testing.assert_close(rows.after(given[left]), expected, **close)
