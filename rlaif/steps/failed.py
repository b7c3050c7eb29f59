"""A step whose calls all failed is not done."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rlaif.compare.words import commonest
from rlaif.errors import EngineError


def refuse_all_failed(name: str, what: str, total: int, reasons: Counter[str], where: Path) -> None:
    """Raises EngineError where all of a step's records failed: that is no outcome to go on from."""
    if 0 < total == reasons.total():
        why = next(iter(commonest(reasons)))
        raise EngineError(
            f"{name}: all {total} {what} failed, most with: {why}. Mend that; to ask the same "
            f"again, delete {where}"
        )
