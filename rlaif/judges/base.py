"""What a judge is: pure functions from completions to calls, and from answers to judgements.

A judge never talks to an engine. It says which calls it needs and reads their answers; the judge
step does the rest (batches, resume, storage), the same for every judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from rlaif.core.chat import CUT
from rlaif.core.records import (
    AnnotatorKind,
    Completion,
    Judgement,
    Message,
    Prompt,
    Status,
    content_hash,
)
from rlaif.engines.base import (
    Capability,
    GenerateRequest,
    GenerateResult,
    RewardRequest,
    RewardResult,
    ScoreRequest,
    ScoreResult,
)
from rlaif.judges.templates import inert

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Answer = GenerateResult | ScoreResult | RewardResult | None
"""What an engine gives back for a call; None where no model was asked."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The second turn of a call: what is asked once the judge has written its reasons. The labels
    are read after `prefill`."""

    turn: str
    prefill: str
    labels: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Call:
    """One question to an annotator. `request` is None when no model is asked (rules).

    With `then`, `request` is for the reasons, and the answer that is read is the one to `then`.
    `role` says which of the judge's models answers. `fence` is the mark around the judged texts.
    `place`, from 1, says which of several texts shown the call asks about, where that is one.
    `template_hash` is of the template that the question was made with. Of a judge that looks at
    whole groups of prompts, the texts shown after the first are answers to the prompts `beside`,
    and `lacking` counts the prompts of the group that have none.
    """

    call_id: str
    prompt: Prompt
    shown: tuple[Completion, ...]
    principle: str | None = None
    sample_index: int = 0
    request: GenerateRequest | ScoreRequest | RewardRequest | None = None
    then: Ending | None = None
    role: str = "by"
    fence: str = ""
    place: int | None = None
    template_hash: str | None = None
    beside: tuple[Prompt, ...] = ()
    lacking: int = 0


Case = tuple[Prompt, Sequence[Completion]]
"""A prompt and the answers to it."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, who gave it, the reasons that were written before it, the seconds it took and what
    it cost."""

    answer: Answer
    annotator_id: str
    rationale: str | None = None
    latency: float | None = None
    cost: float | None = None

    @property
    def error(self) -> str | None:
        """Why the model did not answer."""
        return None if self.answer is None else self.answer.error

    @property
    def fault(self) -> str | None:
        """Why nothing could be read in the answer, where that is known: it failed, its thinking has
        no end, or a limit ended it."""
        if isinstance(self.answer, GenerateResult) and not self.error:
            if self.answer.cut:
                return CUT
            return LIMIT if self.answer.finish_reason == "length" else None
        return self.error

    @property
    def thought(self) -> str | None:
        """What the model wrote before its verdict: the reasons that were asked for, and what it
        thought."""
        own = self.answer.reasoning if isinstance(self.answer, GenerateResult) else ""
        return "\n\n".join(part for part in (self.rationale, own) if part) or None

    @property
    def prompt_tokens(self) -> int | None:
        """How many tokens the model read."""
        return None if self.answer is None else self.answer.prompt_tokens

    @property
    def new_tokens(self) -> int | None:
        """How many it wrote; none where its probabilities or its reward were read."""
        if self.answer is None:
            return None
        return self.answer.tokens_made if isinstance(self.answer, GenerateResult) else 0


LIMIT = "cut at the token limit"
"""Why an answer cannot be read that a limit ended."""


def ending_request(call: Call, reasons: GenerateResult) -> ScoreRequest | None:
    """The second request of a call, after the judge's own reasons; None where these failed, or are
    thinking without an end. A model that only thought has thought its reasons.

    The reasons may quote the judged text, so chat control tokens in them are broken too.
    """
    if call.then is None or call.request is None:
        return None
    if reasons.finish_reason == "failed" or reasons.cut:
        return None
    assert isinstance(call.request, GenerateRequest)
    said: list[Message] = [
        {"role": "assistant", "content": inert(reasons.text.strip() or reasons.reasoning)},
        {"role": "user", "content": call.then.turn},
    ]
    messages = [*call.request.messages, *said]
    return ScoreRequest(call.call_id, messages, call.then.prefill, call.then.labels)


class Asks(Protocol):
    """What all judges have. A judge goes by its id in the experiment. `judge_hash` covers all that
    can change a verdict, but not the weights of the model that answers: those are the
    annotator's."""

    @property
    def id(self) -> str:
        """The judge's id in the experiment."""

    @property
    def judge_hash(self) -> str:
        """Kind, id, options, template and principles."""

    @property
    def comparative(self) -> bool:
        """Whether a call shows two completions and asks which is better."""

    @property
    def needs(self) -> frozenset[Capability]:
        """What the engine must be able to do; empty when no model is asked."""

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """The calls that judge `completions` of one prompt; failed completions are left out."""


