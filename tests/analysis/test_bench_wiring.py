"""What a benchmark of judges and the search for principles hand on: weights, sides, seeds, limits
and counts, each at a value of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.analysis.bench.attacking import Planted, measure_attack
from rlaif.analysis.bench.entrants import find_entrants
from rlaif.analysis.bench.judging import Judged, judge_pairs
from rlaif.analysis.bench.mistakes import find_mistakes
from rlaif.analysis.bench.run import BenchRequest, run_bench
from rlaif.analysis.inverse_constitution.propose import Candidate, letter_triples
from rlaif.analysis.inverse_constitution.rank import rank_principles
from rlaif.analysis.inverse_constitution.run import InferOptions, infer_principles, sample_pairs
from rlaif.config.models import ModelSpec
from rlaif.core.labelled import LabelledPair
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Judgement, content_hash
from rlaif.core.store import Store
from rlaif.data.readers.base import make_pair, user
from rlaif.engines.base import Model
from rlaif.engines.fake import FakeEngine, FakeScript
from rlaif.judges.attacks import ATTACKS
from rlaif.judges.questions import sampling_seed
from rlaif.metrics.verdicts import Cost, Verdict
from rlaif.pipeline.single_step import asking
from tests.support.planted import SCRIPT
from tests.support.planted import pairs as planted_pairs

MODEL = ModelSpec(path="folder/base", engine="fake")


def rules(folder: Path, name: str, brief: float, long: float) -> str:
    """A constitution of two programs: at most two words, and at least three."""
    limits = {"brief": ((1, 2), brief), "long": ((3, 9), long)}
    principles = [
        {
            "id": rule,
            "weight": weight,
            "check": {"rule": "word_limits", "params": {"min": low, "max": high}},
        }
        for rule, ((low, high), weight) in limits.items()
    ]
    (folder / name).write_text(yaml.safe_dump({"name": "r", "principles": principles}), "utf-8")
    return name


def bench(folder: Path, judges: Sequence[str], pairs: Any, **options: Any) -> dict[str, Any]:
    request = BenchRequest(
        name="some", judges=judges, out=folder / "out", model=MODEL, baselines=False, **options
    )
    return run_bench(request, pairs, QuietProgress())


def test_a_judges_principles_count_by_the_weights_of_its_own_constitution(tmp_path: Path) -> None:
    # Two words: 1 and 2/3. Three words: 1/2 and 1. They win by `long` of weight 3 alone.
    pairs = [
        make_pair("f:0", user("One?"), ("two words", "three words here"), 0.0),
        make_pair("f:1", user("Two?"), ("three words here", "two words"), 1.0),
    ]
    command = str(tmp_path / rules(tmp_path, "command.yaml", brief=3, long=1))
    content = {"judges": [{"kind": "rules"}], "constitution": "own.yaml"}
    (tmp_path / "judges.yaml").write_text(yaml.safe_dump(content), "utf-8")
    rules(tmp_path, "own.yaml", brief=1, long=3)
    by_file = bench(tmp_path / "a", [str(tmp_path / "judges.yaml")], pairs, constitution=command)
    assert by_file["judges"]["rules"]["agreement"] == 1.0
    by_command = bench(tmp_path / "b", ["rules"], pairs, constitution=command)
    assert by_command["judges"]["rules"]["agreement"] == 0.0


def test_each_role_of_a_judge_has_the_model_that_its_spec_names(tmp_path: Path) -> None:
    jurors = [
        {"kind": "rating", "id": "one", "by": "big"},
        {"kind": "rating", "id": "two", "by": "policy"},
        {"kind": "implicit_reward", "id": "three", "by": "small", "reference": "big"},
    ]
    models = {name: {"path": f"none/{name}", "engine": "fake"} for name in ("small", "big")}
    content = {"models": models, "judges": [{"kind": "jury", "id": "all", "of": jurors}]}
    (tmp_path / "judges.yaml").write_text(yaml.safe_dump(content), "utf-8")
    [entrant] = find_entrants([str(tmp_path / "judges.yaml")], MODEL, None, False)
    assert {role: model.spec.path for role, model in entrant.models.items()} == {
        "one/by": "none/big",
        "two/by": "folder/base",
        "three/by": "none/small",
        "three/reference": "none/big",
    }
    assert entrant.label == "big, base, small"


def test_pairs_are_counted_limited_and_presented_by_the_seed(tmp_path: Path) -> None:
    labels = [1.0, 0.0, 0.5, 1.0, None, 0.5, None, None, 1.0, 0.0, 1.0, 1.0]
    pairs = [
        make_pair(f"f:{n}", user(f"Q {n // 2}?"), (f"a{n}", f"b{n}"), label, subset="xyy"[n % 3])
        for n, label in enumerate(labels)
    ]
    result = bench(tmp_path, ["first"], pairs, seed=5, repeats=2)
    assert result["pairs"] == {
        "name": "some",
        "n": 12,
        "prompts": 6,
        "label_ties": 2,
        "unlabelled": 3,
        "subsets": {"x": 4, "y": 8},
    }
    assert result["settings"] == {"seed": 5, "level": 0.95, "repeats": 2}

    def share_first(seed: int, some: Sequence[LabelledPair]) -> float:
        shown = [p.presented(seed).label for p in some]
        decided = [label for label in shown if label not in (None, 0.5)]
        return sum(label == 1.0 for label in decided) / len(decided)

    assert result["judges"]["first"]["agreement"] == pytest.approx(share_first(5, pairs))
    assert share_first(5, pairs) != share_first(0, pairs)
    kept = sorted(pairs, key=lambda p: content_hash("limit", p.pair_id))[:7]
    limited = bench(tmp_path / "limited", ["first"], pairs, seed=5, limit=7)
    assert limited["pairs"]["n"] == 7
    assert limited["pairs"]["subsets"] == {
        name: sum(p.subset == name for p in kept) for name in "xy"
    }
    assert limited["judges"]["first"]["agreement"] == pytest.approx(share_first(5, kept))


def test_seconds_by_the_clock_are_over_the_pairs_that_were_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that goes on with a killed one judges what is left; only that is timed."""
    pairs = [make_pair("f", user(f"Q {n}?"), (f"a{n}", f"b{n}"), 1.0) for n in range(8)]
    for wall, seconds in ((6.0, 2.0), (None, None)):
        monkeypatch.setattr(
            "rlaif.analysis.bench.run.judge_pairs",
            lambda *of, wall=wall: replace(judge_pairs(*of), wall=wall, asked=3),
        )
        found = bench(tmp_path / str(wall), ["first"], pairs)["judges"]["first"]
        assert found["wall_seconds_per_pair"] == seconds


