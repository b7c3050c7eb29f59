"""Markdown of people and models as HTML that runs nothing and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from html import escape

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token

LONGEST = 100_000
"""Characters that are parsed; a longer text is shown as it is."""
TAGS = {
    *("p", "br", "hr", "blockquote", "pre", "code", "em", "strong", "s", "a", "ul", "ol", "li"),
    *("h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"a": {"href"}, "ol": {"start"}, "*": set[str]()}
# What scrolls must be reachable by keyboard.
FIXED = {"pre": {"tabindex": "0"}, "a": {"target": "_blank"}}
SCHEMES = {"http", "https", "mailto"}


def _make_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True})
    return parser.enable(["table", "strikethrough"])


PARSER = _make_parser()


@lru_cache(maxsize=512)
def render_markdown(text: str) -> str:
    """CommonMark with tables as sanitised HTML. HTML in the text is shown as text. An image is
    shown as a link to it, since loading it would tell its server who reads. Headings begin at
    level 3, below those of the page."""
    # Half a surrogate pair is no character that could be sent.
    text = text.encode("utf-8", "replace").decode()
    if len(text) > LONGEST:
        return f'<pre tabindex="0">{escape(text)}</pre>'
    tokens = PARSER.parse(text)
    _adapt_tokens(tokens)
    html = PARSER.renderer.render(tokens, PARSER.options, {})
    return nh3.clean(
        html,
        tags=TAGS,
        attributes=ATTRIBUTES,
        set_tag_attribute_values=FIXED,
        url_schemes=SCHEMES,
        link_rel="noopener noreferrer nofollow",
    )


def _adapt_tokens(tokens: Sequence[Token]) -> None:
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
        if token.children:
            token.children = [part for child in token.children for part in _without_image(child)]


def _without_image(token: Token) -> list[Token]:
    if token.type != "image":
        return [token]
    label = Token("text", "", 0, content=f"[image: {token.content or 'without a text'}]")
    link = Token("link_open", "a", 1, attrs={"href": token.attrs.get("src", "")})
    return [link, label, Token("link_close", "a", -1)]
