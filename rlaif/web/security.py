"""What every page on loopback is wrapped in: a check of the Host header, and headers that keep the
page to itself.

A browser sends a page of another site to `127.0.0.1` under that site's own name when its DNS record
is changed to point here (DNS rebinding), so a request is answered only under the names that the
server was started with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""The content security policy: nothing inline, and nothing from elsewhere."""
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
READING: Collection[str] = ("GET", "HEAD")
"""The methods of a service that changes nothing."""


def local_hosts(port: int) -> frozenset[str]:
    """The Host headers of requests that were meant for a server on loopback at `port`."""
    return frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))


class LocalGuard:
    """An ASGI application that refuses requests under other names than `hosts` (421) and by other
    `methods` (405), and adds those of `HEADERS` that a response does not set itself. WebSockets are
    refused."""

    def __init__(
        self, app: ASGIApp, hosts: Collection[str], methods: Collection[str] = READING
    ) -> None:
        self.app = app
        self.hosts = hosts
        self.methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refuse(scope)
        await (refusal or self.app)(scope, receive, send_guarded)

    def _refuse(self, scope: Scope) -> ASGIApp | None:
        given = Headers(scope=scope).getlist("host")
        if len(given) != 1 or given[0].lower() not in self.hosts:
            names = ", ".join(sorted(self.hosts))
            return PlainTextResponse(f"This server answers only as {names}.\n", 421)
        if scope["method"] not in self.methods:
            allowed = ", ".join(self.methods)
            return PlainTextResponse(f"Only {allowed}.\n", 405, {"Allow": allowed})
        return None
