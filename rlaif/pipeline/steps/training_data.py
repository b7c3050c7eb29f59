"""What a training learns from: which steps it reads, and their records as answers and texts.

A method takes preferences, of which SFT and PPO's `ptx_weight` learn the chosen answers;
demonstrations, which are good answers to prompts of their own; completions, which are answers to
the experiment's prompts; judgements, which are answers to a judge's questions; such questions with
the right verdicts; or raw texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlaif.config.steps import LoadStep, SampleStep
from rlaif.config.training import TextStep
from rlaif.core.records import VALUED, Completion, Message, Preference, Prompt, from_json
from rlaif.data.sources import with_system
from rlaif.judges.posed import scores_alone
from rlaif.pipeline.plan.base import Planned, Walk, list_choices
from rlaif.pipeline.steps import step_module
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.written import (
    JUDGING,
    find_judge_steps,
    read_written,
    refuse_unwritten,
)
from rlaif.preferences.verdict_pairs import WrittenVerdict

PREFERENCES = ("pair", "label", "filter", "load")
"""Kinds of steps that give preferences."""
GIVERS = {
    "preferences": PREFERENCES,
    "demonstrations": ("load",),
    "completions": ("sample", "revise", "filter", "load"),
    "judgements": JUDGING,
    "questions": ("questions",),
    "text": ("load",),
}
"""Kinds of steps that give each kind of data."""
TAKES: Mapping[str, tuple[str, ...]] = {
    "pairs": ("preferences",),
    "answers": ("preferences", "demonstrations"),
    "good answers": (
        *("preferences", "demonstrations", "completions", "judgements", "questions", "text"),
    ),
}
"""The kinds of data that a method takes, by what it learns from."""
ROLES = {
    "preferences": "preferences",
    "demonstrations": "demonstrations",
    "completions": "answers",
    "judgements": "judgements",
    "questions": "references",
    "text": "texts",
}
"""What a training calls its inputs of each kind."""

SAMPLED = "sampled"
"""The reason of an answer that is learned from as it was sampled."""
JUDGED = "judged"
"""The reason of a judge's answer that is learned from as it was written."""
RIGHT = "right verdict"
"""The reason of a question's reference that is learned from as its answer."""


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
        _refuse_untexted(walk, index, used)
    if not used:
        key = mixing_key(step)
        raise walk.inputs.fail(index, _no_data(step, walk.experiment.entries[index].kind), key)
    return used


def _refuse_untexted(walk: Walk, index: int, used: Sequence[Planned]) -> None:
    """Raise ConfigError for judgements that are no written texts with known questions."""
    judgements = [planned for planned in used if data_kind(planned) == "judgements"]
    loaded = next((planned for planned in judgements if planned.kind == "load"), None)
    if loaded is not None:
        raise walk.inputs.fail(
            index,
            f"uses: the judgements that {loaded.id!r} loads do not say what was asked: let a judge "
            "step judge the answers here, and name it",
            "uses",
        )
    refuse_unwritten(walk, index, find_judge_steps(walk, judgements), "uses", reasoned=True)
    for asked in (planned for planned in used if planned.kind == "questions"):
        if scores_alone(walk.inputs.judges[asked.step.judge]):
            raise walk.inputs.fail(
                index,
                f"uses: which of two scores is higher is no answer to the questions of "
                f"{asked.id!r}: sample answers to them, and learn from those that are right",
                "uses",
            )


def find_told(walk: Walk, index: int, step: TextStep, used: Sequence[Planned]) -> list[str]:
    """The steps (hashes) whose system prompts stay in what is trained on: with `context: keep`
    those sample steps that added one, and loaded completions, which say it themselves.

    Raises ConfigError where there is none.
    """
    if getattr(step, "context", "drop") == "drop":
        return []
    planned = {one.hash: one for one in walk.done}
    found: list[str] = []
    left = [one for one in used if data_kind(one) == "completions"]
    while left:
        one = left.pop(0)
        if one.kind == "filter":
            left += [planned[h] for n, h in one.inputs.items() if n.startswith("completions/")]
        elif one.kind == "load" or (one.kind == "sample" and _adds_system_prompt(one.step)):
            found.append(one.hash)
    if not found:
        raise walk.inputs.fail(
            index,
            "context: keep has no effect: none of the completions were sampled under a "
            "`system_prompt` or `principles` of their sample step",
            "context",
        )
    return list(dict.fromkeys(found))


def _adds_system_prompt(step: SampleStep) -> bool:
    return step.system_prompt is not None or step.principles is not None


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
            f"uses: {name!r} names no earlier {list_choices(_giving_kinds(takes))} step that gives "
            f"{list_choices(takes)}, from which {step.method} learns: it is a {planned.kind} step "
            f"and gives {kind}{_ADVICE.get(kind, '')}",
            "uses",
        )


