"""A rating on a described scale, per text principle or overall.

Levels with descriptions after the rubrics of Prometheus 2 (2405.01535); `expected` reads the mean
level from label probabilities (2309.00267, section "Direct RLAIF"), at once or after a critique.
"""

from __future__ import annotations

from pathlib import Path

from rlaif.config.judges import CritiqueJudge, DirectJudge, PrometheusJudge, RatingJudge
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.judges.common import hash_judge, judge_template, question_hashes, text_principles
from rlaif.judges.questions import asking
from rlaif.judges.scored import Scored, check_levels, scale_of

TEMPLATES = {
    "rating": "rating.j2",
    "direct": "direct.j2",
    "critique": "critique.j2",
    "prometheus": "prometheus.j2",
}


def build(
    spec: RatingJudge | DirectJudge | CritiqueJudge | PrometheusJudge,
    constitution: Constitution | None,
    beside: Path | None,
) -> Scored:
    """The judge of a spec. A principle's own `scale` replaces the spec's for that principle."""
    principles = text_principles(spec, constitution)
    for principle in principles or (None,):
        low, high = scale_of(principle, spec.scale, own_scales=True)
        if not low < high:
            name = principle.id if principle is not None else ""
            raise ConfigError(f"judge {spec.id}: the scale of principle {name!r} has one level")
        if spec.expected:
            check_levels(spec, low, high)
    template = judge_template(spec, TEMPLATES[spec.kind], beside, per_principle=bool(principles))
    return Scored(
        id=spec.id,
        judge_hash=hash_judge(spec, principles, template),
        questions=question_hashes(spec, principles, template),
        asking=asking(spec, template, spec.cot),
        principles=tuple(principles),
        listed=tuple(principles),
        scale=spec.scale,
        own_scales=True,
        samples=spec.samples,
    )
