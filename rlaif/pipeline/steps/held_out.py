"""No held-out prompt may be among what an evaluated model, or one before it, was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rlaif.core.errors import RlaifError
from rlaif.core.records import Message, Prompt
from rlaif.engines.base import Model
from rlaif.pipeline.plan.base import Lesson, Planned, Walk
from rlaif.pipeline.steps.context import StepContext

RECORDS = {
    "preferences": "preferences",
    "demonstrations": "demonstrations",
    "answers": "completions",
    "judgements": "judgements",
    "references": "questions",
}
"""The file of records by what a training calls its input; raw texts have no prompts."""


def list_lessons(walk: Walk, model: Model) -> tuple[Lesson, ...]:
    """What a model and every model in its lineage was trained on: those that each training started
    from, compared with, or was rewarded by."""
    steps = {planned.hash: planned for planned in walk.done}
    found: dict[str, Planned] = {}
    left = [model]
    while left:
        digest = left.pop().train_hash
        if digest is None or digest in found or digest not in steps:
            continue
        found[digest] = steps[digest]
        left += [m for role, m in steps[digest].models.items() if role != "made"]
    return tuple(
        Lesson(training.id, training.round, steps[digest].id, digest, RECORDS[role])
        for training in sorted(found.values(), key=lambda p: (p.round, p.id))
        for role, digest in _inputs_with_prompts(training)
        if digest in steps
    )


def _inputs_with_prompts(training: Planned) -> Iterator[tuple[str, str]]:
    for name, digest in training.inputs.items():
        role = name.partition("/")[0]
        if role in RECORDS:
            yield role, digest


def refuse_trained_on(context: StepContext) -> None:
    """Raise RlaifError where a prompt of this evaluation is among its model's lessons."""
    heldout = {_conversation(p.messages): p for p in context.chosen_prompts()}
    for lesson in context.planned.lessons:
        for row in context.store.step(lesson.digest).rows(lesson.records):
            prompt = _find_prompt(row, context.prompts, heldout)
            if prompt is not None and prompt.prompt_id in context.planned.prompts:
                raise _trained_on(prompt, lesson)


def _find_prompt(
    row: Mapping[str, Any],
    prompts: Mapping[str, Prompt],
    heldout: Mapping[tuple[tuple[str, str], ...], Prompt],
) -> Prompt | None:
    """The experiment's prompt that a record is of. Records may bring prompts of their own, which
    are the same though a system turn was added."""
    known = prompts.get(row["prompt_id"])
    return known if known is not None else heldout.get(_conversation(row.get("prompt", [])))


def _conversation(messages: Iterable[Message]) -> tuple[tuple[str, str], ...]:
    """The turns of user and assistant, without the blanks around each."""
    return tuple((m["role"], m["content"].strip()) for m in messages if m["role"] != "system")


def _trained_on(prompt: Prompt, lesson: Lesson) -> RlaifError:
    return RlaifError(
        f"prompt {prompt.prompt_id} ({prompt.question[:60]!r}) is held out and was trained on: "
        f"{lesson.training!r} of round {lesson.round}, which the evaluated model comes from, "
        f"learned from it in what {lesson.source!r} gave. Take it out of the file that "
        f"{lesson.source!r} reads (`prompts: other` in a `load` of preferences or demonstrations "
        "leaves out the experiment's own prompts), or hold out other prompts."
    )
