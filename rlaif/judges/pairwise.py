"""Which of two answers is better: by the probabilities of two labels, or by a written verdict.

After RLAIF, 2309.00267, section "Preference Labeling with LLMs": each pair is asked in both orders
by default, and the orders are averaged when judgements become scores (`compare.aggregate`), since
models prefer one slot. Reasons may be written first; the labels are then read after them.
Constitutional AI (2212.08073, section 4) draws one principle per comparison and clamps what
follows reasons to [0.4, 0.6]; Prometheus 2 (2405.01535) writes its verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from rlaif.config.base import Fraction, StepId
from rlaif.constitution.model import Principle
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement, Prompt, content_hash
from rlaif.judges.base import Answer, Call, Verdict, call_id, make_judgement
from rlaif.judges.choices import choice_reading
from rlaif.judges.common import (
    JudgeInputs,
    LabelJudge,
    Order,
    applicable,
    by_principle,
    define_preset,
    hash_judge,
    judge_template,
    question_hashes,
    template_values,
    text_principles,
    usable_pairs,
)
from rlaif.judges.forms import Form
from rlaif.judges.questions import (
    AskingJudge,
    Labels,
    Written,
    distinct_labels,
    label_share,
    likeliest,
    make_asking,
)
from rlaif.judges.templates import Template

FIELD = "verdict"


class PairwiseJudge(LabelJudge):
    """Which of two answers is better, by label log-probs, in both orders by default."""

    kind: Literal["pairwise"]
    id: StepId = "pairwise"
    order: Order = "both"
    verdict: Literal["labels", "written"] = Field(
        "labels", description="labels: probabilities of the labels; written: the last one written."
    )
    first_labels: list[str] = ["1", " 1"]
    second_labels: list[str] = ["2", " 2"]
    tie_labels: list[str] | None = Field(
        None,
        description="A tie is a verdict of its own. When absent: tie where the verdict is written, "
        "none where labels are read.",
    )
    soft: bool = Field(True, description="false: 1, 0.5 or 0, by the most likely label.")
    clamp: tuple[Fraction, Fraction] | None = Field(
        None, description="Clamps probabilities to this range, such as [0.4, 0.6]."
    )
    draw: Literal["each", "one"] = Field(
        "each", description="Every principle in turn, or one drawn per comparison."
    )
    preamble: Literal["base", "detailed"] = "base"
    shots: NonNegativeInt = Field(0, description="Number of the principle's examples to show.")

    @property
    def written(self) -> bool:
        """Whether the last word written is the verdict."""
        return self.verdict == "written"

    @property
    def ties(self) -> tuple[str, ...]:
        """What stands for a tie."""
        if self.tie_labels is None:
            return ("tie",) if self.written else ()
        return tuple(self.tie_labels)

    @model_validator(mode="after")
    def _comparison_makes_sense(self) -> PairwiseJudge:
        if self.clamp is not None and (
            abs(self.clamp[0] + self.clamp[1] - 1) > 1e-9 or self.clamp[0] >= self.clamp[1]
        ):
            raise ValueError("clamp must be [1 - p, p] with p > 0.5, so that swapping mirrors it")
        if self.written and not self.soft:
            raise ValueError("`soft` has no effect where the verdict is written: it is 1, 0.5 or 0")
        if self.cot and self.verdict == "written":
            raise ValueError("`cot` reads labels after the reasons; drop it, or `verdict: written`")
        return self

    def build_judge(self, inputs: JudgeInputs) -> Pairwise:
        """The judge of the spec: per text principle, or overall where there is none."""
        principles = text_principles(self, inputs.constitution)
        forms: dict[str, Sequence[str]] = {"first": self.first_labels, "second": self.second_labels}
        labels = distinct_labels(self, forms | ({"tie": self.ties} if self.ties else {}))
        template = judge_template(
            self, inputs.beside, comparative=True, per_principle=bool(principles)
        )
        _refuse_unused(self, principles, template)
        return Pairwise(
            id=self.id,
            judge_hash=hash_judge(self, principles, template),
            questions=question_hashes(self, principles, template),
            asking=make_asking(self, template, self.cot),
            principles=tuple(principles),
            labels=labels,
            order=self.order,
            draw=self.draw,
            reading=Reading(self.soft, self.clamp),
            samples=self.samples,
            preamble=self.preamble,
            shots=self.shots,
        )


ConstitutionalJudge = define_preset(
    PairwiseJudge,
    "constitutional",
    "Multiple choice (A) or (B) by one principle that is drawn for each comparison.",
    first_labels=["A", " A"],
    second_labels=["B", " B"],
    draw="one",
)
PrometheusPairJudge = define_preset(
    PairwiseJudge,
    "prometheus_pair",
    "Relative grading by a rubric: feedback, then [RESULT] A or B.",
    verdict="written",
    first_labels=["A", " A"],
    second_labels=["B", " B"],
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How probabilities become a verdict: `soft` keeps them, `clamp` moves them into a range."""

    soft: bool = True
    clamp: tuple[float, float] | None = None

    def prob(self, first: float) -> float:
        """`first` as it is kept. Clamping keeps the likelier side and mirrors under a swap."""
        value = first if self.soft else float(first > 0.5) + 0.5 * float(first == 0.5)
        low, high = self.clamp or (0.0, 1.0)
        return min(high, max(low, value))


