"""Markdown as HTML that runs and loads nothing."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.web.annotate.markdown import ATTRIBUTES, FIXED, LONGEST, TAGS, render_markdown


class Elements(HTMLParser):
    """The elements of a text, and the attributes of each."""

    def __init__(self, html: str):
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_markdown_is_rendered() -> None:
    html = render_markdown("# A title\n\n*one* **two** ~~three~~\n\n| a |\n|---|\n| b |\n\n1. x\n")
    for part in (
        "<h3>A title</h3>",
        "<em>one</em>",
        "<strong>two</strong>",
        "<s>three</s>",
        "<td>b</td>",
        "<ol>",
    ):
        assert part in html
    code = render_markdown("```python\nif a < b:\n    pass\n```")
    assert "if a &lt; b:\n    pass" in code and '<pre tabindex="0">' in code
    assert render_markdown("one\ntwo") == "<p>one<br>\ntwo</p>\n"


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:x)",
    "<javascript:alert(1)>",
    "![x](javascript:alert(1))",
    '[x](http://e.example "<pre>onmouseover=alert(1)")',
    '[x](http://e.example/"onmouseover="alert(1))',
    '```"><script>alert(1)</script>\nx\n```',
    "<style>*{display:none}</style>",
    "<iframe src=//e.example></iframe>",
    "<form action=//e.example><input></form>",
    "<!-- --><b>x</b>",
    "&lt;script&gt;",
    "| <img src=x onerror=alert(1)> |\n|---|\n| `<script>` |",
    "<x:a xmlns:x='http://www.w3.org/1999/xhtml' onload='alert(1)'/>",
    '<math><mi//xlink:href="data:x,<script>alert(1)</script>">',
    '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_texts(text: str) -> None:
    check(render_markdown(text))
    check(render_markdown(f"> - {text}"))


def test_html_is_shown_as_text() -> None:
    for text in ("<b>bold</b>", "<script>alert(1)</script>", "a <i>b</i> &amp; c"):
        assert "<" in Elements(render_markdown(text)).text
        assert not {"b", "i", "script"} & {tag for tag, _ in Elements(render_markdown(text)).seen}


def check(html: str) -> None:
    for tag, attributes in Elements(html).seen:
        assert tag in TAGS
        allowed = {*ATTRIBUTES.get(tag, ()), *FIXED.get(tag, {}), *(["rel"] if tag == "a" else [])}
        assert set(attributes) <= allowed
        assert (attributes.get("href") or "http:").startswith(
            ("http:", "https:", "mailto:", "#", "/", ".")
        )


@given(st.text(alphabet="<>\"'`[]()!|*_~#-=&;: \nabjvscript/on", max_size=80))
def test_any_text_is_harmless(text: str) -> None:
    check(render_markdown(text))


def test_nothing_is_loaded() -> None:
    html = render_markdown("![a cat](http://e.example/cat.png)")
    assert "<img" not in html
    assert 'href="http://e.example/cat.png"' in html and "[image: a cat]" in html
    assert 'rel="noopener noreferrer nofollow"' in html and 'target="_blank"' in html


def test_a_very_long_text_and_half_a_character_are_shown() -> None:
    html = render_markdown("<b>*x*" * LONGEST)
    assert html.startswith('<pre tabindex="0">&lt;b&gt;*x*')
    assert render_markdown("a\ud800b") == "<p>a?b</p>\n"
