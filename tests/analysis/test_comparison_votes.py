"""A votes database beside judges."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.analysis.comparison.compute import compare_inputs
from rlaif.analysis.comparison.vote_files import read_vote_file
from rlaif.data.vote_store import VoteStore
from rlaif.data.votes import Vote
from tests.support.annotating import make_database, make_items


def vote_on(store: VoteStore, person: str, verdicts: dict[str, str], **more: bool) -> None:
    """The person's votes, each on the item that is handed out."""
    for number in range(len(verdicts)):
        handed = store.hand_out(person, 1_000.0 + number).item
        assert handed is not None
        store.record(
            Vote(
                vote_id=f"vote-{person}-{number:08d}",
                item_id=handed.item_id,
                kind="pair",
                annotator=person,
                verdict=verdicts[handed.item_id],  # type: ignore[arg-type]
                principles={"kind": "b"},
                slot_of_a=number % 2,
                **more,
            ),
            "request",
        )


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Eight items whose judge prefers a; Ada says a of all, Ben b of two and a tie of one."""
    path = make_database(tmp_path / "votes.db", make_items(8), overlap=2)
    store = VoteStore(path)
    vote_on(store, "ada", {f"i{n}": "a" for n in range(8)})
    vote_on(store, "ben", {f"i{n}": "bbtaaaaa"[n].replace("t", "tie") for n in range(8)})
    store.close()
    return path


def test_votes_are_people_beside_the_judges_of_their_items(database: Path) -> None:
    result = compare_inputs([str(database)])
    people, judge = result["sources"]
    assert (people["name"], people["kind"], people["votes"], people["people"]) == (
        "votes",
        "human",
        16,
        2,
    )
    assert (judge["name"], judge["kind"], judge["decided"]) == ("j", "ai", 8)
    figures = result["beside"][0]["figures"]
    # Five pairs agree, two do not, one half: 5.5 / 8; the judge has each of these beside Ada's 1.
    assert figures["person"]["mean"] == pytest.approx(5.5 / 8)
    assert figures["judge"]["mean"] == pytest.approx((8 + 5.5) / 16)


def test_votes_on_a_principle_are_of_the_answer_and_not_of_its_slot(database: Path) -> None:
    _, judgements, _ = read_vote_file(database, "people")
    own = [j for j in judgements if j.principle == "kind"]
    chosen = {(j.prompt_id, j.shown[0] if j.prob_first == 1 else j.shown[1]) for j in own}
    # Both people say b of every item, so each prompt has one chosen answer.
    assert len(own) == 16
    assert len(chosen) == 8


def test_the_order_in_which_people_saw_answers_is_known(database: Path) -> None:
    _, judgements, left_out = read_vote_file(database, "people")
    whole = [j for j in judgements if j.annotator_kind == "human" and j.principle is None]
    by_person = [j for j in whole if j.annotator_id == "ada"]
    # Ada says a of all, which stood first in every other one.
    assert (
        sorted(j.prob_first for j in by_person if j.prob_first is not None) == [0.0] * 4 + [1.0] * 4
    )
    assert left_out == 0


@pytest.mark.parametrize("why", ["gold", "prelabel_shown"])
def test_gold_and_prelabelled_votes_do_not_count(tmp_path: Path, why: str) -> None:
    path = make_database(tmp_path / "votes.db", make_items(8), overlap=1)
    store = VoteStore(path)
    vote_on(store, "ada", {f"i{n}": "a" for n in range(8)}, **{why: True})
    store.close()
    _, judgements, left_out = read_vote_file(path, "people")
    assert left_out == 8
    assert {j.annotator_kind for j in judgements} == {"ai"}
