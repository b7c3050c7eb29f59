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

from rlaif.config import ImplicitRewardJudge
from rlaif.constitution import Constitution
from rlaif.engines.base import Capability, ScoreRequest
from rlaif.errors import ConfigError
from rlaif.records import Completion, Judgement, Prompt

from .base import Answered, Call, call_id
from .common import hash_judge, sigmoid, usable
from .composed import all_needs, annotators, completions_of, concluded
from .questions import label_result

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

    @property
    def needs(self) -> frozenset[Capability]:
        """Log-probabilities of given tokens."""
        return all_needs(self.roles)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per completion and model; `seed` changes nothing."""
        return [
            Call(
                name,
                prompt,
                (completion,),
                None,
                0,
                ScoreRequest(name, prompt.messages, continuation=completion.text),
                role=role,
            )
            for completion in usable(completions)
            for role in ROLES
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
        """One judgement per completion; failed where a model could not score it or it is empty."""
        return [self._judge(c, calls, answers) for c in completions_of(calls)]

    def _judge(
        self, completion: Completion, calls: Sequence[Call], answers: Mapping[str, Answered]
    ) -> Judgement:
        own = [c for c in calls if c.shown[0].completion_id == completion.completion_id]
        who = annotators(own, answers, self.id)
        results = {c.role: label_result(answers[c.call_id].answer) for c in own}
        scored = {r: s.token_logprobs for r, s in results.items() if s and s.token_logprobs}
        if len(scored) < len(ROLES):
            return concluded(self, own, [completion], who, "failed", kind="model")
        sums = {role: math.fsum(logprobs) for role, logprobs in scored.items()}
        terms = {r: sums[r] / (len(scored[r]) if self.per_token else 1) for r in ROLES}
        reward = self.beta * (terms["by"] - terms["reference"])
        kept = {"reward": reward, "logprob": sums["by"], "logprob_reference": sums["reference"]}
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
