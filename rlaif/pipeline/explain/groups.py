"""The rows of one node, and what they say of themselves in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rlaif.pipeline.explain.rows import Row
from rlaif.pipeline.explain.words import count_words
from rlaif.report.flow import rounds_in_words

SHOWN = {
    "completions": ("answer", "answers"),
    "judgements": ("judgement", "judgements"),
    "with_value": ("with a value", "with a value"),
    "preferences": ("pair", "pairs"),
    "pairs": ("labelled pair", "labelled pairs"),
    "records": ("record", "records"),
    "examples": ("training example", "training examples"),
    "steps": ("optimiser step", "optimiser steps"),
    "refused": ("left out", "left out"),
    "undecided": ("undecided", "undecided"),
    "tied_prompts": ("prompt without a winner", "prompts without a winner"),
    "critiques": ("critique", "critiques"),
    "tied_questions": ("question without a winner", "questions without a winner"),
    "failed": ("failed", "failed"),
    "calls": ("model call", "model calls"),
}
"""Counts that a node has, in this order, and what they count."""
BOUNDS = ("revise", "judge", "filter", "pair", "label", "load", "train", "distill")
"""Kinds of which a plan knows only the most that they may make."""
_MADE = {
    "sample": ("completions",),
    "revise": ("completions",),
    "judge": ("judgements", "with_value"),
    "filter": ("completions", "preferences", "judgements"),
    "pair": ("preferences",),
    "label": ("preferences",),
}
"""By kind the counts of which it matters that there are none."""
_NAMED = 3
"""Of more models in a row the first and the last are named."""

Key = tuple[str, str, str]
"""Stage, kind and id of a step of the file."""


@dataclass(eq=False)
class Group:
    """The rows of one node, those that it has planned for itself in `helpers`."""

    key: Key
    arms: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    helpers: list[Row] = field(default_factory=list)
    name: str = ""

    def runs(self) -> dict[tuple[int, int, tuple[str, ...]], list[Row]]:
        """The rows by seed, round and arms: of one step of the file, which may be several."""
        found: dict[tuple[int, int, tuple[str, ...]], list[Row]] = defaultdict(list)
        for row in self.rows:
            found[row.seed, row.round, row.arms].append(row)
        return found


def by_round(group: Group, own: set[int], words: Callable[[Row], tuple[str, ...]]) -> Iterable[str]:
    """Each phrase once, with its rounds and members of a pool where it does not hold for all."""
    rounds: dict[str, set[int]] = defaultdict(set)
    members: dict[str, set[str]] = defaultdict(set)
    for row in group.rows:
        for phrase in words(row):
            rounds[phrase].add(row.number)
            members[phrase].add(row.id.partition("/")[2])
    every = {row.id.partition("/")[2] for row in group.rows}
    for phrase, numbers in rounds.items():
        there = {number for number in numbers if number > 0}
        of = "" if members[phrase] == every else f"generator {', '.join(sorted(members[phrase]))}: "
        yield of + phrase + (f" ({rounds_in_words(there)})" if there and there != own else "")


def describe_counts(group: Group, planned: bool) -> Iterable[str]:
    """What one run of the step makes, or from the least to the most of several."""
    asks = any(row.models for row in (*group.rows, *group.helpers))
    totals: dict[str, list[int]] = {}
    for rows in group.runs().values():
        for name in dict.fromkeys(name for row in rows for name in row.counts):
            totals.setdefault(name, []).append(sum(row.counts.get(name, 0) for row in rows))
    measures = group.key[1] in ("evaluate", "average")
    if measures:
        # Several rounds share some of what is asked: M0 is measured once.
        seeds = {row.seed for row in group.helpers}
        asked = [r for r in group.helpers if r.models]
        calls = [sum(r.counts.get("calls", 0) for r in asked if r.seed == s) for s in seeds]
        totals = {"calls": calls}
    said = []
    for name, (one, many) in SHOWN.items():
        values = totals.get(name, [])
        none = not any(values) and not (values and name in _MADE.get(group.key[1], ()))
        if none or (name == "calls" and not asks):
            continue
        span = count_words(max(values), one, many)
        said.append(span if min(values) == max(values) else f"{min(values):,} to {span}")
    if said:
        most = "at most " if planned and group.key[1] in BOUNDS else ""
        total = " in all" if measures else ""
        again = len({row.round for row in group.rows}) > 1 and not total
        yield f"{most}{', '.join(said)}{' a round' if again else total}"


def name_role(role: str) -> str:
    """The role of a model: "judge/ID" is that of a reward's judge."""
    name, _, rest = role.partition("/")
    return name if rest.isdigit() else role.replace("/", " ")


def name_models(labels: Iterable[str], joint: str) -> str:
    """Different labels in their order: "M0, then M1"; of many the first and the last."""
    names = list(dict.fromkeys(labels))
    if len(names) > _NAMED:
        return f"{names[0]} ... {names[-1]}"
    head, last = ", ".join(names[:-1]), "".join(names[-1:])
    comma = "," if joint == "then" else ""
    return f"{head}{comma} {joint} {last}" if head else last


def describe_models(group: Group) -> Iterable[str]:
    """The models that a step uses and makes, by role, in the order of rounds."""
    by_role: dict[str, list[str]] = defaultdict(list)
    for row in sorted(group.rows, key=lambda row: row.round):
        for role, (label, _) in row.models.items():
            by_role[role if role.startswith("judge/") else name_role(role)].append(label)
    if group.key[1] == "judge" and not by_role:
        yield "by a program"
    for role, labels in by_role.items():
        verbs = {"start": "from", "by": "by", "made": "makes", "last": "or keeps"}
        verbs |= {"round": "of", "member": "of"}
        verb = verbs.get(role)
        words = verb or (f"{name_role(role)} by" if role.startswith("judge/") else role)
        yield f"{words} {name_models(labels, 'and' if role in ('made', 'member') else 'then')}"


def in_parentheses(text: str) -> str:
    """The text after a blank, and nothing of none."""
    return f" ({text})" if text else ""
