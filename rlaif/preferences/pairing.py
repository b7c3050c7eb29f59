"""From what judges said of a prompt's answers to its preferences. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from rlaif.config.steps import PairStep
from rlaif.constitution.textstats import is_blank
from rlaif.core.numbers import rank_correlation
from rlaif.core.records import Completion, Judgement, Preference, Prompt
from rlaif.core.rowfiles import Part, line_of
from rlaif.preferences.aggregate import Scores, combine, compared_scores
from rlaif.preferences.strategies import Candidate, make_preference, prompt_pairs


@dataclass(frozen=True, slots=True)
class PairSettings:
    """What decides a prompt's pairs beside its answers and what was said of them. `weights` are the
    judges', `principle_weights` those of the principles, 1 where none is given."""

    step: PairStep
    seed: int
    round: int
    weights: Mapping[str, float]
    principle_weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Work:
    """Some prompts, and where their completions and each judge's judgements are."""

    settings: PairSettings
    prompts: Sequence[Prompt]
    completions: Sequence[Part]
    judgements: Mapping[str, Sequence[Part]]


def pairs_of(work: Work) -> tuple[list[bytes], Counter[str]]:
    """The preferences of each prompt in turn, in the order of ids, as the lines of a record file;
    how many prompts there were, and how many of them have no pair for which reason."""
    lines: list[bytes] = []
    counts = Counter({"prompts": len(work.prompts)})
    for prompt in work.prompts:
        name = prompt.prompt_id
        answers = [c for part in work.completions for c in part.records(name, Completion)]
        said = {
            judge: [j for part in parts for j in part.records(name, Judgement)]
            for judge, parts in work.judgements.items()
        }
        made, why_none = prompt_preferences(work.settings, prompt, answers, said)
        if why_none is not None:
            counts[why_none] += 1
        lines += map(line_of, sorted(made, key=lambda p: p.preference_id))
    return lines, counts


def prompt_preferences(
    settings: PairSettings,
    prompt: Prompt,
    completions: Sequence[Completion],
    judgements: Mapping[str, Sequence[Judgement]],
) -> tuple[list[Preference], str | None]:
    """The prompt's preferences, and the count that it belongs to when equal ranks left none."""
    step = settings.step
    blank = {c.completion_id for c in completions if is_blank(c.text)}
    parts = score_prompt(judgements, settings.principle_weights, step, blank)
    combined = combine(parts, settings.weights, step.missing)
    scored = [
        Candidate(c, score)
        for c in completions
        if (score := combined.get(c.completion_id)) is not None
    ]
    pairs = prompt_pairs(prompt, scored, step, settings.seed)
    made = [
        make_preference(prompt, pair, step, settings.round, judgements, parts) for pair in pairs
    ]
    if len(scored) > 1 and len({c.score for c in scored}) == 1:
        return made, "tied_prompts"
    if step.consistency is None or not made:
        return made, None
    prob = consistency_prob(combined, parts[step.consistency])
    if prob is None:
        return [], "unranked_prompts"
    return [replace(p, prob=prob) for p in made], None


def score_prompt(
    judgements: Mapping[str, Sequence[Judgement]],
    principle_weights: Mapping[str, float],
    step: PairStep,
    blank: Container[str] = (),
) -> dict[str, Scores]:
    """Each judge's scores of one prompt's candidates, of which `blank` say nothing."""
    renormalise = step.missing == "renormalise"
    return {
        judge: compared_scores(rows, principle_weights, renormalise, blank)
        for judge, rows in judgements.items()
    }


def consistency_prob(scores: Scores, others: Scores) -> float | None:
    """CREAM's C = (tau + 1) / 2 on [0, 1] (arXiv 2410.12735), tau being Kendall's rank correlation
    of two sets of scores of one prompt's candidates; None where they rank no two candidates.

    As a pair's `prob`, 1 leaves the loss as it is, at 1/2 it pulls to no side, 0 reverses the pair.
    """
    both = [
        (score, other)
        for name, score in scores.items()
        if score is not None and (other := others.get(name)) is not None
    ]
    tau = rank_correlation([score for score, _ in both], [other for _, other in both])
    return None if tau is None else (tau + 1.0) / 2.0
