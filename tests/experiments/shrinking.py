"""A shipped experiment at a tiny size: its own file, with other values at its own paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlaif.config.paths import step_places
from rlaif.core.resources import find

PROMPTS = 4
TOKENS = 12
FITTED = ("linear", "ordinal", "multi_objective", "quantile")


def shrunk(name: str, model: Path) -> tuple[Path, list[str]]:
    """The file of a shipped experiment, and the settings that make it tiny: few prompts, short
    answers, two rollouts, and a small model in fp32."""
    path = Path(str(find(f"experiments/{name}.yaml")))
    data = yaml.safe_load(path.read_text("utf-8"))
    settings = {"models.policy.path": str(model), "models.policy.dtype": "float32"}
    if "path" in data["prompts"]:
        settings["prompts.holdout"] = str(PROMPTS)
    for set_name, spec in data.get("prompt_sets", {}).items():
        if "holdout" in spec:
            settings[f"prompt_sets.{set_name}.holdout"] = str(PROMPTS)
    for place in step_places(data):
        body = _body(data, place.loc)
        settings |= {f"steps.{place.id}.{key}": value for key, value in _tiny(place.kind, body)}
    return path, [f"{key}={value}" for key, value in settings.items()]


def _body(data: Any, loc: tuple[Any, ...]) -> Mapping[str, Any]:
    node = data
    for part in loc:
        node = node[part]
    ((kind, body),) = ((k, v) for k, v in node.items() if k not in ("when", "arms"))
    return body if isinstance(body, dict) else {"kind": kind}


def _tiny(kind: str, body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, value) of a step's keys that decide how much it computes."""
    if "max_new_tokens" in body:
        yield "max_new_tokens", str(TOKENS)
    if kind == "sample" and isinstance(body.get("prompts"), int):
        yield "prompts", str(PROMPTS)
    if kind == "pair" and "min_margin" in body:
        yield "min_margin", "0"
    if kind == "distill" and body.get("method") not in FITTED:
        yield "batch_size", "2"
        yield "precision", "fp32"
    if kind == "train":
        yield "batch_size", "2"
        yield "precision", "fp32"
        for key in ("rollouts", "epochs"):
            if key in body:
                yield key, "2"
