"""What the judges share: choosing principles, hashing, filling templates, seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from rlaif.config import JudgeBase, LabelJudge, ModelJudge, WritingJudge
from rlaif.constitution import Constitution, Principle, principle_hash
from rlaif.engines.base import Capability, GenerateRequest, Sampling, ScoreRequest, ScoreResult
from rlaif.errors import ConfigError
from rlaif.records import Completion, Judgement, Prompt, Status, content_hash
from rlaif.templates import (
    PAIRWISE,
    POINTWISE,
    Template,
    conversation_text,
    fence_mark,
    inert,
    load_template,
)
from rlaif.yamlio import suggest

from .base import Answer, Call, Ending, Judge, judgement

# Who answers and which records are judged; neither changes what a verdict on a given text is.
_NOT_HASHED = {"id", "kind", "by", "reference", "uses", "template", "principles", "items_file"}

Labels = Mapping[str, tuple[str, ...]]
"""A label to the surface forms whose probabilities are summed."""


def named_principles(spec: JudgeBase, constitution: Constitution | None) -> list[Principle] | None:
    """The principles that the spec names, in its order; None when it names none."""
    if spec.principles is None:
        return None
    if constitution is None:
        raise ConfigError(f"judge {spec.id}: `principles` is given, but there is no `constitution`")
    known = {p.id: p for p in constitution.principles}
    for name in spec.principles:
        if name not in known:
            hint = suggest(name, list(known))
            place = f"constitution {constitution.name!r}"
            raise ConfigError(f"judge {spec.id}: {place} has no principle {name!r}{hint}")
    return [known[name] for name in dict.fromkeys(spec.principles)]


def text_principles(spec: JudgeBase, constitution: Constitution | None) -> list[Principle]:
    """The principles that a model judges: those named, or every one with a text and no `check`.

    A principle that a program verifies is the rules judge's, unless it is named.
    """
    named = named_principles(spec, constitution)
    if named is None:
        every = constitution.principles if constitution is not None else ()
        return [p for p in every if p.text and p.check is None]
    for principle in named:
        if not principle.text:
            raise ConfigError(
                f"judge {spec.id}: principle {principle.id!r} has no text to judge by"
            )
    return named


def by_principle(principles: Sequence[Principle]) -> dict[str, Principle]:
    """The principles by id."""
    return {principle.id: principle for principle in principles}


def hash_judge(
    spec: JudgeBase, principles: Iterable[Principle], template: Template | None = None
) -> str:
    """The judge hash: kind, id, every option that can change a verdict, template and principles.

    The order of the principles counts only where the template lists them all.
    """
    hashes = [(p.id, principle_hash(p)) for p in principles]
    if template is None or "principles" not in template.variables:
        hashes.sort()
    options = spec.model_dump(mode="json", exclude=_NOT_HASHED)
    template_hash = template.hash if template is not None else None
    return content_hash(spec.kind, spec.id, options, template_hash, hashes)


def judge_template(
    spec: ModelJudge,
    default: str,
    beside: Path | None,
    *,
    comparative: bool = False,
    per_principle: bool = False,
    allowed: frozenset[str] = POINTWISE,
    required: frozenset[str] = frozenset({"response"}),
) -> Template:
    """The spec's template, or the shipped one. It must use each judged text and, where each call is
    about one principle, that principle. Raises ConfigError."""
    if comparative:
        allowed, required = PAIRWISE, frozenset({"response_1", "response_2"})
    if per_principle:
        required |= {"principle"}
    return load_template(spec.template or f"prompts/judges/{default}", allowed, required, beside)


def usable(completions: Iterable[Completion]) -> list[Completion]:
    """The completions that were generated, each once, in the order of sampling."""
    ordered = sorted(_made(completions), key=lambda c: (c.sample_index, c.completion_id))
    found: dict[str, Completion] = {}
    for completion in ordered:
        found.setdefault(completion.completion_id, completion)
    return list(found.values())


def usable_pairs(completions: Iterable[Completion]) -> list[tuple[Completion, Completion]]:
    """Every two of the usable completions; where several are all the same one, it beside itself,
    which is a tie."""
    made = _made(completions)
    distinct = usable(made)
    if len(distinct) == 1 < len(made):
        return [(distinct[0], distinct[0])]
    return list(combinations(distinct, 2))


def _made(completions: Iterable[Completion]) -> list[Completion]:
    return [c for c in completions if c.finish_reason != "failed"]


def template_values(
    prompt: Prompt,
    shown: Sequence[Completion],
    seed: int,
    *,
    principle: Principle | None = None,
    principles: Iterable[Principle] = (),
    low: float | None = None,
    high: float | None = None,
    explain: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """What a template may use; `more` comes on top. Texts of a judged party are made inert."""
    conversation = conversation_text(prompt.messages)
    texts = [completion.text for completion in shown]
    slots = {1: ["response"], 2: ["response_1", "response_2"]}.get(len(texts), [])
    described = principle.scale if principle is not None and principle.scale else {}
    return {
        "prompt": inert(prompt.question),
        "conversation": inert(conversation),
        "principle": principle.text if principle is not None else None,
        "principle_id": principle.id if principle is not None else None,
        "principles": [p.text for p in principles if p.applies(prompt)],
        "examples": list(principle.examples) if principle is not None else [],
        "scale": sorted(described.items()),
        "low": _plain(low),
        "high": _plain(high),
        "explain": explain,
        "reference": None if prompt.reference is None else inert(prompt.reference),
        "fence": fence_mark(seed, conversation, prompt.reference or "", *texts),
        "responses": [inert(text) for text in texts],
        **{slot: inert(text) for slot, text in zip(slots, texts, strict=False)},
        **more,
    }


def _plain(value: float | None) -> float | int | None:
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True, slots=True)
class Asking:
    """How a judge that reads label probabilities asks: at once, or after `reasons` of its own."""

    template: Template
    reasons: Sampling | None = None

    @property
    def needs(self) -> frozenset[Capability]:
        """What the engine must be able to do."""
        return label_needs(self.template) | ({"generate"} if self.reasons else set())

    def request(
        self, name: str, values: Mapping[str, Any], labels: Labels, seed: int
    ) -> tuple[GenerateRequest | ScoreRequest, Ending | None]:
        """A call's request, and its second turn where reasons are written first."""
        values = {**values, "reason": self.reasons is not None}
        messages, prefill = self.template.messages(values), self.template.prefill(values)
        if self.reasons is None:
            return ScoreRequest(name, messages, prefill, dict(labels)), None
        ending = Ending(self.template.then(values), prefill, dict(labels))
        return text_request(name, self.template, values, self.reasons, seed), ending


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


