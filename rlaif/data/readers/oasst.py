"""OpenAssistant: trees of messages, whose answers to one message are ranked by people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.core.groups import group_by
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Message
from rlaif.data.readers.base import (
    Format,
    RatedAnswer,
    attempt_each,
    compare_rated,
    make_pair,
    name_of,
    number_of,
    text_of,
    try_read,
    value_at,
)
from rlaif.data.rows import Row
from rlaif.data.turns import SPEAKERS


def read_messages(row: Row, place: str) -> Iterator[LabelledPair | ConfigError]:
    """Every two answers to one message, of the messages of a tree; rank 0 is the best."""
    nodes: list[Row] = row["rows"]
    known = {node.get("message_id"): node for node in nodes}
    said = (n for n in nodes if n.get("role") == "assistant" and n.get("parent_id") in known)
    for parent, answers in group_by(said, lambda node: node["parent_id"]).items():
        if len(answers) < 2:
            continue
        asked = try_read(_path_to, known, parent, place)
        if isinstance(asked, ConfigError):
            yield asked
            continue
        rated, faults = attempt_each(_rate_answer, answers, place)
        yield from faults
        for (first, language), (second, _) in combinations(rated, 2):
            both = compare_rated(first, second)
            yield try_read(make_pair, place, asked, subset=language, **both)


def read_tree(row: Row, place: str) -> Iterator[LabelledPair | ConfigError]:
    """As `read_messages`, of a tree whose messages have their `replies` in them."""
    return read_messages({"rows": list(_flatten_tree(row["prompt"], None, place))}, place)


def _flatten_tree(node: Any, parent: Any, place: str) -> Iterator[Row]:
    """The messages of a tree, each with its parent's id."""
    if not isinstance(node, dict):
        raise ConfigError(f"{place}: a message of the tree is {node!r:.60}; an object was expected")
    yield {**node, "parent_id": parent}
    for reply in node.get("replies") or []:
        yield from _flatten_tree(reply, node.get("message_id"), place)


def _path_to(known: Mapping[Any, Row], last: Any, place: str) -> list[Message]:
    """The conversation that ends with the message `last`."""
    turns: list[Message] = []
    seen = set()
    while last in known and last not in seen:
        seen.add(last)
        node = known[last]
        role = SPEAKERS.get(str(node.get("role")))
        if role is None:
            raise ConfigError(f"{place}: message {last} has the role {node.get('role')!r}")
        turns.append({"role": role, "content": text_of(node, "text", place)})
        last = node.get("parent_id")
    return turns[::-1]


def _rate_answer(node: Row, place: str) -> tuple[RatedAnswer, str | None]:
    """An answer, and its language."""
    text, rank = text_of(node, "text", place), number_of(node, "rank", place)
    author = name_of(node, "model_name", place)
    answer = RatedAnswer(text, None if rank is None else -rank, author)
    return answer, name_of(node, "lang", place)


MESSAGES = Format(
    about="OpenAssistant messages: message_id, parent_id, message_tree_id, text, role, rank",
    columns=("message_id", "parent_id", "message_tree_id", "text", "role"),
    optional=("rank", "lang", "model_name"),
    read=read_messages,
    group="message_tree_id",
)
TREES = Format(
    about="OpenAssistant trees: message_tree_id, prompt with text, role and replies",
    columns=("message_tree_id", "prompt"),
    read=read_tree,
    fits=lambda row: value_at(row, "prompt.replies") is not None,
)
