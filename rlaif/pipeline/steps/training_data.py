"""What a training learns from: which steps it reads, and their records as answers and texts.

A method takes preferences, of which SFT and PPO's `ptx_weight` learn the chosen answers;
demonstrations, which are good answers to prompts of their own; completions, which are answers to
the experiment's prompts; or raw texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlaif.config.steps import LoadStep
from rlaif.config.training import TextStep
from rlaif.core.records import Completion, Preference, Prompt, from_json
from rlaif.pipeline.plan.base import Planned, Walk
from rlaif.pipeline.steps import step_module
from rlaif.pipeline.steps.context import StepContext

PREFERENCES = ("pair", "label", "filter", "load")
"""Kinds of steps that give preferences."""
GIVERS = {
    "preferences": PREFERENCES,
    "demonstrations": ("load",),
    "completions": ("sample", "revise", "filter", "load"),
    "text": ("load",),
}
"""Kinds of steps that give each kind of data."""
TAKES: Mapping[str, tuple[str, ...]] = {
    "pairs": ("preferences",),
    "answers": ("preferences", "demonstrations"),
    "good answers": ("preferences", "demonstrations", "completions", "text"),
}
"""The kinds of data that a method takes, by what it learns from."""
ROLES = {
    "preferences": "preferences",
    "demonstrations": "demonstrations",
    "completions": "answers",
    "text": "texts",
}
"""What a training calls its inputs of each kind."""

SAMPLED = "sampled"
"""The reason of an answer that is learned from as it was sampled."""


def data_kind(planned: Planned) -> str:
    """The kind of what a step gives: a kind of data, or what else it makes."""
    if planned.kind == "load":
        # Commands of a single step have files in the place of loads.
        return planned.step.type if isinstance(planned.step, LoadStep) else "preferences"
    if planned.kind == "filter":
        return str(planned.step.records)
    return str(step_module(planned.kind).MAKES)


def choose_data(walk: Walk, index: int, step: TextStep) -> list[Planned]:
    """The steps that a training reads: those that `uses` names; else this round's preferences and,
    where there are none, what else the method takes.

    Raises ConfigError for steps of another kind, where it cannot be told what is meant, and where
    there is nothing.
    """
    if step.uses is None:
        used = _latest_data(walk, index, step)
    else:
        takes = TAKES[step.LEARNS_FROM]
        for text in step.uses:
            _refuse_other_kind(walk, index, step, text.removesuffix("?").partition("@")[0])
        used = walk.used(index, step.uses, {}, _giving_kinds(takes))
    if not used:
        key = mixing_key(step)
        raise walk.inputs.fail(index, _no_data(step, walk.experiment.entries[index].kind), key)
    return used


def _latest_data(walk: Walk, index: int, step: TextStep) -> list[Planned]:
    preferences = list({p.id: p for p in walk.preferences}.values())
    if step.LEARNS_FROM != "good answers":
        return preferences
    found = {
        "preferences": preferences,
        # PPO learns from answers of its own already.
        "completions": []
        if step.SAMPLES
        else [p for p in walk.completions.values() if data_kind(p) == "completions"],
        "demonstrations or text": [
            p
            for (_, number), p in walk.by_id.items()
            if number == walk.round and data_kind(p) in ("demonstrations", "text")
        ],
    }
    given = {name: steps for name, steps in found.items() if steps}
    if len(given) > 1 and "demonstrations or text" in given:
        said = " and ".join(
            f"{name} ({', '.join(dict.fromkeys(p.id for p in steps))})"
            for name, steps in given.items()
        )
        fault = f"this round has {said}: say with `uses` which {step.id!r} learns from"
        raise walk.inputs.fail(index, fault)
    return next(iter(given.values()), [])


def _giving_kinds(takes: Sequence[str]) -> tuple[str, ...]:
    """The kinds of steps that give some of these kinds of data, each once."""
    return tuple(dict.fromkeys(kind for name in takes for kind in GIVERS[name]))


def _refuse_other_kind(walk: Walk, index: int, step: TextStep, name: str) -> None:
    """Raise ConfigError where the step of that name gives what the method does not take."""
    takes = TAKES[step.LEARNS_FROM]
    for planned in walk.done:
        kind = data_kind(planned)
        if name != planned.id.partition("/")[0] or kind in takes:
            continue
        raise walk.inputs.fail(
            index,
            f"uses: {name!r} names no earlier {_list_names(_giving_kinds(takes))} step that gives "
            f"{_list_names(takes)}, from which {step.method} learns: it is a {planned.kind} step "
            f"and gives {kind}{_ADVICE.get(kind, '')}",
            "uses",
        )


def _list_names(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


_ADVICE = {
    "completions": ". `judge` and `pair` make preferences of answers; method sft learns from them "
    "as they are",
    "demonstrations": ". Method sft learns from these",
    "text": ". Method sft, the `ptx_weight` of ppo and the `given` of on_policy_distillation learn "
    "from these",
    "pairs": ". `label` makes preferences of loaded pairs",
    "judgements": ". `pair` makes preferences of these",
}


def mixing_key(step: TextStep) -> str | None:
    """The key by which a method that samples learns from given answers too."""
    if not step.SAMPLES:
        return None
    return next(key for key in ("ptx_weight", "given") if key in type(step).model_fields)


def _no_data(step: TextStep, kind: str) -> str:
    if step.SAMPLES:
        key = mixing_key(step)
        return f"{key} needs preferences, or a load of demonstrations or text, before it"
    if step.LEARNS_FROM == "good answers":
        return f"{kind} has nothing to learn from: add a pair, label, load or sample step before it"
    return f"{kind} has no preferences: add a pair, label or load step"


def name_inputs(used: Sequence[Planned]) -> dict[str, str]:
    """The inputs of a training by role and number."""
    return {f"{ROLES[data_kind(p)]}/{i}": p.hash for i, p in enumerate(used)}


def find_sources(used: Sequence[Planned], records: str) -> list[str]:
    """The hashes of the completions or judgements that the data was made of, or is."""
    found: list[str] = []
    for planned in used:
        if data_kind(planned) == "completions":
            found += [planned.hash] if records == "completions" else []
            continue
        inputs = planned.inputs.items()
        found += [digest for name, digest in inputs if name.startswith(f"{records}/")]
    return found


@dataclass(frozen=True)
class TrainingData:
    """Everything that a training learns from. `preferences` has demonstrations and completions as
    answers that stand alone; `unfinished` are the ids of answers that the limit of tokens cut.
    `counts` says how many records of other kinds there were, and what was left out."""

    preferences: list[Preference]
    texts: list[str] = field(default_factory=list)
    unfinished: frozenset[str] = frozenset()
    counts: dict[str, int] = field(default_factory=dict)


def read_data(context: StepContext) -> TrainingData:
    """The records of a training's inputs. Answers that failed are left out and counted, and cut
    ones are counted. Raises ConfigError for completions of unknown prompts."""
    preferences = context.preferences()
    rows = context.read_all("demonstrations", "demonstrations")
    shown = [from_json(Preference, row) for row in rows]
    answers = context.completions("answers")
    context.refuse_strangers(c.prompt_id for c in answers)
    kept = [c for c in answers if c.finish_reason != "failed" and c.messages]
    texts = [row["text"] for row in context.read_all("texts", "texts")]
    cut = frozenset(c.completion_id for c in kept if c.finish_reason == "length")
    counts = Counter(
        demonstrations=len(shown),
        completions=len(kept),
        failed=len(answers) - len(kept),
        cut=len(cut),
        texts=len(texts),
    )
    alone = [lone_answer(c, context.prompts[c.prompt_id], context.planned.round) for c in kept]
    given = [*preferences, *shown, *alone]
    return TrainingData(given, texts, cut, {name: n for name, n in counts.items() if n})


def lone_answer(completion: Completion, prompt: Prompt, round_number: int) -> Preference:
    """An answer as one to imitate: a preference without another side. A system prompt that was
    added for sampling is no part of it."""
    return Preference(
        preference_id=completion.completion_id,
        prompt_id=prompt.prompt_id,
        round=round_number,
        prompt=prompt.messages,
        chosen=completion.messages,
        rejected=[],
        score_chosen=None,
        score_rejected=None,
        margin=None,
        prob=1.0,
        weight=1.0,
        reason=SAMPLED,
        source=completion.model,
        judgement_ids=[],
        chosen_id=completion.completion_id,
        rejected_id="",
    )
