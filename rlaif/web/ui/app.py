"""The paths of the browser of runs, and its server on loopback."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rlaif.core.errors import RlaifError
from rlaif.report import flow_style
from rlaif.report.build import make_environment
from rlaif.web.security import LocalGuard, local_hosts
from rlaif.web.serving import listen
from rlaif.web.ui.indexer import Indexer
from rlaif.web.ui.library import Library, open_library
from rlaif.web.ui.pages import NotFound, Site, Values, place_words
from rlaif.web.ui.search import read_query

HOST = "127.0.0.1"
HERE = Path(__file__).resolve().parent
REPORT = Path(flow_style.__file__).resolve().parent
COMPARISON_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
"""The policy of the one page that has its style and plots within itself, as a file has; it has no
script."""


def make_pages_environment() -> Environment:
    """Jinja2 as the report uses it, with the templates of the pages beside the report's."""
    environment = make_environment()
    environment.loader = FileSystemLoader([HERE, REPORT])
    environment.filters |= {
        "ago": format_age,
        "place_words": place_words,
        "zip_self": lambda names: [(name, name) for name in names],
        "alarm_choices": lambda alarms: [(alarm.key, alarm.words) for alarm in alarms],
    }
    return environment


def format_age(seconds: float) -> str:
    """How long ago something was, in words."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return f"{seconds:.0f} seconds ago"


def make_app(site: Site, hosts: frozenset[str]) -> ASGIApp:
    """The pages as an ASGI application that answers under the names `hosts` alone."""
    environment = make_pages_environment()
    static = _read_static_files()

    def render(template: str, values: Values, status: int = 200) -> Response:
        text = environment.get_template(template).render({"live": False, **values})
        # Text from models can hold lone surrogates, which UTF-8 cannot carry.
        return HTMLResponse(text.encode("utf-8", "replace"), status)

    def page(template: str, make: Callable[[Request], Values]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            try:
                values = await run_in_threadpool(make, request)
                return await run_in_threadpool(render, template, values)
            except NotFound as error:
                return render("error.html.j2", {"title": "Not found", "message": str(error)}, 404)
            except (RlaifError, OSError) as error:
                values = {"title": "This cannot be shown", "message": str(error)}
                return render("error.html.j2", values, 500)

        return answer

    async def compare(request: Request) -> Response:
        names = [name for name in request.query_params.getlist("run") if name]
        try:
            text = await run_in_threadpool(site.comparison_page, names)
        except NotFound as error:
            return render("error.html.j2", {"title": "Not found", "message": str(error)}, 404)
        except (RlaifError, OSError) as error:
            values = {"title": "These cannot be compared", "message": str(error)}
            return render("error.html.j2", values, 500)
        policy = {"Content-Security-Policy": COMPARISON_POLICY}
        return HTMLResponse(text.encode("utf-8", "replace"), headers=policy)

    async def send_static(request: Request) -> Response:
        kind, text = static.get(request.path_params["name"], ("", ""))
        return Response(text, media_type=kind) if kind else Response(status_code=404)

    async def refuse(_request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        message = "There is no such page." if status == 404 else "The page could not be made."
        return render("error.html.j2", {"title": message, "message": ""}, status)

    routes = [
        Route("/", page("runs.html.j2", lambda _: site.runs_page())),
        Route("/curves", page("curves.html.j2", partial(_curves, site))),
        Route("/config", page("config.html.j2", partial(_config, site))),
        Route("/compare", compare),
        Route("/run/{run}", page("run.html.j2", lambda r: site.run_page(r.path_params["run"]))),
        Route(
            "/run/{run}/flow", page("flow.html.j2", lambda r: site.flow_page(r.path_params["run"]))
        ),
        Route("/run/{run}/browse", page("browse.html.j2", partial(_browse, site))),
        Route("/run/{run}/prompt", page("prompt.html.j2", partial(_prompt, site))),
        Route("/static/{name}", send_static),
    ]
    handlers = {HTTPException: refuse, Exception: refuse}
    return LocalGuard(Starlette(routes=routes, exception_handlers=handlers), hosts)


def _read_static_files() -> dict[str, tuple[str, str]]:
    """Name to the media type and the text of what pages load."""
    style = [(REPORT / "report.css").read_text(encoding="utf-8"), flow_style.RULES]
    style.append((HERE / "ui.css").read_text(encoding="utf-8"))
    return {
        "style.css": ("text/css", "\n".join(style)),
        "ui.js": ("text/javascript", (HERE / "ui.js").read_text(encoding="utf-8")),
        "icon.svg": ("image/svg+xml", (HERE / "icon.svg").read_text(encoding="utf-8")),
    }


def _curves(site: Site, request: Request) -> Values:
    given = request.query_params
    return site.curves_page(given.getlist("run"), given.getlist("metric"), given.get("all") == "1")


def _config(site: Site, request: Request) -> Values:
    runs = [name for name in request.query_params.getlist("run") if name]
    if not runs:
        raise NotFound("Choose one or two runs in the list.")
    second = next((name for name in runs[1:] if name != runs[0]), "")
    return site.config_page(runs[0], second, request.query_params.get("all") == "1")


def _browse(site: Site, request: Request) -> Values:
    return site.browse_page(request.path_params["run"], read_query(request.query_params))


def _prompt(site: Site, request: Request) -> Values:
    given = request.query_params
    number = given.get("page", "")
    page = int(number) if number.isdecimal() and len(number) < 7 else 0
    return site.prompt_page(
        request.path_params["run"], given.get("id", ""), page, given.get("at", "")
    )


class UiServer:
    """The server of the pages, on a socket that it listens on from the start. Raises ConfigError
    where the port is taken."""

    def __init__(self, library: Library, port: int):
        self.socket = listen(HOST, port)
        self.port = int(self.socket.getsockname()[1])
        self.indexer = Indexer()
        app = make_app(Site(library, self.indexer), local_hosts(self.port))
        config = uvicorn.Config(
            app, lifespan="off", log_level="error", access_log=False, timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        """The address of the list of runs."""
        return f"http://{HOST}:{self.port}/"

    def serve_forever(self) -> None:
        """Answer until `shutdown`, or until Ctrl-C in the main thread, which raises
        KeyboardInterrupt."""
        try:
            self._server.run(sockets=[self.socket])
        finally:
            self.indexer.close()
            self.socket.close()

    def shutdown(self) -> None:
        """Answer what was asked, then stop."""
        self._server.should_exit = True


def open_server(folders: Sequence[Path], port: int) -> UiServer:
    """A server of the runs in or below some folders. Raises ConfigError for a folder without a run,
    and where the port is taken."""
    return UiServer(open_library(folders), port)


def serve_pages(
    folders: Sequence[Path], port: int, opens: bool, say: Callable[[str], None]
) -> None:
    """Serve the runs in or below some folders until Ctrl-C, in a browser where it `opens`. Raises
    as `open_server` does."""
    server = open_server(folders, port)
    say(f"Runs at {server.url} (Ctrl-C ends)")
    if opens:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("Stopped.")
