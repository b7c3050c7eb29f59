"""Pairs of answers that somebody compared: what judges are measured against."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif.records import AnnotatorKind, Completion, Prompt


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two answers to one prompt, in the order of the file, and what its annotator said of them.

    `label` is the probability that `first` is better: 1 or 0, 0.5 a tie, a share where several
    people voted, None where nobody said. `subset` is the file's own division (a section, a source).
    `authors` are the names of the models or people that wrote the answers, where the file has them.
    `pair_id` is the hash of the prompt and the two answers in their order: the labels that two
    annotators gave to one comparison share it. `place` names file and row, for messages.
    """

    pair_id: str
    prompt: Prompt
    first: Completion
    second: Completion
    label: float | None
    subset: str | None = None
    authors: tuple[str, str] | None = None
    annotator: str | None = None
    annotator_kind: AnnotatorKind = "human"
    place: str = ""
