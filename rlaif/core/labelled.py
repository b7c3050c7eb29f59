"""Pairs of answers that somebody compared: what judges are measured against."""

from __future__ import annotations

from dataclasses import dataclass, replace

from msgspec import structs

from rlaif.core.records import AnnotatorKind, Completion, Prompt, content_hash


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two answers to one prompt, in the order of the file, and what its annotator said of them.

    `label` is the probability that `first` is better: 1 or 0, 0.5 a tie, a share where several
    people voted, None where nobody said. `subset` is the file's own division (a section, a source).
    `authors` are the names of the models or people that wrote the answers, where the file has them.
    `scores` are what the annotator gave each answer, on a scale of its own, and `margin` (0 or
    more) is by how much the better one was said to be better. `source` is the file's own word for
    where the pair came from. `weight` is how many pairs it stands for: the inverse of the
    probability with which it was drawn to be labelled. `pair_id` is the hash of the prompt and the
    two answers in their order: the labels that two annotators gave to one comparison share it.
    `place` names file and row, for messages.
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
    scores: tuple[float, float] | None = None
    margin: float | None = None
    source: str | None = None
    weight: float = 1.0

    def swap(self) -> LabelledPair:
        """The same pair, the second answer first."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            label=None if self.label is None else 1.0 - self.label,
            authors=None if self.authors is None else (self.authors[1], self.authors[0]),
            scores=None if self.scores is None else (self.scores[1], self.scores[0]),
        )

    def as_loaded(self) -> LabelledPair:
        """The pair as the steps of a run judge it: the answer of smaller id first, both without an
        order of sampling, so that the place in the file says nothing."""
        ahead = self.first.completion_id <= self.second.completion_id
        pair = self if ahead else self.swap()
        return replace(
            pair,
            first=structs.replace(pair.first, sample_index=0),
            second=structs.replace(pair.second, sample_index=0),
        )

    def presented(self, seed: int) -> LabelledPair:
        """The pair with its answers in an order drawn by seed and id, as samples 0 and 1.

        Many files put the better answer first always; shown like that, a slot would be the label.
        """
        swapped = int(content_hash("slots", seed, self.pair_id, length=8), 16) % 2
        pair = self.swap() if swapped else self
        return replace(
            pair,
            first=structs.replace(pair.first, sample_index=0),
            second=structs.replace(pair.second, sample_index=1),
        )


@dataclass(frozen=True, slots=True)
class SingleAnswer:
    """An answer that stands alone, and whether it is a good one: what SFT and KTO train on."""

    prompt: Prompt
    answer: Completion
    good: bool
    place: str = ""
    source: str | None = None


@dataclass(frozen=True, slots=True)
class GivenPair:
    """Two answers to one prompt. `first` has the smaller completion id, so that the place of an
    answer says nothing of what its file says about it."""

    pair_id: str
    prompt_id: str
    first: str
    second: str


def given_pair(pair: LabelledPair) -> GivenPair:
    """The pair by the ids of its answers, in their order and not in the file's."""
    first, second = sorted([pair.first.completion_id, pair.second.completion_id])
    name = "l_" + content_hash(first, second)
    return GivenPair(name, pair.prompt.prompt_id, first, second)
