"""Column maps: which part of a row of labelled pairs holds what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif.config.base import LATE, Strict, told

Cell = str | int | float | bool


class LabelValues(Strict):
    """The values of a label column: which say that the first or second answer is better, or tie."""

    first: Cell | list[Cell]
    second: Cell | list[Cell]
    tie: Cell | list[Cell] = []

    @model_validator(mode="after")
    def _refuse_equal_values(self) -> LabelValues:
        sides = (self.first, self.second, self.tie)
        given = [str(v) for side in sides for v in (side if isinstance(side, list) else [side])]
        if len(set(given)) < len(given):
            raise ValueError("the values of first, second and tie must differ")
        return self

    def meaning(self) -> dict[str, float | None]:
        """The probability that the first answer is better, by the value's text."""
        sides = ((self.first, 1.0), (self.second, 0.0), (self.tie, 0.5))
        return {
            str(value): label
            for side, label in sides
            for value in (side if isinstance(side, list) else [side])
        }


class WinnerColumns(Strict):
    """Columns of which the one that is true (or 1) says who is better."""

    first: str
    second: str
    tie: str | None = None


class RankedAnswers(Strict):
    """Several answers to one prompt: under `answers` in one row, or one in each of the rows that
    follow one another with the same value under `group`. Every two of them are a pair. The other
    keys are columns of an answer; the better one has the lower `rank` or the higher `score`."""

    answers: str | None = None
    group: str | None = None
    text: str
    rank: str | None = None
    score: str | None = None
    author: str | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> RankedAnswers:
        if (self.answers is None) == (self.group is None):
            raise ValueError("give one of `answers` and `group`: where the answers to a prompt are")
        if (self.rank is None) == (self.score is None):
            raise ValueError("give one of `rank` (lower is better) and `score` (higher is better)")
        return self


class LabelColumns(Strict):
    """Which column of a table holds what. `info.post` and `answers.0.text` are places inside a
    column.

    Of pairs, give `chosen` and `rejected`; or `first` and `second`, and who is better: `label`,
    `winners`, `strength`, or both scores; or `ranked`. Of demonstrations, give `answer`; of raw
    texts, `text` alone. Without `prompt` the answers are whole conversations.
    """

    prompt: str | None = Field(
        None,
        description="Text or turns; or a text with paths in braces, such as `{title}: {post}`.",
    )
    system: str | None = Field(None, description="The system turn, if a row has one.")
    chosen: str | None = None
    rejected: str | None = None
    first: str | None = None
    second: str | None = None
    label: str | None = None
    labels: LabelValues | None = Field(
        None, description="What the label's values mean; without it: P(first is better), 0 to 1."
    )
    winners: WinnerColumns | None = None
    strength: str | None = Field(
        None, description="How much better the second answer is; negative: the first is; 0: tie."
    )
    ranked: RankedAnswers | None = None
    first_score: str | None = None
    second_score: str | None = None
    margin: str | None = Field(None, description="The margin by which the better answer wins.")
    subset: str | None = None
    first_author: str | None = None
    second_author: str | None = None
    annotator: str | None = None
    annotator_kind: Literal["human", "ai", "model", "rule"] = "human"
    answer: Annotated[str | None, LATE] = Field(
        None, description="The one answer of a demonstration."
    )
    text: Annotated[str | None, LATE] = Field(None, description="A raw text.")

    @property
    def form(self) -> Literal["pairs", "answers", "texts"]:
        """What a row of the table holds."""
        return "texts" if self.text is not None else "answers" if self.answer else "pairs"

    @model_validator(mode="after")
    def _one_form(self) -> LabelColumns:
        if self.form != "pairs":
            own = ("text",) if self.form == "texts" else ("answer", "prompt", "system")
            beside = set(type(self).model_fields).difference(own)
            if strange := told(self, *beside):
                raise ValueError(f"{', '.join(strange)}: not beside `{own[0]}`")
            return self
        scored = self.first_score is not None and self.second_score is not None
        said = [self.label, self.winners, self.strength]
        forms = {
            "won": self.chosen and self.rejected and not any((self.first, self.second, *said)),
            "compared": self.first
            and self.second
            and not (self.chosen or self.rejected)
            and (len([t for t in said if t]) == 1 or (scored and not any(said))),
            "ranked": not any((self.chosen, self.rejected, self.first, self.second, *said, scored)),
        }
        form = "ranked" if self.ranked else "won" if self.chosen else "compared"
        if not forms[form]:
            raise ValueError(
                "give `chosen` and `rejected`; or `first`, `second` and one of `label`, `winners`, "
                "`strength` (or both scores); or `ranked` alone; of demonstrations `answer`, of "
                "raw texts `text`"
            )
        if self.ranked and self.prompt is None:
            raise ValueError("`ranked` needs `prompt`")
        if self.labels is not None and self.label is None:
            raise ValueError("`labels` says what the values of `label` mean; give `label` too")
        return self

    @property
    def answers(self) -> tuple[str, str]:
        """The columns of the two answers."""
        first, second = self.chosen or self.first, self.rejected or self.second
        assert first is not None
        assert second is not None
        return first, second
