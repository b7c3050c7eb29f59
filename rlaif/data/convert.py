"""From one format of labelled pairs to another, saying what was lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.config.columns import LabelColumns
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Completion, canonical_json
from rlaif.core.store import write_atomic
from rlaif.data.readers import FORMATS, OnError, format_named, nothing_read, read_labelled
from rlaif.data.readers.base import Format
from rlaif.data.rows import Row, Source, raise_fault, write_rows


@dataclass
class Conversion:
    """What a conversion did.

    `lost` counts the pairs that read otherwise from the new file, by what differs. `dropped` names
    what the old format holds and a pair does not: columns, and parts of columns.
    """

    format: str
    rows: int = 0
    written: int = 0
    skipped: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def convert_pairs(
    source: Source,
    out: Path,
    to: str,
    from_: str | None = None,
    columns: LabelColumns | None = None,
    on_error: OnError = "fail",
) -> Conversion:
    """Write the labelled pairs of `source` to `out` in format `to`.

    Every row is read again as it was written, and what differs is counted as lost. A row that
    cannot be read, or that `to` cannot hold, raises ConfigError with file and row, or is skipped
    and reported. Where none is left, it raises. Nothing is written when it raises.
    """
    target = format_named(to)
    if target.write is None:
        known = ", ".join(name for name, known in FORMATS.items() if known.write is not None)
        raise ConfigError(f"format {to!r} is only read; these are written: {known}")
    if target.wrap is not None and out.suffix != ".json":
        raise ConfigError(f"{to} is one JSON object; the file must end in .json", out)
    if isinstance(source, Path) and out.exists() and out.samefile(source):
        raise ConfigError("the new file is the old one; choose another name", out)
    reading = read_labelled(source, from_, columns, on_error)
    found = Conversion(reading.name, skipped=reading.skipped)

    def rows() -> Iterator[Row]:
        for pair in reading:
            try:
                row, back = written(pair, target, to)
            except ConfigError as fault:
                if on_error == "fail":
                    raise_fault(fault)
                found.skipped.append(str(fault))
                continue
            for name in find_differences(pair, back):
                found.lost[name] = found.lost.get(name, 0) + 1
            found.written += 1
            yield row
        if not found.written:
            raise ConfigError(nothing_read(reading.rows, found.skipped), str(source))

    if target.wrap is not None:
        write_atomic(out, canonical_json(target.wrap(list(rows()))))
    else:
        write_rows(rows(), out)
    found.rows = reading.rows
    unread = sorted(column for column in reading.columns if not reading.format.knows(column))
    found.dropped = [*unread, *([reading.format.left] if reading.format.left else [])]
    return found


def written(pair: LabelledPair, target: Format, name: str) -> tuple[Row, LabelledPair]:
    """A pair's row in a format that is written, and the pair that the row is read as.

    Raises ConfigError, with the pair's place, where the format cannot hold it.
    """
    assert target.write is not None
    try:
        row = target.write(pair)
        (back,) = target.read(row, pair.place)
    except ValueError as reason:
        raise ConfigError(f"{pair.place}: {name} cannot hold this pair: {reason}") from None
    if isinstance(back, ConfigError):
        raise back
    assert isinstance(back, LabelledPair), "what is written of a pair is a pair"
    return row, back


def find_differences(pair: LabelledPair, back: LabelledPair) -> list[str]:
    """What a pair lost on the way there and back, by name; nothing when it is the same.

    An exchange of the answers is `order`, and the label is compared as if it had not happened.
    """
    texts = (pair.first.text.strip(), pair.second.text.strip())
    turned = (back.second.text.strip(), back.first.text.strip()) == texts != texts[::-1]
    first, second = (back.second, back.first) if turned else (back.first, back.second)
    label = 1 - back.label if turned and back.label is not None else back.label
    authors = back.authors[::-1] if turned and back.authors is not None else back.authors
    scores = back.scores[::-1] if turned and back.scores is not None else back.scores
    same = {
        "prompt": back.prompt.messages == pair.prompt.messages,
        "answers": (first.text, second.text) == (pair.first.text, pair.second.text),
        "order": not turned,
        "label": label == pair.label,
        "subset": back.subset == pair.subset,
        "authors": authors == pair.authors,
        # A format may need scores where none were given.
        "scores": pair.scores is None or scores == pair.scores,
        "margin": pair.margin is None or back.margin == pair.margin,
        "calls": [_besides_text(first), _besides_text(second)]
        == [_besides_text(pair.first), _besides_text(pair.second)],
        "annotator": back.annotator == pair.annotator,
        "annotator_kind": back.annotator_kind == pair.annotator_kind,
    }
    return [name for name, kept in same.items() if not kept]


def _besides_text(answer: Completion) -> list[dict[str, Any]]:
    """What the turns of an answer have besides role and text: tool calls, reasoning."""
    kept = [dict(turn) for turn in answer.messages]
    return [{k: v for k, v in turn.items() if k not in ("role", "content")} for turn in kept]
