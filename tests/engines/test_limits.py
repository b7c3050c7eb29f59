"""Limits that are found when texts are encoded: positions, embeddings, refusals, equal answers."""

from __future__ import annotations

import json
import logging
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from msgspec.structs import replace

from rlaif.cli import cli
from rlaif.config.models import ModelSpec
from rlaif.core.chat import TemplateRefusal
from rlaif.core.errors import EngineError, RlaifError
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.engines.build import load_engine
from rlaif.engines.model_folders import Limits, limits_of
from rlaif.train.methods.heads import LinearDistill
from rlaif.train.methods.pairs import DpoTrain
from rlaif.train.methods.reward_models import BradleyTerryDistill
from rlaif.train.run import train
from rlaif.train.tokenise import encode
from tests.support.templates import MISTRAL
from tests.support.templates import tokenizer as made_tokenizer

OPTIONS = {"both": True, "max_length": 512, "overlong": "skip", "train_on_eos": True}


def small(folder: Path, kind: str, positions: int, tokenizer, **changes) -> Path:
    """A random model of a class with learned positions, or with RoPE."""
    import transformers

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    keys = {"vocab_size": len(tokenizer), "max_position_embeddings": positions, **size, **changes}
    if kind == "GPT2":
        keys |= {"n_positions": keys.pop("max_position_embeddings")}
    if kind == "Llama":
        keys |= {"intermediate_size": 48}
    if kind == "OPT":
        keys |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
    config = getattr(transformers, f"{kind}Config")(
        **keys, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=None
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["GPT2", "OPT"])
def test_sequences_beyond_a_table_of_positions_are_overlong(
    tmp_path, tokenizer, make_preferences, kind
):
    preferences = make_preferences(4)
    lengths = sorted(e.length for e in encode(preferences, tokenizer, {}, **OPTIONS).examples)
    start = small(tmp_path / "start", kind, lengths[1], tokenizer)
    options = DpoTrain(batch_size=2, precision="fp32")
    outcome = train(options, preferences, {}, start, None, tmp_path / "o", tmp_path / "w", 0)
    assert outcome.skipped["overlong"] == 2
    tight = small(tmp_path / "tight", kind, 20, tokenizer)
    for overlong, said in (
        ("skip", "none of the 4 .*the model has 20 positions: .*`overlong: truncate_left`"),
        ("refuse", "the model has 20 positions. Set `overlong: skip`"),
    ):
        changed = options.model_copy(update={"overlong": overlong})
        with pytest.raises(RlaifError, match=said) as error:
            train(changed, preferences, {}, tight, None, tmp_path / "n", tmp_path / "x", 0)
        assert "raise `max_length`" not in str(error.value).lower()


def test_a_rope_model_is_trained_beyond_its_positions_with_a_warning(
    tmp_path, tokenizer, make_preferences, caplog
):
    start = small(tmp_path / "start", "Llama", 20, tokenizer)
    options = DpoTrain(batch_size=2, precision="fp32")
    with caplog.at_level(logging.WARNING):
        outcome = train(
            options, make_preferences(2), {}, start, None, tmp_path / "o", tmp_path / "w", 0
        )
    assert outcome.steps == 1 and outcome.skipped["beyond_positions"] == 2
    assert "2 of 2 examples are longer than the 20 positions" in caplog.text


def test_which_models_have_a_table_of_positions():
    import transformers

    for name, positions, table in (
        ("GPT2Config", 1024, True),
        ("OPTConfig", 2048, True),
        ("GPTJConfig", 2048, True),
        ("MptConfig", 2048, True),
        ("LlamaConfig", 2048, False),
        ("GPTNeoXConfig", 2048, False),
        ("BloomConfig", None, False),
        ("MambaConfig", None, False),
        ("JambaConfig", 262144, False),
    ):
        found = limits_of(getattr(transformers, name)())
        assert (found.positions, found.table) == (positions, table), name


def test_an_id_without_an_embedding_is_named_in_training_and_sampling(
    tmp_path, tokenizer, make_preferences
):
    # The tokenizer was given tokens, and the model was not enlarged.
    start = small(tmp_path / "start", "Llama", 256, tokenizer, vocab_size=len(tokenizer) - 3)
    said = r"gives '<\|im_\w+\|>' the id \d+, and the model has \d+ embeddings"
    with pytest.raises(EngineError, match=r"row 1 of 2 \(prompt p0, 'Say '\): .*" + said):
        train(DpoTrain(), make_preferences(2), {}, start, None, tmp_path / "o", tmp_path / "w", 0)
    engine = load_engine(ModelSpec(path=str(start), dtype="float32"), start, "small")
    request = GenerateRequest("r", [{"role": "user", "content": "Hi"}], Sampling(4))
    with pytest.raises(EngineError, match=said):
        list(engine.generate([request]))


