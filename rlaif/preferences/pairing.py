"""From combined candidate scores to preferences. Pure functions.

Ties, missing scores and identical texts make no pair; a chosen answer always scores above its
rejected one.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from msgspec import Struct
from msgspec.structs import replace

from rlaif.config.steps import PairStep
from rlaif.constitution.textstats import is_blank
from rlaif.core.numbers import rank_correlation
from rlaif.core.records import Completion, Judgement, Message, Preference, Prompt, content_hash
from rlaif.core.rowfiles import line_of
from rlaif.core.rowindex import Part
from rlaif.data.near import ngram_hashes, word_hashes
from rlaif.preferences.aggregate import Scores, combine, compared_scores, weights_of


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
        judge: compared_scores(rows, weights_of(judge, principle_weights), renormalise, blank)
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


class Candidate(Struct, frozen=True):
    """A completion with its combined score on [0, 1]."""

    completion: Completion
    score: float


Pair = tuple[Candidate, Candidate]


Draw = Callable[[], random.Random]
"""Makes the random numbers of one prompt; to seed them takes longer than most pairs do."""


def best_vs_worst(ranked: Sequence[Candidate], draw: Draw) -> list[Pair]:
    """The highest against the lowest score."""
    return [(ranked[0], ranked[-1])]


def best_vs_random(ranked: Sequence[Candidate], draw: Draw) -> list[Pair]:
    """The highest score against one drawn evenly from the others that score less."""
    others = [c for c in ranked[1:] if c.score < ranked[0].score]
    return [(ranked[0], draw().choice(others))] if others else []


def every_pair(ranked: Sequence[Candidate], draw: Draw) -> list[Pair]:
    """Each two candidates, the better first; `min_margin` may keep the clear ones (Llama 3)."""
    return list(combinations(ranked, 2))


def length_tiered(ranked: Sequence[Candidate], tier: float) -> list[Pair]:
    """The shortest of the best against the longest of the worst (arXiv 2407.19594, section 2.2).

    With scores from low to high, the best have at least high - `tier` (high - low), the worst at
    most low + `tier` (high - low). At 0 only answers of equal scores are chosen from.
    """
    high, low = ranked[0].score, ranked[-1].score
    reach = tier * (high - low)
    best = [c for c in ranked if c.score >= high - reach]
    worst = [c for c in ranked if c.score <= low + reach]
    return [
        (
            min(best, key=lambda c: len(c.completion.text)),
            max(worst, key=lambda c: len(c.completion.text)),
        )
    ]


def ngram_overlap(first: str, second: str) -> float:
    """The Jaccard similarity of two texts' 3-grams of words, in [0, 1]."""
    one, two = (set(ngram_hashes(word_hashes(text), 3).tolist()) for text in (first, second))
    return len(one & two) / len(one | two)


STRATEGIES: dict[str, Callable[[Sequence[Candidate], Draw], list[Pair]]] = {
    "best_vs_worst": best_vs_worst,
    "best_vs_random": best_vs_random,
    "margin": every_pair,
    "all": every_pair,
}


def prompt_pairs(
    prompt: Prompt, candidates: Sequence[Candidate], options: PairStep, seed: int
) -> list[Pair]:
    """The pairs of one prompt. The draw depends on the seed and the prompt alone."""
    ranked = sorted(candidates, key=lambda c: (-c.score, c.completion.completion_id))
    if len(ranked) < 2:
        return []
    if options.tier is not None:
        pairs = length_tiered(ranked, options.tier)
    else:
        pairs = STRATEGIES[options.strategy](
            ranked, lambda: random.Random(content_hash("pair", seed, prompt.prompt_id))
        )
    # `all` keeps every difference; the others ask for the declared margin.
    margin = 0.0 if options.strategy == "all" else options.min_margin
    return [
        (better, worse)
        for better, worse in pairs
        if better.score > worse.score
        and better.score - worse.score >= margin
        and better.completion.digest != worse.completion.digest
        and (
            options.max_overlap is None
            or ngram_overlap(better.completion.text, worse.completion.text) <= options.max_overlap
        )
    ]


