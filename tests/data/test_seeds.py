"""The shipped seed prompts: count, split, tags, no near duplicates."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from rlaif.constitution.textstats import words
from rlaif.core.records import make_prompt
from rlaif.core.resources import shipped_root

KINDS = {
    "question",
    "howto",
    "explain",
    "writing",
    "reasoning",
    "advice",
    "sensitive",
    "opinion",
}
LANGUAGES = {"german", "spanish", "french", "portuguese"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    path = shipped_root() / "prompts" / "seeds" / "everyday.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def last_user(row: dict[str, Any]) -> str:
    content: str = row["messages"][-1]["content"]
    return content


def test_every_row_is_a_whole_prompt(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert set(row) == {"id", "messages", "tags", "split"}
        roles = tuple(message["role"] for message in row["messages"])
        assert roles in {("user",), ("system", "user"), ("user", "assistant", "user")}
        assert all(message["content"].strip() for message in row["messages"])
        assert 5 <= len(last_user(row).split()) <= 30


def test_count_and_split(rows: list[dict[str, Any]]) -> None:
    assert 200 <= len(rows) <= 220
    assert Counter(row["split"] for row in rows) == {"heldout": 72, "train": len(rows) - 72}
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({make_prompt(row["messages"]).prompt_id for row in rows}) == len(rows)


def test_no_near_duplicates(rows: list[dict[str, Any]]) -> None:
    bags = [(row["id"], {w.casefold() for w in words(last_user(row))}) for row in rows]
    close = [(a, b) for (a, x), (b, y) in combinations(bags, 2) if len(x & y) > 0.5 * len(x | y)]
    assert close == []


def test_held_out_prompts_cover_every_kind(rows: list[dict[str, Any]]) -> None:
    everywhere = Counter(row["tags"][0] for row in rows)
    heldout = Counter(row["tags"][0] for row in rows if row["split"] == "heldout")
    assert set(everywhere) == KINDS
    for kind, count in everywhere.items():
        assert 0.25 <= heldout[kind] / count <= 0.42


def test_tags(rows: list[dict[str, Any]]) -> None:
    tags = Counter(tag for row in rows for tag in row["tags"])
    assert all(len(row["tags"]) >= 2 for row in rows)
    assert {tag for tag in tags if tag in LANGUAGES} == LANGUAGES
    assert 1 <= tags["system_prompt"] + tags["multi_turn"] <= 6
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert ("system" in roles) == ("system_prompt" in row["tags"])
        assert ("assistant" in roles) == ("multi_turn" in row["tags"])
