"""What the index keeps of a record: numbers to filter by, and the text to search in.

A record is addressed by an integer: the place of its step in the manifest, and the byte at which
its line begins (`address_of`). So records are in the order of the run whenever they were indexed,
and the index holds no text that is shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from rlaif.core.records import VALUED

OFFSET_BITS = 40
"""Bits of an address that say where a line begins: files of up to a terabyte."""
NO_PRINCIPLE = ""


class Answer(msgspec.Struct):
    """What is indexed of a Completion."""

    completion_id: str
    prompt_id: str
    messages: list[dict[str, Any]] = msgspec.field(default_factory=list)
    reasoning: str | None = None
    error: str | None = None


class Verdict(msgspec.Struct):
    """What is indexed of a Judgement."""

    judgement_id: str
    prompt_id: str
    subject: str
    judge: str
    status: str
    shown: list[str] = msgspec.field(default_factory=list)
    principle: str | None = None
    score: float | None = None
    prob_first: float | None = None
    rationale: str | None = None
    raw: str | None = None
    error: str | None = None

    @property
    def compares(self) -> bool:
        """Whether it is a probability that the first of two answers is better."""
        return self.score is None and len(self.shown) == 2 and self.status in VALUED


class Pair(msgspec.Struct):
    """What is indexed of a Preference."""

    preference_id: str
    prompt_id: str
    prompt: list[dict[str, Any]]
    chosen: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    chosen_id: str
    rejected_id: str
    margin: float | None = None
    reason: str = ""
    judgement_ids: list[str] = msgspec.field(default_factory=list)


class Asked(msgspec.Struct):
    """What is indexed of an answer to a judge's call."""

    call_id: str


class Question(msgspec.Struct):
    """What is indexed of a Prompt."""

    prompt_id: str
    messages: list[dict[str, Any]] = msgspec.field(default_factory=list)


KINDS: Mapping[str, type[msgspec.Struct]] = {
    "completions": Answer,
    "preferences": Pair,
    "judgements": Verdict,
    "answers": Asked,
}
"""The record files that are indexed, in this order: small ones first."""
PROMPTS = "prompts"


def address_of(place: int, offset: int) -> int:
    """The address of the record that begins at byte `offset` in a file of the step at `place`."""
    return place << OFFSET_BITS | offset


def split_address(address: int) -> tuple[int, int]:
    """The place and the offset of an address."""
    return address >> OFFSET_BITS, address & (1 << OFFSET_BITS) - 1


def key_of(name: str) -> int:
    """A record's id as an integer of 63 bits."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


class Line(NamedTuple):
    """A decoded line and the byte at which it begins."""

    offset: int
    record: Any


_DECODERS = {kind: msgspec.json.Decoder(kind) for kind in (*KINDS.values(), Question)}


def decode_lines(kind: type[msgspec.Struct], block: bytes, start: int) -> Iterator[Line]:
    """The records of a block of lines that begins at byte `start`. Raises ValueError where a line
    is damaged."""
    decoder = _DECODERS[kind]
    offset = start
    for line in block.split(b"\n"):
        if line:
            try:
                record = decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                # Lone surrogates, which scraped text can hold, are no strict UTF-8.
                row = json.loads(line.decode("utf-8", "surrogatepass"))
                record = msgspec.convert(row, kind)
            yield Line(offset, record)
        offset += len(line) + 1


def text_of(messages: Iterable[Mapping[str, Any]]) -> str:
    """The text of some turns."""
    return "\n".join(str(message.get("content") or "") for message in messages)


def clean_text(*parts: str | None) -> str:
    """The parts as one text that UTF-8 can carry."""
    joined = "\n".join(part for part in parts if part)
    return joined.encode("utf-8", "replace").decode()


def answer_words(answer: Answer) -> int:
    """The length of an answer in words: of an episode that of the model's own turns."""
    return len(text_of(m for m in answer.messages if m.get("role") == "assistant").split())


def length_gap(pair: Pair) -> int | None:
    """By how many words the chosen answer is longer; None where a side is missing."""
    if not pair.chosen or not pair.rejected:
        return None
    return len(text_of(pair.chosen).split()) - len(text_of(pair.rejected).split())


class Opinion(NamedTuple):
    """A judgement as pairs are compared with it: who, by which principle, about which answer (and
    beside which other one), and its value."""

    judge: int
    principle: int
    subject: int
    other: int | None
    value: float


class Stand(NamedTuple):
    """How one judge stands by one principle on one pair: by how much it prefers the chosen answer,
    on [-1, 1], and whether its verdicts in the two orders contradict each other."""

    judge: int
    principle: int
    margin: float
    orders: bool


def stands_on(chosen: int, rejected: int, opinions: Iterable[Opinion]) -> list[Stand]:
    """How judges stand on a pair, in order of judge and principle. Who has a value for one side
    alone has no stand."""
    single: dict[tuple[int, int], tuple[list[float], list[float]]] = {}
    paired: dict[tuple[int, int], tuple[list[float], list[float]]] = {}
    for one in opinions:
        who = (one.judge, one.principle)
        if one.other is None:
            if one.subject in (chosen, rejected):
                sides = single.setdefault(who, ([], []))
                sides[one.subject == rejected].append(one.value)
        elif {one.subject, one.other} == {chosen, rejected}:
            first = one.subject == chosen
            orders = paired.setdefault(who, ([], []))
            orders[not first].append(2 * one.value - 1 if first else 1 - 2 * one.value)
    found = {}
    for who, (good, bad) in single.items():
        if good and bad:
            found[who] = Stand(*who, sum(good) / len(good) - sum(bad) / len(bad), False)
    for who, (ahead, behind) in paired.items():
        both = [sum(side) / len(side) for side in (ahead, behind) if side]
        contradict = len(both) == 2 and min(both) < 0 < max(both)
        found[who] = Stand(*who, sum(both) / len(both), contradict)
    return [found[who] for who in sorted(found)]


def judges_differ(stands: Iterable[Stand]) -> bool:
    """Whether one judge prefers the chosen answer and another one the rejected. A judge's margin is
    the mean over its principles."""
    margins: dict[int, list[float]] = {}
    for stand in stands:
        margins.setdefault(stand.judge, []).append(stand.margin)
    means = [sum(own) / len(own) for own in margins.values()]
    return any(mean > 0 for mean in means) and any(mean < 0 for mean in means)
