"""A checklist as a judge: explicit (each item decided alone) or implicit (all in one score).

After Rubrics as Rewards (2507.17746, section 3): the explicit score is sum w_j c_j / sum w_j; the
implicit one is a level from 1 to 10 given with all items in view. Items that a program can decide
are decided by it, beside those that a model decides (RLCF, 2507.18624). Items may differ by prompt,
and may be written by the judge's model, which then sees the prompt and no answer to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rlaif.config.base import StepId, Strict, hashed_keys
from rlaif.constitution.own_rules import code_of
from rlaif.constitution.rules import apply_check, validate_check
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement, Prompt, Status, content_hash
from rlaif.core.resources import find
from rlaif.core.yamlio import read_text, validate
from rlaif.engines.base import Capability, GenerateResult, Sampling
from rlaif.judges.base import Answered, Call, Verdict, call_id
from rlaif.judges.common import (
    JudgeInputs,
    VerdictJudge,
    hash_judge,
    judge_template,
    template_values,
    usable,
)
from rlaif.judges.composed import (
    annotators,
    asked_ids,
    completions_of,
    conclude_verdict,
    missing_status,
)
from rlaif.judges.jsontext import json_objects, member, the_object
from rlaif.judges.parsing import list_items, whole_lines
from rlaif.judges.questions import (
    AskingJudge,
    Labels,
    answer_schema,
    distinct_labels,
    make_asking,
    text_request,
)
from rlaif.judges.scored import level_forms, level_labels, read_mean_level
from rlaif.judges.templates import ITEM, ITEMS, WRITING, Template, load_template
from rlaif.judges.yes_no import read_yes_share

Category = Literal["essential", "important", "optional", "pitfall"]
LOW, HIGH = 1, 10
WRITING_STAGE = "items"
ITEM_SCHEMA = answer_schema(
    {"items": {"type": "array", "items": answer_schema({"kind": get_args(Category), "text": None})}}
)


class RubricItem(Strict):
    """One thing to look for. `check` is the name of a rule that decides it in place of a model."""

    text: Annotated[str, Field(min_length=1)]
    category: Category = "essential"
    weight: PositiveFloat | None = Field(None, description="Default: the category's weight.")
    check: str | None = None
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known_check(self) -> RubricItem:
        if self.check is not None:
            validate_check(self.check, self.params)
        elif self.params:
            raise ValueError("`params` belong to a `check`, and there is none")
        return self


class RubricWriting(Strict):
    """How the model writes a prompt's items: at most `most`, in `max_new_tokens` tokens."""

    most: PositiveInt = 8
    max_new_tokens: PositiveInt = 400
    template: str = "prompts/judges/rubric_write.j2"
    structured: bool = Field(False, description="Ask for a JSON answer, as judges can.")


class RubricJudge(VerdictJudge):
    """A checklist: items with weights, each decided alone or all weighed in one score.

    The items are those given, those of a file by prompt, or what the model writes for each prompt.
    """

    kind: Literal["rubric"]
    id: StepId = "rubric"
    items: list[RubricItem] | None = None
    items_file: str | None = Field(None, description="JSON lines: a `prompt` and its `items`.")
    generate: RubricWriting | None = None
    aggregate: Literal["explicit", "implicit"] = "explicit"
    category_weights: dict[Category, PositiveFloat] = {
        "essential": 1.0,
        "important": 0.7,
        "optional": 0.3,
        "pitfall": 0.8,
    }
    yes_labels: list[str] = ["Yes", " Yes", "yes", " yes"]
    no_labels: list[str] = ["No", " No", "no", " no"]

    @field_validator("category_weights")
    @classmethod
    def _all_categories(cls, weights: dict[str, float]) -> dict[str, float]:
        missing = sorted(set(get_args(Category)) - set(weights))
        if missing:
            raise ValueError(f"`category_weights` lacks {missing}")
        return weights

    @model_validator(mode="after")
    def _one_source(self) -> RubricJudge:
        if sum(x is not None for x in (self.items, self.items_file, self.generate)) != 1:
            raise ValueError("give exactly one of `items`, `items_file` and `generate`")
        if self.items is not None and not self.items:
            raise ValueError("`items` is empty")
        return self

    def rules(self, inputs: JudgeInputs) -> list[str]:
        """The rules that decide items."""
        by_question = self._read_by_question(inputs)
        given = [*(self.items or ()), *chain.from_iterable(by_question.values())]
        return [item.check for item in given if item.check is not None]

    def _read_by_question(self, inputs: JudgeInputs) -> dict[str, Items]:
        return read_items(find(self.items_file, inputs.beside)) if self.items_file else {}

    def build_judge(self, inputs: JudgeInputs) -> Rubric:
        """The judge of the spec. Raises ConfigError when its items cannot be used."""
        self.refuse_principles("a rubric judges by its items")
        explicit = self.aggregate == "explicit"
        by_question = self._read_by_question(inputs)
        given = [*(self.items or ()), *chain.from_iterable(by_question.values())]
        if not explicit and any(item.check for item in given):
            raise ConfigError(
                f"judge {self.id}: `check` decides one item; use `aggregate: explicit`, or drop it"
            )
        name, allowed, needed = ("rubric_item", ITEM, "item") if explicit else _ALL
        template = judge_template(
            self,
            inputs.beside,
            default=name,
            allowed=allowed,
            required=frozenset({"response", needed}),
        )
        labels: Labels = {"yes": tuple(self.yes_labels), "no": tuple(self.no_labels)}
        if not explicit:
            labels = level_forms(level_labels(LOW, HIGH))
        writer = None
        if self.generate is not None:
            writing = self.generate
            source = load_template(
                writing.template, WRITING, frozenset({"conversation"}), inputs.beside
            )
            sampling = Sampling(writing.max_new_tokens, 0.0)
            writer = Writer(source, sampling, writing.most, writing.structured)
        items = {q: [hashed_keys(i) for i in its] for q, its in by_question.items()}
        code = code_of(item.check for item in given if item.check)
        return Rubric(
            id=self.id,
            judge_hash=content_hash(
                hash_judge(self, (), template),
                items,
                writer.template.hash if writer else None,
                *code,
            ),
            asking=make_asking(self, template),
            weights=self.category_weights,
            explicit=explicit,
            labels=distinct_labels(self, labels),
            common=tuple(self.items) if self.items is not None else None,
            by_question=by_question,
            writer=writer,
        )


