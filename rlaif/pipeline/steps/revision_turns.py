"""What is asked of an answer when it is revised: a principle's texts, a critique by them, and the
answer anew. Pure but for the template's file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.config.revise import ReviseStep
from rlaif.constitution.model import Principle
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Message, Prompt, content_hash
from rlaif.data.sources import with_system
from rlaif.judges.templates import Template, conversation_text, load_template
from rlaif.pipeline.plan.base import PlanInputs, Planned

VARIABLES = frozenset(
    {"critique", "revision", "principle", "principle_id", "prompt", "conversation", "response"}
)
"""What a template may use: the texts of the principle, the question and the answer."""


def load_texts(step: ReviseStep, inputs: PlanInputs) -> Template:
    """The step's template. Raises ConfigError for one that does not ask for both."""
    needed = frozenset({"critique", "revision"})
    template = load_template(step.template, VARIABLES, needed, inputs.path)
    if not template.has_then:
        raise ConfigError(
            "a template of critique and revision has a ---user--- section, which asks for the "
            "critique, and a ---then--- section, which asks for the revision",
            template.name,
        )
    if template.has_prefill or template.form is not None:
        raise ConfigError(
            "a template of critique and revision has no ---prefill--- and no ---form---: nothing is"
            " read in what is written",
            template.name,
        )
    return template


@dataclass(frozen=True)
class Turn:
    """One answer at one time: `root` is the answer that the step was given, `current` what it has
    become, and `name` the id of what it is to become."""

    root: Completion
    current: Completion
    prompt: Prompt
    time: int
    name: str
    principles: tuple[Principle, ...]

    @property
    def principle(self) -> str:
        """The ids of the principles."""
        return ", ".join(principle.id for principle in self.principles)

    @property
    def critique_id(self) -> str:
        """The id of the critique that the revision follows."""
        return "q_" + content_hash("critique", self.name)


def draw_principle(principles: Sequence[Principle], *seed: Any) -> Principle:
    """One of the principles, each as likely as the others."""
    number = int(content_hash("principle", *seed, length=13), 16)
    return principles[number % len(principles)]


def critique_messages(template: Template, turn: Turn) -> list[Message]:
    """The conversation with the answer, and the turn that asks for a critique of it."""
    values = _list_values(turn)
    messages = [*turn.prompt.messages, *turn.current.messages]
    for message in template.messages(values):
        if message["role"] == "system":
            messages = with_system(messages, message["content"])
        else:
            messages = [*messages, message]
    return messages


def revision_messages(template: Template, turn: Turn, critique: str) -> list[Message]:
    """`critique_messages`, the critique, and the turn that asks for the answer anew."""
    asked = template.then(_list_values(turn))
    return [
        *critique_messages(template, turn),
        {"role": "assistant", "content": critique},
        {"role": "user", "content": asked},
    ]


def example_messages(
    inputs: PlanInputs, planned: Planned, prompts: Sequence[Prompt], answer: Completion
) -> list[list[Message]]:
    """What is asked about `answer` to each of some prompts, as critique and as revision; the
    critique is as long as the answer."""
    template = load_texts(planned.step, inputs)
    assert inputs.constitution is not None
    known = inputs.constitution.select(planned.options["principles"])
    found = []
    for prompt in prompts:
        able = [principle for principle in known if principle.applies(prompt)]
        drawn = tuple(able if planned.step.draw == "all" else able[:1])
        turn = Turn(answer, answer, prompt, 1, "", drawn)
        found.append(critique_messages(template, turn))
        found.append(revision_messages(template, turn, answer.text))
    return found


def _list_values(turn: Turn) -> dict[str, Any]:
    def join(texts: Iterator[str | None]) -> str:
        return "\n".join(filter(None, texts))

    return {
        "critique": join(principle.critique for principle in turn.principles),
        "revision": join(principle.revision for principle in turn.principles),
        "principle": join(principle.text for principle in turn.principles),
        "principle_id": turn.principle,
        "prompt": turn.prompt.question,
        "conversation": conversation_text(turn.prompt.messages),
        "response": turn.current.text,
    }
