"""People's votes as judgements. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.core.records import Judgement, content_hash, make_prompt
from rlaif.data.readers.base import answer_id
from rlaif.data.readers.votes import VALUES
from rlaif.data.votes import Vote, VoteItem


def votes_to_judgements(
    votes: Iterable[Vote],
    items: Mapping[str, VoteItem],
    judge: str,
    scale: Mapping[int, str],
    by_content: bool = False,
) -> list[Judgement]:
    """What people said of the whole of each item, as judgements by the load step `judge`, in order
    of item and person.

    A vote for an answer is ok, with probability 1 or 0, and a tie has one half; a skipped item is
    `abstain` and two bad answers are `both_bad`, both without a number. A rating becomes a score on
    [0, 1] by the ends of its `scale`. The two answers stand in order of id and not of slots, so
    that every person counts once, whichever answer was shown first to how many. `by_content`:
    prompts and answers have the ids that files give them, and not those of a run that they came
    from.
    """
    ordered = sorted(votes, key=lambda vote: (vote.item_id, vote.annotator))
    return [_vote_judgement(vote, items, judge, scale, by_content) for vote in ordered]


def _vote_judgement(
    vote: Vote,
    items: Mapping[str, VoteItem],
    judge: str,
    scale: Mapping[int, str],
    by_content: bool,
) -> Judgement:
    item = items.get(vote.item_id)
    if item is None:
        raise ConfigError(
            f"vote {vote.vote_id} of {vote.annotator}: the database has no item {vote.item_id}"
        )
    shown = sorted(answer_ids(item, by_content))
    call = "c_" + content_hash(judge, vote.item_id, vote.annotator)
    return Judgement(
        judgement_id="j_" + content_hash(call),
        call_id=call,
        prompt_id=make_prompt(item.prompt).prompt_id if by_content else item.prompt_id,
        subject_kind="completion",
        shown=shown,
        subject=shown[0],
        judge=judge,
        annotator_id=vote.annotator,
        annotator_kind="human",
        principle=None,
        rationale=vote.comment or None,
        **_read_verdict(vote, scale, shown[0] == answer_ids(item, by_content)[0]),
    )


def answer_ids(item: VoteItem, by_content: bool) -> list[str]:
    """The ids of an item's answers, a before b: those of the run that they came from or, with
    `by_content`, those that files give them."""
    sides = [(item.a, item.a_id), (item.b, item.b_id)]
    return [
        answer_id(item.prompt, messages) if by_content else name
        for messages, name in sides
        if messages is not None and name is not None
    ]


def _read_verdict(vote: Vote, scale: Mapping[int, str], a_first: bool) -> dict[str, Any]:
    """Status and number, of a pair for the answer that is shown first."""
    if vote.rating is not None:
        low, high = min(scale), max(scale)
        return {
            "status": "ok",
            "score": (vote.rating - low) / (high - low),
            "raw_value": float(vote.rating),
        }
    if vote.verdict not in VALUES:
        return {"status": "both_bad" if vote.verdict == "both_bad" else "abstain"}
    prob = VALUES[vote.verdict]
    return {
        "status": "tie" if prob == 0.5 else "ok",
        "prob_first": prob if a_first else 1.0 - prob,
    }
