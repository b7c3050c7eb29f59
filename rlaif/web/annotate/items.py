"""What people vote on: the pairs or answers of a file, gold questions, and the draw under a budget.
`run_items` reads run folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from rlaif.constitution.model import Principle
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair, SingleAnswer
from rlaif.core.records import AnnotatorKind, Completion, Message, Preference, Prompt
from rlaif.data.loaded import record_of
from rlaif.data.readers import read_answers
from rlaif.data.rows import file_rows
from rlaif.data.votes import ItemJudge, VoteItem
from rlaif.metrics.active_choice import inclusion_probabilities, is_drawn, item_uncertainty

OWN_PAIRS = {"preference_id", "chosen_id", "rejected_id"}
"""Columns of the records that the pair step writes."""
LABELS = {1.0: "a", 0.0: "b", 0.5: "tie"}


@dataclass(frozen=True)
class Answer:
    """An answer to vote on."""

    answer_id: str
    messages: list[Message]


def pair_item(
    item_id: str, prompt: Prompt, a: Answer, b: Answer, judges: Sequence[ItemJudge]
) -> VoteItem:
    """A pair, and how uncertain the judges are of it; people's labels count for nothing in that."""
    doubts = [
        (judge.judge, judge.prob_a)
        for judge in judges
        if judge.prob_a is not None and judge.annotator_kind != "human"
    ]
    return VoteItem(
        item_id=item_id,
        kind="pair",
        prompt_id=prompt.prompt_id,
        prompt=prompt.messages,
        a=a.messages,
        a_id=a.answer_id,
        b=b.messages,
        b_id=b.answer_id,
        judges=list(judges),
        uncertainty=item_uncertainty(doubts),
        tags=prompt.tags,
    )


def answer_item(prompt: Prompt, answer: Answer, judges: Sequence[ItemJudge]) -> VoteItem:
    """A single answer. Judges are uncertain of it as far as their scores lie apart; one judge's
    score says nothing of that."""
    scores = [judge.score for judge in judges if judge.score is not None]
    return VoteItem(
        item_id=answer.answer_id,
        kind="rating",
        prompt_id=prompt.prompt_id,
        prompt=prompt.messages,
        a=answer.messages,
        a_id=answer.answer_id,
        judges=list(judges),
        uncertainty=max(scores) - min(scores) if len(scores) > 1 else None,
        tags=prompt.tags,
    )


def file_items(path: Path, rate: bool, from_: str | None = None) -> list[VoteItem]:
    """The pairs of a file in any of the known formats, or with `rate` its answers, each once.
    Raises ConfigError."""
    head = None if path.is_dir() else next(file_rows(path), None)
    if from_ is None and head is not None and head[1].keys() >= OWN_PAIRS:
        return unique_items(_record_items(path, rate))
    return unique_items(_read_items(path, rate, from_))


def unique_items(items: Iterable[VoteItem]) -> list[VoteItem]:
    """The items, each id once."""
    return list({item.item_id: item for item in items}.values())


def _record_items(path: Path, rate: bool) -> Iterator[VoteItem]:
    """The pairs of a file of preferences, which say who compared them in `source`."""
    for place, row in file_rows(path):
        pair = record_of(Preference, row, place)
        prompt = Prompt(pair.prompt_id, pair.prompt)
        a, b = Answer(pair.chosen_id, pair.chosen), Answer(pair.rejected_id, pair.rejected)
        if rate:
            yield from (answer_item(prompt, side, []) for side in (a, b) if side.messages)
        elif pair.paired:
            said = judge_verdict(pair.source, pair.source, "ai", pair.prob)
            yield pair_item(pair.preference_id, prompt, a, b, [said])


def judge_verdict(judge: str, annotator: str, kind: AnnotatorKind, prob_a: float) -> ItemJudge:
    """A judge's verdict on a pair."""
    return ItemJudge(
        judge=judge,
        annotator=annotator,
        annotator_kind=kind,
        prob_a=prob_a,
        uncertainty=1.0 - abs(2.0 * prob_a - 1.0),
    )


