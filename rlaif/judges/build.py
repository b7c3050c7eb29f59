"""The kinds of judges, and from a judge's spec in the experiment file to the judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from rlaif.config.base import OneOf, PluginName, SpecTable, StepId
from rlaif.config.models import THINKING, ThinkingSpec
from rlaif.constitution.model import Constitution, load_constitution
from rlaif.core.errors import ConfigError
from rlaif.core.resources import find, find_object
from rlaif.judges.base import Judge
from rlaif.judges.common import AnswerOnly, JudgeBase, JudgeInputs, ModelJudge

JUDGES: SpecTable[JudgeBase] = SpecTable(
    {
        "rules": "rlaif.judges.rules:RulesJudge",
        "yes_no": "rlaif.judges.yes_no:YesNoJudge",
        "rating": "rlaif.judges.rating:RatingJudge",
        "direct": "rlaif.judges.rating:DirectJudge",
        "critique": "rlaif.judges.rating:CritiqueJudge",
        "prometheus": "rlaif.judges.rating:PrometheusJudge",
        "additive": "rlaif.judges.scored:AdditiveJudge",
        "pairwise": "rlaif.judges.pairwise:PairwiseJudge",
        "constitutional": "rlaif.judges.pairwise:ConstitutionalJudge",
        "prometheus_pair": "rlaif.judges.pairwise:PrometheusPairJudge",
        "template": "rlaif.judges.template:TemplateJudge",
        "ultrafeedback": "rlaif.judges.ultrafeedback:UltraFeedbackJudge",
        "rbrm": "rlaif.judges.rbrm:RbrmJudge",
        "rbr": "rlaif.judges.rbr:RbrJudge",
        "rubric": "rlaif.judges.rubric:RubricJudge",
        "reward_model": "rlaif.judges.implicit_reward:RewardModelJudge",
        "reward_ensemble": "rlaif.judges.implicit_reward:RewardEnsembleJudge",
        "implicit_reward": "rlaif.judges.implicit_reward:ImplicitRewardJudge",
        "meta": "rlaif.judges.meta:MetaJudge",
        "judgements": "rlaif.judges.judgements:JudgementsJudge",
        "jury": "rlaif.judges.jury:JuryJudge",
        "verdict": "rlaif.judges.verdict:VerdictMarkJudge",
        "episode": "rlaif.judges.episode:EpisodeJudge",
        "ellm": "rlaif.judges.ellm:EllmJudge",
        "longer": "rlaif.judges.baselines:LongerJudge",
        "first": "rlaif.judges.baselines:FirstJudge",
        "random": "rlaif.judges.baselines:RandomJudge",
        "overlap": "rlaif.judges.baselines:OverlapJudge",
        "perplexity": "rlaif.judges.baselines:PerplexityJudge",
    }
)
BASELINES = tuple(kind for kind, spec in JUDGES.rows.items() if ".baselines:" in spec)
"""Kinds that understand nothing, which every other judge must beat."""


class CustomJudge(ModelJudge):
    """A judge class of your own, `kind: package.module:Name`, built with `options`."""

    kind: PluginName
    id: StepId = "custom"
    options: dict[str, Any] = {}

    def build_judge(self, inputs: JudgeInputs) -> Judge:
        """The class that `kind` names is called as Name(spec, constitution)."""
        try:
            plugin = find_object(self.kind)
        except ValueError as error:
            raise ConfigError(f"judge {self.id}: kind {self.kind}: {error}") from error
        judge: Judge = plugin(self, inputs.constitution)
        staged = hasattr(judge, "conclude")
        needed = ["id", "judge_hash", "comparative", "needs", "calls"]
        needed += ["roles", "follow", "conclude"] if staged else ["read"]
        lacking = [name for name in needed if not hasattr(judge, name)]
        if lacking:
            raise ConfigError(
                f"judge {self.id}: {self.kind} is no judge: it lacks {', '.join(lacking)} "
                "(see rlaif/judges/base.py)"
            )
        return judge


def _name_kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "custom" if isinstance(kind, str) and ":" in kind else str(kind)


JudgeStep = Annotated[
    JudgeBase,
    OneOf(
        SpecTable({**JUDGES.rows, "custom": "rlaif.judges.build:CustomJudge"}),
        "kind",
        f"`kind` must be {', '.join(k for k in JUDGES if k not in BASELINES)}, a baseline "
        f"({', '.join(BASELINES)}), or package.module:Name",
        name_kind=_name_kind,
    ),
]
"""A judge in the experiment file."""


def _looks_at_constitution(spec: JudgeBase, inputs: JudgeInputs) -> bool:
    """Whether the judge, or one within, would be another without its constitution, or could not be
    built."""
    within = spec.judges_within().values()
    if within:
        return any(
            one.constitution is None and _looks_at_constitution(one, inputs) for one in within
        )
    try:
        without = spec.build_judge(replace(inputs, constitution=None))
    except ConfigError:
        return True
    return without.judge_hash != spec.build_judge(inputs).judge_hash


def build_judge(
    spec: JudgeBase,
    constitution: Constitution | None = None,
    beside: str | Path | None = None,
    thinking: ThinkingSpec = THINKING,
    judges: Mapping[str, JudgeBase] | None = None,
) -> Judge:
    """The judge that `spec` describes. `beside` is the experiment file: templates are looked for
    beside it too, as is the constitution that the spec names. `thinking` says how thinking is told
    in the answers, which a judge with `reasoning: strip` is shown without. `judges` are the specs
    of the others, which it may name.

    A `kind` of the form package.module:Name is imported and called as Name(spec, constitution).
    Raises ConfigError when the spec cannot work.
    """
    place = None if beside is None else Path(beside)
    if spec.constitution is not None:
        constitution = load_constitution(find(spec.constitution, place))
    inputs = JudgeInputs(constitution, place, thinking, judges or {})
    judge = spec.build_judge(inputs)
    if spec.constitution is not None and not _looks_at_constitution(spec, inputs):
        raise ConfigError(
            f"judge {spec.id}: `constitution` has no effect, since the judge looks at none of its "
            "principles. Name some in `principles`, or in those of the judges within, or drop it"
        )
    return judge if spec.reasoning == "keep" else AnswerOnly(judge, thinking)
