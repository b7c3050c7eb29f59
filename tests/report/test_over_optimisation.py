"""What is said and drawn of the proxy and gold."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlaif.core.store import Store
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.over_optimisation import (
    _make_row,
    _name_judges,
    _read_scores,
    best_of_n_points,
    optimised_judges,
)
from rlaif.report.build import build_report
from rlaif.report.over_optimisation import (
    describe_peak,
    describe_training,
    make_proxy_sections,
    proxy_sentences,
)
from rlaif.report.view import RunView
from tests.metrics.test_over_optimisation import NOISE, PEAKED, RISING, points
from tests.support.browsed import judgement


def row_of(proxy, gold, **changes):
    names = ("score/brief", "score/gold")
    squeezed = [1 / (1 + np.exp(-side)) for side in (proxy, gold)]
    return {**_make_row("rounds", "", ["main"], 3, names, points(*squeezed)), **changes}


@pytest.mark.parametrize(
    ("proxy", "gold", "parts"),
    [
        (
            RISING,
            PEAKED,
            [
                "Over-optimised: gold (score/gold) peaks between √KL 1.000 and 1.414 (95%)",
                "highest at M2 (√KL 1.414), and from there to the last point, M4 (√KL 2.000), it "
                "changes by -0.",
                "while the proxy (score/brief) changes by +0.",
            ],
        ),
        (-RISING, PEAKED, ["Gold fell: ", "; the proxy has not clearly risen."]),
        (RISING, RISING, ["No fall: ", "at the last point, M4 (√KL 2.000)."]),
        (RISING, NOISE, ["Not decided: ", "to the last point, M4"]),
    ],
)
def test_a_sentence_has_the_figures_that_it_is_made_of(proxy, gold, parts):
    said = describe_peak(row_of(proxy, gold))
    for part in parts:
        assert part in said


def test_an_earlier_peak_that_is_not_ruled_out_is_said():
    row = row_of(RISING, RISING)
    assert row["peak"]["among"] == [4]
    row["peak"]["among"] = [3, 4]
    doubt = "at the last point, M4 (√KL 2.000); that it peaks earlier is not ruled out."
    assert describe_peak(row).endswith(doubt)


def test_a_kl_that_is_not_known_is_not_made_up():
    row = row_of(RISING, PEAKED)
    for point in row["points"]:
        point["kl"] = None
    said = describe_peak(row)
    assert "between M1 and M2 (95%)" in said and "√KL" not in said
    (section,) = make_proxy_sections([row])
    assert ">round<" in section.svg and "√KL" not in section.svg
    few = row_of(RISING[:, :5], PEAKED[:, :5])
    assert describe_peak(few).startswith("Not decided: fewer than 6 prompts")


def test_the_page_has_a_figure_a_table_and_a_sentence_and_escapes(tmp_path: Path) -> None:
    row = {**row_of(RISING, PEAKED), "gold": "score/<b>gold</b>"}
    page = build_report(RunView("n", "", "done", "", {}, proxies=[row]), tmp_path / "a.html")
    text = page.read_text()
    section = text.split('<section id="proxies"')[1].split("</section>")[0]
    assert '<a href="#proxies">' in text and "<b>gold" not in section
    assert section.count("<figure>") == section.count("<table") == 1
    assert section.count('<th scope="row">M') == 5 and "Over-optimised: " in section
    # The shaded part is there only where a peak is decided.
    plain = make_proxy_sections([row_of(RISING, NOISE)])[0].svg
    drawn = make_proxy_sections([row_of(RISING, PEAKED)])[0].svg
    assert drawn.count("<path") == plain.count("<path") + 1
    page = build_report(RunView("n", "", "done", "", {}), tmp_path / "b.html")
    assert "Over-optimisation" not in page.read_text()


def test_the_terminal_has_the_latest_sample_and_arms_and_seeds_where_there_are_several():
    first, last = (
        row_of(RISING, PEAKED, kind="best of n", about=f"sample, round {n}") for n in (1, 2)
    )
    (said,) = proxy_sentences([first, last])
    assert said.startswith("Best of n: score/brief against score/gold, sample, round 2. ")
    both = proxy_sentences([row_of(RISING, PEAKED), row_of(RISING, PEAKED, arms=["b"], seed=4)])
    assert [", arm main, seed 3. " in both[0], ", arm b, seed 4. " in both[1]] == [True, True]


def test_a_judge_keeps_its_name_where_an_evaluation_has_several_sets_of_prompts():
    steps = [
        {"kind": "judge", "id": "gold", "hash": "a", "inputs": {}},
        {"kind": "judge", "id": "evaluate.gold", "hash": "b", "inputs": {}},
        {"kind": "judge", "id": "evaluate.gold.hard", "hash": "c", "inputs": {}},
        {
            "kind": "evaluate",
            "id": "evaluate",
            "hash": "d",
            "inputs": {"judgements/gold": "b", "hard:judgements/gold": "c"},
        },
    ]
    names = _name_judges(steps)
    assert [names[digest] for digest in "abc"] == ["gold"] * 3


def test_the_best_of_n_is_over_prompts_with_all_answers():
    """By hand: of the answers with proxy 1, 2, 3, the best of two is 3 in two of three draws and 2
    in one: (2 x 30 + 20) / 3 of gold."""
    names = ("a", "b", "c")
    proxy = {"p": dict(zip(names, (1.0, 2.0, 3.0), strict=True)), "q": {"d": 1.0, "e": 2.0}}
    gold = {"p": dict(zip(names, (10.0, 20.0, 30.0), strict=True)), "q": {"d": 1.0, "e": 2.0}}
    found = best_of_n_points(proxy, gold)
    assert [point.name for point in found] == ["best of 1", "best of 2", "best of 3"]
    assert [dict(point.gold) for point in found] == [
        {"p": pytest.approx(20.0)},
        {"p": pytest.approx(80 / 3)},
        {"p": pytest.approx(30.0)},
    ]
    # An answer that one of the two has not scored leaves its prompt out, and nothing is 0.
    gold["p"].pop("c")
    assert {name for point in best_of_n_points(proxy, gold) for name in point.gold} == {"p", "q"}
    assert best_of_n_points({}, {}) == []


def a_run(root: Path, *steps: Any) -> Any:
    """A run of one arm with these steps that has no rounds yet."""
    experiment = Experiment.model_validate(
        {
            "name": "small",
            "models": {"policy": {"path": "none", "engine": "fake"}},
            "prompts": {"path": "prompts.jsonl", "holdout": 1},
            "steps": list(steps),
        }
    )
    return SimpleNamespace(
        manifest={"arms": {}, "constitution": None, "steps": []},
        store=Store(root),
        arms=dict,
        experiment=lambda arm: experiment,
    )


@pytest.mark.parametrize(
    ("keys", "judges"),
    [
        ({}, ["brief", "listed"]),
        ({"weights": {"brief": 0.25, "listed": 0.75}}, ["brief", "listed"]),
        ({"weights": {"brief": 1.0, "listed": 0.0}}, ["brief"]),
        ({"weights": {"listed": 1.0}}, ["listed"]),
        ({"uses": ["listed"]}, ["listed"]),
    ],
)
def test_a_policy_is_optimised_for_the_judges_that_weigh_in_its_pairs(
    keys: dict[str, Any], judges: list[str], tmp_path: Path
) -> None:
    asked = [{"judge": {"id": name, "kind": "rules"}} for name in ("brief", "listed")]
    run = a_run(tmp_path, {"sample": {"n": 2}}, *asked, {"pair": keys})
    assert optimised_judges(run, "main") == judges


def test_a_judges_raw_values_are_read_where_every_verdict_has_one(tmp_path: Path) -> None:
    run = a_run(tmp_path, {"sample": {"n": 2}})
    found = {}
    for name, values in {"all": (3.5, -2.0), "some": (3.5, None), "none": (None, None)}.items():
        rows = [
            judgement("p", name + end, [end], score, judge="j", principle=None, raw_value=value)
            for end, score, value in zip("ab", (0.9, 0.25), values, strict=True)
        ]
        # What is missing has no value of either kind.
        rows.append(judgement("p", f"{name}c", ["c"], None, judge="j", principle=None))
        run.store.step(name).append("judgements", rows)
        assert _read_scores(run, name, "j", "main") == {}, "the step is not finished"
        run.store.step(name).finish({})
        found[name] = _read_scores(run, name, "j", "main")["p"]
    scores = {"a": 0.9, "b": 0.25}
    assert found == {"all": {"a": 3.5, "b": -2.0}, "some": scores, "none": scores}


def test_where_a_training_stands_is_said_in_a_line():
    training = {
        "id": "rl",
        "seed": 7,
        "round": 1,
        "rollout": 5,
        "rollouts": 12,
        "first": {"reward": 0.25, "kl": 0.0},
        "latest": {"reward": 0.5, "kl": 4.0},
    }
    assert describe_training(training) == (
        "training: rl (seed 7 round 1): rollout 5 of 12, mean reward 0.500 (first 0.250), KL to "
        "the reference 4.000 nats (√KL 2.000)"
    )
    bare = {**training, "first": {}, "latest": {}}
    assert describe_training(bare) == "training: rl (seed 7 round 1): rollout 5 of 12"
