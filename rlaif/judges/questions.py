"""How a judge puts its question: read label probabilities, or have a verdict written; and when an
answer is an abstention.

An abstention is a verdict that the judge declines to give. Where labels are read it is a label of
its own, or too little probability on all labels; where the verdict is written it is a word in the
verdict's place. It has no number and is no tie.

`judgement_notes` says in words what a user should know of how a judge's model answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from rlaif.core.chat import CUT, WAS_CUT
from rlaif.core.errors import ConfigError
from rlaif.core.records import Judgement, content_hash
from rlaif.engines.base import (
    Capability,
    GenerateRequest,
    GenerateResult,
    Sampling,
    ScoreRequest,
    ScoreResult,
)
from rlaif.judges.base import LIMIT, Answer, Call, Ending, Verdict
from rlaif.judges.common import VerdictJudge, WritingJudge
from rlaif.judges.forms import Form, Reading, V, candidates, withdrawn
from rlaif.judges.jsontext import Found, json_objects, member, names_member, outside, the_object
from rlaif.judges.templates import Template, in_fence, outside_fence

Labels = Mapping[str, tuple[str, ...]]
"""A label to the surface forms whose probabilities are summed."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How a judge asks for a verdict: label probabilities are read, at once or after `reasons` of
    its own, or the verdict is `written`, as JSON where `structured`.

    `abstain` is what the model may answer in place of a verdict; below `min_mass` on all labels
    together it abstains too.
    """

    template: Template
    reasons: Sampling | None = None
    written: Sampling | None = None
    structured: bool = False
    abstain: tuple[str, ...] = ()
    min_mass: float = 0.0

    @property
    def needs(self) -> frozenset[Capability]:
        """What the engine must be able to do."""
        if self.written is not None:
            return frozenset({"generate"})
        return label_needs(self.template) | ({"generate"} if self.reasons else set())

    def request(
        self,
        name: str,
        values: Mapping[str, Any],
        labels: Labels,
        seed: int,
        schema: dict[str, Any] | None = None,
    ) -> tuple[GenerateRequest | ScoreRequest, Ending | None]:
        """A call's request, and its second turn where reasons are written first. `labels` are those
        that are read; `schema` is what a written answer should be an instance of."""
        # Every switch is set, since an undefined variable is an error in a template.
        values = {
            **values,
            "explain": self.written is not None,
            "reason": self.reasons is not None,
            "structured": schema is not None,
            "abstain": self.abstain[0].strip() if self.abstain else None,
        }
        if self.written is not None:
            return text_request(name, self.template, values, self.written, seed, schema), None
        forms = dict(labels) | ({"abstain": self.abstain} if self.abstain else {})
        prefill = self.template.prefill(values)
        if self.reasons is None:
            return ScoreRequest(name, self.template.messages(values), prefill, forms), None
        ending = Ending(self.template.then(values), prefill, forms)
        return text_request(name, self.template, values, self.reasons, seed), ending

    def ask(
        self,
        call: Call,
        values: Mapping[str, Any],
        labels: Labels,
        seed: int,
        schema: dict[str, Any] | None = None,
    ) -> Call:
        """A call with its `request`."""
        request, then = self.request(call.call_id, values, labels, seed, schema)
        return replace(
            call,
            request=request,
            then=then,
            fence=values["fence"],
            template_hash=self.template.hash,
        )

    def schema(self, field: str, verdicts: Iterable[str]) -> dict[str, Any] | None:
        """What a structured answer is: reasons, and one of `verdicts` or an abstention in `field`;
        None where the answer is not structured."""
        if not self.structured:
            return None
        return answer_schema({"reasons": None, field: [*verdicts, *self.abstain[:1]]})

    def abstains(self, answer: ScoreResult) -> bool:
        """Whether label probabilities are an abstention: the judge's likeliest label is none, or
        it wanted to say something else than a label."""
        return likeliest(answer.label_probs) == "abstain" or label_mass(answer) < self.min_mass

    def read_verdict(
        self,
        call: Call,
        result: Answer,
        read_labels: Callable[[ScoreResult], Verdict | None],
        read_text: Callable[[Written], Verdict | None] | None = None,
    ) -> Verdict:
        """What an answer says: not applicable where nothing was asked, failed, abstain, or the
        verdict that `read_labels` finds in label probabilities or `read_text` in what was written;
        unparsed where it finds none."""
        template_hash = self.template.hash
        if call.request is None:
            return Verdict("not_applicable", template_hash=template_hash)
        if self.written is not None and read_text is not None:
            wrote = text_result(result)
            if wrote is None:
                return Verdict("failed", template_hash=template_hash)
            verdict = read_text(written(call, wrote)) or Verdict("unparsed")
            return replace(verdict, raw=wrote.text, template_hash=template_hash)
        answer = label_result(result)
        if answer is None:
            return Verdict("failed", template_hash=template_hash)
        if self.abstains(answer):
            verdict = Verdict("abstain")
        else:
            verdict = read_labels(answer) or Verdict("unparsed")
        return replace(verdict, label_mass=label_mass(answer), template_hash=template_hash)


@dataclass(frozen=True, slots=True)
class AskingJudge:
    """What judges have whose model gives a verdict on each call."""

    id: str
    judge_hash: str
    asking: Asking

    @property
    def needs(self) -> frozenset[Capability]:
        """Label probabilities, text, or both: text also where reasons are written first."""
        return self.asking.needs


def answer_schema(fields: Mapping[str, Sequence[str] | dict[str, Any] | None]) -> dict[str, Any]:
    """The JSON schema of an object with all of `fields` and no other: one of some words, an object
    of a schema, or any text (None). It keeps to what servers take in strict mode."""

    def field_schema(kind: Sequence[str] | dict[str, Any] | None) -> dict[str, Any]:
        """The schema of one field."""
        if isinstance(kind, dict):
            return kind
        words = list(dict.fromkeys(word.strip() for word in kind or ()))
        return {"type": "string"} | ({"enum": words} if words else {})

    return {
        "type": "object",
        "properties": {name: field_schema(kind) for name, kind in fields.items()},
        "required": list(fields),
        "additionalProperties": False,
    }


def make_asking(spec: VerdictJudge, template: Template, cot: bool = False) -> Asking:
    """How a judge asks; with `cot` it writes reasons before labels are read. Raises ConfigError for
    `cot` with a template that has no turn for the verdict."""
    if cot and not template.has_then:
        raise ConfigError(
            f"judge {spec.id}: `cot: true` needs a ---then--- section in the template: the turn "
            "that asks for the verdict after the reasons",
            template.name,
        )
    sampling = sampling_of(spec) if isinstance(spec, WritingJudge) else None
    return Asking(
        template,
        reasons=sampling if cot else None,
        written=sampling if spec.written else None,
        structured=isinstance(spec, WritingJudge) and spec.structured,
        abstain=spec.abstentions,
        min_mass=spec.min_label_mass,
    )


def distinct_labels(
    spec: VerdictJudge, wanted: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """The labels with their surface forms.

    Refuses empty lists of labels, and one surface form that stands for two answers, of which one
    may be an abstention.
    """
    labels = {name: tuple(forms) for name, forms in wanted.items()}
    every = [*labels.values(), spec.abstentions]
    # A form may be repeated within one label, and not between two.
    forms = [form for label in every for form in dict.fromkeys(label)]
    twice = sorted({form for form in forms if forms.count(form) > 1})
    if twice or not all(labels.values()):
        reason = f"{twice} stand for both answers" if twice else "a list of labels is empty"
        raise ConfigError(f"judge {spec.id}: {reason}")
    return labels


def text_request(
    name: str,
    template: Template,
    values: Mapping[str, Any],
    sampling: Sampling,
    seed: int,
    json_schema: dict[str, Any] | None = None,
) -> GenerateRequest:
    """A call's request for a text, sampled with a seed of its own."""
    own = replace(sampling, seed=sampling_seed(seed, name))
    return GenerateRequest(name, template.messages(values), own, json_schema=json_schema)


