"""Keys of all methods that learn from answers the policy has just sampled. A method's own class is
in `rlaif.train.methods.on_policy`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from rlaif.config.base import LATE, ONE_OR_MORE, Count, StepId
from rlaif.config.gates import Gates
from rlaif.config.rewards import CostTerm, Rewards, RewardTerm, terms_of
from rlaif.config.training import ReferenceTrain, TrainStep


@dataclass(frozen=True)
class PolicyTerms:
    """What a method makes of the clipped policy loss, or of its own in place of it (`LOSS`).

    The ratio is clipped to 1 - `clip_low` and 1 + `clip_high`, and where it counts against the
    answer at `two_sided`. `reduction` is the mean over tokens or answers, or the sum over tokens by
    answer divided by `constant`. With a weight above 0 the critic's loss and the NLL of chosen
    answers are added; `kl` is the estimate of the KL that is.
    """

    clip_low: float
    clip_high: float
    two_sided: float | None = None
    reduction: Literal["token", "sequence", "constant"] = "token"
    constant: int | None = None
    kl: Literal["k2", "k3"] | None = None
    value_weight: float = 0.0
    value_clip: float | None = 0.0
    ptx_weight: float = 0.0


MIXING = "ppo with ptx_weight or on_policy_distillation with given"
"""What learns from given answers besides its own."""


class RolloutTrain(TrainStep):
    """Keys of methods that learn from answers the policy has just sampled.

    One rollout samples `n` answers to each of `batch_size` x `sync_every` training prompts;
    `batch_size` counts the prompts of one optimiser step, `epochs` the passes over a rollout.

    `ADVANTAGES` is the function that fills in a rollout's, None where nothing is learned from by
    its advantage. Where the loss of a token is not the clipped one, `LOSS` is its function, which
    takes the keys in `LOSS_KEYS`.
    """

    ADVANTAGES: ClassVar[str | None] = None
    SAMPLES = True
    MEMORY_KEYS = ("n", "max_new_tokens", "micro_batch_tokens")

    prompts: Annotated[list[StepId] | None, ONE_OR_MORE] = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Sets of prompts to answer; default: that of its stage.",
    )
    gates: Gates = Field(
        Gates(),
        exclude_if=lambda value: value == Gates(),
        description="Limits that warn, roll back or stop before a rollout is learned from.",
    )
    rollouts: PositiveInt = Field(50, description="How often fresh answers are sampled.")
    n: Count = Field(8, description="Answers per prompt.")
    sync_every: PositiveInt = Field(
        1, description="Optimiser steps per refresh of the sampling weights."
    )
    lag: int = Field(
        0,
        ge=0,
        exclude_if=lambda value: value == 0,
        description="Sample each rollout with the weights of this many rollouts earlier, as when "
        "sampling and training run side by side.",
    )
    batch_size: PositiveInt = Field(4, description="Prompts per optimiser step.")
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    max_new_tokens: PositiveInt = 64
    stop: list[str] = []
    checkpoint_every: PositiveInt = Field(5, description="Rollouts between checkpoints.")
    importance: Literal[
        "none", "truncate_token", "truncate_sequence", "mask_token", "mask_sequence"
    ] = Field("mask_sequence", description="Correction for sampler-trainer differences.")
    importance_cap: PositiveFloat = Field(
        3.0, description="Maximum trainer/sampler ratio; TRL's default."
    )
    importance_floor: NonNegativeFloat = Field(
        0.0, description="Minimum ratio; IcePop masks tokens outside 0.5 to 5."
    )

    @property
    def trainer(self) -> str:
        """The loop of rollouts."""
        return "rlaif.train.on_policy:train_on_policy"

    @property
    def terms(self) -> list[RewardTerm]:
        """The terms of the reward; none where there is no reward."""
        return []

    @property
    def adds_terms(self) -> bool:
        """Whether the reward is a sum, to which a judge that does not apply to an answer adds 0."""
        return False

    @property
    def constraints(self) -> list[CostTerm]:
        """What the answers may cost."""
        return []

    @property
    def reward_judges(self) -> list[str]:
        """The judges of the terms and the costs, each once."""
        rewarding = [judge for term in self.terms for judge in term.judges]
        return list(dict.fromkeys([*rewarding, *(cost.judge for cost in self.constraints)]))

    @property
    def learned_judges(self) -> list[str]:
        """Those of the judges that are not only logged."""
        terms = [judge for term in self.terms if term.weight != 0 for judge in term.judges]
        costs = [cost.judge for cost in self.constraints if cost.acts]
        return list(dict.fromkeys([*terms, *costs]))

    @property
    def whitens_advantages(self) -> bool:
        """Whether the advantages of a rollout are brought to mean 0 and deviation 1 at last."""
        return False

    @property
    def kl_weight(self) -> float:
        """The coefficient of the KL to the reference before the first rollout."""
        return 0.0

    @property
    def eos_penalty(self) -> float:
        """What is subtracted from the reward of an answer that never ends."""
        return 0.0

    @property
    def sampled_rollouts(self) -> int:
        """How many of the rollouts are sampled: the others learn from given answers."""
        return self.rollouts

    def is_given(self, rollout: int) -> bool:
        """Whether rollout `rollout` (from 0) learns from given answers in place of sampled ones."""
        return False

    def due_rollouts(self, learned: int) -> list[int]:
        """The rollouts (from 0) that the weights after `learned` rollouts sample: with a lag of k
        rollout k + `learned`, and the start's weights also those before it."""
        first = self.lag + learned if learned else 0
        due = range(first, min(self.lag + learned + 1, self.rollouts))
        return [number for number in due if not self.is_given(number)]

    @property
    def rollback_keys(self) -> dict[str, Any]:
        """What decides where the policy goes back to; nothing where no gate rolls back."""
        limits = self.gates.rollbacks
        return {"rollback": limits, "checkpoint_every": self.checkpoint_every} if limits else {}

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the policy's log-probs of a rollout are computed before it is learned from. One
        step on fresh answers needs none: they are the current ones."""
        return self.epochs > 1 or self.sync_every > 1

    @property
    def pair_loss(self) -> str | None:
        """The loss of a prompt's best answer against its worst, by module and name; None where all
        answers are learned from by their advantages."""
        return None

    @property
    def takes_win_rates(self) -> bool:
        """Whether `pair_loss` takes each answer's chance of winning against its group."""
        return False

    @property
    def redraws(self) -> int:
        """How often, at most, prompts whose answers have equal rewards are replaced in a
        rollout."""
        return 0

    @property
    def step_examples(self) -> int:
        """How many of its task's examples an optimiser step learns from."""
        return self.batch_size

    @property
    def quantile_tokens(self) -> int:
        """How many tokens stand for quantiles of the rewards; 0 where answers are learned from
        without any."""
        return 0

    @property
    def keeps_quantile_tokens(self) -> bool:
        """Whether the exported vocabulary has them."""
        return False

    @property
    def critic_steps(self) -> int:
        """How many optimiser steps the critic learns alone, before the policy moves."""
        return 0

    @property
    def critic_kind(self) -> Literal["head", "separate"] | None:
        """A value head on the policy, a model of its own, or no critic."""
        return None

    @property
    def mixes_data(self) -> bool:
        """Whether given answers or texts are learned from too."""
        return False

    @property
    def soft_limit(self) -> int:
        """The reward falls over so many last tokens of the longest answer."""
        return 0

    @property
    def learns_unfinished(self) -> bool:
        """Whether answers without an end are learned from."""
        return True

    def policy_terms(self) -> PolicyTerms:
        """What is made of the clipped policy loss."""
        raise NotImplementedError

    def next_beta(self, beta: float, kl: float | None, answers: int) -> float:
        """The coefficient of the KL after a rollout of so many answers with a mean `kl` (nats per
        answer; None where it was not measured)."""
        return beta

    @model_validator(mode="before")
    @classmethod
    def _correct_for_the_lag(cls, said: Any) -> Any:
        """With a lag the default of `importance` is decoupled PPO's (arXiv 2505.24298)."""
        corrected = cls.model_fields["importance"].default != "none"
        if corrected and isinstance(said, dict) and said.get("lag"):
            return {"importance": "truncate_token", **said}
        return said

    @model_validator(mode="after")
    def _check_lag(self) -> RolloutTrain:
        if self.lag and self.lag >= self.rollouts:
            raise ValueError(
                f"lag ({self.lag}) is not below rollouts ({self.rollouts}): all would be sampled "
                "from the start"
            )
        if self.lag and self.redraws:
            raise ValueError(
                "resample replaces prompts by the rewards that are known when a rollout is learned "
                "from, and with `lag` it has been sampled before: leave one of them out"
            )
        if self.lag and self.gates.rollbacks:
            raise ValueError(
                "a rollback samples anew with the weights that it goes back to, and with `lag` "
                "older ones have sampled: leave out `lag`, or give the gates `stop` or `warn`"
            )
        return self

    @model_validator(mode="after")
    def _check_combination(self) -> RolloutTrain:
        if self.lora is not None and self.lora.dropout > 0:
            raise ValueError("on-policy training compares log-probs: set lora.dropout to 0")
        if self.overlong == "truncate_left":
            raise ValueError(
                "a prompt that is answered anew cannot be cut: set `overlong` to skip or refuse"
            )
        if self.max_length <= self.max_new_tokens:
            raise ValueError(
                f"max_length ({self.max_length}) counts prompt and answer, and max_new_tokens "
                f"({self.max_new_tokens}) leaves no room for a prompt: raise max_length"
            )
        mixes = self.mixes_data
        if not mixes and not self.train_on_eos:
            raise ValueError(
                "train_on_eos: answers are learned from as they were sampled, with the end token "
                f"if there is one; leave it out (it counts for {MIXING})"
            )
        if not mixes and self.reasoning != "keep":
            raise ValueError(
                "reasoning: answers are learned from as they were sampled; leave it out (it counts "
                f"for {MIXING})"
            )
        if not mixes and self.uses is not None:
            raise ValueError(
                f"uses names given answers or texts, and only {MIXING} mixes some in; leave it out"
            )
        fields = RolloutTrain.model_fields
        bounds = ("importance_cap", "importance_floor")
        changed = [key for key in bounds if getattr(self, key) != fields[key].default]
        if changed and self.importance == "none":
            raise ValueError(f"`{changed[0]}` has no effect with `importance: none`; leave it out")
        if self.importance_floor >= self.importance_cap:
            raise ValueError("importance_floor must be below importance_cap")
        if self.importance != "none" and self.temperature != 1.0:
            raise ValueError(
                "the sampler's log-probs are at temperature 1: with another temperature set "
                "`importance: none`"
            )
        return self


