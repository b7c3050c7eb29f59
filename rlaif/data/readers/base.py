"""What the readers share: a format's description, checked cells, and the making of a pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair, SingleAnswer
from rlaif.core.records import (
    AnnotatorKind,
    Completion,
    Message,
    Prompt,
    content_hash,
    make_prompt,
    message_text,
)
from rlaif.data.rows import Row
from rlaif.data.turns import ROLES, brief, conversation, whole_text

T = TypeVar("T")
ASKING = ("user", "tool")
"""The roles after which an answer is due."""
Found = LabelledPair | SingleAnswer
ReadRow = Callable[[Row, str], Iterable[Found | ConfigError]]
"""The pairs of a row at a place. A fault in the list is that of one answer or label: the row's
other pairs stand."""


def _fits_always(_row: Row) -> bool:
    return True


@dataclass(frozen=True)
class Format:
    """One file format.

    `read` makes pairs of one row, or raises a ConfigError that begins with the row's place; a fault
    of a part of it stands among the pairs.
    Rows that follow one another with the same value under `group` are one, `{"rows": [...]}`.
    A file is of this format when its first row has all of `columns` and `fits` says so; `optional`
    columns (`*` for any text) are read too. `write` makes a row of a pair, or raises ValueError
    with the reason. `open` replaces `read` where rows need another file that lies beside theirs.
    `wrap` makes the whole file of the rows where it is one JSON value. `left` names what a row
    holds in its known columns that a pair does not.
    """

    about: str
    columns: tuple[str, ...]
    read: ReadRow
    optional: tuple[str, ...] = ()
    fits: Callable[[Row], bool] = _fits_always
    write: Callable[[LabelledPair], Row] | None = None
    open: Callable[[Path], ReadRow] | None = None
    wrap: Callable[[list[Row]], Row] | None = None
    left: str | None = None
    group: str | None = None

    def knows(self, column: str) -> bool:
        """Whether a column is read."""
        return any(fnmatchcase(column, pattern) for pattern in (*self.columns, *self.optional))


Label = tuple[Callable[[Row, str, str], float | None], Callable[[LabelledPair], Any]]
"""How a column says which answer is better: from a row, the column and a place to the probability
that the first is better; and from a pair to the cell, or a ValueError where it cannot be said."""


def describe_pairs(
    about: str,
    columns: Mapping[str, str],
    label: Label | None = None,
    annotator_kind: AnnotatorKind = "human",
    known_by: Sequence[str] = (),
    fits: Callable[[Row], bool] = _fits_always,
) -> Format:
    """A format whose rows are pairs of plain texts, read and written by a description.

    `columns` says what stands in each column, in the order in which a row is written: `prompt`; the
    answers, as `first`, `second` and a `label` or as `chosen` and `rejected`; and where a file has
    them `subset`, `first_author`, `second_author` (of the chosen answer and of the rejected one),
    `annotator` and the pair's `id`. `known_by` are columns that a row must have besides prompt,
    answers and label.
    """
    column_of = {part: column for column, part in columns.items()}
    sides = ("first", "second") if label else ("chosen", "rejected")

    def read_row(row: Row, place: str) -> Iterator[LabelledPair]:
        prompt = user(text_of(row, column_of["prompt"], place))
        first, second = (text_of(row, column_of[side], place) for side in sides)
        if label is None:
            refuse_equal(first, second, place)
        won = 1.0 if label is None else label[0](row, column_of["label"], place)
        subset, *authors, annotator = (
            name_of(row, column_of.get(part), place)
            for part in ("subset", "first_author", "second_author", "annotator")
        )
        yield make_pair(
            place,
            prompt,
            (first, second),
            won,
            subset=subset,
            authors=(authors[0], authors[1]),
            annotator=annotator,
            annotator_kind=annotator_kind,
        )

    def write_row(pair: LabelledPair) -> Row:
        first, second = (pair.first, pair.second) if label else chosen_first(pair)
        authors = (pair.authors or (None, None)) if label else better_authors(pair)
        parts = {
            "label": label[1](pair) if label else None,
            "prompt": single_turn(pair),
            sides[0]: first.text,
            sides[1]: second.text,
            "first_author": authors[0],
            "second_author": authors[1],
            "subset": pair.subset,
            "annotator": pair.annotator,
            "id": pair.pair_id,
        }
        return {column: parts[part] for column, part in columns.items()}

    needed = {"prompt", "label", *sides}
    known = [c for c, part in columns.items() if part in needed or c in known_by]
    others = [c for c, part in columns.items() if c not in known and part != "id"]
    return Format(about, tuple(known), read_row, tuple(others), fits, write_row)


def coded_label(meaning: Mapping[str, float | None]) -> Label:
    """A label whose cells are the numbers in `meaning`. A share of votes is written as its
    majority; a tie, or no label, can only be written where a number means a tie."""
    numbers = {label: int(number) for number, label in meaning.items()}

    def write_label(pair: LabelledPair) -> int | None:
        if 0.5 not in numbers:
            chosen_first(pair)
        if pair.label is None:
            return None
        return numbers[0.5 if pair.label == 0.5 else float(pair.label > 0.5)]

    return (lambda row, column, place: label_of(row, column, meaning, place)), write_label


def try_read(make: Callable[..., T], *given: Any, **named: Any) -> T | ConfigError:
    """What `make` gives, or its fault as a value: for one of several answers or labels of a row."""
    try:
        return make(*given, **named)
    except ConfigError as fault:
        return fault


def attempt_each(
    make: Callable[..., T], items: Iterable[Any], *given: Any
) -> tuple[list[T], list[ConfigError]]:
    """What `make` gives of each item, and the faults of the others."""
    made = [try_read(make, item, *given) for item in items]
    faults = [one for one in made if isinstance(one, ConfigError)]
    return [one for one in made if not isinstance(one, ConfigError)], faults


class RatedAnswer(NamedTuple):
    """An answer among several to one prompt. The better one is worth more."""

    text: str | Message
    worth: float | None
    author: str | None
    score: float | None = None


def compare_rated(first: RatedAnswer, second: RatedAnswer) -> dict[str, Any]:
    """What `make_pair` takes of two answers."""
    return {
        "answers": (first.text, second.text),
        "label": label_higher(first.worth, second.worth),
        "authors": (first.author, second.author),
        "scores": (first.score, second.score),
    }


def label_higher(first: float | None, second: float | None) -> float | None:
    """The label where the higher number is better; None where one is missing."""
    if first is None or second is None:
        return None
    return 0.5 if first == second else float(first > second)


def make_pair(
    place: str,
    prompt: Sequence[Message],
    answers: tuple[str | Message, str | Message],
    label: float | None,
    *,
    subset: str | None = None,
    authors: tuple[str | None, str | None] = (None, None),
    annotator: str | None = None,
    annotator_kind: AnnotatorKind = "human",
    scores: tuple[float | None, float | None] = (None, None),
    margin: float | None = None,
    source: str | None = None,
    weight: float = 1.0,
) -> LabelledPair:
    """A pair whose ids are hashes of its content. Raises ConfigError for text that nothing takes.

    `authors`, like `scores`, count only where both are known.
    """
    made = asked_prompt(prompt, place)
    first, second = (
        made_answer(made, answer, index, author or "", place)
        for index, (answer, author) in enumerate(zip(answers, authors, strict=True))
    )
    return LabelledPair(
        "l_" + content_hash(first.completion_id, second.completion_id),
        made,
        first,
        second,
        label,
        subset,
        (authors[0], authors[1]) if authors[0] and authors[1] else None,
        annotator,
        annotator_kind,
        place,
        None if scores[0] is None or scores[1] is None else (scores[0], scores[1]),
        margin,
        source,
        weight,
    )


def asked_prompt(turns: Sequence[Message], place: str) -> Prompt:
    """A prompt of the turns before an answer. Raises ConfigError where nothing is asked in them."""
    asked = list(turns)
    last = asked[-1] if asked else None
    if last is None or last["role"] not in ASKING or not last["content"].strip():
        said = "it has no turns" if last is None else f"it ends with {brief(last)}"
        raise ConfigError(
            f"{place}: the prompt must end with a user turn that has text in it; {said}"
        )
    strange = next((turn["role"] for turn in asked if turn["role"] not in ROLES), None)
    if strange is not None:
        raise ConfigError(f"{place}: role {brief(strange)}; system, user or assistant was expected")
    whole_text([turn["content"] for turn in asked], place)
    return make_prompt(asked, source=place.partition(":")[0].rsplit("/", 1)[-1])


def made_answer(
    prompt: Prompt, answer: str | Message, index: int, author: str, place: str
) -> Completion:
    """An answer in a file as a Completion. Raises ConfigError for text that nothing takes."""
    messages = assistant_turns(answer) if isinstance(answer, str) else [answer]
    whole_text([messages[0]["content"]], place)
    return Completion(
        answer_id(prompt.messages, messages),
        prompt.prompt_id,
        index,
        messages,
        author,
        "",
        {},
        "stop",
        digest=content_hash(message_text(messages[0])),
    )


def answer_id(prompt: Sequence[Message], answer: Sequence[Message]) -> str:
    """The id of an answer that was read from a file and not sampled."""
    return "x_" + content_hash(list(prompt), list(answer))


def user(text: str) -> list[Message]:
    """A prompt of one user turn."""
    return [{"role": "user", "content": text}]


def assistant_turns(text: str) -> list[Message]:
    """An answer."""
    return [{"role": "assistant", "content": text}]


def text_of(row: Row, key: str, place: str) -> str:
    """The text under `key`, which must be there; it may be empty. Raises ConfigError."""
    value = value_at(row, key)
    if not isinstance(value, str):
        shown = "missing" if value is None else f"{brief(value)}, not a text"
        raise ConfigError(f"{place}: {key} is {shown}; the row has {sorted(map(str, row))}")
    return value


def value_at(row: Any, path: str) -> Any:
    """What stands in a row under a column, or at a dotted path such as `info.post` or
    `answers.0.text`; None where there is nothing."""
    if isinstance(row, Mapping) and path in row:
        return row[path]
    first, dot, rest = path.partition(".")
    if not dot:
        inside = isinstance(row, list) and first.isdecimal() and int(first) < len(row)
        return row[int(first)] if inside else None
    value = value_at(row, first)
    return None if value is None else value_at(value, rest)


def name_of(row: Row, key: str | None, place: str) -> str | None:
    """A name or number under `key` as text; None where there is none. Raises ConfigError."""
    value = None if key is None else value_at(row, key)
    if is_missing(value) or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ConfigError(f"{place}: {key} is {brief(value)}; a name was expected")
    return str(value)


def list_of(value: Any, name: str, place: str) -> list[Any]:
    """A list. Raises ConfigError."""
    if not isinstance(value, list):
        raise ConfigError(f"{place}: {name} is {brief(value)}; a list was expected")
    return value


def object_of(value: Any, name: str, place: str) -> dict[str, Any]:
    """An object. Raises ConfigError."""
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: {name} is {brief(value)}; an object was expected")
    return value


def refuse_missing(lacking: Iterable[str], row: Row, place: str) -> None:
    """Raises ConfigError that names the cells that are missing or empty, where some are."""
    if names := ", ".join(lacking):
        raise ConfigError(f"{place}: {names} missing or empty; the row has {sorted(map(str, row))}")


def number_of(row: Row, key: str | None, place: str) -> float | None:
    """A finite number, or None where there is none (null or NaN). Raises ConfigError."""
    given = value = None if key is None else value_at(row, key)
    if is_missing(value):
        return None
    if isinstance(value, str):
        value = _parse_number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        raise ConfigError(f"{place}: {key} is {brief(given)}; a number was expected")
    return float(value)


def _parse_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number == number else None


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: null or NaN."""
    return value is None or (isinstance(value, float) and value != value)