def sampling_of(spec: WritingJudge) -> Sampling:
    """How the judge's texts are sampled; each call then gets its own seed."""
    return Sampling(max_new_tokens=spec.max_new_tokens, temperature=spec.temperature)


def sampling_seed(seed: int, call_id: str) -> int:
    """The seed of one generated answer, on [0, 2**31)."""
    # 31 bits, which every engine takes.
    return int(content_hash("judge", seed, call_id, length=8), 16) & 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Written:
    """What a judge wrote. `fence` is the mark around the judged texts; `cut`: a limit ended it;
    `structured`: it was asked for a JSON object."""

    text: str
    fence: str = ""
    cut: bool = False
    structured: bool = False

    @property
    def own(self) -> str:
        """Its own words, without what it quotes of the judged texts."""
        return outside_fence(self.text, self.fence)

    def object(self, field: str) -> Found | None:
        """The JSON object with `field` in it, see `jsontext.the_object`; none that it quotes. A
        field of that name outside every object shows that one of them is not what it seems."""
        found = json_objects(self.text)
        one = the_object((o for o in found if not self._is_quoted(o)), field, self.structured)
        if one is not None and names_member(outside(self.text, found), field):
            # Without members: the answer has an object, and nothing can be read in it.
            return Found(one.start, one.end)
        return one

    def read(self, field: str, reading: Reading[V], form: Form | None = None) -> V | None:
        """The verdict under `field` of a JSON answer, which what is written beside the object must
        not contradict; or the one in a text, in the form that was asked for."""
        found = self.object(field)
        if found is None:
            return reading.read(self.own, form, self.cut)
        value = scalar(found, field)
        alone = None if value is None else reading.alone(value)
        if alone is None or withdrawn(self.text, found.end):
            return None
        beside = candidates(self.beside(found), form or reading.usual, reading.grammar)
        return alone.value if all(c.value == alone.value for c in beside) else None

    def _is_quoted(self, found: Found) -> bool:
        return in_fence(self.text[: found.start], self.fence)

    def beside(self, found: Found) -> str:
        """What it wrote beside an object."""
        return Written(f"{self.text[: found.start]}\n{self.text[found.end :]}", self.fence).own


