"""Whether a built site asks other hosts for anything when it is looked at:
`python tools/docs/check_site.py SITE`. Prints what it finds, and ends with 1 if there is any."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

LOADED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "use": ("href", "xlink:href"),
    "image": ("href", "xlink:href"),
    "form": ("action",),
}
"""Attributes whose address a browser opens by itself, or sends what is typed to."""
LINKS = {"stylesheet", "icon", "preconnect", "dns-prefetch", "preload", "modulepreload", "manifest"}
ADDRESS = re.compile(r"(?:https?:)?//[^\s\"')]+")
IN_STYLE = re.compile(r"(?:url\(\s*[\"']?|@import\s+[\"'])((?:https?:)?//[^\"')]+)")


class _Loads(HTMLParser):
    """Collects the addresses of other hosts that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if "mermaid" in (given.get("class") or "").split():
            self.found.append("https://unpkg.com/mermaid (the theme fetches it for diagrams)")
        names = LOADED.get(tag, ())
        if tag == "link" and LINKS & set((given.get("rel") or "").split()):
            names = ("href",)
        for name in names:
            self.found += ADDRESS.findall(given.get(name) or "")
        self.found += IN_STYLE.findall(given.get("style") or "")
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._style:
            self.found += IN_STYLE.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self._style = False


def find_loads(site: Path) -> Iterator[tuple[str, str]]:
    """(file, address) for everything that is loaded from another host."""
    for path in sorted(site.rglob("*")):
        name = path.relative_to(site).as_posix()
        if path.suffix == ".html":
            page = _Loads()
            page.feed(path.read_text("utf-8"))
            yield from ((name, address) for address in page.found)
        elif path.suffix == ".css":
            yield from ((name, a) for a in IN_STYLE.findall(path.read_text("utf-8")))


if __name__ == "__main__":
    loads = list(find_loads(Path(sys.argv[1])))
    for file, address in loads:
        print(f"{file}: loads {address}")
    sys.exit(1 if loads else 0)