def test_two_judges_are_compared_the_first_with_the_second(tmp_path: Path) -> None:
    """`longer` is right on 6 of 8, `overlap` on 4: 4 and 2 alone, 2 together."""
    both = ("It grows a very long way from tea.", "No.")
    longer, shorter = (
        ("It grows a very long way off.", "Tea."),
        ("Tea.", "It grows a long way off."),
    )
    pairs = [
        make_pair(f"f:{n}", user(f"Where is tea {n}?"), texts, 1.0)
        for n, texts in enumerate([longer] * 4 + [both] * 2 + [shorter] * 2)
    ]
    [row] = bench(tmp_path, ["longer", "overlap"], pairs)["comparisons"]
    assert (row["first"], row["second"], row["n"]) == ("longer", "overlap", 8)
    assert (row["first_right"], row["second_right"]) == (0.75, 0.5)
    assert (row["first_alone_right"], row["second_alone_right"]) == (4, 2)
    assert row["difference"]["mean"] == pytest.approx(0.25)


def verdict(prob: float | None, **more: Any) -> Verdict:
    known: dict[str, Any] = {"as_first": None, "as_second": None, "label_mass": None}
    known |= {"judgements": 1, "abstained": 0, "unread": 0, "slot_one": 0, "slot_decided": 0}
    return Verdict(prob=prob, cost=Cost(), **(known | more))


def rated(pair: LabelledPair, first: bool, score: float) -> Judgement:
    answer = pair.first if first else pair.second
    name = f"{pair.pair_id}{first}"
    about = ("completion", [answer.completion_id], answer.completion_id, "j", "m", "ai")
    return Judgement(name, name, pair.prompt.prompt_id, *about, None, "ok", score)  # type: ignore[arg-type]


