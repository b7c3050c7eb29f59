"""What a judge asks about the answers that a run itself makes: planned as slots, filled when they
are there.

A plan knows how many answers each prompt gets and how many pairs these make at most, so it has a
slot for every question that there may be. The id of a question is that of its slot: the hash of the
step, the prompt whose answers are asked about, and a number. Ties and equal answers leave slots
empty; no step asks about these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from msgspec import structs

from rlaif.config.judge_training import QuestionsStep
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Completion, Judgement, Preference, Prompt, content_hash
from rlaif.data.sources import PromptSet
from rlaif.judges.base import Judge
from rlaif.judges.common import Order, usable
from rlaif.judges.posed import Case, ask_about, label_cases, pose_cases, verifies
from rlaif.pipeline.plan.base import SLOT, Planned, Walk, make_example_answer
from rlaif.pipeline.question_sets import count_left_out
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.training_data import data_kind
from rlaif.pipeline.steps.written import weights_by_step
from rlaif.preferences.aggregate import candidate_scores, weights_of

SOURCES = ("pair", "filter", "judge")
"""Kinds of steps that say which answers are good."""
MIDDLE = 0.5
"""A score above it calls an answer right, one below it wrong."""


def plan_own_questions(walk: Walk, index: int, step: QuestionsStep) -> Planned:
    """The slots for questions about this round's pairs or scores, or about those that `uses` names.
    From here on they are the step's set of prompts."""
    sources = _find_sources(walk, index, step)
    judge = walk.inputs.judges[step.judge]
    weights = weights_by_step(walk, sources) if sources[0].kind == "judge" else {}
    # Of a judge that says right or wrong of one answer, scores make a case of each.
    alone = verifies(judge) and sources[0].kind == "judge"
    counts = _count_cases(walk, index, sources, alone)
    ids = sorted(counts)
    digest = step_hash(
        "questions",
        "own",
        judge.judge_hash,
        step.orders,
        [p.hash for p in sources],
        weights,
        walk.facts(tuple(ids)),
        walk.origins(ids),
        walk.seed,
    )
    known = walk.inputs.prompts_by_id
    asked = (digest, step.orders, walk.seed)
    slots = [
        slot
        for name in ids
        for slot in _make_slots(judge, known[name], counts[name], 1 if alone else 2, asked)
    ]
    if not slots:
        message = f"judge {step.judge!r} asks nothing about answers to the prompts of its sources"
        raise walk.inputs.fail(index, message)
    role = "preferences" if data_kind(sources[0]) == "preferences" else "judgements"
    inputs = {f"{role}/{i}": p.hash for i, p in enumerate(sources)}
    if role == "judgements":
        answers = [h for p in sources for n, h in p.inputs.items() if n.startswith("completions/")]
        inputs |= {f"completions/{i}": h for i, h in enumerate(dict.fromkeys(answers))}
    planned = walk.add(
        Planned(
            digest,
            "questions",
            step.id,
            walk.seed,
            walk.round,
            step,
            inputs=inputs,
            prompts=tuple(slot.prompt_id for slot in slots),
            options={"slots": tuple(slots), "about": tuple(ids), "principle_weights": weights},
            judges={step.judge: judge},
        )
    )
    named = {step.id: PromptSet(slots, [], 0), f"{step.id}@{walk.round}": PromptSet(slots, [], 0)}
    walk.inputs = replace(walk.inputs, sets={**walk.inputs.sets, **named})
    return planned


def _find_sources(walk: Walk, index: int, step: QuestionsStep) -> list[Planned]:
    """The steps that say which answers are good: all make pairs, or all are judges' scores."""
    latest = {p.id: p for p in walk.preferences}
    sources = walk.used(index, step.uses, latest, SOURCES)
    if not sources:
        raise walk.inputs.fail(
            index,
            "no labelled pairs are loaded before it in its stage, and none are made: add "
            "`load: {type: pairs, path: FILE}` or a `pair` step, or name a judge step with `uses`",
        )
    fault = next(filter(None, map(_fault_of_source, sources)), "")
    if len(sources) > 1 and any(p.kind == "judge" for p in sources):
        fault = fault or "one judge step says which answers are good: ask in a step for each"
    if fault:
        raise walk.inputs.fail(index, f"uses: {fault}", "uses")
    return sources


