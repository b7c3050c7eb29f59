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

from rlaif.config.judges import RewardEnsembleJudge
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.records import Completion, Judgement, Prompt
from rlaif.engines.base import DISTANCE, MEMBER, SPREAD, Capability, RewardRequest, RewardResult
from rlaif.judges.base import Answer, Answered, Call
from rlaif.judges.common import hash_judge
from rlaif.judges.composed import all_needs, calls_by_role, rewarded


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
    adapters = {name: v for name, v in _parts(answer).items() if name.startswith(MEMBER)}
    if not adapters:
        return {f"{MEMBER}{role}": answer.reward}
    return {f"{MEMBER}{role}/{n.removeprefix(MEMBER)}": v for n, v in adapters.items()}


def _parts(answer: Answer) -> dict[str, float]:
    return answer.parts if isinstance(answer, RewardResult) else {}


@dataclass(frozen=True, slots=True)
class RewardEnsemble:
    """`score` is the sigmoid of the combined reward. `distribution` holds it, each member's, their
    standard deviation, and the members' mean distance from their training where they know it."""

    id: str
    judge_hash: str
    roles: Mapping[str, frozenset[Capability]]
    how: str
    penalty: float
    standardise: Mapping[str, tuple[float, float]]
    comparative: bool = False
    unbounded: bool = True

    @property
    def needs(self) -> frozenset[Capability]:
        """Rewards."""
        return all_needs(self.roles)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per completion and member; `seed` changes nothing."""

        def request(name: str, completion: Completion) -> RewardRequest:
            """What each model is asked about a completion."""
            return RewardRequest(name, prompt.messages, completion.messages[-1])

        return calls_by_role(self, prompt, completions, request)

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
        return rewarded(self, calls, answers, self._read)

    def _read(self, answers: Mapping[str, Answer]) -> dict[str, float] | None:
        members: dict[str, float] = {}
        away: list[float] = []
        for role, answer in answers.items():
            own = member_rewards(role, answer)
            if not own:
                return None
            away += [v for name, v in _parts(answer).items() if name == DISTANCE]
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
