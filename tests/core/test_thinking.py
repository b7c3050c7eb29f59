"""Thinking apart from the answer: in texts, in special tokens, in label probabilities."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlaif.config.models import THINKING, ModelSpec, Price, ThinkingSpec
from rlaif.core.chat import Said, opens_thinking, split
from rlaif.core.records import Message
from rlaif.engines.base import GenerateRequest, GenerateResult, Model, Sampling, ScoreRequest
from rlaif.engines.remote import api
from rlaif.engines.remote.decode import Answer, decode_answer, label_probabilities

ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
OPENED = ThinkingSpec(opened=True)
OWN = ThinkingSpec(markers=[("<mull>", "</mull>")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Score: 4", Said("", "Score: 4")),
        ("<think>maybe 2</think>\nScore: 4", Said("maybe 2", "Score: 4")),
        ("\n\n <think>\nmaybe 2\n</think>\n\nScore: 4", Said("maybe 2", "Score: 4")),
        ("<thinking>2</thinking>4", Said("2", "4")),
        ("[THINK]2[/THINK]4", Said("2", "4")),
        ("<think>2", Said("2", "", True)),
        ("<think>", Said("", "", True)),
        # Thinking ends at the first marker that closes it, and only its own marker does.
        ("<think>a</think>b</think>c", Said("a", "b</think>c")),
        ("<think>a</thinking>b</think>c", Said("a</thinking>b", "c")),
        ("<think>a<think>b</think>c", Said("a<think>b", "c")),
        # An opening marker counts at the very start alone, a closing one only after an opening.
        ("Score: 4\n<think>no</think>", Said("", "Score: 4\n<think>no</think>")),
        ("maybe 2</think>\nScore: 4", Said("", "maybe 2</think>\nScore: 4")),
        ("The tag </think> is odd.", Said("", "The tag </think> is odd.")),
        # A template that began an empty thinking.
        ("</think>\n\nScore: 4", Said("", "Score: 4")),
        (f"{ANALYSIS}2?<|end|><|start|>assistant{FINAL}4<|return|>", Said("2?", "4")),
        (f"{FINAL}4", Said("", "4")),
        (f"{ANALYSIS}2? Score: 1", Said("2? Score: 1", "", True)),
        (
            f"<|start|>assistant{ANALYSIS}a<|end|><|start|>assistant<|channel|>commentary<|message|>b"
            '<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{"score": "4"}',
            Said("a<|end|><|start|>assistant<|channel|>commentary<|message|>b", '{"score": "4"}'),
        ),
    ],
)
def test_thinking_and_answer(text: str, said: Said) -> None:
    assert split(text, THINKING) == said


@pytest.mark.parametrize(
    ("text", "spec", "before", "said"),
    [
        ("a</think>b", OPENED, "", Said("a", "b")),
        ("a", OPENED, "", Said("a", "", True)),
        ("<think>a</think>b", OPENED, "", Said("a", "b")),
        ("a</think>b", THINKING, "<|user|>Hi<|assistant|><think>\n", Said("a", "b")),
        ("a", THINKING, "<|user|>Hi<|assistant|><think>\n", Said("a", "", True)),
        ("a</think>b", THINKING, "Hi <think> there", Said("", "a</think>b")),
        # Behind a prefill of another kind nothing is being thought, whatever the template does.
        ("4", OPENED, "Score: ", Said("", "4")),
        ("<mull>a</mull>b", OWN, "", Said("a", "b")),
        ("<think>a</think>b", OWN, "", Said("", "<think>a</think>b")),
        (f"{ANALYSIS}a{FINAL}b", OWN, "", Said("a", "b")),
        ("a", THINKING, ANALYSIS, Said("a", "", True)),
    ],
)
def test_what_went_before_and_what_is_declared(
    text: str, spec: ThinkingSpec, before: str, said: Said
) -> None:
    assert split(text, spec, before) == said


@given(st.text(), st.text(), st.sampled_from(THINKING.markers))
def test_nothing_of_a_text_is_lost_or_moved(
    thought: str, answer: str, pair: tuple[str, str]
) -> None:
    opening, closing = pair
    thought = thought.replace(closing, "")
    said = split(f"{opening}{thought}{closing}{answer}", THINKING)
    assert not said.cut
    assert said.reasoning == thought.strip() and said.answer == answer.strip()
    cut = split(f"{opening}{thought}", THINKING)
    assert cut == Said(thought.strip(), "", True)


def test_a_new_key_at_its_default_changes_no_hash() -> None:
    def identity(**keys: Any) -> list[Any]:
        return Model("k", "m", ModelSpec(path="p", **keys)).identity()

    assert identity() == identity(thinking={}) == ["k", "hf", "auto", "auto", None, "keep"]
    assert identity(thinking={"opened": True}) != identity()
    with pytest.raises(ValidationError, match="not blank"):
        ThinkingSpec(markers=[("<a>", " ")])


def spec_of(**keys: Any) -> ModelSpec:
    return ModelSpec(path="m", engine="openai", base_url="http://127.0.0.1:9/v1", **keys)


def generated(choice: dict[str, Any], **keys: Any) -> GenerateResult:
    messages: list[Message] = [{"role": "user", "content": "Hi"}]
    request = GenerateRequest("r", messages, Sampling(8), prefill=keys.pop("before", ""))
    spec = spec_of(**keys)
    (call,) = api.calls(spec, "m", [request])
    answer = decode_answer(json.dumps({"choices": [choice]}))
    assert isinstance(answer, Answer)
    (read,) = api.read(spec, call, answer, None)
    assert isinstance(read, GenerateResult)
    return read


@pytest.mark.parametrize(
    ("message", "reason", "want"),
    [
        ({"content": "<think>a</think>b"}, "stop", ("b", "a", False, "stop")),
        ({"content": "<think>a"}, "length", ("", "a", True, "length")),
        ({"content": "b", "reasoning_content": "a"}, "stop", ("b", "a", False, "stop")),
        ({"content": "b</think>", "reasoning": "a"}, "stop", ("b</think>", "a", False, "stop")),
        ({"content": "", "reasoning_content": "a"}, "length", ("", "a", True, "length")),
        ({"content": None, "reasoning_content": "a"}, "length", ("", "a", True, "length")),
        ({"content": "", "reasoning_content": "a"}, "stop", ("", "a", False, "stop")),
        ({"content": "a</think>b"}, "stop", ("a</think>b", "", False, "stop")),
    ],
)
def test_answers_of_servers(message: dict[str, Any], reason: str, want: tuple[Any, ...]) -> None:
    read = generated({"message": message, "finish_reason": reason})
    assert (read.text, read.reasoning, read.cut, read.finish_reason) == want


def test_a_server_whose_template_opens_the_thinking() -> None:
    choice = {"message": {"content": "a</think>b"}, "finish_reason": "stop"}
    read = generated(choice, thinking={"opened": True})
    assert (read.text, read.reasoning) == ("b", "a")
    read = generated(choice, prefill=True, before="<think>")
    assert (read.text, read.reasoning) == ("b", "a")


LABELS = {"first": ("1", " 1"), "second": ("2", " 2")}


def test_labels_of_a_model_that_thinks_first_are_no_verdict() -> None:
    why = label_probabilities([("<think>", -0.001), ("1", -9.0)], LABELS, THINKING)
    assert isinstance(why, str)
    assert "thinks before it answers" in why and "extra_body" in why and "verdict: written" in why
    for token in ("<|channel|>", "<th", "[THINK]", " <think>"):
        assert isinstance(label_probabilities([(token, -0.01)], LABELS, THINKING), str)
    # What is merely possible is no reason: the labels are likelier.
    assert label_probabilities([("1", -0.4), ("<think>", -1.2)], LABELS, THINKING) == {
        "first": pytest.approx(math.exp(-0.4)),
        "second": 0.0,
    }
    assert (
        opens_thinking("<think>\n", THINKING)
        and not opens_thinking("<", THINKING)
        and not opens_thinking("", THINKING)
    )


@pytest.mark.parametrize("value", [0.002, 0.7, 1.0, math.inf, math.nan])
def test_probabilities_under_the_name_of_log_probs_are_refused(value: float) -> None:
    why = label_probabilities([("1", value)], LABELS, THINKING)
    assert isinstance(why, str) and "log-prob" in why


@pytest.mark.parametrize("tops", [[("1", 0.0), ("2", 0.0)], [("1", -0.1), ("2", -0.1)]])
def test_alternatives_with_more_than_all_probability_are_refused(
    tops: list[tuple[str, float]],
) -> None:
    why = label_probabilities(tops, LABELS, THINKING)
    assert isinstance(why, str) and "add up to" in why
    # Rounding to two digits is no more than rounding.
    found = label_probabilities([("1", -0.01), ("2", -4.0)], LABELS, THINKING)
    assert isinstance(found, dict)


def test_rounding_above_0_is_0() -> None:
    assert label_probabilities([("1", 0.0009)], LABELS, THINKING) == {"first": 1.0, "second": 0.0}


@pytest.mark.parametrize("token", ["\u01201", "\u25811", " 1", "1"])
def test_tokens_as_vocabularies_write_them(token: str) -> None:
    found = label_probabilities([(token, 0.0)], LABELS, THINKING)
    assert found == {"first": 1.0, "second": 0.0}


def test_tokens_named_by_their_ids_are_named_in_the_reason() -> None:
    why = label_probabilities([("token_id:16", -0.1), ("token_id:17", -3.0)], LABELS, THINKING)
    assert isinstance(why, str) and "token_id:16" in why and "return-tokens-as-token-ids" in why


def test_reasoning_beside_empty_content_is_no_verdict() -> None:
    spec = spec_of(price=Price(input=1, output=1))
    request = ScoreRequest("r", [{"role": "user", "content": "1 or 2?"}], labels=LABELS)
    (call,) = api.calls(spec, "m", [request])
    tops = [{"token": "1", "logprob": -0.1, "top_logprobs": [{"token": "1", "logprob": -0.1}]}]
    choice = {
        "message": {"content": "", "reasoning_content": "Okay"},
        "finish_reason": "length",
        "logprobs": {"content": tops},
    }
    answer = decode_answer(json.dumps({"choices": [choice]}))
    assert isinstance(answer, Answer)
    (read,) = api.read(spec, call, answer, None)
    assert read.error is not None and "thinks before it answers" in read.error


def with_tokens(tiny_model: Path, folder: Path, template: str | None = None) -> Path:
    """The tiny model with the special tokens of models that think, which it then must embed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    special = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<think>", "</think>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    if template is not None:
        tokenizer.chat_template += template
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_engines_here_keep_the_tokens_that_tell_thinking_apart(
    tiny_model: Path, tmp_path: Path
) -> None:
    from rlaif.engines.local.hf import load

    engine = load(ModelSpec(path="tiny"), with_tokens(tiny_model, tmp_path / "m"), "tiny")
    tokenizer = engine.tokenizer

    def said(text: str, rendered: str = "") -> GenerateResult:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        messages: list[Message] = [{"role": "user", "content": "Hi"}]
        row: Any = type("R", (), {"request_id": "r", "ids": [1]})
        made = engine._make_generate_result(
            row, GenerateRequest("r", messages, Sampling(8)), ids, [], rendered
        )
        assert made.token_ids == ids
        return made

    found = said(f"{ANALYSIS}maybe 2<|end|><|start|>assistant{FINAL}Score: 4<|end|>")
    assert (found.reasoning, found.text, found.cut) == ("maybe 2", "Score: 4", False)
    found = said("<think>maybe 2</think>Score: 4")
    assert (found.reasoning, found.text) == ("maybe 2", "Score: 4")
    assert said("maybe 2</think>Score: 4", "user: Hi <think>\n").text == "Score: 4"
    assert said("<think>maybe 2").cut


