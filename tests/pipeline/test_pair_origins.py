"""Pairs by origin in a plan: how answers belong together, how many there may be, and the round that
the pairs are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.config.steps import PairStep
from rlaif.core.records import Preference
from rlaif.core.store import Store
from rlaif.pipeline.forecast import forecast
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.steps import pair
from tests.pipeline.test_pair_steps import answer, context

RULES = {
    "name": "revised",
    "principles": [
        {"id": "brief", "text": "It is short.", "critique": "Is it?", "revision": "Shorten it."}
    ],
}
DRAFTS = {"sample": {"id": "drafts", "n": 3}}
SECOND: dict[str, dict[str, Any]] = {
    "revisions": {"revise": {"id": "revisions"}},
    "others": {"sample": {"id": "others", "n": 2, "temperature": 0.1}},
}


def planned(folder: Path, **keys: Any) -> tuple[Planned, int]:
    """The pair step of a scripted policy, and how many pairs are forecast of it."""
    (second,) = {keys["chosen"], keys["rejected"]} - {"drafts"}
    (folder / "constitution.yaml").write_text(yaml.safe_dump(RULES))
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "Why {n}?"}}\n' for n in range(7)))
    whole = {
        "name": "origins",
        "models": {"policy": {"path": "none", "engine": "fake"}},
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 2},
        "steps": [DRAFTS, SECOND[second], {"pair": keys}],
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    inputs = prepare(path)
    plan = make_plan(inputs)
    sizes = {row.id: row.units for row in forecast(inputs, Store(folder / "none"), plan)}
    return next(p for p in plan if p.kind == "pair"), sizes["pair"] or 0


@pytest.mark.parametrize(
    ("chosen", "rejected", "keys", "match", "pairs"),
    [
        ("revisions", "drafts", {}, "parent", 15),
        # The revised side may be the rejected one.
        ("drafts", "revisions", {}, "parent", 15),
        ("drafts", "others", {}, "index", 15),
        # Three answers against two, to each of five prompts.
        ("drafts", "others", {"match": "all"}, "all", 30),
    ],
)
def test_how_answers_belong_together_and_how_many_pairs_there_may_be(
    tmp_path: Path, chosen: str, rejected: str, keys: dict[str, Any], match: str, pairs: int
) -> None:
    step, count = planned(tmp_path, chosen=chosen, rejected=rejected, **keys)
    assert (step.options["match"], count) == (match, pairs)


def test_pairs_are_of_the_round_over_all_stages(tmp_path: Path) -> None:
    """The first round of a second stage, which is the fourth of the file."""
    inputs = {"chosen/0": "new", "rejected/0": "old"}
    step = PairStep(chosen="new", rejected="old")
    options = {"match": "index", "principle_weights": {}}
    made = Planned(
        "made", "pair", "pair", 0, 4, step, inputs, options=options, stage="second", number=1
    )
    records = {"chosen/0": [answer("a")], "rejected/0": [answer("b")]}
    found = context(tmp_path, made, records)
    pair.run(found)
    (row,) = found.folder.records(Preference)
    assert (row.chosen_id, row.rejected_id, row.round) == ("a", "b", 4)
