"""Votes of people and verdicts of a judge with what is behind them known, as files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlaif.core.records import content_hash, make_prompt
from rlaif.data.readers.base import answer_id, assistant_turns, user

WORDS = ("plain", "answer", "given", "here", "about", "the", "thing", "that", "was", "asked")


@dataclass(frozen=True)
class Planted:
    """`pairs` of answers to a prompt each. People vote by quality with the noise of a logistic;
    the judge sees quality, with normal noise of `noise` and `length_bias` per standard deviation of
    length difference, both in log-odds."""

    pairs: int = 240
    people: int = 3
    length_bias: float = 0.0
    noise: float = 0.0
    spread: float = 1.5
    seed: int = 0


def write_planted(folder: Path, planted: Planted) -> dict[str, Path]:
    """Files of judgements by people and by a judge, of completions and of prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(planted.seed)
    rows: dict[str, list[dict[str, Any]]] = {
        n: [] for n in ("people", "judge", "completions", "prompts")
    }
    for number in range(planted.pairs):
        quality, gap = rng.normal(0, planted.spread), rng.normal()
        asked = user(f"Question {number}?")
        prompt = make_prompt(asked, "planted", ["even" if number % 2 == 0 else "odd"])
        rows["prompts"].append(
            {
                "prompt_id": prompt.prompt_id,
                "messages": asked,
                "source": "planted",
                "tags": prompt.tags,
            }
        )
        sizes = [max(1, round(60 + side * 12 * gap)) for side in (1, -1)]
        ids = []
        for size in sizes:
            said = " ".join(rng.choice(WORDS, size))
            name = answer_id(asked, assistant_turns(said))
            ids.append(name)
            rows["completions"].append(completion(name, prompt.prompt_id, said))
        for person in range(planted.people):
            first = rng.random() < 1 / (1 + np.exp(-quality))
            rows["people"].append(
                verdict(prompt.prompt_id, ids, f"person-{person}", "human", float(first), rng)
            )
        seen = quality + planted.length_bias * gap + planted.noise * rng.normal()
        rows["judge"].append(
            verdict(prompt.prompt_id, ids, "judge", "ai", float(1 / (1 + np.exp(-seen))), rng)
        )
    paths = {}
    for name, own in rows.items():
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in own), "utf-8")
    return paths


def completion(name: str, prompt_id: str, text: str) -> dict[str, Any]:
    """A row of a file of completions."""
    return {
        "completion_id": name,
        "prompt_id": prompt_id,
        "sample_index": 0,
        "messages": assistant_turns(text),
        "model": "m",
        "weights_hash": "",
        "sampling": {},
        "finish_reason": "stop",
    }


def verdict(
    prompt_id: str,
    ids: list[str],
    who: str,
    kind: str,
    prob_first: float,
    rng: np.random.Generator | None = None,
    principle: str | None = None,
) -> dict[str, Any]:
    """A row of a file of judgements on two answers, shown in an order that `rng` draws."""
    turned = rng is not None and rng.random() < 0.5
    shown = ids[::-1] if turned else list(ids)
    prob = 1 - prob_first if turned else prob_first
    name = content_hash(prompt_id, shown, who, principle)
    return {
        "judgement_id": "j_" + name,
        "call_id": "c_" + name,
        "prompt_id": prompt_id,
        "subject_kind": "completion",
        "shown": shown,
        "subject": shown[0],
        "judge": "people" if kind == "human" else who,
        "annotator_id": who,
        "annotator_kind": kind,
        "principle": principle,
        "status": "tie" if prob == 0.5 else "ok",
        "prob_first": prob,
    }