def label_of(row: Row, key: str, meaning: Mapping[str, float | None], place: str) -> float | None:
    """The label that the value under `key` means; None for an empty cell. Raises ConfigError."""
    value = value_at(row, key)
    if is_missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if str(value).strip() not in meaning or isinstance(value, (dict, list)):
        expected = ", ".join(meaning)
        raise ConfigError(f"{place}: {key} is {brief(value)}; expected one of: {expected}")
    return meaning[str(value).strip()]


def turns(row: Row, key: str, role: str, place: str) -> list[Message]:
    """Text under `key` as one turn of `role`, or a list of turns. Raises ConfigError."""
    value = value_at(row, key)
    if value is None:
        raise ConfigError(f"{place}: {key} is missing; the row has {sorted(map(str, row))}")
    return conversation(value, role, key, place)


def one_answer(conversation: Sequence[Message], key: str, place: str) -> Message:
    """An answer that is one assistant turn. Raises ConfigError."""
    if len(conversation) != 1 or conversation[0]["role"] != "assistant":
        raise ConfigError(
            f"{place}: {key} has {len(conversation)} turns after what the two answers share; one "
            "assistant turn was expected"
        )
    return conversation[0]


Answer = TypeVar("Answer", str, Message)


def refuse_equal(chosen: Answer, rejected: Answer, place: str) -> tuple[Answer, Answer]:
    """The two answers, which must not be the same. Raises ConfigError."""
    if chosen == rejected:
        raise ConfigError(f"{place}: chosen and rejected are the same text")
    return chosen, rejected


