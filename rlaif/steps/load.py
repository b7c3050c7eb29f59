"""load: bring records in from a file, checked row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msgspec import structs

from rlaif.config import LoadStep
from rlaif.data.labelled import LabelledPair
from rlaif.data.labels import GivenPair, given_label, given_pair
from rlaif.data.loaded import record_of
from rlaif.data.readers import Reading, read_labelled
from rlaif.data.readers.base import answer_id, better, better_scores, name_of, number_of, turns
from rlaif.data.readers.trl import shared_turns
from rlaif.data.rows import file_rows
from rlaif.errors import ConfigError
from rlaif.records import (
    Completion,
    Judgement,
    Message,
    Preference,
    Prompt,
    content_hash,
    make_prompt,
)
from rlaif.resources import find
from rlaif.steps.context import StepContext

BATCH = 1000
KINDS: dict[str, tuple[Any, str]] = {
    "completions": (Completion, "completion_id"),
    "judgements": (Judgement, "judgement_id"),
}
"""Each kind's record, and the key of its id."""


def run(context: StepContext) -> dict[str, Any]:
    """Read the whole file, refuse what is wrong, commit."""
    step = context.planned.step
    path = find(context.inputs.experiment.loaded_path(step) or "", context.inputs.path)
    if step.type == "pairs":
        return _run_pairs(context, _reading(step, path), path)
    left_out: dict[str, int] = {}
    if step.format is not None or step.columns is not None:
        records, left_out = _labelled(step, path, context.planned.round)
    elif step.type == "preferences":
        records = load_trl(path, context.planned.round)
    else:
        records = _records(step.type, path, context.prompts)
    if not records:
        raise ConfigError("no rows in this file that could be used", path)
    done = len(context.folder.read(step.type))
    for start in range(done, len(records), BATCH):
        context.folder.append(step.type, records[start : start + BATCH])
    return {"counts": {step.type: len(records), **left_out}}


def _records(kind: str, path: Path, prompts: Mapping[str, Prompt]) -> list[Any]:
    """Every row as a record. Raises ConfigError for a row that is none, for an id that comes twice,
    and for a completion of a prompt that the experiment does not have."""
    record, key = KINDS[kind]
    places: dict[str, str] = {}
    found = []
    for place, row in file_rows(path):
        made = record_of(record, row, place)
        name = getattr(made, key)
        if places.setdefault(name, place) != place:
            raise ConfigError(
                f"{place}: {key} {name!r} stands at {places[name]} already; every row of {kind} "
                "needs an id of its own. Remove one of the two, or give it another id."
            )
        if kind == "completions" and made.prompt_id not in prompts:
            raise ConfigError(
                f"{place}: prompt_id {made.prompt_id!r} is none of the experiment's prompts; add "
                "the prompt to the prompts file, or remove the row"
            )
        found.append(made)
    return found


def _reading(step: LoadStep, path: Path) -> Reading:
    reading = read_labelled(path, step.format, step.columns, step.on_error)
    if reading.format.open is not None:
        raise ConfigError(
            f"format {reading.name} needs a second file, which this step would not watch for "
            "changes: make one file of the two with `rlaif convert` first",
            path,
        )
    return reading


def _labelled(
    step: LoadStep, path: Path, round_number: int
) -> tuple[list[Preference], dict[str, int]]:
    """The preferences that a file's labels give, and how many rows or pairs gave none, by why."""
    reading = _reading(step, path)
    counts = {"skipped": 0, "tied": 0, "unlabelled": 0}
    found: list[Preference] = []
    for pair in reading:
        if pair.label is None or pair.label == 0.5:
            counts["tied" if pair.label == 0.5 else "unlabelled"] += 1
            continue
        found.append(labelled_preference(pair, round_number))
    counts["skipped"] = len(reading.skipped)
    without = {name: count for name, count in counts.items() if count}
    if not found:
        why = ", ".join(f"{name}: {count}" for name, count in without.items())
        raise ConfigError(
            f"none of its {reading.rows} rows gives a pair with a winner ({why})", path
        )
    return found, without


def labelled_preference(pair: LabelledPair, round_number: int = 0) -> Preference:
    """What the annotator of a pair said, as a Preference whose `source` is the annotator's kind.

    The scores are the file's own. The margin is their gap; without scores it is what a share of
    votes says, P(chosen is better) - P(rejected is better), and a plain verdict has none. Raises
    ValueError for a tie or a pair without a label.
    """
    chosen, rejected = better(pair)
    assert pair.label is not None
    above = max(pair.label, 1.0 - pair.label)
    scores, margin = better_scores(pair), None if above == 1.0 else 2.0 * above - 1.0
    if scores is not None:
        margin = scores[0] - scores[1]
    return _loaded(
        pair.annotator_kind,
        pair.prompt.messages,
        chosen.messages,
        rejected.messages,
        (*(scores or (None, None)), margin),
        round_number,
        f"labelled by {pair.annotator}" if pair.annotator else "labelled in a file",
    )


