"""What the report says of an on-policy training: its curves, its limits, and where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.config.gates import Gates
from rlaif.core.errors import GateStopped
from rlaif.core.store import Store
from rlaif.pipeline.rollouts import marks, rollout_rows
from rlaif.report.build import build_report
from rlaif.report.view import RunView
from rlaif.train.gates import look, raise_stopped, warnings_of

NAME = "a" * 24
GATES = Gates.model_validate({"kl": {"warn": 4, "stop": 8}, "length": {"warn": [None, 9]}})
STEP = {"seed": 0, "arms": ["main"], "round": 1, "id": "train", "kind": "train", "hash": NAME}
ROWS = [
    {
        "step": i + 1,
        "rollout": i // 2 + 1,
        "reward": i // 2 / 10,
        "answer_tokens": 5.0 + i // 2,
        "kl_reference": 2.0 * (i // 2),
        "flat_groups": 0.25,
    }
    for i in range(8)
]


def training(folder: Path) -> Store:
    work = folder / "steps" / NAME / "work"
    work.mkdir(parents=True)
    # What a kill tore off is no row.
    (work / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS) + '{"step"')
    return Store(folder)


def test_curves_limits_and_what_was_reached_are_shown(tmp_path: Path) -> None:
    store = training(tmp_path)
    steps = [{"train": {"id": "train", "gates": GATES.model_dump(mode="json")}}]
    before = marks(store.step(NAME).path)
    stopped = look(GATES, {**ROWS[-1], "kl_reference": 9.5, "explained_variance": float("nan")}, 5)
    assert stopped is not None
    with pytest.raises(GateStopped, match=r"rollout 5.*is 9.5, at or above the limit of 8"):
        raise_stopped(store.step(NAME).path / "work", stopped, 4)
    assert marks(store.step(NAME).path) != before
    (row,) = rollout_rows(store, [STEP], {"steps": steps})
    assert [known["kl"] for _, known in row["points"]] == [0.0, 2.0, 4.0, 6.0, 9.5]
    assert row["reached"] == [
        "gates.kl.warn (4 or more) was reached in 3 of 5 rollouts, first in rollout 3",
        "gates.kl.stop (8 or more) was reached in 1 of 5 rollouts, first in rollout 5",
    ]
    assert len(warnings_of(GATES, ROWS)) == 1
    view = RunView("name", "", "unfinished", "", {}, rollouts=[row])
    page = build_report(view, tmp_path / "page.html").read_text()
    assert "The mean reward went from 0.000 to 0.300 in 5 rollouts." in page
    assert f"{row['reached'][1]}." in page
    drawn = page.split('id="rollouts"')[1].split("</section>")[0]
    captions = ("Reward", "Flat groups", "KL to the reference", "Length", "Reward by √KL")
    assert [f"<figcaption>{name}<" in drawn for name in captions] == [True] * 5
    assert drawn.count("<figure>") == 5


def test_without_gates_or_on_policy_training_nothing_is_claimed(tmp_path: Path) -> None:
    store = training(tmp_path)
    (row,) = rollout_rows(store, [STEP], {"steps": [{"train": {"id": "train"}}]})
    assert (row["limits"], row["reached"]) == ({}, [])
    page = build_report(RunView("n", "", "done", "", {}, rollouts=[row]), tmp_path / "a.html")
    assert "No gates were set." in page.read_text()
    page = build_report(RunView("n", "", "done", "", {}), tmp_path / "b.html")
    assert "On-policy training" not in page.read_text()


def test_terms_and_costs_have_figures_and_a_cost_is_told_against_its_limit(tmp_path: Path) -> None:
    work = tmp_path / "steps" / NAME / "work"
    work.mkdir(parents=True)
    rows = [
        {
            "step": n,
            "rollout": n,
            "reward": 1.0,
            "value/rm": 3.0,
            "value/short": 0.5,
            "contribution/rm": 1.5,
            "contribution/short": -0.5,
            "missing/rm": 0.0,
            "missing/short": 0.125,
            "cost/harm": 1.0 - n / 10,
            "missing_cost/harm": 0.0,
            "multiplier/harm": 1.0 + n,
        }
        for n in range(1, 7)
    ]
    (work / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    costs = [{"judge": "harm", "limit": 0.55, "higher": "worse"}]
    (row,) = rollout_rows(
        Store(tmp_path), [STEP], {"steps": [{"train": {"id": "train", "costs": costs}}]}
    )
    assert row["cost_limits"] == {"harm": 0.55}
    view = RunView("name", "", "done", "", {}, rollouts=[row])
    page = build_report(view, tmp_path / "page.html").read_text()
    assert (
        "The mean cost by harm went from 0.900 to 0.400, and over the last 2 of 6 rollouts it was "
        "0.450; its limit is 0.55. The multiplier ended at 7.000." in page
    )
    drawn = page.split('id="rollouts"')[1].split("</section>")[0]
    captions = {
        "Value by rm": True,
        "Contribution of short": True,
        "Missing by short": True,
        "Missing by rm": False,
        "Cost by harm": True,
        "Missing costs by harm": False,
        "Multiplier of harm": True,
    }
    found = {name: f"<figcaption>{name}<" in drawn for name in captions}
    assert found == captions
    # One term is the reward itself.
    alone = {k: v for k, v in rows[0].items() if not k.endswith("/short")}
    (work / "metrics.jsonl").write_text(json.dumps(alone) + "\n")
    [row] = rollout_rows(Store(tmp_path), [STEP], {})
    page = build_report(RunView("n", "", "done", "", {}, rollouts=[row]), tmp_path / "b.html")
    assert "Contribution of rm" not in page.read_text()
