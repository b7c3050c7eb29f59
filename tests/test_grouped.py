"""Rows by prompt are those of the file, whatever is in their texts and in any order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import StoreError
from rlaif.grouped import RowsByPrompt, Together
from rlaif.store import StepFolder

texts = st.text(max_size=8) | st.sampled_from(['"prompt_id":"p_2"', '\\"', "\ud800", "a\nb"])
rows = st.lists(
    st.fixed_dictionaries(
        {"a": texts, "prompt_id": st.sampled_from(["p_1", "p_2", 'p"3', "p\\4", "ü"]), "z": texts}
    ),
    max_size=12,
)


@given(given_=rows, cut=st.integers(1, 5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_rows_come_back_by_prompt(
    given_: list[dict[str, str]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = StepFolder(tmp_path_factory.mktemp("rows"))
    for start in range(0, len(given_), cut):
        folder.append("rows", list(given_[start : start + cut]))
    found = folder.by_prompt("rows")
    names = list(dict.fromkeys(row["prompt_id"] for row in given_))
    assert list(found) == names and len(found) == len(names)
    # Asked for in another order than that of the file.
    for name in reversed(names):
        assert found[name] == [row for row in given_ if row["prompt_id"] == name]
    both = Together([found, found])
    assert list(both) == names
    assert all(both[name] == found[name] * 2 for name in names)
    assert folder.count("rows") == len(given_)


def test_no_file_is_no_row_and_damage_is_said(tmp_path: Path) -> None:
    assert len(RowsByPrompt(tmp_path / "none.jsonl")) == 0
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt_id":"p"\n\n')
    with pytest.raises(StoreError, match="damaged row"):
        RowsByPrompt(path)["p"]
    path.write_text('{"other":"p"}\n\n')
    with pytest.raises(StoreError, match="damaged row"):
        RowsByPrompt(path)