def asking(spec: LabelJudge, template: Template) -> Asking:
    """How a label judge asks. Raises ConfigError for `cot` with a template that has no turn for
    the verdict."""
    return Asking(template, reasons_of(spec, template) if spec.cot else None)


def reasons_of(spec: WritingJudge, template: Template) -> Sampling:
    """How reasons are sampled before the labels are read."""
    if not template.has_then:
        raise ConfigError(
            f"judge {spec.id}: `cot: true` needs a ---then--- section in the template: the turn "
            "that asks for the verdict after the reasons",
            template.name,
        )
    return sampling_of(spec)


def sampling_of(spec: WritingJudge) -> Sampling:
    """How the judge's texts are sampled; each call then gets its own seed."""
    return Sampling(max_new_tokens=spec.max_new_tokens, temperature=spec.temperature)


def sampling_seed(seed: int, call_id: str) -> int:
    """The seed of one generated answer, on [0, 2**31)."""
    return int(content_hash("judge", seed, call_id, length=8), 16) & 0x7FFFFFFF


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)) without overflow."""
    small = math.exp(-abs(value))
    return 1.0 / (1.0 + small) if value >= 0 else small / (1.0 + small)


def mapped(value: float, low: float, high: float) -> float:
    """`value` on [low, high] mapped to [0, 1]."""
    return (value - low) / (high - low)


def without_value(
    judge: Judge,
    call: Call,
    annotator_id: str,
    status: Status,
    template: Template | None = None,
    *,
    raw: str | None = None,
    label_mass: float | None = None,
) -> list[Judgement]:
    """One judgement about the first text shown that has a status and no number."""
    return [
        judgement(
            judge,
            call,
            call.shown[0],
            annotator_id,
            "ai",
            status,
            raw=raw,
            label_mass=label_mass,
            template_hash=template.hash if template is not None else None,
        )
    ]


def label_result(result: Answer) -> ScoreResult | None:
    """The label probabilities in an answer, or None when the call failed."""
    return result if isinstance(result, ScoreResult) and result.error is None else None


def label_mass(result: ScoreResult) -> float:
    """The probability on any label, on [0, 1]."""
    return sum(result.label_probs.values()) if result.label_mass is None else result.label_mass


def distinct_labels(
    spec: JudgeBase,
    wanted: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """The labels with their surface forms, without the `optional` ones that have none.

    Refuses empty lists of labels, and one surface form that stands for two answers.
    """
    given = {name: forms for name, forms in (optional or {}).items() if forms}
    labels = {name: tuple(forms) for name, forms in {**wanted, **given}.items()}
    forms = [form for label in labels.values() for form in dict.fromkeys(label)]
    twice = sorted({form for form in forms if forms.count(form) > 1})
    if twice or not all(labels.values()):
        reason = f"{twice} stand for both answers" if twice else "a list of labels is empty"
        raise ConfigError(f"judge {spec.id}: {reason}")
    return labels


def likeliest(probs: Mapping[str, float]) -> str | None:
    """The label with the highest probability, where one is higher than all others."""
    ranked = sorted(probs, key=lambda label: -probs[label])
    if not ranked or (len(ranked) > 1 and probs[ranked[0]] == probs[ranked[1]]):
        return None
    return ranked[0]


def label_needs(template: Template) -> frozenset[Capability]:
    """What an engine must do for a judge that reads label probabilities."""
    prefill: frozenset[Capability] = frozenset({"prefill"} if template.has_prefill else ())
    return prefill | {"label_logprobs"}


def applicable(principle: Principle | None, prompt: Prompt) -> bool:
    """Whether a call about `principle` (None: overall) makes sense for `prompt`."""
    return principle is None or principle.applies(prompt)
