"""Judge prompts: Jinja2 files that become the turns a judge model reads.

A template file renders the text of one user turn. Lines that hold only `---system---`,
`---user---`, `---then---`, `---prefill---` or `---form---` divide it into sections: a system turn,
the user turn, the turn that asks for a verdict once the judge has written its reasons, the start of
the judge's own answer, and the form in which the user turn asks for a written verdict, such as
"Score: VALUE". The prefill is used only where the next token's label probabilities are read;
write a trailing space in it as `{{ " " }}`, since white space at line ends is dropped. Comments are
`{# ... #}`; one alone on its line leaves nothing behind, and no comment enters the hash.

What a template inserts is data: it is never rendered as a template, chat control tokens in it are
made inert, and each judged text stands between markers that carry `fence`, a mark that whoever
wrote the text could not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes

from rlaif.core.errors import ConfigError
from rlaif.core.records import Message, content_hash, message_text
from rlaif.core.resources import find
from rlaif.core.yamlio import read_text, suggest
from rlaif.judges.forms import Form, declared
from rlaif.judges.rendering import RenderingError, compiled, environment, render, undeclared

SHARED_VARIABLES = frozenset(
    {
        *("prompt", "conversation", "reference", "fence", "preamble", "examples"),
        *("principle", "principle_id", "principles", "scale", "low", "high", "levels"),
        *("explain", "reason", "structured", "abstain"),
    }
)
POINTWISE = SHARED_VARIABLES | {"response"}
"""What a template that judges one answer may use."""
PAIRWISE = SHARED_VARIABLES | {"response_1", "response_2", "tie"}
"""What a template that compares two answers may use."""
JOINT = SHARED_VARIABLES | {"responses", "count", "aspect", "place"}
"""What a template that rates all answers of a prompt may use."""
CLASSES = POINTWISE | {"classes"}
"""What a template that classifies one answer may use."""
ITEM = POINTWISE | {"item"}
"""What a template that decides one item of a checklist may use."""
ITEMS = POINTWISE | {"items"}
"""What a template that weighs a checklist may use."""
WRITING = SHARED_VARIABLES | {"most"}
"""What a template that writes a checklist may use: no judged answer."""
SUGGESTING = SHARED_VARIABLES | {"most", "state"}
"""What a template that suggests goals in an episode may use: no turn that is judged."""

_SECTIONS = ("system", "user", "then", "prefill", "form")
_SECTION = re.compile(r"^---(system|user|then|prefill|form)---$\n?", re.MULTILINE)
_CONTROL = re.compile(r"<\|[^<>|\n]{1,64}\|>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>")


@dataclass(frozen=True, slots=True)
class Template:
    """A checked template. `hash` covers the source without comments; `variables` are those used;
    `form` is the one that it declares for a written verdict; `lines` has, for each section, the
    file's line of every line of it."""

    name: str
    sections: tuple[tuple[str, str], ...]
    hash: str
    variables: frozenset[str]
    form: Form | None = None
    lines: tuple[tuple[int, ...], ...] = ()

    @property
    def has_prefill(self) -> bool:
        """Whether the template gives the start of the judge's answer."""
        return "prefill" in dict(self.sections)

    @property
    def has_then(self) -> bool:
        """Whether the template has a turn that asks for a verdict after the judge's reasons."""
        return "then" in dict(self.sections)

    def messages(self, values: Mapping[str, Any]) -> list[Message]:
        """The system turn, if there is one, and the user turn."""
        return [
            {"role": section, "content": self._render_section(section, values).strip()}
            for section, _ in self.sections
            if section in ("system", "user")
        ]

    def then(self, values: Mapping[str, Any]) -> str:
        """The user turn after the judge's reasons, or an empty string."""
        return self._render_section("then", values).strip()

    def prefill(self, values: Mapping[str, Any]) -> str:
        """The start of the judge's answer, or an empty string."""
        return self._render_section("prefill", values).strip("\n")

    def _render_section(self, section: str, values: Mapping[str, Any]) -> str:
        """A section filled in; an empty text where the template has none of it. Raises ConfigError
        with the line for what an expression raises, and past the limits of `rendering`."""
        source = dict(self.sections).get(section)
        if source is None:
            return ""
        try:
            return render(source, {name: values.get(name) for name in self.variables})
        except RenderingError as error:
            raise ConfigError(
                f"this template cannot be rendered: {error}",
                self.name,
                self._find_line(section, error.line),
            ) from None

    def _find_line(self, section: str, line: int | None) -> int | None:
        """The file's line of a section's line."""
        place = [name for name, _ in self.sections].index(section)
        known = self.lines[place] if place < len(self.lines) else ()
        return known[line - 1] if line is not None and 0 < line <= len(known) else None


def load_template(
    name: str,
    allowed: frozenset[str] = POINTWISE,
    required: frozenset[str] = frozenset(),
    beside: Path | None = None,
) -> Template:
    """The template file that a config calls `name`, checked.

    Every variable it uses must be in `allowed`, and it must use all of `required`. Raises
    ConfigError with the line otherwise, and for bad syntax.
    """
    path = find(name, beside)
    lines = [line.rstrip() for line in read_text(path).replace("\r\n", "\n").split("\n")]
    used = _check_source("\n".join(lines), path, allowed)
    unused = sorted(required - used)
    if unused:
        raise ConfigError(f"this template must use {{{{ {unused[0]} }}}}, and does not", path)
    source, origins = _strip_comments("\n".join(lines))
    sections, starts = _split_sections(source, lines, path)
    places = tuple(
        tuple(origins[start : start + body.count("\n") + 1])
        for (_, body), start in zip(sections, starts, strict=True)
    )
    form = _read_form(dict(sections).get("form"), lines, path)
    return Template(str(path), sections, content_hash(source), used, form, places)


