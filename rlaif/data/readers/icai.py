"""ICAI annotated pairs 2.0: one JSON object with comparisons and their annotators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import AnnotatorKind, content_hash
from rlaif.data.readers.base import (
    Format,
    make_pair,
    name_of,
    object_of,
    single_turn,
    text_of,
    try_read,
    user,
)
from rlaif.data.rows import Row
from rlaif.data.turns import brief

VERSION = "2.0"
UNKNOWN = "unknown"


def read_pair(row: Row, place: str) -> Iterator[LabelledPair | ConfigError]:
    """One pair for the default annotator, or without one for each annotator that is no principle.

    A comparison that none of them annotated gives one pair without a label.
    """
    document = row.get("document")
    document = document if isinstance(document, dict) else {}
    annotations = _read_object(row, "annotations", place)
    annotators = _read_object(document, "annotators", place)
    default = _read_object(document, "metadata", place).get("default_annotator")
    kinds = {name: _annotator_kind(annotators.get(name)) for name in annotations}
    wanted = [n for n in annotations if n == default or (default is None and kinds[n])]
    sides = [_read_object(row, key, place) for key in ("response_a", "response_b")]
    given: list[tuple[str | None, float | ConfigError | None, AnnotatorKind]] = [
        (n, try_read(_read_label, annotations[n], place), kinds[n] or "ai") for n in wanted
    ]
    for name, label, kind in given or [(None, None, "human")]:
        if isinstance(label, ConfigError):
            yield label
            continue
        yield make_pair(
            place,
            user(text_of(row, "prompt", place)),
            (text_of(sides[0], "text", place), text_of(sides[1], "text", place)),
            label,
            subset=name_of(_read_object(row, "metadata", place), "subset", place),
            authors=(name_of(sides[0], "model", place), name_of(sides[1], "model", place)),
            annotator=_annotator_name(annotators.get(name or ""), name),
            annotator_kind=kind,
        )


def _read_object(row: Row, key: str, place: str) -> dict[str, Any]:
    value = row.get(key)
    return {} if value is None else object_of(value, key, place)


def _annotator_kind(annotator: Any) -> AnnotatorKind | None:
    """None for a principle, which is no opinion on which answer is better."""
    kind = str(annotator.get("type")).lower() if isinstance(annotator, dict) else ""
    if kind == "principle":
        return None
    return "ai" if kind in ("ai", "model", "llm") else "human"


def _annotator_name(annotator: Any, name: str | None) -> str | None:
    known = annotator.get("name") if isinstance(annotator, dict) else None
    return known if isinstance(known, str) and known else name if name != UNKNOWN else None


def _read_label(annotation: Any, place: str) -> float | None:
    pref = object_of(annotation, "an annotation", place).get("pref")
    if pref is None:
        return 0.5 if annotation.get("no_pref_reason") == "tie" else None
    if pref not in ("a", "b"):
        raise ConfigError(f"{place}: pref is {brief(pref)}; a, b or null was expected")
    return float(pref == "a")


def write_pair(pair: LabelledPair) -> Row:
    """One comparison; `wrap` merges those of the same pair."""
    first, second = pair.authors or (None, None)
    pref = None if pair.label in (None, 0.5) else "a" if pair.label > 0.5 else "b"
    annotation: Row = {"pref": pref}
    if pref is None:
        annotation["no_pref_reason"] = UNKNOWN if pair.label is None else "tie"
    identity = UNKNOWN
    if pair.annotator is not None:
        identity = content_hash(pair.annotator, pair.annotator_kind, length=8)
    annotator = {"name": pair.annotator, "description": "", "type": pair.annotator_kind}
    return {
        "id": pair.pair_id,
        "prompt": single_turn(pair),
        "response_a": {"text": pair.first.text, "model": first},
        "response_b": {"text": pair.second.text, "model": second},
        "annotations": {identity: annotation},
        "metadata": {"subset": pair.subset},
        "document": {"annotators": {identity: annotator}},
    }


def wrap_rows(rows: list[Row]) -> Row:
    """The whole document; its default annotator is the only one there is."""
    comparisons: dict[str, Row] = {}
    annotators: Row = {}
    for row in rows:
        annotators |= row["document"]["annotators"]
        kept = {key: value for key, value in row.items() if key != "document"}
        known = comparisons.setdefault(row["id"], kept)
        known["annotations"] |= kept["annotations"]
    default = next(iter(annotators)) if len(annotators) == 1 else None
    return {
        "metadata": {"version": VERSION, "default_annotator": default},
        "annotators": annotators,
        "comparisons": list(comparisons.values()),
    }


FORMAT = Format(
    about="ICAI annotated pairs: comparisons of response_a and response_b with annotations",
    columns=("prompt", "response_a", "response_b", "annotations"),
    optional=("metadata", "document"),
    read=read_pair,
    write=write_pair,
    wrap=wrap_rows,
    left="principles, descriptions, other annotators than the default one, metadata but `subset`",
)
