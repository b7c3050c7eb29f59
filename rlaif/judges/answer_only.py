"""Judges that are shown answers without the thinking before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from rlaif.records import Completion, Prompt, content_hash
from rlaif.thinking import THINK, split_thinking

from .base import Call, Judge


class AnswerOnly:
    """A judge with `reasoning: strip`. All but what it is shown is the inner judge's."""

    def __init__(self, judge: Judge):
        self.judge = judge
        # Also of those that hash no options, such as a plug-in.
        self.judge_hash = content_hash(judge.judge_hash, "reasoning", "strip")

    def __getattr__(self, name: str) -> Any:
        if name == "judge":
            # A copy that is being made has none yet.
            raise AttributeError(name)
        return getattr(self.judge, name)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """The inner judge's calls about the answers alone."""
        return self.judge.calls(prompt, [answer_only(c) for c in completions], seed)


def answer_only(completion: Completion) -> Completion:
    """The completion without the thinking that its text begins with; a failed one where it was cut
    while thinking, so that nothing is said of an answer that is not there."""
    if not completion.messages:
        return completion
    *earlier, last = completion.messages
    thinking, answer = split_thinking(last["content"], THINK)
    if thinking and not answer.strip():
        return structs.replace(completion, messages=[], finish_reason="failed")
    return structs.replace(completion, messages=[*earlier, {**last, "content": answer}])
