"""The pairs that a judge got wrong, with what it said, for reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.analysis.bench.judging import Judged
from rlaif.core.groups import group_by
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Judgement, to_json
from rlaif.core.store import Store
from rlaif.metrics.verdicts import Verdict
from rlaif.report.browser import clip_text, format_conversation, judgement_entry

FILE = "mistakes.jsonl"
MOST = 100
"""Pairs that are kept of each judge, the surest mistakes first."""
NEAR, FAR = 1.1, 2.0
"""Lengths within a factor of NEAR are alike; beyond FAR one is far longer."""


def find_mistakes(
    judge: str, pairs: Sequence[LabelledPair], judged: Judged, store: Store
) -> list[dict[str, Any]]:
    """JSON-ready, the pairs on which judge and label decided for different answers, the surest
    first, `MOST` of them; each says of how many (`of`)."""
    wrong = [
        (abs(v.prob - 0.5), pair, v)
        for pair, v in zip(pairs, judged.verdicts, strict=True)
        if pair.label is not None and v.prob is not None and (pair.label - 0.5) * (v.prob - 0.5) < 0
    ]
    wrong.sort(key=lambda item: (-item[0], item[1].pair_id))
    said = group_by(judged.judgements, lambda j: frozenset(j.shown))
    kept = [(pair, v, _find_said(pair, said)) for _, pair, v in wrong[:MOST]]
    calls = {call for *_, own in kept for j in own for call in j.rests_on}
    behind = {}
    for row in store.step(judged.step).rows("answers") if calls else ():
        if row["call_id"] in calls:
            behind[row["call_id"]] = row
    found = []
    for pair, verdict, own in kept:
        first_better = (pair.label or 0.0) > 0.5
        better, worse = (pair.first, pair.second) if first_better else (pair.second, pair.first)
        label, prob = pair.label or 0.0, verdict.prob or 0.0
        rows = [(j.shown, judgement_entry(to_json(j), behind, better.completion_id)) for j in own]
        found.append(
            {
                "id": pair.pair_id,
                "place": pair.place,
                "judge": judge,
                "subset": pair.subset or "",
                "gap": gap_words(len(worse.text), len(better.text)),
                "order": order_words(verdict, own, first_better),
                "label": label if first_better else 1 - label,
                "prob": prob if first_better else 1 - prob,
                "prompt": clip_text(format_conversation(to_json(pair.prompt)["messages"])),
                "better": clip_text(better.text),
                "picked": clip_text(worse.text),
                "lengths": [len(better.text), len(worse.text)],
                "judged_both": [row for shown, row in rows if len(shown) > 1],
                "judged_better": [row for shown, row in rows if shown == [better.completion_id]],
                "judged_picked": [row for shown, row in rows if shown == [worse.completion_id]],
                "of": len(wrong),
            }
        )
    return found


def _find_said(
    pair: LabelledPair, said: Mapping[frozenset[str], list[Judgement]]
) -> list[Judgement]:
    """What was said of the two answers together, or of each."""
    ids = [pair.first.completion_id, pair.second.completion_id]
    together = said.get(frozenset(ids), [])
    return together or [j for name in ids for j in said.get(frozenset([name]), [])]


def gap_words(picked: int, better: int) -> str:
    """How the picked answer's length compares with the better one's, both in characters."""
    short, long = sorted((max(picked, 1), max(better, 1)))
    if long <= NEAR * short:
        return "picked one of like length"
    far = "far " if long > FAR * short else ""
    return f"picked the {far}{'longer' if picked > better else 'shorter'}"


def order_words(verdict: Verdict, said: Sequence[Judgement], first_better: bool) -> str:
    """In which presentation orders the judge went wrong."""
    if not any(len(j.shown) > 1 for j in said):
        return "answers judged one by one"
    sides = [(verdict.as_first, first_better), (verdict.as_second, not first_better)]
    # Of each order that decided: whether the better answer was shown first, and whether it lost.
    seen = [
        (shown_first, (prob > 0.5) != first_better)
        for prob, shown_first in sides
        if prob is not None and prob != 0.5
    ]
    lost = [shown_first for shown_first, wrong in seen if wrong]
    if len(seen) == 2 and len(lost) == 2:
        return "wrong in both orders"
    if len(lost) == 1:
        of_two = "wrong in one order, " if len(seen) == 2 else ""
        return f"{of_two}better answer shown {'first' if lost[0] else 'second'}"
    return "wrong on the whole"
