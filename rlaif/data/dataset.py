"""A folder of preferences that `datasets.load_dataset` reads: Parquet files by format and split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.data.convert import written
from rlaif.data.labelled import LabelledPair
from rlaif.data.readers import FORMATS
from rlaif.data.readers.base import make_pair
from rlaif.data.readers.llama_factory import COLUMNS
from rlaif.data.rows import Row, arrow_table
from rlaif.errors import ConfigError
from rlaif.records import Preference, content_hash
from rlaif.store import explain_os_errors, write_atomic

TRAIN, TEST = "train", "test"
SPLITS = {"ultrafeedback_binarized": {TRAIN: "train_prefs", TEST: "test_prefs"}}
"""What a format calls the splits, where it has names of its own."""

Tables = dict[str, dict[str, list[Row]]]
"""Rows by format and split."""


def labelled_pair(
    preference: Preference, authors: Mapping[str, str], subset: str | None
) -> LabelledPair:
    """A preference as a labelled pair, with the scores that made it. `authors` are the models by
    completion id. Raises ConfigError where an answer is not one assistant turn."""
    place = f"preference {preference.preference_id}"
    for side in (preference.chosen, preference.rejected):
        if len(side) != 1 or side[0]["role"] != "assistant":
            raise ConfigError(f"{place}: each side of a pair must be one assistant turn")
    return make_pair(
        place,
        preference.prompt,
        (preference.chosen[0]["content"], preference.rejected[0]["content"]),
        1.0,
        subset=subset or None,
        authors=(authors.get(preference.chosen_id), authors.get(preference.rejected_id)),
        annotator=preference.source,
        annotator_kind="human" if preference.source == "human" else "ai",
        scores=(preference.score_chosen, preference.score_rejected),
    )


def held_prompts(prompt_ids: Iterable[str], share: float) -> frozenset[str]:
    """The prompts of the test split: `share` of them, rounded, and at least one of two or more
    where `share` is above 0. The order of ids' hashes decides, so that no seed moves a prompt."""
    ordered = sorted(set(prompt_ids), key=lambda name: content_hash("split", name))
    count = round(share * len(ordered))
    if share > 0 and len(ordered) > 1:
        count = min(max(count, 1), len(ordered) - 1)
    return frozenset(ordered[:count])


def pair_tables(
    pairs: Sequence[LabelledPair], formats: Sequence[str], held: frozenset[str]
) -> tuple[Tables, dict[str, int]]:
    """The pairs' rows by format and split, and how many pairs each format could not hold."""
    tables: Tables = {}
    lost: dict[str, int] = {}
    for name in formats:
        splits = tables.setdefault(name, {TRAIN: [], TEST: []})
        for pair in pairs:
            split = TEST if pair.prompt.prompt_id in held else TRAIN
            try:
                row, _ = written(pair, FORMATS[name], name)
            except ConfigError:
                lost[name] = lost.get(name, 0) + 1
                continue
            splits[split].append(row)
    return tables, lost


def write_tables(folder: Path, tables: Tables, name: str) -> list[dict[str, Any]]:
    """Write FORMAT/SPLIT-HASH.parquet for each that has rows; the `configs` of the card's front
    matter.

    `name` is what LLaMA-Factory will know the dataset by. All splits of a format have one schema,
    whichever of them leaves a column empty. The hash is of the rows: `datasets` knows what it has
    in its cache by the folder's own name and by `configs`, and would else give the rows of another
    dataset whose folder is called the same.
    """
    import pyarrow.parquet

    configs: list[dict[str, Any]] = []
    for format_, splits in tables.items():
        whole = arrow_table(row for rows in splits.values() for row in rows)
        files, start = [], 0
        for split, rows in splits.items():
            if rows:
                called = SPLITS.get(format_, {}).get(split, split)
                file = f"{format_}/{called}-{content_hash(rows, length=12)}.parquet"
                path = folder / file
                with explain_os_errors(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    pyarrow.parquet.write_table(whole.slice(start, len(rows)), path)
                files.append({"split": called, "path": file})
                start += len(rows)
        if files:
            configs.append({"config_name": format_, "data_files": files})
        if format_ == "llama_factory" and splits.get(TRAIN):
            write_atomic(folder / "dataset_info.json", _llama_factory_info(name, files[0]["path"]))
    if configs:
        configs[0]["default"] = True
    return configs


def _llama_factory_info(name: str, file: str) -> str:
    """The entry that LLaMA-Factory looks the training file up by."""
    entry = {
        "file_name": file,
        "formatting": "sharegpt",
        "ranking": True,
        "columns": COLUMNS,
    }
    return json.dumps({name: entry}, indent=2) + "\n"
