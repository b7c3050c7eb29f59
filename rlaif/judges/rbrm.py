"""A rubric classifier: the model says which class an answer falls into, a table says its reward.

After GPT-4's rule-based reward models (2303.08774, appendix): the reward of a class depends on
whether the prompt is one that should be refused, which the prompt's tags say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif.config.base import Fraction, StepId, Strict
from rlaif.core.records import Completion, Judgement, Prompt
from rlaif.engines.base import ScoreResult
from rlaif.judges.base import Answer, Call, Verdict, call_id, make_judgement
from rlaif.judges.common import (
    JudgeInputs,
    LabelJudge,
    hash_judge,
    judge_template,
    template_values,
    usable,
)
from rlaif.judges.questions import AskingJudge, Labels, distinct_labels, likeliest, make_asking
from rlaif.judges.templates import CLASSES


class RubricClass(Strict):
    """One class of a classification rubric and what falls into it."""

    id: Annotated[str, Field(min_length=1)]
    text: Annotated[str, Field(min_length=1)]


class RewardTable(Strict):
    """The reward of each class, on [0, 1], for prompts with one of `tags` (all when absent)."""

    tags: list[str] | None = None
    rewards: dict[str, Fraction]


class RbrmJudge(LabelJudge):
    """A rubric classifier: one letter per class, whose reward depends on the prompt's tags."""

    kind: Literal["rbrm"]
    id: StepId = "rbrm"
    classes: Annotated[list[RubricClass], Field(min_length=2, max_length=26)]
    tables: Annotated[list[RewardTable], Field(min_length=1)]
    soft: bool = Field(True, description="Expected reward, or that of the most likely class.")

    @model_validator(mode="after")
    def _tables_are_total(self) -> RbrmJudge:
        names = [c.id for c in self.classes]
        if len(set(names)) < len(names):
            raise ValueError("class ids must differ")
        for table in self.tables:
            if set(table.rewards) != set(names):
                raise ValueError(f"every table gives a reward to each of {names}, and to no other")
        return self

    def build_judge(self, inputs: JudgeInputs) -> Rbrm:
        """The judge of the spec. Raises ConfigError when it names principles: it has `classes`."""
        self.refuse_principles("an rbrm judges by its `classes`")
        template = judge_template(
            self, inputs.beside, allowed=CLASSES, required=frozenset({"response", "classes"})
        )
        letters = zip(ascii_uppercase, self.classes, strict=False)
        classes = tuple((letter, c.id, c.text) for letter, c in letters)
        distinct_labels(self, letter_forms(classes))
        return Rbrm(
            id=self.id,
            judge_hash=hash_judge(self, (), template),
            asking=make_asking(self, template, self.cot),
            classes=classes,
            tables=tuple(self.tables),
            soft=self.soft,
            samples=self.samples,
        )


@dataclass(frozen=True, slots=True)
class Rbrm(AskingJudge):
    """`score` is the mean reward under the classes' probabilities (with `soft`), or the likeliest
    class's, on [0, 1]. `classes` is (letter, id, text). A prompt that no table is for is
    not_applicable."""

    classes: tuple[tuple[str, str, str], ...]
    tables: tuple[RewardTable, ...]
    soft: bool
    samples: int
    comparative: bool = False

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call per completion and sample; it has no request where no table fits the prompt."""
        fits = table_of(self.tables, prompt) is not None
        classes = [(letter, text) for letter, _, text in self.classes]
        calls = []
        for completion in usable(completions):
            values = template_values(prompt, [completion], seed, classes=classes)
            for index in range(self.samples if fits else 1):
                name = call_id(self.judge_hash, [completion], None, index)
                call = Call(name, prompt, (completion,), None, index)
                if fits:
                    call = self.asking.ask(call, values, letter_forms(self.classes), seed)
                calls.append(call)
        return calls

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement; `distribution` holds the share of each class."""
        rewards = table_of(self.tables, call.prompt) or {}

        def read_labels(answer: ScoreResult) -> Verdict | None:
            probs = {name: answer.label_probs[letter] for letter, name, _ in self.classes}
            total, likely = sum(probs.values()), likeliest(probs)
            if not total > 0 or (likely is None and not self.soft):
                return None
            shares = {name: p / total for name, p in probs.items()}
            mean = sum(rewards[name] * share for name, share in shares.items())
            score = mean if self.soft or likely is None else rewards[likely]
            return Verdict("ok", min(1.0, max(0.0, score)), distribution=shares)

        verdict = self.asking.read_verdict(call, result, read_labels)
        return [make_judgement(self, call, annotator_id, verdict)]


def letter_forms(classes: Sequence[tuple[str, str, str]]) -> Labels:
    """The surface forms of each class's letter."""
    return {letter: (letter, f" {letter}") for letter, _, _ in classes}


def table_of(tables: Sequence[RewardTable], prompt: Prompt) -> Mapping[str, float] | None:
    """The rewards of the first table that is for the prompt, by class, or None."""
    for table in tables:
        if table.tags is None or set(table.tags) & set(prompt.tags):
            return table.rewards
    return None
