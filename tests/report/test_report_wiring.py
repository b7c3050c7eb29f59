"""What a page hands on from records to figures: two seeds of their own lengths, three arms, two
judges, and values that are all different."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.records import make_prompt
from rlaif.metrics.claims import Claims
from rlaif.metrics.intervals import IntervalJson
from rlaif.report.arms import difference_tables, label_rows, label_sentences
from rlaif.report.build import (
    _arm_figures,
    _draw_curves,
    _draw_distributions,
    _draw_trainings,
    _make_tables,
    _split_rounds,
    build_report,
)
from rlaif.report.gather import Sources, gather_shown
from rlaif.report.merged import Page, change_values, make_page, merge_seeds, primary_figures
from rlaif.report.rows import alarm_items, latest_rounds, metric_rows, side_by_side
from rlaif.report.table import summarise_arm, summary_table
from rlaif.report.view import ArmRow, HeldOutRow, RolloutRow, RoundRow, RunView

PROMPTS = [make_prompt([{"role": "user", "content": f"Question {n}?"}]) for n in range(3)]


def interval(mean: float, **more: Any) -> IntervalJson:
    found: Any = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 40} | more
    return found  # type: ignore[no-any-return]


def row(arm: str, seed: int, number: int, **metrics: Any) -> RoundRow:
    about: Any = {"metrics": {}, "deltas": {}} | metrics
    return RoundRow(
        arm=arm, seed=seed, round=number, policy_in="", policy_out="", counts={}, metrics=about
    )


def pair(name: str, seed: int, arm: str, number: int, chosen: float | None, rejected: float) -> Any:
    said = [{"role": "assistant", "content": name}]
    return {
        "preference_id": name, "prompt_id": PROMPTS[0].prompt_id, "seed": seed, "arm": arm,
        "round": number, "prompt": PROMPTS[0].messages, "chosen": said, "rejected": said,
        "score_chosen": chosen, "score_rejected": rejected, "margin": 0.5, "reason": "",
        "source": "", "chosen_id": f"{name}+", "rejected_id": f"{name}-",
    }  # fmt: skip


PAIRS = [
    pair("f3", 7, "late", 2, 0.9, 0.2),
    pair("f1", 8, "early", 1, 0.7, 0.3),
    pair("f1", 7, "early", 1, 0.8, 0.1),
    pair("f1", 7, "early", 1, 0.8, 0.1),
    pair("f2", 7, "late", 1, None, 0.4),
]


def held(seed: int, number: int, model: str, prompt: int, name: str, words: int) -> Any:
    about = HeldOutRow(
        seed=seed, round=number, model=model, prompt_id=PROMPTS[prompt].prompt_id,
        completion_id=name,
    )  # fmt: skip
    said = [{"role": "assistant", "content": "word " * words}]
    return about, {"completion_id": name, "messages": said, "finish_reason": "stop"}


HELD = [
    held(7, 2, "M2", 0, "h2", 9),
    held(7, 0, "M0", 0, "h0", 2),
    held(7, 1, "M1", 0, "h1", 5),
    held(8, 0, "M0", 0, "h0", 2),
    held(8, 1, "M1", 0, "g1", 6),
    held(7, 0, "M0", 1, "k0", 3),
]


def judged(name: str, judge: str, shown: list[str], **more: Any) -> Any:
    return {
        "judgement_id": name, "judge": judge, "principle": None, "shown": shown,
        "subject": shown[0], "status": "ok", "score": None, "label_mass": None, "raw": name,
    } | more  # fmt: skip


JUDGED = [
    judged("j1", "a", ["h1"], score=0.25),
    judged("j1", "a", ["h1"], score=0.25),
    judged("j2", "b", ["h1"], score=0.75),
    judged("j3", "a", ["h0"], score=0.5),
    judged("j4", "a", ["g1"], status="unparsed"),
    judged("j5", "a", ["h2"], status="tie", score=0.125),
    judged("j6", "b", ["f1+", "f1-"], prob_first=0.875, rests_on=["call"]),
]


def sources(asked: list[Any]) -> Sources:
    def judgements(ids: Any) -> Iterator[Any]:
        asked.append(set(ids))
        return (dict(j) for j in JUDGED if set(j["shown"]) & set(ids))

    def answers(calls: Any) -> Iterator[Any]:
        asked.append(set(calls))
        return iter(
            [
                {"call_id": "call", "role": "by", "shown": ["f1+", "f1-"], "answer": {"text": said}}
                for said in ("first", "last")
            ]
        )

    return Sources(
        preferences=lambda: iter(PAIRS),
        heldout=lambda: iter(HELD),
        judgements=judgements,
        answers=answers,
        prompts=lambda: iter([{"prompt_id": p.prompt_id, "messages": p.messages} for p in PROMPTS]),
    )


def listed(groups: Any) -> dict[str, list[float]]:
    return {name: list(values) for name, values in groups.items()}


def test_gathered_records_go_to_their_arm_round_seed_model_and_judge() -> None:
    asked: list[Any] = []
    shown = gather_shown(sources(asked), by_arm=True)
    names = {f"f{n}{side}" for n in (1, 2, 3) for side in "+-"}
    assert asked == [names | {"h0", "h1", "h2", "g1", "k0"}, {"call"}]
    # f1 of two seeds are two pairs, and one of one seed that comes twice is one.
    assert shown.pairs_total == 4
    assert [(p["id"], p["seed"]) for p in shown.pairs] == [
        ("f1", 7),
        ("f1", 8),
        ("f2", 7),
        ("f3", 7),
    ]
    assert listed(shown.pair_scores["chosen"]) == {"early": [0.7, 0.8], "late": [0.9]}
    assert list(shown.pair_scores["chosen"]) == ["early", "late"]
    assert listed(shown.pair_scores["rejected"]) == {"early": [0.3, 0.1], "late": [0.2, 0.4]}
    by_round = gather_shown(sources([]), by_arm=False).pair_scores
    assert listed(by_round["chosen"]) == {"M1": [0.7, 0.8], "M2": [0.9]}
    assert list(by_round["rejected"]) == ["M1", "M2"]
    assert listed(by_round["rejected"]) == {"M1": [0.3, 0.1, 0.4], "M2": [0.2]}
    assert shown.answers_total == 3
    assert list(shown.lengths) == ["M0", "M1", "M2"]
    assert listed(shown.lengths) == {"M0": [2, 2, 3], "M1": [5, 6], "M2": [9]}
    # The answer h0 is that of two seeds; a tie has a score, and what is unparsed none.
    assert {judge: listed(groups) for judge, groups in shown.scores.items()} == {
        "a": {"M0": [0.5, 0.5], "M1": [0.25], "M2": [0.125]},
        "b": {"M1": [0.75]},
    }
    assert list(shown.scores["a"]) == ["M0", "M1", "M2"]
    verdicts = [p[f"judged_{side}"] for p in shown.pairs[:1] for side in ("chosen", "rejected")]
    assert [[v["order"] for v in own] for own in verdicts] == [["1 of 2"], ["2 of 2"]]
    behind = [v["behind"] for own in verdicts for v in own]
    assert [[(b["raw"], b["order"], b["role"]) for b in own] for own in behind] == [
        [("last", "1 of 2", "by")],
        [("last", "2 of 2", "by")],
    ]
    models = {
        (e["prompt"], e["seed"]): [(m["model"], len(m["text"].split())) for m in e["models"]]
        for e in shown.answers
    }
    assert models == {
        ("Question 0?", 7): [("M0", 2), ("M1", 5), ("M2", 9)],
        ("Question 0?", 8): [("M0", 2), ("M1", 6)],
        ("Question 1?", 7): [("M0", 3)],
    }


NEW = {"score/j": {"p": 0.9, "q": 0.2, "r": 0.5, "s": 1.0}, "length/words": {"p": 8.0, "q": 6.0}}
OLD = {"score/j": {"p": 0.4, "q": 0.3, "r": 0.5}, "length/words": {"p": 2.0, "q": 12.0}}


def test_a_change_is_the_new_value_less_the_old_one_prompt_by_prompt() -> None:
    assert change_values("score/j", NEW, OLD) == pytest.approx({"p": 0.5, "q": -0.1, "r": 0.0})
    assert change_values("win_rate/j", NEW, OLD) == {"p": 1.0, "q": 0.0, "r": 0.5}
    factors = change_values("length_factor/words", NEW, OLD)
    assert factors == pytest.approx({"p": math.log(4), "q": -math.log(2)})


def seeded(gains: dict[int, float], number: int = 2) -> tuple[list[RoundRow], Any]:
    """One arm's last round of several seeds, each with its own gain over M0."""
    prompts = [f"p{n}" for n in range(8)]

    def values(arm: str, seed: int, at: int) -> Any:
        assert arm == "ours"
        gain = gains[seed] if at else 0.0
        return {"score/j": {p: 0.1 + 0.02 * n + gain * (1 + n / 10) for n, p in enumerate(prompts)}}

    rows = []
    for seed in gains:
        now, then = (list(values("ours", seed, at)["score/j"].values()) for at in (number, 0))
        mean, before = sum(now) / 8, sum(then) / 8
        rows.append(
            row(
                "ours", seed, number, metrics={"score/j": interval(mean)},
                deltas={"initial": {"score/j": interval(mean - before)}},
            )
        )  # fmt: skip
    return rows, values


