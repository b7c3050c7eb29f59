"""Records as the browser's index has them, made by hand, and the run folder that has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif.core.records import Completion, Judgement, Preference, make_prompt, to_json
from rlaif.core.store import Store, write_jsonl
from rlaif.web.ui.index import Source

STEPS = ("5a" * 12, "5b" * 12, "5c" * 12)
"""The hashes of the steps of a run made by hand."""


def completion(prompt: str, name: str, text: str, **more: Any) -> Completion:
    said: Any = [{"role": "assistant", "content": text}]
    return Completion(name, prompt, 0, said, "M0", "w", {}, "stop", **more)


def judgement(
    prompt: str, name: str, shown: list[str], value: float | None, **more: Any
) -> Judgement:
    """One answer's score, or of two answers the probability that the first is better."""
    given: dict[str, Any] = {"prob_first" if len(shown) > 1 else "score": value}
    status = "ok" if value is not None else "unparsed"
    given |= {"judge": "self", "principle": "useful", "status": status, **more}
    return Judgement(
        judgement_id=name, call_id=f"call-{name}", prompt_id=prompt, subject_kind="completion",
        shown=shown, subject=shown[0], annotator_id="a", annotator_kind="ai", **given,
    )  # fmt: skip


def preference(
    prompt: str, name: str, chosen: Completion, rejected: Completion, **more: Any
) -> Preference:
    given: dict[str, Any] = {"margin": 0.5, "judgement_ids": [], "reason": "", **more}
    return Preference(
        preference_id=name, prompt_id=prompt, round=1,
        prompt=[{"role": "user", "content": f"About {prompt}?"}], chosen=chosen.messages,
        rejected=rejected.messages, score_chosen=None, score_rejected=None, prob=1.0, weight=1.0,
        source="rlaif", chosen_id=chosen.completion_id, rejected_id=rejected.completion_id, **given,
    )  # fmt: skip


def write_records(root: Path, step: int, name: str, records: list[Any]) -> None:
    """Commit one batch to a step of the run in `root`."""
    Store(root).step(STEPS[step]).append(name, records)


def source_of(root: Path, questions: list[str]) -> Source:
    """The records of a run with these prompts."""
    root.mkdir(parents=True, exist_ok=True)
    prompts = [make_prompt([{"role": "user", "content": text}]) for text in questions]
    write_jsonl(root / "prompts.jsonl", (to_json(prompt) for prompt in prompts))
    return Source(root, STEPS, "prompts")