_ADVICE = {
    "completions": ". `judge` and `pair` make preferences of answers; method sft learns from them "
    "as they are",
    "demonstrations": ". Method sft learns from these",
    "text": ". Method sft, the `ptx_weight` of ppo and the `given` of on_policy_distillation learn "
    "from these",
    "questions": ". Method sft learns from the right verdicts",
    "pairs": ". `label` makes preferences of loaded pairs",
    "judgements": ". `pair` makes preferences of these; method sft learns from written ones",
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
        if data_kind(planned) in ("completions", "judgements"):
            found += [planned.hash] if records == data_kind(planned) else []
            continue
        inputs = planned.inputs.items()
        found += [digest for name, digest in inputs if name.startswith(f"{records}/")]
    return found


@dataclass(frozen=True)
class TrainingData:
    """Everything that a training learns from. `preferences` has demonstrations, completions and
    judgements as answers that stand alone; `unfinished` are the ids of answers that the limit of
    tokens cut. `counts` says how many records of other kinds there were, and what was left out."""

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
    verdicts, unread = _read_verdicts(context)
    asked = [from_json(Prompt, row) for row in context.read_all("references", "questions")]
    told = _read_told(context)
    cut = frozenset(c.completion_id for c in kept if c.finish_reason == "length")
    counts = Counter(
        demonstrations=len(shown),
        completions=len(kept),
        failed=len(answers) - len(kept),
        cut=len(cut),
        texts=len(texts),
        judgements=len(verdicts),
        questions=len(asked),
        without_verdict=unread,
    )
    number = context.planned.round
    alone = [
        lone_answer(c, context.prompts[c.prompt_id], number, told=c.completion_id in told)
        for c in kept
    ]
    judged = [lone for written in verdicts for lone in lone_verdicts(written, number)]
    right = [lone_reference(question, number) for question in asked]
    given = [*preferences, *shown, *alone, *judged, *right]
    return TrainingData(given, texts, cut, {name: n for name, n in counts.items() if n})


def _read_told(context: StepContext) -> set[str]:
    """The ids of the completions whose system prompt is trained on."""
    found: set[str] = set()
    for digest in context.planned.options.get("told", ()):
        rows = context.store.step(digest).rows("completions")
        found |= {row["completion_id"] for row in rows if row["system_prompt"]}
    return found


def _read_verdicts(context: StepContext) -> tuple[list[WrittenVerdict], int]:
    """The written judgements from which a verdict could be read, one for each question and answer,
    and how many others there are."""
    asked = context.planned.options.get("asked", ())
    if not context.inputs_under("judgements") or not asked:
        return [], 0
    found: dict[str, WrittenVerdict] = {}
    unread = 0
    for written in read_written(context, "judgements", asked):
        for one in written:
            if one.judgement.status in VALUED:
                # An answer that rates several texts is several judgements.
                found.setdefault(one.judgement.call_id, one)
            else:
                unread += 1
    return list(found.values()), unread


def lone_answer(
    completion: Completion, prompt: Prompt, round_number: int, told: bool = False
) -> Preference:
    """An answer as one to imitate: a preference without another side. A system prompt that was
    added for sampling is part of it where `told`."""
    system = completion.system_prompt if told else None
    messages = prompt.messages if system is None else with_system(prompt.messages, system)
    return _make_lone(
        completion.completion_id,
        prompt.prompt_id,
        round_number,
        (messages, completion.messages),
        SAMPLED,
        completion.model,
    )


def lone_verdicts(written: WrittenVerdict, round_number: int) -> list[Preference]:
    """A judge's answer to its question as one to imitate, after reasons these as well. It belongs
    to the prompt whose answer was judged."""
    judgement, question = written.judgement, written.question
    turns = [(question, written.text)]
    if written.word is not None:
        # The reasons answer what stands before them; the last turn asks for the verdict.
        turns.insert(0, (question[:-2], question[-2]["content"]))
    names = [judgement.judgement_id, f"{judgement.judgement_id}/verdict"]
    return [
        _make_lone(
            name,
            judgement.prompt_id,
            round_number,
            (asked, [{"role": "assistant", "content": text}]),
            JUDGED,
            judgement.annotator_id,
        )
        for name, (asked, text) in zip(names, turns, strict=False)
    ]


def lone_reference(question: Prompt, round_number: int) -> Preference:
    """The right verdict on a judge's question as the answer to imitate."""
    assert question.reference is not None
    return _make_lone(
        "r_" + question.prompt_id,
        question.prompt_id,
        round_number,
        (question.messages, [{"role": "assistant", "content": question.reference}]),
        RIGHT,
        question.source,
    )


def _make_lone(
    name: str,
    prompt_id: str,
    round_number: int,
    turns: tuple[list[Message], list[Message]],
    reason: str,
    source: str,
) -> Preference:
    prompt, answer = turns
    return Preference(
        preference_id=name,
        prompt_id=prompt_id,
        round=round_number,
        prompt=prompt,
        chosen=answer,
        rejected=[],
        score_chosen=None,
        score_rejected=None,
        margin=None,
        prob=1.0,
        weight=1.0,
        reason=reason,
        source=source,
        judgement_ids=[],
        chosen_id=name,
        rejected_id="",
    )
