"""What a served reward model is handed and hands back: several rows that differ, in their order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tokenizers import processors

from rlaif.core.records import content_hash
from rlaif.engines.base import RewardResult
from rlaif.web.reward_server import BadRequest, Counts, RewardService, asked, left_of
from tests.conftest import make_tokenizer

MESSAGES = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "An answer."}]


def parts_of(ids: list[int], start: int) -> dict[str, float]:
    return {"kind": float(start), "short": -len(ids) / 3}


class Engine:
    """Rewards are a third of a row's length; it counts what it is asked."""

    name = "served"

    def __init__(self, reads_prompt: bool = False):
        self.reads_prompt = reads_prompt
        self.tokenizer = make_tokenizer()
        # As many tokenizers do: special tokens are added unless somebody says not to.
        start = ("<|im_start|>", self.tokenizer.convert_tokens_to_ids("<|im_start|>"))
        self.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[start]
        )
        self.batches: list[list[tuple[list[int], int]]] = []

    def text_row(self, text: str, start: str) -> tuple[list[int], int]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids, len(start)

    def rendered(self, messages: Any) -> tuple[str, list[int], int]:
        return "text", [7] * sum(len(m["content"]) for m in messages), len(messages[0]["content"])

    def reward_ids(self, rows: Mapping[str, Any]) -> Iterator[list[RewardResult]]:
        self.batches.append(list(rows.values()))
        # In another order than they were asked in.
        yield [
            RewardResult(name, len(ids) / 3, len(ids), parts=parts_of(ids, start))
            for name, (ids, start) in reversed(list(rows.items()))
        ]

    def close(self) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Any]:
    made = RewardService(Engine())  # type: ignore[arg-type]
    yield made
    made.close()


def answered(service: Any, path: str, body: Any) -> dict[str, Any]:
    found = asked(service, path, body)
    assert found is not None
    return found.answer(service.submit(found.rows).result(timeout=60))


def test_texts_to_classify_get_special_tokens_unless_the_request_says_not_to(service: Any) -> None:
    special = service.engine.tokenizer.convert_tokens_to_ids("<|im_start|>")
    for said, more in (
        ({}, 1),
        ({"add_special_tokens": True}, 1),
        ({"add_special_tokens": False}, 0),
    ):
        found = asked(service, "/classify", {"input": ["abc", "de"], **said})
        assert found is not None
        assert [len(ids) for ids, _ in found.rows] == [3 + more, 2 + more]
        assert all((ids[0] == special) == bool(more) for ids, _ in found.rows)
    found = asked(service, "/classify", {"input": [[5, 6], [9]]})
    assert found is not None and [ids for ids, _ in found.rows] == [[5, 6], [9]]


def test_a_class_is_answered_in_the_order_of_the_inputs_as_it_is_or_squeezed(service: Any) -> None:
    several = ["abcdef", [1, 2, 3], "abcdefghi"]
    body = {"input": several, "add_special_tokens": False}
    found = answered(service, "/classify", body)
    assert [(one["index"], one["probs"]) for one in found["data"]] == [
        (0, [2.0]),
        (1, [1.0]),
        (2, [3.0]),
    ]
    assert {(one["label"], one["num_classes"]) for one in found["data"]} == {("reward", 1)}
    assert (found["model"], found["id"]) == ("served", "classify-" + content_hash(several))
    assert found["usage"] == {"prompt_tokens": 18, "completion_tokens": 0, "total_tokens": 18}
    squeezed = answered(service, "/classify", body | {"use_activation": True})
    assert [one["probs"][0] for one in squeezed["data"]] == pytest.approx(
        [0.880797, 0.731059, 0.952574], abs=1e-6
    )
    assert answered(service, "/classify", {"input": [1, 2, 3]})["data"][0]["probs"] == [1.0]


