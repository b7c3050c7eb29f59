"""A rating on a described scale, per text principle or overall.

Levels with descriptions after the rubrics of Prometheus 2 (2405.01535); `expected` reads the mean
level from label probabilities (2309.00267, section "Direct RLAIF").
"""

from __future__ import annotations

from pathlib import Path

from rlaif.config import RatingJudge
from rlaif.constitution import Constitution
from rlaif.errors import ConfigError

from .common import hash_judge, judge_template, text_principles
from .scored import (
    Scored,
    refuse_long_labels,
    refuse_unused_options,
    sampling_of,
    scale_of,
    scored_needs,
)


def build(spec: RatingJudge, constitution: Constitution | None, beside: Path | None) -> Scored:
    """The judge of a spec. A principle's own `scale` replaces the spec's for that principle."""
    principles = text_principles(spec, constitution)
    refuse_unused_options(spec)
    for principle in principles or (None,):
        low, high = scale_of(principle, spec.scale, own_scales=True)
        if not low < high:
            name = principle.id if principle is not None else ""
            raise ConfigError(f"judge {spec.id}: the scale of principle {name!r} has one level")
        if spec.expected:
            refuse_long_labels(spec.id, high)
    template = judge_template(spec, "rating.j2", beside, per_principle=bool(principles))
    return Scored(
        id=spec.id,
        judge_hash=hash_judge(spec, principles, template),
        needs=scored_needs(template, spec.expected),
        template=template,
        principles=tuple(principles),
        listed=tuple(principles),
        scale=spec.scale,
        own_scales=True,
        expected=spec.expected,
        samples=1 if spec.expected else spec.samples,
        sampling=sampling_of(spec),
    )
