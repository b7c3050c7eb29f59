"""Several reward models as one judge: their mean, their worst, or their mean less what they
disagree by (Coste et al., arXiv 2310.02743).

Members that were trained from one start on the same pairs share their errors: an ensemble shows
disagreement where it is, and cannot show what all of them get wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev, pvariance

from rlaif.config import RewardEnsembleJudge
from rlaif.constitution import Constitution
from rlaif.engines.base import Capability, RewardRequest, RewardResult
from rlaif.errors import ConfigError
from rlaif.records import Completion, Judgement, Prompt

from .base import Answered, Call, call_id
from .common import hash_judge, sigmoid, usable
from .composed import all_needs, annotators, completions_of, concluded


def combine(rewards: Sequence[float], how: str, penalty: float) -> float:
    """One reward of the members': `mean`, `worst` (the least), or `uncertainty`, the mean less
    `penalty` times the population variance."""
    if how == "worst":
        return min(rewards)
    mean = fmean(rewards)
    return mean - penalty * pvariance(rewards) if how == "uncertainty" else mean


@dataclass(frozen=True, slots=True)
class RewardEnsemble:
    """`score` is the sigmoid of the combined reward. `distribution` holds it, each member's and
    their standard deviation."""

    id: str
    judge_hash: str
    roles: Mapping[str, frozenset[Capability]]
    how: str
    penalty: float
    standardise: Mapping[str, tuple[float, float]]
    comparative: bool = False

    @property
    def needs(self) -> frozenset[Capability]:
        """Rewards."""
        return all_needs(self.roles)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per completion and member; `seed` changes nothing."""
        return [
            Call(
                name,
                prompt,
                (completion,),
                None,
                0,
                RewardRequest(name, prompt.messages, completion.messages[-1]),
                role=role,
            )
            for completion in usable(completions)
            for role in self.roles
            for name in [f"{call_id(self.judge_hash, [completion], None)}-{role}"]
        ]

    def follow(
        self, calls: Sequence[Call], answers: Mapping[str, Answered], seed: int
    ) -> list[Call]:
        """Nothing."""
        return []

    def most_calls(self, calls: Sequence[Call]) -> int:
        """The calls as they are."""
        return len(calls)

    def conclude(self, calls: Sequence[Call], answers: Mapping[str, Answered]) -> list[Judgement]:
        """One judgement per completion; failed where a member could not score it."""
        return [self._judge(c, calls, answers) for c in completions_of(calls)]

    def _judge(
        self, completion: Completion, calls: Sequence[Call], answers: Mapping[str, Answered]
    ) -> Judgement:
        own = [c for c in calls if c.shown[0].completion_id == completion.completion_id]
        who = annotators(own, answers, self.id)
        rewards = {c.role: self._reward(c.role, answers[c.call_id]) for c in own}
        known = [value for value in rewards.values() if value is not None]
        if len(known) < len(self.roles):
            return concluded(self, own, [completion], who, "failed", kind="model")
        reward = combine(known, self.how, self.penalty)
        members = {f"member/{role}": value for role, value in rewards.items() if value is not None}
        kept = {"reward": reward, "spread": pstdev(known), **members}
        return concluded(
            self,
            own,
            [completion],
            who,
            "ok",
            score=sigmoid(reward),
            distribution=kept,
            kind="model",
        )

    def _reward(self, role: str, answered: Answered) -> float | None:
        answer = answered.answer
        if not isinstance(answer, RewardResult) or answer.reward is None:
            return None
        mean, spread = self.standardise.get(role, (0.0, 1.0))
        return (answer.reward - mean) / spread


def build(
    spec: RewardEnsembleJudge, constitution: Constitution | None, beside: Path | None
) -> RewardEnsemble:
    """The judge of a spec. Raises ConfigError when it names principles."""
    if spec.principles is not None:
        raise ConfigError(f"judge {spec.id}: reward models judge as a whole; drop `principles`")
    roles = {name: frozenset[Capability]({"reward"}) for name in spec.asks()}
    return RewardEnsemble(
        spec.id, hash_judge(spec, ()), roles, spec.combine, spec.penalty, spec.standardise
    )
