"""The numbers of on-policy training that are not learned but move with the rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.config.on_policy import RolloutTrain
from rlaif.train.costs import (
    Multiplier,
    multipliers_from_json,
    multipliers_to_json,
    start_multipliers,
)
from rlaif.train.rewards import Moments, moments_from_json, moments_to_json


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What moves from rollout to rollout beside the weights, and is in every checkpoint: of the KL
    `beta`, of the reward's terms the `running` moments, of the costs the `multipliers`."""

    beta: float
    running: Mapping[str, Moments]
    multipliers: Sequence[Multiplier]

    @classmethod
    def restore(cls, state: Mapping[str, Any], options: RolloutTrain) -> Coefficients:
        """Those of a checkpoint's `state`; where that is empty, those of the start."""
        costs = options.constraints
        if "multipliers" in state:
            multipliers = multipliers_from_json(costs, state["multipliers"])
        else:
            multipliers = start_multipliers(costs)
        running = moments_from_json(state.get("running", {}))
        return cls(float(state.get("beta", options.kl_weight)), running, multipliers)

    def to_json(self, options: RolloutTrain) -> dict[str, Any]:
        """The keys of a checkpoint's state that `restore` reads."""
        kept = {"beta": self.beta, "running": moments_to_json(self.running)}
        if options.constraints:
            kept["multipliers"] = multipliers_to_json(options.constraints, self.multipliers)
        return kept
