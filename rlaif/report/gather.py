"""What a page shows of a run's records, gathered in one reading of each: the figures are of all of
them, the texts are of a sample, which is the first by id (ids are hashes, so no order favours any).

Held are numbers and the ids of held-out answers; no more texts than are shown.
"""

from __future__ import annotations

import heapq
from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlaif.core.ids import IdSet
from rlaif.core.records import VALUED
from rlaif.report.browser import (
    MAX_ANSWERS,
    MAX_PAIRS,
    answer_entries,
    count_own_words,
    pair_entry,
)
from rlaif.report.view import HeldOutRow, Shown

Row = dict[str, Any]
About = Callable[[Collection[str]], Iterator[Row]]
"""The rows about some ids."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the records are read, each time anew.

    `preferences` are Preference JSON with `seed` and `arm`, `heldout` held-out answers with their
    Completion JSON. `judgements` are those of the completions with some ids, and `answers` the
    rows behind verdicts, by call id. `prompts` are Prompt JSON. `revisions` are the answers that
    were revised: their number, and the browser's entries of the first.
    """

    preferences: Callable[[], Iterator[Row]]
    heldout: Callable[[], Iterator[tuple[HeldOutRow, Row]]]
    judgements: About
    answers: About
    prompts: Callable[[], Iterator[Row]]
    revisions: Callable[[], tuple[int, list[Row]]] = lambda: (0, [])


@dataclass(slots=True)
class _Pairs:
    """Pairs as they are read: `kept` are the first by id."""

    total: int = 0
    kept: list[Row] = field(default_factory=list)
    scores: dict[str, dict[str, array[float]]] = field(
        default_factory=lambda: {"chosen": {}, "rejected": {}}
    )


@dataclass(slots=True)
class _Answers:
    """Held-out answers as they are read. `of` names the models of each answer, in most cases one,
    and `order` is the place of a model: its round, then where it came first."""

    total: int = 0
    chosen: list[tuple[str, int]] = field(default_factory=list)
    of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    order: dict[str, tuple[int, int]] = field(default_factory=dict)
    lengths: dict[str, array[float]] = field(default_factory=dict)


def gather_shown(sources: Sources, by_arm: bool) -> Shown:
    """What the page shows. `by_arm`: the scores of pairs are drawn by arm and not by round."""
    pairs = _read_pairs(sources.preferences(), by_arm)
    answers = _read_answers(sources.heldout())
    subjects = {row[key] for row in pairs.kept for key in ("chosen_id", "rejected_id")}
    judged, scores = _read_judgements(sources, answers, subjects)
    wanted = {call for rows in judged.values() for row in rows for call in row["rests_on"] or ()}
    behind: dict[str, Row] = {}
    for row in sources.answers(wanted) if wanted else ():
        # The last answer to a call is the one that was read.
        behind[row["call_id"]] = row
    revised, revisions = sources.revisions()
    return Shown(
        pairs_total=pairs.total,
        pairs=[pair_entry(row, judged, behind) for row in pairs.kept],
        answers_total=answers.total,
        answers=_shown_answers(sources, answers),
        revisions_total=revised,
        revisions=revisions,
        lengths=_in_order(answers.lengths, answers),
        scores={judge: _in_order(scores[judge], answers) for judge in sorted(scores)},
        pair_scores=pairs.scores,
    )


def _read_pairs(rows: Iterator[Row], by_arm: bool) -> _Pairs:
    found = _Pairs()
    seen: dict[tuple[int, str], IdSet] = defaultdict(IdSet)
    names: dict[str, tuple[int, int]] = {}
    smallest = _Smallest(MAX_PAIRS)
    for row in rows:
        if not seen[row["seed"], row["arm"]].is_new(row["preference_id"]):
            continue
        found.total += 1
        smallest.offer((str(row["preference_id"]), row["seed"], found.total), row)
        name = row["arm"] if by_arm else row.get("label", f"M{row['round']}")
        place = (row["round"], found.total)
        names[name] = min(names.get(name, place), place)
        for side, groups in found.scores.items():
            if row[f"score_{side}"] is not None:
                groups.setdefault(name, array("d")).append(row[f"score_{side}"])
    for side, groups in found.scores.items():
        found.scores[side] = {n: groups[n] for n in sorted(groups, key=names.__getitem__)}
    found.kept = smallest.values()
    return found


