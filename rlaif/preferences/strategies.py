"""From combined candidate scores to preferences. Pure functions.

Ties, missing scores and identical texts make no pair; a chosen answer always scores above its
rejected one.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

from msgspec import Struct

from rlaif.config.steps import PairStep
from rlaif.core.records import Completion, Judgement, Message, Preference, Prompt, content_hash
from rlaif.data.near import ngram_hashes, word_hashes


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
) -> Preference:
    """The Preference record of a pair, from what each judge said of the prompt's answers; `parts`
    are their scores, for the reason."""
    chosen, rejected = pair
    ids = (chosen.completion.completion_id, rejected.completion.completion_id)
    reasons = [
        f"{judge} {_format_score(scores.get(ids[0]))} against {_format_score(scores.get(ids[1]))}"
        for judge, scores in sorted(parts.items())
    ]
    return Preference(
        preference_id="f_" + content_hash(*ids),
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
        reason=f"{options.strategy}: combined {chosen.score:.3f} against {rejected.score:.3f}; "
        + "; ".join(reasons),
        source="rlaif",
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
    prompt: Prompt, completions: Sequence[Completion], round_number: int
) -> list[Preference]:
    """The prompt's reference answer as chosen against each different sample (SPIN, arXiv
    2401.01335). Nothing was scored, so no margin is known."""
    if not (prompt.reference or "").strip():
        return []
    chosen: list[Message] = [{"role": "assistant", "content": prompt.reference or ""}]
    chosen_id = "x_" + content_hash(prompt.messages, chosen)
    return [
        Preference(
            preference_id="f_" + content_hash(chosen_id, c.completion_id),
            prompt_id=prompt.prompt_id,
            round=round_number,
            prompt=prompt.messages,
            chosen=chosen,
            rejected=c.messages,
            score_chosen=None,
            score_rejected=None,
            margin=None,
            prob=1.0,
            weight=1.0,
            reason="reference: the prompt's own answer against a sample; nothing was judged",
            source="reference",
            judgement_ids=[],
            chosen_id=chosen_id,
            rejected_id=c.completion_id,
        )
        for c in completions
        if c.text.strip() not in ("", (prompt.reference or "").strip())
    ]


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
