"""The rows of a data file: JSONL, JSON, CSV, Parquet, a votes database, a `datasets` folder; and
their writing.

`Spool` keeps rows in a temporary file until their columns, types and number are known; then they
are read again and written as they should be.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from rlaif.core.errors import ConfigError, explain_library
from rlaif.core.records import canonical_json
from rlaif.core.resources import find
from rlaif.core.rowfiles import list_shards
from rlaif.core.store import explain_os_errors
from rlaif.data.votes import APPLICATION, Vote, open_votes, read_votes, settings_of, stream_items

Row = dict[str, Any]
Placed = Iterator[tuple[str, Row]]
OnFault = Callable[[ConfigError], None]


def raise_fault(fault: ConfigError) -> None:
    """What is done with a row that cannot be read, unless the caller says otherwise: raise it."""
    raise fault


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".gz")
SQLITE = b"SQLite format 3\x00"
UNREAD = ("vote_id", "item_id", "seconds", "created")
"""What no label depends on: the same votes given again, at another time, are the same data."""


@dataclass(frozen=True)
class HubData:
    """A split of a dataset on the Hugging Face hub (or of anything that `datasets` can load)."""

    name: str
    split: str = "train"
    config: str | None = None

    def __str__(self) -> str:
        return self.name if self.config is None else f"{self.name} ({self.config})"


Source = Path | HubData


def source_of(
    name: str, split: str = "train", config: str | None = None, beside: Path | None = None
) -> Source:
    """The file or folder that a name means, else the dataset of that id on the hub. Raises
    ConfigError where it can be neither."""
    try:
        return find(name, beside)
    except ConfigError:
        if HUB_ID.fullmatch(name) is None or name.endswith(ENDINGS):
            raise
        return HubData(name, split, config)


def source_rows(source: Source, on_fault: OnFault = raise_fault) -> Placed:
    """(place, row) of a file, a folder or a dataset on the hub. Raises ConfigError."""
    if isinstance(source, HubData):
        return dataset_rows(source.name, source.split, source.config)
    return file_rows(source, on_fault)


def rows_hash(rows: Placed) -> str:
    """The hash of rows and their order: what they hold, wherever they came from."""
    digest = hashlib.sha256()
    for _, row in rows:
        text = json.dumps(row, sort_keys=True, default=str)
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


_UNREADABLE = (OSError, EOFError, zlib.error)


def file_rows(path: Path, on_fault: OnFault = raise_fault) -> Placed:
    """(place, row) of a votes database, of another file by its ending (.parquet, .csv, .json, else
    JSONL), or of a folder that `datasets` saved or can load. `.gz` may follow the ending of a text
    file.

    A row that cannot be read goes to `on_fault`. Raises ConfigError where the file itself cannot.
    """
    if path.is_dir():
        return dataset_rows(str(path), "train")
    if is_votes(path):
        return vote_rows(path)
    ending = _ending_of(path)
    if ending == ".parquet":
        return _parquet_rows(path)
    if ending == ".csv":
        return _csv_rows(path, on_fault)
    return _json_rows(path, on_fault) if ending == ".json" else jsonl_rows(path, on_fault)


def _ending_of(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def open_bytes(path: Path) -> IO[bytes]:
    """The (unpacked) bytes of a user's file. Raises ConfigError."""
    try:
        if path.is_dir():
            raise ConfigError("this is a folder; a file was expected", path)
        return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigError(f"{reason}", path) from None


def jsonl_rows(path: Path, on_fault: OnFault = raise_fault) -> Placed:
    """(place, row) of every line; blank lines are passed over. Of a record file of ours also those
    of the files that go on from it. Raises ConfigError."""
    for part in list_shards(path) or [path]:
        yield from _read_lines(part, on_fault)