def _fault_of_source(planned: Planned) -> str:
    if planned.kind == "filter" and data_kind(planned) != "preferences":
        given = data_kind(planned)
        return f"{planned.id!r} gives {given}: name a filter of preferences, or a judge step"
    if planned.kind == "judge" and planned.compares_judgements:
        return f"{planned.id!r} compares judgements and scores no answer"
    if planned.kind == "judge" and planned.judges[planned.step.id].comparative:
        return f"{planned.id!r} compares answers: let a `pair` step make pairs of that, and name it"
    if planned.kind == "pair" and planned.step.form == "judgements":
        return f"{planned.id!r} has pairs of judgements, and questions are about answers"
    return ""


def _count_cases(walk: Walk, index: int, sources: Sequence[Planned], alone: bool) -> dict[str, int]:
    """By training prompt, how many cases there may be: pairs, or `alone` single answers. Raises
    ConfigError where the number of answers is not known before they are there."""
    known = {planned.hash: planned for planned in walk.done}
    every = [walk.inputs.prompts, *walk.inputs.sets.values()]
    train = {prompt.prompt_id for one in every for prompt in one.train}
    found: Counter[str] = Counter()
    for source in sources:
        try:
            if source.kind != "judge":
                found += _count_pairs(known, source)
                continue
            answers = _count_answers(known, source, "completions/")
        except _Uncounted as unknown:
            raise walk.inputs.fail(
                index,
                f"uses: {source.id!r} goes back to {unknown}, whose answers are counted when they "
                "are read: put them into a file of labelled pairs, and load that",
                "uses",
            ) from None
        found += answers if alone else _pair_up(answers)
    return {name: count for name, count in found.items() if name in train}


class _Uncounted(Exception):
    """A step of which a plan does not know how many answers it gives to each prompt."""


def _count_pairs(known: Mapping[str, Planned], planned: Planned) -> Counter[str]:
    """How many pairs a step makes of each prompt at most."""
    if planned.kind != "pair":
        below = [h for n, h in planned.inputs.items() if n.startswith("preferences/")]
        parts = [_count_pairs(known, known[h]) for h in below if h in known]
        if planned.kind != "filter" or not parts:
            raise _Uncounted(repr(planned.id))
        return _add_counts(parts)
    step = planned.step
    if step.form == "origin":
        sides = [_count_answers(known, planned, f"{key}/") for key in ("chosen", "rejected")]
        names = sides[0].keys() | sides[1].keys()
        every = planned.options["match"] == "all" and all(sides)
        return Counter(
            {n: sides[0][n] * sides[1][n] if every else max(s[n] for s in sides) for n in names}
        )
    answers = _count_answers(known, planned, "completions/")
    if step.strategy in ("margin", "all"):
        return _pair_up(answers)
    return answers if step.strategy == "reference" else Counter(dict.fromkeys(answers, 1))


def _count_answers(known: Mapping[str, Planned], planned: Planned, prefix: str) -> Counter[str]:
    """How many answers to each prompt the inputs under `prefix` have at most."""
    below = [known[h] for n, h in planned.inputs.items() if n.startswith(prefix) and h in known]
    return _add_counts([_count_given(known, one) for one in below])


def _count_given(known: Mapping[str, Planned], planned: Planned) -> Counter[str]:
    if planned.kind == "sample":
        return Counter(dict.fromkeys(planned.prompts, planned.step.n))
    if planned.kind not in ("filter", "revise"):
        raise _Uncounted(repr(planned.id))
    times = planned.step.times if planned.kind == "revise" and planned.step.keep == "all" else 1
    found = _count_answers(known, planned, "completions/")
    return Counter({name: count * times for name, count in found.items()})


