"""Who may see which page: links, sessions, and what is refused before a page is asked.

A person's link, session cookie and form token are message authentication codes of the name under
the database's secret: they stay the same when the server is started again, and nobody who does not
have the secret can make one.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rlaif.core.errors import ConfigError
from rlaif.web.security import READING

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
"""A person's name in links and votes."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Viewer(NamedTuple):
    """Who looks at a page: a person who votes, or the owner (whose name is empty)."""

    role: Literal["person", "owner"]
    name: str = ""


OWNER = Viewer("owner")


class Access:
    """The links and sessions of a database's people."""

    def __init__(self, secret: bytes, people: Sequence[str]):
        self._secret = secret
        self.viewers = [OWNER, *(Viewer("person", name) for name in people)]
        # Several databases may be served on one host, whose ports share their cookies.
        self._database = self._code("database", "")[:8]

    def _code(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose}:{text}".encode(), sha256).hexdigest()

    def token(self, viewer: Viewer) -> str:
        """What stands in a viewer's link."""
        return self._code(f"link {viewer.role}", viewer.name)

    def session(self, viewer: Viewer) -> str:
        """What stands in a viewer's cookie."""
        return self._code(f"session {viewer.role}", viewer.name)

    def form_token(self, viewer: Viewer) -> str:
        """What a viewer's page sends with everything that changes something."""
        return self._code(f"form {viewer.role}", viewer.name)

    def cookie_name(self, role: str) -> str:
        """What a role's cookie is called."""
        return f"rlaif_{self._database}_{role}"

    def storage_name(self, viewer: Viewer) -> str:
        """Where a person's browser keeps votes that are not sent yet."""
        return f"rlaif.{self._database}.{viewer.name}"

    def by_token(self, token: str) -> Viewer | None:
        """Whose link a token is of."""
        return self._match({viewer: self.token(viewer) for viewer in self.viewers}, token)

    def by_cookies(self, cookies: Mapping[str, str], role: str) -> Viewer | None:
        """Whose session a request is of."""
        known = {v: self.session(v) for v in self.viewers if v.role == role}
        return self._match(known, cookies.get(self.cookie_name(role), ""))

    def is_form_token(self, viewer: Viewer, given: str) -> bool:
        """Whether a request comes from the viewer's own page."""
        return _equal(self.form_token(viewer), given)

    @staticmethod
    def _match(known: Mapping[Viewer, str], given: str) -> Viewer | None:
        """All are compared, each in constant time."""
        fitting = [viewer for viewer, code in known.items() if _equal(code, given)]
        return fitting[0] if fitting else None


def _equal(code: str, given: str) -> bool:
    return hmac.compare_digest(code.encode(), given.encode("utf-8", "replace"))


@dataclass(frozen=True)
class Address:
    """Where people open the pages: `base` is scheme, host and port, `hosts` the Host headers under
    which requests are answered."""

    base: str
    hosts: frozenset[str]

    @property
    def secure(self) -> bool:
        """Whether people come over TLS."""
        return self.base.startswith("https://")

    def is_own_origin(self, origin: str) -> bool:
        """Whether a request was made by a page of this server."""
        scheme, _, host = origin.lower().partition("://")
        return host in self.hosts and scheme == ("https" if self.secure else "http")


def address_of(host: str, port: int, public: str | None) -> Address:
    """The address of a server that listens on host and port, or the one that the owner says it is
    reached under. Raises ConfigError where that cannot be told."""
    if public is None:
        if host in LOOPBACK:
            names = frozenset(f"{_in_brackets(name)}:{port}" for name in LOOPBACK)
            return Address(f"http://{_in_brackets(host)}:{port}", names)
        if host in ("0.0.0.0", "::", ""):
            raise ConfigError(
                f"--host {host} listens on every address of this machine: say with --address which "
                "one people open, such as http://lab.example.org:8300"
            )
        name = f"{_in_brackets(host)}:{port}".lower()
        return Address(f"http://{name}", frozenset([name]))
    parts = urlsplit(public)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
        raise ConfigError(
            f"--address {public}: scheme and host were expected, such as https://votes.example.org"
        )
    return Address(f"{parts.scheme}://{parts.netloc}", frozenset([parts.netloc.lower()]))


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class OwnPages:
    """An ASGI application that answers only to its own pages: what changes something must have the
    Origin of a page of this server. `LocalGuard` stands around it."""

    def __init__(self, app: ASGIApp, address: Address):
        self.app = app
        self.address = address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        refused = scope["type"] == "http" and self._is_foreign(scope)
        foreign = PlainTextResponse("Not from a page of this server.\n", 403)
        await (foreign if refused else self.app)(scope, receive, send)

    def _is_foreign(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None:
            return not self.address.is_own_origin(origin) or self._is_cross_site(scope, headers)
        return scope["method"] not in READING

    @staticmethod
    def _is_cross_site(scope: Scope, headers: Headers) -> bool:
        site = headers.get("sec-fetch-site", "none")
        return scope["method"] not in READING and site not in ("same-origin", "none")
