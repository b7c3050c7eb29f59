"""Comparisons of named generators, from any format that says who wrote the answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlaif.config.columns import LabelColumns
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import content_hash
from rlaif.data.readers import OnError, detect_format, nothing_read, read_labelled
from rlaif.data.readers.alpaca_eval import baseline_beside, preference_of
from rlaif.data.readers.base import name_of, text_of
from rlaif.data.rows import Row, file_rows, raise_fault
from rlaif.metrics.winrate import Battle

BASELINE = "baseline"
"""What the baseline is called where only its opponents' outputs are in the file."""


def read_battles(
    path: Path,
    from_: str | None = None,
    columns: LabelColumns | None = None,
    on_error: OnError = "fail",
) -> tuple[list[Battle], list[str]]:
    """The battles of a file, and a message for every row that was skipped.

    AlpacaEval preferences without the baseline's outputs beside them give battles of unknown
    length. Raises ConfigError, also where a pair does not say who wrote its answers.
    """
    if columns is None and from_ in (None, "alpaca_eval_outputs"):
        head = next(file_rows(path, lambda fault: None), None)
        alone = head is not None and detect_format(head[1], path) == "alpaca_eval_outputs"
        if alone and baseline_beside(path) is None:
            return _without_baseline(path, on_error)
    reading = read_labelled(path, from_, columns, on_error)
    return [make_battle(pair) for pair in reading], reading.skipped


def make_battle(pair: LabelledPair) -> Battle:
    """A labelled pair as a battle of its authors. Raises ConfigError where it names none."""
    if pair.authors is None:
        raise ConfigError(
            f"{pair.place}: nobody is named as the author of the two answers; a win rate needs "
            "their generators (`first_author` and `second_author` of a column map)"
        )
    texts = (pair.first.text, pair.second.text)
    return Battle(
        pair.prompt.prompt_id,
        *pair.authors,
        None if pair.label is None else 1 - pair.label,
        (len(texts[0]), len(texts[1])),
        (pair.first.digest, pair.second.digest),
        pair.place,
    )


def _without_baseline(path: Path, on_error: OnError) -> tuple[list[Battle], list[str]]:
    skipped: list[str] = []

    def skip_row(fault: ConfigError) -> None:
        skipped.append(str(fault))

    on_fault = raise_fault if on_error == "fail" else skip_row

    def read_battles() -> Iterator[Battle]:
        for place, row in file_rows(path, on_fault):
            try:
                yield _against_unknown(row, place)
            except ConfigError as fault:
                on_fault(fault)

    found = list(read_battles())
    if not found:
        raise ConfigError(nothing_read(0, skipped), path)
    return found, skipped


def _against_unknown(row: Row, place: str) -> Battle:
    output = text_of(row, "output", place)
    prompt = content_hash(text_of(row, "instruction", place))
    generator = name_of(row, "generator", place)
    if generator is None:
        raise ConfigError(f"{place}: generator is missing")
    prob = preference_of(row, place)
    return Battle(
        prompt, BASELINE, generator, prob, (None, len(output)), (None, content_hash(output)), place
    )
