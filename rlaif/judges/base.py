"""What a judge is: pure functions from completions to calls, and from answers to judgements.

A judge never talks to an engine. It says which calls it needs and reads their answers; the judge
step does the rest (batches, resume, storage), the same for every judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rlaif.engines.base import (
    Capability,
    GenerateRequest,
    GenerateResult,
    RewardRequest,
    RewardResult,
    ScoreRequest,
    ScoreResult,
)
from rlaif.records import AnnotatorKind, Completion, Judgement, Prompt, Status, content_hash

Answer = GenerateResult | ScoreResult | RewardResult | None
"""What an engine gives back for a call; None where no model was asked."""


@dataclass(frozen=True, slots=True)
class Call:
    """One question to an annotator. `request` is None when no model is asked (rules)."""

    call_id: str
    prompt: Prompt
    shown: tuple[Completion, ...]
    principle: str | None
    sample_index: int
    request: GenerateRequest | ScoreRequest | RewardRequest | None


class Judge(Protocol):
    """A judge by its id in the experiment. `judge_hash` covers all that can change a verdict, but
    not the weights of the model that answers: those are the annotator's."""

    @property
    def id(self) -> str:
        """The judge's id in the experiment."""
        ...

    @property
    def judge_hash(self) -> str:
        """Kind, id, options, template and principles."""
        ...

    @property
    def comparative(self) -> bool:
        """Whether a call shows two completions and asks which is better."""
        ...

    @property
    def needs(self) -> frozenset[Capability]:
        """What the engine must be able to do; empty when no model is asked."""
        ...

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """The calls that judge `completions` of one prompt; failed completions are left out."""
        ...

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """The judgements in an answer, at least one per call: what cannot be read is a
        judgement with status unparsed or failed."""
        ...


def call_id(
    judge_hash: str, shown: Sequence[Completion], principle: str | None, sample_index: int = 0
) -> str:
    """The id of a call, from what is asked: known before the answer."""
    return "c_" + content_hash(
        judge_hash,
        [c.completion_id for c in shown],
        [c.digest for c in shown],
        principle,
        sample_index,
    )


def judgement(
    judge: Judge,
    call: Call,
    subject: Completion,
    annotator_id: str,
    annotator_kind: AnnotatorKind,
    status: Status,
    *,
    score: float | None = None,
    prob_first: float | None = None,
    distribution: dict[str, float] | None = None,
    label_mass: float | None = None,
    rationale: str | None = None,
    raw: str | None = None,
    template_hash: str | None = None,
) -> Judgement:
    """A Judgement about `subject`, one of the completions that `call` showed."""
    return Judgement(
        judgement_id="j_" + content_hash(call.call_id, annotator_id, subject.completion_id),
        call_id=call.call_id,
        prompt_id=call.prompt.prompt_id,
        subject_kind="completion",
        shown=[c.completion_id for c in call.shown],
        subject=subject.completion_id,
        judge=judge.id,
        annotator_id=annotator_id,
        annotator_kind=annotator_kind,
        principle=call.principle,
        status=status,
        score=score,
        prob_first=prob_first,
        distribution=distribution,
        label_mass=label_mass,
        rationale=rationale,
        raw=raw,
        template_hash=template_hash,
        judge_hash=judge.judge_hash,
        sample_index=call.sample_index,
    )
