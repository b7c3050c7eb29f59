"""What a plan is made of: the steps to run, and all that they depend on."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.config.steps import LoadStep
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.records import Prompt, content_hash
from rlaif.core.yamlio import Lines, Loc
from rlaif.data.sources import PromptSet
from rlaif.engines.base import Model
from rlaif.judges.base import Judge
from rlaif.pipeline.experiment_file import Experiment

DRIFT_PROMPTS = 16
"""How many of M0's held-out answers a moving judge rescores each round."""


UNHASHED = {"id", "uses", "checkpoint_every", "trackers", "gates"}
"""Keys of a training that change nothing in what it makes: a gate ends it or leaves it alone."""


@dataclass(frozen=True)
class Planned:
    """One step to run. `inputs` names the hashes of the steps whose output it reads; `arms` are
    those that have it in common."""

    hash: str
    kind: str
    id: str
    seed: int
    round: int
    step: Any
    inputs: dict[str, str] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    arms: tuple[str, ...] = ()

    @property
    def makes_model(self) -> bool:
        """Whether it is a training."""
        return "made" in self.models

    @property
    def sources(self) -> set[str]:
        """The hashes of the steps whose records or models it uses."""
        models = [model.train_hash for role, model in self.models.items() if role != "made"]
        return {*self.inputs.values(), *filter(None, models)}


@dataclass(frozen=True)
class PlanInputs:
    """All that a plan depends on. `keys` is the weights' identity of every named model."""

    experiment: Experiment
    path: Path
    lines: Lines
    constitution: Constitution | None
    prompts: PromptSet
    judges: Mapping[str, Judge]
    keys: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)

    def loaded_hash(self, step: LoadStep) -> str:
        """The hash of the file or dataset that a load step reads."""
        return self.files[self.experiment.loaded_name(step) or ""]

    def fail(self, index: int, message: str, key: str | None = None) -> ConfigError:
        """A ConfigError at step `index` (and its key), with the line."""
        kind = self.experiment.steps[index].kind
        locs: list[Loc] = [("steps", index, kind, key)] if key else []
        locs += [("steps", index, kind), ("steps", index)]
        line = next((self.lines[loc] for loc in locs if loc in self.lines), None)
        return ConfigError(message, self.path, line)


def round_prompts(train: list[Prompt], count: int | None, seed: int, number: int) -> list[str]:
    """The ids of round `number`'s training prompts: a window over a seeded order, wrapping round.

    The order starts from sorted ids, so the order of the file changes nothing.
    """
    ids = sorted(p.prompt_id for p in train)
    if count is None or count >= len(ids):
        return ids
    random.Random(content_hash("prompts", seed)).shuffle(ids)
    start = (number - 1) * count
    return sorted(ids[(start + i) % len(ids)] for i in range(count))
