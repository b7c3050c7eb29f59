"""Reward models as judges: a trained one, several of them, and the one that DPO leaves in a policy.

A reward model gives one reward a completion, and its sigmoid is the score. An ensemble gives its
members' mean, their worst, or their mean less their disagreement (Coste et al., arXiv 2310.02743).
Members that were trained from one start on the same pairs share their errors: an ensemble shows
disagreement where it is, and cannot show what all of them get wrong.

DPO's implicit reward says how much likelier an answer became than under a reference.

The reward is beta (log p(y|x) - log p_ref(y|x)), summed over the answer's tokens (2305.18290,
equation 5 without the part that depends on x alone), or their mean with `per_token`. The end of
the turn is not counted, so that answers from files and sampled ones are treated alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev, pvariance
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from rlaif.config.base import StepId
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.numbers import sigmoid
from rlaif.core.records import Completion, Judgement, Message, Prompt
from rlaif.data.sources import with_system
from rlaif.engines.base import (
    DISTANCE,
    MEMBER,
    SPREAD,
    Capability,
    RewardRequest,
    RewardResult,
    ScoreRequest,
)
from rlaif.judges.base import Answer, Call, Verdict, call_id, make_judgement
from rlaif.judges.common import JudgeBase, JudgeInputs, hash_judge, usable
from rlaif.judges.composed import Rewarding
from rlaif.judges.questions import label_result

ROLES = ("by", "reference")


class RewardModelJudge(JudgeBase):
    """A reward model: `by` names a model with a reward head, or a `distill` step. The score is the
    sigmoid of its reward; the reward itself is kept beside it."""

    kind: Literal["reward_model"]
    id: StepId = "reward_model"
    by: str
    condition: str | None = Field(None, description="The system prompt for a conditional model.")

    def asks(self) -> dict[str, str]:
        """The one model, `by`."""
        return {"by": self.by}

    def build_judge(self, inputs: JudgeInputs) -> RewardModel:
        """The judge of the spec. Raises ConfigError when it names principles: the model has learned
        its own."""
        self.refuse_principles("a reward model judges as a whole")
        return RewardModel(self.id, hash_judge(self, ()), self.condition)


class RewardEnsembleJudge(JudgeBase):
    """Several reward models as one (arXiv 2310.02743)."""

    kind: Literal["reward_ensemble"]
    id: StepId = "reward_ensemble"
    members: Annotated[list[str], Field(min_length=1)] = Field(
        description="Reward models: names under `models`, `distill` steps, or folders. One alone "
        "must be an ensemble of adapters, all of which are members."
    )
    combine: Literal["mean", "worst", "uncertainty"] = Field(
        "mean", description="uncertainty: the mean minus `penalty` times the members' variance."
    )
    penalty: NonNegativeFloat = 1.0
    standardise: dict[str, tuple[float, PositiveFloat]] = Field(
        {},
        description="Mean and standard deviation of a member's rewards on a set of answers that "
        "stays the same; its rewards are then in these units.",
    )

    @model_validator(mode="after")
    def _check_members(self) -> RewardEnsembleJudge:
        if len(set(self.members)) < len(self.members):
            raise ValueError("`members` names a model twice: its vote would count twice")
        if unknown := sorted(set(self.standardise) - set(self.members)):
            raise ValueError(f"`standardise` names {unknown[0]!r}, which is no member")
        if self.standardise and len(self.standardise) < len(self.members):
            raise ValueError("`standardise` must name all members or none: they are compared")
        return self

    def asks(self) -> dict[str, str]:
        """Each member under its own name."""
        return {name: name for name in self.members}

    def build_judge(self, inputs: JudgeInputs) -> RewardEnsemble:
        """The judge of the spec. Raises ConfigError when it names principles."""
        self.refuse_principles("reward models judge as a whole")
        roles = {name: frozenset[Capability]({"reward"}) for name in self.asks()}
        return RewardEnsemble(
            self.id, hash_judge(self, ()), roles, self.combine, self.penalty, self.standardise
        )


class ImplicitRewardJudge(JudgeBase):
    """DPO's implicit reward: beta (log p_by(answer) - log p_reference(answer))."""

    kind: Literal["implicit_reward"]
    id: StepId = "implicit_reward"
    by: str = "policy"
    reference: str = "initial"
    beta: PositiveFloat = 0.1
    per_token: bool = Field(False, description="Mean log-ratio per token instead of the sum.")

    def asks(self) -> dict[str, str]:
        """`by` and `reference`."""
        return {"by": self.by, "reference": self.reference}

    def build_judge(self, inputs: JudgeInputs) -> ImplicitReward:
        """The judge of the spec. Raises ConfigError where both models are one by name, or it names
        principles."""
        self.refuse_principles("log-probs know no principle")
        if self.by == self.reference:
            raise ConfigError(
                f"judge {self.id}: `by` and `reference` are both {self.by!r}: every reward would "
                "be 0"
            )
        roles = {role: frozenset[Capability]({"token_logprobs"}) for role in ROLES}
        return ImplicitReward(self.id, hash_judge(self, ()), roles, self.beta, self.per_token)