def test_seeds_merge_by_their_own_values_and_rounds() -> None:
    gains = {3: 0.1, 4: 0.2, 9: 0.6}
    rows, values = seeded(gains)
    merged = merge_seeds(rows, values)["metrics"]
    # Gains of 0.3 on average, of which each prompt has 1 to 1.7 times.
    assert merged["deltas"]["initial"]["score/j"]["mean"] == pytest.approx(0.3 * 1.35)
    assert merged["deltas"]["initial"]["score/j"]["old"] == pytest.approx(0.17)
    assert merged["metrics"]["score/j"]["mean"] == pytest.approx(0.17 + 0.3 * 1.35)
    low, high = (merged["deltas"]["initial"]["score/j"][end] for end in ("low", "high"))
    assert low is not None and high is not None and low < 0.405 < high


def test_a_seed_without_values_leaves_the_mean_of_the_seeds() -> None:
    rows, _ = seeded({3: 0.1, 9: 0.6})
    merged = merge_seeds(rows, lambda arm, seed, number: {})["metrics"]
    change = merged["deltas"]["initial"]["score/j"]
    assert change["mean"] == pytest.approx(0.35 * 1.35) and change["low"] is None
    assert "run the experiment again" in change["note"]


def test_each_seed_adds_its_own_last_round_and_arms_stay_in_order() -> None:
    gains = {("b", 3): (0.1, 0.2), ("b", 4): (0.3,), ("a", 3): (0.5, 0.6), ("a", 4): (0.7, 0.8)}
    rounds = [row("b", seed, 0, metrics={"score/j": interval(0.25)}) for seed in (3, 4)]
    for (arm, seed), means in gains.items():
        for number, mean in enumerate(means, 1):
            deltas = {"initial": {"score/j": interval(mean - 0.25)}}
            rounds.append(
                row(arm, seed, number, metrics={"score/j": interval(mean)}, deltas=deltas)
            )
    page = make_page(rounds, [], lambda arm, seed, number: {}, None, ["j"])
    assert [(r["arm"], r["round"]) for r in page.latest] == [("b", 2), ("a", 2)]
    means = [r["metrics"]["metrics"]["score/j"]["mean"] for r in page.latest]
    assert means == pytest.approx([(0.2 + 0.3) / 2, (0.6 + 0.8) / 2])
    shown = {
        (r["arm"], r["round"]): r["metrics"]["metrics"]["score/j"]["mean"] for r in page.rounds
    }
    assert shown == pytest.approx(
        {("b", 0): 0.25, ("b", 1): 0.2, ("b", 2): 0.25, ("a", 1): 0.6, ("a", 2): 0.7}
    )
    assert [(r["arm"], r["seed"], r["round"]) for r in latest_rounds(rounds)] == [
        ("b", 3, 2),
        ("b", 4, 1),
        ("a", 3, 2),
        ("a", 4, 2),
    ]
    assert list(shown) == [("b", 0), ("b", 1), ("a", 1), ("b", 2), ("a", 2)]
    headings, columns = side_by_side(page.rounds)
    assert headings == ["M0", "b", "a"]
    (cells,) = metric_rows(columns)
    assert [c.value and c.value["mean"] for c in cells.cells] == pytest.approx([0.25, 0.25, 0.7])
    assert list(_split_rounds(rounds)) == ["b 3", "b 4", "a 3", "a 4"]
    assert [t.title for t in _make_tables(rounds, page)] == [
        "All seeds",
        "b 3",
        "b 4",
        "a 3",
        "a 4",
    ]
    own = _make_tables(rounds, page)[3]
    assert own.headings == ["M1", "M2"]
    assert [c.value and c.value["mean"] for c in own.rows[0].cells] == [0.5, 0.6]
    [(group, [curve])] = _draw_curves(rounds)
    assert group == "Judged scores" and curve.caption == "score/j"
    assert "score/j over rounds: 0.250, 0.100, 0.200, 0.250, 0.300, 0.500, 0.600, 0.700, 0.800" in (
        curve.svg
    )


