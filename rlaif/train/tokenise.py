"""Preferences as token ids, by the model's own chat template.

The prompt's ids are those that the model is given when it writes. An answer's are those after them
in the text of both, or the very ids that the policy sampled (`rlaif.core.answers`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlaif.core.answers import AnswerTurn, End, Reasoning, Tokens
from rlaif.core.chat import KEEP, LOST, ChatSettings, count_lost
from rlaif.core.errors import EngineError, RlaifError, explain_library
from rlaif.core.records import Message, Preference
from rlaif.engines.model_folders import NO_LIMITS, Limits, limits_of, no_embedding
from rlaif.kernels.batching import Branches

Overlong = Literal["skip", "refuse", "truncate_left"]
OnError = Literal["fail", "skip"]
log = logging.getLogger(__name__)


class Ranked(NamedTuple):
    """Two branches of an example by number, the better first; see `Example` for the rest."""

    chosen: int
    rejected: int
    prob: float
    margin: float | None
    weight: float


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and its branches: (chosen, rejected) token ids, or (chosen,) for SFT.

    `prob` is the probability that chosen is really better (a soft label), `margin` the difference
    of their scores, None where nobody gave any. `desirable` says of each answer whether it is a
    good one: (True, False) for a pair, one value for an answer that stands alone. `scores` are the
    answers' own, and `ids` their completions'. `ranked` are the pairs among more than two branches;
    none means the one pair."""

    example_id: str
    prompt_id: str
    prompt_ids: list[int]
    completions: tuple[list[int], ...]
    weight: float = 1.0
    prob: float = 1.0
    margin: float | None = None
    desirable: tuple[bool, ...] = (True, False)
    scores: tuple[float | None, ...] = ()
    ids: tuple[str, ...] = ()
    ranked: tuple[Ranked, ...] = ()

    @property
    def pairs(self) -> tuple[Ranked, ...]:
        """Every pair of branches that is compared."""
        return self.ranked or (Ranked(0, 1, self.prob, self.margin, self.weight),)

    @property
    def branches(self) -> Branches:
        """The prompt's and the completions' token ids."""
        return self.prompt_ids, self.completions

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longest branch."""
        return len(self.prompt_ids) + max(map(len, self.completions))


COUNTED = (
    "overlong",
    "empty",
    "equal",
    "refused",
    "truncated",
    "retokenised",
    "boundary_crossed",
    "beyond_positions",
    *LOST,
)


@dataclass(slots=True)
class Encoded:
    """The examples that can be trained on, and counts of what happened to the others.

    Left out: overlong, empty, equal (both answers of a pair are the same tokens), refused (a row
    that the chat template does not take, with `on_error: skip`). Kept: truncated (the prompt was
    cut on the left), retokenised answers (the sampled ids did not spell the answer's text, so the
    text was used), boundary_crossed ones (the tokenizer would have joined the end of the prompt and
    the beginning of the answer), beyond_positions (longer than a RoPE model's positions), and the
    turns whose tool calls, tool's text or reasoning the chat template does not write (`chat.LOST`).
    """

    examples: list[Example] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))

    def add(self, counts: Mapping[str, int]) -> None:
        """Add to the counts."""
        for name, count in counts.items():
            self.counts[name] += count


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint. Raises EngineError when it has no chat template."""
    tokenizer = load_any_tokenizer(folder)
    if not getattr(tokenizer, "chat_template", None):
        raise EngineError(
            f"{folder}: its tokenizer has no chat template, so answers cannot be told from "
            "prompts. Put chat_template.jinja into the folder, or start from an instruct model."
        )
    return tokenizer


def load_any_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint, with or without a chat template. Raises EngineError."""
    from transformers import AutoTokenizer

    with explain_library(f"{folder}: its tokenizer cannot be loaded", EngineError):
        return AutoTokenizer.from_pretrained(folder)


def refuse_other_tokens(
    start: Path,
    reference: Path,
    examples: Iterable[Example] | None = None,
    role: Literal["reference", "teacher"] = "reference",
) -> None:
    """Raise RlaifError unless every token id of `examples` (None: of the start's vocabulary) means
    the same token to both models: else their log-probs would be of different texts."""
    own, other = read_tokens(start), read_tokens(reference)
    # Without examples any token may come to be sampled.
    used = set(own)
    if examples is not None:
        used = {i for e in examples for ids in (e.prompt_ids, *e.completions) for i in ids}
    differing = sorted(i for i in used if own.get(i) != other.get(i))
    if differing:
        first = differing[0]
        advice = f"Take a {role} with the same tokenizer"
        if role == "reference":
            advice += ", or leave `reference` out: the start is then its own reference"
        raise RlaifError(
            f"the {role} {reference} has another vocabulary than the model to be trained, "
            f"{start}: {len(differing)} of {len(used)} token ids differ, {first} being "
            f"{own.get(first)!r} here and {other.get(first)!r} there. {advice}."
        )


def read_tokens(folder: Path) -> dict[int, str]:
    """The tokens of a model's vocabulary by id."""
    return {number: token for token, number in load_any_tokenizer(folder).get_vocab().items()}


def model_limits(folder: Path) -> Limits:
    """The limits of the model in `folder`. Raises EngineError where it has no config."""
    from transformers import AutoConfig

    with explain_library(f"{folder}: this model cannot be loaded", EngineError):
        return limits_of(AutoConfig.from_pretrained(folder))


def encode(
    preferences: Sequence[Preference],
    tokenizer: Any,
    token_ids: Mapping[str, list[int]],
    *,
    both: bool,
    max_length: int,
    overlong: Overlong,
    train_on_eos: bool,
    chat: ChatSettings = KEEP,
    always_end: bool = False,
    reasoning: Reasoning = "keep",
    limits: Limits = NO_LIMITS,
    on_error: OnError = "fail",
    unfinished: frozenset[str] = frozenset(),
) -> Encoded:
    """Examples of the chosen answers, or of `both` answers, in the order given; where one side is
    empty, of the other alone.

    With `always_end` each is the whole conversation as the template renders it, to its last token:
    a reward model reads it there.

    `token_ids` maps completion ids to sampled tokens, the end token included if it was sampled;
    `unfinished` are the completions without an end, which get none.
    `chat` is the policy's, as it was when it sampled; `limits` are the model's. Raises RlaifError,
    which names the row, where the template refuses one and `on_error` is not skip.
    """
    result = Encoded()
    end: End = "all" if always_end else "turn" if train_on_eos else "none"
    for row, preference in enumerate(preferences, start=1):
        turn = AnswerTurn(tokenizer, preference.prompt, chat, whole=always_end)
        try:
            example, counts = _make_example(
                preference, turn, token_ids, both, end, reasoning, unfinished
            )
            refuse_unknown(example, tokenizer, limits)
        except (EngineError, UnfitAnswer) as error:
            if on_error == "skip":
                result.add({"refused": 1})
                continue
            asked = str(preference.prompt[-1]["content"])[:60] if preference.prompt else ""
            place = f"row {row} of {len(preferences)} (prompt {preference.prompt_id}, {asked!r})"
            raise type(error)(f"{place}: {error}") from None
        result.add(counts)
        _admit_example(example, result, max_length, overlong, limits)
    result.add({"beyond_positions": count_beyond(result.examples, limits)})
    return result


class UnfitAnswer(RlaifError):
    """An answer that is no single turn of the assistant."""


def _make_example(
    preference: Preference,
    turn: AnswerTurn,
    token_ids: Mapping[str, list[int]],
    both: bool,
    end: End,
    reasoning: Reasoning,
    unfinished: frozenset[str],
) -> tuple[Example, dict[str, int]]:
    """One preference as an example, and counts of how its answers were tokenised."""
    sides = [(preference.chosen, preference.chosen_id, preference.score_chosen, True)]
    if both:
        sides.append(
            (preference.rejected, preference.rejected_id, preference.score_rejected, False)
        )
    # A side without messages belongs to an answer that stands alone.
    answers = [side for side in sides if side[0]]
    branches: list[Tokens] = []
    retokenised = 0
    for messages, completion_id, _, _ in answers:
        known = token_ids.get(completion_id)
        own: End = "none" if completion_id in unfinished else end
        branches.append(turn.tokens(_require_single_turn(messages), own, reasoning, known))
        retokenised += bool(known) and not branches[-1].sampled
    example = Example(
        preference.preference_id,
        preference.prompt_id,
        turn.prompt_ids,
        tuple(branch.ids for branch in branches),
        preference.weight,
        preference.prob,
        preference.margin,
        tuple(good for *_, good in answers),
        tuple(score for _, _, score, _ in answers),
        tuple(completion_id for _, completion_id, _, _ in answers),
    )
    crossed = sum(branch.crossed for branch in branches)
    missing = count_lost(turn.tokenizer, preference.prompt, turn.chat)
    for messages, *_ in answers:
        missing += turn.lost(_require_single_turn(messages), reasoning)
    return example, {"retokenised": retokenised, "boundary_crossed": crossed, **missing}


def _require_single_turn(messages: Sequence[Message]) -> Message:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise UnfitAnswer("an answer must be exactly one assistant message")
    return messages[0]


def refuse_unknown(example: Example, tokenizer: Any, limits: Limits) -> None:
    """Raise EngineError for a token that the model has no embedding of."""
    for ids in (example.prompt_ids, *example.completions):
        token = limits.unknown(ids)
        if token is not None:
            text = str(tokenizer.convert_ids_to_tokens(token))
            raise EngineError(no_embedding(token, text, limits))


def _admit_example(
    example: Example, result: Encoded, max_length: int, overlong: Overlong, limits: Limits
) -> None:
    if not all(example.completions) or not example.prompt_ids:
        result.add({"empty": 1})
        return
    if len(example.completions) == 2 and example.completions[0] == example.completions[1]:
        result.add({"equal": 1})
        return
    most = most_tokens(max_length, limits)
    over = example.length - most
    if over <= 0:
        result.examples.append(example)
        return
    if overlong == "refuse":
        held = f"max_length is {max_length}"
        raised = "Raise `max_length`, or set"
        if most < max_length:
            held, raised = f"the model has {most} positions", "Set"
        raise RlaifError(
            f"prompt {example.prompt_id}: prompt and answer are {example.length} tokens, and "
            f"{held}. {raised} `overlong: skip` or `truncate_left`."
        )
    # One token of the prompt must stay: it predicts the first one of the answer.
    if overlong == "skip" or over >= len(example.prompt_ids):
        result.add({"overlong": 1})
        return
    result.add({"truncated": 1})
    result.examples.append(replace(example, prompt_ids=example.prompt_ids[over:]))


def most_tokens(max_length: int, limits: Limits) -> int:
    """How long an example may be."""
    # A table of positions has an end; RoPE computes on beyond what the model was trained on.
    return min(max_length, limits.positions or max_length) if limits.table else max_length


def count_beyond(examples: Sequence[Example], limits: Limits) -> int:
    """How many examples are longer than the positions that the model was made for, which is said in
    a warning."""
    if limits.positions is None:
        return 0
    beyond = sum(example.length > limits.positions for example in examples)
    if beyond:
        log.warning(
            "%d of %d examples are longer than the %d positions that the model was made for; it "
            "computes on with RoPE, where it was hardly trained. Lower `max_length` to leave them "
            "out.",
            beyond,
            len(examples),
            limits.positions,
        )
    return beyond


def refuse_empty(
    encoded: Encoded, count: int, max_length: int, overlong: Overlong, limits: Limits
) -> None:
    """Raise RlaifError, with what is to be done, where none of `count` rows is left."""
    if encoded.examples:
        return
    counts = {name: n for name, n in encoded.counts.items() if n}
    advice = []
    if counts.get("overlong"):
        held = limits.positions or max_length
        if limits.table and held < max_length:
            advice.append(f"the model has {held} positions: take shorter texts or another model")
        else:
            advice.append(f"raise `max_length` ({max_length})")
        if overlong == "skip":
            advice.append("or set `overlong: truncate_left`, which cuts prompts")
    if counts.get("equal"):
        advice.append("both answers of a pair must differ once they are rendered")
    if counts.get("empty"):
        advice.append("prompts and answers need a text")
    if counts.get("refused"):
        advice.append("without `on_error: skip` the first row that is refused says why")
    said = ", ".join(f"{name} {n}" for name, n in counts.items())
    what = "rows" if "texts" in encoded.counts else "preferences"
    raise RlaifError(f"none of the {count} {what} can be trained on ({said}): {'; '.join(advice)}.")
