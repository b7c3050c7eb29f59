"""Where an answer stands in its conversation, and the token ids of both: one place for training,
scoring, log-probs, rewards and serving.

A short answer cannot be searched for: "n" is in every header. So two stand-ins of different length
are rendered where the answer will be, and what the template writes before and after them must be
the same for both. Prompt and answer are then tokenised as one text, since many tokenizers write a
blank into the first token of a text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, Literal, NamedTuple

from rlaif.core.chat import (
    KEEP,
    THINKING_KEYS,
    ChatSettings,
    Opened,
    Said,
    count_lost,
    opened_by,
    render,
    render_prompt,
    split,
    write_thinking,
)
from rlaif.core.errors import EngineError
from rlaif.core.records import Message

Reasoning = Literal["keep", "strip"]
End = Literal["none", "turn", "all"]
"""What of the template's text after an answer goes with it: none of it; up to the token that ends
the turn; or all, as a caller of the template has it."""

FORMS: tuple[Callable[[str], str], ...] = (
    str,
    str.strip,
    str.rstrip,
    str.lstrip,
    lambda text: text.strip("\n"),
    lambda text: text.lstrip("\n"),
)
"""What templates do to the text of a turn."""
_ANCHORS = ("]", ".", "a", "\n")
"""Texts behind which others are tokenised as they are within a text."""


class Tokens(NamedTuple):
    """An answer's token ids after those of its prompt. `crossed`: the tokenizer would join the end
    of the prompt and the beginning of the answer in one token, so each was tokenised by itself.
    `sampled`: they are the ids that were sampled."""

    ids: list[int]
    crossed: bool = False
    sampled: bool = False


class _Frame(NamedTuple):
    """What the template writes around an answer."""

    header: str
    between: str
    suffix: str


@dataclass(frozen=True)
class AnswerTurn:
    """The assistant's turn after a prompt.

    With `whole` the conversation is the one that the template renders when an answer is there, as
    readers of whole conversations have it (reward models). Without, it goes on from the text that a
    model is given to write an answer. The two differ where a template forgets earlier thinking, or
    opens some.
    """

    tokenizer: Any
    messages: Sequence[Message]
    chat: ChatSettings = KEEP
    whole: bool = False

    @cached_property
    def given(self) -> str:
        """The prompt's text. Raises EngineError where the template does not take it."""
        asked = render_prompt(self.tokenizer, self.messages, self.chat)
        if not self.whole:
            return asked
        header = self._frame.header
        if header.startswith(asked):
            return asked
        # Where a template opens thinking for generation alone, that is no part of the conversation.
        opened = opened_by(asked, self.chat.markers)
        shorter = asked if opened is None else asked.removesuffix(opened.text)
        if header.startswith(shorter):
            return shorter
        # Or it writes earlier turns another way once an answer follows: then its header holds.
        lead = _after_last_turn(self.messages, asked, header)
        return header.removesuffix(lead) if lead is not None else header

    @cached_property
    def prompt_ids(self) -> list[int]:
        """The prompt's token ids, the same for every answer to it."""
        return _encode_text(self.tokenizer, self.given)

    @cached_property
    def _frame(self) -> _Frame:
        """What stands around a plain answer. Raises EngineError where that depends on the answer,
        or the answer cannot be found."""
        found = self._find_frame(_make_plain_turn)
        if found is None:
            raise EngineError(_CHANGED)
        return found

    @cached_property
    def _opened(self) -> Opened | None:
        return opened_by(self.given, self.chat.markers)

    def text(self, answer: Message, reasoning: Reasoning = "keep") -> tuple[str, str]:
        """What the model writes of its turn to give `answer`, and what the template puts after it.
        Raises EngineError where that cannot be told."""
        thinking, content = self._separate_thinking(answer, reasoning)
        if answer.get("tool_calls") or self.whole:
            return self._as_rendered(
                answer if reasoning == "keep" else _drop_thinking(answer, content)
            )
        # Thinking that never ends has no answer after it: the text is taken as it is.
        cut = not content.strip() and not _thinking_key(answer)
        if reasoning == "strip" or not thinking or cut:
            stripped = reasoning == "strip" and thinking
            plain = content if stripped else str(answer["content"] or "")
            # A template may write the empty block that an answer begins with by itself.
            text = self._find_content(plain, plain if thinking else content)
            return self._find_lead(self._frame.header) + text, self._frame.suffix
        return self._with_thinking(answer, thinking, content)

    def followed_by(self, reply: Message, sampled: Sequence[int]) -> list[int]:
        """The ids between an answer and the next one, when `reply` is the turn between them: the
        end of the answer's turn, unless it was `sampled`, the reply, and what opens the next turn.
        Raises EngineError where the template leaves the reply out, or writes it in a way that
        depends on the answer."""
        mark = "Qz7"
        while any(mark in str(m["content"]) for m in [*self.messages, reply]):
            mark += "x"
        found = set()
        for answer in (f"{mark}A", f"{mark}Answer"):
            conversation = [*self.messages, _make_plain_turn("", answer), reply]
            text = render(self.tokenizer, conversation, self.chat, True)  # type: ignore[arg-type]
            found.add(text.partition(answer)[2])
        after = found.pop()
        if found or reply["content"].strip() not in after:
            raise EngineError(
                f"this chat template does not write a {reply['role']} turn after an answer as it "
                "is, so a conversation cannot go on token by token. Use another template or role."
            )
        ended = bool(sampled) and sampled[-1] in self._ends
        end, _ = self._choose_ending(self._frame.suffix, "turn")
        return encode_behind(self.tokenizer, after.removeprefix(end) if ended else after)

    def lost(self, answer: Message, reasoning: Reasoning = "keep") -> Counter[str]:
        """What of the answer is not in its text, as `rlaif.core.chat.count_lost` counts it."""
        conversation = [*self.messages, answer]
        own = count_lost(self.tokenizer, conversation, self.chat, False, len(self.messages))
        if reasoning == "strip" or not (self.whole or answer.get("tool_calls")):
            # Left out on purpose, or written where the template does not.
            own.pop("reasoning_lost", None)
        return own

    def tokens(
        self,
        answer: Message,
        end: End,
        reasoning: Reasoning = "keep",
        sampled: Sequence[int] | None = None,
    ) -> Tokens:
        """The answer's token ids, with what `end` says; those that were `sampled` where they spell
        it. None where nothing is left of it without its thinking. Raises EngineError."""
        if reasoning == "strip":
            thinking, content = self._separate_thinking(answer, reasoning)
            if thinking and not content.strip():
                return Tokens([])
        text, suffix = self.text(answer, reasoning)
        # Tokenised anew the same text may be other tokens, whose log-probs are not the sampler's.
        if sampled and self._ids_match_answer(sampled, answer, text, reasoning):
            return Tokens(self._adjust_end(list(sampled), suffix, end), sampled=True)
        tail, more = self._choose_ending(suffix, end)
        ids, crossed = encode_after(self.tokenizer, self.given, self.prompt_ids, text + tail)
        return Tokens([*ids, *more], crossed)

    def _separate_thinking(self, answer: Message, reasoning: Reasoning) -> tuple[str, str]:
        """Thinking and answer, from the message's own keys or out of its text. With `reasoning`
        strip the thinking may have begun in the prompt."""
        apart = _thinking_key(answer)
        content = str(answer["content"] or "")
        if apart:
            return apart, content
        said = self._split_reasoning(content, opened_by(self._asked, self.chat.markers), reasoning)
        return said.reasoning, said.answer

    def _split_reasoning(
        self, text: str, opened: Opened | None, reasoning: Reasoning = "keep"
    ) -> Said:
        chat = replace(self.chat, opened=True) if reasoning == "strip" else self.chat
        return split(text, chat, "" if opened is None else opened.text, unclosed="answer")

    @cached_property
    def _asked(self) -> str:
        return render_prompt(self.tokenizer, self.messages, self.chat) if self.whole else self.given

    def _as_rendered(self, answer: Message) -> tuple[str, str]:
        """All that the template writes of the turn."""
        text = self._render_conversation(answer)
        suffix = self._frame.suffix
        if not text.startswith(self.given) or not text.endswith(suffix):
            raise EngineError(_OTHER_PROMPT)
        return text[len(self.given) : len(text) - len(suffix)], suffix

    def _find_content(self, content: str, without: str) -> str:
        """The text of a plain answer as the template writes it: all of `content`, or `without` its
        thinking where the template drops that."""
        header, _, suffix = self._frame
        for plain in dict.fromkeys((content, without)):
            text = self._render_conversation({"role": "assistant", "content": plain})
            for form in FORMS:
                if text == header + form(plain) + suffix:
                    return form(plain)
        if not content.strip():
            # Many templates write a turn without text in a way of its own.
            return ""
        raise EngineError(_CHANGED)

    def _with_thinking(self, answer: Message, thinking: str, content: str) -> tuple[str, str]:
        """Thinking, then the answer: as the template writes it, or where it forgets thinking, as
        models write it."""
        found = self._render_both_parts(_make_thinking_turn, thinking, content) or self._as_given(
            answer
        )
        found = found or self._render_both_parts(self._inline_thinking, thinking, content)
        if found is not None:
            return found
        block = write_thinking(thinking, self._opened, self.chat.markers)
        return block + content, self._frame.suffix

    def _inline_thinking(self, thinking: str, answer: str) -> dict[str, Any]:
        return _make_plain_turn("", write_thinking(thinking, None, self.chat.markers) + answer)

    def _as_given(self, answer: Message) -> tuple[str, str] | None:
        """The text with thinking in it, where the template leaves it alone."""
        if _thinking_key(answer) or self._opened is not None:
            return None
        header, _, suffix = self._frame
        given = str(answer["content"] or "")
        text = self._render_conversation(_make_plain_turn("", given))
        forms = (form(given) for form in FORMS)
        found = next((own for own in forms if text == header + own + suffix), None)
        return None if found is None else (self._find_lead(header) + found, suffix)

    def _render_both_parts(
        self, build: Callable[[str, str], Mapping[str, Any]], thinking: str, content: str
    ) -> tuple[str, str] | None:
        """Both parts as the template writes a turn that `build` makes of them; None where it leaves
        one out, or does not go on from the prompt."""
        frame = self._find_frame(build)
        if frame is None or not frame.header.startswith(self.given):
            return None
        text = self._render_conversation(build(thinking, content))
        # Templates strip each of the two in a way of its own.
        for think, form in product(FORMS, FORMS):
            inner = think(thinking) + frame.between + form(content)
            if text == frame.header + inner + frame.suffix:
                return frame.header[len(self.given) :] + inner, frame.suffix
        return None

    def _find_lead(self, header: str) -> str:
        """What stands between the prompt and an answer without thinking."""
        if header.startswith(self.given):
            return header[len(self.given) :]
        if self._opened is not None:
            return write_thinking("", self._opened, self.chat.markers)
        lead = _after_last_turn(self.messages, self.given, header)
        if lead is None:
            raise EngineError(_OTHER_PROMPT)
        return lead

    def _find_frame(self, build: Callable[[str, str], Mapping[str, Any]]) -> _Frame | None:
        """What the template writes around stand-ins for thinking and answer, of which `build` makes
        a turn; None where it loses one, or where its text depends on them."""
        mark = "Qz7"
        # Nothing else in the conversation may look like a stand-in.
        while any(mark in str(m["content"]) for m in self.messages):
            mark += "x"
        frames = set()
        for thinking, answer in ((f"{mark}T", f"{mark}A"), (f"{mark}Three", f"{mark}Answer")):
            turn = build(thinking, answer)
            parts = [answer] if build is _make_plain_turn else [thinking, answer]
            frames.add(_cut_frame(self._render_conversation(turn), parts))
        return frames.pop() if len(frames) == 1 else None

    def _render_conversation(self, answer: Mapping[str, Any]) -> str:
        conversation: list[Any] = [*self.messages, answer]
        return render(self.tokenizer, conversation, self.chat, False)

    def _choose_ending(self, suffix: str, end: End) -> tuple[str, list[int]]:
        """What of `suffix` goes with an answer: of a turn its beginning up to the token that ends
        it, and where the template has none, the model's own end token."""
        if end != "turn":
            return suffix if end == "all" else "", []
        # The first to come, and of those that begin together the longest.
        found = [
            (at, -len(t), t)
            for t in list_special_tokens(self.tokenizer)
            if (at := suffix.find(t)) >= 0
        ]
        if found:
            at, _, token = min(found)
            return suffix[: at + len(token)], []
        own = self.tokenizer.eos_token_id
        return "", [] if own is None else [own]

    def _ids_match_answer(
        self, ids: Sequence[int], answer: Message, text: str, reasoning: Reasoning
    ) -> bool:
        """Whether sampled ids are this answer, with or without thinking before it."""
        content = str(answer["content"] or "")
        thinking, plain = self._separate_thinking(answer, reasoning)
        if self.whole:
            # Sampled ids have nothing of what the template writes before an answer.
            return text.strip() == content.strip() == self._decode_ids(ids, True).strip()
        if self._decode_ids(ids, True).strip() == content.strip():
            return reasoning == "keep" or not thinking
        said = self._split_reasoning(self._decode_ids(ids, False), self._opened)
        return said.answer.strip() == plain.strip() and (reasoning == "keep" or not said.reasoning)

    def _decode_ids(self, ids: Sequence[int], skip: bool) -> str:
        ends = self._ends
        # Markers of thinking stay: only the end of the turn is taken off.
        kept = ids[:-1] if not skip and ids and ids[-1] in ends else ids
        return str(self.tokenizer.decode(list(kept), skip_special_tokens=skip))

    @cached_property
    def _ends(self) -> frozenset[int]:
        """The tokens that end a turn."""
        special = set(
            self.tokenizer.convert_tokens_to_ids(list(list_special_tokens(self.tokenizer)))
        )
        suffix = _encode_text(self.tokenizer, self._frame.suffix)
        # Special ones alone: a plain word of the suffix would end answers that hold it.
        return frozenset({i for i in suffix if i in special} | {self.tokenizer.eos_token_id})

    def _adjust_end(self, ids: list[int], suffix: str, end: End) -> list[int]:
        """Sampled ids with what goes with them: an end only where it was sampled, or all."""
        ended = bool(ids) and ids[-1] in self._ends
        if end == "turn":
            return ids
        own = ids[:-1] if ended else ids
        return own if end == "none" else [*own, *encode_behind(self.tokenizer, suffix)]


