"""Checksums and commit logs by themselves, one byte or one batch at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlaif.core import integrity
from rlaif.core.errors import StoreError
from rlaif.core.integrity import (
    COMMIT_SIZE,
    Commit,
    Unordered,
    add_file,
    append_commit,
    digest,
    is_whole,
    line_of,
    log_of,
    publish_folder,
    read_committed,
    read_log,
    seal_row,
    settle_file,
    to_last_blank,
    unseal_row,
    verify_folder,
    write_checksums,
)

ADVICE = "Make it again."


def write_batches(path: Path, *batches: bytes) -> list[Commit]:
    """A record file of these batches, and its log."""
    commits, end = [], 0
    for batch in batches:
        with path.open("ab") as file:
            file.write(batch)
        end += len(batch)
        commits.append(Commit(end, batch.count(b"\n"), digest(batch)))
        append_commit(path, commits[-1])
    return commits


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


@given(st.integers(0, 10**15 - 1), st.integers(0, 10**10 - 1), st.integers(0, 16**32 - 1))
def test_a_row_of_a_log_reads_back_and_has_one_width(end: int, rows: int, number: int) -> None:
    commit = Commit(end, rows, f"{number:032x}")
    line = line_of(commit)
    assert len(line) == COMMIT_SIZE
    assert integrity._parse_commit(line) == commit


@given(st.integers(0, COMMIT_SIZE - 1), st.integers(1, 255))
def test_a_row_with_one_other_byte_is_none(place: int, change: int) -> None:
    line = bytearray(line_of(Commit(120, 3, "ab" * 16)))
    line[place] ^= change
    assert integrity._parse_commit(bytes(line)) is None


def test_what_is_committed_ends_with_the_last_batch_that_is_there(path: Path) -> None:
    assert read_committed(path) is None
    write_batches(path, b"a\nb\n", b"c\n")
    assert read_committed(path) == 6
    log = log_of(path)
    whole = log.read_bytes()
    # A row that a kill tore, one that is damaged, and one whose batch a power cut took.
    log.write_bytes(whole + whole[:20])
    assert read_committed(path) == 6
    log.write_bytes(whole + b"x" * COMMIT_SIZE)
    assert read_committed(path) == 6
    path.write_bytes(b"a\nb\nc")
    assert read_committed(path) == 4
    path.write_bytes(b"a\nb")
    assert read_committed(path) == 0
    path.unlink()
    assert read_committed(path) == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 9), more=st.binary(max_size=4), torn=st.integers(0, COMMIT_SIZE - 1))
def test_a_file_settles_on_its_last_whole_batch(
    tmp_path: Path, cut: int, more: bytes, torn: int
) -> None:
    path = tmp_path / "records.jsonl"
    for old in (path, log_of(path)):
        old.unlink(missing_ok=True)
    batches = [b"a\nb\n", b"c\n", b"de\n"]
    write_batches(path, *batches)
    whole = b"".join(batches)
    kept = whole[:cut] + (more if cut == len(whole) else b"")
    path.write_bytes(kept)
    with log_of(path).open("ab") as log:
        log.write(line_of(Commit(99, 1, "0" * 32))[:torn])
    ends = [0, 4, 6, 9]
    end = max(end for end in ends if end <= len(kept))
    assert settle_file(path, ADVICE) == end
    assert path.read_bytes() == whole[:end]
    assert [commit.end for commit in read_log(path, ADVICE)] == ends[1 : ends.index(end) + 1]
    assert log_of(path).stat().st_size % COMMIT_SIZE == 0


def test_a_damaged_batch_is_named_by_its_rows(path: Path) -> None:
    write_batches(path, b"a\nb\n", b"c\nd\ne\n", b"f\n")
    data = bytearray(path.read_bytes())
    data[6] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=r"its rows 3 to 5 are not what was written. Make it ag"):
        settle_file(path, ADVICE)
    data[6] ^= 1
    data[10] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="its rows 6 to 6 are"):
        settle_file(path, ADVICE)


def test_a_log_in_no_order_or_damaged_before_its_end_is_refused(path: Path) -> None:
    one, two = line_of(Commit(4, 2, "a" * 32)), line_of(Commit(6, 1, "b" * 32))
    bad = b"x" * COMMIT_SIZE
    for rows in ([one, one], [two, one], [bad, one], [one, bad, two], [line_of(Commit(0, 0, "a"))]):
        log_of(path).write_bytes(b"".join(rows))
        with pytest.raises(StoreError, match=r"records\.commits: damaged\. Make it again"):
            read_log(path, ADVICE)
    for rows in ([one, two, bad], [one, two, two[:-1]]):
        log_of(path).write_bytes(b"".join(rows))
        assert [commit.end for commit in read_log(path, ADVICE)] == [4, 6]
    log_of(path).write_bytes(b"")
    assert read_log(path, ADVICE) == []


@pytest.mark.parametrize("chunk", [2, 3, 4, 5, 1 << 20])
def test_the_last_blank_line_is_found_wherever_a_cut_falls(
    path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "CHUNK", chunk)
    for data, end in (
        (b"", 0),
        (b"a\nb\n", 0),
        (b"a\n\n", 3),
        (b"\n\nab\ncd", 2),
        (b"a\nb\n\nc\n\ntorn", 8),
        (b"a\n\n" + b"long torn row " * 3, 3),
        (b"a\n\n\n", 4),
    ):
        path.write_bytes(data)
        assert to_last_blank(path) == end, data


def test_a_file_of_an_earlier_version_gets_a_log_of_one_batch(path: Path) -> None:
    path.write_bytes(b"a\nb\n\nc\n\ntorn")
    assert settle_file(path, ADVICE) == 8
    assert path.read_bytes() == b"a\nb\n\nc\n\n"
    # Blank lines are no rows.
    assert read_log(path, ADVICE) == [Commit(8, 3, digest(b"a\nb\n\nc\n\n"))]
    assert settle_file(path, ADVICE) == 8
    path.write_bytes(b"torn")
    log_of(path).unlink()
    assert settle_file(path, ADVICE) == 0
    assert path.read_bytes() == b""
    assert read_log(path, ADVICE) == []


def test_a_log_is_flushed_at_once_and_then_once_a_second(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    now = [1000.0]
    monkeypatch.setattr(integrity.os, "fsync", flushed.append)
    monkeypatch.setattr(integrity, "monotonic", lambda: now[0])
    for seconds, count in ((0.0, 1), (0.5, 1), (0.4, 1), (0.2, 2), (0.9, 2), (0.1, 3)):
        now[0] += seconds
        append_commit(path, Commit(1, 1, "a" * 32))
        assert len(flushed) == count, seconds
    assert log_of(path).stat().st_size == 6 * COMMIT_SIZE


@given(st.lists(st.tuples(st.text(max_size=3), st.none() | st.floats(0, 1)), max_size=5))
def test_records_have_one_checksum_in_any_order(rows: list[tuple[str, float | None]]) -> None:
    def total(given: list[tuple[str, float | None]]) -> str:
        found = Unordered()
        for row in given:
            found.add(*row)
        return found.digest()

    assert total(rows) == total(rows[::-1])
    # Nor does a record that comes twice take itself out.
    assert total([*rows, ("x", 0.5), ("x", 0.5)]) != total(rows)
    assert len({total(rows), total([*rows, ("x", None)]), total([*rows, ("x", 0.0)])}) == 3
    # Two values are not the text of both.
    assert total([*rows, ("a", None)]) != total([*rows, ("a, None", None)])


def test_a_sealed_object_is_whole_as_it_was_written_alone() -> None:
    row = seal_row({"a": (1, 2), 3: None})
    read = json.loads(json.dumps(row))
    assert is_whole(read) and is_whole(row)
    assert unseal_row(read, "x.json", ADVICE) == {"a": [1, 2], "3": None}
    for damaged in (
        read | {"a": [1, 3]},
        read | {"b": 1},
        {k: v for k, v in read.items() if k != "a"},
    ):
        assert not is_whole(damaged)
        for required in (True, False):
            with pytest.raises(StoreError, match=r"x.json: damaged .* Make it again"):
                unseal_row(damaged, "x.json", ADVICE, required)
    # Earlier versions sealed nothing.
    assert unseal_row({"a": 1}, "x.json", ADVICE, required=False) == {"a": 1}
    for bare in ({"a": 1}, [], None):
        with pytest.raises(StoreError, match="damaged"):
            unseal_row(bare, "x.json", ADVICE)


def make_folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "masters").mkdir(parents=True)
    (made / "a.txt").write_text("one")
    (made / "masters" / "b.txt").write_text("three")
    publish_folder(made, tmp_path / "out")
    return tmp_path / "out"


def test_a_folder_is_compared_with_its_checksums(tmp_path: Path) -> None:
    out = make_folder(tmp_path)
    assert verify_folder(out, ADVICE) == 8
    assert verify_folder(out, ADVICE, names=lambda name: name == "a.txt") == 3
    (out / "unknown.txt").write_text("of somebody else")
    assert verify_folder(out, ADVICE) == 8
    (out / "a.txt").write_text("two")
    with pytest.raises(StoreError, match=r"a.txt: damaged \(its checksum differs"):
        verify_folder(out, ADVICE)
    assert verify_folder(out, ADVICE, names=lambda name: name != "a.txt") == 5
    (out / "a.txt").write_text("four")
    with pytest.raises(StoreError, match=r"a.txt: damaged \(it has another size"):
        verify_folder(out, ADVICE)
    (out / "checksums.json").unlink()
    assert verify_folder(out, ADVICE) is None


def test_what_may_be_gone_is_compared_while_it_is_there(tmp_path: Path) -> None:
    out = make_folder(tmp_path)
    inside = out / "masters" / "b.txt"
    inside.write_text("seven")
    with pytest.raises(StoreError, match=r"b.txt: damaged \(its checksum"):
        verify_folder(out, ADVICE, may_lack=["masters"])
    inside.unlink()
    assert verify_folder(out, ADVICE, may_lack=["masters"]) == 3
    for lacking in ([], ["master"], ["a.txt"]):
        with pytest.raises(StoreError, match=r"b.txt: damaged \(it is missing"):
            verify_folder(out, ADVICE, may_lack=lacking)


def test_a_file_that_comes_later_is_compared_too(tmp_path: Path) -> None:
    out = make_folder(tmp_path)
    (out / "card.md").write_text("later")
    add_file(out, "card.md")
    assert verify_folder(out, ADVICE) == 13
    (out / "card.md").write_text("Later")
    with pytest.raises(StoreError, match=r"card\.md"):
        verify_folder(out, ADVICE)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "card.md").write_text("x")
    add_file(bare, "card.md")
    assert [p.name for p in bare.iterdir()] == ["card.md"]


def test_checksums_are_not_of_themselves(tmp_path: Path) -> None:
    out = make_folder(tmp_path)
    write_checksums(out)
    write_checksums(out)
    assert verify_folder(out, ADVICE) == 8