def _read_items(path: Path, rate: bool, from_: str | None) -> Iterator[VoteItem]:
    for found in read_answers(path, from_):
        if isinstance(found, SingleAnswer):
            if not rate:
                raise ConfigError(
                    f"{found.place}: an answer that stands alone, and two to one prompt were "
                    "expected; --rate asks people for ratings of single answers"
                )
            yield answer_item(found.prompt, _answer_of(found.answer), [])
            continue
        a, b = _answer_of(found.first), _answer_of(found.second)
        if rate:
            yield from (answer_item(found.prompt, side, []) for side in (a, b))
        else:
            yield pair_item(found.pair_id, found.prompt, a, b, _label_of(found))


def _answer_of(completion: Completion) -> Answer:
    return Answer(completion.completion_id, completion.messages)


def _label_of(pair: LabelledPair) -> list[ItemJudge]:
    """The file's own label as the verdict of its annotator."""
    if pair.label is None:
        return []
    name = pair.annotator or "label"
    return [judge_verdict(name, name, pair.annotator_kind, pair.label)]


def load_gold(path: Path, rate: bool) -> list[VoteItem]:
    """The pairs of a file with the labels that its annotators gave them as known answers. Raises
    ConfigError for ratings, which no format has a level for, and where no pair has a label."""
    if rate:
        raise ConfigError("--gold takes pairs, and --rate asks for ratings of single answers", path)
    items = [
        structs.replace(item, gold=answer, judges=[])
        for item in file_items(path, rate=False)
        if (answer := known_answer(item.judges)) is not None
    ]
    if not items:
        raise ConfigError("no pair has a label; gold questions need known answers", path)
    return items


def known_answer(labels: Sequence[ItemJudge]) -> str | None:
    """What the first label that is a, b or a tie says; None without one."""
    return next((LABELS[j.prob_a] for j in labels if j.prob_a in LABELS), None)


def mark_gold(items: Sequence[VoteItem], share: float, seed: int) -> list[VoteItem]:
    """The items, a share of those with a label of people drawn by seed and id as gold questions.
    Raises ConfigError where none is."""
    marked = []
    for item in items:
        answer = known_answer([j for j in item.judges if j.annotator_kind == "human"])
        if answer is not None and is_drawn("gold " + item.item_id, share, seed):
            others = [j for j in item.judges if j.annotator_kind != "human"]
            item = structs.replace(item, gold=answer, judges=others)
        marked.append(item)
    if not any(item.gold for item in marked):
        raise ConfigError(
            "--gold-share: no pair with a label by people was drawn, so no answer is known; give a "
            "file of labelled pairs with --gold"
        )
    return marked


def draw_items(items: Sequence[VoteItem], budget: int | None, seed: int) -> list[VoteItem]:
    """The items that are drawn under a budget, each with its probability; all of them without one.
    Gold questions are not drawn. An item that no judge said anything of counts as uncertain (u =
    1). Raises ConfigError where the draw is empty."""
    gold = [item for item in items if item.gold is not None]
    others = [item for item in items if item.gold is None]
    if budget is None or not others:
        return [*gold, *others]
    doubts = [1.0 if item.uncertainty is None else item.uncertainty for item in others]
    drawn = [
        structs.replace(item, probability=float(chance))
        for item, chance in zip(others, inclusion_probabilities(doubts, budget), strict=True)
        if is_drawn(item.item_id, float(chance), seed)
    ]
    if not drawn:
        raise ConfigError(f"--budget {budget}: no item was drawn; give a larger budget")
    return [*gold, *drawn]


def apply_principles(items: Iterable[VoteItem], asked: Sequence[Principle]) -> list[VoteItem]:
    """The items with the ids of the principles that apply to their prompts."""
    return [
        structs.replace(item, principles=[p.id for p in asked if p.applies(_prompt_of(item))])
        for item in items
    ]


def _prompt_of(item: VoteItem) -> Prompt:
    return Prompt(item.prompt_id, item.prompt, tags=item.tags)
