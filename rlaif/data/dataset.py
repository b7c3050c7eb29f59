"""A folder of preferences that `datasets.load_dataset` reads: Parquet files by format and split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Preference, content_hash
from rlaif.core.store import explain_os_errors, write_atomic
from rlaif.data.convert import written
from rlaif.data.readers import FORMATS
from rlaif.data.readers.base import make_pair
from rlaif.data.readers.llama_factory import COLUMNS
from rlaif.data.spool import Spool, united

TRAIN, TEST = "train", "test"
SPLITS = {"ultrafeedback_binarized": {TRAIN: "train_prefs", TEST: "test_prefs"}}
"""What a format calls the splits, where it has names of its own."""

Tables = Mapping[str, Mapping[str, Spool]]
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


class PairTables:
    """The rows of pairs by format and split, as pairs are added: they lie in files of `folder`.
    `lost` is how many pairs each format could not hold."""

    def __init__(self, folder: Path, formats: Sequence[str]):
        self._folder = folder
        self._open = ExitStack()
        self.tables = {name: {TRAIN: self._spool(), TEST: self._spool()} for name in formats}
        self.lost: dict[str, int] = {}

    def _spool(self) -> Spool:
        return self._open.enter_context(Spool(self._folder))

    def __enter__(self) -> PairTables:
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    def add(self, pair: LabelledPair, held: bool) -> None:
        """One pair; a `held` one is in the test split."""
        for name, splits in self.tables.items():
            # Raw rows are of a prompt and no pair's.
            if FORMATS[name].write is None:
                continue
            try:
                row, _ = written(pair, FORMATS[name], name)
            except ConfigError:
                self.lost[name] = self.lost.get(name, 0) + 1
                continue
            splits[TEST if held else TRAIN].add(row)


def write_tables(folder: Path, tables: Tables, name: str) -> list[dict[str, Any]]:
    """Write FORMAT/SPLIT-HASH.parquet for each that has rows; the `configs` of the card's front
    matter.

    `name` is what LLaMA-Factory will know the dataset by. All splits of a format have one schema,
    whichever of them leaves a column empty. The hash is of the rows: `datasets` knows what it has
    in its cache by the folder's own name and by `configs`, and would else give the rows of another
    dataset whose folder is called the same.
    """
    configs: list[dict[str, Any]] = []
    for format_, splits in tables.items():
        filled = {split: spool for split, spool in splits.items() if spool.count}
        schema = united(spool.schema() for spool in filled.values()) if filled else None
        files = []
        for split, spool in filled.items():
            called = SPLITS.get(format_, {}).get(split, split)
            file = f"{format_}/{called}-{spool.digest(12)}.parquet"
            path = folder / file
            with explain_os_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                spool.write_parquet(path, schema)
            files.append({"split": called, "path": file})
        if files:
            configs.append({"config_name": format_, "data_files": files})
        if format_ == "llama_factory" and TRAIN in filled:
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
