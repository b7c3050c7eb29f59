"""What a person's page is shown and sends: items in slots, votes about slots, and the votes about
answers that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from rlaif.core.records import Message, content_hash, message_text
from rlaif.data.vote_store import Handed, VoteRefused, VoteStore, slot_of_a
from rlaif.data.votes import (
    PAIR_VERDICTS,
    RATING_VERDICTS,
    ItemJudge,
    Verdict,
    Vote,
    VoteItem,
    VoteSettings,
)
from rlaif.web.annotate.markdown import render_markdown

Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{16,64}$")]
SLOTS = ("first", "second")


class SentVote(Struct, frozen=True, forbid_unknown_fields=True):
    """A vote as the browser sends it: about the slots, since the page does not know more."""

    vote_id: Id
    item_id: Annotated[str, Meta(max_length=128)]
    verdict: Literal["first", "second", "tie", "both_bad", "skip", "rated"]
    seconds: Annotated[float, Meta(ge=0, le=1e7)]
    rating: float | None = None
    principles: dict[str, str] = {}
    comment: Annotated[str, Meta(max_length=10_000)] = ""


class SentUndo(Struct, frozen=True, forbid_unknown_fields=True):
    """A vote to take back."""

    vote_id: Id


def show_item(handed: Handed, settings: VoteSettings, annotator: str) -> dict[str, Any]:
    """An item as JSON for the page, its answers in their slots as HTML, and nothing that tells
    which is which."""
    item = handed.item
    assert item is not None, "an item is shown where one was handed out"
    answers = [_join_turns(side) for side in (item.a, item.b) if side is not None]
    if slot_of_a(settings.seed, annotator, item.item_id):
        answers.reverse()
    return {
        "item_id": item.item_id,
        "prompt": [
            {"role": turn["role"], "html": render_markdown(message_text(turn))}
            for turn in item.prompt
        ],
        "answers": [render_markdown(answer) for answer in answers],
        "principles": item.principles,
        "prelabels": say_prelabels(item, settings, annotator) if handed.prelabel_shown else [],
    }


def _join_turns(turns: list[Message]) -> str:
    return "\n\n".join(message_text(turn) for turn in turns)


def say_prelabels(item: VoteItem, settings: VoteSettings, annotator: str) -> list[str]:
    """What each judge said, in the slots that the person sees; people's labels are not told."""
    slot = slot_of_a(settings.seed, annotator, item.item_id)
    judges = [judge for judge in item.judges if judge.annotator_kind != "human"]
    return [f"{judge.judge}: {_say_verdict(judge, slot)}" for judge in judges]


def _say_verdict(judge: ItemJudge, slot: int) -> str:
    if judge.prob_a is None:
        return "no score" if judge.score is None else f"{judge.score:.2f} on a scale from 0 to 1"
    if judge.prob_a == 0.5:
        return "a tie"
    better = slot if judge.prob_a > 0.5 else 1 - slot
    return f"the {SLOTS[better]} answer is better ({max(judge.prob_a, 1 - judge.prob_a):.0%})"


def record_vote(store: VoteStore, annotator: str, sent: SentVote) -> tuple[Vote, VoteItem]:
    """Commit what a person sent. Raises VoteRefused for a vote that does not fit its item."""
    handed = store.item(annotator, sent.item_id)
    assert handed.item is not None, "an item that was handed out"
    vote = make_vote(sent, handed.item, handed.prelabel_shown, store.settings, annotator)
    request = content_hash(annotator, msgspec.to_builtins(sent))
    return store.record(vote, request), handed.item


def make_vote(
    sent: SentVote, item: VoteItem, shown: bool, settings: VoteSettings, annotator: str
) -> Vote:
    """The vote about the item's answers. Raises VoteRefused where it does not fit the item."""
    slot = slot_of_a(settings.seed, annotator, item.item_id)
    verdict = _of_answers(sent.verdict, slot)
    allowed = PAIR_VERDICTS if item.kind == "pair" else RATING_VERDICTS
    if verdict not in allowed:
        raise VoteRefused(f"{sent.verdict} is no verdict on a {item.kind}")
    if (sent.rating is not None) != (verdict == "rated"):
        raise VoteRefused("a rating comes with the verdict `rated`, and with no other")
    if sent.rating is not None and sent.rating not in settings.scale:
        raise VoteRefused(f"{sent.rating:g} is no level of the scale {sorted(settings.scale)}")
    return Vote(
        vote_id=sent.vote_id,
        item_id=item.item_id,
        kind=item.kind,
        annotator=annotator,
        verdict=verdict,
        rating=sent.rating,
        principles=_check_principles(sent.principles, item, settings, slot),
        comment=sent.comment.strip(),
        slot_of_a=slot,
        seconds=round(sent.seconds, 3),
        probability=item.probability,
        gold=item.gold is not None,
        prelabel_shown=shown,
    )


def _of_answers(verdict: str, slot: int) -> Verdict:
    """A verdict on slots as one on answers a and b."""
    named: Mapping[str, Verdict] = {
        SLOTS[slot]: "a",
        SLOTS[1 - slot]: "b",
        "tie": "tie",
        "both_bad": "both_bad",
        "skip": "skip",
        "rated": "rated",
    }
    return named[verdict]


def _check_principles(
    given: Mapping[str, str], item: VoteItem, settings: VoteSettings, slot: int
) -> dict[str, str]:
    scales = {p.id: p.scale or settings.scale for p in settings.principles}
    checked: dict[str, str] = {}
    for name, value in given.items():
        if name not in item.principles or name not in scales:
            raise VoteRefused(f"principle {name!r} is not asked about this item")
        levels = [str(level) for level in scales[name]]
        if value not in (levels if item.kind == "rating" else (*SLOTS, "tie")):
            raise VoteRefused(f"{value!r} is no vote on principle {name!r}")
        checked[name] = value if item.kind == "rating" else str(_of_answers(value, slot))
    return checked
