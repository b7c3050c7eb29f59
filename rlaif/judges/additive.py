"""Points that add up from 0 to 5, one call per completion and sample.

After self-rewarding language models, 2401.10020, figure 2; the wording is our own.
"""

from __future__ import annotations

from pathlib import Path

from rlaif.config.judges import AdditiveJudge
from rlaif.constitution.model import Constitution, Principle
from rlaif.core.errors import ConfigError
from rlaif.judges.common import hash_judge, judge_template, question_hashes, text_principles
from rlaif.judges.questions import asking
from rlaif.judges.scored import Scored, check_levels

POINTS = (0, 5)


def build(spec: AdditiveJudge, constitution: Constitution | None, beside: Path | None) -> Scored:
    """The judge of a spec: overall quality, and the principles that `principles` names, if any."""
    named: list[Principle] = []
    if spec.principles is not None:
        named = text_principles(spec, constitution)
    template = judge_template(spec, "additive.j2", beside)
    if named and "principles" not in template.variables:
        raise ConfigError(
            f"judge {spec.id}: `principles` has no effect, since the template does not use "
            "{{ principles }}",
            template.name,
        )
    if spec.expected:
        check_levels(spec, *POINTS)
    return Scored(
        id=spec.id,
        judge_hash=hash_judge(spec, named, template),
        questions=question_hashes(spec, named, template),
        asking=asking(spec, template),
        principles=(),
        listed=tuple(named),
        scale=POINTS,
        own_scales=False,
        samples=1 if spec.expected else spec.samples,
    )
