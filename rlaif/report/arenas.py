"""What the `arena` steps of a run found, as tables of its report and of a page of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.metrics.intervals import IntervalJson
from rlaif.report.view import ArenaRow

Ends = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class RatedModel:
    """A model of an arena: its three ratings, each with the ends of its interval (None: no limit,
    or the anchor, whose rating is by definition)."""

    name: str
    is_anchor: bool
    battles: int
    prompts: int
    rating: float
    rating_ends: Ends
    style: float
    style_ends: Ends
    elo: float
    elo_ends: Ends


@dataclass(frozen=True, slots=True)
class ArenaGroup:
    """Models that battles link, best first, and what a standard deviation of each feature of style
    is worth in rating points."""

    anchor: str | None
    models: list[RatedModel]
    effects: dict[str, float]


@dataclass(frozen=True, slots=True)
class ArenaTable:
    """One arena as pages show it. `matrix` has for each model, as in `names`, the share of battles
    that it won against each, with how many were judged; None against itself or where none was."""

    title: str
    judge: str
    prompts: int
    battles: int
    judged: int
    ties: int
    slot_one: IntervalJson | None
    unrated: list[str]
    groups: list[ArenaGroup]
    names: list[str]
    matrix: list[tuple[str, list[tuple[IntervalJson | None, int] | None]]]


def make_arena_tables(arenas: Sequence[ArenaRow], by_arm: bool) -> list[ArenaTable]:
    """A table of each arena, in the order of the run."""
    return [make_arena_table(row, by_arm) for row in arenas]


def make_arena_table(row: ArenaRow, by_arm: bool = False) -> ArenaTable:
    """The arena of a finished step."""
    result = row["result"]
    arms = f", arm {' '.join(row['arms'])}" if by_arm else ""
    groups = [_make_group(group) for group in result["groups"]]
    names = [model.name for group in groups for model in group.models]
    return ArenaTable(
        title=f"{row['id']}, seed {row['seed']}, round {row['round']}{arms}",
        judge=result["judge"],
        prompts=result["prompts"],
        battles=result["battles"],
        judged=result["judged"],
        ties=result["ties"],
        slot_one=result["slot_one"],
        unrated=result["unrated"],
        groups=groups,
        names=names,
        matrix=_make_matrix(names, result["pairs"]),
    )


def _make_group(group: Mapping[str, Any]) -> ArenaGroup:
    style = {r["player"]: r for r in group["style"]["ratings"]}
    elo = {r["player"]: r for r in group["elo"]}
    models = [
        RatedModel(
            name=name,
            is_anchor=own["is_anchor"],
            battles=group["battles"][name],
            prompts=own["prompts"],
            rating=own["rating"],
            rating_ends=(own["low"], own["high"]),
            style=style[name]["rating"],
            style_ends=(style[name]["low"], style[name]["high"]),
            elo=elo[name]["rating"],
            elo_ends=(elo[name]["low"], elo[name]["high"]),
        )
        for own in group["ratings"]
        for name in (own["player"],)
    ]
    return ArenaGroup(group["anchor"], models, group["style"]["effects"])


def _make_matrix(
    names: Sequence[str], pairs: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[tuple[IntervalJson | None, int] | None]]]:
    cells: dict[tuple[str, str], tuple[IntervalJson | None, int]] = {}
    for pair in pairs:
        first, second, share = pair["first"], pair["second"], pair["share"]
        cells[first, second] = (share, pair["judged"])
        cells[second, first] = (_turn_share(share), pair["judged"])
    return [(one, [cells.get((one, other)) for other in names]) for one in names]


def _turn_share(share: IntervalJson | None) -> IntervalJson | None:
    """The share of battles that the other model won."""
    if share is None:
        return None
    low, high = share["low"], share["high"]
    ends = {"low": None if high is None else 1 - high, "high": None if low is None else 1 - low}
    return share | {"mean": 1 - share["mean"]} | ends  # type: ignore[return-value]
