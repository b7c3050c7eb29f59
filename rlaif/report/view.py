"""What a report is made from: one run, read into memory as plain JSON-like values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from rlaif.compare.diagnostics import RoundMetrics


class RoundResult(RoundMetrics):
    """A round's measurements with the alarms (`Alarm.to_json`) and sentences drawn from them."""

    alarms: NotRequired[list[dict[str, Any]]]
    words: NotRequired[list[str]]


class RoundRow(TypedDict):
    """One round of one seed and arm. Round 0 is the initial model before any training."""

    arm: str
    seed: int
    round: int
    policy_in: str
    policy_out: str
    counts: dict[str, int]
    metrics: RoundResult


class StepRow(TypedDict):
    """One step that ran or was reused; `seconds` and `cost` are None when unknown. Of `cost`,
    `estimated_cost` was not counted; `errors` are the reasons of records that failed."""

    seed: int
    arms: list[str]
    round: int
    id: str
    kind: str
    hash: str
    seconds: float | None
    reused: bool
    counts: dict[str, int]
    cost: float | None
    estimated_cost: NotRequired[float | None]
    errors: NotRequired[dict[str, int]]


class LineageRow(TypedDict):
    """One thing the run rests on: a model, a prompt set, a constitution, a template."""

    kind: str
    name: str
    hash: str
    detail: str


class HeldOutRow(TypedDict):
    """One held-out answer: which model (with its arm, where arms differ) wrote which completion."""

    seed: int
    round: int
    model: str
    prompt_id: str
    completion_id: str


@dataclass(frozen=True, slots=True)
class RunView:
    """Everything that the report shows.

    `comparisons` are `Run.comparisons()`, empty without arms, and `remote` is `Run.remote()`.
    `prompts` and `completions` map ids to record JSON; `judgements_by_subject` maps a completion id
    to its judgements; `preferences` are Preference JSON with `seed` and `arm`. `heldout` lists the
    held-out completions by model.
    """

    name: str
    description: str
    state: str
    config_yaml: str
    manifest: dict[str, Any]
    lineage: list[LineageRow] = field(default_factory=list)
    rounds: list[RoundRow] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    remote: dict[str, dict[str, Any]] = field(default_factory=dict)
    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)
    completions: dict[str, dict[str, Any]] = field(default_factory=dict)
    judgements_by_subject: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    preferences: list[dict[str, Any]] = field(default_factory=list)
    heldout: list[HeldOutRow] = field(default_factory=list)
    constitution_yaml: str = ""