def test_pairs_that_become_equal_are_counted_and_left_out(tokenizer, make_preferences):
    first, second = make_preferences(2)
    blank = replace(first, rejected=[{"role": "assistant", "content": "yes 0 "}])
    before = tokenizer.chat_template
    tokenizer.chat_template = before.replace("m['content']", "m['content'] | trim")
    try:
        found = encode([blank, second], tokenizer, {}, **OPTIONS)
    finally:
        tokenizer.chat_template = before
    assert found.counts["equal"] == 1
    assert [e.example_id for e in found.examples] == [second.preference_id]


@pytest.mark.parametrize("bad", ["system", "twice", "two answers"])
def test_a_row_that_is_refused_is_named_or_left_out(make_preferences, bad):
    tok = made_tokenizer("metaspace", MISTRAL, "</s>")
    good, other = make_preferences(2)
    turns = {
        "system": [{"role": "system", "content": "Be kind."}, *other.prompt],
        "twice": [*other.prompt, *other.prompt],
        "two answers": other.prompt,
    }
    answer = [*other.chosen, *other.chosen] if bad == "two answers" else other.chosen
    row = replace(other, prompt=turns[bad], chosen=answer)
    said = {
        "system": "`system_role: merge`",
        "twice": "must alternate",
        "two answers": "exactly one assistant message",
    }[bad]
    with pytest.raises(RlaifError, match=r"row 2 of 2 \(prompt p1, 'Say x'\): .*" + said) as error:
        encode([good, row], tok, {}, **OPTIONS)
    assert isinstance(error.value, TemplateRefusal) == (bad != "two answers")
    found = encode([good, row], tok, {}, **OPTIONS, on_error="skip")
    assert found.counts["refused"] == 1 and len(found.examples) == 1


def test_advice_never_names_what_is_set(tmp_path, make_model, make_preferences):
    where = {"start": make_model(0), "out": tmp_path / "o", "work": tmp_path / "w", "seed": 0}
    learn = partial(train, preferences=make_preferences(2), token_ids={}, reference=None, **where)
    for options, made in (
        (DpoTrain(max_length=4, overlong="truncate_left"), learn),
        (DpoTrain(max_length=4), learn),
        (BradleyTerryDistill(max_length=4, overlong="truncate_left"), learn),
        (LinearDistill(method="linear", max_length=4, overlong="truncate_left"), learn),
    ):
        with pytest.raises(RlaifError, match=r"raise `max_length` \(4\)") as error:
            made(options)
        set_already = options.overlong == "truncate_left"
        assert ("truncate_left" in str(error.value)) != set_already


def test_train_on_error_skip_leaves_out_rows_that_cannot_be_read_or_rendered(
    tmp_path, make_model, tokenizer
):
    start = tmp_path / "start"
    shutil.copytree(make_model(0), start)
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system') }}{% endif %}"
    (start / "chat_template.jinja").write_text(strict + tokenizer.chat_template)
    rows = [
        {"prompt": "Say yes", "chosen": "yes", "rejected": "no"},
        {"prompt": "Say yes", "chosen": 7, "rejected": "no"},
        {
            "prompt": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "x"}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        },
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in (["train", "dpo", str(data)], ["distill", str(data)]):
        words = [*command, "--model", str(start), "--quiet", "--set", "precision=fp32"]
        out = str(tmp_path / command[0])
        failed = CliRunner().invoke(cli, [*words, "--out", f"{out}-fail"])
        assert isinstance(failed.exception, RlaifError)
        assert re.search(r"pairs\.jsonl:2", str(failed.exception))
        words += ["--out", out, "--on-error", "skip", "--json"]
        result = CliRunner().invoke(cli, words, catch_exceptions=False)
        counts = json.loads(result.stdout.strip().splitlines()[-1])["counts"]
        assert counts["preferences"] == 2 and counts["refused"] == 1 and counts["steps"] == 1


def test_no_limits_are_no_limits():
    assert Limits().unknown([1 << 40]) is None
    assert Limits(vocabulary=5).unknown([4, 6, 5]) == 6
    assert Limits(vocabulary=5).unknown([]) is None
