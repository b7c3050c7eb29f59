"""Propose, group, vote, rank: each model's answer is stored as it comes, and never asked twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from rlaif.analysis.inverse_constitution.propose import (
    cluster_texts,
    proposal_request,
    read_proposals,
    similarity_of,
)
from rlaif.analysis.inverse_constitution.rank import Ranked, rank_principles
from rlaif.analysis.inverse_constitution.vote import PrincipleVotes
from rlaif.core.chat import CUT
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import content_hash
from rlaif.core.store import Store
from rlaif.engines.base import Model
from rlaif.engines.build import known_capabilities
from rlaif.judges.parsing import whole_lines
from rlaif.judges.templates import PAIRWISE, load_template
from rlaif.metrics.votes import side_with_label
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import Engines, Progress
from rlaif.pipeline.steps.judge import judge_labelled

PROPOSE = "prompts/infer/propose.j2"
VOTE = "prompts/infer/vote.j2"


@dataclass(frozen=True, slots=True)
class InferOptions:
    """`pairs` are voted on, the first `proposing` of them (in an order drawn by `seed`) are asked
    for principles, and the `candidates` most often proposed are voted on."""

    pairs: int = 200
    proposing: int = 50
    candidates: int = 20
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Inferred:
    """The candidates in order. `similarity` says how proposals were compared; `longer` is the share
    of the pairs in which the longer answer was preferred, a rule that any principle must beat."""

    ranked: tuple[Ranked, ...]
    pairs: int
    proposals: int
    similarity: str
    longer: float

    @property
    def kept(self) -> list[Ranked]:
        """Those that enter the constitution."""
        return [row for row in self.ranked if row.kept]


def infer_principles(
    labelled: Iterable[LabelledPair],
    model: Model,
    engines: Engines,
    store: Store,
    options: InferOptions,
    progress: Progress,
) -> Inferred:
    """The principles behind the labels. Run again after a kill it goes on after the last whole
    batch. Raises ConfigError when no pair has a preferred answer or nothing usable was proposed."""
    pairs = sample_pairs(labelled, options)
    texts = _make_proposals(
        pairs[: options.proposing], model, engines, store, options.seed, progress
    )
    if not texts:
        raise ConfigError(
            f"{model.label} proposed nothing that reads as a principle (a line of 4 to 40 words) "
            f"for any of {len(pairs[: options.proposing])} pairs; use a larger model"
        )
    vectors, how, threshold = similarity_of(sorted(set(texts)))
    candidates = tuple(cluster_texts(texts, vectors, threshold, options.candidates))

    template = load_template(VOTE, PAIRWISE, frozenset({"response_1", "response_2", "principle"}))
    known = known_capabilities(model.spec)
    by_text = known is not None and "label_logprobs" not in known
    judge = PrincipleVotes(template, candidates, by_text)
    ids = sorted(pair.pair_id for pair in pairs)
    digest = step_hash("judge", "vote", judge.judge_hash, model.identity(), ids, options.seed)
    votes = judge_labelled(judge, model, engines, pairs, store.step(digest), progress, options.seed)
    ranked = rank_principles(candidates, votes, pairs)
    sides = [side_with_label(len(p.first.text) - len(p.second.text), p.label or 0.0) for p in pairs]
    return Inferred(tuple(ranked), len(pairs), len(texts), how, sum(sides) / len(sides))


def sample_pairs(labelled: Iterable[LabelledPair], options: InferOptions) -> list[LabelledPair]:
    """At most `options.pairs` different pairs with a preferred answer, in an order by the seed. A
    pair that several people labelled has the mean of their labels."""
    labels: dict[str, list[float]] = defaultdict(list)
    known: dict[str, LabelledPair] = {}
    for pair in labelled:
        if pair.label is not None and pair.first.text.strip() != pair.second.text.strip():
            labels[pair.pair_id].append(pair.label)
            known.setdefault(pair.pair_id, pair)
    means = {name: fmean(given) for name, given in labels.items()}
    decided = {name: replace(known[name], label=m) for name, m in means.items() if m != 0.5}
    if not decided:
        raise ConfigError("no labelled pair in which one answer was preferred to the other")
    order = sorted(decided, key=lambda name: content_hash("infer", options.seed, name))
    return [decided[name] for name in order[: options.pairs]]


def _make_proposals(
    pairs: Sequence[LabelledPair],
    model: Model,
    engines: Engines,
    store: Store,
    seed: int,
    progress: Progress,
) -> list[str]:
    template = load_template(PROPOSE, PAIRWISE, frozenset({"response_1", "response_2"}))
    requests = [proposal_request(pair, template, seed) for pair in pairs]
    digest = step_hash(
        "sample", "propose", model.identity(), sorted(r.request_id for r in requests)
    )
    folder = store.step(digest)
    folder.repair()
    done = {row["request_id"] for row in folder.read("proposals")}
    progress.start("proposals", len(requests), len(done))
    if not all(r.request_id in done for r in requests):
        for batch in engines.get(model).generate(requests, done):
            rows: list[dict[str, Any]] = [
                {
                    "request_id": r.request_id,
                    "text": whole_lines(r.text, r.finish_reason == "length"),
                    "error": CUT if r.cut else r.error,
                }
                for r in batch
            ]
            folder.append("proposals", rows)
            progress.advance(len(rows))
    progress.finish()
    return [
        text
        for row in sorted(folder.read("proposals"), key=lambda row: str(row["request_id"]))
        for text in read_proposals(row["text"])
    ]
