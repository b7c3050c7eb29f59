"""From messages to the exact text a model sees, the same for sampling, judging and training.

A reasoning model's thinking is told apart from its answer here, for what engines make and for texts
that are trained, scored or judged. A server with a reasoning parser separates the two. Any other
server, every engine in this process and many data sets have one text: the thinking between two
markers, then the answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import jinja2

from rlaif.core.errors import EngineError
from rlaif.core.records import Message

Markers = Sequence[tuple[str, str]]
"""Pairs of texts that open and close thinking."""

MARKERS: Markers = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
)
"""Those of a model that says nothing of its thinking."""

WAS_CUT = "cut while thinking"
CUT = f"{WAS_CUT}: thinking used up the tokens, raise `max_new_tokens`"
"""Why there is no answer where the thinking had no end."""

MOST_MARKER = 200
"""No marker has more characters."""

# gpt-oss writes channels: analysis and commentary are thinking, final is the answer.
_CHANNEL = (
    re.compile(r"(?:<\|start\|>assistant)?<\|channel\|>\s*(?:analysis|commentary)[^<]*"
               r"(?:<\|constrain\|>[^<]*)?<\|message\|>"),
    re.compile(r"(?:<\|end\|>\s*)?(?:<\|start\|>assistant)?<\|channel\|>\s*final[^<]*"
               r"(?:<\|constrain\|>[^<]*)?<\|message\|>"),
)  # fmt: skip
CHANNEL_TOKENS = frozenset({"<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"})
"""Control tokens that a text must keep for its channels to be told apart."""
_CHANNEL_ENDS = re.compile(r"\s*(?:<\|(?:end|return|call)\|>\s*)+\Z")


class Declared(Protocol):
    """What is declared of a model's thinking, in its spec or its chat's settings."""

    @property
    def markers(self) -> Markers:
        """What opens and closes it, besides the channels of gpt-oss."""

    @property
    def opened(self) -> bool:
        """Whether the opening marker stands in the prompt, so that a text has the closing one
        alone."""


@dataclass(frozen=True, slots=True)
class Said:
    """A text in two parts. `cut`: its thinking has no end, so that there is no answer."""

    reasoning: str
    answer: str
    cut: bool = False


class Opened(NamedTuple):
    """The block of thinking that a prompt leaves open: its markers and the blanks after the first
    one."""

    marker: str
    closing: str
    blanks: str

    @property
    def text(self) -> str:
        """The prompt's end."""
        return self.marker + self.blanks


def split(
    text: str,
    spec: Declared,
    before: str = "",
    unclosed: Literal["thinking", "answer"] = "thinking",
) -> Said:
    """The thinking in `text` and the answer after it. `before` is what the model went on from, as
    far as it is known: the rendered prompt or the prefill.

    Thinking begins with a marker at the very start, or before the text (`before` ends with one, or
    is not known and the model is declared so); it ends at the first marker that closes it. Markers
    elsewhere are part of the answer. `unclosed` says what a text is whose thinking began before it
    and has no end: what a model has just written was cut, while an answer out of a file may have
    been written without thinking.
    """
    pairs = _compile_markers(spec.markers)
    start = text.lstrip()
    for opening, closing in pairs:
        found = opening.match(start)
        if found is not None:
            return _part_at_closing(start[found.end() :], [closing])
    closings = [closing for opening, closing in pairs if _ends_with(before, opening)]
    # Nothing is known of the prompt, so the declaration decides, and any marker may close.
    if spec.opened and not before.strip():
        closings = [closing for _, closing in pairs]
    if closings:
        said = _part_at_closing(text, closings)
        return Said("", text) if said.cut and unclosed == "answer" else said
    # Nothing was thought: what is left of an empty thinking that the template began.
    empty = next((m for _, closing in pairs if (m := closing.match(start))), None)
    return Said("", text) if empty is None else Said("", _clean_answer(start[empty.end() :]))


def opens_thinking(text: str, spec: Declared) -> bool:
    """Whether `text`, the start of an answer or one of its first tokens, begins to think."""
    start = text.strip()
    if not start:
        return False
    known = [opening for opening, _ in _strip_markers(spec.markers)] + ["<|channel|>"]
    # A marker may be several tokens, of which the first is a part: "<th".
    return any(start.startswith(m) or (len(start) > 1 and m.startswith(start)) for m in known)


def thinks_from(before: str, spec: Declared) -> bool:
    """Whether what the model goes on from ends with a marker that opens thinking."""
    return any(_ends_with(before, opening) for opening, _ in _compile_markers(spec.markers))


def opened_by(prompt: str, markers: Markers = MARKERS) -> Opened | None:
    """The block of thinking between markers that a rendered prompt ends with; None where it opens
    none."""
    kept = prompt.rstrip()
    for marker, closing in _strip_markers(markers):
        if kept.endswith(marker):
            return Opened(marker, closing, prompt[len(kept) :])
    return None


