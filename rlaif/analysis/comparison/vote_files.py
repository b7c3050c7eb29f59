"""Votes databases of `rlaif annotate` as judgements of people, and of the judges whose verdicts the
items came with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec import structs

from rlaif.core.records import Judgement, content_hash, make_prompt
from rlaif.data.readers.votes import VALUES
from rlaif.data.votes import ItemJudge, Vote, VoteItem, read_items, read_settings, read_votes
from rlaif.preferences.labels import pair_judgement
from rlaif.preferences.votes import answer_ids, votes_to_judgements


def read_vote_file(path: Path, judge: str) -> tuple[list[VoteItem], list[Judgement], int]:
    """The items with two answers, what people (as `judge`) and judges said of them, under ids that
    are hashes of content, and how many votes do not count: on questions whose answer the owner
    knows, and those given with a judge's verdict in sight. Raises StoreError."""
    items = {item.item_id: item for item in read_items(path) if item.b is not None}
    every = [vote for vote in read_votes(path) if vote.item_id in items]
    votes = [vote for vote in every if not (vote.gold or vote.prelabel_shown)]
    settings = read_settings(path)
    given = sorted(votes, key=lambda vote: (vote.item_id, vote.annotator))
    wholes = votes_to_judgements(given, items, judge, settings.scale, by_content=True)
    people = [
        row
        for vote, whole in zip(given, wholes, strict=True)
        for row in _with_principles(vote, items[vote.item_id], whole)
    ]
    judges = [
        _judge_verdict(item, one)
        for item in items.values()
        for one in item.judges
        if one.prob_a is not None
    ]
    return list(items.values()), [*people, *judges], len(every) - len(votes)


def _with_principles(vote: Vote, item: VoteItem, whole: Judgement) -> Iterator[Judgement]:
    """A vote on the whole and on each principle, with the answers in the order in which the person
    saw them."""
    ids = answer_ids(item, by_content=True)
    shown = ids if vote.slot_of_a == 0 else ids[::-1]
    yield _in_order(whole, shown)
    for principle, said in sorted(vote.principles.items()):
        if said in VALUES:
            name = content_hash(whole.call_id, principle)
            prob = VALUES[said] if shown == ids else 1.0 - VALUES[said]
            yield structs.replace(
                whole,
                judgement_id="j_" + name,
                call_id="c_" + name,
                shown=shown,
                subject=shown[0],
                principle=principle,
                status="tie" if prob == 0.5 else "ok",
                prob_first=prob,
            )


def _in_order(judgement: Judgement, shown: list[str]) -> Judgement:
    prob = judgement.prob_first
    if judgement.shown != shown and prob is not None:
        prob = 1.0 - prob
    return structs.replace(judgement, shown=shown, subject=shown[0], prob_first=prob)


def _judge_verdict(item: VoteItem, said: ItemJudge) -> Judgement:
    assert said.prob_a is not None, "a verdict on a pair"
    return pair_judgement(
        "c_" + content_hash(said.judge, said.annotator, item.item_id),
        make_prompt(item.prompt).prompt_id,
        answer_ids(item, by_content=True),
        said.prob_a,
        judge=said.judge,
        annotator_id=said.annotator,
        annotator_kind=said.annotator_kind,
    )