def _read_form(text: str | None, lines: list[str], path: Path) -> Form | None:
    if text is None:
        return None
    try:
        return declared(text)
    except ValueError as error:
        raise ConfigError(f"section form: {error}", path, _section_line("form", lines)) from None


@lru_cache(maxsize=256)
def _check_source(source: str, path: Path, allowed: frozenset[str]) -> frozenset[str]:
    known = environment()
    try:
        tree = known.parse(source)
        known.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"template syntax: {error.message}", path, error.lineno) from None
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
        # Python's own limits, of nesting and of digits.
        raise ConfigError(f"template syntax: {error}", path) from None
    # The hash covers one file only, so nothing may be drawn in from another.
    for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        raise ConfigError("a template may not include other files", path, node.lineno)
    used = undeclared(tree) - set(known.globals)
    for unknown in sorted(used - allowed):
        found = [n.lineno for n in tree.find_all(nodes.Name) if n.name == unknown]
        hint = suggest(unknown, sorted(allowed))
        others = f" (known here: {', '.join(sorted(allowed))})" if "known here" not in hint else ""
        message = f"unknown variable {unknown!r}{hint}{others}"
        raise ConfigError(message, path, min(found, default=None))
    return frozenset(used)


def _split_sections(
    source: str, lines: list[str], path: Path
) -> tuple[tuple[tuple[str, str], ...], list[int]]:
    """The sections with their names, and the line of `source`, from 0, at which each begins."""
    before, *pieces = _SECTION.split(source)
    if not pieces:
        return (("user", source),), [0]
    names, bodies = pieces[::2], pieces[1::2]
    first = _section_line(names[0], lines)
    if before.strip():
        raise ConfigError("text before the first section belongs to no turn", path, first)
    if names != [name for name in _SECTIONS if name in names] or "user" not in names:
        raise ConfigError(
            "sections are system, user, then, prefill, form, in that order, each once; only user "
            "must be there",
            path,
            first,
        )
    for name, body in zip(names, bodies, strict=True):
        try:
            compiled(body)
        except jinja2.TemplateSyntaxError as error:
            line = _section_line(name, lines)
            raise ConfigError(f"section {name}: {error.message}", path, line) from None
    starts = [source.count("\n", 0, found.end()) for found in _SECTION.finditer(source)]
    return tuple(zip(names, bodies, strict=True)), starts


def _section_line(name: str, lines: list[str]) -> int:
    """Where a section begins; a comment may stand on the marker's line."""
    return next(n for n, line in enumerate(lines, 1) if f"---{name}---" in line)


def _strip_comments(source: str) -> tuple[str, list[int]]:
    """The source without its comments, and the line of `source`, from 1, of each line that is
    left."""
    text = ""
    origins = [1]
    for number, kind, value in environment().lex(source):
        if kind.startswith("comment"):
            continue
        if not text or text.endswith("\n"):
            origins[-1] = number
        origins += [number + place for place in range(1, value.count("\n") + 1)]
        text += value
    blank = len(text) - len(text.lstrip())
    return text.strip(), origins[text.count("\n", 0, blank) :]


def inert(text: str) -> str:
    """`text` with the control tokens of common chat formats broken by a space.

    A policy can write such a token letter by letter; a tokenizer would read it as the end of the
    user's turn, and what follows as the judge's own answer.
    """
    return _CONTROL.sub(lambda match: match.group()[0] + " " + match.group()[1:], text)


def fence_mark(seed: int, *texts: str) -> str:
    """Eight hex digits, from the run's seed and the texts to be fenced, that none of them contains.

    The order of the texts does not matter: a pair has the same mark in both orders.
    """
    attempt = 0
    while True:
        mark = content_hash("fence", seed, sorted(texts), attempt, length=8)
        if not any(mark in text for text in texts):
            return mark
        attempt += 1


def outside_fence(text: str, mark: str) -> str:
    """`text`, a judge's answer, without what it quotes from between the markers that carry `mark`.

    A quotation runs from a line with the mark to the next "[end MARK]", or to the end of the text:
    a verdict in it is the judged party's. Without a mark nothing is left out.
    """
    return "\n".join(_drop_quoted(text, mark)[0]) if mark and mark in text else text


def in_fence(text: str, mark: str) -> bool:
    """Whether a quotation of the judged texts is open where `text` ends. See `outside_fence`."""
    return bool(mark) and mark in text and _drop_quoted(text, mark)[1]


def _drop_quoted(text: str, mark: str) -> tuple[list[str], bool]:
    kept, quoted = [], False
    for line in text.splitlines():
        if mark in line:
            # "[answer MARK] text [end MARK]" opens and closes on one line.
            closes = re.search(rf"\bend\b\W*{mark}", line, re.IGNORECASE) is not None
            quoted = not closes
            kept.append(line[line.rindex(mark) + len(mark) :].lstrip("]").strip() if closes else "")
        elif not quoted:
            kept.append(line)
    return kept, quoted


def conversation_text(messages: list[Message]) -> str:
    """The turns as plain text: a lone user turn as it is, several with the name of each speaker."""
    if len(messages) == 1:
        return message_text(messages[0])
    return "\n\n".join(f"{m['role'].capitalize()}: {message_text(m)}" for m in messages)
