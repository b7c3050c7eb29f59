"""A judge of any spec in an experiment of its own folder, and answers written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rlaif.constitution.model import Constitution
from rlaif.core.records import Completion, content_hash, make_prompt
from rlaif.engines.base import GenerateResult, ScoreResult
from rlaif.judges.build import JudgeStep, build_judge

SEED = 9
PROMPT = make_prompt(
    [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Where is it mild?"},
    ],
    tags=["south"],
    reference="In Lisbon.",
)
SHOT = {"prompt": "q", "why": "w"}
RULES = Constitution.model_validate(
    {
        "name": "winds",
        "principles": [
            {
                "id": "north",
                "text": "Be cool.",
                "weight": 3,
                "scale": {0: "hot", 1: "warm", 3: "cold"},
                "examples": [SHOT | {"better": f"b{n}", "worse": f"w{n}"} for n in (1, 2, 3)],
            },
            {"id": "south", "text": "Be warm.", "applies_when": {"tags": ["south"]}},
            {"id": "west", "text": "Be wet.", "applies_when": {"tags": ["west"]}},
        ],
    }
)


def completion(text: str, index: int) -> Completion:
    said: Any = [{"role": "assistant", "content": text}]
    name = f"k{index}"
    return Completion(
        name, PROMPT.prompt_id, index, said, "m", "w", {}, "stop", digest=content_hash(text)
    )


ONE, TWO, THREE = completion("Oslo", 0), completion("Rome", 1), completion("Bonn", 2)


def judge_of(folder: Path | None = None, rules: Constitution | None = RULES, **spec: Any) -> Any:
    """The judge of a spec in an experiment that lies in `folder`."""
    model: Any = TypeAdapter(JudgeStep).validate_python(spec)
    return build_judge(model, rules, None if folder is None else folder / "experiment.yaml")


def template(folder: Path, *lines: str) -> str:
    """A template that lies beside the experiment alone."""
    (folder / "own.j2").write_text("\n".join(lines), "utf-8")
    return "own.j2"


def asked(call: Any) -> str:
    return str(call.request.messages[-1]["content"])


def said(call: Any, text: str) -> GenerateResult:
    return GenerateResult(call.call_id, text, [], "stop", 1)


def labels(call: Any, probs: Mapping[str, float]) -> ScoreResult:
    forms = call.then.labels if call.then is not None else call.request.labels
    every = {label: probs.get(label, 0.0) for label in forms}
    return ScoreResult(call.call_id, every, sum(every.values()), [], 1)


def enums(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: field.get("enum") for name, field in schema["properties"].items()}
