"""From combined candidate scores to preferences. Pure functions.

Ties, missing scores and identical texts make no pair; a chosen answer always scores above its
rejected one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rlaif.config import PairStep
from rlaif.records import Completion, Message, Preference, Prompt, content_hash


@dataclass(frozen=True, slots=True)
class Candidate:
    """A completion with its combined score on [0, 1]."""

    completion: Completion
    score: float


Pair = tuple[Candidate, Candidate]


def best_vs_worst(ranked: Sequence[Candidate], rng: random.Random) -> list[Pair]:
    """The highest against the lowest score."""
    return [(ranked[0], ranked[-1])]


def best_vs_random(ranked: Sequence[Candidate], rng: random.Random) -> list[Pair]:
    """The highest score against one drawn evenly from the others that score less."""
    others = [c for c in ranked[1:] if c.score < ranked[0].score]
    return [(ranked[0], rng.choice(others))] if others else []


def every_pair(ranked: Sequence[Candidate], rng: random.Random) -> list[Pair]:
    """Each two candidates, the better first; `min_margin` may keep the clear ones (Llama 3)."""
    return list(combinations(ranked, 2))


STRATEGIES: dict[str, Callable[[Sequence[Candidate], random.Random], list[Pair]]] = {
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
    rng = random.Random(content_hash("pair", seed, prompt.prompt_id))
    pairs = STRATEGIES[options.strategy](ranked, rng)
    # `all` keeps every difference; the others ask for the declared margin.
    margin = 0.0 if options.strategy == "all" else options.min_margin
    return [
        (better, worse)
        for better, worse in pairs
        if better.score > worse.score
        and better.score - worse.score >= margin
        and better.completion.digest != worse.completion.digest
    ]


def preference(
    prompt: Prompt,
    pair: Pair,
    options: PairStep,
    round_number: int,
    judgement_ids: Mapping[str, Sequence[str]],
    parts: Mapping[str, Mapping[str, float | None]],
) -> Preference:
    """The Preference record of a pair; `parts` are the judges' own scores, for the reason."""
    chosen, rejected = pair
    ids = (chosen.completion.completion_id, rejected.completion.completion_id)
    reasons = [
        f"{judge} {_shown(scores.get(ids[0]))} against {_shown(scores.get(ids[1]))}"
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
        judgement_ids=sorted({j for i in ids for j in judgement_ids.get(i, ())}),
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
            score_chosen=0.0,
            score_rejected=0.0,
            margin=0.0,
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


def _shown(score: float | None) -> str:
    return "missing" if score is None else f"{score:.3f}"


def keep_widest(preferences: list[Preference], limit: int | None) -> list[Preference]:
    """At most `limit` preferences, the widest margins first; then back in the order of ids."""
    if limit is not None and len(preferences) > limit:
        preferences = sorted(preferences, key=lambda p: (-p.margin, p.preference_id))[:limit]
    return sorted(preferences, key=lambda p: (p.prompt_id, p.preference_id))