def _run_pairs(context: StepContext, reading: Reading, path: Path) -> dict[str, Any]:
    """The pairs of this step's prompts: their answers, who said what of them, and the pairs."""
    wanted = set(context.planned.prompts)
    completions: dict[str, Completion] = {}
    judgements: dict[str, Judgement] = {}
    pairs: dict[str, GivenPair] = {}
    alike: Counter[tuple[str, str, float]] = Counter()
    for pair in reading:
        if pair.prompt.prompt_id not in wanted:
            continue
        given = given_pair(pair)
        pairs[given.pair_id] = given
        for answer in (pair.first, pair.second):
            # The place in the file is no order of sampling: a judge must not learn from it.
            completions[answer.completion_id] = structs.replace(answer, sample_index=0)
        if pair.label is not None:
            said = given_label(pair, given, context.planned.step.id, alike)
            judgements[said.judgement_id] = said
    if not pairs:
        raise ConfigError(
            f"none of its {reading.rows} rows is a pair of answers to one of the {len(wanted)} "
            "prompts. The labels must be of these prompts: leave `prompts.path` out, and the "
            "prompts are those of the pairs.",
            path,
        )
    for name, records in (
        ("completions", [completions[key] for key in sorted(completions)]),
        ("judgements", [judgements[key] for key in sorted(judgements)]),
        ("pairs", [asdict(pairs[key]) for key in sorted(pairs)]),
    ):
        done = len(context.folder.read(name))
        for start in range(done, len(records), BATCH):
            context.folder.append(name, records[start : start + BATCH])
    counts = {"pairs": len(pairs), "completions": len(completions), "judgements": len(judgements)}
    return {"counts": {**counts, "skipped": len(reading.skipped)}, "skipped": reading.skipped[:20]}


def load_preferences(path: Path) -> list[Preference]:
    """The preferences in a step's folder, in a file of TRL's formats, or in one of labelled pairs
    of any known format (ties and pairs without a label are left out). Raises ConfigError."""
    if path.is_dir():
        return load_trl(path / "preferences.jsonl")
    row = next(file_rows(path), None)
    if row is None or {"prompt", "chosen", "rejected"} <= row[1].keys():
        return load_trl(path)
    return [labelled_preference(p) for p in read_labelled(path) if p.label not in (None, 0.5)]


def load_trl(path: Path, round_number: int = 0) -> list[Preference]:
    """The preferences in a JSONL or Parquet file of TRL's formats (text or message lists)."""
    return [trl_preference(row, place, round_number) for place, row in file_rows(path)]


def _explicit_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """TRL's implicit form, two conversations that begin alike, with the shared turns as prompt."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if row.get("prompt") or not isinstance(chosen, list) or not isinstance(rejected, list):
        return row
    shared = shared_turns(chosen, rejected)
    parts = {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
    return {**row, **parts}


def trl_preference(row: dict[str, Any], place: str, round_number: int) -> Preference:
    """One TRL row as a Preference. Raises ConfigError that names the row."""
    if set(row) >= {"preference_id", "chosen_id", "rejected_id"}:
        return record_of(Preference, row, place)
    single = "completion" in row and not row.get("chosen") and not row.get("rejected")
    row = _explicit_prompt(row)
    wanted = ("prompt", "completion") if single else ("prompt", "chosen", "rejected")
    lacking = [key for key in wanted if not row.get(key)]
    if lacking:
        raise ConfigError(
            f"{place}: {', '.join(lacking)} missing or empty; expected prompt, chosen and "
            "rejected, or prompt and completion, with a label (true or false) where answers can be "
            f"bad; the row has {sorted(row)}"
        )
    if single:
        return _single(row, place, round_number)
    prompt = turns(row, "prompt", "user", place)
    chosen = turns(row, "chosen", "assistant", place)
    rejected = turns(row, "rejected", "assistant", place)
    if chosen == rejected:
        raise ConfigError(f"{place}: chosen and rejected are the same text")
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer[-1]["role"] != "assistant":
            raise ConfigError(f"{place}: {key} must end with an assistant turn, the answer")
    above = number_of(row, "score_chosen", place)
    below = number_of(row, "score_rejected", place)
    margin = number_of(row, "margin", place)
    if margin is None and above is not None and below is not None:
        margin = above - below
    source = name_of(row, "source", place) or "file"
    return _loaded(source, prompt, chosen, rejected, (above, below, margin), round_number)


def _single(row: dict[str, Any], place: str, round_number: int) -> Preference:
    """One row of TRL's unpaired or prompt-completion form; without a label the answer is good."""
    label = row.get("label", True)
    if not isinstance(label, bool):
        raise ConfigError(f"{place}: label is {label!r}; true or false was expected")
    prompt = turns(row, "prompt", "user", place)
    answer = turns(row, "completion", "assistant", place)
    if len(answer) != 1 or answer[0]["role"] != "assistant":
        raise ConfigError(
            f"{place}: completion has {len(answer)} turns; text or one assistant turn was "
            "expected. Earlier turns belong into prompt."
        )
    good, bad = (answer, []) if label else ([], answer)
    source = name_of(row, "source", place) or "file"
    return _loaded(source, prompt, good, bad, (None, None, None), round_number)


def _loaded(
    source: str,
    prompt: list[Message],
    chosen: list[Message],
    rejected: list[Message],
    scores: tuple[float | None, float | None, float | None],
    round_number: int,
    reason: str = "loaded from a file",
) -> Preference:
    ids = [answer_id(prompt, side) if side else "" for side in (chosen, rejected)]
    return Preference(
        preference_id="f_" + content_hash(*ids),
        prompt_id=make_prompt(prompt).prompt_id,
        round=round_number,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        score_chosen=scores[0],
        score_rejected=scores[1],
        margin=scores[2],
        prob=1.0,
        weight=1.0,
        reason=reason,
        source=source,
        judgement_ids=[],
        chosen_id=ids[0],
        rejected_id=ids[1],
    )
