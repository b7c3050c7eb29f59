"""UltraFeedback: raw with aspect ratings, binarised, and distilabel's form of the latter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.data.readers.base import (
    Format,
    RatedAnswer,
    attempt_each,
    better_authors,
    compare_rated,
    make_pair,
    name_of,
    number_of,
    object_of,
    scores_or_votes,
    text_of,
    user,
    whole_conversations,
)
from rlaif.data.readers.trl import ANNOTATORS, SIDES, annotator_of, authors_of, texts_of_row
from rlaif.data.rows import Row
from rlaif.data.turns import brief, whole_text

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def read_raw(row: Row, place: str) -> Iterator[LabelledPair | ConfigError]:
    """Every two completions of a row, in its order.

    The better one has the higher mean aspect rating; the file's `overall_score` is not used, since
    thousands of its values are known to be wrong. Aspects rated N/A are
    left out of the mean; a completion without any rating leaves its pairs without a label. One that
    cannot be read leaves the pairs of the others.
    """
    completions = row.get("completions")
    if not isinstance(completions, list) or not all(isinstance(c, dict) for c in completions):
        raise ConfigError(f"{place}: completions must be a list of objects")
    if len(completions) < 2:
        raise ConfigError(f"{place}: {len(completions)} completions; two at least make a pair")
    prompt = user(text_of(row, "instruction", place))
    answers, faults = attempt_each(_rate_completion, completions, place)
    yield from faults
    for first, second in combinations(answers, 2):
        yield make_pair(
            place,
            prompt,
            **compare_rated(first, second),
            subset=name_of(row, "source", place),
            annotator=annotator_of(row, place),
            annotator_kind="ai",
        )


def _rate_completion(completion: Row, place: str) -> RatedAnswer:
    text = text_of(completion, "response", place)
    whole_text([text], place)
    author, rating = name_of(completion, "model", place), mean_rating(completion, place)
    return RatedAnswer(text, rating, author, rating)


def mean_rating(completion: Row, place: str) -> float | None:
    """The mean of the aspects' ratings (1 to 5); None where none was given. Raises ConfigError."""
    annotations = completion.get("annotations")
    if not isinstance(annotations, dict):
        raise ConfigError(f"{place}: annotations is {brief(annotations)}; aspects were expected")
    by_aspect = {str(name).replace("-", "_"): value for name, value in annotations.items()}
    ratings = [_read_rating(by_aspect.get(aspect), aspect, place) for aspect in ASPECTS]
    known = [rating for rating in ratings if rating is not None]
    return sum(known) / len(known) if known else None


def _read_rating(annotation: Any, aspect: str, place: str) -> float | None:
    if annotation is None:
        return None
    if object_of(annotation, aspect, place).get("Rating") in ("N/A", ""):
        return None
    rating = number_of(annotation, "Rating", place)
    if rating is not None and not 1 <= rating <= 5:
        raise ConfigError(f"{place}: {aspect} has Rating {rating:g}; 1 to 5 was expected")
    return rating


def _read_binarised(row: Row, place: str, scores: str) -> Iterator[LabelledPair]:
    """`first` is the chosen answer; equal scores are a tie."""
    prompt, answers = texts_of_row(row, place)
    above, below = (number_of(row, scores.format(k), place) for k in SIDES)
    yield make_pair(
        place,
        prompt,
        answers,
        0.5 if above is not None and above == below else 1.0,
        authors=authors_of(row, place),
        annotator=annotator_of(row, place),
        annotator_kind="ai",
        scores=(above, below),
    )


def _write_binarised(pair: LabelledPair) -> Row:
    """Whole conversations; without scores, the probabilities that each answer is better."""
    chosen, rejected = whole_conversations(pair)
    scores = scores_or_votes(pair)
    if scores[0] == scores[1]:
        raise ValueError("equal scores of answers of which one is better: they would say a tie")
    return {
        "prompt": pair.prompt.question,
        "prompt_id": hashlib.sha256(pair.prompt.question.encode()).hexdigest(),
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
        "score_chosen": scores[0],
        "score_rejected": scores[1],
    }


def _write_distilabel(pair: LabelledPair) -> Row:
    """Whole conversations, with who wrote them and what they were rated."""
    authors, row = better_authors(pair), _write_binarised(pair)
    return {
        "prompt": row["prompt"],
        "prompt_id": row["prompt_id"],
        "chosen": row["chosen"],
        "chosen_model": authors[0],
        "chosen_rating": row["score_chosen"],
        "rejected": row["rejected"],
        "rejected_model": authors[1],
        "rejected_rating": row["score_rejected"],
    }


def _whole_conversation(row: Row) -> bool:
    chosen = row["chosen"]
    return isinstance(chosen, list) and bool(chosen) and isinstance(row["prompt"], str)


RAW = Format(
    about="UltraFeedback raw: instruction, completions with aspect annotations",
    columns=("instruction", "completions"),
    optional=("source", *ANNOTATORS),
    read=read_raw,
    left="ratings but for which mean is higher, rationales, critiques, principles",
)
BINARISED = Format(
    about="UltraFeedback binarised: prompt, whole conversations chosen and rejected, their scores",
    columns=("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    optional=("prompt_id", "messages", "system", *ANNOTATORS),
    read=partial(_read_binarised, scores="score_{}"),
    fits=_whole_conversation,
    write=_write_binarised,
)
DISTILABEL = Format(
    about="distilabel: prompt, chosen, rejected, chosen_rating, rejected_rating, models",
    columns=("prompt", "chosen", "rejected", "chosen_rating", "rejected_rating"),
    optional=("chosen_model", "rejected_model", "prompt_id", "system", *ANNOTATORS),
    read=partial(_read_binarised, scores="{}_rating"),
    fits=_whole_conversation,
    write=_write_distilabel,
)
