"""What differs between two constitutions, principle by principle."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.constitution.model import (
    CHECKED_FIELDS,
    JUDGED_FIELDS,
    Constitution,
    Principle,
    principle_hash,
)


@dataclass(frozen=True, slots=True)
class Change:
    """One principle added or removed, or one field of it changed from `old` to `new`.

    `judged_again`: its stored judgements do not hold for the new constitution.
    """

    principle: str
    kind: Literal["added", "removed", "changed"]
    field: str | None = None
    old: Any = None
    new: Any = None
    judged_again: bool = False

    def __str__(self) -> str:
        if self.field is None:
            return f"{'+' if self.kind == 'added' else '-'} {self.principle}: {self.kind}"
        mark = " (judged again)" if self.judged_again else ""
        return f"~ {self.principle}.{self.field}: {self.old!r} -> {self.new!r}{mark}"


def changes(a: Constitution, b: Constitution, asked: Collection[str] = frozenset()) -> list[Change]:
    """From `a` to `b`: first what was removed, then what was added, then field by field.

    A principle with a `check` is judged by that program, and its words can change nothing, unless
    it is in `asked`: the principles with a check that a model is asked about all the same.
    """
    before, after = ({p.id: p for p in c.principles} for c in (a, b))
    found = [Change(name, "removed") for name in before if name not in after]
    found += [Change(name, "added", judged_again=True) for name in after if name not in before]
    for name in (n for n in before if n in after):
        found += _fields(before[name], after[name], name in asked)
    return found


def _fields(a: Principle, b: Principle, asked: bool) -> list[Change]:
    old, new = a.model_dump(mode="json"), b.model_dump(mode="json")
    by_program = a.check is not None and b.check is not None and not asked
    fields = CHECKED_FIELDS if by_program else JUDGED_FIELDS
    again = principle_hash(a, fields) != principle_hash(b, fields)
    return [
        Change(a.id, "changed", key, old[key], new[key], again and key in fields)
        for key in old
        if old[key] != new[key]
    ]


def stale(found: Sequence[Change]) -> set[str]:
    """The principles of the new constitution that have to be judged, by id."""
    return {change.principle for change in found if change.judged_again}