def _pair_up(answers: Counter[str]) -> Counter[str]:
    return Counter({name: count * (count - 1) // 2 for name, count in answers.items()})


def _add_counts(parts: Iterable[Counter[str]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for part in parts:
        found += part
    return found


def _make_slots(
    judge: Judge, prompt: Prompt, count: int, width: int, asked: tuple[str, Order, int]
) -> list[Prompt]:
    """The slots of `count` cases of `width` answers to one prompt, with examples in the place of
    answers that are not made yet. `asked` is the step, the orders and the seed."""
    digest, orders, seed = asked
    answers = tuple(make_example_answer(number) for number in range(width))
    example = ask_about(judge, Case(prompt, answers, ()), "", orders, seed)
    # What is right is known once the answers are.
    example = [structs.replace(question, reference=None) for question in example]
    return [
        slot
        for number in range(count)
        for slot in _fill_slots(example, digest, prompt.prompt_id, number)
    ]


def _fill_slots(
    questions: Sequence[Prompt], digest: str, prompt_id: str, number: int
) -> Iterator[Prompt]:
    """The questions about case `number` of a prompt's answers, by the ids of their slots."""
    groups = list(dict.fromkeys(question.group for question in questions))
    for place, question in enumerate(questions):
        own = question.group
        if own is not None:
            own = "g_" + content_hash(digest, prompt_id, number, groups.index(own))
        name = SLOT + content_hash(digest, prompt_id, number, place)
        yield structs.replace(question, prompt_id=name, group=own)


def make_own_questions(context: StepContext) -> tuple[list[Prompt], dict[str, int]]:
    """The questions about the answers that are there now, in the order of the slots, and how many
    cases gave none, by why. Raises ConfigError where there is no question."""
    planned = context.planned
    judge = planned.judges[planned.step.judge]
    left_out: Counter[str] = Counter()
    read = _read_pairs if context.inputs_under("preferences") else _read_scored
    found: dict[str, Prompt] = {}
    for prompt, cases in read(context, judge, left_out):
        asked = pose_cases(judge, cases, planned.step.orders, planned.seed, left_out)
        for number, questions in enumerate(asked):
            slots = _fill_slots(questions, planned.hash, prompt.prompt_id, number)
            found |= {slot.prompt_id: slot for slot in slots}
    if not found:
        why = count_left_out(left_out)
        raise ConfigError(
            f"judge {planned.step.judge!r} has nothing to ask: the steps before it call no answer "
            "to a training prompt better than another" + (f" ({why})" if why else "")
        )
    unplanned = found.keys() - set(planned.prompts)
    assert not unplanned, f"{len(unplanned)} questions have no slot"
    ordered = [found[name] for name in planned.prompts if name in found]
    return ordered, {name.replace(" ", "_"): count for name, count in left_out.items()}


Cases = Iterator[tuple[Prompt, dict[str, Case]]]
"""A prompt, and by name what its answers are asked about."""


def _read_pairs(context: StepContext, judge: Judge, left_out: Counter[str]) -> Cases:
    """The pairs of each training prompt; of one that several steps made, the mean of what they
    say."""
    given = context.by_prompt("preferences", Preference)
    for name in context.planned.options["about"]:
        prompt = context.prompts[name]
        pairs = [_as_labelled(prompt, preference) for preference in given.of(name)]
        yield prompt, label_cases(pairs, left_out)


def _as_labelled(prompt: Prompt, preference: Preference) -> LabelledPair:
    sides = (
        (preference.chosen_id, preference.chosen),
        (preference.rejected_id, preference.rejected),
    )
    chosen, rejected = (
        Completion(
            completion_id=name,
            prompt_id=prompt.prompt_id,
            sample_index=0,
            messages=messages,
            model=preference.source,
            weights_hash="",
            sampling={},
            finish_reason="stop",
            digest=content_hash(messages),
        )
        for name, messages in sides
    )
    return LabelledPair(preference.preference_id, prompt, chosen, rejected, 1.0)


def _read_scored(context: StepContext, judge: Judge, left_out: Counter[str]) -> Cases:
    """What judges' scores say of each training prompt's answers: of a judge that verifies, which
    are right; else of every two, which is better."""
    options = context.planned.options
    answers = context.by_prompt("completions", Completion)
    marks = context.by_prompt("judgements", Judgement)
    for name in options["about"]:
        prompt = context.prompts[name]
        rows = marks.of(name)
        weights = weights_of(rows[0].judge, options["principle_weights"]) if rows else {}
        given = candidate_scores(rows, weights)
        scores = {name: score for name, score in given.items() if score is not None}
        every = usable(answers.of(name))
        scored = [answer for answer in every if answer.completion_id in scores]
        left_out.update({"unscored": len(every) - len(scored)} if len(scored) < len(every) else {})
        if verifies(judge):
            yield prompt, _verify_each(prompt, scored, scores, left_out)
        else:
            pairs = [_compare(prompt, pair, scores) for pair in combinations(scored, 2)]
            yield prompt, label_cases(pairs, left_out)


def _verify_each(
    prompt: Prompt,
    answers: Sequence[Completion],
    scores: Mapping[str, float],
    left_out: Counter[str],
) -> dict[str, Case]:
    found = {}
    for answer in answers:
        score = scores[answer.completion_id]
        if score == MIDDLE:
            left_out["tied"] += 1
            continue
        good = {answer.completion_id} if score > MIDDLE else set[str]()
        found[answer.completion_id] = Case(prompt, (answer,), good)
    return found


def _compare(
    prompt: Prompt, pair: tuple[Completion, Completion], scores: Mapping[str, float]
) -> LabelledPair:
    first, second = (scores[answer.completion_id] for answer in pair)
    label = 0.5 if first == second else float(first > second)
    return LabelledPair("", prompt, *pair, label)
