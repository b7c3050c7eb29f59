"""A reward model as a judge: one call per completion, the reward as it is and its sigmoid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.config.judges import RewardModelJudge
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.numbers import sigmoid
from rlaif.core.records import Completion, Judgement, Prompt
from rlaif.data.instructed import with_system
from rlaif.engines.base import Capability, RewardRequest, RewardResult
from rlaif.judges.base import Answer, Call, call_id, judgement
from rlaif.judges.common import hash_judge, usable


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
            Call(name, prompt, (c,), None, 0, RewardRequest(name, messages, c.messages[-1]))
            for c in usable(completions)
            for name in [call_id(self.judge_hash, [c], None)]
        ]

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement."""
        subject = call.shown[0]
        reward = result.reward if isinstance(result, RewardResult) else None
        if not isinstance(result, RewardResult) or reward is None or not math.isfinite(reward):
            return [judgement(self, call, subject, annotator_id, "model", "failed")]
        return [
            judgement(
                self,
                call,
                subject,
                annotator_id,
                "model",
                "ok",
                score=sigmoid(reward),
                distribution={"reward": reward, **result.parts},
                raw=repr(reward),
                raw_value=reward,
            )
        ]


def build(
    spec: RewardModelJudge, constitution: Constitution | None, beside: Path | None
) -> RewardModel:
    """The judge of a spec. Raises ConfigError when it names principles: the model has learned its
    own."""
    if spec.principles is not None:
        raise ConfigError(f"judge {spec.id}: a reward model judges as a whole; drop `principles`")
    return RewardModel(spec.id, hash_judge(spec, ()), spec.condition)