ARMS = ["people", "ai", "mixed"]


def compared(seed: int, shift: float, agreement: float) -> dict[str, Any]:
    deltas = {
        "people/ai": {"score/j": interval(0.1 + shift), "win_rate/j": interval(0.4)},
        "people/mixed": {"score/j": interval(-0.2 + shift), "check/a": interval(0.3)},
        "ai/mixed": {"score/j": interval(0.5 + shift)},
    }
    labels = {
        "people/ai": {
            "agreement": interval(agreement, n=12), "kappa": interval(-0.3),
        },
        "people/mixed": {"agreement": interval(0.9, n=13), "kappa": interval(0.6)},
        "ai/mixed": {"agreement": interval(0.4, n=14)},
    }  # fmt: skip
    return {"seed": seed, "round": 2, "arms": ARMS, "labels": labels, "deltas": deltas}


def test_arms_are_laid_side_by_side_the_second_less_the_first() -> None:
    given = compared(3, 0.0, 0.7) | {
        "standing": {
            "people/ai": {"win_rate/j": "claimed", "score/j": "exploratory"},
            "ai/mixed": {"score/j": "claimed"},
            "people/mixed": {"score/j": "claimed"},
        }
    }
    first, others = difference_tables([compared(3, 0.9, 0.1), given])
    assert first.headings == ["ai less people", "mixed less people"]
    assert others.headings == ["mixed less ai"]
    rows = {r.name: r.cells for r in first.rows}
    means = {name: [c.value and c.value["mean"] for c in cells] for name, cells in rows.items()}
    assert means == {"check/a": [None, 0.3], "score/j": [0.1, -0.2], "win_rate/j": [0.4, None]}
    # A win rate of 0.4 is a loss, a difference of 0.1 a gain; only what is claimed has a tone.
    assert [(c.tone, c.exploratory) for c in rows["score/j"]] == [("", True), ("bad", False)]
    assert rows["win_rate/j"][0].tone == "bad" and rows["check/a"][1].tone == ""
    [alone] = [r.cells for r in others.rows if r.name == "score/j"]
    assert (alone[0].value or {})["mean"] == 0.5 and alone[0].tone == "good"


