"""Rule-based rewards: yes/no propositions about an answer, weighed by fitted weights (2411.01111).

The reward is sum of w_i phi_i with phi_i = P(yes) for proposition i, on [0, 1]; `rbr_fit`
finds the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.config.base import Strict
from rlaif.config.judges import YesNoJudge
from rlaif.config.rubrics import RbrJudge
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.numbers import sigmoid
from rlaif.core.records import Completion, Judgement, Prompt, content_hash
from rlaif.core.resources import find
from rlaif.core.yamlio import load_yaml, suggest, validate
from rlaif.engines.base import Capability
from rlaif.judges import yes_no
from rlaif.judges.base import Answered, Call, most_calls, verdicts_of
from rlaif.judges.composed import annotators, completions_of, concluded, missing_status


class RbrWeights(Strict):
    """A weights file: the weight of each proposition, which is a principle's id."""

    weights: dict[str, float]


@dataclass(frozen=True, slots=True)
class Rbr:
    """`score` is the sigmoid of the reward, which is the raw value; `distribution` holds each phi
    and the reward. A proposition that does not apply to the prompt adds nothing."""

    id: str
    judge_hash: str
    asker: yes_no.YesNo
    weights: Mapping[str, float]
    comparative: bool = False
    unbounded: bool = True

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

    def most_calls(self, calls: Sequence[Call]) -> int:
        """The calls as they are."""
        return most_calls(self.asker, calls)

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
        reward = sum(self.weights[name] * value for name, value in sorted(phi.items()))
        kept = {**phi, "reward": reward}
        return concluded(
            self,
            own,
            [completion],
            who,
            "ok",
            score=sigmoid(reward),
            distribution=kept,
            raw_value=reward,
        )


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
            template=spec.template or "prompts/judges/rbr.j2",
            principles=names,
            yes_labels=spec.yes_labels,
            no_labels=spec.no_labels,
            abstain_labels=spec.abstain_labels,
            min_label_mass=spec.min_label_mass,
        ),
        constitution,
        beside,
    )
    kept = {name: fitted.weights[name] for name in sorted(names)}
    return Rbr(
        id=spec.id,
        judge_hash=content_hash("rbr", asker.judge_hash, kept),
        asker=asker,
        weights=kept,
    )
