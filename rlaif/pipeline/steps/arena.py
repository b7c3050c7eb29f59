"""arena: models meet in battles on the same prompts, a judge decides them in both orders, and they
are rated.

Each model's answers are a sample step of its own, which an evaluation with the same sampling
shares. With a budget, battles are drawn batch by batch, each from what was judged before it, so
that the same battles are drawn again when the step resumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np

from rlaif.config.arena import ArenaStep
from rlaif.config.base import hashed_keys
from rlaif.config.steps import SampleStep
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement, Prompt
from rlaif.core.store import StepFolder
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Model
from rlaif.judges.base import compares_judgements
from rlaif.judges.questions import judgement_notes
from rlaif.metrics.arena import ArenaBattle, measure_arena
from rlaif.metrics.matchmaking import (
    DrawOptions,
    Fixture,
    Played,
    draw_fixtures,
    list_pairs,
)
from rlaif.metrics.style import count_style
from rlaif.pipeline.judged_pairs import count_failures
from rlaif.pipeline.plan.base import (
    JudgeCalls,
    Known,
    Lesson,
    PlanInputs,
    Planned,
    Size,
    Walk,
    count_judge_calls,
)
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.asking import Kept, verdicts_by_group
from rlaif.pipeline.steps.context import StepContext, refuse_all_failed
from rlaif.pipeline.steps.held_out import list_lessons, refuse_trained_on
from rlaif.pipeline.steps.sample import sampled
from rlaif.preferences.aggregate import answer_probability, weights_of

VERSION = 1
MAKES = "battles"
SECONDS_PER_UNIT = 0.15

ANSWERS = "answers/"
"""What the inputs of an arena begin with that are a model's answers: answers/NAME."""
ANSWERING = ("sample", "revise", "load", "filter")
"""The kinds of steps whose completions may take part."""
BATTLES, RESULT = "battles", "arena"
"""The files of the battles and of the figures."""


def plan(walk: Walk, index: int, step: ArenaStep) -> None:
    """Each model's answers to the prompts, and the battles between them."""
    judge = _find_judge(walk, index, step)
    own = walk.inputs.set_named(step.prompts)
    ids = sorted(p.prompt_id for p in (own.heldout if step.split == "held_out" else own.every()))
    if not ids:
        fault = f"prompts: no prompt of the set {step.prompts!r} is held out: set its `holdout`"
        raise walk.inputs.fail(index, f"{fault}, or `split: all`", "prompts")
    inputs: dict[str, str] = {}
    lessons: list[Lesson] = []
    entrants: dict[str, str] = {}
    for name in step.models:
        answers = _answers_of(walk, index, step, name, ids)
        if isinstance(answers, Model):
            lessons += list_lessons(walk, answers)
            answers = sampled(
                walk,
                _sampling(walk, step),
                answers,
                ids,
                f"heldout/{walk.seed}",
                f"{step.id}.{name}",
            )
        if answers.hash in entrants:
            other = entrants[answers.hash]
            raise walk.inputs.fail(
                index, f"models: {name!r} and {other!r} give the same answers here", "models"
            )
        entrants[answers.hash] = name
        inputs[f"{ANSWERS}{name}"] = answers.hash
    spec = walk.yardstick.experiment.all_judges()[step.judge]
    models = walk.frozen_models(spec)
    weights = walk.yardstick_weights()
    identities = {role: model.identity() for role, model in sorted(models.items())}
    covered = {"id", "models", "judge", "prompts", "split", "temperature", "max_new_tokens"}
    keys = hashed_keys(step, exclude=covered)
    planned = Planned(
        step_hash(
            *("arena", keys, inputs, judge.judge_hash, identities),
            *(weights, ids, walk.facts(tuple(ids)), walk.seed),
        ),
        "arena",
        step.id,
        walk.seed,
        walk.round,
        step,
        inputs,
        models,
        tuple(ids),
        {"principle_weights": weights},
        judges={step.judge: judge},
        lessons=tuple(dict.fromkeys(lessons)),
    )
    walk.by_id[step.id, walk.round] = walk.add(planned)


def _find_judge(walk: Walk, index: int, step: ArenaStep) -> Any:
    """The judge, as the file has it for every arm. Raises ConfigError."""
    judges = walk.yardstick.experiment.all_judges()
    if step.judge not in judges:
        hint = suggest(step.judge, sorted(judges))
        raise walk.inputs.fail(index, f"judge: {step.judge!r} is no judge{hint}", "judge")
    judge = walk.yardstick.judges[step.judge]
    if judges[step.judge].kind == "verdict" or compares_judgements(judge):
        raise walk.inputs.fail(
            index, f"judge: {step.judge!r} judges no answers to prompts", "judge"
        )
    return judge