def test_labels_here_are_not_read_in_the_midst_of_thinking(
    tiny_model: Path, tmp_path: Path
) -> None:
    import torch

    from rlaif.engines.local.hf import load

    folder = with_tokens(
        tiny_model, tmp_path / "m", "{% if add_generation_prompt %}<think>{% endif %}"
    )
    request = ScoreRequest("r", [{"role": "user", "content": "A or B?"}], labels={"a": ("A",)})
    engine = load(ModelSpec(path="tiny"), folder, "tiny")
    [[read]] = list(engine.score([request]))
    assert read.error is not None and "opens the model's thinking" in read.error
    # A prefill that closes it lets the labels stand.
    asked = ScoreRequest("r", request.messages, "</think>", labels={"a": ("A",)})
    [[read]] = list(engine.score([asked]))
    assert read.error is None and read.label_mass is not None
    # A model that would think next: its head is made to say so.
    output = engine.model.get_output_embeddings()
    place = tokenizer_id(engine.tokenizer, "<think>")
    with torch.no_grad():
        output.weight[:] = 0.0
        bias = torch.zeros(output.weight.shape[0])
        bias[place] = 20.0
        output.bias = torch.nn.Parameter(bias)
    engine.weights._fp32_head = None
    fresh = ScoreRequest("r2", request.messages, "</think>", labels={"a": ("A",)})
    [[read]] = list(engine.score([fresh]))
    assert read.error is not None and "thinks before it answers" in read.error


def tokenizer_id(tokenizer: Any, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))
