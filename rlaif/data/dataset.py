"""A folder of preferences that `datasets.load_dataset` reads: Parquet files by format and split.

The folder can be uploaded to the Hugging Face hub, and can hold UltraFeedback's raw rows: a
prompt's completions with every aspect's rating and rationale.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from rlaif.constitution import textstats as ts
from rlaif.core.errors import ConfigError
from rlaif.core.ids import IdSet
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import VALUED, Completion, Judgement, Preference, Prompt, content_hash
from rlaif.core.store import explain_os_errors, write_atomic
from rlaif.data.convert import written
from rlaif.data.readers import FORMATS
from rlaif.data.readers.base import make_pair
from rlaif.data.readers.llama_factory import COLUMNS
from rlaif.data.readers.ultrafeedback import ASPECTS
from rlaif.data.rows import Row, Spool, unite_columns

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


def held_prompts(prompt_ids: Iterable[str], share: float) -> AbstractSet[str]:
    """The prompts of the test split: `share` of them, rounded, and at least one of two or more
    where `share` is above 0. The order of ids' hashes decides, so that no seed moves a prompt."""
    ordered = IdSet(content_hash("split", name) + name for name in prompt_ids)
    count = round(share * len(ordered))
    if share > 0 and len(ordered) > 1:
        count = min(max(count, 1), len(ordered) - 1)
    digits = len(content_hash())
    return IdSet(entry[digits:] for entry in islice(ordered, count))


class PairTables:
    """The rows of pairs by format and split, as pairs are added: they lie in files of `folder`.
    `lost` is how many pairs each format could not hold."""

    def __init__(self, folder: Path, formats: Sequence[str]):
        self._folder = folder
        self._open = ExitStack()
        self.tables = {
            name: {TRAIN: self._open_spool(), TEST: self._open_spool()} for name in formats
        }
        self.lost: dict[str, int] = {}

    def _open_spool(self) -> Spool:
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
        schema = unite_columns(spool.schema() for spool in filled.values()) if filled else None
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
    entry = {"file_name": file, "formatting": "sharegpt", "ranking": True, "columns": COLUMNS}
    return json.dumps({name: entry}, indent=2) + "\n"


def check_login() -> None:
    """Raises ConfigError where nobody is logged in to the hub."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise ConfigError("--push: nobody is logged in to the hub; run `hf auth login` first")


def upload_dataset(folder: Path, repo: str) -> None:
    """Make the dataset repository `repo` (OWNER/NAME), private where it is new, and upload the
    folder to it. The login is the one that huggingface_hub finds (`hf auth login`, or HF_TOKEN).
    Raises ConfigError where the hub refuses, cannot be reached, or knows no such name."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo, repo_type="dataset")
    except (HTTPError, ValueError, OSError) as error:
        raise ConfigError(f"--push {repo}: {error}") from None


LOW, HIGH = 1, 5
OVERALL_LOW, OVERALL_HIGH = 1, 10


def raw_row(
    prompt: Prompt,
    completions: Sequence[Completion],
    judgements: Sequence[Judgement],
    overall: str | None = None,
) -> Row | None:
    """The row of a single-turn prompt, or None of a conversation, which the format cannot hold.

    `judgements` are of these completions. Those under the four aspects are ratings from 1 to 5;
    several of one completion give their mean. `overall` names the judge whose score is put on 1 to
    10 as `overall_score` and whose reasons are the `critique`. What has no value stays null. Two
    keys are ours: `finish_reason` (length: the answer was cut) and `refusal`, by its opening.
    """
    if len(prompt.messages) != 1:
        return None
    about: dict[str, list[Judgement]] = {c.completion_id: [] for c in completions}
    for judgement in judgements:
        if len(judgement.shown) == 1 and judgement.subject in about:
            about[judgement.subject].append(judgement)
    given = [c for c in completions if c.text.strip()]
    return {
        "source": prompt.source,
        "instruction": prompt.question,
        "models": [c.model for c in given],
        "correct_answers": [] if prompt.reference is None else [prompt.reference],
        "incorrect_answers": list[str](),
        "completions": [_rated_completion(c, about[c.completion_id], overall) for c in given],
    }


def _rated_completion(
    completion: Completion, said: Sequence[Judgement], overall: str | None
) -> Row:
    whole = [j for j in said if j.judge == overall]
    score = _mean_score(whole)
    return {
        "model": completion.model,
        "principle": completion.principle or "",
        "custom_system_prompt": _own_system_prompt(completion),
        "response": completion.text,
        "critique": _first_rationale(whole),
        "overall_score": None if score is None else _scale_rating(score, OVERALL_LOW, OVERALL_HIGH),
        "finish_reason": completion.finish_reason,
        "refusal": ts.is_refusal(completion.text),
        "annotations": {
            aspect: _aspect_annotation(
                [j for j in said if j.principle == aspect and j.judge != overall]
            )
            for aspect in ASPECTS
        },
    }


def _own_system_prompt(completion: Completion) -> str:
    """What the model was told, and not that its template's own text was kept or dropped."""
    told = completion.system_prompt
    return "" if told is None or told in ("keep", "drop") else told


def _aspect_annotation(said: Sequence[Judgement]) -> Mapping[str, Any]:
    score = _mean_score(said)
    if score is not None:
        rating: str | None = f"{_scale_rating(score, LOW, HIGH):g}"
    else:
        rating = "N/A" if any(j.status == "not_applicable" for j in said) else None
    return {"Rating": rating, "Rationale": _first_rationale(said)}


def _mean_score(said: Sequence[Judgement]) -> float | None:
    scores = [j.score for j in said if j.status in VALUED and j.score is not None]
    return sum(scores) / len(scores) if scores else None


def _scale_rating(score: float, low: int, high: int) -> float:
    return round(low + (high - low) * score, 6)


def _first_rationale(said: Sequence[Judgement]) -> str:
    return next((j.rationale or j.raw for j in said if j.rationale or j.raw), None) or ""