def _read_lines(path: Path, on_fault: OnFault) -> Placed:
    with open_bytes(path) as lines:
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    # Some editors open a file with a byte order mark.
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    row = _row_object(json.loads(text), path, number)
                except UnicodeDecodeError as error:
                    on_fault(ConfigError(f"not UTF-8 text: {error}", path, number))
                except (ValueError, RecursionError) as error:
                    on_fault(ConfigError(f"not valid JSON: {error}", path, number))
                except ConfigError as error:
                    on_fault(error)
                else:
                    yield f"{path}:{number}", row
        except _UNREADABLE as error:
            raise ConfigError(f"cannot be read: {error}", path) from None


def _row_object(value: Any, path: Path, number: int) -> Row:
    if not isinstance(value, dict):
        raise ConfigError("each line must be a JSON object", path, number)
    return value


def read_json_file(path: Path) -> Any:
    """The value in a (packed) JSON file. Raises ConfigError."""
    with open_bytes(path) as file:
        try:
            return json.loads(file.read().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"not valid JSON: {error}", path) from None
        except _UNREADABLE as error:
            raise ConfigError(f"cannot be read: {error}", path) from None


def _json_rows(path: Path, on_fault: OnFault) -> Placed:
    """A JSON list of objects; or an object with a list of `comparisons`, as ICAI writes it, whose
    other keys stand in every row under `document`."""
    value = read_json_file(path)
    document: Row = {}
    if isinstance(value, dict) and isinstance(value.get("comparisons"), list):
        rest = {key: item for key, item in value.items() if key != "comparisons"}
        value, document = value["comparisons"], {"document": rest}
    if not isinstance(value, list):
        raise ConfigError("expected a list of objects (or ICAI's `comparisons`)", path)
    for number, row in enumerate(value, 1):
        place = f"{path}: row {number}"
        if isinstance(row, dict):
            yield place, row | document
        else:
            on_fault(ConfigError(f"{place}: an object was expected, this is {type(row).__name__}"))


def _csv_rows(path: Path, on_fault: OnFault) -> Placed:
    """Cells are text; an empty cell is None."""
    csv.field_size_limit(2**31 - 1)
    open_bytes(path).close()
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        number = 0
        while True:
            number += 1
            place = f"{path}: row {number}"
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                on_fault(ConfigError(f"{place}: not valid CSV: {error}"))
                continue
            except UnicodeDecodeError as error:
                raise ConfigError(f"not UTF-8 text: {error}", path) from None
            except _UNREADABLE as error:
                raise ConfigError(f"cannot be read: {error}", path) from None
            names = reader.fieldnames or []
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ConfigError(f"two columns are called {twice!r}", path, 1)
            if None in row or None in row.values():
                on_fault(ConfigError(f"{place}: not as many cells as columns ({len(names)})"))
                continue
            yield place, {key: cell or None for key, cell in row.items()}


def _parquet_rows(path: Path) -> Placed:
    import pyarrow
    import pyarrow.parquet

    number = 0
    with (
        explain_library(f"{path}: not a readable Parquet file", ConfigError),
        pyarrow.parquet.ParquetFile(path) as file,
    ):
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row


