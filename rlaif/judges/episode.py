"""What an environment rewarded: the sum of the rewards of an episode's turns. No model is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import FiniteFloat, model_validator

from rlaif.config.base import StepId
from rlaif.core.records import Completion, Judgement, Prompt
from rlaif.engines.base import Capability
from rlaif.judges.base import Answer, Call, Verdict, call_id, make_judgement
from rlaif.judges.common import JudgeBase, JudgeInputs, hash_judge, mapped, usable


class EpisodeJudge(JudgeBase):
    """The return of an episode: the sum of its turns' rewards.

    The raw value is the return itself, the score its place between `low` and `high`, clamped.
    """

    kind: Literal["episode"]
    id: StepId = "episode"
    low: FiniteFloat = 0.0
    high: FiniteFloat = 1.0

    @model_validator(mode="after")
    def _check_range(self) -> EpisodeJudge:
        if self.low >= self.high:
            raise ValueError(f"`low` ({self.low:g}) must be below `high` ({self.high:g})")
        return self

    def build_judge(self, inputs: JudgeInputs) -> EpisodeReturn:
        """The judge of the spec. Raises ConfigError where it names principles."""
        self.refuse_principles("the environment judges")
        return EpisodeReturn(self.id, hash_judge(self, ()), self.low, self.high)


@dataclass(frozen=True, slots=True)
class EpisodeReturn:
    """`raw_value` is the return and `score` (return - low) / (high - low), clamped to [0, 1];
    not_applicable to an answer that is no episode."""

    id: str
    judge_hash: str
    low: float
    high: float
    needs: frozenset[Capability] = frozenset()
    comparative: bool = False
    unbounded: bool = True

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call without a request per completion; `seed` changes nothing."""
        return [
            Call(call_id(self.judge_hash, [c], None), prompt, (c,)) for c in usable(completions)
        ]

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement; `result` is None."""
        turns = call.shown[0].turns
        verdict = Verdict("not_applicable")
        if turns:
            total = math.fsum(turn["reward"] for turn in turns)
            score = min(1.0, max(0.0, mapped(total, self.low, self.high)))
            verdict = Verdict("ok", score, raw_value=total)
        return [make_judgement(self, call, annotator_id, verdict, "rule")]
