"""From a judge's spec in the experiment file to the judge. Modules are imported on use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif.config.judging import JudgeBase
from rlaif.config.models import THINKING, ThinkingSpec
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.resources import find_object
from rlaif.judges.base import Judge
from rlaif.judges.common import AnswerOnly

JUDGES = {
    "rules": "rlaif.judges.rules:build",
    "yes_no": "rlaif.judges.yes_no:build",
    "rating": "rlaif.judges.rating:build",
    "direct": "rlaif.judges.rating:build",
    "critique": "rlaif.judges.rating:build",
    "prometheus": "rlaif.judges.rating:build",
    "additive": "rlaif.judges.scored:build",
    "pairwise": "rlaif.judges.pairwise:build",
    "constitutional": "rlaif.judges.pairwise:build",
    "prometheus_pair": "rlaif.judges.pairwise:build",
    "template": "rlaif.judges.template:build",
    "ultrafeedback": "rlaif.judges.ultrafeedback:build",
    "rbrm": "rlaif.judges.rbrm:build",
    "rbr": "rlaif.judges.rbr:build",
    "rubric": "rlaif.judges.rubric:build",
    "reward_model": "rlaif.judges.implicit_reward:build_reward_model",
    "reward_ensemble": "rlaif.judges.implicit_reward:build_reward_ensemble",
    "implicit_reward": "rlaif.judges.implicit_reward:build",
    "meta": "rlaif.judges.meta:build",
    "jury": "rlaif.judges.jury:build",
    "longer": "rlaif.judges.baselines:build",
    "first": "rlaif.judges.baselines:build",
    "random": "rlaif.judges.baselines:build",
    "overlap": "rlaif.judges.baselines:build_overlap",
    "perplexity": "rlaif.judges.baselines:build_perplexity",
}

OF_JUDGES = ("meta", "jury")
"""Kinds that build judges of their own."""


def build_judge(
    spec: JudgeBase,
    constitution: Constitution | None = None,
    beside: str | Path | None = None,
    thinking: ThinkingSpec = THINKING,
) -> Judge:
    """The judge that `spec` describes. `beside` is the experiment file: templates are looked for
    beside it too. `thinking` says how thinking is told in the answers, which a judge with
    `reasoning: strip` is shown without.

    A `kind` of the form package.module:Name is imported and called as Name(spec, constitution).
    Raises ConfigError when the spec cannot work.
    """
    beside = None if beside is None else Path(beside)
    if spec.kind in JUDGES:
        more = {"thinking": thinking} if spec.kind in OF_JUDGES else {}
        build = load_object(JUDGES[spec.kind], spec.id)
        return _shown(build(spec, constitution, beside, **more), spec, thinking)
    custom = load_object(spec.kind, spec.id)(spec, constitution)
    staged = hasattr(custom, "conclude")
    needed = ["id", "judge_hash", "comparative", "needs", "calls"]
    needed += ["roles", "follow", "conclude"] if staged else ["read"]
    lacking = [name for name in needed if not hasattr(custom, name)]
    if lacking:
        raise ConfigError(
            f"judge {spec.id}: {spec.kind} is no judge: it lacks {', '.join(lacking)} "
            "(see rlaif/judges/base.py)"
        )
    return _shown(custom, spec, thinking)


def _shown(judge: Judge, spec: JudgeBase, thinking: ThinkingSpec) -> Judge:
    """The judge, shown what the spec says of the answers."""
    if spec.reasoning == "keep":
        return judge
    return AnswerOnly(judge, thinking)


def load_object(reference: str, judge: str) -> Any:
    """The object that package.module:Name refers to, or a ConfigError that says what is missing."""
    try:
        return find_object(reference)
    except ValueError as error:
        raise ConfigError(f"judge {judge}: kind {reference}: {error}") from error
