"""Preferences between a judge's written judgements, from which it learns to judge. Pure functions.

The question is the prompt, and two of the verdicts that were written to it are the answers: the
best and the worst by a judge of judgements (Meta-Rewarding, arXiv 2407.19594, section 2.3), or one
that agrees with people's labels and one that does not (Self-Taught Evaluator, arXiv 2408.02666).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import pvariance

from rlaif.config.steps import PairStep
from rlaif.core.labelled import GivenPair
from rlaif.core.records import Judgement, Message, Preference, content_hash
from rlaif.preferences.agreement import UNLABELLED, find_disagreeing
from rlaif.preferences.pairing import ngram_overlap

ALIKE = 1e-9
"""Two strengths nearer than this are the same: what is left of rounding in their fit."""


@dataclass(frozen=True, slots=True)
class WrittenVerdict:
    """A judgement with the `question` that its model was asked. Of a verdict whose probability was
    read, `word` is the one it stands for, and the last turns of the question are the model's own
    reasons and what asks for the verdict after them."""

    judgement: Judgement
    question: list[Message]
    word: str | None = None

    @property
    def text(self) -> str:
        """What the model wrote."""
        return self.word or self.judgement.raw or ""

    @property
    def value(self) -> float | None:
        """The score, or the probability that the first text shown is better, on [0, 1]; None where
        none could be read."""
        judgement = self.judgement
        return judgement.prob_first if judgement.score is None else judgement.score


Verdicts = list[WrittenVerdict]
VerdictPair = tuple[WrittenVerdict, WrittenVerdict]
"""The better and the worse of two verdicts on one question."""


def group_questions(written: Iterable[WrittenVerdict]) -> list[Verdicts]:
    """The verdicts on the same question, in the order of sampling; questions in the order of the
    texts shown and the principle."""
    groups: dict[str, Verdicts] = defaultdict(list)
    for one in written:
        groups[content_hash(one.question)].append(one)
    for group in groups.values():
        group.sort(key=lambda w: (w.judgement.sample_index, w.judgement.judgement_id))
    return sorted(
        groups.values(), key=lambda g: (g[0].judgement.shown, g[0].judgement.principle or "")
    )


def pick_widest(groups: Sequence[Verdicts]) -> list[Verdicts]:
    """Of each prompt the question whose verdicts' values have the largest variance, the first of
    several."""
    best: dict[str, tuple[float, Verdicts]] = {}
    for group in groups:
        spread = spread_of(w.value for w in group)
        name = group[0].judgement.prompt_id
        if name not in best or spread > best[name][0]:
            best[name] = (spread, group)
    return [group for _, group in best.values()]


def spread_of(values: Iterable[float | None]) -> float:
    """The variance of the values that are there; less than that of any where there are not two."""
    known = [value for value in values if value is not None]
    return pvariance(known) if len(known) > 1 else -1.0


def best_and_worst(group: Verdicts, strengths: Mapping[str, float]) -> VerdictPair | None:
    """The strongest and the weakest of the verdicts that have a strength, by judgement id; the
    first of several. None where all are as strong."""
    known = [w for w in group if w.judgement.judgement_id in strengths]
    if len(known) < 2:
        return None
    best = max(known, key=lambda w: strengths[w.judgement.judgement_id])
    worst = min(known, key=lambda w: strengths[w.judgement.judgement_id])
    gap = strengths[best.judgement.judgement_id] - strengths[worst.judgement.judgement_id]
    return None if gap < ALIKE else (best, worst)


def right_and_wrong(group: Verdicts, agrees: Mapping[str, bool]) -> list[VerdictPair]:
    """Verdicts on one question that agree with people against those that do not, the first with the
    first, the second with the second: none is in two pairs."""
    known = [w for w in group if w.judgement.judgement_id in agrees]
    right = [w for w in known if agrees[w.judgement.judgement_id]]
    wrong = [w for w in known if not agrees[w.judgement.judgement_id]]
    return list(zip(right, wrong, strict=False))


def find_agreements(
    written: Sequence[WrittenVerdict],
    pairs: Iterable[GivenPair],
    labels: Mapping[str, float],
) -> dict[str, bool]:
    """By judgement id, whether verdicts agree with people's `labels` as the filter `agrees` has it
    (see `find_disagreeing`), strictly. A tie agrees with no order, and neither does a verdict that
    could not be read: it is the text that is right or wrong. Those of texts without labels are
    absent."""
    judgements = [one.judgement for one in written]
    faults = find_disagreeing(judgements, pairs, labels)
    return {
        j.judgement_id: j.judgement_id not in faults
        for j in judgements
        if faults.get(j.judgement_id) != UNLABELLED
    }


def keep_fitting(
    pairs: Iterable[VerdictPair], step: PairStep
) -> tuple[list[VerdictPair], Counter[str]]:
    """The pairs that the step keeps, and how many went by why. `same_value` counts those kept whose
    two verdicts say the same: they teach how to word a verdict alone."""
    kept, counts = [], Counter[str]()
    for better, worse in pairs:
        if better.text.strip() == worse.text.strip():
            counts["alike"] += 1
        elif step.max_chars is not None and len(better.text) > step.max_chars:
            counts["too_long"] += 1
        elif step.max_overlap is not None and (
            ngram_overlap(better.text, worse.text) > step.max_overlap
        ):
            counts["overlapping"] += 1
        else:
            kept.append((better, worse))
            counts["same_value"] += better.value is not None and better.value == worse.value
    return kept, counts


def verdict_preference(
    pair: VerdictPair,
    step: PairStep,
    round_number: int,
    strengths: Mapping[str, float] | None,
    behind: Iterable[str] = (),
) -> Preference:
    """The record of a pair of verdicts: it belongs to the prompt whose answers were judged, and its
    own prompt is the judge's question. `strengths`, in natural units of log-odds by judgement id,
    are its scores; `behind` are the ids of the judgements that they come from."""
    better, worse = pair
    ids = (better.judgement.judgement_id, worse.judgement.judgement_id)
    scores: tuple[float | None, float | None] = (None, None)
    how = f"agrees with people's labels: {_say(better)} against {_say(worse)}"
    if strengths is not None:
        scores = strengths[ids[0]], strengths[ids[1]]
        how = f"best and worst by {step.better}: strength {scores[0]:.3f} against {scores[1]:.3f}"
    margin = None if scores[0] is None or scores[1] is None else scores[0] - scores[1]
    return Preference(
        preference_id="f_" + content_hash(*ids, *([step.source] if step.source else [])),
        prompt_id=better.judgement.prompt_id,
        round=round_number,
        prompt=better.question,
        chosen=[{"role": "assistant", "content": better.text}],
        rejected=[{"role": "assistant", "content": worse.text}],
        score_chosen=scores[0],
        score_rejected=scores[1],
        margin=margin,
        prob=1.0,
        weight=1.0,
        reason=f"judgements of {better.judgement.judge}, {how}",
        source=step.source or "rlaif",
        judgement_ids=sorted(set(behind) | set(ids)),
        chosen_id=ids[0],
        rejected_id=ids[1],
    )


def _say(verdict: WrittenVerdict) -> str:
    value = verdict.value
    return verdict.judgement.status if value is None else f"{value:.3f}"
