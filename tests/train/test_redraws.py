"""Dynamic sampling: which groups count, how often others are asked, and what is left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlaif.train.redraws import Drawn, Redraw, draw_groups
from rlaif.train.rollout import Answer, Group
from tests.support.on_policy import collector, learn, low_tokens, options_of


def group(name: str, *rewards: float | None, together: str | None = None) -> Group:
    answers = tuple(Answer([1], [-1.0], (r,), True) for r in rewards)
    return Group(name, [9], answers, together=together)


def rewards_of(groups: Sequence[Group]) -> list[list[float | None]]:
    return [[a.values[0] for a in g.answers] for g in groups]


def drawn_from(
    draws: Sequence[Sequence[Group]], most: int
) -> tuple[Drawn, list[tuple[int, int, list[str]]]]:
    """What comes of these draws, and what each redraw was of."""
    asked = []

    def draw(redraw: Redraw | None) -> Sequence[Group]:
        if redraw is None:
            return draws[0]
        asked.append((redraw.place, redraw.count, sorted(redraw.asked)))
        return draws[redraw.place] if redraw.place < len(draws) else []

    return draw_groups(draw, rewards_of, most), asked


def names(groups: Sequence[Group]) -> list[str]:
    return [g.prompt_id for g in groups]


@pytest.mark.parametrize(
    ("rewards", "counts"),
    [
        ((0.5, 0.5, 0.5, 0.5), False),
        ((0.0, 0.0, 0.0, 4.0), True),
        ((0.0, 0.0, 0.0, 0.0), False),
        ((1.0, 1.0, 1.0, 1.0), False),
        ((1.0, None, None, None), False),
        ((1.0, 0.0, None, None), True),
        ((None, None, None, None), False),
    ],
    ids=["middle", "one high", "all 0", "all 1", "one alone", "two", "none"],
)
def test_a_group_counts_where_its_rewards_differ(
    rewards: tuple[float | None, ...], counts: bool
) -> None:
    found, asked = drawn_from([[group("a", *rewards), group("b", 0.0, 1.0)]], 1)
    assert names(found.groups) == (["a", "b"] if counts else ["b"])
    assert found.flat == (0.0 if counts else 0.5)
    assert asked == ([] if counts else [(1, 1, ["a", "b"])])


def test_only_as_many_as_are_missing_are_asked_until_the_rollout_is_full() -> None:
    draws = [
        [group("a", 1, 1), group("b", 0, 1), group("c", 0, 0)],
        [group("d", 0, 1), group("e", 0, 0)],
        [group("f", 1, 0)],
        [group("g", 1, 0)],
    ]
    found, asked = drawn_from(draws, 9)
    assert names(found.groups) == ["b", "d", "f"]
    assert names(found.every) == ["a", "b", "c", "d", "e", "f"]
    assert found.flat == 0.5
    assert asked == [(1, 2, ["a", "b", "c"]), (2, 1, ["a", "b", "c", "d", "e"])]


def test_the_bound_and_the_prompts_end_it() -> None:
    draws = [[group("a", 1, 1), group("b", 0, 1)], [group("c", 1, 1)], [group("d", 0, 1)]]
    for most, left in ((1, ["b"]), (2, ["b", "d"])):
        found, asked = drawn_from(draws, most)
        assert (names(found.groups), len(asked)) == (left, most)
    found, asked = drawn_from(draws[:2], 9)
    assert (names(found.groups), len(asked)) == (["b"], 2)


def test_where_no_rewards_differ_the_first_draw_is_learned_from() -> None:
    found, _ = drawn_from([[group("a", 1, 1)], [group("b", 0, 0)]], 1)
    assert (names(found.groups), found.flat) == (["a"], 1.0)


def test_prompts_that_belong_together_stay_so() -> None:
    both = [group("a", 1, 1, together="x"), group("b", 0, 1, together="x")]
    found, asked = drawn_from([both], 1)
    assert (names(found.groups), asked) == (["a", "b"], [])
    assert found.flat == 0.5


@pytest.mark.parametrize("running", [False, True])
def test_a_resumed_training_redraws_the_same(tmp_path, make_model, running) -> None:  # type: ignore[no-untyped-def]
    """Also with moments over all answers, which those that are not learned from are among."""
    term = {"judge": "r", "normalise": "running" if running else "none"}
    options = options_of(
        "grpo", rollouts=4, checkpoint_every=2, n=2, resample=2, rewards=[term], beta=0.0
    )
    real = collector(make_model(0), options, lambda ids: round(low_tokens(ids)))
    seen: list[tuple[int, int]] = []
    values: list[float] = []

    def collect(number, model, redraw=None):  # type: ignore[no-untyped-def]
        seen.append((number, redraw.place if redraw else 0))
        groups = real(100 * redraw.place + number if redraw else number, model)
        if redraw:
            # Prompts of another rollout, under names of their own.
            other = groups[: redraw.count]
            groups = [replace(g, prompt_id=f"{redraw.place}/{g.prompt_id}") for g in other]
        values.extend(a.values[0] for g in groups for a in g.answers)
        return groups

    learn(make_model(0), tmp_path / "a", options, collect=collect)
    whole, seen[:] = list(seen), []
    if running:
        last = _rows(tmp_path / "a")[-1]
        assert last["normal_mean/r"] == pytest.approx(sum(values) / len(values))

    def stop(progress) -> None:  # type: ignore[no-untyped-def]
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(make_model(0), tmp_path / "b", options, collect=collect, progress=stop)
    seen[:] = []
    learn(make_model(0), tmp_path / "b", options, collect=collect)
    assert seen == [call for call in whole if call[0] >= 2]
    assert any(place for _, place in whole)
    one, two = (load_file(tmp_path / f"{x}/out/masters/model.safetensors") for x in "ab")
    assert all(torch.equal(one[n], two[n]) for n in one)
    rows = _rows(tmp_path / "b")
    without = [{k: v for k, v in row.items() if k != "timing"} for row in _rows(tmp_path / "a")]
    assert [{k: v for k, v in row.items() if k != "timing"} for row in rows] == without
    assert all(row["prompts_drawn"] >= 4 for row in rows)
    assert any(row["prompts_drawn"] > 4 and row["flat_groups"] > 0 for row in rows)


def _rows(folder: Path) -> list[dict[str, float]]:
    text = (folder / "work/metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
