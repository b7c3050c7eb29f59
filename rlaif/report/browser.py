"""The data that the report's browsers embed: pairs with every judgement, and held-out answers.

Model text travels as JSON inside a script element that is never executed, and reaches the page by
`textContent` alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.core.records import SPEAKERS
from rlaif.report.view import HeldOutRow

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


def format_conversation(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as text; a single user turn stands alone, without its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role'].upper()}\n{m['content']}" for m in messages)


def clip_text(text: str, limit: int = MAX_TEXT) -> str:
    """`text`, cut at `limit` characters with a note of how many are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n\n[… {len(text) - limit} more characters in the run folder]"


def answer_text(completion: Mapping[str, Any]) -> str:
    """The assistant turn of a Completion's JSON, or an empty string; of an episode all turns, with
    what the environment gave for the policy's own."""
    messages = completion.get("messages") or []
    if completion.get("turns"):
        return _episode_text(messages, completion["turns"])
    return str(messages[-1]["content"]) if messages else ""


def count_own_words(completion: Mapping[str, Any]) -> int:
    """Words of a Completion's JSON that the model wrote: of an episode those of its own turns."""
    messages = completion.get("messages") or []
    own = [m for m in messages if m["role"] == "assistant"] if completion.get("turns") else []
    return sum(len(str(m["content"]).split()) for m in own or messages[-1:])


def _episode_text(messages: Sequence[Mapping[str, Any]], turns: Sequence[Mapping[str, Any]]) -> str:
    taken = iter(turns)
    parts = []
    for message in messages:
        text = f"{SPEAKERS[message['role']]}: {message['content']}"
        turn = next(taken) if message["role"] == "assistant" else {}
        notes = [f"reward {turn['reward']:g}"] if turn.get("reward") else []
        notes += [f"achieved: {turn['achieved']}"] if turn.get("achieved") else []
        parts.append(f"{text}\n[{'; '.join(notes)}]" if notes else text)
    return "\n\n".join(parts)


