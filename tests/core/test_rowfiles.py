"""Rows by key are those of the file, whatever is in their texts and in any order."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rlaif.core import rowfiles
from rlaif.core.errors import StoreError
from rlaif.core.integrity import log_of
from rlaif.core.records import Judgement
from rlaif.core.rowfiles import line_of, record_of
from rlaif.core.rowindex import HeldIndex, RowIndex
from rlaif.core.store import StepFolder
from rlaif.pipeline.steps.context import ByPrompt

NAMES = ["p_1", "p_2", 'p"3', "p\\4", "ü", "\ud800"]
TEXTS = st.text(max_size=8) | st.sampled_from(['"prompt_id":"p_2"', '\\"', "\ud800", "a\nb"])
ROWS = st.lists(
    st.builds(
        lambda name, text, score: Judgement(
            "j", text, name, "completion", [text], text, "x", "y", "ai", None, "ok", score
        ),
        st.sampled_from(NAMES),
        TEXTS,
        st.sampled_from([0.1, 1e-7, 1.0]),
    ),
    max_size=12,
)


@given(given_=ROWS, cut=st.integers(1, 5), block=st.sampled_from([1, 1000, 1 << 18]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_records_come_back_by_key(
    given_: list[Judgement], cut: int, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = StepFolder(tmp_path_factory.mktemp("rows"))
    found = folder.index("judgements", "prompt_id")
    held = HeldIndex(lambda: folder.read("judgements"), "prompt_id")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rowfiles, "BLOCK", block)
        for start in range(0, len(given_), cut):
            batch = given_[start : start + cut]
            folder.append("judgements", batch)
            assert set(found.grow()) == {j.prompt_id for j in batch}
            assert list(held.grow()) == [j.prompt_id for j in batch]
            assert list(found.grow()) == []
    for index in (found, held):
        assert set(index.keys()) == {j.prompt_id for j in given_}
        # Asked for in another order than that of the file.
        for name in reversed(NAMES):
            mine = [j for j in given_ if j.prompt_id == name]
            assert index.records(name, Judgement) == mine
            assert [row["score"] for row in index.rows(name)] == [j.score for j in mine]
            assert index.count(name) == len(mine)
    assert list(folder.records(Judgement)) == given_
    assert folder.count("judgements") == len(given_)
    both = ByPrompt([folder, folder], Judgement)
    assert list(both.prompts()) == sorted({j.prompt_id for j in given_})
    assert all(both.of(name) == found.records(name, Judgement) * 2 for name in NAMES)


def test_no_file_is_no_row_and_damage_is_said(tmp_path: Path) -> None:
    none = RowIndex(tmp_path / "none.jsonl", "prompt_id")
    assert list(none.grow()) == [] and none.rows("p") == [] and none.count("p") == 0
    path = tmp_path / "rows.jsonl"
    spliced = '{"prompt_id":"p"}{"prompt_id":"p"}'
    divided = '{"prompt_id":"p"\n,"a":1}'
    damaged = ['{"prompt_id":"p"', '{"other":"p"}', "[1]", '{"prompt_id":1}', spliced, divided]
    for text in damaged:
        path.write_text(f'{{"prompt_id":"p"}}\n\n{text}\n\n')
        with pytest.raises(StoreError, match=r"rows\.jsonl:3: damaged row"):
            RowIndex(path, "prompt_id").grow()


def test_a_record_that_breaks_its_own_rule_is_damage(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path)
    kept = Judgement("j", "c", "p", "completion", ["k"], "k", "x", "y", "ai", None, "ok", 0.5)
    folder.append("judgements", [kept])
    path = tmp_path / "judgements.jsonl"
    # In a file of an earlier version, where no checksum is in the way.
    log_of(path).unlink()
    good = path.read_text() + "\n"
    missing = {k: v for k, v in json.loads(good).items() if k != "shown"}
    for bad in (good.replace('"ok"', '"unparsed"'), json.dumps(missing) + "\n\n"):
        path.write_text(good + bad)
        index = folder.index("judgements", "prompt_id")
        index.grow()
        with pytest.raises(StoreError, match="damaged row"):
            index.records("p", Judgement)
        with pytest.raises(StoreError, match=r"judgements\.jsonl:3: damaged row"):
            list(folder.records(Judgement))


def test_a_record_written_with_other_types_is_read_as_it_stands(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path)
    kept = Judgement("j", "c", "p", "completion", ["k"], "k", "x", "y", "ai", None, "ok", 0.5)
    odd = replace(kept, sample_index="first")  # type: ignore[arg-type]
    folder.append("judgements", [kept, odd])
    assert list(folder.records(Judgement)) == [kept, odd]


def test_a_line_says_what_the_record_says_or_nothing() -> None:
    said = Judgement(
        "j", "c", "p", "completion", ["k"], "k", "a", "m", "ai", None, "ok", 1e-7, raw="é\u2028\n"
    )
    assert record_of(Judgement, line_of(said)) == said
    torn = replace(said, raw="\ud800")
    assert record_of(Judgement, line_of(torn)) == torn
    # A number that JSON does not have must not become a missing one.
    for key in ("score", "label_mass", "cost"):
        with pytest.raises(ValueError, match="not JSON compliant"):
            line_of(replace(said, **{key: float("nan")}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        line_of({"value": float("inf")})


class Numbered(msgspec.Struct):
    """All that is decoded of a row to choose it."""

    a: int


def test_rows_are_chosen_by_few_of_their_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"a":1,"b":"x"}\n\n{"a":2,"b":"y"}\n{"a":3,"b":"z"}\n{"a":4,"b":"\\ud800"}\n\n'
    )
    for size in range(1, 80, 7):
        monkeypatch.setattr(rowfiles, "BLOCK", size)
        odd = rowfiles.read_where(path, Numbered, lambda row: row.a % 2 == 1)
        assert list(odd) == [{"a": 1, "b": "x"}, {"a": 3, "b": "z"}]
        last = rowfiles.read_where(path, Numbered, lambda row: row.a == 4)
        assert list(last) == [{"a": 4, "b": "\ud800"}]


def test_a_block_may_begin_with_the_blank_line_that_ends_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of earlier versions close a batch with a blank line, which a block may cut off."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n\n{"a":2}\n{"a":3}\n\n')
    for size in range(1, 30):
        monkeypatch.setattr(rowfiles, "BLOCK", size)
        assert [row["a"] for row in rowfiles.read_rows(path)] == [1, 2, 3]
        assert rowfiles.count_rows(path) == 3
