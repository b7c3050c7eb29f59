"""A step whose calls all failed is not done."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rlaif.core.errors import EngineError
from rlaif.metrics.words import commonest


def refuse_all_failed(what: str, calls: str, total: int, reasons: Counter[str], at: Path) -> None:
    """Raises EngineError where all of a step's records failed: that is no outcome to go on from.
    `what` are the records, and `calls` those whose failures left them without a value."""
    if 0 < total == reasons.total():
        why, count = next(iter(commonest(reasons).items()))
        raise EngineError(
            f"none of the {total} {what} has a value: {count} {calls} failed: {why}. Mend that; to "
            f"ask the same again, delete {at}"
        )
