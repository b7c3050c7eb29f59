"""The data that the report's browsers embed: pairs with every judgement, and held-out answers.

Model text travels as JSON inside a script element that is never executed, and reaches the page by
`textContent` alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.report.rows import arms_of
from rlaif.report.view import HeldOutRow, RunView

MAX_PAIRS = 400
MAX_ANSWERS = 200
MAX_TEXT = 20_000
MAX_RAW = 4_000

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def embed_json(value: Any) -> str:
    """JSON that cannot leave a script element: ASCII only, no `<`, `>` or `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def browser_data(run: RunView) -> dict[str, Any]:
    """`{"arms": bool, "pairs": [...], "answers": [...]}` for report.js, at most the first of each
    by id."""
    chosen = sorted(run.preferences, key=lambda row: (str(row["preference_id"]), row["seed"]))
    return {
        "arms": len(arms_of(run.rounds)) > 1,
        "pairs": [_pair(run, row) for row in chosen[:MAX_PAIRS]],
        "answers": _answers(run),
    }


def conversation(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as text; a single user turn stands alone, without its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role'].upper()}\n{m['content']}" for m in messages)


def clip(text: str, limit: int = MAX_TEXT) -> str:
    """`text`, cut at `limit` characters with a note of how many are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n\n[… {len(text) - limit} more characters in the run folder]"


def answer_text(completion: Mapping[str, Any]) -> str:
    """The assistant turn of a Completion's JSON, or an empty string."""
    messages = completion.get("messages") or []
    return str(messages[-1]["content"]) if messages else ""


def _pair(run: RunView, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["preference_id"],
        "arm": row["arm"],
        "seed": row["seed"],
        "round": row["round"],
        "prompt": clip(conversation(row["prompt"])),
        "chosen": clip(conversation(row["chosen"])),
        "rejected": clip(conversation(row["rejected"])),
        "score_chosen": row["score_chosen"],
        "score_rejected": row["score_rejected"],
        "margin": row["margin"],
        "reason": row["reason"],
        "source": row["source"],
        "judged_chosen": _judgements(run, row["chosen_id"]),
        "judged_rejected": _judgements(run, row["rejected_id"]),
    }


def _judgements(run: RunView, subject: str) -> list[dict[str, Any]]:
    found = run.judgements_by_subject.get(subject, [])
    return [_judgement(row, subject) for row in found]


def _judgement(row: Mapping[str, Any], subject: str) -> dict[str, Any]:
    shown = list(row.get("shown") or [])
    among = len(shown) > 1 and subject in shown
    order = f"{shown.index(subject) + 1} of {len(shown)}" if among else ""
    value = row.get("score")
    what = "score"
    if value is None and row.get("prob_first") is not None:
        value, what = row["prob_first"], "P(first shown)"
    raw = [text for text in (row.get("rationale"), row.get("raw")) if text]
    return {
        "judge": row["judge"],
        "principle": row.get("principle") or "",
        "order": order,
        "status": row["status"],
        "value": value,
        "what": what,
        "mass": row.get("label_mass"),
        "raw": clip("\n\n".join(dict.fromkeys(str(text) for text in raw)), MAX_RAW),
    }


def _answers(run: RunView) -> list[dict[str, Any]]:
    """One entry per seed and held-out prompt: its answers by model, in the order of rounds and
    arms."""
    models = list(dict.fromkeys(row["model"] for row in run.heldout))
    grouped: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in sorted(run.heldout, key=lambda r: _order(r, models)):
        completion = run.completions.get(row["completion_id"])
        text = "" if completion is None else answer_text(completion)
        reason = "not stored" if completion is None else str(completion.get("finish_reason", ""))
        answer = {"model": row["model"], "text": clip(text), "finish": reason}
        grouped.setdefault((row["prompt_id"], row["seed"]), []).append(answer)
    return [
        {"seed": seed, "prompt": _prompt_text(run, prompt_id), "models": grouped[prompt_id, seed]}
        for prompt_id, seed in sorted(grouped)[:MAX_ANSWERS]
    ]


def _order(row: HeldOutRow, models: Sequence[str]) -> tuple[int, int, str]:
    return row["round"], models.index(row["model"]), row["completion_id"]


def _prompt_text(run: RunView, prompt_id: str) -> str:
    prompt = run.prompts.get(prompt_id)
    return prompt_id if prompt is None else clip(conversation(prompt["messages"]))