class OnPolicyTrain(RolloutTrain, ReferenceTrain):
    """Keys of methods that are rewarded for the answers that they have just sampled."""

    rewards: Rewards = Field(
        description="A list of terms whose sum is the reward, or the weight of each judge by id: "
        "then it is the weighted mean of their scores."
    )
    missing_eos_penalty: NonNegativeFloat = Field(
        0.0, description="Subtracted from the reward of an answer that never ends."
    )

    @property
    def terms(self) -> list[RewardTerm]:
        """The terms of the reward."""
        return terms_of(self.rewards)

    @property
    def adds_terms(self) -> bool:
        """A mapping is a mean."""
        return isinstance(self.rewards, list)

    @property
    def kl_weight(self) -> float:
        """See `beta`."""
        return self.beta

    @property
    def eos_penalty(self) -> float:
        """See `missing_eos_penalty`."""
        return self.missing_eos_penalty

    @property
    def compares(self) -> bool:
        """Whether the reference's log-probs are needed: for the loss, or to watch the KL."""
        return self.beta > 0 or self.gates.kl is not None

    @model_validator(mode="after")
    def _require_a_reward(self) -> OnPolicyTrain:
        if all(term.weight == 0 for term in self.terms):
            raise ValueError("rewards: every term has weight 0, so nothing is rewarded")
        return self

    @model_validator(mode="after")
    def _one_answer_has_no_group(self) -> OnPolicyTrain:
        if self.n > 1:
            return self
        for term in self.terms:
            if term.compares_group:
                raise ValueError(
                    f"the term of judge {term.judge!r}: `normalise: {term.normalise}` compares the "
                    "answers to one prompt, and n is 1: raise n, or take running or reference"
                )
        if self.gates.flat_groups is not None:
            raise ValueError(
                "gates.flat_groups has no effect: with n of 1 every prompt has one answer"
            )
        return self


