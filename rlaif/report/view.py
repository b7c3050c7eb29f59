"""What a report is made from: a run's figures, and a sample of its texts, as JSON-like values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from rlaif.metrics.diagnostics import RoundMetrics
from rlaif.metrics.intervals import IntervalJson
from rlaif.metrics.over_optimisation import Peak
from rlaif.report.flow import Flow

Values = Mapping[str, Mapping[str, float]]
"""Metric to prompt id to value."""
ValuesOf = Callable[[str, int, int], Values]
"""From arm, seed and round to the values of its evaluation; empty where none are stored."""


def no_values(arm: str, seed: int, number: int) -> Values:
    """No values by prompt: for a run that stored none."""
    return {}


class RoundResult(RoundMetrics):
    """A round's measurements with the alarms (`Alarm.to_json`) and sentences drawn from them;
    `made_of` are those on what the changes of the scores since M0 are made of. Of an arm's last
    round also how each figure stands: claimed, exploratory or none (`claims`)."""

    alarms: NotRequired[list[dict[str, Any]]]
    words: NotRequired[list[str]]
    made_of: NotRequired[list[str]]
    standing: NotRequired[Mapping[str, str]]


class RoundRow(TypedDict):
    """One evaluation of one seed and arm. `round` is its place among them, and 0 the initial model
    before any training; `label` is what the evaluated model is called, by default M and the
    round."""

    arm: str
    seed: int
    round: int
    label: NotRequired[str]
    step: NotRequired[str]
    policy_in: str
    policy_out: str
    counts: dict[str, int]
    metrics: RoundResult


class StepRow(TypedDict):
    """One step that ran; `seconds` and `cost` are None when unknown. Of `cost`,
    `estimated_cost` was not counted; `errors` are the reasons of records that failed;
    `notes` what else its reader should know; `kernels` what computed a training (see
    `rlaif.train.model`)."""

    seed: int
    arms: list[str]
    round: int
    id: str
    kind: str
    hash: str
    seconds: float | None
    counts: dict[str, int]
    cost: float | None
    estimated_cost: NotRequired[float | None]
    errors: NotRequired[dict[str, int]]
    notes: NotRequired[list[str]]
    kernels: NotRequired[dict[str, Any]]


class ArmRow(TypedDict):
    """Who labelled an arm's pairs, in words: human, ai, random or a judge, or several with their
    shares. `labellers` names them, and `judges` are the judges that this is; `flip` is the share of
    labels that was turned round, `labels_used` how many are used where not all are, and `set` what
    else the arm has of its own."""

    labels: str
    flip: float
    judges: list[str]
    labellers: NotRequired[list[str]]
    labels_used: NotRequired[int | None]
    set: NotRequired[Mapping[str, Any]]


class LabellingRow(TypedDict):
    """What an arm's labels are and cost. `labels` is their number for one policy (of several seeds
    the mean), `by` those of each labeller. `calls`, `tokens` and `price` are of one label, `cost`
    of all of them; None is not known, and `notes` say why. `line` is what arms are called that
    differ in the number of labels alone."""

    arm: str
    line: str
    labels: float
    by: dict[str, float]
    calls: float | None
    tokens: float | None
    price: float | None
    cost: float | None
    notes: list[str]


class RolloutRow(TypedDict):
    """One on-policy training: by rollout (from 1) its reward and what gates look at, the limits by
    figure and level, a sentence for each rollback and each limit that was reached, and the limits
    of its costs."""

    seed: int
    arms: list[str]
    round: int
    id: str
    points: list[tuple[int, dict[str, float]]]
    limits: dict[str, dict[str, list[float]]]
    reached: list[str]
    cost_limits: dict[str, float]


class ProxyPoint(TypedDict):
    """A policy, or the best of n: its KL from the initial policy in nats (None: not measured), and
    what the proxy and gold make of its answers."""

    name: str
    kl: float | None
    proxy: IntervalJson
    gold: IntervalJson


class ProxyRow(TypedDict):
    """What is optimised against what is wanted: `kind` is "rounds" or "best of n", of a sample that
    `about` names. `proxy` and `gold` are metrics, or of best of n judges."""

    kind: str
    about: str
    arms: list[str]
    seed: int
    proxy: str
    gold: str
    points: list[ProxyPoint]
    peak: Peak | None


class BenchRow(TypedDict):
    """What one `bench` measured: `result` is its record, and `models` what its models are called,
    by the place of a judge and model in the record."""

    seed: int
    arms: list[str]
    round: int
    id: str
    result: dict[str, Any]
    models: dict[str, str]


class ArenaRow(TypedDict):
    """What one `arena` found: `result` is its record."""

    seed: int
    arms: list[str]
    round: int
    id: str
    result: dict[str, Any]


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
class Shown:
    """What is shown of a run's records: `pairs`, `answers` and `revisions` are entries of the
    page's browsers, the first by id of `pairs_total`, `answers_total` and `revisions_total`
    (answers that were revised); the numbers are those of all records.

    `lengths` are words of held-out answers by model, `scores` their scores by judge and model, and
    `pair_scores` the combined scores of `chosen` and `rejected` by round or arm.
    """

    pairs_total: int = 0
    pairs: list[dict[str, Any]] = field(default_factory=list)
    answers_total: int = 0
    answers: list[dict[str, Any]] = field(default_factory=list)
    revisions_total: int = 0
    revisions: list[dict[str, Any]] = field(default_factory=list)
    lengths: Mapping[str, Sequence[float]] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    pair_scores: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunView:
    """Everything that the report shows.

    `comparisons` are `Run.comparisons()`, empty without arms, and `remote` is `Run.remote()`. `key`
    is the hash of what the view was made from. `values` gives an evaluation's values by prompt;
    `primary` are the experiment's primary metrics, and `trained` the judges that labelled what was
    trained on, whose score and win rate are primary where it names none. `arms` says who labelled
    each arm, `labelling` what that cost, `settings` the paths and values that an arm sets, and
    `margin` which difference between them is too small to matter. `staged`: there are several
    stages. `flow` are its steps and what passes between them. `constitutions` are texts by whose
    they are: `arm b`, `judge x`, or empty for the experiment's own.
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
    rollouts: list[RolloutRow] = field(default_factory=list)
    proxies: list[ProxyRow] = field(default_factory=list)
    benches: list[BenchRow] = field(default_factory=list)
    arenas: list[ArenaRow] = field(default_factory=list)
    remote: dict[str, dict[str, Any]] = field(default_factory=dict)
    shown: Shown = Shown()
    constitutions: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    values: ValuesOf = no_values
    primary: Sequence[str] | None = None
    trained: Sequence[str] = ()
    arms: Mapping[str, ArmRow] = field(default_factory=dict)
    labelling: Sequence[LabellingRow] = ()
    margin: float = 0.05
    staged: bool = False
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    flow: Flow | None = None