class Plain(Asks, Protocol):
    """A judge that reads each answer by itself, which most do."""

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """The judgements in an answer, at least one per call: what cannot be read is a
        judgement with status unparsed or failed."""


class Staged(Asks, Protocol):
    """A judge whose verdicts rest on several answers: calls may follow from answers, and nothing
    is read before all of one prompt's are there."""

    @property
    def roles(self) -> Mapping[str, frozenset[Capability]]:
        """What each of the models that are asked must be able to do, by role."""

    def follow(
        self, calls: Sequence[Call], answers: Mapping[str, Answered], seed: int
    ) -> list[Call]:
        """The calls that one prompt's answers so far make possible, and that are not among `calls`;
        none when all has been asked."""

    def conclude(self, calls: Sequence[Call], answers: Mapping[str, Answered]) -> list[Judgement]:
        """The verdicts on one prompt's completions, from all its calls and answers."""

    def most_calls(self, calls: Sequence[Call]) -> int:
        """How many questions to models may come of one prompt's first `calls`, at most."""


Judge = Plain | Staged


def is_staged(judge: Judge) -> TypeIs[Staged]:
    """Whether the judge's verdicts rest on several answers."""
    return hasattr(judge, "conclude")


def is_grouped(judge: Judge) -> bool:
    """Whether answers to other prompts of a group decide what a judge says of an answer. A judge
    class says so by an attribute `grouped`, and has `calls_beside`."""
    return bool(getattr(judge, "grouped", False))


def calls_of(judge: Judge, case: Case, beside: Sequence[Case], seed: int) -> list[Call]:
    """The calls on the answers to one prompt; `beside` are the other prompts of its group, which
    most judges do not look at."""
    if is_grouped(judge):
        made: list[Call] = getattr(judge, "calls_beside")(*case, beside, seed)  # noqa: B009
        return made
    return judge.calls(*case, seed)


def cases_beside(cases: Sequence[Case]) -> list[list[Case]]:
    """By case those of the other prompts of its group."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if case[0].group is not None:
            groups.setdefault(case[0].group, []).append(case)
    return [
        [c for c in groups.get(prompt.group or "", ()) if c[0] != prompt] for prompt, _ in cases
    ]


def has_raw_value(judge: Judge) -> bool:
    """Whether the judge's judgements carry a `raw_value`. A judge class says so by an attribute
    `unbounded`."""
    return bool(getattr(judge, "unbounded", False))


def compares_judgements(judge: Judge) -> bool:
    """Whether what the judge is shown are other judges' judgements, and not answers. A judge class
    says so by an attribute `subject_kind`."""
    return getattr(judge, "subject_kind", "completion") == "judgement"


def roles_of(judge: Judge) -> Mapping[str, frozenset[Capability]]:
    """What each of a judge's models must be able to do, by role; nothing where none is asked."""
    if is_staged(judge):
        return judge.roles
    return {"by": judge.needs} if judge.needs else {}


def verdicts_of(
    judge: Judge, calls: Sequence[Call], answers: Mapping[str, Answered]
) -> list[Judgement]:
    """What a judge reads in the answers to one prompt's calls. An unasked call has no answer."""
    if is_staged(judge):
        return [_explain_missing(j, calls, answers) for j in judge.conclude(calls, answers)]
    return [j for call in calls for j in read_answer(judge, call, answers.get(call.call_id))]