def test_labels_of_arms_are_told_two_by_two() -> None:
    rows = label_rows([compared(3, 0.0, 0.7)])
    assert [(r.first, r.second, r.agreement and r.agreement["mean"], r.kappa and r.kappa["mean"])
            for r in rows] == [
        ("people", "ai", 0.7, -0.3), ("people", "mixed", 0.9, 0.6), ("ai", "mixed", 0.4, None),
    ]  # fmt: skip
    assert [r.words for r in rows] == [
        "disagree beyond chance",
        "agree beyond chance",
        "not distinguishable from chance",
    ]
    assert (
        "Labels of people and mixed: same choice on 0.900"
        in label_sentences([compared(3, 0.0, 0.7)])[1]
    )
    assert "of 13 pairs, kappa 0.600" in label_sentences([compared(3, 0.0, 0.7)])[1]


def test_comparisons_of_the_newest_round_merge_over_seeds_new_arm_less_old() -> None:
    prompts = [f"p{n}" for n in range(6)]
    level = {"people": 0.2, "ai": 0.3, "mixed": 0.5}

    def values(arm: str, seed: int, number: int) -> Any:
        assert number == 2
        return {
            "score/j": {p: level[arm] + seed / 50 * ARMS.index(arm) + n / 100 * ARMS.index(arm)
                        for n, p in enumerate(prompts)}
        }  # fmt: skip

    rows = [compared(seed, 0.0, 0.1 * seed) for seed in (3, 4, 8)]
    old = compared(3, 0.3, 0.2) | {"round": 1}
    page = make_page([], [old, *rows], values, ["score/j"], [])
    [merged] = page.comparisons
    # Seeds are 5 on average, and prompts 2.5: 0.1 + 0.1 + 0.025 for each place of an arm.
    found = {two: deltas["score/j"]["mean"] for two, deltas in merged["deltas"].items()}
    assert found == pytest.approx(
        {"people/ai": 0.225, "people/mixed": 0.3 + 2 * 0.125, "ai/mixed": 0.2 + 0.125}
    )
    agreement = merged["labels"]["people/ai"]["agreement"]
    assert agreement["mean"] == pytest.approx(0.5) and agreement["n"] == 12
    assert agreement["note"] == "by seed: 0.3, 0.4, 0.8"
    assert merged["labels"]["people/mixed"]["agreement"] == interval(0.9, n=13)
    assert set(merged["standing"]) == set(merged["deltas"])