def pair_entry(
    row: Mapping[str, Any],
    judged: Mapping[str, Sequence[Mapping[str, Any]]],
    behind: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """A Preference's JSON for the pair browser, with the judgements of both answers by completion
    id, and what is known of the answers behind them by call id."""
    chosen, rejected = (
        [judgement_entry(j, behind, subject) for j in judged.get(subject, [])]
        for subject in (row["chosen_id"], row["rejected_id"])
    )
    return {
        "id": row["preference_id"],
        "arm": row["arm"],
        "seed": row["seed"],
        "round": row["round"],
        "prompt": clip_text(format_conversation(row["prompt"])),
        "chosen": clip_text(format_conversation(row["chosen"])),
        "rejected": clip_text(format_conversation(row["rejected"])),
        "score_chosen": row["score_chosen"],
        "score_rejected": row["score_rejected"],
        "margin": row["margin"],
        "reason": row["reason"],
        "source": row["source"],
        "judged_chosen": chosen,
        "judged_rejected": rejected,
    }


def judgement_entry(
    row: Mapping[str, Any], behind: Mapping[str, Mapping[str, Any]], subject: str
) -> dict[str, Any]:
    """A Judgement's JSON as a browser shows it beside the answer `subject`; `behind` are the stored
    answers that verdicts may rest on, by call id."""
    value, what = row.get("score"), "score"
    if value is None and row.get("prob_first") is not None:
        value, what = row["prob_first"], "P(first shown)"
    raw = [text for text in (row.get("rationale"), row.get("raw")) if text]
    rests_on = row.get("rests_on") or []
    return {
        "judge": row["judge"],
        "principle": row.get("principle") or "",
        "order": _position_shown(row, subject),
        "status": row["status"],
        "value": value,
        "what": what,
        "raw_value": row.get("raw_value"),
        "mass": row.get("label_mass"),
        "template": row.get("template_hash"),
        "raw": _join_texts(raw),
        # What a verdict on one answer alone is made of stands in its own line.
        "parts": _copy_numbers(row.get("distribution")) if rests_on else {},
        "behind": [_describe_answer(behind[call], subject) for call in rests_on if call in behind],
    }


def _position_shown(row: Mapping[str, Any], subject: str) -> str:
    """Which of several texts that were shown the subject was."""
    shown = list(row.get("shown") or [])
    among = len(shown) > 1 and subject in shown
    return f"{shown.index(subject) + 1} of {len(shown)}" if among else ""


def _join_texts(texts: Sequence[Any]) -> str:
    return clip_text("\n\n".join(dict.fromkeys(str(text) for text in texts)), MAX_RAW)


def _copy_numbers(values: Any) -> dict[str, float]:
    return dict(values) if isinstance(values, Mapping) else {}


def answer_facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of a step's answers says of one question: who was asked (`role`, `annotator_id`),
    by which principle and template, and the text or the label probabilities that came."""
    answer = row.get("answer") or {}
    return {
        "call_id": row["call_id"],
        "role": row.get("role"),
        "annotator_id": row.get("annotator_id"),
        "principle": row.get("principle"),
        "template_hash": row.get("template_hash"),
        "shown": row.get("shown") or [],
        "sample_index": row.get("sample_index") or 0,
        "rationale": row.get("rationale") or answer.get("reasoning") or None,
        "raw": answer.get("text"),
        "values": _copy_numbers(answer.get("label_probs")) or _pick_reward(answer),
        "error": answer.get("error"),
    }


def _pick_reward(answer: Mapping[str, Any]) -> dict[str, float]:
    reward = answer.get("reward")
    return {} if reward is None else {"reward": reward}


def _describe_answer(row: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """One answer behind a verdict."""
    facts = answer_facts(row)
    raw = [text for text in (facts["rationale"], facts["raw"], facts["error"]) if text]
    return {
        "role": str(facts["role"] or ""),
        "annotator": str(facts["annotator_id"] or ""),
        "principle": facts["principle"] or "",
        "template": facts["template_hash"],
        "order": _position_shown(row, subject),
        "parts": facts["values"],
        "raw": _join_texts(raw),
    }


def answer_entries(
    chosen: Sequence[tuple[tuple[str, int], Sequence[tuple[HeldOutRow, Mapping[str, Any]]]]],
    prompts: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One entry for each (prompt id, seed) with its held-out answers."""
    return [
        {
            "seed": seed,
            "prompt": _prompt_text(prompts.get(name), name),
            "models": [
                {
                    "model": row["model"],
                    "text": clip_text(answer_text(completion)),
                    "finish": str(completion.get("finish_reason", "")),
                }
                for row, completion in rows
            ],
        }
        for (name, seed), rows in chosen
    ]


def revision_entry(
    step: Mapping[str, Any],
    prompt: Mapping[str, Any] | None,
    original: Mapping[str, Any],
    turns: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> dict[str, Any]:
    """An answer that a step (a row of the manifest) revised, with each critique and the revision
    that followed it, in their order; a revision that was never written is empty."""
    return {
        "arm": " ".join(step["arms"]),
        "seed": step["seed"],
        "round": step["round"],
        "step": step["id"],
        "by": step["models"]["by"][0],
        "prompt": _prompt_text(prompt, str(turns[0][0]["prompt_id"])),
        "id": str(turns[0][0]["parent_id"]),
        "model": str(original.get("model", "")),
        "original": clip_text(answer_text(original)),
        "turns": [
            {
                "principle": critique["principle"],
                "critique": clip_text(critique["text"], MAX_RAW),
                "revision": clip_text(answer_text(revision)),
                "error": critique["error"] or revision.get("error") or "",
                "id": critique["completion_id"],
            }
            for critique, revision in turns
        ],
    }


def _prompt_text(prompt: Mapping[str, Any] | None, name: str) -> str:
    return name if prompt is None else clip_text(format_conversation(prompt["messages"]))
