"""The pair and label steps on planted judgements: what counts, what is left out, and the numbers
that the preferences get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from rlaif.config.steps import PairStep
from rlaif.core.errors import RlaifError
from rlaif.core.labelled import GivenPair
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, Judgement, Preference, Prompt, make_prompt
from rlaif.core.store import Store
from rlaif.data.sources import PromptSet
from rlaif.pipeline.plan.base import PlanInputs, Planned
from rlaif.pipeline.steps import label, pair
from rlaif.pipeline.steps.context import StepContext

FRUIT = make_prompt([{"role": "user", "content": "Name a red fruit."}])
BIRD = make_prompt([{"role": "user", "content": "Name a bird."}])
Scored = Mapping[str, float | None]


def answer(name: str, prompt: Prompt = FRUIT, text: str | None = None) -> Completion:
    said = f"answer {name}" if text is None else text
    turns: Any = [{"role": "assistant", "content": said}]
    return Completion(
        name, prompt.prompt_id, 0, turns, "M0", "w", {}, "stop", digest=f"digest of {said}"
    )


def rated(
    judge: str, name: str, score: float | None, prompt: Prompt = FRUIT, principle: str | None = None
) -> Judgement:
    key = f"{judge}_{name}_{principle}"
    status: Any = "unparsed" if score is None else "ok"
    who = ("completion", [name], name, judge, judge, "model", principle, status)
    return Judgement(f"j_{key}", f"c_{key}", prompt.prompt_id, *who, score)  # type: ignore[arg-type]


def compared(judge: str, shown: list[str], prob: float, prompt: Prompt = FRUIT) -> Judgement:
    key = f"{judge}_{'_'.join(shown)}"
    status: Any = "tie" if prob == 0.5 else "ok"
    return Judgement(
        judgement_id=f"j_{key}",
        call_id=f"c_{key}",
        prompt_id=prompt.prompt_id,
        subject_kind="completion",
        shown=shown,
        subject=shown[0],
        judge=judge,
        annotator_id=judge,
        annotator_kind="model",
        principle=None,
        status=status,
        prob_first=prob,
    )


def context(
    folder: Path,
    planned: Planned,
    records: Mapping[str, Sequence[Any]],
    prompts: Sequence[Prompt] = (FRUIT, BIRD),
) -> StepContext:
    """A step whose inputs hold these records: of the input `judgements/a` those of that name."""
    store = Store(folder)
    kinds = {Completion: "completions", Judgement: "judgements", GivenPair: "pairs"}
    for name, rows in records.items():
        for kind, file in kinds.items():
            of_kind = [row for row in rows if isinstance(row, kind)]
            if kind is GivenPair:
                of_kind = [{k: getattr(r, k) for k in GivenPair.__slots__} for r in of_kind]
            if of_kind:
                store.step(planned.inputs[name]).append(file, of_kind)
    return StepContext(
        planned,
        store.step("made"),
        store,
        PlanInputs(None, folder, {}, None, PromptSet([], [], 0), {}, {}),  # type: ignore[arg-type]
        {prompt.prompt_id: prompt for prompt in prompts},
        None,  # type: ignore[arg-type]
        QuietProgress(),
    )


def paired(
    folder: Path,
    completions: Sequence[Completion],
    judged: Mapping[str, Sequence[Judgement]],
    initial: Mapping[str, Sequence[Judgement]] | None = None,
    principle_weights: Mapping[str, float] | None = None,
    prompts: Sequence[Prompt] = (FRUIT, BIRD),
    **keys: Any,
) -> tuple[dict[str, Any], list[Preference]]:
    """The summary and the preferences of a pair step."""
    records: dict[str, Sequence[Any]] = {"completions/sample": completions}
    records |= {f"judgements/{judge}": rows for judge, rows in judged.items()}
    records |= {f"initial/{judge}": rows for judge, rows in (initial or {}).items()}
    inputs = {name: name.replace("/", "-") for name in records}
    options = {"principle_weights": principle_weights or {}}
    planned = Planned("made", "pair", "pair", 0, 1, PairStep(**keys), inputs, options=options)
    made = context(folder, planned, records, prompts)
    return pair.run(made), list(made.folder.records(Preference))


def scores(judge: str, values: Scored, prompt: Prompt = FRUIT) -> list[Judgement]:
    return [rated(judge, name, score, prompt) for name, score in values.items()]


def sides(preferences: Sequence[Preference]) -> list[tuple[str, str]]:
    return [(p.chosen_id, p.rejected_id) for p in preferences]


ABC = [answer("a"), answer("b"), answer("c")]


def test_judges_count_by_their_weights(tmp_path: Path) -> None:
    judged = {
        "one": scores("one", {"a": 1.0, "b": 0.0, "c": 0.5}),
        "two": scores("two", {"a": 0.0, "b": 0.8, "c": 0.4}),
    }
    for weights, chosen, rejected, score in (
        (None, "a", "b", 0.5),
        ({"one": 1.0, "two": 3.0}, "b", "a", 0.6),
        ({"two": 1.0}, "b", "a", 0.8),
    ):
        keys = {} if weights is None else {"weights": weights}
        _, made = paired(tmp_path / f"{score}", ABC, judged, **keys)
        assert sides(made) == [(chosen, rejected)]
        assert made[0].score_chosen == pytest.approx(score)
        assert made[0].margin == pytest.approx(score - made[0].score_rejected)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("missing", "wanted", "chosen"),
    [("drop", ("a", "c"), 0.75), ("renormalise", ("b", "c"), 0.9)],
)
def test_an_answer_that_one_judge_could_not_score(
    tmp_path: Path, missing: Any, wanted: tuple[str, str], chosen: float
) -> None:
    judged = {
        "one": scores("one", {"a": 0.7, "b": 0.9, "c": 0.2}),
        "two": scores("two", {"a": 0.8, "b": None, "c": 0.4}),
    }
    _, made = paired(tmp_path, ABC, judged, missing=missing)
    assert sides(made) == [wanted]
    assert made[0].score_chosen == pytest.approx(chosen)
    assert made[0].score_rejected == pytest.approx(0.3)


@pytest.mark.parametrize(("missing", "wanted"), [("drop", ("c", "a")), ("renormalise", ("b", "a"))])
def test_an_answer_that_was_not_scored_on_one_principle(
    tmp_path: Path, missing: Any, wanted: tuple[str, str]
) -> None:
    """Of weights 3 and 1 the heavier is missing of b."""
    given = {"a": (0.2, 0.2), "b": (None, 0.9), "c": (0.4, 0.4)}
    rows = [
        rated("one", name, score, principle=principle)
        for name, both in given.items()
        for principle, score in zip(("heavy", "light"), both, strict=True)
    ]
    weights = {"heavy": 3.0, "light": 1.0}
    _, made = paired(tmp_path, ABC, {"one": rows}, principle_weights=weights, missing=missing)
    assert sides(made) == [wanted]


def test_principles_count_by_their_weights(tmp_path: Path) -> None:
    rows = [
        rated("one", name, score, principle=principle)
        for name, both in {"a": (1.0, 0.0), "b": (0.0, 1.0)}.items()
        for principle, score in zip(("heavy", "light"), both, strict=True)
    ]
    weights = {"heavy": 3.0, "light": 1.0}
    _, made = paired(tmp_path, ABC, {"one": rows}, principle_weights=weights)
    assert sides(made) == [("a", "b")]
    assert (made[0].score_chosen, made[0].score_rejected) == (0.75, 0.25)


def test_standardise_divides_weights_by_the_spread_on_the_first_samples(tmp_path: Path) -> None:
    """Spreads of 0.1, 0.4 and, for a judge that always says the same, the floor of 0.05: weights of
    10, 2.5 and 20 parts of 3."""
    initial = {
        "narrow": scores("narrow", {"x": 0.4, "y": 0.6}),
        "wide": scores("wide", {"x": 0.1, "y": 0.9}),
        "still": scores("still", {"x": 0.3, "y": 0.3}),
    }
    judged = {
        "narrow": scores("narrow", {"a": 0.6, "b": 0.4}),
        "wide": scores("wide", {"a": 0.3, "b": 0.8}),
        "still": scores("still", {"a": 0.3, "b": 0.3}),
    }
    summary, made = paired(tmp_path / "a", ABC, judged, initial, standardise="initial")
    parts = {"narrow": 10 / 32.5, "wide": 2.5 / 32.5, "still": 20 / 32.5}
    assert summary["weights"] == pytest.approx({judge: 3 * w for judge, w in parts.items()})
    assert sides(made) == [("a", "b")]
    assert made[0].margin == pytest.approx(0.2 * parts["narrow"] - 0.5 * parts["wide"])
    weights = {"narrow": 1.0, "wide": 4.0}
    summary, _ = paired(
        tmp_path / "c", ABC, judged, initial, standardise="initial", weights=weights
    )
    # Equal parts of their sum.
    assert summary["weights"] == pytest.approx({"narrow": 2.5, "wide": 2.5})
    summary, made = paired(tmp_path / "b", ABC, judged)
    assert summary["weights"] == {"narrow": 1.0, "wide": 1.0, "still": 1.0}
    assert sides(made) == [("b", "a")]


def test_consistency_gives_each_pair_its_prompts_probability(tmp_path: Path) -> None:
    """Of three pairs of answers the other judge ranks two alike for the fruit and none for the
    bird, and it says nothing that ranks for the third prompt."""
    plain = make_prompt([{"role": "user", "content": "Name a stone."}])
    prompts = [FRUIT, BIRD, plain]
    answers = [answer(f"{p.prompt_id}{x}", p) for p in prompts for x in "abc"]
    own = dict(zip("abc", (0.1, 0.5, 0.9), strict=True))
    others = [(0.1, 0.9, 0.5), (0.9, 0.5, 0.1), (0.4, 0.4, 0.4)]
    judged: dict[str, list[Judgement]] = {"own": [], "before": []}
    for prompt, values in zip(prompts, others, strict=True):
        for name, score in zip("abc", values, strict=True):
            judged["own"].append(rated("own", f"{prompt.prompt_id}{name}", own[name], prompt))
            judged["before"].append(rated("before", f"{prompt.prompt_id}{name}", score, prompt))
    keys: dict[str, Any] = {"consistency": "before", "prompts": prompts}
    summary, made = paired(tmp_path / "each", answers, judged, **keys)
    assert {p.prompt_id: p.prob for p in made} == pytest.approx(
        {FRUIT.prompt_id: 2 / 3, BIRD.prompt_id: 0.0}
    )
    # The other judge chooses nothing: it has no weight.
    assert {p.chosen_id for p in made} == {f"{p.prompt_id}c" for p in (FRUIT, BIRD)}
    assert summary["weights"] == {"own": 1.0}
    assert summary["counts"] == {
        "preferences": 2,
        "prompts": 3,
        "tied_prompts": 0,
        "unranked_prompts": 1,
    }
    _, made = paired(tmp_path / "mean", answers, judged, consistency_mean=True, **keys)
    assert [p.prob for p in made] == pytest.approx([1 / 3, 1 / 3])


def test_the_widest_pairs_are_kept(tmp_path: Path) -> None:
    rows = scores("one", {"a": 1.0, "b": 0.6, "c": 0.1})
    for limit, wanted in ((1, {("a", "c")}), (2, {("a", "c"), ("b", "c")})):
        keys: dict[str, Any] = {"strategy": "all", "max_pairs": limit}
        summary, made = paired(tmp_path / str(limit), ABC, {"one": rows}, **keys)
        assert set(sides(made)) == wanted
        assert summary["counts"]["preferences"] == limit


def test_blank_and_equal_answers_make_no_pair(tmp_path: Path) -> None:
    answers = [answer("a", text="Kiwi."), answer("b", text="Kiwi."), answer("c", text="Plum.")]
    rows = scores("one", {"a": 1.0, "b": 0.1, "c": 0.4})
    _, made = paired(tmp_path, answers, {"one": rows}, strategy="all")
    assert set(sides(made)) == {("a", "c"), ("c", "b")}


def test_a_reference_answer_is_chosen_against_each_different_sample(tmp_path: Path) -> None:
    known = replace(FRUIT, reference="A cherry.")
    answers = [
        answer("a", text="A cherry."),
        answer("b", text=" A cherry.\n"),
        answer("c", text="  "),
        answer("d", text="A plum."),
        answer("e", text="A pea."),
        answer("f", BIRD, "A crow."),
    ]
    keys: dict[str, Any] = {"strategy": "reference", "prompts": (known, BIRD)}
    summary, made = paired(tmp_path / "all", answers, {}, **keys)
    assert {p.rejected_id for p in made} == {"d", "e"}
    assert {p.chosen[0]["content"] for p in made} == {"A cherry."}
    assert {(p.margin, p.score_chosen, p.source, p.prob) for p in made} == {
        (None, None, "reference", 1.0)
    }
    assert summary["counts"] == {"preferences": 2, "prompts": 2, "without_reference": 1}
    summary, made = paired(tmp_path / "one", answers, {}, max_pairs=1, **keys)
    assert summary["counts"]["preferences"] == len(made) == 1
    _, made = paired(tmp_path / "named", answers, {}, source="mine", **keys)
    assert {p.source for p in made} == {"mine"}


# Labels of given pairs.

PAIRS = [
    GivenPair(f"l_{number}", prompt.prompt_id, f"{number}a", f"{number}b")
    for number, prompt in enumerate([FRUIT, FRUIT, BIRD, BIRD, BIRD])
]
PROMPT_OF = {
    pair.pair_id: {FRUIT.prompt_id: FRUIT, BIRD.prompt_id: BIRD}[pair.prompt_id] for pair in PAIRS
}


def said(judge: str, probs: Mapping[int, float]) -> list[Judgement]:
    """P(first is better) of each pair by its number."""
    return [
        compared(judge, [PAIRS[n].first, PAIRS[n].second], prob, PROMPT_OF[PAIRS[n].pair_id])
        for n, prob in probs.items()
    ]


def labelled(
    folder: Path,
    human: Sequence[Judgement],
    judged: Mapping[str, Sequence[Judgement]] | None = None,
    labels: str = "human",
    labellers: Sequence[str] = ("human",),
    flip: float | None = None,
    judge_weights: Mapping[str, float] | None = None,
    seed: int = 0,
) -> tuple[dict[str, int], dict[str, tuple[str, str, float | None]]]:
    """The counts and, by number, (chosen, source, margin) of what an arm labels."""
    judged = judged or {}
    answers = [answer(name, PROMPT_OF[p.pair_id]) for p in PAIRS for name in (p.first, p.second)]
    records: dict[str, Sequence[Any]] = {"pairs/people": [*PAIRS, *answers, *human]}
    records |= {f"judgements/{judge}": rows for judge, rows in judged.items()}
    options = {
        "labels": labels,
        "flip": flip,
        "labellers": list(labellers),
        "judges": sorted(judged),
        "judge_weights": judge_weights,
        "principle_weights": {},
    }
    inputs = {name: name.replace("/", "-") for name in records}
    planned = Planned("made", "label", "label", seed, 1, None, inputs, options=options)
    made = context(folder, planned, records)
    counts = label.run(made)["counts"]
    rows = made.folder.records(Preference)
    return counts, {p.chosen_id[0]: (p.chosen_id, p.source, p.margin) for p in rows}


ALL = said("human", {0: 1.0, 1: 0.0, 2: 1.0, 3: 0.0, 4: 1.0})


def test_every_arm_labels_the_pairs_that_every_labeller_decided(tmp_path: Path) -> None:
    """The judge ties on pair 1 and says nothing of pair 3; it says otherwise of pair 2."""
    judged = {"j": said("j", {0: 0.9, 1: 0.5, 2: 0.2, 4: 0.7})}
    both = {"judged": judged, "labellers": ("ai", "human")}
    chosen = {}
    for labels in ("human", "ai", "random"):
        counts, found = labelled(tmp_path / labels, ALL, labels=labels, **both)  # type: ignore[arg-type]
        assert counts == {"preferences": 3, "undecided": 2, "turned": 0}
        assert set(found) == {"0", "2", "4"}
        assert {source for _, source, _ in found.values()} == {labels}
        chosen[labels] = [found[name][0] for name in "024"]
    assert chosen["human"] == ["0a", "2a", "4a"]
    assert chosen["ai"] == ["0a", "2b", "4a"]
    # Without the other labeller the human arm has all five.
    counts, found = labelled(tmp_path / "alone", ALL)
    assert counts["preferences"] == 5 and found["3"] == ("3b", "human", 1.0)


def test_a_judgement_that_shows_a_third_answer_says_nothing_of_a_pair(tmp_path: Path) -> None:
    """Each pair's first answer is compared with another prompt's sample, which it would beat; what
    was said of the pair itself is the opposite."""
    strange = [compared("j", [pair.first, "other"], 1.0, PROMPT_OF[pair.pair_id]) for pair in PAIRS]
    own = said("j", dict.fromkeys(range(4), 0.3))
    keys: dict[str, Any] = {"labels": "j", "labellers": ("j",)}
    counts, found = labelled(tmp_path / "both", [], {"j": [*strange, *own]}, **keys)
    assert counts == {"preferences": 4, "undecided": 1, "turned": 0}
    assert {chosen for chosen, _, _ in found.values()} == {"0b", "1b", "2b", "3b"}
    assert [margin for *_, margin in found.values()] == pytest.approx([0.4] * 4)
    with pytest.raises(RlaifError, match="none of its 5 judgements gives a verdict"):
        labelled(tmp_path / "strange", [], {"j": strange}, **keys)


def test_judges_label_together_by_their_weights(tmp_path: Path) -> None:
    judged = {"j": said("j", {0: 0.9}), "k": said("k", {0: 0.2, 1: 0.2})}
    keys: dict[str, Any] = {"labels": "ai", "labellers": ("ai",)}
    counts, found = labelled(tmp_path / "even", [], judged, **keys)
    # What one of the two did not say is not known.
    assert counts == {"preferences": 1, "undecided": 4, "turned": 0}
    assert found["0"] == ("0a", "ai", pytest.approx(0.1))
    weights = {"j": 1.0, "k": 3.0}
    _, found = labelled(tmp_path / "weighted", [], judged, judge_weights=weights, **keys)
    assert found["0"] == ("0b", "ai", pytest.approx(2 * 0.625 - 1))


@pytest.mark.parametrize(
    ("share", "count"),
    [(0.0, 0), (0.09, 0), (0.11, 1), (0.2, 1), (0.29, 1), (0.31, 2), (0.9, 4), (0.91, 5), (1.0, 5)],
)
def test_a_share_of_labels_is_turned_round_to_the_nearest_pair(
    tmp_path: Path, share: float, count: int
) -> None:
    counts, found = labelled(tmp_path, ALL, flip=share)
    straight = {"0": "0a", "1": "1b", "2": "2a", "3": "3b", "4": "4a"}
    turned = {name for name, (chosen, *_) in found.items() if chosen != straight[name]}
    assert counts == {"preferences": 5, "undecided": 0, "turned": count}
    assert len(turned) == count
    assert {
        name for name, (_, source, _) in found.items() if source == "human, turned round"
    } == turned


def test_the_seed_draws_whose_labels_are_turned_round_and_the_coin(tmp_path: Path) -> None:
    def chosen(seed: int, **keys: Any) -> tuple[str, ...]:
        folder = tmp_path / f"{seed}{keys.get('labels')}"
        _, found = labelled(folder, ALL, seed=seed, **keys)
        return tuple(found[name][0] for name in sorted(found))

    assert len({chosen(seed, flip=0.4) for seed in range(6)}) > 1
    assert len({chosen(seed, labels="random") for seed in range(6)}) > 1


def test_lengths_are_balanced_before_the_widest_are_kept(tmp_path: Path) -> None:
    """Of two pairs with a longer and one with a shorter chosen answer one of each is left, which
    are the two that are kept; the two widest are those with a longer one."""
    prompts = [FRUIT, BIRD, make_prompt([{"role": "user", "content": "Name a stone."}])]
    texts = [("long " * 5, "short"), ("longer " * 3, "brief"), ("few", "many words " * 3)]
    answers, judged = [], []
    for prompt, both, better in zip(prompts, texts, (1.0, 0.9, 0.6), strict=True):
        for text, score in zip(both, (better, 0.1), strict=True):
            name = f"{prompt.prompt_id}{score}"
            answers.append(answer(name, prompt, text))
            judged.append(rated("one", name, score, prompt))
    keys: dict[str, Any] = {"balance_lengths": True, "max_pairs": 2, "prompts": prompts}
    _, made = paired(tmp_path, answers, {"one": judged}, **keys)
    assert len(made) == 2 and {p.prompt_id for p in made} >= {prompts[2].prompt_id}


def test_a_spread_below_the_floor_counts_as_the_floor() -> None:
    """A spread of 0.001 counts as 0.05, so the judge is not weighed a hundred times the other."""
    initial = {
        "nearly": scores("nearly", {"x": 0.5, "y": 0.502}),
        "wide": scores("wide", {"x": 0.4, "y": 0.6}),
    }
    weights = pair.standardised(initial, {"nearly": 1.0, "wide": 1.0}, {})
    assert weights == pytest.approx({"nearly": 4 / 3, "wide": 2 / 3})


def test_a_judge_with_a_constitution_is_spread_by_its_own_weights() -> None:
    """Of two principles the judge's own constitution counts the first alone."""
    rows = [
        rated("own", name, score, principle=principle)
        for principle, values in (("kind", (0.3, 0.7)), ("true", (0.0, 0.0)))
        for name, score in zip("xy", values, strict=True)
    ]
    initial = {"own": rows, "plain": scores("plain", {"x": 0.4, "y": 0.6})}
    weights = {"kind": 0.0, "true": 1.0, "own/kind": 1.0, "own/true": 0.0}
    found = pair.standardised(initial, {"own": 1.0, "plain": 1.0}, weights)
    # Spreads of 0.2 and 0.1.
    assert found == pytest.approx({"own": 2 / 3, "plain": 4 / 3})
