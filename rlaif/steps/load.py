"""load: bring records in from a file, checked row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.chat import is_unicode
from rlaif.data.rows import file_rows
from rlaif.errors import ConfigError
from rlaif.records import (
    Completion,
    Judgement,
    Message,
    Preference,
    content_hash,
    from_json,
    make_prompt,
)
from rlaif.resources import find
from rlaif.steps.context import StepContext

BATCH = 1000
KINDS: dict[str, Any] = {"completions": Completion, "judgements": Judgement}


def run(context: StepContext) -> dict[str, Any]:
    """Read the whole file, refuse what is wrong, commit."""
    step = context.planned.step
    path = find(step.path, context.inputs.path)
    records: list[Any] = []
    for place, row in file_rows(path):
        if step.type == "preferences":
            records.append(trl_preference(row, place, context.planned.round))
            continue
        try:
            records.append(from_json(KINDS[step.type], row))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{place}: not a row of {step.type}: {error}") from None
    if not records:
        raise ConfigError("no rows in this file", path)
    done = len(context.folder.read(step.type))
    for start in range(done, len(records), BATCH):
        context.folder.append(step.type, records[start : start + BATCH])
    return {"counts": {step.type: len(records)}}


def load_trl(path: Path, round_number: int = 0) -> list[Preference]:
    """The preferences in a JSONL or Parquet file of TRL's formats (text or message lists)."""
    return [trl_preference(row, place, round_number) for place, row in file_rows(path)]


def _explicit_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """TRL's implicit form, two conversations that begin alike, with the shared turns as prompt."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if row.get("prompt") or not isinstance(chosen, list) or not isinstance(rejected, list):
        return row
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    parts = {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
    return {**row, **parts}


def trl_preference(row: dict[str, Any], place: str, round_number: int) -> Preference:
    """One TRL row as a Preference. Raises ConfigError that names the row."""
    if set(row) >= {"preference_id", "chosen_id", "rejected_id"}:
        try:
            own: Preference = from_json(Preference, row)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{place}: not a preference row: {error}") from None
        _whole_text([*own.prompt, *own.chosen, *own.rejected], place)
        return own
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
    prompt = _turns(row["prompt"], "user", place)
    chosen = _turns(row["chosen"], "assistant", place)
    rejected = _turns(row["rejected"], "assistant", place)
    if chosen == rejected:
        raise ConfigError(f"{place}: chosen and rejected are the same text")
    above = _number(row, "score_chosen", place)
    below = _number(row, "score_rejected", place)
    margin = _number(row, "margin", place)
    if margin is None:
        margin = above - below if above is not None and below is not None else 0.0
    scores = (margin if above is None else above, 0.0 if below is None else below, margin)
    return _loaded(row, prompt, chosen, rejected, scores, round_number)


def _single(row: dict[str, Any], place: str, round_number: int) -> Preference:
    """One row of TRL's unpaired or prompt-completion form; without a label the answer is good."""
    label = row.get("label", True)
    if not isinstance(label, bool):
        raise ConfigError(f"{place}: label is {label!r}; true or false was expected")
    prompt = _turns(row["prompt"], "user", place)
    answer = _turns(row["completion"], "assistant", place)
    if len(answer) != 1 or answer[0]["role"] != "assistant":
        raise ConfigError(
            f"{place}: completion has {len(answer)} turns; text or one assistant turn was "
            "expected. Earlier turns belong into prompt."
        )
    good, bad = (answer, []) if label else ([], answer)
    return _loaded(row, prompt, good, bad, (0.0, 0.0, 0.0), round_number)


def _loaded(
    row: dict[str, Any],
    prompt: list[Message],
    chosen: list[Message],
    rejected: list[Message],
    scores: tuple[float, float, float],
    round_number: int,
) -> Preference:
    ids = ["x_" + content_hash(prompt, side) if side else "" for side in (chosen, rejected)]
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
        reason="loaded from a file",
        source=str(row.get("source") or "file"),
        judgement_ids=[],
        chosen_id=ids[0],
        rejected_id=ids[1],
    )


def _number(row: dict[str, Any], key: str, place: str) -> float | None:
    """A finite number, or None where the cell is empty (null or NaN)."""
    value = row.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{place}: {key} is {value!r}; a number was expected")
    return float(value)


def _turns(value: Any, role: str, place: str) -> list[Message]:
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    turns = value if isinstance(value, list) else []
    if not turns or not all(_is_turn(turn) for turn in turns):
        raise ConfigError(f"{place}: expected text or a list of {{role, content}} turns")
    _whole_text(turns, place)
    return [{"role": t["role"], "content": t["content"]} for t in turns]


def _whole_text(turns: Sequence[Message], place: str) -> None:
    if not is_unicode(turn["content"] for turn in turns):
        raise ConfigError(
            f"{place}: the text has half a surrogate pair (\\ud800 to \\udfff), which no tokenizer "
            "takes: it was cut in the middle of a character. Mend or remove the row."
        )


def _is_turn(turn: Any) -> bool:
    return (
        isinstance(turn, dict)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
    )