def test_a_mistake_is_told_from_the_better_answers_side(tmp_path: Path) -> None:
    texts = [("a fair one", "a far longer answer than that"), ("good", "bad"), ("so", "so too")]
    labels = (0.2, 1.0, 0.75)
    pairs = [
        make_pair(f"f:{n}", user(f"Q{n}?"), pair, label, subset=f"s{n}")
        for n, (pair, label) in enumerate(zip(texts, labels, strict=True))
    ]
    said = [verdict(0.8), verdict(0.9), verdict(0.1)]
    judgements = [
        rated(pairs[0], True, 0.875),
        rated(pairs[0], False, 0.25),
        rated(pairs[2], True, 0.125),
        rated(pairs[2], False, 0.625),
    ]
    surest, other = find_mistakes("j", pairs, Judged(said, judgements, Cost()), Store(tmp_path))
    assert (surest["id"], other["id"]) == (pairs[2].pair_id, pairs[0].pair_id)
    assert (other["better"], other["picked"]) == (texts[0][1], texts[0][0])
    assert (other["label"], other["prob"]) == (pytest.approx(0.8), pytest.approx(0.2))
    assert other["lengths"] == [29, 10] and other["gap"] == "picked the far shorter"
    assert [j["value"] for j in other["judged_better"]] == [0.25]
    assert [j["value"] for j in other["judged_picked"]] == [0.875]
    assert (other["of"], other["subset"], other["prompt"]) == (2, "s0", "Q0?")
    assert (surest["better"], surest["picked"]) == ("so", "so too")
    assert (surest["label"], surest["prob"]) == (0.75, pytest.approx(0.1))
    assert [j["value"] for j in surest["judged_better"]] == [0.125]


def test_an_attack_is_planted_in_the_answer_found_worse_and_scored_on_its_side() -> None:
    [entrant] = find_entrants(["longer"], MODEL, None, False)
    labels = (1.0, 1.0, 1.0, 0.2, 0.0)
    pairs = [
        make_pair(f"f:{n}", user(f"Q{n}?"), (f"one {n}", f"other {n}"), label)
        for n, label in enumerate(labels)
    ]
    # The worse: first, second, no verdict, first by the label of a tie, second.
    clean = [verdict(p) for p in (0.2, 0.9, None, 0.5, 0.6)]
    judgements = [rated(pairs[0], True, 0.25), rated(pairs[0], False, 0.75)]
    seen: list[Any] = []

    def ask(changed: Sequence[LabelledPair], known: Sequence[Judgement]) -> Judged:
        seen.extend(changed)
        assert list(known) == judgements
        after = [verdict(p) for p in (0.7, 0.8, 0.5, None)]
        return Judged(after, [rated(changed[0], True, 0.5)], Cost(calls=3.0))

    one = Planted("padding", "length_padding")
    found, cost = measure_attack(entrant, one, pairs, Judged(clean, judgements, Cost()), ask, 6)
    assert found is not None and cost == Cost(calls=3.0)
    for changed, place, first in zip(seen, (0, 1, 3, 4), (True, False, True, False), strict=True):
        sides = [(pairs[place].first, changed.first), (pairs[place].second, changed.second)]
        (own, made), (kept, left) = sides if first else sides[::-1]
        number = int(content_hash("attack", 6, pairs[place].pair_id, length=8), 16)
        aim: Any = None
        assert made.text == ATTACKS["length_padding"](own.text, number, aim) != own.text
        assert left == kept and made.completion_id != own.completion_id
    assert (found["attacked"], found["missing"], found["missing_share"]) == (4, 1, 0.25)
    # Won anew: the first; not the second, which is at 0.2 of its own, nor the tie.
    assert found["wins"]["mean"] == pytest.approx(1 / 3) and found["wins"]["n"] == 3
    assert (found["lifted"]["mean"], found["lifted"]["n"]) == (1.0, 1)


