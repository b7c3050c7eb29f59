"""Raw texts as token ids: no chat template, a loss on every token.

A text's ids are those that transformers' own tokenizer gives, with the special tokens that it adds
by itself (a BOS, never two), and after them the end token, since a model is to learn where a
document ends. A text that is longer than `max_length` is cut into pieces that share one token: the
last of a piece is what predicts the first of the next, so no token is lost and none learned twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rlaif.config.training import TextStep
from rlaif.core.errors import EngineError, RlaifError
from rlaif.core.records import content_hash
from rlaif.engines.model_folders import Limits
from rlaif.train.tokenise import Encoded, Example, count_beyond, most_tokens, refuse_unknown


def text_ids(tokenizer: Any, text: str, end: bool = True) -> list[int]:
    """The token ids of a whole text: at most one BOS before it and, with `end`, one EOS after."""
    ids = list(tokenizer(text)["input_ids"])
    begin, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    # Many corpora have the BOS in their text already, and some tokenizers add one all the same.
    while len(ids) > 1 and ids[0] == ids[1] == begin is not None:
        del ids[0]
    if eos is None:
        return ids
    while len(ids) > 1 and ids[-1] == eos:
        del ids[-1]
    return [*ids, eos] if end else ids


def cut_pieces(ids: Sequence[int], most: int) -> Iterator[tuple[list[int], list[int]]]:
    """(context, learned) of each piece of at most `most` tokens: one token, and those after it."""
    for start in range(0, len(ids) - 1, most - 1):
        yield [ids[start]], list(ids[start + 1 : start + most])


def add_texts(
    encoded: Encoded, texts: Sequence[str], tokenizer: Any, options: TextStep, limits: Limits
) -> None:
    """Add the examples of `texts`, in their order, and the counts of texts, of their pieces and of
    empty ones. `train_on_eos: false` leaves the end out.

    Raises RlaifError for a text that is too long where `overlong` is refuse, and EngineError for a
    token that the model does not know unless `on_error` is skip.
    """
    most = max(2, most_tokens(options.max_length, limits))
    end = bool(getattr(options, "train_on_eos", True))
    counts = {"texts": 0, "pieces": 0}
    made: list[Example] = []
    for row, text in enumerate(texts, start=1):
        ids = text_ids(tokenizer, text, end)
        if len(ids) > most and options.overlong == "refuse":
            raise RlaifError(
                f"text {row} of {len(texts)} ({text[:60]!r}): it has {len(ids)} tokens, and an "
                f"example may have {most}. Raise `max_length`, or leave `overlong` out: a longer "
                "text is then cut into pieces."
            )
        name = "t_" + content_hash(text)
        pieces = [
            Example(f"{name}:{number}", name, context, (learned,), desirable=(True,))
            for number, (context, learned) in enumerate(cut_pieces(ids, most))
        ]
        try:
            for piece in pieces:
                refuse_unknown(piece, tokenizer, limits)
        except EngineError as error:
            if options.on_error != "skip":
                place = f"text {row} of {len(texts)} ({text[:60]!r})"
                raise EngineError(f"{place}: {error}") from None
            encoded.add({"refused": 1})
            continue
        encoded.add({"empty": int(not pieces)})
        counts["texts"] += bool(pieces)
        counts["pieces"] += len(pieces)
        made += pieces
    encoded.add({"beyond_positions": count_beyond(made, limits)})
    encoded.examples += made
    encoded.counts |= counts
