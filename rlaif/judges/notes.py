"""What a user should know of how a judge's model answered, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from rlaif.core.records import Judgement
from rlaif.core.thinking import CUT, WAS_CUT
from rlaif.judges.base import LIMIT

LEAST_MASS = 0.1
"""Below this mean label mass the labels are not what the model wanted to say."""


def judgement_notes(judge: str, judgements: Sequence[Judgement]) -> list[str]:
    """`answer_notes` of a judge's judgements."""
    errors = Counter(j.error for j in judgements if j.error)
    masses = [j.label_mass for j in judgements if j.label_mass is not None]
    return answer_notes(judge, len(judgements), errors, masses)


def answer_notes(
    judge: str, judgements: int, errors: Mapping[str, int], masses: Sequence[float]
) -> list[str]:
    """What kept verdicts from being read, and what to change: `errors` are the reasons why
    judgements have no value with their counts, `masses` the label masses of those that have one."""
    notes = []
    for why, count in ((WAS_CUT, errors.get(CUT, 0)), (LIMIT, errors.get(LIMIT, 0))):
        if count:
            notes.append(
                f"judge {judge}: {count} of {judgements} verdicts could not be read, since the "
                f"answer was {why}: raise `max_new_tokens` of the judge"
            )
    if masses and (mean := fmean(masses)) < LEAST_MASS:
        notes.append(
            f"judge {judge}: its labels have a mean probability of {mean:.2g} together: the model "
            "wanted to say something else, and its verdicts rest on what is left. Look at what it "
            "would write (`rlaif prompt render`), or choose other labels; `min_label_mass` makes "
            "such verdicts abstentions"
        )
    return notes