def test_primary_figures_are_of_each_trained_judge_in_its_order() -> None:
    measured = {"win_rate_vs_initial/b", "score/b", "score/a", "win_rate/a", "score/a/kind"}
    assert primary_figures(None, ["b", "a"], measured) == [
        "score/b",
        "win_rate_vs_initial/b",
        "score/a",
        "win_rate/a",
    ]


def alarm(name: str, metric: str, value: float, severity: str) -> dict[str, Any]:
    return {"name": name, "metric": metric, "value": value, "severity": severity, "message": name}


def test_alarms_say_which_arms_and_seeds_and_between_what_values() -> None:
    rounds = [
        row("b", 3, 0, alarms=[alarm("start", "kl", 0.5, "alarm")]),
        row("a", 3, 0, alarms=[alarm("start", "kl", 0.7, "alarm")]),
        row("b", 3, 1, alarms=[alarm("early", "kl", 0.25, "notice")]),
        row("b", 3, 2, alarms=[alarm("hack", "kl", 4.0, "notice")]),
        row("b", 4, 2, alarms=[alarm("hack", "kl", 2.0, "notice")]),
        row("a", 4, 2, alarms=[alarm("stuck", "entropy", 1.5, "alarm")]),
    ]
    last = alarm_items(rounds, latest=True)
    assert [(i["name"], i["round"], i["where"]) for i in last] == [
        ("stuck", 2, "arm a, seed 4"),
        ("hack", 2, "arm b, seeds 3, 4 (kl 2.000 to 4.000)"),
    ]
    earlier = alarm_items(rounds, latest=False)
    assert [(i["name"], i["round"], i["value"]) for i in earlier] == [
        ("start", 0, 0.5),
        ("early", 1, 0.25),
    ]


def test_an_arms_summary_takes_its_own_rows_and_seeds() -> None:
    change = {"score/j": interval(0.2, old=0.4), "length/words": interval(-3.0, old=9.0)}
    change["check/a"] = interval(0.3)
    latest = row(
        "ai", 3, 2,
        metrics={
            "score/j": interval(0.65), "score/j/kind": interval(0.1),
            "win_rate_vs_initial/j": interval(0.3), "check/a": interval(0.8),
            "length/words": interval(6.5),
        },
        deltas={"initial": change},
        standing={"win_rate_vs_initial/j": "claimed", "length/words": "exploratory"},
    )  # fmt: skip
    last = [
        row("ai", 3, 2, words=["It is fair."], made_of=["Of length."]),
        row("ai", 8, 1, words=["It is not."]),
    ]
    claims = Claims(adjusted={"ai|score/j": 0.25, "people|score/j": 0.75})
    found = dict(summarise_arm(latest, last, Page([], [], [], [], claims)))
    assert found["What the judges say"] == [
        "score/j: 0.400 to 0.600, +0.200 [+0.190, +0.210]; no change is claimed "
        "(p = 0.25 by Holm).",
        "win_rate_vs_initial/j: 0.300 [0.290, 0.310]; claimed: below par.",
    ]
    assert found["Checks that nothing was trained on"] == [
        "check/a: 0.500 to 0.800, +0.300 [+0.290, +0.310]."
    ]
    assert found["The policy as its own judge"] == ["Seed 3: It is fair.", "Seed 8: It is not."]
    assert found["What the changes of the scores are made of"] == ["Seed 3: Of length."]
    assert found["Length"][0].startswith("length/words: 9.000 to 6.000, -3.000")
    assert found["Length"][0].endswith("it stands out among the other figures (exploratory).")