def _answers_of(
    walk: Walk, index: int, step: ArenaStep, name: str, ids: Sequence[str]
) -> Planned | Model:
    """The step whose completions `name` means, or the model that is to be sampled."""
    own = name.removesuffix("?").partition("@")[0]
    known = {step_id for (step_id, _), p in walk.by_id.items() if p.kind in ANSWERING}
    if own not in known:
        return walk.model(index, name, "models")
    found = walk.used(index, [name], {}, ANSWERING, "models")
    if len(found) != 1:
        raise walk.inputs.fail(
            index, f"models: {name!r} names {len(found)} outputs; one was expected", "models"
        )
    return found[0]


def _sampling(walk: Walk, step: ArenaStep) -> SampleStep:
    """How models answer: as in an evaluation, once, without what is for training data."""
    samples = (e.sample for e in walk.yardstick.experiment.entries)
    template: SampleStep = next(filter(None, samples), SampleStep())
    changed: dict[str, Any] = {"n": 1, "id": f"{step.id}.sample"}
    changed |= dict.fromkeys(("pool", "principles", "system_prompt"))
    told = {"temperature": step.temperature, "max_new_tokens": step.max_new_tokens}
    return template.model_copy(update=changed | {k: v for k, v in told.items() if v is not None})


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """The judge's calls on as many battles as there may be."""
    step = planned.step
    most = len(planned.prompts) * len(list_pairs(len(step.models)))
    count = most if step.battles is None else min(step.battles, most)
    judge = planned.judges[step.judge]
    asked: JudgeCalls = count_judge_calls(inputs, planned, judge, planned.models, count, 2)
    return Size(count, asked.calls, asked.tokens, (asked,))


@dataclass(frozen=True)
class _Entrants:
    """The models by number, and each one's answer to each prompt that it answered."""

    names: list[str]
    answers: list[dict[str, Completion]]

    def prompts_of(self, first: int, second: int) -> list[str]:
        """The prompts that both have answered, sorted."""
        return sorted(self.answers[first].keys() & self.answers[second].keys())


def run(context: StepContext) -> dict[str, Any]:
    """Judge batch after batch, and rate. Raises ConfigError where no two models have answered one
    prompt, and EngineError where every call failed."""
    refuse_trained_on(context)
    step: ArenaStep = context.planned.step
    entrants = _read_entrants(context)
    pairs = list_pairs(len(entrants.names))
    if not any(entrants.prompts_of(a, b) for a, b in pairs.tolist()):
        raise ConfigError(f"arena {step.id}: no prompt was answered by two of the models")
    kept, written = Kept(context.folder), context.folder.count(BATTLES)
    fought: list[ArenaBattle] = []
    judgements: list[Judgement] = []
    for number, fixtures in enumerate(_draw_batches(context, entrants, fought)):
        groups = [
            (
                context.prompts[one.prompt],
                [entrants.answers[side][one.prompt] for side in (one.first, one.second)],
            )
            for one in fixtures
        ]
        found = verdicts_by_group(
            context.planned.judges[step.judge],
            context.planned.models,
            context.engines,
            groups,
            context.planned.seed,
            kept,
            context.progress,
        )
        judgements += [judgement for own in found for judgement in own]
        fought += [
            _read_battle(context, entrants, one, number, own)
            for one, own in zip(fixtures, found, strict=True)
        ]
        # What a killed run had written is the same.
        context.folder.append(BATTLES, [asdict(b) for b in fought[written:]])
        written = max(written, len(fought))
    failed = count_failures(judgements)
    what = f"verdicts of judge {step.judge}"
    refuse_all_failed(what, "calls", len(judgements), failed, context.folder.path)
    result = measure_arena(fought, entrants.names, step.anchor, context.planned.seed)
    if not context.folder.count(RESULT):
        context.folder.append(RESULT, [{"judge": step.judge, **result}])
    return {
        "counts": {"battles": result["battles"], "judged": result["judged"]},
        "notes": [*_notes(step, result), *judgement_notes(step.judge, judgements)],
    }


def _read_entrants(context: StepContext) -> _Entrants:
    """Each model's first answer to each prompt; a failed one is none."""
    wanted = set(context.planned.prompts)
    names, answers = [], []
    for name, digest in sorted(context.planned.inputs.items()):
        own: dict[str, Completion] = {}
        for completion in context.store.step(digest).records(Completion):
            best = own.get(completion.prompt_id, completion)
            if completion.finish_reason != "failed" and completion.prompt_id in wanted:
                first = min(best, completion, key=lambda c: (c.sample_index, c.completion_id))
                own[completion.prompt_id] = first
        names.append(name.removeprefix(ANSWERS))
        answers.append(own)
    return _Entrants(names, answers)


