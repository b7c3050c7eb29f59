"""A log without a disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif.core.records import to_json
from rlaif.core.rowindex import HeldIndex, Index


class Memory:
    """A log that is gone with the process. `rows` are by record kind."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def index(self, name: str, key: str) -> Index:
        """See `Log`."""
        return HeldIndex(lambda: self.rows.get(name, []), key)

    def append(self, name: str, records: Sequence[Any]) -> None:
        """See `Log`."""
        rows = [r if isinstance(r, dict) else to_json(r) for r in records]
        self.rows.setdefault(name, []).extend(rows)
