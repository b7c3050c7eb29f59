"""Anyone's answers: rows of `prompt` and `completion`, or of `messages`, as prompts and completions
that can be judged and evaluated without having been sampled here.

Ids are hashes of content: neither the file's name nor the order of its rows changes one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from msgspec import structs

from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Message, Prompt, content_hash
from rlaif.data.readers.base import asked_prompt, made_answer, name_of
from rlaif.data.readers.singles import ANSWERS, CONVERSATIONS, split_last_turn
from rlaif.data.rows import Row, file_rows
from rlaif.data.turns import NAMES, brief, conversation, parse_json, read_asked, with_system

OWN = ({"completion_id", "prompt_id"}, {"judgement_id"}, {"preference_id"})
"""Columns that rows of our own files of records have."""
WANTED = "`prompt` and `completion`, or `messages` that end with an assistant turn"


@dataclass(frozen=True)
class GivenAnswers:
    """The different prompts of a file, and every answer, both by id."""

    prompts: list[Prompt]
    completions: list[Completion]


def holds_answers(path: Path) -> bool:
    """Whether the rows of a file are answers beside their prompts, and no records of ours; its
    first row says. Raises ConfigError where the file cannot be read."""
    return _kind_of(path) == "answers"


def holds_records(path: Path) -> bool:
    """Whether the rows of a file are records of ours. Raises ConfigError where it cannot be
    read."""
    return _kind_of(path) == "records"


def _kind_of(path: Path) -> str | None:
    head = None if path.is_dir() else next(file_rows(path), None)
    if head is None:
        return None
    columns = head[1].keys()
    completion, *others = OWN
    # A completion of ours holds no prompt, and others call columns as they like.
    own = completion <= columns and not columns & {"prompt", *ANSWERS}
    return "records" if own or any(keys <= columns for keys in others) else "answers"


def read_given(path: Path) -> GivenAnswers:
    """The answers of a file (JSONL, JSON, CSV or Parquet). Raises ConfigError, which names the row
    and the column, for a row that has none, and where rows say different things of one prompt."""
    status = path.stat()
    return _read_file(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read_file(path: Path, changed: int, size: int) -> GivenAnswers:
    prompts: dict[str, Prompt] = {}
    places: dict[str, str] = {}
    answers: list[Completion] = []
    for place, row in file_rows(path):
        asked, said = _read_row(row, place)
        prompt = structs.replace(asked_prompt(asked, place), source="")
        prompt = _describe(prompt, row, place)
        name = prompt.prompt_id
        first = places.setdefault(name, place)
        prompts[name] = _unite(prompts.get(name, prompt), prompt, place, first)
        answers.append(made_answer(prompt, said, 0, "", place))
    named = [p if p.source else structs.replace(p, source=path.name) for p in prompts.values()]
    return GivenAnswers(sorted(named, key=lambda p: p.prompt_id), _number(answers))


def _read_row(row: Row, place: str) -> tuple[list[Message], Message]:
    """What was asked, and the answer. Raises ConfigError."""
    talk = next((key for key in CONVERSATIONS if row.get(key) is not None), None)
    answer = next((key for key in ANSWERS if row.get(key) is not None), None)
    if answer is None and talk is None:
        raise _fault(row, place, "it has no answer")
    if answer is None:
        assert talk is not None, "there is an answer or a conversation"
        turns = conversation(_turns(row[talk]), "user", talk, place)
        asked, said = split_last_turn(turns, talk, place)
    else:
        key = "prompt" if row.get("prompt") is not None else talk
        if key is None:
            raise _fault(row, place, "its prompt is missing")
        asked = read_asked(_turns(row[key]), key, place)
        turns = conversation(_turns(row[answer]), "assistant", answer, place)
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise ConfigError(
                f"{place}: {answer} is {brief(row[answer])}; a text or one assistant turn was "
                "expected. Earlier turns belong into prompt."
            )
        said = turns[0]
    return with_system(asked, name_of(row, "system", place)), said


def _fault(row: Row, place: str, what: str) -> ConfigError:
    has = ", ".join(sorted(map(str, row)))
    return ConfigError(
        f"{place}: not a row of completions: {what}. {WANTED} were expected; the row has: {has}"
    )


def _turns(value: Any) -> Any:
    """A list of turns that a cell holds as JSON; any other value as it is."""
    found = parse_json(value, (list,))
    keys = {role for role, _ in NAMES}
    are_turns = isinstance(found, list) and all(
        isinstance(turn, Mapping) and keys & turn.keys() for turn in found
    )
    return found if are_turns and found else value


def _describe(prompt: Prompt, row: Row, place: str) -> Prompt:
    """The prompt with the row's reference, tags and source."""
    reference = row.get("reference")
    if not isinstance(reference, str | None):
        raise ConfigError(f"{place}: reference is {brief(reference)}; a text was expected")
    tags = parse_json(row.get("tags"), (list,)) or []
    tags = [tags] if isinstance(tags, str) else tags
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ConfigError(f"{place}: tags is {brief(row['tags'])}; a list of texts was expected")
    source = name_of(row, "source", place) or ""
    return structs.replace(prompt, reference=reference, tags=list(tags), source=source)


def _unite(known: Prompt, new: Prompt, place: str, first: str) -> Prompt:
    """A prompt as two rows describe it: what one leaves out, the other says."""
    parts: dict[str, Any] = {}
    for key in ("reference", "tags", "source"):
        old, now = getattr(known, key), getattr(new, key)
        said = [sorted(set(value)) if key == "tags" else value for value in (old, now) if value]
        if len(said) == 2 and said[0] != said[1]:
            raise ConfigError(
                f"{place}: {key} is {brief(now)}, and {brief(old)} at {first}, which has the same "
                "prompt; give both rows the same"
            )
        parts[key] = old or now
    return structs.replace(known, **parts)


def _number(answers: list[Completion]) -> list[Completion]:
    """The answers with ids of their own, the same text of another file included: comparisons of two
    files have it on both sides. A prompt's answers are numbered in the order of their ids."""
    whole = content_hash(sorted(answer.completion_id for answer in answers))
    alike: Counter[str] = Counter()
    made: dict[str, list[Completion]] = defaultdict(list)
    for answer in answers:
        name = answer.completion_id
        alike[name] += 1
        own = "x_" + content_hash(name, alike[name], whole)
        made[answer.prompt_id].append(structs.replace(answer, completion_id=own))
    return [
        structs.replace(answer, sample_index=index)
        for prompt in sorted(made)
        for index, answer in enumerate(sorted(made[prompt], key=lambda a: a.completion_id))
    ]
