"""Files are read in blocks of a fixed size: wherever such a block ends, the same comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.core import integrity, rowfiles
from rlaif.core.errors import StoreError
from rlaif.core.integrity import to_last_blank
from rlaif.core.rowfiles import read_rows
from rlaif.core.store import StepFolder

BATCHES = [[{"a": 1}, {"b": 22}], [{"c": 333}], [{"d": 4}, {"e": 55}, {"f": "gg"}]]
ROWS = [row for batch in BATCHES for row in batch]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    folder = StepFolder(tmp_path)
    for batch in BATCHES:
        folder.append("rows", batch)
    return tmp_path / "rows.jsonl"


def test_rows_are_the_same_whatever_is_read_at_once(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in range(1, stored.stat().st_size + 2):
        monkeypatch.setattr(rowfiles, "BLOCK", size)
        assert list(read_rows(stored)) == ROWS, size


def test_what_follows_the_last_whole_batch_is_never_read(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stored.stat().st_size
    with stored.open("ab") as file:
        file.write(b'{"torn": 1}\n{"torn"')
    for size in range(1, stored.stat().st_size + 2):
        monkeypatch.setattr(rowfiles, "BLOCK", size)
        assert list(read_rows(stored)) == ROWS, size
    StepFolder(stored.parent).repair()
    assert stored.stat().st_size == whole


def test_a_damaged_line_has_its_number_whatever_is_read_at_once(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored.write_bytes(stored.read_bytes().replace(b'"d":4', b'"d"=4'))
    for size in range(1, stored.stat().st_size + 2):
        monkeypatch.setattr(rowfiles, "BLOCK", size)
        with pytest.raises(StoreError, match=r"rows\.jsonl:4"):
            list(read_rows(stored))


def test_the_blank_line_that_closes_a_batch_is_found_across_a_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions closed them; the two bytes may lie in two reads."""
    path = tmp_path / "rows.jsonl"
    whole = b'{"a":1}\n\n{"b":2}\n{"c":3}\n\n'
    for torn in (b"", b"{", b'{"d":4}\n', b'{"d":4}\n{"e":5}\n{'):
        path.write_bytes(whole + torn)
        for size in range(2, len(whole + torn) + 2):
            monkeypatch.setattr(integrity, "CHUNK", size)
            assert to_last_blank(path) == len(whole), (torn, size)


def test_checksums_do_not_depend_on_what_is_read_at_once(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in range(1, stored.stat().st_size + 2):
        monkeypatch.setattr(integrity, "CHUNK", size)
        StepFolder(stored.parent).repair()
        assert list(read_rows(stored)) == ROWS, size