def test_a_training_shows_its_own_points_limits_and_arms(drawn: dict[str, list[Any]]) -> None:
    training = RolloutRow(
        seed=8, arms=["ai", "mixed"], round=2, id="grpo",
        points=[(1, {"reward": 0.25, "kl": 1.5}), (3, {"reward": 0.75, "length": 12.0})],
        limits={"kl": {"warn": [2.5], "stop": [7.5]}}, reached=["KL reached 2.5"],
        cost_limits={},
    )  # fmt: skip
    [(title, words, figures)] = _draw_trainings([training], by_arm=True)
    assert title == "grpo, seed 8, round 2, arm ai mixed"
    assert _draw_trainings([training], by_arm=False)[0][0] == "grpo, seed 8, round 2"
    assert words == [
        "The mean reward went from 0.250 to 0.750 in 2 rollouts.",
        "KL reached 2.5.",
    ]
    assert [f.caption for f in figures] == ["Reward", "KL to the reference", "Length"]
    assert drawn["draw_rollouts"][1][0] == (
        f"KL to the reference over 1 rollouts of {title}: 1.500 to 1.500"
    )


LABELLED: dict[str, ArmRow] = {
    "people": {"labels": "human", "flip": 0.0, "judges": []},
    "own": {"labels": "own", "flip": 0.0, "judges": ["own"]},
    "sum": {"labels": "ai", "flip": 0.0, "judges": ["own", "third"]},
}


def arms_view(**keys: Any) -> RunView:
    rounds = [row("people", 3, 0, metrics={"score/own": interval(0.2), "kl/x": interval(0.0)})]
    for place, arm in enumerate(LABELLED, 1):
        metrics = {"score/own": interval(0.2 + place / 10), "kl/x": interval(place)}
        deltas = {"initial": {"score/own": interval(place / 10, p=0.001)}}
        rounds.append(row(arm, 3, 1, metrics=metrics, deltas=deltas))
    wide = {"low": 0.16, "high": 0.24, "se": 0.02, "df": 63, "n": 64}
    deltas = {
        "people/own": {"score/own": interval(0.9), "score/third": interval(0.2, **wide)},
        "people/sum": {"score/own": interval(0.8), "score/third": interval(0.7)},
        "own/sum": {"score/own": interval(0.6)},
    }
    labels = {two: {} for two in deltas}
    comparison = {"seed": 3, "round": 1, "arms": list(LABELLED), "labels": labels, "deltas": deltas}
    known: dict[str, Any] = {"rounds": rounds, "comparisons": [comparison], "arms": LABELLED}
    return RunView("run", "", "done", "", {}, **(known | keys))


def test_a_page_of_arms_takes_margin_primary_and_labellers_from_the_run(
    tmp_path: Path, drawn: dict[str, list[Any]]
) -> None:
    def text_of(**keys: Any) -> str:
        text = build_report(arms_view(**keys), tmp_path / "page.html").read_text("utf-8")
        text = re.sub(r"<[^>]+>", "", text.replace("<wbr>", ""))
        return " ".join(text.replace("\u2212", "-").split())

    text = text_of(margin=0.3, trained=["own"])
    assert "Arm own is better than arm people in score/third, by less than the margin (" in text
    assert "margin 0.300" in text
    assert "No neutral judge evaluates arm sum against arm people" in text
    assert "who labelled: own, third" in text
    assert "this judge labelled arms own, sum" in text
    assert "Primary: score/own." in text
    text = text_of(margin=0.05, primary=["kl/x", "score/own"], trained=["z"])
    assert "Arm own is better than arm people in score/third" in text
    assert "Primary: kl/x, score/own." in text


def test_the_terminal_lays_arms_side_by_side_and_marks_their_judges() -> None:
    view = arms_view()
    page = make_page(view.rounds, view.comparisons, view.values, ["score/own"], [])
    table = summary_table(view.rounds, page, {"own": "labelled arms own, sum"})
    assert [str(c.header) for c in table.columns] == ["metric", "M0", "people", "own", "sum"]
    cells = [[str(c) for c in column.cells] for column in table.columns]
    found = {name: [c[:5] for c in values] for name, *values in zip(*cells, strict=True)}
    assert found == {
        "score/own †": ["0.200", "0.300", "0.400", "0.500"],
        "kl/x": ["0.000", "1.000", "2.000", "3.000"],
    }
    assert "+0.200" in cells[3][0] and "+0.300" in cells[4][0]
    assert "the judge 'own' labelled arms own, sum: it is not neutral there" in str(table.caption)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What each plot is given, by the plot's function."""
    found: dict[str, list[Any]] = {}

    def record(name: str) -> Any:
        return lambda *given, **named: found.setdefault(name, []).append((*given[1:], named)) or ""

    for name in ("draw_curve", "draw_arms", "draw_rollouts", "draw_distributions"):
        monkeypatch.setattr(f"rlaif.report.plots.{name}", record(name))
    return found


