"""What a server is sent and what is read of its answer: every key at a value of its own, calls of
several choices, and what limits a model's context."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig

from rlaif.config.models import ModelSpec
from rlaif.engines.base import GenerateRequest, Sampling, ScoreRequest
from rlaif.engines.local.encoding import context_of
from rlaif.engines.remote.api import calls, capabilities, lost, most_bytes, most_usage, read
from rlaif.engines.remote.decode import Answer, Choice, Usage

ASKED: list[Any] = [{"role": "user", "content": "Is it?"}]
TOLD: list[Any] = [{"role": "system", "content": "Be kind."}, *ASKED]


def spec_of(**keys: Any) -> ModelSpec:
    given = {"path": "m", "engine": "openai", "base_url": "http://host/v1"}
    return ModelSpec.model_validate(given | keys)


def generate(name: str, seed: int = 0, text: str = "Is it?", **keys: Any) -> GenerateRequest:
    sampling = {"temperature": 0.7, "seed": seed} | keys
    return GenerateRequest(name, [{"role": "user", "content": text}], Sampling(8, **sampling))


def test_a_text_is_asked_for_with_every_key_of_its_sampling() -> None:
    spec = spec_of(max_tokens_key="max_completion_tokens", extra_body={"x": 1, "seed": None})
    sampling = Sampling(9, 0.3, top_p=0.8, top_k=17, stop=("a", "b"), seed=5)
    schema = {"type": "object", "additionalProperties": False}
    request = GenerateRequest("r", ASKED, sampling, prefill="So", json_schema=schema)
    [call] = calls(spec, "id", [request])
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "So"}]
    assert call.body == {
        "model": "m",
        "messages": turns,
        "continue_final_message": True,
        "add_generation_prompt": False,
        "max_completion_tokens": 9,
        "temperature": 0.3,
        "top_p": 0.8,
        "top_k": 17,
        "stop": ["a", "b"],
        "x": 1,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
    }
    [greedy] = calls(spec_of(), "id", [GenerateRequest("r", ASKED, Sampling(9, 0.0, seed=5))])
    assert "seed" not in greedy.body and greedy.body["max_tokens"] == 9
    [seeded] = calls(spec_of(), "id", [generate("r", seed=5)])
    assert seeded.body["seed"] == 5
    [open_] = calls(
        spec_of(), "id", [GenerateRequest("r", ASKED, Sampling(9), json_schema={"type": "object"})]
    )
    assert open_.body["response_format"]["json_schema"]["strict"] is False


def test_labels_are_asked_for_in_each_api() -> None:
    request = ScoreRequest("s", TOLD, "Answer: ", {"yes": ("Yes",)})
    [chat] = calls(spec_of(top_logprobs=7), "id", [request], lambda r: [len(r.prefill)])
    assert chat.body["logprobs"] is True and chat.body["top_logprobs"] == 7
    assert (chat.body["max_tokens"], chat.body["temperature"]) == (1, 1.0)
    assert chat.body["logprob_token_ids"] == [8]
    assert chat.body["messages"][-1] == {"role": "assistant", "content": "Answer: "}
    [plain] = calls(spec_of(api="completions", top_logprobs=7), "id", [request])
    assert plain.body["prompt"] == "Be kind.\n\nIs it?\n\nAnswer: "
    assert plain.body["logprobs"] == 7 and "top_logprobs" not in plain.body
    assert chat.key != plain.key


def test_a_system_prompt_stands_in_only_where_none_was_given() -> None:
    own = spec_of(system_prompt="Be brief.")
    for spec, messages, said in (
        (own, ASKED, ["Be brief.", "Is it?"]),
        (own, TOLD, ["Be kind.", "Is it?"]),
        (spec_of(), ASKED, ["Is it?"]),
        (spec_of(), TOLD, ["Be kind.", "Is it?"]),
    ):
        [call] = calls(spec, "id", [GenerateRequest("r", messages, Sampling(4))])
        assert [m["content"] for m in call.body["messages"]] == said
    assert len(ASKED) == 1


def test_neighbours_that_differ_in_their_seed_alone_share_calls_of_so_many_choices() -> None:
    requests = [generate(f"a{n}", seed=n) for n in range(5)]
    requests += [generate("b0", text="Other?"), generate("b1", text="Other?", temperature=0.8)]
    requests += [generate(f"c{n}", temperature=0.0) for n in range(2)]
    found = list(calls(spec_of(samples_per_call=2), "id", requests))
    named = [[r.request_id for r in call.requests] for call in found]
    assert named == [["a0", "a1"], ["a2", "a3"], ["a4"], ["b0"], ["b1"], ["c0"], ["c1"]]
    assert [call.body.get("n", 1) for call in found] == [2, 2, 1, 1, 1, 1, 1]
    assert [call.body.get("seed") for call in found[:3]] == [0, 2, 4]
    assert len({call.key for call in found}) == 6, "equal greedy requests are one entry"
    other = [c.key for c in calls(spec_of(samples_per_call=2), "other", requests)]
    assert not set(other) & {call.key for call in found}


def test_each_choice_of_a_call_bears_its_share_of_the_cost() -> None:
    spec = spec_of(samples_per_call=3, price={"input": 2.0, "output": 6.0})
    requests = [generate(f"a{n}", seed=n, stop=("!",)) for n in range(3)]
    [call] = calls(spec, "id", requests)
    texts = (("One", "stop"), ("Two!three", "length"), ("Four", "length"))
    choices = tuple(Choice(i, text, end) for i, (text, end) in enumerate(texts))
    answer = Answer(choices, Usage(1000, 600))
    found = read(spec, call, answer, 1.5)
    # 1000 tokens at 2 and 600 at 6 for a million of them, over three answers.
    assert [r.cost for r in found] == pytest.approx([(0.002 + 0.0036) / 3] * 3)
    assert [r.request_id for r in found] == ["a0", "a1", "a2"]
    told = [(r.text, r.finish_reason) for r in found]  # type: ignore[union-attr]
    assert told == [("One", "stop"), ("Two", "stop"), ("Four", "length")]
    assert {(r.prompt_tokens, r.seconds) for r in found} == {(1000, 1.5)}
    assert {r.new_tokens for r in found} == {200}  # type: ignore[union-attr]
    free = read(spec_of(samples_per_call=3), call, answer, None)
    assert {(r.cost, r.seconds) for r in free} == {(None, None)}
    unknown = read(spec, call, Answer(choices, None), 1.5)
    assert {(r.cost, r.prompt_tokens) for r in unknown} == {(None, None)}


def test_labels_are_read_with_their_own_share_of_cost_and_mass() -> None:
    spec = spec_of(price={"input": 2.0, "output": 6.0})
    [call] = calls(spec, "id", [ScoreRequest("s", ASKED, labels={"yes": ("Yes",), "no": ("No",)})])
    tops = (("Yes", -0.5), ("No", -2.0), ("Hm", -3.0))
    choice = Choice(0, "Yes", "stop", tops=tops)
    [found] = read(spec, call, Answer((choice,), Usage(1000, 1)), 0.5)
    assert found.label_probs == pytest.approx({"yes": 0.60653, "no": 0.13534}, abs=1e-5)  # type: ignore[union-attr]
    assert found.label_mass == pytest.approx(0.74187, abs=1e-5)  # type: ignore[union-attr]
    assert (found.prompt_tokens, found.seconds) == (1000, 0.5)
    assert found.cost == pytest.approx(0.002006)


def test_the_most_that_a_call_can_use_counts_every_choice_and_the_higher_limit() -> None:
    body: dict[str, Any] = {"messages": [{"content": "ab"}, {"content": "é"}], "max_tokens": 10}
    body["n"] = 3
    one = most_usage({"messages": [], "max_tokens": 10, "max_completion_tokens": 40, "n": 3})
    assert one == Usage(0, 120)
    each = most_usage({"messages": [{"content": ""}], "max_tokens": 10}).input
    assert most_usage(body) == Usage(2 * each + 4, 30)
    assert most_usage({"prompt": "abé", "max_tokens": 5}) == Usage(4, 5)
    schema = most_usage(body | {"response_format": {"a": 1}})
    assert schema.input == most_usage(body).input + len('{"a": 1}')
    # Above the least that is read of any answer.
    big = {"max_tokens": 100_000, "n": 3}
    none, tops = most_bytes(big), most_bytes(big | {"top_logprobs": 4})
    assert tops - 1_000_000 == 5 * (none - 1_000_000)
    assert most_bytes(big | {"logprobs": 4}) == tops


def test_what_a_server_may_be_asked_and_what_it_is_not_sent() -> None:
    assert "prefill" not in capabilities(spec_of())
    assert "prefill" in capabilities(spec_of(prefill=True)) & capabilities(
        spec_of(api="completions")
    )
    turns: list[Any] = [{"role": "assistant", "content": "a", "reasoning_content": "b"}] * 2
    assert lost([*turns, *ASKED]) == {"reasoning_lost": 2} and not lost(ASKED)


@pytest.mark.parametrize(
    ("wanted", "positions", "context"),
    [(None, 512, 512), (100, 512, 100), (900, 512, 512)],
)
def test_a_context_is_no_longer_than_the_model_takes(
    wanted: int | None, positions: int, context: int
) -> None:
    config = LlamaConfig(max_position_embeddings=positions)
    assert context_of(config, ModelSpec(path="m", max_context=wanted)) == context
