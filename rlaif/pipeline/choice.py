"""Whose preferences of a run become a dataset, where arms, seeds and stages have their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.config.dataset import DatasetSpec
from rlaif.core.errors import ConfigError
from rlaif.core.yamlio import suggest
from rlaif.pipeline.constitutions import refuse_unknown_arm
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.runs import Run
from rlaif.pipeline.steps.training_data import PREFERENCES

Step = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """Whose preferences of a run are written, where there are several: of an arm, a seed and a
    step."""

    arm: str | None = None
    seed: int | None = None
    step: str | None = None

    @property
    def folder(self) -> str:
        """The name of the dataset's folder."""
        seed = None if self.seed is None else f"seed{self.seed}"
        return "-".join(["dataset", *filter(None, [self.arm, seed, self.step])])

    def check(self, experiment: Experiment) -> None:
        """Raise ConfigError before anything runs for what is sure to be missing or unknown."""
        arms, seeds = list(experiment.arms), experiment.all_seeds
        if self.arm is not None and self.arm not in arms:
            raise ConfigError(f"--arm {self.arm}: no such arm{suggest(self.arm, arms)}")
        if self.seed is not None and self.seed not in seeds:
            raise ConfigError(f"--seed {self.seed}: the seeds are {', '.join(map(str, seeds))}")
        uses = self.step or (experiment.dataset.uses if experiment.dataset else None)
        made = [entry.step.id for entry in experiment.entries if entry.kind in PREFERENCES]
        if self.step is not None and self.step not in made:
            raise ConfigError(f"--step {self.step}: no step with pairs{suggest(self.step, made)}")
        # Arms may share the preferences of a step that is named.
        if arms and self.arm is None and uses is None:
            raise ConfigError(f"its arms have preferences of their own: say --arm {_one_of(arms)}")


WHOLE = Choice()
"""Of a run in which there is nothing to choose."""


def find_unsaid(run: Run, spec: DatasetSpec, choice: Choice = WHOLE) -> str | None:
    """What a user has to say before the run's preferences are one dataset; None where that is
    clear. Raises ConfigError for an arm or a seed that the run does not have."""
    manifest = run.manifest
    if choice.arm is not None:
        refuse_unknown_arm(run, choice.arm)
    if choice.seed is not None and choice.seed not in manifest["seeds"]:
        known = ", ".join(map(str, manifest["seeds"]))
        raise ConfigError(f"this run has no seed {choice.seed} (seeds: {known})", run.root)
    steps = list(_list_makers(run, spec, choice))
    arms = max(len(manifest["arms"]), 1)
    if choice.arm is None and any(len(step["arms"]) < arms for step in steps):
        return f"its arms have preferences of their own: say --arm {_one_of(manifest['arms'])}"
    if len({step["seed"] for step in steps}) > 1:
        return f"its seeds have preferences of their own: say --seed {_one_of(manifest['seeds'])}"
    if spec.uses is None and len({step.get("stage") for step in steps}) > 1:
        ids = dict.fromkeys(step["id"] for step in steps)
        return f"several stages make preferences: say --step {_one_of(ids)}, or `dataset.uses`"
    return None


def _one_of(names: Iterable[Any]) -> str:
    shown = [str(name) for name in names]
    return " or ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def _list_makers(run: Run, spec: DatasetSpec, choice: Choice) -> Iterator[Step]:
    """The chosen arm's and seed's finished steps that made preferences, or those called `uses`."""
    for step in run.manifest["steps"]:
        mine = choice.arm is None or choice.arm in step["arms"]
        mine = mine and choice.seed in (None, step["seed"])
        if not mine or step["kind"] not in PREFERENCES or spec.uses not in (None, step["id"]):
            continue
        marker = run.store.step(step["hash"]).done() or {}
        if "preferences" in marker.get("counts", {}):
            yield step


def preference_steps(run: Run, spec: DatasetSpec, choice: Choice) -> list[Step]:
    """Each round's last step that makes preferences, or those called `uses`."""
    found = {step["round"]: step for step in _list_makers(run, spec, choice)}
    if not found:
        what = f"step {spec.uses!r}" if spec.uses else "any step"
        raise ConfigError(f"{run.root}: no finished preferences by {what}; run it first")
    return list(found.values())


def describe_origin(run: Run, used: Sequence[Step], choice: Choice) -> str:
    """Whose preferences these are, in a sentence; empty where there was nothing to choose from."""
    if choice == WHOLE and len(run.manifest.get("stages", ())) < 2:
        return ""
    parts = [] if choice.arm is None else [f"arm {choice.arm}"]
    parts += [] if choice.seed is None else [f"seed {choice.seed}"]
    parts.append(f"step {', '.join(dict.fromkeys(step['id'] for step in used))}")
    hashes = ", ".join(f"`{step['hash']}`" for step in used)
    return f"The preferences are those of {', '.join(parts)} ({hashes})."