def write_thinking(thinking: str, opened: Opened | None, markers: Markers = MARKERS) -> str:
    """A block of thinking, and the blanks after it, as a model writes it after a prompt that has
    `opened` one or not: then with the first of its `markers`. Without any thinking the block is
    empty, as Qwen3's template writes it."""
    marker, closing = _strip_markers([*markers, *MARKERS])[0] if opened is None else opened[:2]
    before = f"{marker}\n{thinking}\n" if thinking else f"{marker}\n\n"
    already = "" if opened is None else opened.text
    # What the prompt ends with is not written again; more blanks than usual do no harm.
    rest = before[len(already) :] if before.startswith(already) else f"{thinking}\n".lstrip("\n")
    return f"{rest}{closing}\n\n"


def marker_texts(spec: Declared) -> frozenset[str]:
    """What tells thinking from answer, where each is one token."""
    return (
        frozenset(marker for pair in _strip_markers(spec.markers) for marker in pair)
        | CHANNEL_TOKENS
    )


def _strip_markers(markers: Markers) -> list[tuple[str, str]]:
    """The markers without the blanks around them, of which models write more or fewer."""
    return [(opening.strip(), closing.strip()) for opening, closing in markers]


def _compile_markers(markers: Markers) -> list[tuple[re.Pattern[str], re.Pattern[str]]]:
    known = _strip_markers(markers)
    return [*((re.compile(re.escape(a)), re.compile(re.escape(b))) for a, b in known), _CHANNEL]


def _part_at_closing(text: str, closings: Sequence[re.Pattern[str]]) -> Said:
    """What stands before and after the first marker that closes."""
    found = (match for closing in closings if (match := closing.search(text)))
    end = min(found, key=lambda match: match.start(), default=None)
    if end is None:
        return Said(_clean_answer(text), "", True)
    return Said(_clean_answer(text[: end.start()]), _clean_answer(text[end.end() :]))


def _clean_answer(text: str) -> str:
    return _CHANNEL_ENDS.sub("", text).strip()


def _ends_with(before: str, opening: re.Pattern[str]) -> bool:
    tail = before.rstrip()[-MOST_MARKER:]
    return any(found.end() == len(tail) for found in opening.finditer(tail))


SystemRole = Literal["keep", "merge", "drop"]


def with_system_role(messages: Sequence[Message], system_role: SystemRole) -> list[Message]:
    """The turns as a model takes them that has no system role, or wants roles to alternate.

    keep: as they are; drop: without system turns; merge: a system turn becomes the beginning of the
    next user turn, and neighbours of one role become one turn, with an empty line between.
    """
    if system_role == "keep":
        return list(messages)
    if system_role == "drop":
        return [message for message in messages if message["role"] != "system"]
    merged: list[Message] = []
    for message in messages:
        role = "user" if message["role"] == "system" else message["role"]
        # Each tool's turn answers a call of its own.
        if merged and merged[-1]["role"] == role != "tool":
            merged[-1] = _as_one(merged[-1], message)
        else:
            merged.append({**message, "role": role})
    return merged


def _as_one(first: Message, second: Message) -> Message:
    """Two turns of one role as one."""
    # Of other keys that both have, the first turn's stay.
    one: Message = {**second, **first}
    one["content"] = "\n\n".join(filter(None, (first["content"], second["content"])))
    calls = [call for m in (first, second) for call in m.get("tool_calls", ())]
    if calls:
        one["tool_calls"] = calls
    thoughts = [m["reasoning_content"] for m in (first, second) if m.get("reasoning_content")]
    if thoughts:
        one["reasoning_content"] = "\n\n".join(thoughts)
    return one


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What a model's conversations are rendered with, besides its chat template, and what tells
    thinking from answers in them.

    `system_prompt`: keep leaves what the template inserts by itself; drop takes it out; any other
    text is used as the system turn. A prompt with a system turn of its own keeps that one.
    `system_role`: see `with_system_role`. `template_kwargs` are variables of the template, such as
    {"enable_thinking": False}. `markers` and `opened`: see `rlaif.core.chat.split`.
    """

    system_prompt: str = "keep"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    system_role: SystemRole = "keep"
    markers: Markers = MARKERS
    opened: bool = False


KEEP = ChatSettings()
"""What the template does by itself."""


THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Where templates look for a turn's thinking: Qwen3 and DeepSeek, newer ones, gpt-oss."""
LOST = ("tool_calls_lost", "tool_turns_lost", "reasoning_lost")
"""What `count_lost` counts."""


class TemplateRefusal(EngineError):
    """A chat template that does not take a conversation: its roles, or their order."""


def render(
    tokenizer: Any, messages: Sequence[Message], chat: ChatSettings, generation: bool
) -> str:
    """The text of a conversation, with `generation` up to where the assistant's turn begins. Raises
    TemplateRefusal."""
    told = any(m["role"] == "system" for m in messages)
    given = chat.system_prompt not in ("keep", "drop") and not told
    conversation = [_make_system_turn(chat.system_prompt), *messages] if given else list(messages)
    conversation = with_system_role(conversation, chat.system_role)
    if chat.system_prompt != "drop" or told:
        return _apply_template(tokenizer, conversation, chat, generation)
    try:
        # An empty system turn stops the template from inserting its own; then that turn is cut off.
        whole = _apply_template(tokenizer, [_make_system_turn(""), *conversation], chat, generation)
        turn = _apply_template(tokenizer, [_make_system_turn("")], chat, False)
    except TemplateRefusal:
        # A template that takes no system turn is taken to insert none.
        return _apply_template(tokenizer, conversation, chat, generation)
    # One that writes the system turn elsewhere gives nothing that could be cut off.
    return whole[len(turn) :] if whole.startswith(turn) else whole


