"""Judges that are shown answers without the thinking before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from rlaif.config.models import THINKING, ThinkingSpec
from rlaif.core.records import Completion, Prompt, content_hash
from rlaif.core.thinking import split
from rlaif.judges.base import Call, Judge


class AnswerOnly:
    """A judge with `reasoning: strip`. All but what it is shown is the inner judge's. `thinking`
    says how thinking is told in the answers."""

    def __init__(self, judge: Judge, thinking: ThinkingSpec = THINKING):
        self.judge = judge
        self.thinking = thinking
        own = [] if thinking == THINKING else [thinking.markers]
        # Also of those that hash no options, such as a plug-in.
        self.judge_hash = content_hash(judge.judge_hash, "reasoning", "strip", *own)

    def __getattr__(self, name: str) -> Any:
        if name == "judge":
            # A copy that is being made has none yet.
            raise AttributeError(name)
        return getattr(self.judge, name)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """The inner judge's calls about the answers alone."""
        shown = [answer_only(c, self.thinking) for c in completions]
        return self.judge.calls(prompt, shown, seed)


def answer_only(completion: Completion, thinking: ThinkingSpec = THINKING) -> Completion:
    """The completion without the thinking that its text begins with, of which its prompt may have
    had the opening marker; a failed one where it was cut while thinking, so that nothing is said of
    an answer that is not there."""
    if not completion.messages:
        return completion
    *earlier, last = completion.messages
    opened = thinking.model_copy(update={"opened": True})
    said = split(last["content"], opened, unclosed="answer")
    if said.reasoning and not said.answer.strip():
        return structs.replace(completion, messages=[], finish_reason="failed")
    return structs.replace(completion, messages=[*earlier, {**last, "content": said.answer}])
