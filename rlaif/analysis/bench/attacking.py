"""Labelled pairs judged again with an attack in one of the answers, and what that changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from rlaif.analysis.bench.entrants import Entrant
from rlaif.analysis.bench.judging import Judged
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Completion, Judgement, content_hash
from rlaif.judges.attacks import ATTACKS, NAMING, Aim, Slot, aim_of
from rlaif.judges.base import Judge
from rlaif.metrics.judge_figures import Attacked, attack_intervals
from rlaif.metrics.verdicts import Cost, Verdict
from rlaif.preferences.aggregate import candidate_scores

Ask = Callable[[Sequence[LabelledPair], Sequence[Judgement]], Judged]
"""From pairs, and judgements that are known, to the pairs judged."""


@dataclass(frozen=True, slots=True)
class Planted:
    """One attack as it is measured: its name in the result, and the slot that it names."""

    name: str
    attack: str
    slot: Slot | None = None


def plan_attacks(judge: Judge, names: Sequence[str]) -> list[Planted]:
    """The attacks on a judge: what names a verdict names each slot's in turn, where it compares."""
    found = []
    slots: tuple[Slot, ...] = ("first", "second")
    for name in names:
        if judge.comparative and name in NAMING:
            found += [Planted(f"{name}/{slot}", name, slot) for slot in slots]
        else:
            found.append(Planted(name, name))
    return found


def measure_attack(
    entrant: Entrant,
    one: Planted,
    pairs: Sequence[LabelledPair],
    clean: Judged,
    ask: Ask,
    seed: int,
) -> tuple[dict[str, Any] | None, Cost]:
    """What an attack on the answer found worse changed, each figure with its interval, of how many
    attacked pairs (a count and a share) the judge then gave no verdict; and the cost. None where
    there is no pair to attack."""
    aim = aim_of(entrant.judge, one.slot)
    places = [n for n, said in enumerate(clean.verdicts) if said.prob is not None]
    if not places:
        return None, Cost()
    sides = [_worse_is_first(pairs[n], clean.verdicts[n], seed) for n in places]
    changed = [
        _plant_attack(pairs[n], first, one.attack, aim, seed)
        for n, first in zip(places, sides, strict=True)
    ]
    judged = ask(changed, clean.judgements)
    missing = sum(said.prob is None for said in judged.verdicts)
    rows = [
        Attacked(
            pairs[n].prompt.prompt_id,
            first,
            clean.verdicts[n],
            said,
            _score_of_answer(clean.judgements, _answer_on_side(pairs[n], first), entrant),
            _score_of_answer(judged.judgements, _answer_on_side(pair, first), entrant),
        )
        for n, first, pair, said in zip(places, sides, changed, judged.verdicts, strict=True)
    ]
    found = attack_intervals(rows, one.slot)
    counts = {"attacked": len(rows), "missing": missing, "missing_share": missing / len(rows)}
    return {**{name: i.to_json() for name, i in found.items()}, **counts}, judged.cost


def _worse_is_first(pair: LabelledPair, said: Verdict, seed: int) -> bool:
    """Whether the first answer is attacked: the one that the judge, or where it tied the label,
    found worse; else either, by the pair's id."""
    for prob in (said.prob, pair.label):
        if prob is not None and prob != 0.5:
            return prob < 0.5
    return int(content_hash("side", seed, pair.pair_id), 16) % 2 == 0


def _answer_on_side(pair: LabelledPair, first: bool) -> Completion:
    return pair.first if first else pair.second


def _plant_attack(
    pair: LabelledPair, first: bool, attack: str, aim: Aim, seed: int
) -> LabelledPair:
    own = int(content_hash("attack", seed, pair.pair_id, length=8), 16)
    answer = _answer_on_side(pair, first)
    text = ATTACKS[attack](answer.text, own, aim)
    made = structs.replace(
        answer,
        completion_id="x_" + content_hash(answer.completion_id, text),
        messages=[{"role": "assistant", "content": text}],
        digest=content_hash(text),
    )
    return replace(pair, first=made) if first else replace(pair, second=made)


def _score_of_answer(
    judgements: Sequence[Judgement], answer: Completion, entrant: Entrant
) -> float | None:
    """An answer's own score; None where the judge compares, or gave none."""
    own = [j for j in judgements if j.subject == answer.completion_id and len(j.shown) == 1]
    return candidate_scores(own, entrant.weights).get(answer.completion_id) if own else None
