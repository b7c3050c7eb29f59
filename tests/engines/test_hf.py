"""The in-process engine on a tiny model: seeds, resume, ends, refusals, exact log-probs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.core.records import Message
from rlaif.engines.base import GenerateRequest, GenerateResult, Sampling, ScoreRequest, ScoreResult
from rlaif.engines.local.hf import HfEngine, load

TEXTS = ["Name a red fruit.", "Hi", "What is a river, and where does it end? Say it in one line."]


def engine_of(folder: Path, **keys: Any) -> HfEngine:
    return load(ModelSpec(path=str(folder), dtype="float32", **keys), folder, "tiny")


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> HfEngine:
    # Few tokens in a batch: three texts make several batches.
    return engine_of(tiny_model, batch_tokens=60, system_prompt="drop", max_context=120)


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def asked(texts: Iterable[str] = TEXTS, n: int = 2, **sampling: Any) -> list[GenerateRequest]:
    keys = {"max_new_tokens": 6, "temperature": 1.0} | sampling
    return [
        GenerateRequest(f"{i}-{k}", user(text), Sampling(**keys, seed=100 * i + k))
        for i, text in enumerate(texts)
        for k in range(n)
    ]


def generated(engine: HfEngine, requests: list[GenerateRequest]) -> dict[str, GenerateResult]:
    return {r.request_id: r for batch in engine.generate(requests) for r in batch}


def scored(engine: HfEngine, *requests: ScoreRequest) -> list[ScoreResult]:
    found = {r.request_id: r for batch in engine.score(requests) for r in batch}
    return [found[r.request_id] for r in requests]


@torch.inference_mode()
def plain_logprobs(engine: HfEngine, prompt: list[int], more: list[int]) -> torch.Tensor:
    """Log-softmax rows that predict `more`, and the one after it: transformers as it is."""
    result = engine.model(input_ids=torch.tensor([prompt + more]))
    return result.logits[0, len(prompt) - 1 :].float().log_softmax(-1)


def test_seeds_decide_and_repeat(engine: HfEngine) -> None:
    first = generated(engine, asked())
    assert generated(engine, asked()) == first
    assert first["0-0"].token_ids != first["0-1"].token_ids
    # A row's randomness is its own: alone it gives the same tokens as among others.
    alone = generated(engine, [asked()[0]])["0-0"]
    assert alone.token_ids == first["0-0"].token_ids


def test_order_of_requests_changes_nothing(engine: HfEngine) -> None:
    assert list(engine.generate(asked())) == list(engine.generate(asked()[::-1]))


def test_done_batches_are_skipped_and_the_rest_is_the_same(engine: HfEngine) -> None:
    requests = asked(n=3)
    whole = list(engine.generate(requests))
    assert len(whole) > 2
    done: set[str] = set()
    for number, batch in enumerate(whole):
        rest = list(engine.generate(requests, done))
        assert rest == whole[number:]
        done |= {r.request_id for r in batch}
    assert list(engine.generate(requests, done)) == []


def test_done_batches_of_scores_are_skipped_too(engine: HfEngine) -> None:
    requests = [
        ScoreRequest(str(i), user(text), continuation="Yes indeed")
        for i, text in enumerate(TEXTS * 20)
    ]
    whole = list(engine.score(requests))
    assert len(whole) > 1
    first = {r.request_id for r in whole[0]}
    assert list(engine.score(requests, first)) == whole[1:]


def test_greedy_takes_the_likeliest_token(engine: HfEngine) -> None:
    result = generated(engine, asked(TEXTS[:1], 1, temperature=0.0))["0-0"]
    prompt = engine.render(user(TEXTS[0]))[1]
    rows = plain_logprobs(engine, prompt, result.token_ids)
    assert rows[:-1].argmax(-1).tolist() == result.token_ids


def test_tokens_that_the_generation_config_suppresses_are_never_sampled(tiny_model: Path) -> None:
    free = engine_of(tiny_model)
    request = asked(TEXTS[:1], 1, temperature=0.0)
    first = generated(free, request)["0-0"].token_ids[0]
    free.model.generation_config.suppress_tokens = [first]
    engine = HfEngine(free.weights, free.encoding, free.spec)
    result = generated(engine, request)["0-0"]
    assert first not in result.token_ids
    rows = plain_logprobs(engine, engine.render(user(TEXTS[0]))[1], result.token_ids)[:1].clone()
    rows[:, first] = -math.inf
    assert result.token_ids[0] == int(rows[0].argmax())
    # The log-probs are those of what the token was drawn from.
    assert result.logprobs[0] == pytest.approx(float(rows[0].log_softmax(-1).max()), abs=1e-5)


def test_length_and_its_reason(engine: HfEngine) -> None:
    for result in generated(engine, asked(max_new_tokens=3)).values():
        if result.token_ids[-1] not in engine.end_ids:
            assert (len(result.token_ids), result.finish_reason) == (3, "length")


def test_the_end_token_ends_an_answer(tiny_model: Path) -> None:
    engine = engine_of(tiny_model)
    request = asked(TEXTS[:1], 1, temperature=0.0)
    free = generated(engine, request)["0-0"]
    assert len(free.token_ids) == 6
    engine.end_ids = frozenset({free.token_ids[2]})
    ended = generated(engine, request)["0-0"]
    stop = free.token_ids.index(free.token_ids[2]) + 1
    assert ended.token_ids == free.token_ids[:stop]
    assert ended.finish_reason == "stop"


def test_rows_that_end_early_leave_the_others_alone(tiny_model: Path) -> None:
    engine = engine_of(tiny_model)
    free = generated(engine, asked(n=3))
    ending = free["1-1"].token_ids[1]
    engine.end_ids = frozenset({ending})
    ended = generated(engine, asked(n=3))
    lengths = set()
    for name, result in ended.items():
        whole = free[name].token_ids
        stop = whole.index(ending) + 1 if ending in whole else len(whole)
        assert result.token_ids == whole[:stop]
        lengths.add(stop)
    assert len(lengths) > 1


def test_stop_strings_cut_the_text(engine: HfEngine) -> None:
    free = generated(engine, asked(TEXTS[:1], 1))["0-0"]
    assert len(free.text) > 4
    stop = free.text[2:4]
    result = generated(engine, asked(TEXTS[:1], 1, stop=(stop,)))["0-0"]
    assert result.text == free.text[: free.text.index(stop)]
    assert result.finish_reason == "stop"
    assert result.token_ids == free.token_ids[: len(result.token_ids)]
    # Of several stops the one that comes first in the text, whatever their order.
    for stops in ((stop, free.text[1:3]), (free.text[1:3], stop)):
        cut = generated(engine, asked(TEXTS[:1], 1, stop=stops))["0-0"]
        assert cut.text == free.text[: min(free.text.index(one) for one in stops)]
    never = generated(engine, asked(TEXTS[:1], 1, stop=("no such words",)))["0-0"]
    assert never == free


def test_prompts_that_cannot_be_answered_fail_alone(engine: HfEngine) -> None:
    requests = asked(["", "  \n", "word " * 200, "half \ud83d", TEXTS[0]], 1)
    found = generated(engine, requests)
    assert set(found) == {r.request_id for r in requests}
    for name, words in (
        ("0-0", "empty"),
        ("1-0", "empty"),
        ("2-0", "do not fit the context of 120"),
    ):
        assert found[name].finish_reason == "failed"
        assert words in str(found[name].error)
        assert (found[name].text, found[name].token_ids) == ("", [])
    assert found["3-0"].finish_reason == "failed"
    assert found["4-0"].error is None
    assert found["4-0"].token_ids
    # Refusals count as done like any other answer.
    left = [r.request_id for b in engine.generate(requests, {"0-0", "1-0", "2-0"}) for r in b]
    assert left == ["3-0", "4-0"]


def test_scores_that_cannot_be_given_fail_alone(engine: HfEngine) -> None:
    labels = {"yes": ("Yes",), "no": ("No",)}
    empty, long, good = scored(
        engine,
        ScoreRequest("a", user(""), labels=labels),
        ScoreRequest("b", user("word " * 200), labels=labels),
        ScoreRequest("c", user(TEXTS[0]), labels=labels),
    )
    assert "empty" in str(empty.error)
    assert "do not fit" in str(long.error)
    assert (empty.label_probs, empty.label_mass) == ({}, None)
    assert good.error is None
    assert set(good.label_probs) == {"yes", "no"}


def test_unicode_goes_through(engine: HfEngine) -> None:
    text = "Grüße 🌍 — 你好, مرحبا\u200d e\u0301"
    rendered, ids = engine.render(user(text))
    assert text in rendered
    assert engine.tokenizer.decode(ids) == rendered
    (result,) = generated(engine, asked([text], 1)).values()
    assert result.error is None


def test_system_prompt_keep_drop_and_text(tiny_model: Path, engine: HfEngine) -> None:
    kept, _ = engine_of(tiny_model).render(user("Hi"))
    dropped, _ = engine.render(user("Hi"))
    own, _ = engine_of(tiny_model, system_prompt="Be kind.").render(user("Hi"))
    assert "You are a helpful AI assistant" in kept
    assert dropped == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert own == "<|im_start|>system\nBe kind.<|im_end|>\n" + dropped
    given: list[Message] = [{"role": "system", "content": "Mine."}, *user("Hi")]
    for setting in ("keep", "drop", "Be kind."):
        text, _ = engine_of(tiny_model, system_prompt=setting).render(given)
        assert text == "<|im_start|>system\nMine.<|im_end|>\n" + dropped


def test_the_prefill_is_the_start_of_the_answer(engine: HfEngine) -> None:
    text, ids = engine.render(user("Hi"), "Score: ")
    assert text.endswith("assistant\nScore: ")
    request = GenerateRequest("r", user("Hi"), Sampling(3, temperature=0.0), "Score: ")
    (result,) = generated(engine, [request]).values()
    rows = plain_logprobs(engine, ids, result.token_ids)
    assert rows[:-1].argmax(-1).tolist() == result.token_ids
    assert not result.text.startswith("Score")


def test_label_probs_equal_a_plain_forward_pass(engine: HfEngine) -> None:
    labels = {"yes": ("Yes", " Yes", "yes"), "no": ("No", " No")}
    requests = [
        ScoreRequest(f"{i}", user(text), "Answer:", labels=labels) for i, text in enumerate(TEXTS)
    ]
    for request, result in zip(requests, scored(engine, *requests), strict=True):
        ids = engine.render(request.messages, "Answer:")[1]
        probs = plain_logprobs(engine, ids, [])[0].exp()
        for label, forms in labels.items():
            tokens = {engine.tokenizer(f)["input_ids"][0] for f in forms}
            assert len(tokens) == len(forms)
            wanted = float(probs[sorted(tokens)].sum())
            assert result.label_probs[label] == pytest.approx(wanted, rel=1e-4)
        assert result.label_mass == pytest.approx(sum(result.label_probs.values()))
        assert result.prompt_tokens == len(ids)


def test_label_probs_come_from_an_fp32_head(tiny_model: Path) -> None:
    spec = ModelSpec(path=str(tiny_model), dtype="bfloat16")
    half = load(spec, tiny_model, "tiny")
    labels = {"yes": ("Yes",), "no": ("No",)}
    (result,) = scored(half, ScoreRequest("a", user(TEXTS[0]), labels=labels))
    ids = torch.tensor([half.render(user(TEXTS[0]))[1]])
    with torch.inference_mode():
        hidden = half.model.base_model(input_ids=ids).last_hidden_state[0, -1].float()
        probs = (hidden @ half.model.lm_head.weight.float().T).softmax(-1)
    token = half.tokenizer("Yes")["input_ids"][0]
    assert result.label_probs["yes"] == pytest.approx(float(probs[token]), rel=0.02)
    assert torch.tensor(result.label_probs["yes"]).bfloat16().item() != result.label_probs["yes"]


def test_a_label_of_several_tokens_is_refused(engine: HfEngine) -> None:
    request = ScoreRequest("a", user("Hi"), labels={"long": ("extraordinarily unlikely",)})
    with pytest.raises(EngineError, match="none of its forms"):
        scored(engine, request)


def test_token_logprobs_equal_a_plain_forward_pass(engine: HfEngine) -> None:
    more = " A cherry is one."
    requests = [ScoreRequest(str(i), user(t), continuation=more) for i, t in enumerate(TEXTS)]
    target = engine.tokenizer(more)["input_ids"]
    for request, result in zip(requests, scored(engine, *requests), strict=True):
        rows = plain_logprobs(engine, engine.render(request.messages)[1], target)
        wanted = [float(row[token]) for row, token in zip(rows, target, strict=False)]
        assert result.token_logprobs == pytest.approx(wanted, abs=1e-4)
        assert (result.label_probs, result.label_mass) == ({}, None)


def test_generated_logprobs_are_the_scores_of_the_same_tokens(engine: HfEngine) -> None:
    requests = asked(n=2, temperature=0.7, top_p=0.9, top_k=40)
    results = generated(engine, requests)
    scores = scored(
        engine,
        *[
            ScoreRequest(r.request_id, r.messages, continuation_ids=results[r.request_id].token_ids)
            for r in requests
        ],
    )
    for score in scores:
        result = results[score.request_id]
        assert len(result.logprobs) == len(result.token_ids)
        assert score.token_logprobs == pytest.approx(result.logprobs, abs=1e-4)


def test_rendered_hashes_tell_prompts_apart(engine: HfEngine) -> None:
    found = generated(engine, asked())
    assert found["0-0"].rendered_hash == found["0-1"].rendered_hash
    assert len({r.rendered_hash for r in found.values()}) == len(TEXTS)


# Each of them once ended in an error that is no ValueError, OSError or KeyError.
DAMAGED = {
    "tokenizer.json": ["{}", "[]", "{", '{"version": "1.0", "model": {"type": "BPE"}}'],
    "tokenizer_config.json": ["[]", "3", '{"added_tokens_decoder": []}'],
    "config.json": ["[]", '{"model_type": "llama", "num_hidden_layers": "x"}'],
    "generation_config.json": ["[]", "3"],
}


@pytest.mark.parametrize(("name", "text"), [(n, text) for n in DAMAGED for text in DAMAGED[n]])
def test_a_damaged_file_of_a_model_is_said_with_its_folder(
    tmp_path: Path, tiny_model: Path, name: str, text: str
) -> None:
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(EngineError, match=rf"'tiny' in {tmp_path}.* cannot be loaded: \S"):
        engine_of(tmp_path)


def test_what_is_no_language_model_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(EngineError, match="cannot be loaded"):
        engine_of(tmp_path)
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(EngineError, match="has no chat template"):
        engine_of(bare)


def test_weights_are_shared_with_the_same_device_and_dtype_alone(
    engine: HfEngine, tiny_model: Path
) -> None:
    spec = engine.spec.model_copy(update={"max_context": 50})
    shared = engine.sharing(spec, tiny_model, "other")
    assert shared is not None and shared.model is engine.model and shared.spec.max_context == 50
    for keys in ({"device": "cuda:1"}, {"dtype": "bfloat16"}, {"engine": "fake"}):
        assert engine.sharing(spec.model_copy(update=keys), tiny_model, "other") is None
