"""The steps of a plan and those of a run's manifest in one form, with how much each does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Counts = Mapping[str, int]
"""What a step makes, or how often it asks models (`calls`), by name."""


@dataclass(frozen=True, slots=True)
class Row:
    """A step of a plan or a run. `number` is the round within its stage, `inputs` and `models` name
    what it reads: the hash of a step, and the label and key of a model, by name."""

    hash: str
    kind: str
    id: str
    stage: str
    number: int
    seed: int
    round: int
    arms: tuple[str, ...]
    inputs: Mapping[str, str]
    models: Mapping[str, tuple[str, str]]
    does: tuple[str, ...]
    settings: tuple[str, ...]
    counts: Counts

    @property
    def owner(self) -> str:
        """The id of the file's step: members of a pool are ID/NUMBER, and what an evaluation has
        planned is ID.NAME."""
        return self.id.partition("/")[0].partition(".")[0]

    @property
    def helps(self) -> bool:
        """Whether an evaluation has it planned."""
        return "." in self.id

    def maker(self, role: str) -> str | None:
        """The hash of the step that makes the model in a role; None of a given model."""
        kind, _, digest = self.models[role][1].partition(":")
        return digest if kind == "train" else None


def read_rows(steps: Iterable[Mapping[str, Any]], counts: Mapping[str, Counts]) -> list[Row]:
    """Rows of a manifest with their `counts` by hash. Earlier versions wrote neither stages nor
    what a step does."""
    return [
        Row(
            hash=step["hash"],
            kind=step["kind"],
            id=step["id"],
            stage=step.get("stage", "main"),
            number=step.get("number", step["round"]),
            seed=step["seed"],
            round=step["round"],
            arms=tuple(step["arms"]),
            inputs=step["inputs"],
            models={role: (label, key) for role, (label, key) in step["models"].items()},
            does=tuple(step.get("does", ())),
            settings=tuple(step.get("settings", ())),
            counts=counts.get(step["hash"], {}),
        )
        for step in steps
    ]


def done_counts(markers: Mapping[str, Mapping[str, Any]]) -> dict[str, Counts]:
    """What the finished steps have made, by hash."""
    found: dict[str, Counts] = {}
    for digest, marker in markers.items():
        counts = dict(marker.get("counts", {}))
        asked = {"sample": "completions", "logprobs": "scored"}.get(marker.get("kind", ""))
        found[digest] = counts | ({"calls": counts.get(asked, 0)} if asked else {})
    return found