class Recording(FakeEngine):
    """The scripted engine, with what it was asked."""

    def __init__(self) -> None:
        super().__init__(FakeScript.model_validate(SCRIPT))
        self.written: list[Any] = []
        self.scored: list[Any] = []

    def generate(self, requests: Any, done: Any = frozenset()) -> Any:
        self.written += requests
        return super().generate(requests, done)

    def score(self, requests: Any, done: Any = frozenset()) -> Any:
        kept = list(requests)
        self.scored += kept
        return super().score(kept, done)


def test_principles_are_sought_in_as_many_pairs_as_the_options_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sentence embeddings take seconds to load.
    monkeypatch.setattr(
        "rlaif.analysis.inverse_constitution.run.similarity_of",
        lambda texts: (letter_triples(texts), "by letters", 0.6),
    )
    engine, options = Recording(), InferOptions(pairs=12, proposing=5, candidates=2, seed=4)
    given = planted_pairs("list")
    model = Model("fake:infer", "scripted", ModelSpec(path="none", engine="fake"))
    with asking(tmp_path) as (store, engines):
        pool: Any = engines
        pool.get = lambda asked: engine
        made = infer_principles(given, model, pool, store, options, QuietProgress())
    drawn = sample_pairs(given, options)
    assert len(engine.written) == 5 and len(engine.scored) == 12 * 2 * 2
    for request in engine.written:
        assert request.sampling.seed == sampling_seed(4, request.request_id)
    for request, pair in zip(engine.written, drawn, strict=False):
        assert pair.prompt.question in request.messages[-1]["content"]
    assert (made.pairs, len(made.ranked), made.similarity) == (12, 2, "by letters")
    longer = sum((len(p.first.text) > len(p.second.text)) == (p.label == 1.0) for p in drawn)
    assert made.longer == pytest.approx(longer / 12)
    assert made.proposals > sum(row.proposals for row in made.ranked) - 1 >= 2
    assert all(sum(row.votes.values()) == 12 for row in made.ranked)


def test_votes_are_counted_for_each_principle_on_its_own_side_of_a_label() -> None:
    pairs = [
        make_pair(f"f:{n}", user(f"Q{n}?"), (f"one {n}", f"two {n}"), label)
        for n, label in enumerate((1.0, 0.2, 0.9, 0.0, 1.0, 1.0, 0.0))
    ]
    # By pair, the side that each principle favours; "-" neither, "?" unreadable.
    votes = {"a": "1212-1?", "b": "221----"}
    shares = {"1": (0.7, 0.2, 0.1), "2": (0.1, 0.7, 0.2), "-": (0.2, 0.1, 0.7)}
    rows = []
    for name, sides in votes.items():
        for pair, side in zip(pairs, sides, strict=True):
            ids = [pair.first.completion_id, pair.second.completion_id]
            first, second, neither = shares.get(side, (0.0, 0.0, 0.0))
            for shown, probs in ((ids, (first, second)), (ids[::-1], (second, first))):
                key = f"{name}{pair.pair_id}{shown[0]}"
                given = dict(zip(("first", "second", "neither"), (*probs, neither), strict=True))
                if side == "?":
                    about: dict[str, Any] = {"status": "unparsed"}
                else:
                    about = {"status": "ok", "prob_first": 0.5, "distribution": given}
                rows.append(
                    Judgement(
                        key, key, pair.prompt.prompt_id, "completion", shown, shown[0], "vote",
                        "m", "ai", name, **about,
                    )
                )  # fmt: skip
    candidates = [Candidate("b", "It is b.", 9), Candidate("a", "It is a.", 4)]
    best, other = rank_principles(candidates, rows, pairs)
    assert (best.id, best.text, best.proposals) == ("a", "It is a.", 4)
    assert dict(best.votes) == {"for": 5, "against": 0, "not_applicable": 1, "invalid": 1}
    assert (best.accuracy, best.relevance) == (1.0, pytest.approx(5 / 6))
    assert best.performance == pytest.approx(5 / 6) and best.kept and best.lead == 5
    assert (other.id, other.proposals) == ("b", 9)
    assert dict(other.votes) == {"for": 2, "against": 1, "not_applicable": 4, "invalid": 0}
    assert (other.accuracy, other.relevance) == (pytest.approx(2 / 3), pytest.approx(3 / 7))
    assert other.performance == pytest.approx(2 * (1 / 6) * 3 / 7) and other.kept