def render_prompt(tokenizer: Any, messages: Sequence[Message], chat: ChatSettings = KEEP) -> str:
    """The prompt's text up to where the assistant's turn begins. Raises TemplateRefusal."""
    return render(tokenizer, messages, chat, True)


_QUESTION = "<the question stands here>"


def render_opening(tokenizer: Any, messages: Sequence[Message], chat: ChatSettings = KEEP) -> str:
    """The text up to where the next user turn begins, after `messages`: what Magpie has a model
    continue (arXiv 2406.08464, section 2.1). Raises EngineError when the template hides it."""
    asked: list[Message] = [*messages, {"role": "user", "content": _QUESTION}]
    before, mark, _ = render_prompt(tokenizer, asked, chat).partition(_QUESTION)
    if not mark:
        raise EngineError("this chat template changes a user's text, so no turn can be left open")
    return before


def _make_system_turn(text: str) -> Message:
    return {"role": "system", "content": text}


def _apply_template(
    tokenizer: Any, messages: Sequence[Message], chat: ChatSettings, generation: bool
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                [_thinking_by_every_name(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation,
                **chat.template_kwargs,
            )
        )
    except jinja2.TemplateError as error:
        raise TemplateRefusal(_describe_refusal(messages, error)) from None


def _thinking_by_every_name(message: Message) -> Mapping[str, Any]:
    thinking = next((message[key] for key in THINKING_KEYS if message.get(key)), None)  # type: ignore[literal-required]
    return message if thinking is None else {**dict.fromkeys(THINKING_KEYS, thinking), **message}


def has_more(message: Message) -> bool:
    """Whether a turn has what a template may leave out."""
    return bool(message.get("tool_calls") or message.get("reasoning_content")) or (
        message["role"] == "tool"
    )


def count_lost(
    tokenizer: Any,
    messages: Sequence[Message],
    chat: ChatSettings = KEEP,
    generation: bool = True,
    first: int = 0,
) -> Counter[str]:
    """How many of the turns from number `first` on have tool calls (`tool_calls_lost`), a tool's
    answer (`tool_turns_lost`) or reasoning (`reasoning_lost`) of which the rendered conversation
    shows nothing: its text is the same when they are others. Raises TemplateRefusal."""
    found: Counter[str] = Counter()
    if not any(has_more(message) for message in messages[first:]):
        return found
    text = render(tokenizer, messages, chat, generation)
    for number, message in enumerate(messages[first:], first):
        for name, others in _vary_parts(message).items():
            whole = ([*messages[:number], other, *messages[number + 1 :]] for other in others)
            found[name] += any(_try_render(tokenizer, w, chat, generation) == text for w in whole)
    # Unary plus drops counts of 0.
    return +found


def _vary_parts(message: Message) -> dict[str, list[Message]]:
    """By each part that may be lost, the turn with something else in that part."""
    others: dict[str, list[Message]] = {}
    calls = message.get("tool_calls")
    if calls:
        kept = {key: value for key, value in message.items() if key != "tool_calls"}
        # A template may write the names of calls and drop their arguments.
        others["tool_calls_lost"] = [
            kept,  # type: ignore[list-item]
            {**message, "tool_calls": [_other_call(call) for call in calls]},
        ]
    if message["role"] == "tool" and message["content"]:
        others["tool_turns_lost"] = [{**message, "content": message["content"] + _QUESTION}]
    if message.get("reasoning_content"):
        others["reasoning_lost"] = [{**message, "reasoning_content": _QUESTION}]
    return others


def _other_call(call: dict[str, Any]) -> dict[str, Any]:
    """The call with other arguments."""
    inside = call.get("function", call)
    changed = {**inside, "arguments": {_QUESTION: _QUESTION}}
    return {**call, "function": changed} if "function" in call else changed


def _try_render(
    tokenizer: Any, messages: Sequence[Message], chat: ChatSettings, generation: bool
) -> str | None:
    """The rendered text, or None if the template refuses the turns: it has then read them."""
    try:
        return render(tokenizer, messages, chat, generation)
    except TemplateRefusal:
        return None


def _describe_refusal(messages: Sequence[Message], error: jinja2.TemplateError) -> str:
    roles = [m["role"] for m in messages]
    asked = next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")
    said = str(error).rstrip(".")
    remedy = (
        "Where it takes no system turn, or wants user and assistant to alternate, give the model "
        "`system_role: merge`; `drop` leaves system turns out"
    )
    return (
        f"the chat template refuses the conversation about {asked[:60]!r} with the turns "
        f"{', '.join(roles)}: {said}. {remedy}."
    )


def is_unicode(texts: Iterable[str]) -> bool:
    """Whether no text contains half a surrogate pair."""
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
