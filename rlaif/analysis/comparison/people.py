"""A judge beside people who voted on the same pairs: whether it agrees with them as they agree with
one another, whether it may stand in for one, and what its disagreement is associated with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rlaif.analysis.comparison.agree import agreement_of
from rlaif.analysis.comparison.pairs import UNNAMED, Compared, Source
from rlaif.constitution import textstats
from rlaif.metrics.alt_test import VotedItem, run_alt_test
from rlaif.metrics.disagreement import (
    MIN_PAIRS,
    Disagreement,
    VotedPairs,
    differing_votes,
    explain_disagreement,
)
from rlaif.metrics.intervals import IntervalJson
from rlaif.metrics.people import measure_ceiling, verdict_code
from rlaif.metrics.weighted import Floats


def person_row(compared: Compared, judge: Source, people: Source) -> dict[str, Any]:
    """How often the judge agrees with a person drawn at random, two people with one another, on the
    same pairs, and the difference; `figures` is None without a pair that two people and the judge
    decided. A tie on either side counts one half. `agreement` is with the people's majority."""
    voted = {n: own for n, own in people.votes.items() if n in judge.probs and len(own) > 1}
    counts = [
        np.bincount([*map(verdict_code, own.values())], minlength=3) for own in voted.values()
    ]
    ceiling = measure_ceiling(
        judge.name,
        np.asarray(counts, dtype=np.float64).reshape(-1, 3),
        np.asarray([verdict_code(judge.probs[name]) for name in voted], dtype=np.int64),
        [compared.pairs[name].prompt_id for name in voted],
    )
    names = [n for n in compared.pairs if n in judge.probs and n in people.probs]
    label = agreement_of(compared, people.probs, judge.probs, names, ("agreement",))
    return {
        "judge": judge.name,
        "people_of": people.name,
        "pairs": len(voted),
        "figures": ceiling
        and {
            "judge": ceiling.judged.to_json(),
            "person": ceiling.people.to_json(),
            "difference": ceiling.difference.to_json(),
        },
        "agreement": label.get("agreement"),
    }


def alt_test_row(
    compared: Compared, judge: Source, people: Source, epsilon: float
) -> dict[str, Any]:
    """The alternative annotator test, as JSON; `refusal` says why there is none."""
    items = [
        VotedItem(compared.pairs[name].prompt_id, judge.probs[name], votes)
        for name, votes in people.votes.items()
        if name in judge.probs and len(votes) > 1
    ]
    unnamed = any(person.startswith(UNNAMED) for item in items for person in item.votes)
    result = run_alt_test([] if unnamed else items, epsilon)
    row = asdict(result) | {"judge": judge.name, "people_of": people.name}
    if unnamed:
        row["refusal"] = "people have no names: nobody's votes can be told from another's"
    return row


def disagreement_row(
    compared: Compared, judge: Source, people: Source, seed: int
) -> dict[str, Any]:
    """What the judge's disagreement with people is associated with, as JSON; `refusal` says why
    there is no such row."""
    row: dict[str, Any] = {"judge": judge.name, "people_of": people.name}
    both = [n for n in compared.pairs if n in judge.probs and n in people.probs]
    known = [n for n in both if compared.pairs[n].texts is not None]
    voted = [n for n in known if len(people.votes.get(n, ())) > 1]
    # Only pairs with two votes have a ceiling; without enough of them, all pairs and no ceiling.
    names = voted if len(voted) >= MIN_PAIRS else known
    if len(names) < MIN_PAIRS:
        lacking = " with known texts" if len(known) < len(both) else ""
        row["refusal"] = f"{len(names)} pairs in common{lacking}; {MIN_PAIRS} are needed"
        return row
    if len({compared.pairs[name].prompt_id for name in names}) < 2:
        row["refusal"] = "all pairs are of one prompt: nothing can be held out"
        return row
    found = explain_disagreement(_voted_pairs(compared, judge, people, names), seed)
    if found.ceiling is None:
        row["no_ceiling"] = (
            f"{len(voted)} pairs have two votes and {MIN_PAIRS} are needed, so the ceiling that "
            "people's own disagreement sets is not known, and there are no shares of a gap"
        )
    return row | _to_json(found)


def _voted_pairs(
    compared: Compared, judge: Source, people: Source, names: Sequence[str]
) -> VotedPairs:
    texts = [compared.pairs[name].texts or ("", "") for name in names]
    slots = [[source.slots.get(name, 0.0) for source in (judge, people)] for name in names]
    return VotedPairs(
        [compared.pairs[name].prompt_id for name in names],
        compared.column(people.probs, names),
        np.asarray([differing_votes(list(people.votes.get(n, {}).values())) for n in names]),
        compared.column(judge.probs, names),
        {**text_features(texts), "position": np.asarray(slots, dtype=np.float64)},
    )


def text_features(texts: Sequence[tuple[str, str]]) -> dict[str, Floats]:
    """The first answer less the second, by group: length (characters, and their logarithm), format
    (lists, headings, code, bold) and refusal, (n, k) each."""
    measures: Mapping[str, Any] = {
        "length": lambda text: [len(text), np.log1p(len(text))],
        "format": lambda text: [
            textstats.has_list(text),
            bool(textstats.headings(text)),
            "```" in text,
            "**" in text,
        ],
        "refusal": lambda text: [textstats.is_refusal(text)],
    }
    return {
        group: np.asarray(
            [np.subtract(*np.asarray([measure(a), measure(b)], dtype=float)) for a, b in texts]
        )
        for group, measure in measures.items()
    }


def _to_json(found: Disagreement) -> dict[str, Any]:
    def shown(value: Any) -> IntervalJson | None:
        return None if value is None else value.to_json()

    return {
        "pairs": found.pairs,
        "alone": shown(found.alone),
        "full": shown(found.full),
        "ceiling": shown(found.ceiling),
        "bounds": found.bounds,
        "gap": shown(found.gap),
        "parts": {name: shown(part) for name, part in found.parts.items()},
        "shares": found.shares,
        "constant": list(found.constant),
    }
