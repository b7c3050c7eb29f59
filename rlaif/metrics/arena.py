"""What the battles of an arena say: ratings by three methods, who beats whom, and how the judge
treats positions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlaif.metrics.elo import elo_ratings
from rlaif.metrics.intervals import share_interval
from rlaif.metrics.ranking import Comparison, bradley_terry, connected_groups
from rlaif.metrics.style import StyledComparison, rate_with_style
from rlaif.metrics.winrate import Battle, win_rate_interval


@dataclass(frozen=True, slots=True)
class ArenaBattle:
    """Two models' answers to one prompt, and what the judge said of them.

    `prob_first` is the probability that the first is better, both orders averaged; None where an
    order has no verdict. `slot_one` is the mean probability of the answer that was shown first, 1/2
    for a judge without a bias. `chance` is the probability with which the battle was drawn, and
    `batch` the draw that it belongs to. Lengths are in characters, and outputs are digests.
    """

    prompt_id: str
    first: str
    second: str
    prob_first: float | None
    slot_one: float | None
    chance: float
    batch: int
    lengths: tuple[int, int]
    outputs: tuple[str, str]
    styles: tuple[Mapping[str, int], Mapping[str, int]]

    def as_battle(self) -> Battle:
        """The same for win rates, whose probability is the second's."""
        prob = None if self.prob_first is None else 1.0 - self.prob_first
        where = f"prompt {self.prompt_id}"
        sides = (self.first, self.second)
        return Battle(self.prompt_id, *sides, prob, self.lengths, self.outputs, where)


def measure_arena(
    battles: Sequence[ArenaBattle], models: Sequence[str], anchor: str | None, seed: int
) -> dict[str, Any]:
    """All figures as JSON. Models that no judged battles link are rated apart, each group by
    itself; a model without a verdict is in no group. Battles without a verdict count as missing
    and enter nothing else."""
    judged = [b for b in battles if b.prob_first is not None]
    fought = sorted({name for b in judged for name in (b.first, b.second)})
    groups = connected_groups(fought, [(b.first, b.second) for b in judged])
    groups.sort(key=lambda group: (-len(group), min(group)))
    slots: dict[str, list[float]] = defaultdict(list)
    for battle in judged:
        if battle.slot_one is not None:
            slots[battle.prompt_id].append(battle.slot_one)
    slot_one = share_interval({p: float(np.mean(v)) for p, v in slots.items()}, null=0.5)
    return {
        "models": list(models),
        "anchor": anchor,
        "battles": len(battles),
        "judged": len(judged),
        "ties": sum(b.prob_first == 0.5 for b in judged),
        "prompts": len({b.prompt_id for b in judged}),
        "slot_one": None if slot_one is None else slot_one.to_json(),
        "unrated": [name for name in models if name not in fought],
        "groups": [_rate_group(judged, group, anchor, seed) for group in groups],
        "pairs": _pair_shares(battles),
    }


def _rate_group(
    judged: Sequence[ArenaBattle], group: set[str], anchor: str | None, seed: int
) -> dict[str, Any]:
    own = [b for b in judged if {b.first, b.second} <= group]
    compared = [_compare(b) for b in own]
    zero = anchor if anchor in group else None
    styled = [StyledComparison(c, *b.styles) for c, b in zip(compared, own, strict=True)]
    at_style = rate_with_style(styled, zero)
    return {
        "anchor": zero,
        "battles": {n: sum(n in (b.first, b.second) for b in own) for n in sorted(group)},
        "ratings": [asdict(r) for r in bradley_terry(compared, zero)],
        "elo": [asdict(r) for r in elo_ratings(compared, seed)],
        "style": {
            "ratings": [asdict(r) for r in at_style.ratings],
            "effects": at_style.effects,
        },
    }


def _compare(battle: ArenaBattle) -> Comparison:
    assert battle.prob_first is not None, "of judged battles alone"
    return Comparison(battle.prompt_id, battle.first, battle.second, battle.prob_first)


def _pair_shares(battles: Sequence[ArenaBattle]) -> list[dict[str, Any]]:
    """By pair of models, the share that the first won, with its interval over prompts."""
    by_pair: dict[tuple[str, str], list[ArenaBattle]] = defaultdict(list)
    for battle in battles:
        by_pair[battle.first, battle.second].append(battle)
    found = []
    for (first, second), own in sorted(by_pair.items()):
        probs = np.asarray([b.prob_first for b in own if b.prob_first is not None])
        share = None
        if probs.size:
            share = win_rate_interval(probs, np.arange(probs.size)).to_json()
        found.append(
            {
                "first": first,
                "second": second,
                "battles": len(own),
                "judged": int(probs.size),
                "share": share,
            }
        )
    return found