@dataclass(frozen=True, slots=True)
class Pairwise(AskingJudge):
    """`prob_first` is P(first) / (P(first) + P(second)), on [0, 1]. Equal texts are a tie, unasked.

    Order: both (two calls per pair), random (one, drawn by seed and ids), fixed (the earlier sample
    first).
    """

    questions: Mapping[str | None, str]
    principles: tuple[Principle, ...]
    labels: dict[str, tuple[str, ...]]
    order: Order
    draw: Literal["each", "one"] = "each"
    reading: Reading = Reading()
    samples: int = 1
    preamble: str = "base"
    shots: int = 0
    comparative: bool = True

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """The calls for every pair, per principle or one overall where there is none."""
        schema = self.asking.schema(FIELD, [forms[0] for forms in self.labels.values()])
        calls = []
        for first, second in usable_pairs(completions):
            for principle in self._choose_principles(prompt, first, second, seed):
                about = principle.id if principle is not None else None
                if not applicable(principle, prompt) or first.text == second.text:
                    shown = (first, second)
                    name = call_id(self.questions[about], shown, about)
                    calls.append(Call(name, prompt, shown, about))
                    continue
                examples = principle.examples[: self.shots] if principle is not None else ()
                for shown in presentations(self.order, first, second, about, seed):
                    values = template_values(
                        prompt,
                        shown,
                        seed,
                        principle=principle,
                        principles=self.principles,
                        preamble=self.preamble,
                        examples=list(examples),
                        tie=self.labels["tie"][0].strip() if "tie" in self.labels else None,
                    )
                    for index in range(self.samples):
                        name = call_id(self.questions[about], shown, about, index)
                        call = Call(name, prompt, shown, about, index)
                        calls.append(self.asking.ask(call, values, self.labels, seed, schema))
        return calls

    def _choose_principles(
        self, prompt: Prompt, first: Completion, second: Completion, seed: int
    ) -> Sequence[Principle | None]:
        """Those that a pair is judged by: one drawn evenly among those that apply, or all."""
        if self.draw == "each" or not self.principles:
            return self.principles or (None,)
        fitting = [p for p in self.principles if p.applies(prompt)] or list(self.principles)
        fitting.sort(key=lambda p: p.id)
        ids = sorted([first.completion_id, second.completion_id])
        return [fitting[int(content_hash("principle", seed, ids), 16) % len(fitting)]]

    def read(self, call: Call, result: Answer, annotator_id: str) -> list[Judgement]:
        """One judgement, about the text shown first."""
        principle = by_principle(self.principles).get(call.principle or "")
        if call.request is None and applicable(principle, call.prompt):
            verdict = Verdict("tie", prob_first=0.5)
        else:
            verdict = self.asking.read_verdict(
                call, result, lambda answer: self._decide_pair(answer.label_probs), self._read_text
            )
        return [make_judgement(self, call, annotator_id, verdict)]

    def _read_text(self, said: Written) -> Verdict | None:
        forms = self.labels | {"abstain": self.asking.abstain}
        choice = choice_of(said, forms, self.asking.template.form)
        if choice is None or choice == "abstain":
            return None if choice is None else Verdict("abstain")
        return self._decide_pair({choice: 1.0})

    def _decide_pair(self, probs: Mapping[str, float]) -> Verdict | None:
        """The verdict of the labels' probabilities; None where neither answer has any."""
        tied = likeliest(probs) == "tie"
        prob = 0.5 if tied else label_share(probs.get("first", 0.0), probs.get("second", 0.0))
        if prob is None:
            return None
        return Verdict(
            "tie" if tied else "ok",
            prob_first=self.reading.prob(prob),
            distribution={"first": prob, "second": 1 - prob},
        )


def choice_of(said: Written, labels: Labels, form: Form | None = None) -> str | None:
    """The label chosen in an answer; see `Written.read`."""
    return said.read(FIELD, choice_reading(labels), form)


def presentations(
    order: Order, first: Completion, second: Completion, principle: str | None, seed: int
) -> list[tuple[Completion, Completion]]:
    """The orders in which a pair is shown."""
    if order == "both":
        return [(first, second), (second, first)]
    if order == "fixed":
        return [(first, second)]
    ids = sorted([first.completion_id, second.completion_id])
    swapped = int(content_hash("order", seed, ids, principle), 16) % 2
    low, high = sorted([first, second], key=lambda c: c.completion_id)
    return [(high, low) if swapped else (low, high)]


def _refuse_unused(
    spec: PairwiseJudge, principles: Sequence[Principle], template: Template
) -> None:
    """`shots` needs principles with examples, and a template that shows them; `preamble` one that
    has it."""
    for key, variable in (("shots", "examples"), ("preamble", "preamble")):
        given = getattr(spec, key) != type(spec).model_fields[key].default
        if given and variable not in template.variables:
            raise ConfigError(
                f"judge {spec.id}: `{key}` has no effect: the template does not use "
                f"{{{{ {variable} }}}}",
                template.name,
            )
    if spec.shots and not any(p.examples for p in principles):
        raise ConfigError(
            f"judge {spec.id}: `shots` needs a principle with `examples` in the constitution"
        )
