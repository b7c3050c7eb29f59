"""`datasets` reads every format that rlaif writes, and what it reads are the same pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.data.convert import convert_pairs
from rlaif.data.readers import FORMATS, read_labelled

pytestmark = pytest.mark.peer

WRITTEN = sorted(name for name, known in FORMATS.items() if known.write is not None)
ROWS = [
    {
        "prompt": f"Name fruit number {i}.",
        "chosen": f"A plum, {i} times.",
        "rejected": "No." + i * "!",
        "score_chosen": 0.9,
        "score_rejected": 0.1,
    }
    for i in range(6)
]


@pytest.mark.parametrize("name", WRITTEN)
def test_load_dataset_gives_the_rows_that_were_written(tmp_path: Path, name: str) -> None:
    from datasets import load_dataset

    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    one_object = FORMATS[name].wrap is not None
    out = tmp_path / ("out.json" if one_object else "out.jsonl")
    convert_pairs(given, out, name)
    pairs = {pair.pair_id for pair in read_labelled(out, name)}
    assert len(pairs) == len(ROWS)
    field = None
    if one_object:
        rows = json.loads(out.read_text())
        field = next(key for key, value in rows.items() if isinstance(value, list))
    data = load_dataset("json", data_files=str(out), split="train", field=field)
    assert data.num_rows == len(ROWS)
    if not one_object:
        again = tmp_path / "again.jsonl"
        data.to_json(again)
        assert {pair.pair_id for pair in read_labelled(again, name)} == pairs
