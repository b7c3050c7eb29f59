"""One training: what is asked, how far it is, and what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from rlaif.config.training import TextStep
from rlaif.core.chat import KEEP, ChatSettings
from rlaif.core.checksums import read_sealed, verify_folder, write_sealed
from rlaif.core.errors import StoreError
from rlaif.core.finished import MASTERS
from rlaif.core.records import Judgement, Preference
from rlaif.train.model import TrainModel, compute_dtype
from rlaif.train.rollout import Group

S = TypeVar("S", bound=TextStep, covariant=True)
Collect = Callable[[int, TrainModel], Sequence[Group]]
"""The rollout's number and the policy -> fresh answers with the values of the reward's terms. Below
0 it is a draw from the start policy that `normalise: reference` is fitted on: only the values of
such terms are needed."""
OUTCOME = "outcome.json"
"""The file in a training's work folder that says it ended, and how."""


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a training stands after an optimiser step. `loss` is None after a rollout that there
    was nothing to learn from."""

    step: int
    total_steps: int
    loss: float | None
    tokens_per_second: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrainJob(Generic[S]):
    """What a training is given, from the step to the loop.

    `start` and `reference` (None: the start itself) are checkpoint folders; fp32 weights in their
    `masters/` are preferred to the bf16 ones. `token_ids` maps completion ids to the tokens the
    policy sampled, and `judgements` rate completions. On-policy methods have their answers from
    `collect`, and `fingerprint` covers all that decides what it gives. `work` holds what a rerun
    continues from; `out` is complete or absent, and of a `member` of an ensemble the adapter alone.
    """

    options: S
    start: Path
    out: Path
    work: Path
    seed: int
    device: torch.device
    preferences: Sequence[Preference] = ()
    token_ids: Mapping[str, list[int]] = field(default_factory=dict)
    judgements: Sequence[Judgement] = ()
    reference: Path | None = None
    chat: ChatSettings = KEEP
    collect: Collect | None = None
    fingerprint: str = ""
    member: bool = False
    progress: Callable[[TrainProgress], None] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of forward and backward."""
        return compute_dtype(self.options.precision, self.device)

    @property
    def starts_from_reference(self) -> bool:
        """Whether the reference is the starting model."""
        return self.reference is None or self.reference.resolve() == self.start.resolve()


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """What a training did. `metrics` has first_, last_ and mean_ of every per-step metric;
    `kernels` are `rlaif.train.model.kernels_in_use`, and `notes` what its reader should know."""

    steps: int
    tokens: int
    metrics: dict[str, float]
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    compute_dtype: str = ""
    kernels: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write_outcome(work: Path, outcome: TrainOutcome) -> None:
    """Keep what a training did."""
    write_sealed(work / OUTCOME, asdict(outcome))


def read_outcome(work: Path, out: Path) -> TrainOutcome | None:
    """What the training did whose model is in `out`; None where it has not ended. Raises StoreError
    where either is damaged."""
    if not out.exists():
        return None
    advice = f"Delete the folder {work} to train again."
    row = read_sealed(work / OUTCOME, advice, required=False)
    if row is None:
        return None
    verify_folder(out, advice, (MASTERS,))
    try:
        return TrainOutcome(**row)
    except TypeError:
        raise StoreError(f"{work / OUTCOME}: damaged. {advice}") from None
