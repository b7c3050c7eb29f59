"""A run's records as rows for other programs, one held at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlaif.pipeline.runs import Run
from rlaif.report.browser import answer_facts


def trl_rows(run: Run) -> Iterator[dict[str, Any]]:
    """The run's preferences in TRL's explicit-prompt conversational format; answers that stand
    alone in its unpaired one."""
    for row in run.rows("preferences"):
        place = {"prompt_id": row["prompt_id"], "round": row["run_round"], "seed": row["run_seed"]}
        arms = {"arms": row["run_arms"]} if run.manifest["arms"] else {}
        made = _trl_pair(row) if row["chosen"] and row["rejected"] else _trl_single(row)
        yield made | place | arms


def judgement_rows(run: Run) -> Iterator[dict[str, Any]]:
    """The judgements as they are, each with the `answers` that it rests on: who was asked by which
    principle and template, and what came."""
    for step in run.manifest["steps"]:
        folder = run.store.step(step["hash"])
        index = folder.index("answers", "call_id")
        index.grow()
        place = {"step": step["id"], "run_seed": step["seed"], "run_round": step["round"]}
        for row in folder.rows("judgements"):
            calls = [call for call in row.get("rests_on") or () if index.count(call)]
            answers = [answer_facts(index.rows(call)[-1]) for call in calls]
            more = {"run_arms": " ".join(step["arms"]), "answers": answers}
            # Judgements of earlier versions lack the key, and all rows of a table have the same.
            yield {"raw_value": None} | row | place | more


def _trl_pair(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("prompt", "chosen", "rejected", "margin", "score_chosen", "score_rejected")
    return {key: row[key] for key in keys if row[key] is not None}


def _trl_single(row: dict[str, Any]) -> dict[str, Any]:
    answer = row["chosen"] or row["rejected"]
    return {"prompt": row["prompt"], "completion": answer, "label": bool(row["chosen"])}