def test_rewards_come_with_their_parts_in_order(service: Any) -> None:
    texts = ["pq abc", "r defghijk"]
    found = answered(service, "/get_reward", {"query": texts, "prompts": ["pq ", "r "]})
    assert found["rewards"] == found["scores"] == [2.0, 10 / 3]
    assert found["extra_logs"] == {"kind": [3.0, 2.0], "short": [-2.0, -10 / 3]}
    longer = [*MESSAGES[:1], {"role": "assistant", "content": "x" * 28}]
    found = answered(service, "/get_reward", {"messages": [longer, MESSAGES]})
    assert found["rewards"] == [10.0, 4.0]
    assert found["extra_logs"]["kind"] == [2.0, 2.0]
    found = answered(service, "/v1/chat/completions", {"messages": MESSAGES})
    content = json.loads(found["choices"][0]["message"]["content"])
    assert content == {"reward": 4.0, "kind": 2.0, "short": -4.0}
    assert (found["id"], found["model"]) == ("reward-" + content_hash(MESSAGES), "served")
    assert found["usage"]["total_tokens"] == 12


def test_padding_is_taken_off_both_ends_and_an_end_token_is_kept_once(service: Any) -> None:
    def row(text: str, prompt: str) -> tuple[str, int]:
        found = asked(service, "/get_reward", {"query": [text], "prompts": [prompt]})
        assert found is not None
        [(ids, start)] = found.rows
        return service.engine.tokenizer.decode(ids), start

    assert row("<|pad|><|pad|>pq ab<|im_end|><|pad|>", "pq ") == ("pq ab<|im_end|>", 3)
    assert row("<|pad|>pq ab<|pad|>", "<|pad|><|pad|>pq ") == ("pq ab", 3)
    assert row("pq ab<|im_end|><|im_end|>", "pq ") == ("pq ab<|im_end|>", 3)
    assert row("another", "pq ") == ("another", 0)


def test_a_gate_needs_its_prompt() -> None:
    service = RewardService(Engine(reads_prompt=True))  # type: ignore[arg-type]
    try:
        for path, body, said in (
            ("/get_reward", {"query": ["pq abc"]}, "send `prompts` as well"),
            ("/get_reward", {"query": ["pq abc"], "prompts": ["xy "]}, "does not begin with"),
            ("/classify", {"input": "pq abc"}, "which /classify does not tell apart"),
        ):
            with pytest.raises(BadRequest, match=said):
                asked(service, path, body)
        found = asked(service, "/get_reward", {"query": ["pq abc"], "prompts": ["pq "]})
        assert found is not None and found.rows[0][1] == 3
    finally:
        service.close()


def test_what_is_left_of_a_prompt_is_its_longest_end_that_the_text_begins_with() -> None:
    prompt = "abcdefgh 1 abcdefgh 2"
    assert left_of(prompt, "abcdefgh 2 and more") == "abcdefgh 2"
    assert left_of(prompt, "abcdefgh 1 abcdefgh 2 and more") == prompt
    # Exactly as many characters as are looked for, and one fewer.
    assert left_of("xx12345678", "12345678") == "12345678"
    assert left_of("xx1234567", "1234567") == ""


def test_the_work_is_counted_and_a_batch_that_fails_fails_alone(service: Any) -> None:
    first, second = service.submit([([1, 2, 3], 0), ([1] * 6, 0)]), service.submit([([1], 0)])
    assert [r.reward for r in first.result(timeout=60)] == [1.0, 2.0]
    assert [r.reward for r in second.result(timeout=60)] == [1 / 3]
    real = service.engine.reward_ids
    service.engine.reward_ids = lambda rows: 1 / 0
    with pytest.raises(Exception, match="could not be computed: division by zero"):
        service.submit([([1], 0)]).result(timeout=60)
    service.engine.reward_ids = real
    assert service.submit([([1] * 9, 0)]).result(timeout=60)[0].reward == 3.0
    service.count(requests=3, refused=2)
    service.count(requests=1)
    assert (service.counts.requests, service.counts.refused, service.counts.answers) == (4, 2, 5)
    assert sum(map(len, service.engine.batches)) == 4


def test_the_counts_are_written_under_their_names() -> None:
    text = Counts(requests=1, refused=2, answers=3, batches=4, seconds=5.5).text()
    values = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
    names = ("requests", "refused", "answers", "batches", "seconds")
    assert values == dict(
        zip((f"rlaif_reward_{n}_total" for n in names), ("1", "2", "3", "4", "5.5"), strict=True)
    )