def test_plots_are_given_their_own_points_pars_and_limits(drawn: dict[str, list[Any]]) -> None:
    rounds = [
        row(
            "main", seed, number,
            metrics={"score/j": interval(mean), "win_rate_vs_initial/j": interval(mean / 2)},
        )
        for seed, number, mean in ((8, 1, 0.4), (3, 0, 0.1), (3, 2, 0.3), (8, 0, 0.2))
    ]  # fmt: skip
    figures = dict(_draw_curves(rounds))["Judged scores"]
    assert [f.caption for f in figures] == ["score/j", "win_rate_vs_initial/j"]
    (label, score, names, par, _), (_, wins, _, half, _) = drawn["draw_curve"]
    assert names == {0: "M0", 1: "M1", 2: "M2"}
    assert label == "score/j over rounds: 0.100, 0.300, 0.200, 0.400"
    assert score == {
        "3": [(0, interval(0.1)), (2, interval(0.3))],
        "8": [(0, interval(0.2)), (1, interval(0.4))],
    }
    assert wins["8"] == [(0, interval(0.1)), (1, interval(0.2))] and (par, half) == (None, 0.5)
    training = RolloutRow(
        seed=8, arms=["ai"], round=2, id="grpo",
        points=[(1, {"reward": 0.25, "kl": 1.5}), (3, {"reward": 0.75, "kl": 2.0})],
        limits={"kl": {"warn": [2.5], "stop": [7.5]}}, reached=[], cost_limits={},
    )  # fmt: skip
    _draw_trainings([training], by_arm=False)
    assert drawn["draw_rollouts"] == [
        (
            "Reward over 2 rollouts of grpo, seed 8, round 2: 0.250 to 0.750",
            [(1, 0.25), (3, 0.75)],
            [],
            {},
        ),
        (
            "KL to the reference over 2 rollouts of grpo, seed 8, round 2: 1.500 to 2.000",
            [(1, 1.5), (3, 2.0)],
            [2.5, 7.5],
            {},
        ),
        (
            "Reward over the root of KL of grpo, seed 8, round 2: 0.250 at 1.225 to 0.750 at 1.414",
            [(math.sqrt(1.5), 0.25), (math.sqrt(2.0), 0.75)],
            {"whole": False},
        ),
    ]


def test_distributions_and_arms_are_drawn_of_their_own_values(
    drawn: dict[str, list[Any]],
) -> None:
    shown = gather_shown(sources([]), by_arm=True)
    figures = _draw_distributions(arms_view(shown=shown))
    assert [f.caption for f in figures] == [
        "Length of held-out answers",
        "Scores by a",
        "Scores by b",
        "Combined score of the chosen answers",
        "Combined score of the rejected answers",
    ]
    given = [(values, unit) for _, values, unit, _ in drawn["draw_distributions"]]
    assert given == [
        (shown.lengths, "words"),
        (shown.scores["a"], "score"),
        (shown.scores["b"], "score"),
        (shown.pair_scores["chosen"], "score"),
        (shown.pair_scores["rejected"], "score"),
    ]
    view = arms_view()
    page = make_page(view.rounds, view.comparisons, view.values, None, ["own"])
    assert [f.caption for f in _arm_figures(page)] == ["score/own", "kl/x"]
    (label, points, par, _), (_, distances, _, _) = drawn["draw_arms"]
    assert label == "score/own by arm: 0.200, 0.300, 0.400, 0.500" and par is None
    assert {name: i["mean"] for name, i in points.items()} == pytest.approx(
        {"M0": 0.2, "people": 0.3, "own": 0.4, "sum": 0.5}
    )
    assert [i["mean"] for i in distances.values()] == [0.0, 1.0, 2.0, 3.0]
