"""Pairs: strategies, ties, margins; the same pairs in any order of candidates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace as replaced
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import ValidationError

from rlaif.config.steps import PairStep
from rlaif.core.errors import ConfigError
from rlaif.core.progress import QuietProgress
from rlaif.core.records import (
    Completion,
    Judgement,
    Preference,
    Prompt,
    content_hash,
    make_prompt,
    to_json,
)
from rlaif.core.store import Store, write_jsonl
from rlaif.data.sources import PromptSet
from rlaif.pipeline.plan.base import PlanInputs, Planned
from rlaif.pipeline.single_step import FileStore
from rlaif.pipeline.steps import pair
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.pair import run
from rlaif.preferences.pairing import (
    Candidate,
    Pair,
    balance_lengths,
    consistency_prob,
    keep_widest,
    make_preference,
    prompt_pairs,
)

PROMPT = make_prompt([{"role": "user", "content": "Name a red fruit."}])
STRATEGIES = ["best_vs_worst", "best_vs_random", "margin", "all"]


def candidate(index: int, score: float, text: str | None = None) -> Candidate:
    text = f"answer {index}" if text is None else text
    completion = Completion(
        completion_id=f"k_{index}",
        prompt_id=PROMPT.prompt_id,
        sample_index=index,
        messages=[{"role": "assistant", "content": text}],
        model="M0",
        weights_hash="w",
        sampling={},
        finish_reason="stop",
        digest=content_hash(text),
    )
    return Candidate(completion, score)


def pairs(candidates: list[Candidate], seed: int = 0, **options: Any) -> list[Pair]:
    return prompt_pairs(PROMPT, candidates, PairStep(**options), seed)


def ids(found: list[Pair]) -> list[tuple[str, str]]:
    return [(a.completion.completion_id, b.completion.completion_id) for a, b in found]


CANDIDATES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.sampled_from(["a", "b", "c", "d"])),
    max_size=6,
).map(lambda rows: [candidate(i, score, text) for i, (score, text) in enumerate(rows)])


def test_best_vs_worst() -> None:
    found = pairs([candidate(0, 0.5), candidate(1, 0.9), candidate(2, 0.1)])
    assert ids(found) == [("k_1", "k_2")]


def test_best_vs_random_draws_each_of_the_others() -> None:
    four = [candidate(0, 0.5), candidate(1, 0.9), candidate(2, 0.1), candidate(3, 0.9)]
    losers = set()
    for seed in range(40):
        ((winner, loser),) = ids(pairs(four, seed, strategy="best_vs_random"))
        assert winner == "k_1"
        losers.add(loser)
    assert losers == {"k_0", "k_2"}


def test_all_and_margin() -> None:
    three = [candidate(0, 0.5), candidate(1, 0.9), candidate(2, 0.1)]
    assert ids(pairs(three, strategy="all")) == [
        ("k_1", "k_0"),
        ("k_1", "k_2"),
        ("k_0", "k_2"),
    ]
    assert ids(pairs(three, strategy="margin", min_margin=0.5)) == [("k_1", "k_2")]


def test_a_margin_just_reached_counts() -> None:
    two = [candidate(0, 0.75), candidate(1, 0.5)]
    assert len(pairs(two, min_margin=0.25)) == 1
    assert pairs(two, min_margin=0.2500001) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ties_single_answers_and_equal_texts_make_no_pair(strategy: str) -> None:
    assert pairs([candidate(0, 0.5), candidate(1, 0.5)], strategy=strategy) == []
    assert pairs([candidate(0, 0.5)], strategy=strategy) == []
    assert pairs([], strategy=strategy) == []
    assert pairs([candidate(0, 0.9, "same"), candidate(1, 0.1, "same")], strategy=strategy) == []


@given(CANDIDATES, st.sampled_from(STRATEGIES), st.floats(0, 1), st.integers(0, 9), st.randoms())
def test_pairs_in_general(
    candidates: list[Candidate],
    strategy: str,
    margin: float,
    seed: int,
    rng: random.Random,
) -> None:
    margin = margin if strategy != "all" else 0.0
    found = pairs(candidates, seed, strategy=strategy, min_margin=margin)
    for chosen, rejected in found:
        assert chosen.score > rejected.score
        assert chosen.completion.text != rejected.completion.text
        assert chosen.score - rejected.score >= margin
    shuffled = list(candidates)
    rng.shuffle(shuffled)
    assert ids(pairs(shuffled, seed, strategy=strategy, min_margin=margin)) == ids(found)
    assert len(set(ids(found))) == len(found)
    if strategy == "all":
        wanted = sum(
            a.score != b.score and a.completion.text != b.completion.text
            for a, b in combinations(candidates, 2)
        )
        assert len(found) == wanted
    else:
        assert strategy == "margin" or len(found) <= 1


def made(chosen: Candidate, rejected: Candidate) -> Preference:
    parts = {"checks": {chosen.completion.completion_id: chosen.score}}
    said = rated("checks", candidate(1, 0.0).completion)
    said_of = {"j_2": ["k_1"], "j_1": ["k_1", "k_2"], "j_3": ["k_5"], "j_4": ["k_2", "k_6"]}
    judgements = [replace(said, judgement_id=j, shown=shown) for j, shown in said_of.items()]
    return make_preference(PROMPT, (chosen, rejected), PairStep(), 2, {"checks": judgements}, parts)


def test_a_preference_says_what_it_rests_on() -> None:
    record = made(candidate(1, 0.75), candidate(2, 0.25))
    assert (record.score_chosen, record.score_rejected, record.margin) == (0.75, 0.25, 0.5)
    assert record.prompt == PROMPT.messages
    assert record.chosen[0]["content"] == "answer 1"
    assert record.rejected[0]["content"] == "answer 2"
    assert record.judgement_ids == ["j_1", "j_2", "j_4"]
    assert (record.chosen_id, record.rejected_id, record.round) == ("k_1", "k_2", 2)
    assert record.reason == (
        "best_vs_worst: combined 0.750 against 0.250; checks 0.750 against missing"
    )


def test_the_widest_are_kept_in_a_fixed_order() -> None:
    records = [made(candidate(i, 0.1 * i), candidate(9, 0.0)) for i in (3, 1, 2, 4)]
    kept = keep_widest(records, 2)
    assert {r.chosen_id for r in kept} == {"k_3", "k_4"}
    assert kept == keep_widest(records[::-1], 2)
    assert len(keep_widest(records, 9)) == 4
    assert keep_widest(records, 9) == keep_widest(records[::-1], 9)


@pytest.mark.parametrize(
    ("others", "prob"),
    [
        ({"a": 0.2, "b": 0.3, "c": 0.9}, 1.0),
        ({"a": 0.9, "b": 0.3, "c": 0.2}, 0.0),
        ({"a": 0.2, "b": 0.9, "c": 0.3}, 2 / 3),
        ({"a": None, "b": 0.9, "c": 0.3}, 0.0),
        ({"a": None, "c": 0.3}, None),
        ({"a": 0.5, "b": 0.5, "c": 0.5}, None),
    ],
)
def test_consistency_is_the_share_of_pairs_that_two_judges_rank_alike(
    others: dict[str, float | None], prob: float | None
) -> None:
    found = consistency_prob({"a": 0.1, "b": 0.5, "c": 0.7, "d": None}, others)
    assert found == (None if prob is None else pytest.approx(prob))


def test_half_of_the_pairs_ranked_alike_are_a_consistency_of_one_half() -> None:
    scores = dict(zip("abcd", (0.1, 0.2, 0.3, 0.4), strict=True))
    others = dict(zip("abcd", (0.2, 0.4, 0.1, 0.3), strict=True))
    assert consistency_prob(scores, others) == pytest.approx(0.5)


def lengthy(number: int, score: float, length: int) -> Candidate:
    return candidate(number, score, f"{number}" * length)


def test_a_tier_chooses_the_shortest_of_the_best_against_the_longest_of_the_worst() -> None:
    given_ = [
        lengthy(1, 1.0, 90),
        lengthy(2, 0.95, 20),
        lengthy(3, 0.5, 1),
        lengthy(4, 0.1, 80),
        lengthy(5, 0.0, 10),
    ]
    assert ids(pairs(given_, 1, strategy="length_tiered", tier=0.1)) == [("k_2", "k_4")]
    # At 0 it is the best against the worst.
    assert ids(pairs(given_, 1, strategy="length_tiered", tier=0.0)) == [("k_1", "k_5")]
    # At a half every answer is in a tier, and 0.5 in both: still the better one is chosen.
    assert ids(pairs(given_, 1, strategy="length_tiered", tier=0.5)) == [("k_3", "k_4")]
    # Whoever just reaches a tier is in it.
    edge = [lengthy(1, 1.0, 90), lengthy(2, 0.75, 20), lengthy(3, 0.25, 80), lengthy(4, 0.0, 10)]
    assert ids(pairs(edge, 1, strategy="length_tiered", tier=0.25)) == [("k_2", "k_3")]
    tied = [lengthy(1, 0.5, 3), lengthy(2, 0.5, 9)]
    assert pairs(tied, 1, strategy="length_tiered", tier=0.2) == []


def test_pairs_too_much_alike_are_left_out() -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    texts = [" ".join(words), " ".join([*words[:-1], "eleven"])]
    given_ = [candidate(number, 1.0 - number, text) for number, text in enumerate(texts)]
    # 7 of the 9 different 3-grams are in both.
    assert len(pairs(given_, 1, max_overlap=0.78)) == 1
    assert pairs(given_, 1, max_overlap=0.77) == []
    # One of two 3-grams is in both.
    short = [candidate(n, 1.0 - n, " ".join(words[: 4 - n])) for n in range(2)]
    assert len(pairs(short, 1, max_overlap=0.5)) == 1
    assert pairs(short, 1, max_overlap=0.49) == []


def test_lengths_are_balanced_by_leaving_out_the_widest_gaps() -> None:
    lengths = [(9, 1), (8, 2), (4, 3), (2, 5), (6, 6)]
    records = [
        replace(
            made(candidate(number, 0.9), candidate(number + 50, 0.1)),
            chosen=[{"role": "assistant", "content": "x" * above}],
            rejected=[{"role": "assistant", "content": "y" * below}],
        )
        for number, (above, below) in enumerate(lengths)
    ]
    kept = [
        (len(p.chosen[0]["content"]), len(p.rejected[0]["content"]))
        for p in balance_lengths(records)
    ]
    assert kept == [(4, 3), (2, 5), (6, 6)]
    assert balance_lengths(records[:3]) == []


def sized(number: int, chosen: Sequence[int], rejected: int) -> Preference:
    """A preference whose chosen answer has turns of these lengths."""
    return replace(
        made(candidate(number, 0.9), candidate(number + 50, 0.1)),
        chosen=[{"role": "assistant", "content": "x" * length} for length in chosen],
        rejected=[{"role": "assistant", "content": "y" * rejected}],
    )


def test_lengths_are_compared_as_ratios_over_all_turns() -> None:
    # 100 characters of 60 are 1.7 times as many, and 9 of 1 nine times.
    many, few, shorter = sized(1, [50, 50], 60), sized(2, [9], 1), sized(3, [2], 5)
    assert balance_lengths([many, few, shorter]) == [many, shorter]
    shortest = sized(4, [1], 9)
    assert balance_lengths([shortest, shorter, many]) == [shorter, many]


def test_the_widest_are_kept_before_those_without_a_margin() -> None:
    unknown = replace(made(candidate(5, 0.9), candidate(9, 0.0)), margin=None)
    known = made(candidate(6, 0.1), candidate(9, 0.0))
    assert keep_widest([unknown, known], 1) == [known]
    both = keep_widest([unknown, known], 2)
    assert [p.preference_id for p in both] == sorted(p.preference_id for p in (unknown, known))


@pytest.mark.parametrize("keys", [{"strategy": "length_tiered"}, {"tier": 0.2}])
def test_a_tier_and_its_strategy_go_together(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="go together"):
        PairStep(**keys)


@pytest.mark.parametrize("strategy", ["best_vs_worst", "reference"])
def test_answers_to_a_prompt_that_is_not_there_are_refused(strategy: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    answer = candidate(1, 0.5).completion
    store.step("sample").append("completions", [answer, replace(answer, prompt_id="p_strange")])
    inputs = {"completions/sample": "sample"}
    step, options = PairStep(strategy=strategy), {"principle_weights": {}}
    planned = Planned("pairs", "pair", "pair", 0, 1, step, inputs, options=options)
    with pytest.raises(ConfigError, match="prompt p_strange were loaded"):
        run(context_of(planned, store, [PROMPT]))


def context_of(planned: Planned, store: Store, prompts: Sequence[Prompt]) -> StepContext:
    return StepContext(
        planned,
        store.step("pairs"),
        store,
        PlanInputs(None, store.root, {}, None, PromptSet([], [], 0), {}, {}),  # type: ignore[arg-type]
        {prompt.prompt_id: prompt for prompt in prompts},
        None,  # type: ignore[arg-type]
        QuietProgress(),
    )


@pytest.mark.parametrize("held", [False, True])
def test_pairs_are_the_same_from_other_processes(
    held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [make_prompt([{"role": "user", "content": f"Item {n}?"}]) for n in range(40)]
    store = Store(tmp_path)
    inputs = {"completions/sample": "sample"}
    for judge in ("a", "b"):
        inputs[f"judgements/{judge}"] = judge
    if held:
        places = {key: tmp_path / f"{key}.jsonl" for key in (*inputs.values(), "pairs")}
        store = FileStore(tmp_path, places)
    answers = [
        replace(candidate(10 * n + i, 0.0).completion, prompt_id=prompt.prompt_id)
        for n, prompt in enumerate(prompts)
        for i in range(3)
    ]
    rows = {"sample": answers} | {j: [rated(j, c) for c in answers] for j in ("a", "b")}
    for name, records in rows.items():
        kind = "completions" if name == "sample" else "judgements"
        if held:
            write_jsonl(tmp_path / f"{name}.jsonl", map(to_json, records))
        else:
            store.step(name).append(kind, records)
    options = {"principle_weights": {}}
    planned = Planned("pairs", "pair", "pair", 0, 1, PairStep(), inputs, options=options)
    found = []
    for alone in (1000, 0):
        out = Store(tmp_path / str(alone))
        monkeypatch.setattr(pair, "ALONE", alone)
        monkeypatch.setattr(pair, "AT_ONCE", 7)
        context = replaced(context_of(planned, store, prompts), folder=out.step("pairs"))
        found.append((run(context), list(out.step("pairs").records(Preference))))
    assert found[0] == found[1]
    assert found[0][0]["counts"]["prompts"] == 40
    assert found[0][0]["counts"]["tied_prompts"] > 0
    assert len(found[0][1]) > 20


def rated(judge: str, completion: Completion) -> Judgement:
    """A score that differs among most of a prompt's answers, or none."""
    name = completion.completion_id
    score = int(content_hash(judge, name, length=2), 16) % 3 / 2
    status: Any = "unparsed" if content_hash("lost", judge, name).startswith("0") else "ok"
    return Judgement(
        f"j_{judge}_{name}",
        f"c_{judge}_{name}",
        completion.prompt_id,
        "completion",
        [name],
        name,
        judge,
        "rules",
        "rule",
        None,
        status,
        score if status == "ok" else None,
    )