@dataclass(frozen=True, slots=True)
class ImplicitReward(Rewarding):
    """`score` is the sigmoid of the reward: the chance against an answer of reward 0.
    `distribution` holds the reward and both log-probs (nats, summed)."""

    beta: float
    per_token: bool

    def make_request(self, name: str, prompt: Prompt, completion: Completion) -> ScoreRequest:
        """The log-probabilities of the completion's tokens."""
        return ScoreRequest(name, prompt.messages, continuation=completion.text)

    def read_reward(self, answers: Mapping[str, Answer]) -> dict[str, float] | None:
        """None where a model could not score the completion, or it is empty."""
        results = {role: label_result(answer) for role, answer in answers.items()}
        scored = {r: s.token_logprobs for r, s in results.items() if s and s.token_logprobs}
        if len(scored) < len(ROLES):
            return None
        sums = {role: math.fsum(logprobs) for role, logprobs in scored.items()}
        terms = {r: sums[r] / (len(scored[r]) if self.per_token else 1) for r in ROLES}
        reward = self.beta * (terms["by"] - terms["reference"])
        return {"reward": reward, "logprob": sums["by"], "logprob_reference": sums["reference"]}


@dataclass(frozen=True, slots=True)
class RewardModel:
    """`score` is 1 / (1 + exp(-reward)): the chance against an answer of reward 0, which a centred
    model gives on average (Bradley-Terry). The raw value is the reward itself; `distribution` keeps
    it with what the head made it of. `condition` is the system prompt of a conditional model."""

    id: str
    judge_hash: str
    condition: str | None = None
    needs: frozenset[Capability] = frozenset({"reward"})
    comparative: bool = False
    unbounded: bool = True

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per completion; `seed` changes nothing."""
        messages = prompt.messages
        if self.condition is not None:
            messages = with_system(messages, self.condition)
        return [
            Call(name, prompt, (c,), request=RewardRequest(name, *split_at_answer(messages, c)))
            for c in usable(completions)
            for name in [call_id(self.judge_hash, [c], None)]
        ]

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement."""
        verdict = Verdict("failed")
        reward = result.reward if isinstance(result, RewardResult) else None
        if isinstance(result, RewardResult) and reward is not None and math.isfinite(reward):
            verdict = Verdict(
                "ok",
                score=sigmoid(reward),
                distribution={"reward": reward, **result.parts},
                raw=repr(reward),
                raw_value=reward,
            )
        return [make_judgement(self, call, annotator_id, verdict, "model")]


def split_at_answer(
    messages: Sequence[Message], completion: Completion
) -> tuple[list[Message], Message]:
    """The conversation up to the answer that is rewarded, and that answer: of an episode the last
    of the model's own turns."""
    every = completion.messages
    last = max(n for n, turn in enumerate(every) if turn["role"] == "assistant")
    return [*messages, *every[:last]], every[last]


def combine(rewards: Sequence[float], how: str, penalty: float) -> float:
    """One reward of the members': `mean`, `worst` (the least), or `uncertainty`, the mean less
    `penalty` times the population variance."""
    if how == "worst":
        return min(rewards)
    mean = fmean(rewards)
    return mean - penalty * pvariance(rewards) if how == "uncertainty" else mean


def member_rewards(role: str, answer: Answer) -> dict[str, float]:
    """The rewards of the member `role` by name: its own, or those of each adapter where it is an
    ensemble of several; none where it could not score the answer."""
    if not isinstance(answer, RewardResult) or answer.reward is None:
        return {}
    adapters = {name: v for name, v in _parts_of(answer).items() if name.startswith(MEMBER)}
    if not adapters:
        return {f"{MEMBER}{role}": answer.reward}
    return {f"{MEMBER}{role}/{n.removeprefix(MEMBER)}": v for n, v in adapters.items()}


def _parts_of(answer: Answer) -> dict[str, float]:
    return answer.parts if isinstance(answer, RewardResult) else {}


@dataclass(frozen=True, slots=True)
class RewardEnsemble(Rewarding):
    """`score` is the sigmoid of the combined reward. `distribution` holds it, each member's, their
    standard deviation, and the members' mean distance from their training where they know it."""

    how: str
    penalty: float
    standardise: Mapping[str, tuple[float, float]]

    def make_request(self, name: str, prompt: Prompt, completion: Completion) -> RewardRequest:
        """The reward of the completion."""
        return RewardRequest(name, *split_at_answer(prompt.messages, completion))

    def read_reward(self, answers: Mapping[str, Answer]) -> dict[str, float] | None:
        """None where a member could not score the completion."""
        members: dict[str, float] = {}
        away: list[float] = []
        for role, answer in answers.items():
            own = member_rewards(role, answer)
            if not own:
                return None
            away += [v for name, v in _parts_of(answer).items() if name == DISTANCE]
            mean, spread = self.standardise.get(role, (0.0, 1.0))
            members |= {name: (reward - mean) / spread for name, reward in own.items()}
        if len(members) < 2:
            raise RlaifError(
                f"judge {self.id}: `members` names one model, and it is no ensemble of adapters "
                "(`distill` with `members`): name two models or more"
            )
        rewards = list(members.values())
        reward = combine(rewards, self.how, self.penalty)
        far = {DISTANCE: fmean(away)} if away else {}
        return {"reward": reward, SPREAD: pstdev(rewards), **far, **members}
