"""Any table by a map of its columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Any

from rlaif.config.columns import LabelColumns, RankedAnswers
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair, SingleAnswer
from rlaif.core.records import Message
from rlaif.data.readers.base import (
    Format,
    RatedAnswer,
    attempt_each,
    compare_rated,
    is_missing,
    label_higher,
    label_of,
    make_pair,
    name_of,
    number_of,
    object_of,
    one_answer,
    refuse_missing,
    try_read,
    turns,
    value_at,
)
from rlaif.data.readers.singles import make_single, read_turn_alone, split_last_turn
from rlaif.data.readers.trl import asked_and_answered, part_conversations, split_conversations
from rlaif.data.rows import Row
from rlaif.data.turns import brief, read_asked, with_system

_PLACE = re.compile(r"\{([^{}]+)\}")
TRUE = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


def format_of_map(
    columns: LabelColumns,
    about: str = "a column map",
    needed: Sequence[str] = (),
    fits: Callable[[Row], bool] = lambda _row: True,
) -> Format:
    """The format that a column map describes. `needed` are the columns that a file is known by,
    where they are more than those of the map. Raises ConfigError for a map of raw texts."""
    if columns.form == "texts":
        raise ConfigError(
            "columns: `text` names raw texts, which only a step `load: {type: text}` reads"
        )
    if columns.answer is not None:
        return _format_of_answers(columns, columns.answer, about)
    ranked = columns.ranked
    answers = [] if ranked else list(columns.answers)
    own = [name for name in (*_prompt_places(columns.prompt), *answers) if name]
    if ranked is not None:
        own.append(ranked.answers or ranked.text)
    read = partial(_read_ranked, columns, ranked) if ranked else partial(_read_pair, columns)
    return Format(
        about,
        tuple(dict.fromkeys(_column_of(name) for name in (*needed, *own))),
        read,
        optional=tuple(
            c for name in (*own, *_other_columns(columns)) for c in (name, _column_of(name))
        ),
        fits=fits,
        group=None if ranked is None else ranked.group,
    )


def _format_of_answers(columns: LabelColumns, answer: str, about: str) -> Format:
    """The format of demonstrations, each row one answer or a whole conversation."""
    own = (*_prompt_places(columns.prompt), answer)
    others = [name for name in (*own, columns.system) if name]
    return Format(
        about,
        tuple(dict.fromkeys(map(_column_of, own))),
        partial(_read_answer, columns, answer),
        optional=tuple(c for name in others for c in (name, _column_of(name))),
    )


def _read_answer(
    columns: LabelColumns, answer: str, row: Row, place: str
) -> Iterator[SingleAnswer]:
    needed = (*_prompt_places(columns.prompt), answer)
    refuse_missing([name for name in needed if is_missing(value_at(row, name))], row, place)
    system = name_of(row, columns.system, place)
    if columns.prompt is None:
        prompt, found = split_last_turn(turns(row, answer, "user", place), answer, place)
    else:
        prompt = _read_prompt(columns.prompt, row, place)
        found = read_turn_alone(row, answer, place)
    yield make_single(row, with_system(prompt, system), found, True, place)


def _other_columns(columns: LabelColumns) -> list[str]:
    """Every column of a map that is no prompt and no answer."""
    found = [
        getattr(columns, name)
        for name in (
            *("system", "label", "strength", "first_score", "second_score", "margin", "subset"),
            *("first_author", "second_author", "annotator"),
        )
    ]
    if columns.winners is not None:
        found += [columns.winners.first, columns.winners.second, columns.winners.tie]
    if columns.ranked is not None and columns.ranked.group is not None:
        inside = columns.ranked
        found += [inside.group, inside.rank, inside.score, inside.author]
    return [name for name in found if name is not None]


def _column_of(path: str) -> str:
    """The column that a dotted path begins in."""
    return path.partition(".")[0]


def _prompt_places(prompt: str | None) -> list[str]:
    """The columns that make the prompt."""
    return [] if prompt is None else _PLACE.findall(prompt) or [prompt]


def _read_pair(columns: LabelColumns, row: Row, place: str) -> Iterator[LabelledPair]:
    first, second = columns.answers
    needed = (*_prompt_places(columns.prompt), first, second)
    refuse_missing([name for name in needed if is_missing(value_at(row, name))], row, place)
    sides = (turns(row, first, "assistant", place), turns(row, second, "assistant", place))
    prompt, answers = _read_texts(columns, row, sides, place)
    scores = (
        number_of(row, columns.first_score, place),
        number_of(row, columns.second_score, place),
    )
    label, margin = _read_label(row, columns, scores, place)
    yield make_pair(
        place,
        with_system(prompt, name_of(row, columns.system, place)),
        answers,
        label,
        subset=name_of(row, columns.subset, place),
        authors=(
            name_of(row, columns.first_author, place),
            name_of(row, columns.second_author, place),
        ),
        annotator=name_of(row, columns.annotator, place),
        annotator_kind=columns.annotator_kind,
        scores=scores,
        margin=margin,
    )


def _read_texts(
    columns: LabelColumns, row: Row, sides: tuple[list[Message], list[Message]], place: str
) -> tuple[list[Message], tuple[Message, Message]]:
    """(prompt, the two answers). A file that names the better answer has no two that are alike."""
    if columns.prompt is None and columns.chosen is not None:
        return split_conversations(*sides, place)
    if columns.prompt is None:
        return part_conversations(sides, columns.answers, place)
    prompt = _read_prompt(columns.prompt, row, place)
    if columns.chosen is not None:
        return asked_and_answered(prompt, sides, place)
    first, second = columns.answers
    return prompt, (one_answer(sides[0], first, place), one_answer(sides[1], second, place))


def _read_prompt(name: str, row: Row, place: str) -> list[Message]:
    if not _PLACE.search(name):
        return read_asked(value_at(row, name), name, place)
    text = _PLACE.sub(lambda found: _read_text(row, found[1], place), name)
    return [{"role": "user", "content": text}]


def _read_text(row: Row, name: str, place: str) -> str:
    value = value_at(row, name)
    if is_missing(value) or isinstance(value, (dict, list)):
        raise ConfigError(f"{place}: {name} is {brief(value)}; a text was expected")
    return str(value)


def _read_label(
    row: Row, columns: LabelColumns, scores: tuple[float | None, float | None], place: str
) -> tuple[float | None, float | None]:
    """The probability that the first answer is better, and by how much the better one is."""
    margin = number_of(row, columns.margin, place)
    if columns.chosen is not None:
        return 1.0, margin
    if columns.strength is not None:
        strength = number_of(row, columns.strength, place)
        if strength is None:
            return None, margin
        return label_higher(0.0, strength), abs(strength) if margin is None else margin
    if columns.winners is not None:
        return _read_winner(row, columns, place), margin
    if columns.label is None:
        return label_higher(*scores), margin
    return _read_label_column(row, columns, columns.label, place), margin


def _read_label_column(row: Row, columns: LabelColumns, key: str, place: str) -> float | None:
    if key not in row and value_at(row, key) is None:
        raise ConfigError(f"{place}: {key} missing; the row has {sorted(map(str, row))}")
    if columns.labels is not None:
        return label_of(row, key, columns.labels.meaning(), place)
    share = number_of(row, key, place)
    if share is not None and not 0 <= share <= 1:
        raise ConfigError(
            f"{place}: {key} is {brief(value_at(row, key))}; without `labels` it must be the "
            "probability that the first answer is better, from 0 to 1"
        )
    return share


def _read_winner(row: Row, columns: LabelColumns, place: str) -> float | None:
    """What the columns of winners say; None where none of them is true."""
    assert columns.winners is not None
    names = {columns.winners.first: 1.0, columns.winners.second: 0.0}
    if columns.winners.tie is not None:
        names[columns.winners.tie] = 0.5
    said = [label for name, label in names.items() if _read_truth(row, name, place)]
    if len(said) > 1:
        raise ConfigError(f"{place}: more than one of {', '.join(names)} is true")
    return said[0] if said else None


def _read_truth(row: Row, name: str, place: str) -> bool:
    value = value_at(row, name)
    if is_missing(value):
        return False
    found = TRUE.get(str(value).strip().lower())
    if found is None:
        raise ConfigError(f"{place}: {name} is {brief(value)}; true or false (1 or 0) was expected")
    return found


def _read_ranked(
    columns: LabelColumns, ranked: RankedAnswers, row: Row, place: str
) -> Iterator[LabelledPair | ConfigError]:
    """Every two answers to the prompt, in the order of the file."""
    given = row.get("rows") if ranked.answers is None else value_at(row, ranked.answers)
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{place}: {ranked.answers} is {brief(given)}; a list was expected")
    about = given[0] if ranked.answers is None else row
    assert columns.prompt is not None
    prompt = with_system(
        _read_prompt(columns.prompt, about, place), name_of(about, columns.system, place)
    )
    answers, faults = attempt_each(_rate_answer, enumerate(given), ranked, place)
    yield from faults
    if len(given) < 2:
        raise ConfigError(f"{place}: {len(given)} answers to the prompt; two at least make a pair")
    for first, second in combinations(answers, 2):
        yield try_read(
            make_pair,
            place,
            prompt,
            **compare_rated(first, second),
            subset=name_of(about, columns.subset, place),
            annotator=name_of(about, columns.annotator, place),
            annotator_kind=columns.annotator_kind,
        )


def _rate_answer(numbered: tuple[int, Any], ranked: RankedAnswers, place: str) -> RatedAnswer:
    number, item = numbered
    object_of(item, f"answer {number}", place)
    message = one_answer(turns(item, ranked.text, "assistant", place), ranked.text, place)
    rank, score = number_of(item, ranked.rank, place), number_of(item, ranked.score, place)
    worth = score if rank is None else -rank
    return RatedAnswer(message, worth, name_of(item, ranked.author, place), score)