class _Smallest:
    """The values of the smallest keys that were offered."""

    def __init__(self, limit: int):
        self._limit = limit
        self._held: dict[Any, Any] = {}
        self._bound: Any = None

    def offer(self, key: Any, value: Any) -> None:
        """Keep the value, as long as its key is among the smallest."""
        if self._bound is not None and key > self._bound:
            return
        self._held[key] = value
        if len(self._held) >= 2 * self._limit:
            kept = heapq.nsmallest(self._limit, self._held)
            self._held = {key: self._held[key] for key in kept}
            self._bound = kept[-1]

    def keys(self) -> list[Any]:
        """The keys, the smallest first."""
        return heapq.nsmallest(self._limit, self._held)

    def values(self) -> list[Any]:
        """The values in the order of their keys."""
        return [self._held[key] for key in self.keys()]


def _read_answers(rows: Iterator[tuple[HeldOutRow, Row]]) -> _Answers:
    found = _Answers()
    seen: dict[int, set[str]] = defaultdict(set)
    smallest = _Smallest(MAX_ANSWERS)
    for place, (row, completion) in enumerate(rows):
        model, name = row["model"], row["completion_id"]
        if row["prompt_id"] not in seen[row["seed"]]:
            seen[row["seed"]].add(row["prompt_id"])
            found.total += 1
            smallest.offer((row["prompt_id"], row["seed"]), None)
        here = (row["round"], place)
        found.order[model] = min(found.order.get(model, here), here)
        found.of[name] = (*found.of.get(name, ()), model)
        words = count_own_words(completion)
        found.lengths.setdefault(model, array("d")).append(words)
    found.chosen = smallest.keys()
    return found


def _read_judgements(
    sources: Sources, answers: _Answers, subjects: set[str]
) -> tuple[dict[str, list[Row]], dict[str, dict[str, array[float]]]]:
    """The judgements of the subjects by subject, and the scores of held-out answers by judge and
    model."""
    judged: dict[str, list[Row]] = {}
    scores: dict[str, dict[str, array[float]]] = defaultdict(dict)
    seen: set[str] = set()
    for row in sources.judgements(subjects | answers.of.keys()):
        if row["judgement_id"] in seen:
            continue
        seen.add(row["judgement_id"])
        row.setdefault("rests_on", None)
        valued = row["status"] in VALUED and row.get("score") is not None
        for shown in row["shown"] if len(row["shown"]) > 1 else [row["subject"]]:
            if shown in subjects:
                judged.setdefault(shown, []).append(row)
            for model in answers.of.get(shown, ()) if valued else ():
                groups = scores[str(row["judge"])]
                groups.setdefault(model, array("d")).append(float(row["score"]))
    return judged, scores


def _in_order(groups: Mapping[str, array[float]], answers: _Answers) -> dict[str, array[float]]:
    return {name: groups[name] for name in sorted(groups, key=answers.order.__getitem__)}


def _shown_answers(sources: Sources, answers: _Answers) -> list[Row]:
    """An entry per shown prompt and seed: its answers by model, in the order of rounds and arms."""
    wanted = set(answers.chosen)
    prompts = {name for name, _ in wanted}
    texts = {p["prompt_id"]: p for p in sources.prompts() if p["prompt_id"] in prompts}
    given: dict[tuple[str, int], list[tuple[HeldOutRow, Row]]] = defaultdict(list)
    for row, completion in sources.heldout() if wanted else ():
        if (row["prompt_id"], row["seed"]) in wanted:
            given[row["prompt_id"], row["seed"]].append((row, completion))
    models = list(dict.fromkeys(answers.order))

    def sort_key(item: tuple[HeldOutRow, Row]) -> tuple[int, int, str]:
        row = item[0]
        return row["round"], models.index(row["model"]), row["completion_id"]

    chosen: Sequence[tuple[str, int]] = answers.chosen
    ordered = [(key, sorted(given[key], key=sort_key)) for key in chosen]
    return answer_entries(ordered, texts)
