"""Self-play preference optimisation (SPPO, arXiv 2405.00675)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat

from rlaif.config.on_policy import OnPolicyTrain

if TYPE_CHECKING:
    from torch import Tensor

    from rlaif.train.losses.preference import PairLogprobs


class SppoTrain(OnPolicyTrain):
    """Self-play preference optimisation (arXiv 2405.00675): the log-ratios of a prompt's best and
    worst answer are drawn to how often each wins against the prompt's answers, less a half."""

    method: Literal["sppo"]
    n: Annotated[int, Field(ge=2)] = Field(5, description="The paper's K.")
    beta: PositiveFloat = Field(
        0.001, description="1 / eta: the smaller, the further log-ratios are to move."
    )
    learning_rate: PositiveFloat = 5e-7
    importance: Literal["none"] = Field("none", description="Pairs need no correction.")

    @property
    def pair_loss(self) -> str:
        """The squared distance from the win rates."""
        return "rlaif.train.methods.sppo:sppo_loss"

    @property
    def takes_win_rates(self) -> bool:
        """Always."""
        return True


def win_rates(rewards: Tensor) -> Tensor:
    """The chance of each answer to win against a random one of its group, itself among them.

    rewards (S,), NaN where there is none -> (S,) in fp64, in [1 / (2 K), 1 - 1 / (2 K)] for K
    answers with a reward, with the sum K / 2; NaN where there is none. An answer wins against
    another with sigmoid(difference of rewards), the Bradley-Terry model (arXiv 2405.00675,
    section 4), and against itself with a half.
    """
    values = rewards.double()
    return (values[:, None] - values[None, :]).sigmoid().nanmean(1)


def sppo_loss(pairs: PairLogprobs, wins: Tensor, *, beta: float = 0.001) -> Tensor:
    """(rho - (wins - 1/2) / beta)^2 of both answers, halved (arXiv 2405.00675, eq. 4.6).

    wins (B, 2): of the chosen and of the rejected answer -> (B,).
    """
    targets = (wins - 0.5).to(pairs.policy_chosen) / beta
    chosen = (pairs.rho_chosen - targets[:, 0]).square()
    rejected = (pairs.rho_rejected - targets[:, 1]).square()
    return (chosen + rejected) / 2
