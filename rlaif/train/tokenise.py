"""Preferences as token ids, by the model's own chat template.

The prompt and the completion are tokenised apart and joined, so that the boundary between what is
given and what is learned is exact. Answers that the policy sampled keep the very tokens it sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlaif.batching import Branches
from rlaif.chat import SystemRole, end_of_turn, render_answer, render_prompt
from rlaif.errors import EngineError, RlaifError
from rlaif.records import Message, Preference

Overlong = Literal["skip", "refuse", "truncate_left"]


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


@dataclass(slots=True)
class Encoded:
    """The examples that can be trained on, and counts of what happened to the others.

    Counts: overlong and empty (both left out), truncated (kept, prompt cut on the left),
    retokenised (the sampled ids did not spell the answer's text, so the text was used).
    """

    examples: list[Example] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: {"overlong": 0, "empty": 0, "truncated": 0, "retokenised": 0}
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint. Raises EngineError when it has no chat template."""
    tokenizer = _tokenizer(folder)
    if not getattr(tokenizer, "chat_template", None):
        raise EngineError(
            f"{folder}: its tokenizer has no chat template, so answers cannot be told from "
            "prompts. Put chat_template.jinja into the folder, or start from an instruct model."
        )
    return tokenizer


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{folder}: its tokenizer cannot be loaded: {error}") from None


def refuse_other_tokens(
    start: Path, reference: Path, examples: Iterable[Example] | None = None
) -> None:
    """Raise RlaifError unless every token id of `examples` (None: of the start's vocabulary) means
    the same token to both models: else their log-probs would be of different texts."""
    own, other = (
        {number: token for token, number in _tokenizer(folder).get_vocab().items()}
        for folder in (start, reference)
    )
    used = set(own)
    if examples is not None:
        used = {i for e in examples for ids in (e.prompt_ids, *e.completions) for i in ids}
    differing = sorted(i for i in used if own.get(i) != other.get(i))
    if differing:
        first = differing[0]
        raise RlaifError(
            f"the reference {reference} has another vocabulary than the model to be trained, "
            f"{start}: {len(differing)} of {len(used)} token ids differ, {first} being "
            f"{own.get(first)!r} here and {other.get(first)!r} there. Take a reference with the "
            "same tokenizer, or leave `reference` out: the start is then its own reference."
        )


def encode(
    preferences: Sequence[Preference],
    tokenizer: Any,
    token_ids: Mapping[str, list[int]],
    *,
    both: bool,
    max_length: int,
    overlong: Overlong,
    train_on_eos: bool,
    system_prompt: str = "keep",
    system_role: SystemRole = "keep",
    always_end: bool = False,
) -> Encoded:
    """Examples of the chosen answers, or of `both` answers, in the order given; where one side is
    empty, of the other alone.

    With `always_end` every answer is given its end of turn, also one that was cut off: a reward
    model reads it there.

    `token_ids` maps completion ids to sampled tokens, the end token included if it was sampled.
    `system_prompt` and `system_role` are the policy's settings, as they were when it sampled.
    """
    result = Encoded()
    for preference in preferences:
        sides = [(preference.chosen, preference.chosen_id, preference.score_chosen, True)]
        if both:
            sides.append(
                (preference.rejected, preference.rejected_id, preference.score_rejected, False)
            )
        answers = [side for side in sides if side[0]]
        branches = []
        for messages, completion_id, _, _ in answers:
            known = token_ids.get(completion_id)
            where = f"prompt {preference.prompt_id}"
            if len(messages) != 1 or messages[0]["role"] != "assistant":
                raise RlaifError(f"{where}: an answer must be exactly one assistant message")
            text, end_ids = render_answer(
                tokenizer, preference.prompt, messages[0], where, system_role
            )
            ids, retokenised = _branch(tokenizer, messages, text, end_ids, known, train_on_eos)
            end = end_of_turn(tokenizer, end_ids)
            if always_end and end is not None and ids[-1:] != [end]:
                ids = [*ids, end]
            result.counts["retokenised"] += retokenised
            branches.append(ids)
        given = render_prompt(tokenizer, preference.prompt, system_prompt, system_role)
        prompt_ids = tokenizer(given, add_special_tokens=False)["input_ids"]
        example = Example(
            preference.preference_id,
            preference.prompt_id,
            prompt_ids,
            tuple(branches),
            preference.weight,
            preference.prob,
            preference.margin,
            tuple(good for *_, good in answers),
            tuple(score for _, _, score, _ in answers),
            tuple(completion_id for _, completion_id, _, _ in answers),
        )
        _admit(example, result, max_length, overlong)
    return result


def _admit(example: Example, result: Encoded, max_length: int, overlong: Overlong) -> None:
    if not all(example.completions) or not example.prompt_ids:
        result.counts["empty"] += 1
        return
    over = example.length - max_length
    if over <= 0:
        result.examples.append(example)
        return
    if overlong == "refuse":
        raise RlaifError(
            f"prompt {example.prompt_id}: prompt and answer are {example.length} tokens, and "
            f"max_length is {max_length}. Raise `max_length`, or set `overlong: skip` or "
            "`truncate_left`."
        )
    if overlong == "skip" or over >= len(example.prompt_ids):
        result.counts["overlong"] += 1
        return
    result.counts["truncated"] += 1
    result.examples.append(replace(example, prompt_ids=example.prompt_ids[over:]))


def _branch(
    tokenizer: Any,
    messages: Sequence[Message],
    text: str,
    suffix: Sequence[int],
    known: list[int] | None,
    train_on_eos: bool,
) -> tuple[list[int], bool]:
    special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    ends = {i for i in suffix if i in special} | {tokenizer.eos_token_id}
    content = messages[0]["content"]
    if known:
        spelled = tokenizer.decode(known, skip_special_tokens=True)
        if spelled.strip() == content.strip():
            keep_all = train_on_eos or known[-1] not in ends
            return (list(known) if keep_all else list(known[:-1])), False
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if train_on_eos:
        end = end_of_turn(tokenizer, suffix)
        ids = ids if end is None else [*ids, end]
    return ids, bool(known)