def chosen_first(pair: LabelledPair) -> tuple[Completion, Completion]:
    """(chosen, rejected) of a pair that has a winner. Raises ValueError for ties and no label."""
    if pair.label is None:
        raise ValueError("nobody said which answer is better")
    if pair.label == 0.5:
        raise ValueError("a tie, and this format has only winners")
    return (pair.first, pair.second) if pair.label > 0.5 else (pair.second, pair.first)


def better_scores(pair: LabelledPair) -> tuple[float, float] | None:
    """The scores of (chosen, rejected) of a pair that has a winner, None where it has none."""
    assert pair.label is not None
    if pair.scores is None:
        return None
    return pair.scores if pair.label > 0.5 else (pair.scores[1], pair.scores[0])


def scores_or_votes(pair: LabelledPair) -> tuple[float, float]:
    """As `better_scores`; without scores, the probabilities that each answer is better: for formats
    that must have numbers."""
    assert pair.label is not None
    votes = max(pair.label, 1 - pair.label), min(pair.label, 1 - pair.label)
    return better_scores(pair) or votes


def better_margin(pair: LabelledPair) -> float:
    """By how much the better answer of a pair is better: as its file says, or the gap of what
    `scores_or_votes` gives."""
    above, below = scores_or_votes(pair)
    return above - below if pair.margin is None else pair.margin


def better_authors(pair: LabelledPair) -> tuple[str | None, str | None]:
    """Who wrote (chosen, rejected) of a pair that has a winner; None twice where that is unknown.
    Raises ValueError for ties and no label."""
    chosen, rejected = chosen_first(pair)
    return (chosen.model, rejected.model) if pair.authors else (None, None)


def whole_conversations(pair: LabelledPair) -> tuple[list[Message], list[Message]]:
    """The conversations that end with (chosen, rejected). Raises ValueError for ties and no
    label."""
    chosen, rejected = chosen_first(pair)
    prompt = pair.prompt.messages
    return [*prompt, *chosen.messages], [*prompt, *rejected.messages]


def single_turn(pair: LabelledPair) -> str:
    """The prompt as one text. Raises ValueError where it is a conversation."""
    if len(pair.prompt.messages) != 1 or pair.prompt.messages[0]["role"] != "user":
        raise ValueError("a conversation, and this format has single questions")
    return pair.prompt.messages[0]["content"]
