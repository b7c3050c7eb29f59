"""DPO's implicit reward as a judge: how much likelier an answer became than under a reference.

The reward is beta (log p(y|x) - log p_ref(y|x)), summed over the answer's tokens (2305.18290,
equation 5 without the part that depends on x alone), or their mean with `per_token`. The end of
the turn is not counted, so that answers from files and sampled ones are treated alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlaif.config.judges import ImplicitRewardJudge
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement, Prompt
from rlaif.engines.base import Capability, ScoreRequest
from rlaif.judges.base import Answer, Answered, Call
from rlaif.judges.common import hash_judge
from rlaif.judges.composed import all_needs, calls_by_role, rewarded
from rlaif.judges.questions import label_result

ROLES = ("by", "reference")


def _roles() -> dict[str, frozenset[Capability]]:
    return {role: frozenset({"token_logprobs"}) for role in ROLES}


@dataclass(frozen=True, slots=True)
class ImplicitReward:
    """`score` is the sigmoid of the reward: the chance against an answer of reward 0.
    `distribution` holds the reward and both log-probs (nats, summed)."""

    id: str
    judge_hash: str
    beta: float
    per_token: bool
    roles: Mapping[str, frozenset[Capability]] = field(default_factory=_roles)
    comparative: bool = False
    unbounded: bool = True

    @property
    def needs(self) -> frozenset[Capability]:
        """Log-probabilities of given tokens."""
        return all_needs(self.roles)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per completion and model; `seed` changes nothing."""

        def request(name: str, completion: Completion) -> ScoreRequest:
            """What each model is asked about a completion."""
            return ScoreRequest(name, prompt.messages, continuation=completion.text)

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
        """One judgement per completion; failed where a model could not score it or it is empty."""
        return rewarded(self, calls, answers, self._read)

    def _read(self, answers: Mapping[str, Answer]) -> dict[str, float] | None:
        results = {role: label_result(answer) for role, answer in answers.items()}
        scored = {r: s.token_logprobs for r, s in results.items() if s and s.token_logprobs}
        if len(scored) < len(ROLES):
            return None
        sums = {role: math.fsum(logprobs) for role, logprobs in scored.items()}
        terms = {r: sums[r] / (len(scored[r]) if self.per_token else 1) for r in ROLES}
        reward = self.beta * (terms["by"] - terms["reference"])
        return {"reward": reward, "logprob": sums["by"], "logprob_reference": sums["reference"]}


def build(
    spec: ImplicitRewardJudge, constitution: Constitution | None, beside: Path | None
) -> ImplicitReward:
    """The judge of a spec. Raises ConfigError where both models are one by name, or it names
    principles."""
    if spec.principles is not None:
        raise ConfigError(f"judge {spec.id}: log-probs know no principle; drop `principles`")
    if spec.by == spec.reference:
        raise ConfigError(
            f"judge {spec.id}: `by` and `reference` are both {spec.by!r}: every reward would be 0"
        )
    return ImplicitReward(spec.id, hash_judge(spec, ()), spec.beta, spec.per_token)