Items = tuple[RubricItem, ...]


@dataclass(frozen=True, slots=True)
class Writer:
    """How a prompt's items are written."""

    template: Template
    sampling: Sampling
    most: int
    structured: bool


@dataclass(frozen=True, slots=True)
class Rubric(AskingJudge):
    """`score` is on [0, 1]; `distribution` holds each item's value. A prompt without items is
    not_applicable; items that could not be written leave its answers unparsed."""

    weights: Mapping[Category, float]
    explicit: bool
    labels: Labels
    common: Items | None
    by_question: Mapping[str, Items]
    writer: Writer | None
    comparative: bool = False

    @property
    def roles(self) -> Mapping[str, frozenset[Capability]]:
        """One model."""
        return {"by": self.needs}

    @property
    def needs(self) -> frozenset[Capability]:
        """Label probabilities, and text where items are written."""
        return self.asking.needs | ({"generate"} if self.writer else set())

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        """One call that writes the items, or the calls about those that are known."""
        shown = usable(completions)
        if self.writer is None or not shown:
            return self._make_calls(prompt, shown, self._known_items(prompt), seed)
        # The prompt alone decides the id: the same items for whatever answers are judged.
        name = "c_" + content_hash(self.judge_hash, WRITING_STAGE, prompt.prompt_id)
        writer, schema = self.writer, ITEM_SCHEMA if self.writer.structured else None
        values = template_values(prompt, [], seed, most=writer.most, structured=writer.structured)
        request = text_request(name, writer.template, values, writer.sampling, seed, schema)
        used = writer.template.hash
        return [Call(name, prompt, tuple(shown), WRITING_STAGE, 0, request, template_hash=used)]

    def _known_items(self, prompt: Prompt) -> Items:
        return self.by_question.get(prompt.question, ()) if self.common is None else self.common

    def _read_items(self, calls: Sequence[Call], answers: Mapping[str, Answered]) -> Items:
        """The items of a prompt, from the answer to the call that wrote them."""
        answer = answers[calls[0].call_id].answer
        if self.writer is None or not isinstance(answer, GenerateResult):
            return ()
        known = get_args(Category)
        made = [
            # A kind that is none of the four is a part of nothing known: the middle one.
            RubricItem.model_validate({"text": t, "category": k if k in known else "important"})
            for k, t in list_items(in_lines(answer.text, answer.finish_reason == "length"))
        ]
        return tuple(made[: self.writer.most])

    def _make_calls(
        self, prompt: Prompt, shown: Sequence[Completion], items: Items, seed: int
    ) -> list[Call]:
        calls = []
        for c in shown:
            overall = Call(call_id(self.judge_hash, [c], None), prompt, (c,))
            if not items:
                calls.append(overall)
            elif not self.explicit:
                values = template_values(
                    prompt,
                    [c],
                    seed,
                    low=LOW,
                    high=HIGH,
                    levels=[(label, level) for level, label in level_labels(LOW, HIGH).items()],
                    items=[(item.text, self._weight_of(item)) for item in items],
                )
                calls.append(self.asking.ask(overall, values, self.labels, seed))
            for number, item in enumerate(items if self.explicit else ()):
                name = call_id(self.judge_hash, [c], item.text, number)
                call = Call(name, prompt, (c,), item.text, number)
                if item.check is None:
                    values = template_values(prompt, [c], seed, item=item.text)
                    call = self.asking.ask(call, values, self.labels, seed)
                calls.append(call)
        return calls

    def _weight_of(self, item: RubricItem) -> float:
        return self.weights[item.category] if item.weight is None else item.weight

    def follow(
        self, calls: Sequence[Call], answers: Mapping[str, Answered], seed: int
    ) -> list[Call]:
        """The calls about the items, once these are written."""
        if self.writer is None or len(calls) != 1 or calls[0].principle != WRITING_STAGE:
            return []
        items = self._read_items(calls, answers)
        return self._make_calls(calls[0].prompt, calls[0].shown, items, seed) if items else []

    def most_calls(self, calls: Sequence[Call]) -> int:
        """The calls as they are, or one that writes the items and those about the most items."""
        if self.writer is None:
            return sum(call.request is not None for call in calls)
        each = self.writer.most if self.explicit else 1
        return sum(1 + each * len(call.shown) for call in calls)

    def conclude(self, calls: Sequence[Call], answers: Mapping[str, Answered]) -> list[Judgement]:
        """One judgement per completion."""
        if not calls:
            return []
        wrote = self.writer is not None
        items = self._read_items(calls, answers) if wrote else self._known_items(calls[0].prompt)
        about = calls[1:] if wrote else calls
        if not items:
            raw = answers[calls[0].call_id].answer if wrote else None
            text = raw.text if isinstance(raw, GenerateResult) else None
            status: Status = "unparsed" if text else "failed" if wrote else "not_applicable"
            who, verdict = annotators(calls, answers, self.id), Verdict(status, raw=text)
            return [conclude_verdict(self, calls, [c], who, verdict) for c in completions_of(calls)]
        weigh = self._weigh_items if self.explicit else self._read_overall
        found = []
        for completion in completions_of(calls):
            own = [c for c in about if c.shown[0].completion_id == completion.completion_id]
            # The answer that wrote the items is behind every verdict on them.
            behind = [*(c.call_id for c in calls[:1] if wrote), *asked_ids(own)]
            who, verdict = annotators(own, answers, self.id), weigh(items, own, answers)
            found.append(conclude_verdict(self, own, [completion], who, verdict, rests_on=behind))
        return found

    def _weigh_items(
        self, items: Items, own: Sequence[Call], answers: Mapping[str, Answered]
    ) -> Verdict:
        values: dict[str, float] = {}
        missing: list[Status] = []
        total = 0.0
        for item, call in zip(items, own, strict=True):
            if item.check is None:
                answer = answers[call.call_id].answer
                decided = self.asking.read_verdict(call, answer, read_yes_share)
            else:
                value = apply_check(item.check, item.params, call.prompt, call.shown[0].text)
                decided = Verdict("ok" if value is not None else "not_applicable", value)
            if decided.score is not None:
                values[item.text] = decided.score
                total += self._weight_of(item)
            elif decided.status != "not_applicable":
                missing.append(decided.status)
        if missing or not values:
            return Verdict(missing_status(missing) if missing else "not_applicable")
        score = sum(self._weight_of(i) * values[i.text] for i in items if i.text in values) / total
        return Verdict("ok", min(1.0, max(0.0, score)), distribution=values)

    def _read_overall(
        self, items: Items, own: Sequence[Call], answers: Mapping[str, Answered]
    ) -> Verdict:
        answer = answers[own[0].call_id].answer
        read = self.asking.read_verdict(own[0], answer, lambda a: read_mean_level(a, LOW, HIGH))
        if read.score is None or read.label_mass is None:
            return Verdict(read.status)
        return Verdict("ok", read.score, distribution={"label_mass": read.label_mass})


def in_lines(text: str, cut: bool = False) -> str:
    """Written items as the lines of a list; a JSON answer has them under `items`. An item that a
    limit `cut` is none."""
    found = the_object(json_objects(text), "items")
    if found is None:
        return whole_lines(text, cut)
    rows = member(found, "items")
    if not isinstance(rows, list):
        return ""
    return "\n".join(f"- [{r.get('kind')}] {r.get('text')}" for r in rows if isinstance(r, dict))


class _Row(Strict):
    prompt: str
    items: list[RubricItem]


def read_items(path: Path) -> dict[str, Items]:
    """The items of each prompt, by its question, from JSON lines {prompt, items: [{text, ...}]}.

    Raises ConfigError with the line of a row that cannot be read.
    """
    found: dict[str, Items] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"no JSON: {error}", path, number) from None
        row = validate(_Row, data, {(): number}, path)
        if row.prompt in found:
            raise ConfigError("this prompt has items already; keep one row", path, number)
        found[row.prompt] = tuple(row.items)
    if not found:
        raise ConfigError("no rows: expected JSON lines with `prompt` and `items`", path)
    return found


_ALL = ("rubric_all", ITEMS, "items")
