"""Rule-based rewards: yes/no propositions about an answer, weighed by fitted weights (2411.01111).

The reward is bias + sum of w_i phi_i with phi_i = P(yes) for proposition i, on [0, 1].
`fit_weights` finds the weights that put better answers above worse ones by a margin (section 4.2
there).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rlaif.config import RbrJudge, Strict, YesNoJudge
from rlaif.constitution import Constitution
from rlaif.engines.base import Capability
from rlaif.errors import ConfigError
from rlaif.records import Completion, Judgement, Prompt, content_hash
from rlaif.resources import find
from rlaif.yamlio import load_yaml, suggest, validate

from . import yes_no
from .base import Answered, Call, verdicts_of
from .common import sigmoid
from .composed import annotators, completions_of, concluded, missing_status

Floats = npt.NDArray[np.float64]
RATE, ITERATIONS = 0.01, 1000


class RbrWeights(Strict):
    """A weights file: the weight of each proposition, which is a principle's id."""

    bias: float = 0.0
    weights: dict[str, float]


@dataclass(frozen=True, slots=True)
class Rbr:
    """`score` is the sigmoid of the reward; `distribution` holds each phi and the reward. A
    proposition that does not apply to the prompt adds nothing."""

    id: str
    judge_hash: str
    asker: yes_no.YesNo
    weights: Mapping[str, float]
    bias: float
    comparative: bool = False

    @property
    def roles(self) -> Mapping[str, frozenset[Capability]]:
        """One model."""
        return {"by": self.asker.needs}

    @property
    def needs(self) -> frozenset[Capability]:
        """Label probabilities."""
        return self.asker.needs

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per completion and proposition."""
        return self.asker.calls(prompt, completions, seed)

    def follow(
        self, calls: Sequence[Call], answers: Mapping[str, Answered], seed: int
    ) -> list[Call]:
        """Nothing."""
        return []

    def conclude(self, calls: Sequence[Call], answers: Mapping[str, Answered]) -> list[Judgement]:
        """One judgement per completion."""
        return [self._judge(c, calls, answers) for c in completions_of(calls)]

    def _judge(
        self, completion: Completion, calls: Sequence[Call], answers: Mapping[str, Answered]
    ) -> Judgement:
        own = [c for c in calls if c.shown[0].completion_id == completion.completion_id]
        read = verdicts_of(self.asker, own, answers)
        who = annotators(own, answers, self.id)
        asked = [j for j in read if j.status != "not_applicable"]
        phi = {j.principle: j.score for j in asked if j.principle and j.score is not None}
        if not asked or len(phi) < len(asked):
            status = missing_status(j.status for j in read if j.score is None)
            return concluded(self, own, [completion], who, status)
        reward = self.bias + sum(self.weights[name] * value for name, value in sorted(phi.items()))
        kept = {**phi, "reward": reward}
        return concluded(
            self, own, [completion], who, "ok", score=sigmoid(reward), distribution=kept
        )


def fit_weights(
    better: Floats,
    worse: Floats,
    base: Floats | None = None,
    margin: float = 1.0,
    ridge: float = 0.0,
) -> Floats:
    """Weights (k,) that make mean max(0, margin + R(worse) - R(better)) + ridge |w|^2 / 2 small.

    `better` and `worse` are the features (n, k) of the pairs' answers; R is their weighted sum plus
    `base`, the reward that they have anyway, of which the differences (n,) are given. Adam from
    zero weights, 1,000 steps at rate 0.01 (2411.01111, appendix). Raises ValueError on bad shapes.
    """
    if better.shape != worse.shape or better.ndim != 2 or not len(better):
        raise ValueError(
            f"features are (pairs, propositions) twice, not {better.shape}, {worse.shape}"
        )
    gap = better - worse
    offset = np.zeros(len(gap)) if base is None else base
    weights, mean, square = (np.zeros(gap.shape[1]) for _ in range(3))
    best, least = weights.copy(), np.inf
    for step in range(1, ITERATIONS + 1):
        short = margin - offset - gap @ weights
        loss = float(np.maximum(short, 0).mean() + ridge * weights @ weights / 2)
        if loss < least:
            best, least = weights.copy(), loss
        slope = ridge * weights - (gap * (short > 0)[:, None]).mean(0)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        scaled = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        weights = weights - RATE * scaled
    return best


def build(spec: RbrJudge, constitution: Constitution | None, beside: Path | None) -> Rbr:
    """The judge of a spec: it asks about the principles that the weights file names."""
    path = find(spec.weights, beside)
    data, lines = load_yaml(path)
    fitted = validate(RbrWeights, data, lines, path)
    if not fitted.weights:
        raise ConfigError(f"judge {spec.id}: there are no weights", path)
    for name in spec.principles or ():
        if name not in fitted.weights:
            hint = suggest(name, list(fitted.weights))
            raise ConfigError(f"judge {spec.id}: principle {name!r} has no weight{hint}", path)
    names = spec.principles or sorted(fitted.weights)
    asker = yes_no.build(
        YesNoJudge(
            kind="yes_no",
            id=spec.id,
            by=spec.by,
            template=spec.template,
            principles=names,
            yes_labels=spec.yes_labels,
            no_labels=spec.no_labels,
        ),
        constitution,
        beside,
    )
    kept = {name: fitted.weights[name] for name in sorted(names)}
    return Rbr(
        id=spec.id,
        judge_hash=content_hash("rbr", asker.judge_hash, kept, fitted.bias),
        asker=asker,
        weights=kept,
        bias=fitted.bias,
    )
