"""What judges share: the common keys of their specs, choosing principles and completions, hashing,
filling templates. A kind's own keys stand in the module of the judge that they describe.

`AnswerOnly` wraps a judge that is shown answers without the thinking before them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import UNSET, structs
from pydantic import Field, PositiveInt, create_model, model_validator

from rlaif.config.base import Count, Fraction, StepId, Strict, Temperature, hashed_keys
from rlaif.config.models import THINKING, ThinkingSpec
from rlaif.constitution.model import ASKED_FIELDS, Constitution, Principle, principle_hash
from rlaif.core.chat import split
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Prompt, content_hash
from rlaif.core.yamlio import suggest
from rlaif.judges.base import Call, Case, Judge, calls_of
from rlaif.judges.templates import (
    PAIRWISE,
    POINTWISE,
    Template,
    conversation_text,
    fence_mark,
    inert,
    load_template,
)

# Who answers and which records are judged; neither changes what a verdict on a given text is.
_NOT_HASHED = {
    "id",
    "kind",
    "by",
    "reference",
    "uses",
    "template",
    "principles",
    "items_file",
    "constitution",
}


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
    spec: JudgeBase,
    principles: Iterable[Principle],
    template: Template | None = None,
    fields: Collection[str] = ASKED_FIELDS,
) -> str:
    """The judge hash: kind, id, every option that can change a verdict, template and the `fields`
    of principles.

    The order of the principles counts only where the template lists them all.
    """
    hashes = [(p.id, principle_hash(p, fields)) for p in principles]
    if template is None or "principles" not in template.variables:
        hashes.sort()
    options = hashed_keys(spec, exclude=_NOT_HASHED)
    template_hash = template.hash if template is not None else None
    return content_hash(spec.kind, spec.id, options, template_hash, hashes)


def question_hashes(
    spec: JudgeBase,
    principles: Sequence[Principle],
    template: Template | None = None,
    fields: Collection[str] = ASKED_FIELDS,
) -> dict[str | None, str]:
    """What the ids of a judge's calls cover, by the principle that a call is about, or None: the
    hash of the judge with that principle alone, so that another one's wording changes nothing;
    with all of them where the template lists them."""
    if template is not None and "principles" in template.variables:
        names = [None, *(p.id for p in principles)]
        return dict.fromkeys(names, hash_judge(spec, principles, template, fields))
    found: dict[str | None, str] = {None: hash_judge(spec, (), template, fields)}
    for principle in principles:
        found[principle.id] = hash_judge(spec, [principle], template, fields)
    return found


def judge_template(
    spec: ModelJudge,
    beside: Path | None,
    *,
    default: str | None = None,
    comparative: bool = False,
    per_principle: bool = False,
    allowed: frozenset[str] = POINTWISE,
    required: frozenset[str] = frozenset({"response"}),
) -> Template:
    """The spec's template, or the shipped one called `default`, the kind's when absent. It must use
    each judged text and, where each call is about one principle, that principle. Raises
    ConfigError."""
    if comparative:
        allowed, required = PAIRWISE, frozenset({"response_1", "response_2"})
    if per_principle:
        required |= {"principle"}
    shipped = f"prompts/judges/{default or spec.kind}.j2"
    return load_template(spec.template or shipped, allowed, required, beside)


def usable(completions: Iterable[Completion]) -> list[Completion]:
    """The completions that were generated, each once, in the order of sampling."""
    ordered = sorted(_drop_failed(completions), key=lambda c: (c.sample_index, c.completion_id))
    found: dict[str, Completion] = {}
    for completion in ordered:
        found.setdefault(completion.completion_id, completion)
    return list(found.values())


def usable_pairs(completions: Iterable[Completion]) -> list[tuple[Completion, Completion]]:
    """Every two of the usable completions; where several are all the same one, it beside itself,
    which is a tie."""
    made = _drop_failed(completions)
    distinct = usable(made)
    if len(distinct) == 1 < len(made):
        return [(distinct[0], distinct[0])]
    return list(combinations(distinct, 2))


def _drop_failed(completions: Iterable[Completion]) -> list[Completion]:
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
        "low": _as_integer(low),
        "high": _as_integer(high),
        "reference": None if prompt.reference is None else inert(prompt.reference),
        "fence": fence_mark(seed, conversation, prompt.reference or "", *texts),
        "responses": [inert(text) for text in texts],
        **{slot: inert(text) for slot, text in zip(slots, texts, strict=False)},
        **more,
    }


def _as_integer(value: float | None) -> float | int | None:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def mapped(value: float, low: float, high: float) -> float:
    """`value` on [low, high] mapped to [0, 1]."""
    return (value - low) / (high - low)


def applicable(principle: Principle | None, prompt: Prompt) -> bool:
    """Whether a call about `principle` (None: overall) makes sense for `prompt`."""
    return principle is None or principle.applies(prompt)


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
        return self.judge.calls(prompt, self._strip_answers(completions), seed)

    def calls_beside(
        self, prompt: Prompt, completions: Sequence[Completion], beside: Sequence[Case], seed: int
    ) -> list[Call]:
        """Those of an inner judge that looks at whole groups of prompts."""
        others = [(other, self._strip_answers(answers)) for other, answers in beside]
        own = prompt, self._strip_answers(completions)
        return calls_of(self.judge, own, others, seed)

    def _strip_answers(self, completions: Sequence[Completion]) -> list[Completion]:
        return [answer_only(c, self.thinking) for c in completions]


def answer_only(completion: Completion, thinking: ThinkingSpec = THINKING) -> Completion:
    """The completion without the thinking that its text begins with, of which its prompt may have
    had the opening marker; a failed one where it was cut while thinking, so that nothing is said of
    an answer that is not there."""
    # Of an episode the thinking stands apart from each turn's text.
    if not completion.messages or completion.turns is not UNSET:
        return completion
    *earlier, last = completion.messages
    opened = thinking.model_copy(update={"opened": True})
    said = split(last["content"], opened, unclosed="answer")
    if said.reasoning and not said.answer.strip():
        return structs.replace(completion, messages=[], finish_reason="failed")
    return structs.replace(completion, messages=[*earlier, {**last, "content": said.answer}])


Order = Literal["both", "random", "fixed"]
ABSTENTIONS = ("abstain", "N/A", "not applicable", "cannot tell")
"""What a judge may write in place of a verdict, where the spec names no words; templates offer the
first."""


@dataclass(frozen=True, slots=True)
class JudgeInputs:
    """What a judge is built from, beside its spec. `beside` is the experiment file: templates are
    looked for beside it too. `thinking` says how thinking is told in the answers."""

    constitution: Constitution | None = None
    beside: Path | None = None
    thinking: ThinkingSpec = THINKING
    judges: Mapping[str, JudgeBase] = field(default_factory=dict)
    """The specs of the judges beside it, by id."""


class JudgeBase(Strict):
    """Keys that every judge has. `principles` limits it to some of the constitution's."""

    kind: str
    id: StepId
    principles: list[str] | None = None
    uses: list[str] | None = None
    constitution: str | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="A constitution of its own; default: the experiment's.",
    )
    reasoning: Literal["keep", "strip"] = Field(
        "keep",
        exclude_if=lambda value: value == "keep",
        description="The thinking in an answer's text (`<think>`, `[THINK]`, channels): judged "
        "with it, or left out.",
    )

    def asks(self) -> dict[str, str]:
        """The models that the judge asks: role to name in the experiment. Most have one, `by`."""
        within = self.judges_within().items()
        return {f"{n}/{role}": name for n, judge in within for role, name in judge.asks().items()}

    def judges_within(self) -> dict[str, JudgeBase]:
        """The judges that this one builds, by the beginning of their roles. Most have none."""
        return {}

    def rules(self, inputs: JudgeInputs) -> list[str]:
        """The rules of `constitution.rules.RULES` that the judge, or one within, runs."""
        return [rule for judge in self.judges_within().values() for rule in judge.rules(inputs)]

    def refuse_principles(self, reason: str) -> None:
        """Raises ConfigError where the spec names principles or a constitution, by which this kind
        cannot judge."""
        for key in ("principles", "constitution"):
            if getattr(self, key) is not None:
                raise ConfigError(f"judge {self.id}: {reason}; drop `{key}`")

    def build_judge(self, inputs: JudgeInputs) -> Judge:
        """The judge that the spec describes. Raises ConfigError when the spec cannot work."""
        raise NotImplementedError(self.kind)


