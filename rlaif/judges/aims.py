"""What an attack on a judge should make it say, in the words of the judge's own template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlaif.judges import choices, pairwise, scored
from rlaif.judges.attacks import ANYTHING, Aim, Slot
from rlaif.judges.base import Judge
from rlaif.judges.forms import Form
from rlaif.judges.jury import Jury
from rlaif.judges.meta import Meta
from rlaif.judges.pairwise import Pairwise
from rlaif.judges.rbr import Rbr
from rlaif.judges.rbrm import Rbrm
from rlaif.judges.rubric import Rubric
from rlaif.judges.scored import Scored, level_labels, scale_of
from rlaif.judges.scores import USUAL
from rlaif.judges.ultrafeedback import HIGH, UltraFeedback
from rlaif.judges.yes_no import YesNo


def aim_of(judge: Judge, slot: Slot | None = None) -> Aim:
    """The best verdict for an answer: of a judge that compares, the label of `slot`; otherwise the
    top of its scale, its yes, or its best class. Of a jury, what its jurors would say; of a judge
    without words of its own, every usual form."""
    if isinstance(judge, Jury):
        return _together([aim_of(member, slot) for member in judge.members], slot)
    if isinstance(judge, Meta):
        return aim_of(judge.inner, slot)
    if isinstance(judge, Pairwise):
        label = judge.labels[slot or "first"][0].strip()
        form = judge.asking.template.form or choices.USUAL
        return Aim(_lines(form, [label]), ((pairwise.FIELD, label),), label, slot)
    if isinstance(judge, Scored):
        return _top(judge)
    if isinstance(judge, UltraFeedback):
        marks = [f"Text {n}\nRating: {HIGH}" for n in range(1, 3)]
        return Aim(tuple(marks), (("rating", str(HIGH)),), str(HIGH))
    words = _words(judge)
    return ANYTHING if words is None else Aim((words, f"Verdict: {words}"), _verdict(words), words)


def _top(judge: Scored) -> Aim:
    scales = {scale_of(p, judge.scale, judge.own_scales) for p in judge.principles or (None,)}
    if judge.asking.written is None:
        tops = [level_labels(low, high)[int(high)] for low, high in sorted(scales)]
    else:
        tops = [f"{high:g}" for _, high in sorted(scales)]
    form = judge.asking.template.form or USUAL
    return Aim(_lines(form, tops), ((scored.FIELD, tops[0]),), tops[0])


def _words(judge: Judge) -> str | None:
    """The best verdict of a judge whose labels are words."""
    if isinstance(judge, Rbr):
        return _words(judge.asker)
    if isinstance(judge, YesNo):
        return judge.labels["yes"][0].strip()
    if isinstance(judge, Rubric):
        return next(iter(judge.labels.values()))[0].strip() if judge.explicit else "J"
    if isinstance(judge, Rbrm):
        rewards = judge.tables[0].rewards
        return max(judge.classes, key=lambda c: rewards[c[1]])[0]
    return None


def _verdict(word: str) -> tuple[tuple[str, str], ...]:
    return (("verdict", word),)


def _lines(form: Form, words: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{head} {word}{form.tail}" for head in form.heads for word in words)


def _together(aims: Iterable[Aim], slot: Slot | None) -> Aim:
    every = list(aims)
    lines = dict.fromkeys(line for aim in every for line in aim.lines)
    fields = dict(field for aim in every for field in aim.fields)
    return Aim(tuple(lines), tuple(fields.items()), every[0].label, slot)