def _explain_missing(
    made: Judgement, calls: Iterable[Call], answers: Mapping[str, Answered]
) -> Judgement:
    """A judgement without a verdict with what went wrong in the first of the calls about its texts
    that something went wrong with."""
    if made.status not in ("failed", "unparsed") or made.error:
        # A judgement that says itself what went wrong keeps that.
        return made
    about = [c for c in calls if not {s.completion_id for s in c.shown}.isdisjoint(made.shown)]
    own = [answers[c.call_id] for c in about if c.call_id in answers]
    faults = (a.error if made.status == "failed" else a.fault for a in own)
    fault = next(filter(None, faults), None)
    # Thinking without an end is an answer, and one that cannot be read; no call failed.
    if made.status == "failed" and fault is None and any(_is_cut(a.answer) for a in own):
        return replace(made, status="unparsed", error=CUT)
    return replace(made, error=fault)


def most_calls(judge: Judge, calls: Sequence[Call]) -> int:
    """How many questions to models may come of one prompt's first `calls`, at most."""
    if is_staged(judge):
        return judge.most_calls(calls)
    return sum(1 + (call.then is not None) for call in calls if call.request is not None)


def read_answer(judge: Plain, call: Call, answered: Answered | None) -> list[Judgement]:
    """The judgements in one answer, with the reasons that were written before it."""
    if answered is None:
        return judge.read(call, None, f"program:{judge.id}")
    read = judge.read(call, answered.answer, answered.annotator_id)
    return [
        replace(
            unread(j) if _is_cut(answered.answer) else j,
            rationale=answered.thought or j.rationale,
            latency=answered.latency,
            cost=answered.cost,
            prompt_tokens=answered.prompt_tokens,
            new_tokens=answered.new_tokens,
            error=answered.fault if j.status in ("failed", "unparsed") else None,
        )
        for j in read
    ]


def _is_cut(answer: Answer) -> bool:
    """Whether an answer is thinking without an end."""
    return isinstance(answer, GenerateResult) and answer.cut


def unread(made: Judgement) -> Judgement:
    """A judgement that gives no value, since no answer could be read."""
    return replace(made, status="unparsed", score=None, prob_first=None, raw_value=None)


def call_id(
    question_hash: str, shown: Sequence[Completion], principle: str | None, sample_index: int = 0
) -> str:
    """The id of a call, from what is asked: known before the answer. `question_hash` covers all of
    the judge that can change this answer."""
    return "c_" + content_hash(
        question_hash,
        [c.completion_id for c in shown],
        # A sampled answer has its id before its text: made again it has another digest.
        [c.digest for c in shown],
        principle,
        sample_index,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was read in an answer; the fields of a `Judgement` of these names say what each means.
    `template_hash` is of the template that the question was made with."""

    status: Status
    score: float | None = None
    prob_first: float | None = None
    distribution: dict[str, float] | None = None
    label_mass: float | None = None
    raw: str | None = None
    raw_value: float | None = None
    rationale: str | None = None
    template_hash: str | None = None


def make_judgement(
    judge: Judge,
    call: Call,
    annotator_id: str,
    verdict: Verdict,
    kind: AnnotatorKind = "ai",
    about: Completion | None = None,
    rests_on: Sequence[str] = (),
) -> Judgement:
    """The record of a verdict on the texts that `call` showed, or on the one that it is `about`
    alone. Its subject is the first of them."""
    shown = call.shown if about is None else (about,)
    subject = shown[0].completion_id
    return Judgement(
        judgement_id="j_" + content_hash(call.call_id, annotator_id, subject),
        call_id=call.call_id,
        prompt_id=call.prompt.prompt_id,
        subject_kind="completion",
        shown=[completion.completion_id for completion in shown],
        subject=subject,
        judge=judge.id,
        annotator_id=annotator_id,
        annotator_kind=kind,
        principle=call.principle,
        judge_hash=judge.judge_hash,
        sample_index=call.sample_index,
        rests_on=list(rests_on),
        **{field.name: getattr(verdict, field.name) for field in fields(Verdict)},
    )
