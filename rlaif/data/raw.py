"""UltraFeedback's raw rows: a prompt's completions with every aspect's rating and rationale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.constitution import textstats as ts
from rlaif.core.records import VALUED, Completion, Judgement, Prompt
from rlaif.data.readers.ultrafeedback import ASPECTS
from rlaif.data.rows import Row

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
        "completions": [_completion(c, about[c.completion_id], overall) for c in given],
    }


def _completion(completion: Completion, said: Sequence[Judgement], overall: str | None) -> Row:
    whole = [j for j in said if j.judge == overall]
    score = _mean(whole)
    return {
        "model": completion.model,
        "principle": completion.principle or "",
        "custom_system_prompt": _own_system_prompt(completion),
        "response": completion.text,
        "critique": _rationale(whole),
        "overall_score": None if score is None else _scaled(score, OVERALL_LOW, OVERALL_HIGH),
        "finish_reason": completion.finish_reason,
        "refusal": ts.is_refusal(completion.text),
        "annotations": {
            aspect: _annotation([j for j in said if j.principle == aspect and j.judge != overall])
            for aspect in ASPECTS
        },
    }


def _own_system_prompt(completion: Completion) -> str:
    """What the model was told, and not that its template's own text was kept or dropped."""
    told = completion.system_prompt
    return "" if told is None or told in ("keep", "drop") else told


def _annotation(said: Sequence[Judgement]) -> Mapping[str, Any]:
    score = _mean(said)
    if score is not None:
        rating: str | None = f"{_scaled(score, LOW, HIGH):g}"
    else:
        rating = "N/A" if any(j.status == "not_applicable" for j in said) else None
    return {"Rating": rating, "Rationale": _rationale(said)}


def _mean(said: Sequence[Judgement]) -> float | None:
    scores = [j.score for j in said if j.status in VALUED and j.score is not None]
    return sum(scores) / len(scores) if scores else None


def _scaled(score: float, low: int, high: int) -> float:
    return round(low + (high - low) * score, 6)


def _rationale(said: Sequence[Judgement]) -> str:
    return next((j.rationale or j.raw for j in said if j.rationale or j.raw), None) or ""