def written(call: Call, result: GenerateResult) -> Written:
    """A judge's answer to a call."""
    asked = isinstance(call.request, GenerateRequest) and call.request.json_schema is not None
    return Written(result.text, call.fence, result.finish_reason == "length", asked)


def scalar(found: Found, field: str) -> str | None:
    """A word or number under `field` as text; None for anything else, such as true or a list."""
    value = member(found, field)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return value if isinstance(value, str) else f"{value}"


def text_result(result: Answer) -> GenerateResult | None:
    """What was written in an answer, or None when the call failed."""
    if isinstance(result, GenerateResult) and result.finish_reason != "failed":
        return result
    return None


def label_result(result: Answer) -> ScoreResult | None:
    """The label probabilities in an answer, or None when the call failed."""
    return result if isinstance(result, ScoreResult) and result.error is None else None


def label_mass(result: ScoreResult) -> float:
    """The probability on any label, on [0, 1]."""
    return sum(result.label_probs.values()) if result.label_mass is None else result.label_mass


def likeliest(probs: Mapping[str, float]) -> str | None:
    """The label with the highest probability, where one is higher than all others."""
    # In order of probability, so that the first two tell a tie.
    ranked = sorted(probs, key=lambda label: -probs[label])
    if not ranked or (len(ranked) > 1 and probs[ranked[0]] == probs[ranked[1]]):
        return None
    return ranked[0]


def label_needs(template: Template) -> frozenset[Capability]:
    """What an engine must do for a judge that reads label probabilities."""
    prefill: frozenset[Capability] = frozenset({"prefill"} if template.has_prefill else ())
    return prefill | {"label_logprobs"}


LEAST_MASS = 0.1
"""Below this mean label mass the labels are not what the model wanted to say."""


def judgement_notes(judge: str, judgements: Sequence[Judgement]) -> list[str]:
    """`answer_notes` of a judge's judgements."""
    errors = Counter(j.error for j in judgements if j.error)
    masses = [j.label_mass for j in judgements if j.label_mass is not None]
    return answer_notes(judge, len(judgements), errors, masses)


def answer_notes(
    judge: str, judgements: int, errors: Mapping[str, int], masses: Sequence[float]
) -> list[str]:
    """What kept verdicts from being read, and what to change: `errors` are the reasons why
    judgements have no value with their counts, `masses` the label masses of those that have one."""
    notes = []
    for why, count in ((WAS_CUT, errors.get(CUT, 0)), (LIMIT, errors.get(LIMIT, 0))):
        if count:
            notes.append(
                f"judge {judge}: {count} of {judgements} verdicts could not be read, since the "
                f"answer was {why}: raise `max_new_tokens` of the judge"
            )
    if masses and (mean := fmean(masses)) < LEAST_MASS:
        notes.append(
            f"judge {judge}: its labels have a mean probability of {mean:.2g} together: the model "
            "wanted to say something else, and its verdicts rest on what is left. Look at what it "
            "would write (`rlaif prompt render`), or choose other labels; `min_label_mass` makes "
            "such verdicts abstentions"
        )
    return notes


def label_share(first: float, second: float) -> float | None:
    """first / (first + second) of two probabilities; None where both are 0."""
    total = first + second
    return first / total if total > 0 else None
