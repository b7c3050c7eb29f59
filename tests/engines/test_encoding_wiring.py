"""Requests of every kind in one batch, by a model with settings of its own: each keeps its text,
its tokens, its room and its tail."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from rlaif.config.models import ModelSpec
from rlaif.engines.base import GenerateRequest, Sampling, ScoreRequest
from rlaif.engines.local.encoding import Encoding, load_encoding

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ':' }}"
    "{% if m['role'] == 'assistant' %}{{ mode }}{% endif %}{{ m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant:' + mode }}{% endif %}"
)
ASKED: Any = [{"role": "system", "content": "Sys."}, {"role": "user", "content": "Why?"}]
START = "<|im_start|>user:Sys.\n\nWhy?<|im_end|><|im_start|>assistant:loud"


@pytest.fixture
def own(tokenizer: Any) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = TEMPLATE
    return changed


def spec(**keys: Any) -> ModelSpec:
    how = {"chat_template_kwargs": {"mode": "loud"}, "system_role": "merge"}
    return ModelSpec(path="m", **how | keys)


def test_each_request_is_encoded_by_its_own_prefill_room_and_continuation(own: Any) -> None:
    def ids(text: str) -> list[int]:
        return list(own(text, add_special_tokens=False)["input_ids"])

    length = len(ids(START))
    encoding = Encoding(own, spec().chat, length + 6, "mine")
    sampling = Sampling(6)
    found = encoding.encode(
        [
            GenerateRequest("plain", ASKED, sampling),
            GenerateRequest("over", ASKED, Sampling(7)),
            GenerateRequest("begun", ASKED, Sampling(2), prefill="Yes"),
            ScoreRequest("tokens", ASKED, continuation_ids=[5, 4, 3]),
            ScoreRequest("text", ASKED, continuation="No."),
            ScoreRequest("after", ASKED, prefill="So", continuation="no."),
            ScoreRequest("labels", ASKED, labels={"yes": ("Yes",)}),
            ScoreRequest("long", ASKED, continuation_ids=[5] * 7),
        ]
    )
    rows = {row.request_id: (row.ids, row.new) for row in found.rows}
    assert rows == {
        "plain": (ids(START), 6),
        "begun": (ids(START + "Yes"), 2),
        "tokens": ([*ids(START), 5, 4, 3], 0),
        "text": (ids(START) + ids("No."), 0),
        "after": (ids(START + "So") + ids("no."), 0),
        "labels": (ids(START), 0),
    }
    assert found.tails == {
        "plain": 0,
        "begun": 0,
        "tokens": 3,
        "text": len(ids("No.")),
        "after": len(ids("no.")),
        "labels": 0,
    }
    assert found.texts == {
        **dict.fromkeys(("plain", "tokens", "text", "labels"), START),
        "begun": START + "Yes",
        "after": START + "So",
    }
    assert {name: tokens for name, (_, tokens) in found.failed.items()} == {
        "over": length,
        "long": length + 7,
    }
    assert f"{length} prompt tokens + 7 new" in found.failed["over"][0]


def test_a_model_is_encoded_with_its_own_folder_settings_and_context(
    own: Any, tmp_path: Any
) -> None:
    from transformers import LlamaConfig

    own.save_pretrained(tmp_path)
    config = LlamaConfig(vocab_size=len(own), max_position_embeddings=99)
    found = load_encoding(tmp_path, spec(max_context=33, system_role="drop"), config, "mine")
    assert (found.context, found.name) == (33, "mine")
    assert found.limits.unknown([len(own)]) == len(own)
    text, ids = found.render(ASKED, "So")
    assert text == "<|im_start|>user:Why?<|im_end|><|im_start|>assistant:loudSo"
    assert ids == own(text, add_special_tokens=False)["input_ids"]
    assert load_encoding(tmp_path, spec(), config, "mine").context == 99
    told = spec(system_role="keep", system_prompt="Own.", chat_template_kwargs={"mode": "low"})
    text, _ = load_encoding(tmp_path, told, config, "mine").render(ASKED[1:])
    assert text.startswith("<|im_start|>system:Own.<|im_end|>") and text.endswith("assistant:low")
