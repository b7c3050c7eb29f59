"""Raw texts: the token ids of transformers' own tokenizer, one BOS, one EOS, each token once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlaif.config.methods import AnyTrain
from rlaif.core.errors import EngineError, RlaifError
from rlaif.engines.model_folders import NO_LIMITS, Limits
from rlaif.train.loop import TrainJob
from rlaif.train.run import encode_data, train_on_preferences
from rlaif.train.texts import add_texts, cut_pieces, text_ids
from rlaif.train.tokenise import Encoded
from tests.conftest import make_tokenizer

TEXTS = ["A river is water.\nIt flows.", "  Bees make honey. ", "Zwölf Monate hat das Jahr."]


def options(**keys):
    return TypeAdapter(AnyTrain).validate_python({"method": "sft", "precision": "fp32"} | keys)


def encoded(tokenizer, texts, limits=NO_LIMITS, **keys):
    result = Encoded()
    add_texts(result, texts, tokenizer, options(**keys), limits)
    return result


def job(folder: Path, start: Path, texts, **keys):
    where = {"start": start, "out": folder / "out", "work": folder / "work"}
    keys = {"batch_size": len(texts), "learning_rate": 1e-3} | keys
    device = torch.device("cpu")
    return TrainJob(options=options(**keys), **where, seed=0, device=device, texts=texts)


def with_bos():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", "<s> $A $B", begin)
    return tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers_and_an_end(tokenizer, text):
    plain = tokenizer(text)["input_ids"]
    assert text_ids(tokenizer, text) == [*plain, tokenizer.eos_token_id]
    assert text_ids(tokenizer, text, end=False) == plain
    assert tokenizer.decode(plain) == text
    # No template: nothing of a conversation is around it.
    assert not {"<|im_start|>", "assistant"} & {*tokenizer.convert_ids_to_tokens(plain)}


@pytest.mark.parametrize("text", TEXTS)
def test_the_embedded_models_tokenizer_gives_the_same(model_folder, text):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    expected = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    (example,) = encoded(tokenizer, [text]).examples
    assert [*example.prompt_ids, *example.completions[0]] == expected
    assert len(example.prompt_ids) == 1


def test_a_bos_that_the_tokenizer_adds_is_there_once():
    tokenizer = with_bos()
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    plain = tokenizer("A plum.")["input_ids"]
    assert plain[0] == begin and plain.count(begin) == 1
    assert text_ids(tokenizer, "A plum.") == [*plain, end]
    # A corpus may spell both out.
    assert tokenizer("<s>A plum.")["input_ids"][:2] == [begin, begin]
    assert text_ids(tokenizer, "<s>A plum.<|im_end|>") == [*plain, end]
    # The BOS predicts the first token of the text, so that every token of it is learned.
    (example,) = encoded(tokenizer, ["A plum."]).examples
    assert (example.prompt_ids, example.completions) == ([begin], ([*plain[1:], end],))


def test_a_tokenizer_without_an_end_gives_none(tokenizer):
    bare = make_tokenizer()
    bare.eos_token = None
    assert text_ids(bare, "A plum.") == bare("A plum.")["input_ids"]


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(2, 12))
def test_pieces_learn_every_token_but_the_first_once(ids, most):
    pieces = list(cut_pieces(ids, most))
    assert [i for _, learned in pieces for i in learned] == ids[1:]
    assert all(len(context) == 1 and 1 + len(learned) <= most for context, learned in pieces)
    assert all(before[1][-1] == after[0][0] for before, after in pairwise(pieces))
    # As few as there can be.
    assert len(pieces) == -(-max(0, len(ids) - 1) // (most - 1))


def test_long_texts_are_cut_and_counted_or_refused(tokenizer):
    long = "a river " * 20
    result = encoded(tokenizer, ["short", long], max_length=50)
    length = len(text_ids(tokenizer, long))
    wanted = 1 + -(-(length - 1) // 49)
    assert {n: result.counts[n] for n in ("texts", "pieces")} == {"texts": 2, "pieces": wanted}
    assert len(result.examples) == wanted and max(e.length for e in result.examples) == 50
    with pytest.raises(RlaifError, match=rf"text 2 of 2 \('a river.*has {length} tokens.*may have"):
        encoded(tokenizer, ["short", long], max_length=50, overlong="refuse")
    # A table of positions ends before `max_length`.
    short = encoded(tokenizer, [long], Limits(positions=20, table=True))
    assert max(e.length for e in short.examples) == 20


def test_train_on_eos_leaves_the_end_out(tokenizer):
    (whole,) = encoded(tokenizer, ["A plum."]).examples
    (bare,) = encoded(tokenizer, ["A plum."], train_on_eos=False).examples
    assert whole.completions[0] == [*bare.completions[0], tokenizer.eos_token_id]


def test_a_token_without_an_embedding_is_refused_by_its_text(tokenizer):
    limits = Limits(vocabulary=tokenizer.eos_token_id)
    with pytest.raises(EngineError, match=r"text 1 of 1 \('A plum\.'\): "):
        encoded(tokenizer, ["A plum."], limits)
    assert encoded(tokenizer, ["A plum."], limits, on_error="skip").counts["refused"] == 1


def test_the_loss_is_transformers_own(tmp_path, make_model, tokenizer):
    start = make_model(0)
    outcome = train_on_preferences(job(tmp_path, start, TEXTS))
    module = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    total = count = 0.0
    for text in TEXTS:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            loss = float(module(input_ids=ids, labels=ids).loss)
        total, count = total + loss * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert outcome.metrics["first_loss"] == pytest.approx(total / count, rel=1e-4)
    assert outcome.skipped["texts"] == outcome.skipped["pieces"] == 3


def test_texts_need_no_chat_template_and_mix_with_answers(
    tmp_path, make_model, make_preferences, tokenizer
):
    folder = tmp_path / "base"
    shutil.copytree(make_model(0), folder)
    bare = make_tokenizer()
    bare.chat_template = None
    bare.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    given = job(tmp_path, folder, TEXTS)
    assert len(encode_data(given).examples) == 3
    mixed = replace(given, preferences=make_preferences(2))
    with pytest.raises(EngineError, match="no chat template"):
        encode_data(mixed)
    both = encode_data(replace(mixed, start=make_model(0)))
    assert [len(e.prompt_ids) > 1 for e in both.examples] == [True, True, False, False, False]


@pytest.mark.slow
def test_two_processes_learn_from_texts_and_cut_answers_as_one(
    tmp_path, make_model, make_preferences
):
    given = job(tmp_path, make_model(0), TEXTS, batch_size=5, processes=1)
    given = replace(given, preferences=make_preferences(2), unfinished=frozenset({"c0"}))
    one = train_on_preferences(given)
    out, work = tmp_path / "two", tmp_path / "work2"
    both = replace(given, options=options(batch_size=5, processes=2, learning_rate=1e-3))
    two = train_on_preferences(replace(both, out=out, work=work))
    assert two.metrics["first_loss"] == pytest.approx(one.metrics["first_loss"], rel=1e-5)
    assert (two.tokens, two.skipped) == (one.tokens, one.skipped)