def make_preference(
    prompt: Prompt,
    pair: Pair,
    options: PairStep,
    round_number: int,
    judgements: Mapping[str, Sequence[Judgement]],
    parts: Mapping[str, Mapping[str, float | None]],
    how: str | None = None,
) -> Preference:
    """The Preference record of a pair, from what each judge said of the prompt's answers; `parts`
    are their scores, for the reason, which begins with `how` the pair came about, by default the
    strategy."""
    chosen, rejected = pair
    ids = (chosen.completion.completion_id, rejected.completion.completion_id)
    reasons = [
        f"{judge} {_format_score(scores.get(ids[0]))} against {_format_score(scores.get(ids[1]))}"
        for judge, scores in sorted(parts.items())
    ]
    return Preference(
        # Of two sources the same pair is two records.
        preference_id="f_" + content_hash(*ids, *([options.source] if options.source else [])),
        prompt_id=prompt.prompt_id,
        round=round_number,
        prompt=prompt.messages,
        chosen=chosen.completion.messages,
        rejected=rejected.completion.messages,
        score_chosen=chosen.score,
        score_rejected=rejected.score,
        margin=chosen.score - rejected.score,
        prob=1.0,
        weight=1.0,
        reason="; ".join(
            [
                f"{how or options.strategy}: combined {chosen.score:.3f} against "
                f"{rejected.score:.3f}",
                *reasons,
            ]
        ),
        source=options.source or "rlaif",
        judgement_ids=sorted(
            {
                judgement.judgement_id
                for rows in judgements.values()
                for judgement in rows
                if ids[0] in judgement.shown or ids[1] in judgement.shown
            }
        ),
        chosen_id=ids[0],
        rejected_id=ids[1],
    )


def against_reference(
    prompt: Prompt, completions: Sequence[Completion], round_number: int, source: str | None = None
) -> list[Preference]:
    """The prompt's reference answer as chosen against each different sample (SPIN, arXiv
    2401.01335). Nothing was scored, so no margin is known. `source` as in `PairStep`."""
    given = reference_answer(prompt)
    if given is None:
        return []
    reason = "reference: the prompt's own answer against a sample; nothing was judged"
    return [
        unjudged_preference(prompt, (given, c), round_number, source, reason, "reference")
        for c in completions
        if c.text.strip() not in ("", given.text.strip())
    ]


def reference_answer(prompt: Prompt) -> Completion | None:
    """The prompt's reference as an answer; None where it has none."""
    if not (prompt.reference or "").strip():
        return None
    messages: list[Message] = [{"role": "assistant", "content": prompt.reference or ""}]
    name = "x_" + content_hash(prompt.messages, messages)
    digest = content_hash(messages)
    return Completion(name, prompt.prompt_id, 0, messages, "", "", {}, "stop", digest=digest)


def unjudged_preference(
    prompt: Prompt,
    answers: tuple[Completion, Completion],
    round_number: int,
    source: str | None,
    reason: str,
    default_source: str = "rlaif",
) -> Preference:
    """The record of a pair, (chosen, rejected), that nobody scored: no margin is known. `source` as
    in `PairStep`, with `default_source` where it says none."""
    chosen, rejected = answers
    ids = (chosen.completion_id, rejected.completion_id)
    return Preference(
        # Of two sources the same pair is two records.
        preference_id="f_" + content_hash(*ids, *([source] if source else [])),
        prompt_id=prompt.prompt_id,
        round=round_number,
        prompt=prompt.messages,
        chosen=chosen.messages,
        rejected=rejected.messages,
        score_chosen=None,
        score_rejected=None,
        margin=None,
        prob=1.0,
        weight=1.0,
        reason=reason,
        source=source or default_source,
        judgement_ids=[],
        chosen_id=ids[0],
        rejected_id=ids[1],
    )


def _format_score(score: float | None) -> str:
    return "missing" if score is None else f"{score:.3f}"


def balance_lengths(preferences: Iterable[Preference]) -> list[Preference]:
    """As many preferences whose chosen answer is the longer one, in characters, as the shorter one.

    Of the more frequent kind those go whose lengths differ most, as logarithms. Preferences of
    equal lengths stay, and so does the order.
    """
    given = list(preferences)
    gaps = {p.preference_id: _length_gap(p) for p in given}
    longer = sorted((g, name) for name, g in gaps.items() if g > 0)
    shorter = sorted((-g, name) for name, g in gaps.items() if g < 0)
    count = min(len(longer), len(shorter))
    dropped = {name for _, name in [*longer[count:], *shorter[count:]]}
    return [p for p in given if p.preference_id not in dropped]


def _length_gap(preference: Preference) -> float:
    """The log of how many times longer the chosen answer is; 0 for equal lengths."""
    chosen, rejected = (
        sum(len(turn["content"]) for turn in side)
        for side in (preference.chosen, preference.rejected)
    )
    return math.log((1 + chosen) / (1 + rejected))


def keep_widest(preferences: Iterable[Preference], limit: int) -> list[Preference]:
    """At most `limit` preferences, the widest margins first and those without one last; then back
    in the order of ids."""
    widest = heapq.nsmallest(limit, preferences, key=_sort_by_margin)
    return sorted(widest, key=lambda p: (p.prompt_id, p.preference_id))


def _sort_by_margin(preference: Preference) -> tuple[float, str]:
    margin = -math.inf if preference.margin is None else preference.margin
    return -margin, preference.preference_id
