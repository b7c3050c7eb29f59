"""Rows in a temporary file, until what is known of all of them has been seen: their columns, their
types, their number. Then they are read again and written as they should be."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rlaif.core.records import canonical_json

Row = dict[str, Any]
GROUP = 1000
"""Rows that are given to Arrow at once."""


class Spool:
    """Rows that were added, in that order. The file has no name, and is gone when this is closed or
    the process ends."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._hash = hashlib.sha256(b"[[")
        self._columns: dict[str, None] = {}
        self.count = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    @property
    def columns(self) -> list[str]:
        """The keys of all rows, in the order in which they came first."""
        return list(self._columns)

    def digest(self, length: int) -> str:
        """`content_hash` of the list of all rows."""
        whole = self._hash.copy()
        whole.update(b"]]")
        return whole.hexdigest()[:length]

    def add(self, row: Mapping[str, Any]) -> None:
        """One more row. Raises ValueError on NaN."""
        text = canonical_json(dict(row)).encode("utf-8", "surrogatepass")
        self._hash.update(b"," + text if self.count else text)
        # Columns keep their order, which the canonical text does not have.
        kept = json.dumps(dict(row), ensure_ascii=False, allow_nan=False)
        self._file.write(kept.encode("utf-8", "surrogatepass") + b"\n")
        self._columns |= dict.fromkeys(row)
        self.count += 1

    def rows(self) -> Iterator[Row]:
        """All rows, one held at a time."""
        for line in self._lines():
            yield json.loads(line.decode("utf-8", "surrogatepass"))

    def _lines(self) -> Iterator[bytes]:
        self._file.seek(0)
        yield from self._file
        self._file.seek(0, 2)

    def _groups(self) -> Iterator[list[Row]]:
        # Arrow takes no lone surrogates, which scraped text can hold.
        rows = (
            json.loads(line.decode("utf-8", "surrogatepass").encode("utf-8", "replace"))
            for line in self._lines()
        )
        while group := list(islice(rows, GROUP)):
            yield group

    def schema(self) -> Any:
        """The pyarrow Schema that holds all rows."""
        import pyarrow

        found = pyarrow.schema([(name, pyarrow.null()) for name in self.columns])
        for group in self._groups():
            columns = {name: [row.get(name) for row in group] for name in self.columns}
            found = united([found, pyarrow.table(columns).schema])
        return found

    def write_parquet(self, path: Path, schema: Any) -> None:
        """Write all rows, with the columns and types of `schema`."""
        import pyarrow
        import pyarrow.parquet

        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for group in self._groups():
                writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def united(schemas: Iterable[Any]) -> Any:
    """The pyarrow Schema of what all of some hold."""
    import pyarrow

    return pyarrow.unify_schemas(list(schemas), promote_options="permissive")
