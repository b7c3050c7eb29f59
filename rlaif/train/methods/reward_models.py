"""Reward models of which all weights are trained: a class and a loss for each.

The defaults are the papers' or, where those need a large model, what the field uses; each field's
description names its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import structs
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from rlaif.config.distill import DistillStep
from rlaif.core.errors import RlaifError
from rlaif.core.records import Preference

if TYPE_CHECKING:
    from torch import Tensor

    from rlaif.train.reward_model import RankedRewards
    from rlaif.train.tokenise import Example


class BradleyTerryDistill(DistillStep):
    """Pairs by Bradley-Terry: the reward's gap is the log-odds that an answer is better."""

    method: Literal["bradley_terry"] = "bradley_terry"
    margin: Literal["none", "score"] = Field(
        "none", description="score: the reward gap must exceed the pair's score margin."
    )
    centre: NonNegativeFloat = Field(0.01, description="Pulls the mean reward to 0.")

    def arrange_examples(self, examples: list[Example]) -> list[Example]:
        """As they are, once their margins are known where these are asked for."""
        lacking = sum(p.margin is None for e in examples for p in e.pairs)
        if self.margin == "score" and lacking:
            raise RlaifError(
                f"bradley_terry: {lacking} of {len(examples)} pairs have no margin, and `margin: "
                "score` asks for one. Give the pairs a `margin`, or `score_chosen` and "
                "`score_rejected`; or set `margin: none`."
            )
        return examples

    def pair_losses(self, pairs: RankedRewards) -> Tensor:
        """(P,) the loss of each pair."""
        from rlaif.train.losses.reward import bradley_terry

        return bradley_terry(
            pairs.chosen,
            pairs.rejected,
            margin=pairs.margin if self.margin == "score" else None,
            prob=pairs.prob,
            centre=self.centre,
        )


class KWiseDistill(DistillStep):
    """All pairs of a prompt as one example, each answer computed once (InstructGPT, arXiv
    2203.02155, section 3.5). `batch_size` counts prompts."""

    method: Literal["k_wise"]
    batch_size: PositiveInt = Field(64, description="arXiv 2203.02155.")
    centre: NonNegativeFloat = Field(0.01, description="Pulls the mean reward to 0.")

    def arrange_examples(self, examples: list[Example]) -> list[Example]:
        """One for each prompt."""
        from rlaif.train.reward_model import by_prompt

        return by_prompt(examples)

    def pair_losses(self, pairs: RankedRewards) -> Tensor:
        """(P,) the loss of each pair."""
        from rlaif.train.losses.reward import bradley_terry

        return bradley_terry(pairs.chosen, pairs.rejected, prob=pairs.prob, centre=self.centre)


class CostDistill(DistillStep):
    """The cost model of Safe RLHF (arXiv 2310.12773) as a reward: minus the cost, so that an answer
    is safe where it is above 0. The chosen answer is the safer one."""

    method: Literal["cost"]
    safe_at: float = Field(
        0.5, description="An answer with at least this score is safe, otherwise harmful."
    )

    def arrange_examples(self, examples: list[Example]) -> list[Example]:
        """As they are, where some answers are known to be safe and others not."""
        scores = [score for e in examples for score in e.scores]
        if None in scores:
            raise RlaifError(
                f"cost: {scores.count(None)} of {len(scores)} answers have no score, so nobody "
                "knows whether they are safe. The pairs need `score_chosen` and `score_rejected`."
            )
        safe = {score >= self.safe_at for score in scores if score is not None}
        if len(safe) < 2:
            every = "safe" if True in safe else "harmful"
            raise RlaifError(
                f"cost: every answer is {every} by its score (safe_at {self.safe_at}), so there "
                "is nothing to tell apart. The pairs need `score_chosen` and `score_rejected`; set "
                "`safe_at` to where they become safe."
            )
        return examples

    def pair_losses(self, pairs: RankedRewards) -> Tensor:
        """(P,) the loss of each pair."""
        from rlaif.train.losses.reward import cost

        safe, worse_safe = (
            scores >= self.safe_at for scores in (pairs.chosen_scores, pairs.rejected_scores)
        )
        return cost(pairs.chosen, pairs.rejected, safe, worse_safe, prob=pairs.prob)


class ConditionalDistill(DistillStep):
    """One model for several kinds of preferences, told apart by a system prompt (COOL RLHF,
    InternLM2, arXiv 2403.17297)."""

    method: Literal["conditional"]
    learning_rate: PositiveFloat = Field(1e-5, description="arXiv 2403.17297.")
    weight_decay: NonNegativeFloat = Field(0.01, description="arXiv 2403.17297.")
    conditions: Annotated[dict[str, str], Field(min_length=1)] = Field(
        description="The system prompt for the pairs of each source, by `source`."
    )
    gamma: NonNegativeFloat = Field(2.0, description="Focus on wrongly ranked pairs.")
    penalty: NonNegativeFloat = Field(0.02, description="Weight of the barrier at -5 and 5.")

    def condition(self, preferences: Sequence[Preference]) -> list[Preference]:
        """The pairs under the system prompt of their source. Raises RlaifError where a source has
        none."""
        from rlaif.data.sources import with_system

        sources = sorted({p.source for p in preferences})
        lacking = [name for name in sources if name not in self.conditions]
        if lacking:
            raise RlaifError(
                f"conditions: pairs have the source {lacking[0]!r}, and no system prompt is given "
                f"for it; every source needs one ({', '.join(sources)})"
            )
        return [
            structs.replace(p, prompt=with_system(p.prompt, self.conditions[p.source]))
            for p in preferences
        ]

    def pair_losses(self, pairs: RankedRewards) -> Tensor:
        """(P,) the loss of each pair."""
        from rlaif.train.losses.reward import barrier, focal_ranking

        ranked = focal_ranking(pairs.chosen, pairs.rejected, prob=pairs.prob, gamma=self.gamma)
        kept_in = (barrier(pairs.chosen) + barrier(pairs.rejected)) / 2
        return ranked + self.penalty * kept_in