def dataset_rows(name: str, split: str, config: str | None = None) -> Placed:
    """(place, row) of a folder that `datasets` saved, or of anything that it can load."""
    import datasets

    folder = Path(name)
    if (folder / "dataset_dict.json").exists():
        splits = sorted(p.name for p in folder.iterdir() if p.is_dir())
        raise ConfigError(f"this dataset has splits; name one of the folders in it: {splits}", name)
    what = f"dataset {name!r} (split {split!r}) cannot be read"
    advice = "A data file, or a folder or an id that `datasets` can load, was expected."
    with explain_library(what, ConfigError, advice):
        # A built dataset may have LLaMA-Factory's dataset_info.json, and is no saved one.
        if (folder / "state.json").exists():
            rows = datasets.load_from_disk(name)
        else:
            rows = datasets.load_dataset(name, config, split=split)
        for number, row in enumerate(rows, 1):
            yield f"{name}: row {number}", dict(row)


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write rows as JSONL (.jsonl, .jsonl.gz), a JSON list (.json), CSV (a list or mapping as JSON)
    or Parquet; how many there were.

    The file appears when all is written; no two rows are held at once, or in Parquet no more than a
    group of them. Raises ConfigError for another ending.
    """
    writers = {
        ".jsonl": _write_jsonl,
        ".json": _write_json,
        ".csv": _write_csv,
        ".parquet": _write_parquet,
    }
    write = writers.get(_ending_of(path))
    if write is None or (path.suffix == ".gz" and write is not _write_jsonl):
        raise ConfigError("the file must end in .jsonl, .jsonl.gz, .json, .csv or .parquet", path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            count = write(rows, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return count


def _write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    count = 0
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        for row in rows:
            # backslashreplace writes a lone surrogate as the JSON escape that it came from.
            file.write(canonical_json(dict(row)).encode("utf-8", "backslashreplace") + b"\n")
            count += 1
    return count


def _write_json(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(("," if count else "[") + canonical_json(dict(row)))
            count += 1
        file.write("]" if count else "[]")
    return count


def _write_csv(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    with Spool(path.parent) as spool:
        for row in rows:
            spool.add(row)
        with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.DictWriter(file, spool.columns)
            writer.writeheader()
            writer.writerows(
                {key: _plain_cell(v) for key, v in row.items()} for row in spool.rows()
            )
        return spool.count


def _plain_cell(value: Any) -> Any:
    return canonical_json(value) if isinstance(value, dict | list) else value


def _write_parquet(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    with Spool(path.parent) as spool:
        for row in rows:
            spool.add(row)
        spool.write_parquet(path, spool.schema())
        return spool.count


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
        for line in self._read_lines():
            yield json.loads(line.decode("utf-8", "surrogatepass"))

    def _read_lines(self) -> Iterator[bytes]:
        self._file.seek(0)
        yield from self._file
        self._file.seek(0, 2)

    def _read_groups(self) -> Iterator[list[Row]]:
        # Arrow takes no lone surrogates, which scraped text can hold.
        rows = (
            json.loads(line.decode("utf-8", "surrogatepass").encode("utf-8", "replace"))
            for line in self._read_lines()
        )
        while group := list(islice(rows, GROUP)):
            yield group

    def schema(self) -> Any:
        """The pyarrow Schema that holds all rows."""
        import pyarrow

        found = pyarrow.schema([(name, pyarrow.null()) for name in self.columns])
        for group in self._read_groups():
            columns = {name: [row.get(name) for row in group] for name in self.columns}
            found = unite_columns([found, pyarrow.table(columns).schema])
        return found

    def write_parquet(self, path: Path, schema: Any) -> None:
        """Write all rows, with the columns and types of `schema`."""
        import pyarrow
        import pyarrow.parquet

        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for group in self._read_groups():
                writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def unite_columns(schemas: Iterable[Any]) -> Any:
    """The pyarrow Schema of what all of some hold."""
    import pyarrow

    return pyarrow.unify_schemas(list(schemas), promote_options="permissive")


def is_votes(path: Path) -> bool:
    """Whether a file is a votes database, whatever it is called."""
    try:
        with path.open("rb") as file:
            head = file.read(72)
    except OSError:
        return False
    return head.startswith(SQLITE) and head[68:72] == APPLICATION.to_bytes(4, "big")


def vote_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of every item that somebody voted on or skipped, in order of id: the keys of the
    item, `votes` in order of name, and the `scale` of ratings. Raises StoreError."""
    by_item: dict[str, list[Vote]] = defaultdict(list)
    for vote in read_votes(path):
        by_item[vote.item_id].append(vote)
    with open_votes(path) as db:
        scale = settings_of(db).scale
        voted = [item for item in stream_items(db) if item.item_id in by_item]
    for item in sorted(voted, key=lambda item: item.item_id):
        votes = sorted(by_item[item.item_id], key=lambda vote: vote.annotator)
        row = msgspec.to_builtins(item)
        # What judges said is no part of what people did.
        del row["judges"], row["uncertainty"]
        kept = [msgspec.to_builtins(vote) for vote in votes]
        row["votes"] = [{k: v for k, v in vote.items() if k not in UNREAD} for vote in kept]
        row["scale"] = {str(level): text for level, text in scale.items()}
        yield f"{path}: item {item.item_id}", row