def _draw_batches(
    context: StepContext, entrants: _Entrants, fought: Sequence[ArenaBattle]
) -> Iterator[list[Fixture]]:
    """The fixtures of each batch. `fought` has, at each draw, the battles of the batches before."""
    step, seed = context.planned.step, context.planned.seed
    pairs = list_pairs(len(entrants.names))
    left = [entrants.prompts_of(a, b) for a, b in pairs.tolist()]
    every = sum(map(len, left))
    if step.battles is None or step.battles >= every:
        both = zip(pairs.tolist(), left, strict=True)
        yield [Fixture(a, b, prompt, 1.0) for (a, b), own in both for prompt in own]
        return
    options = DrawOptions(step.pairing, step.explore, step.min_battles, seed)
    number = {(entrants.names[a], entrants.names[b]): e for e, (a, b) in enumerate(pairs.tolist())}
    batch = 0
    while len(fought) < step.battles:
        met = {(number[b.first, b.second], b.prompt_id) for b in fought}
        open_prompts = [[p for p in own if (e, p) not in met] for e, own in enumerate(left)]
        count = min(step.batch, step.battles - len(fought))
        yield draw_fixtures(_tally(fought, number), open_prompts, count, options, batch)
        batch += 1


def _tally(fought: Sequence[ArenaBattle], number: Mapping[tuple[str, str], int]) -> Played:
    """The battles by pair; one without a verdict was fought and says nothing."""
    battles, judged, won, squares = np.zeros((4, len(number)))
    for battle in fought:
        pair = number[battle.first, battle.second]
        battles[pair] += 1
        if battle.prob_first is not None:
            judged[pair] += 1
            won[pair] += battle.prob_first
            squares[pair] += battle.prob_first**2
    return Played(battles, judged, won, squares)


def _read_battle(
    context: StepContext,
    entrants: _Entrants,
    fixture: Fixture,
    batch: int,
    judgements: Sequence[Judgement],
) -> ArenaBattle:
    sides = (fixture.first, fixture.second)
    one, two = (entrants.answers[side][fixture.prompt] for side in sides)
    weights = weights_of(context.planned.step.judge, context.planned.options["principle_weights"])
    first, second = one.completion_id, two.completion_id
    probs = [j.prob_first for j in judgements if len(j.shown) == 2 and j.prob_first is not None]
    shown = {j.shown[0] for j in judgements if len(j.shown) == 2}
    return ArenaBattle(
        prompt_id=fixture.prompt,
        first=entrants.names[fixture.first],
        second=entrants.names[fixture.second],
        prob_first=answer_probability(judgements, first, second, weights),
        # In one order alone a slot's rate is the answer's.
        slot_one=float(np.mean(probs)) if probs and len(shown) == 2 else None,
        chance=fixture.chance,
        batch=batch,
        lengths=(len(one.text), len(two.text)),
        outputs=(one.digest, two.digest),
        styles=(count_style(one.text), count_style(two.text)),
    )


def read_battles(folder: StepFolder) -> list[ArenaBattle]:
    """The battles of a finished arena, in the order in which they were drawn."""
    return [msgspec.convert(row, ArenaBattle) for row in folder.rows(BATTLES)]


def annotation_rows(
    folder: StepFolder, prompts: Mapping[str, Prompt], texts: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """The battles of a finished arena as AlpacaEval annotations, which `rlaif winrate` reads.
    `texts` are the answers by digest. A battle without a verdict has none here."""
    judge = folder.read(RESULT)[0]["judge"]
    for battle in read_battles(folder):
        yield {
            "instruction": prompts[battle.prompt_id].question,
            "output_1": texts[battle.outputs[0]],
            "generator_1": battle.first,
            "output_2": texts[battle.outputs[1]],
            "generator_2": battle.second,
            "annotator": judge,
            "preference": None if battle.prob_first is None else 2.0 - battle.prob_first,
        }


def _notes(step: ArenaStep, result: Mapping[str, Any]) -> list[str]:
    """What keeps the models from being compared."""
    notes = []
    missing = result["battles"] - result["judged"]
    if missing:
        notes.append(f"{step.id}: {missing} of {result['battles']} battles have no verdict")
    if len(result["groups"]) > 1:
        notes.append(
            f"{step.id}: {len(result['groups'])} groups of models never met: nothing says how they "
            "compare, and each is rated by itself"
        )
    if result["unrated"]:
        notes.append(f"{step.id}: without a verdict: {', '.join(result['unrated'])}")
    return notes
