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


def shrink(name: str, model: Path, folder: Path) -> tuple[Path, list[str]]:
    """A copy in `folder` of a shipped experiment whose steps compute little, and the settings that
    make the rest tiny: few held-out prompts, and a small model in fp32."""
    data = yaml.safe_load(Path(str(find(f"experiments/{name}.yaml"))).read_text("utf-8"))
    settings = {"models.policy.path": str(model), "models.policy.dtype": "float32"}
    if "path" in data["prompts"]:
        settings["prompts.holdout"] = str(PROMPTS)
    for set_name, spec in data.get("prompt_sets", {}).items():
        if "holdout" in spec:
            settings[f"prompt_sets.{set_name}.holdout"] = str(PROMPTS)
        for source in spec.get("generate", {}).get("sources", []):
            source |= {"count": PROMPTS, "max_new_tokens": TOKENS}
    kinds = {}
    for place in step_places(data):
        kinds[f"steps.{place.id}"] = place.kind
        entry = data
        for part in place.loc:
            entry = entry[part]
        if isinstance(entry[place.kind], dict):
            entry[place.kind] |= dict(_shrink_step(place.kind, entry[place.kind]))
    # An arm may put another step in the place of one.
    for arm in data.get("arms", {}).values():
        for path, value in arm.get("set", {}).items():
            if path in kinds and isinstance(value, dict):
                value |= dict(_shrink_step(kinds[path], value))
            elif path.endswith(".prompts"):
                value["count"] = PROMPTS
    copy = folder / f"{name}.yaml"
    copy.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), "utf-8")
    return copy, [f"{key}={value}" for key, value in settings.items()]


def _shrink_step(kind: str, body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, value) of a step's keys that decide how much it computes."""
    if "max_new_tokens" in body:
        yield "max_new_tokens", TOKENS
    if kind == "sample" and isinstance(body.get("prompts"), int):
        yield "prompts", PROMPTS
    if kind == "sample" and isinstance(body.get("prompts"), dict):
        yield "prompts", body["prompts"] | {"count": PROMPTS}
    if kind == "pair" and "min_margin" in body:
        yield "min_margin", 0
    if kind == "distill" and body.get("method") not in FITTED:
        yield "batch_size", 2
        yield "precision", "fp32"
    if kind == "train":
        yield "batch_size", 2
        yield "precision", "fp32"
        for key in ("rollouts", "epochs"):
            if key in body:
                yield key, 2