_CHANGED = (
    "this chat template changes the text of an answer, so its tokens cannot be found in the "
    "rendered conversation. Use a template that writes answers as they are."
)
_OTHER_PROMPT = (
    "this chat template does not write the prompt the same way once an answer follows, so what to "
    "learn cannot be told from what is given. Use a template whose generation prompt is the start "
    "of the assistant's turn."
)


def _thinking_key(answer: Mapping[str, Any]) -> str:
    return next((str(answer[key]).strip() for key in THINKING_KEYS if answer.get(key)), "")


def _make_plain_turn(thinking: str, answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": answer}


def _make_thinking_turn(thinking: str, answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": answer} | dict.fromkeys(THINKING_KEYS, thinking)


def _drop_thinking(answer: Message, content: str) -> Message:
    kept = {k: v for k, v in answer.items() if k not in THINKING_KEYS}
    return {**kept, "content": content}  # type: ignore[typeddict-item]


def _cut_frame(text: str, parts: Sequence[str]) -> _Frame | None:
    """The text around one or two parts; None where they are not there once each, in order."""
    if any(text.count(part) != 1 for part in parts):
        return None
    header, _, rest = text.partition(parts[0])
    between, found, suffix = rest.partition(parts[-1]) if len(parts) == 2 else ("", "x", rest)
    return _Frame(header, between, suffix) if found else None


def _after_last_turn(messages: Sequence[Message], given: str, header: str) -> str | None:
    """What `header` has more than `given` after the prompt's last turn, where the two differ before
    it; None where they differ after it as well. Some templates write the system turn in the last
    user turn only while that is the last of all."""
    last = str(messages[-1]["content"] or "").strip() if messages else ""
    if not last or last not in given or last not in header:
        return None
    own, other = given.rpartition(last)[2], header.rpartition(last)[2]
    return other[len(own) :] if other.startswith(own) else None


@lru_cache(maxsize=16)
def list_special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Special and added tokens at which the tokenizer splits text, sorted; added blanks are left
    out."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    every = {*added, *map(str, tokenizer.all_special_tokens)}
    return tuple(sorted(token for token in every if token.strip()))


def _encode_text(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def encode_after(
    tokenizer: Any, given: str, given_ids: Sequence[int], text: str
) -> tuple[list[int], bool]:
    """The ids of `text` after those of `given`, tokenised as one text; and whether a token would
    cross the boundary, so that `text` was tokenised behind it."""
    whole = _encode_text(tokenizer, given + text)
    count = len(given_ids)
    if whole[:count] == list(given_ids):
        return whole[count:], False
    return encode_behind(tokenizer, text), True


def encode_behind(tokenizer: Any, text: str) -> list[int]:
    """The ids of `text` within a longer text, behind a boundary that no token crosses."""
    if not text:
        return []
    for anchor in _ANCHORS:
        before, whole = _encode_text(tokenizer, anchor), _encode_text(tokenizer, anchor + text)
        if whole[: len(before)] == before and len(whole) > len(before):
            return whole[len(before) :]
    return _encode_text(tokenizer, text)