class ConstrainedTrain(OnPolicyTrain):
    """Keys of methods whose advantages are of the reward and of costs."""

    costs: Annotated[list[CostTerm], LATE] = Field(
        [],
        description="Judges whose mean cost is held at a limit, each by a multiplier "
        "(PPO-Lagrangian, arXiv 2310.12773).",
    )

    @property
    def constraints(self) -> list[CostTerm]:
        """See `costs`."""
        return self.costs


class GroupTrain(ConstrainedTrain):
    """Keys of the methods whose advantage is an answer's reward relative to those of the other
    answers to its prompt: GRPO (arXiv 2402.03300) and what differs from it in the loss alone."""

    ADVANTAGES = "rlaif.train.rollout:add_group_advantages"

    n: Annotated[int, Field(ge=2)] = 8
    kl: Literal["k2", "k3"] = Field(
        "k3", description="k1 is left out: as a loss its expected gradient is 0."
    )
    scale: Literal["std", "none", "batch"] = Field(
        "std",
        description="What a group's differences are divided by: its deviation; nothing (Dr. GRPO); "
        "or the deviation of all of them in a rollout (GDPO, with terms of `normalise: group`).",
    )
    overlong_buffer: int = Field(
        0, ge=0, description="DAPO: the reward falls over this many final tokens; 0 is off."
    )
    mask_truncated: bool = Field(False, description="DAPO: do not train on unfinished answers.")
    resample: int = Field(
        0,
        ge=0,
        le=1000,
        exclude_if=lambda value: value == 0,
        description="DAPO's dynamic sampling: how many times in a rollout, at most, prompts whose "
        "answers all have the same reward are replaced by other prompts; 0 is off, verl's bound "
        "10.",
    )

    @property
    def soft_limit(self) -> int:
        """See `overlong_buffer`."""
        return self.overlong_buffer

    @property
    def learns_unfinished(self) -> bool:
        """See `mask_truncated`."""
        return not self.mask_truncated

    @property
    def redraws(self) -> int:
        """See `resample`."""
        return self.resample

    @model_validator(mode="after")
    def _redraws_look_at_rewards_alone(self) -> GroupTrain:
        if self.resample and self.costs:
            raise ValueError(
                "resample replaces prompts whose answers have the same reward, and their costs may "
                "differ: leave out `resample` or `costs`"
            )
        return self
