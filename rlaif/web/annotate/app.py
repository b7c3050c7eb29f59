"""The annotation pages' HTTP: links, the page of a person, its votes, and the owner's page."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp

from rlaif.core.errors import RlaifError
from rlaif.data.vote_store import VoteRefused, VoteStore
from rlaif.web.annotate.access import Access, Address, OwnPages, Viewer
from rlaif.web.annotate.findings import FindingsCache
from rlaif.web.annotate.owner import owner_page
from rlaif.web.annotate.templates import render_page
from rlaif.web.annotate.voting import (
    SentUndo,
    SentVote,
    record_vote,
    say_prelabels,
    show_item,
)
from rlaif.web.annotate.writing import csv_lines, jsonl_lines
from rlaif.web.security import LocalGuard

MOST_BYTES = 64 * 1024
"""The largest body that is read."""
STATIC: Mapping[str, tuple[str, str, str]] = {
    "report.css": ("rlaif.report", "report.css", "text/css"),
    "annotate.css": ("rlaif.web.annotate", "annotate.css", "text/css"),
    "annotate.js": ("rlaif.web.annotate", "annotate.js", "text/javascript"),
}
"""The files that pages load: package, file and type by name."""
COOKIE_SECONDS = 90 * 24 * 3600


def make_app(store: VoteStore, access: Access, address: Address) -> ASGIApp:
    """The pages of one database, for the people of `access`, at one address."""
    pages = Pages(store, access, address)
    routes = [
        Route("/", pages.show_voting),
        Route("/open/{token}", pages.open_link),
        Route("/api/next", pages.answer_next, methods=["POST"]),
        Route("/api/vote", pages.answer_vote, methods=["POST"]),
        Route("/api/undo", pages.answer_undo, methods=["POST"]),
        Route("/owner", pages.show_owner),
        Route("/owner/votes.jsonl", pages.export_jsonl),
        Route("/owner/votes.csv", pages.export_csv),
        Route("/static/{name}", pages.send_static),
        Route("/favicon.ico", pages.send_no_icon),
    ]
    handlers = {HTTPException: answer_fault, Exception: answer_fault}
    pages_only = OwnPages(Starlette(routes=routes, exception_handlers=handlers), address)
    return LocalGuard(pages_only, address.hosts, ("GET", "HEAD", "POST"))


class Pages:
    """The routes of one database."""

    def __init__(self, store: VoteStore, access: Access, address: Address):
        self.store = store
        self.access = access
        self.address = address
        self.findings = FindingsCache(store.path)

    async def open_link(self, request: Request) -> Response:
        """Exchange a link's token for a cookie, and leave the address that has the token in it."""
        viewer = self.access.by_token(request.path_params["token"])
        if viewer is None:
            raise HTTPException(403, "This link is not valid. Ask its owner for a new one.")
        page = "/owner" if viewer.role == "owner" else "/"
        # A browser that comes from another site sends no SameSite=Strict cookie along with an HTTP
        # redirect: the page that it is sent to sends it on, as a page of this site.
        response: Response = (
            HTMLResponse(render_page("opened.html.j2", page=page))
            if request.headers.get("sec-fetch-site") == "cross-site"
            else RedirectResponse(page, 303)
        )
        response.set_cookie(
            self.access.cookie_name(viewer.role),
            self.access.session(viewer),
            max_age=COOKIE_SECONDS,
            httponly=True,
            samesite="strict",
            secure=self.address.secure,
        )
        return response

    def _viewer(self, request: Request, role: str) -> Viewer:
        viewer = self.access.by_cookies(request.cookies, role)
        if viewer is None:
            raise HTTPException(403, "Open the link that you were given: it says who you are.")
        return viewer

    async def show_voting(self, request: Request) -> Response:
        """A person's page."""
        viewer = self._viewer(request, "person")
        return HTMLResponse(
            render_page(
                "annotate.html.j2",
                settings=self.store.settings,
                name=viewer.name,
                form_token=self.access.form_token(viewer),
                storage=self.access.storage_name(viewer),
            )
        )

    async def answer_next(self, request: Request) -> Response:
        """The next item for a person."""
        viewer, _ = await self._sent(request, dict)
        return await _in_thread(lambda: self._next(viewer.name))

    def _next(self, name: str) -> dict[str, Any]:
        handed = self.store.hand_out(name, time.time())
        shown = show_item(handed, self.store.settings, name) if handed.item else None
        return {"item": shown, "state": handed.state, "progress": self._progress(name)}

    async def answer_vote(self, request: Request) -> Response:
        """Commit a vote, and only then say so."""
        viewer, sent = await self._sent(request, SentVote)

        def record() -> dict[str, Any]:
            vote, item = record_vote(self.store, viewer.name, sent)
            reveal = self.store.settings.prelabels != "hidden"
            said = say_prelabels(item, self.store.settings, viewer.name) if reveal else []
            return {
                "vote_id": vote.vote_id,
                "prelabels": said,
                "progress": self._progress(viewer.name),
            }

        return await _in_thread(record)

    async def answer_undo(self, request: Request) -> Response:
        """Take a vote back."""
        viewer, sent = await self._sent(request, SentUndo)

        def undo() -> dict[str, Any]:
            self.store.undo(viewer.name, sent.vote_id, time.time())
            return {"vote_id": sent.vote_id, "progress": self._progress(viewer.name)}

        return await _in_thread(undo)

    def _progress(self, name: str) -> Any:
        return msgspec.to_builtins(self.store.progress(name))

    async def _sent(self, request: Request, kind: type[T]) -> tuple[Viewer, T]:
        """Who sends, and what, from the person's own page alone."""
        viewer = self._viewer(request, "person")
        if not self.access.is_form_token(viewer, request.headers.get("x-form-token", "")):
            raise HTTPException(403, "This page is out of date; reload it.")
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise HTTPException(415, "A JSON body was expected.")
        try:
            return viewer, msgspec.json.decode(await _read_body(request), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HTTPException(400, f"Not a valid request: {error}") from None

    async def show_owner(self, request: Request) -> Response:
        """The owner's page."""
        self._viewer(request, "owner")
        people = [viewer.name for viewer in self.access.viewers if viewer.role == "person"]
        asked = request.query_params.get("page", "")
        page = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 9 else 1
        return HTMLResponse(await run_in_threadpool(owner_page, self.findings, people, page))

    async def export_jsonl(self, request: Request) -> Response:
        """All votes that count, a JSON object each."""
        self._viewer(request, "owner")
        return _download(jsonl_lines(self.store.path), "application/jsonl", "votes.jsonl")

    async def export_csv(self, request: Request) -> Response:
        """All votes that count, a row each."""
        self._viewer(request, "owner")
        return _download(csv_lines(self.store.path), "text/csv", "votes.csv")

    async def send_no_icon(self, _request: Request) -> Response:
        """Browsers ask for one."""
        return Response(status_code=204)

    async def send_static(self, request: Request) -> Response:
        """A file that the pages load."""
        if request.path_params["name"] not in STATIC:
            raise HTTPException(404)
        package, file, kind = STATIC[request.path_params["name"]]
        return Response((files(package) / file).read_bytes(), media_type=kind)


T = TypeVar("T")


def _download(lines: Iterator[str], kind: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(lines, media_type=kind, headers=headers)


async def _in_thread(work: Callable[[], dict[str, Any]]) -> Response:
    """What `work` gives as JSON: 409 for a vote that is refused, 503 where the database failed and
    the browser shall try again."""
    try:
        return JSONResponse(await run_in_threadpool(work))
    except VoteRefused as error:
        raise HTTPException(409, str(error)) from None
    except (sqlite3.Error, OSError) as error:
        raise HTTPException(503, f"The vote could not be stored: {error}") from None


async def _read_body(request: Request) -> bytes:
    """The body of a request. Raises HTTPException where it is too large."""
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                raise HTTPException(413, f"More than {MOST_BYTES} bytes.")
    except ClientDisconnect:
        raise HTTPException(400, "The request ended early.") from None
    return body


async def answer_fault(request: Request, error: Exception) -> Response:
    """What is answered to a request that failed: JSON to a page's script, a page to people."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = error.detail if isinstance(error, HTTPException) else "The server failed."
    if isinstance(error, RlaifError):
        said = str(error)
    headers = {"Connection": "close"} if status == 413 else None
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": said}, status, headers)
    return HTMLResponse(render_page("notice.html.j2", status=status, message=said), status, headers)