class ModelJudge(JudgeBase):
    """Keys of every judge that asks a model. `by` names the model; `template` a prompt file."""

    by: str = "policy"
    template: str | None = None

    def asks(self) -> dict[str, str]:
        """The model `by`, and those of judges within."""
        return {"by": self.by} | super().asks()


class VerdictJudge(ModelJudge):
    """Keys of judges whose model gives a verdict, or abstains."""

    abstain_labels: list[str] | None = Field(
        None,
        description="What the judge may answer in place of a verdict; templates offer the first. "
        "When absent: some words where the verdict is written, none where labels are read.",
    )
    min_label_mass: Fraction = Field(
        0.0, description="Abstain if the labels' total probability is below this."
    )

    @property
    def written(self) -> bool:
        """Whether the verdict is written, and not read from label probabilities."""
        return False

    @property
    def abstentions(self) -> tuple[str, ...]:
        """What the judge may answer in place of a verdict."""
        if self.abstain_labels is None:
            return ABSTENTIONS if self.written else ()
        return tuple(self.abstain_labels)

    @model_validator(mode="after")
    def _mass_is_read(self) -> VerdictJudge:
        if self.min_label_mass and self.written:
            raise ValueError("`min_label_mass` has no effect where the verdict is written")
        return self


class WritingJudge(VerdictJudge):
    """Keys of judges that can write text. `samples` judgements are taken and averaged."""

    samples: Count = 1
    temperature: Temperature = 0.0
    max_new_tokens: PositiveInt = 128
    structured: bool = Field(
        False, description="Ask for a JSON answer, enforced by engines that can."
    )

    @property
    def written(self) -> bool:
        """Yes, where no probabilities are read."""
        return True

    @property
    def writes(self) -> bool:
        """Whether the judge writes anything, with the keys as they are."""
        return self.written

    @model_validator(mode="after")
    def _sampling_makes_sense(self) -> WritingJudge:
        names = ("samples", "temperature", "max_new_tokens")
        fields = type(self).model_fields
        changed = [n for n in names if getattr(self, n) != fields[n].default]
        if changed and not self.writes:
            raise ValueError(
                f"`{changed[0]}` has no effect here: the judge reads probabilities once and "
                "samples nothing; leave it out, or let the judge write"
            )
        if self.writes and self.samples > 1 and self.temperature == 0:
            raise ValueError("samples > 1 needs temperature > 0: greedy samples are all the same")
        if self.structured and not self.written:
            raise ValueError("`structured` has no effect where label probabilities are read")
        return self


class LabelJudge(WritingJudge):
    """Judges that read label probabilities; with `cot` after reasons that they wrote first."""

    cot: bool = Field(False, description="Write reasons first, then read the labels.")
    max_new_tokens: PositiveInt = 256

    @property
    def written(self) -> bool:
        """No: its labels are read."""
        return False

    @property
    def writes(self) -> bool:
        """With `cot`, or where the verdict is written."""
        return self.cot or self.written


J = TypeVar("J", bound=JudgeBase)


def define_preset(base: type[J], kind: str, description: str, **defaults: Any) -> type[J]:
    """The spec of a kind that is another kind with other defaults."""
    fields: dict[str, Any] = {"kind": (Literal[kind], ...), "id": (StepId, kind)}
    for key, value in defaults.items():
        field = base.model_fields[key]
        fields[key] = (Annotated[(field.annotation, *field.metadata, Field())], value)
    name = f"{kind.title().replace('_', '')}Judge"
    return create_model(
        name, __base__=base, __doc__=description, __module__=base.__module__, **fields
    )
