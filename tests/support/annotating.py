"""People who vote on the annotation pages, in place of browsers, and the server that they ask."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.core.records import content_hash
from rlaif.data.vote_store import VoteStore, create_votes
from rlaif.data.votes import ItemJudge, VoteItem, VoteSettings, open_votes
from rlaif.web.annotate.server import AnnotationServer, Place

ROOT = Path(__file__).resolve().parents[2]


def make_items(count: int, **more: Any) -> list[VoteItem]:
    """Pairs of short texts; every judge is unsure of them."""
    judge = ItemJudge(judge="j", annotator="m", prob_a=0.8, uncertainty=0.4)
    return [
        VoteItem(
            item_id=f"i{n}",
            kind="pair",
            prompt_id=f"p{n}",
            prompt=[{"role": "user", "content": f"Question {n}?"}],
            a=[{"role": "assistant", "content": f"The answer a{n}."}],
            a_id=f"a{n}",
            b=[{"role": "assistant", "content": f"The answer b{n}."}],
            b_id=f"b{n}",
            **{"judges": [judge], "uncertainty": 0.4, **more},
        )
        for n in range(count)
    ]


def make_database(path: Path, items: Sequence[VoteItem], **settings: Any) -> Path:
    """A database of items."""
    create_votes(path, VoteSettings(**{"source": "a test", "kind": "pair", **settings}), items)
    return path


@contextmanager
def serve(
    path: Path, people: Sequence[str] = ("ada", "ben"), port: int = 0
) -> Iterator[AnnotationServer]:
    """The pages of a database, in a thread."""
    store = VoteStore(path)
    server = AnnotationServer(store, people, Place(port=port))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        store.close()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@dataclass
class Process:
    """`rlaif annotate` as a process on a port of its own, and the links that it printed."""

    database: Path
    people: Sequence[str]
    port: int = field(default_factory=free_port)
    links: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and wait until it has printed its links."""
        words = ["-m", "rlaif", "annotate", "--db", str(self.database), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, *words, "--people", ",".join(self.people)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        for line in self.process.stdout:
            name, link = re.fullmatch(r"(.*?)(?:: | at )(http\S+)\n", line).groups()  # type: ignore[union-attr]
            self.links[name.strip()] = link
            if name == "the owner":
                return
        raise AssertionError("the server ended before it had printed its links")

    def stop(self, signal_: signal.Signals = signal.SIGKILL) -> int:
        """End it by a signal; its exit code."""
        assert self.process is not None and self.process.stdout is not None
        self.process.send_signal(signal_)
        code = self.process.wait()
        self.process.stdout.close()
        return code


class Client:
    """One person's browser: it holds the cookie and the page's form token, and sends a vote again
    until the server has answered."""

    def __init__(self, link: str):
        self.host, _, path = link.removeprefix("http://").partition("/")
        self.origin = f"http://{self.host}"
        self.path = f"/{path}"
        self.cookie = self.form_token = ""
        self.connection: http.client.HTTPConnection | None = None

    def open(self) -> None:
        """Exchange the link for a cookie, and read the form token of the page."""
        status, headers, _ = self.ask("GET", self.path)
        assert status == 303, status
        self.cookie = headers["Set-Cookie"].partition(";")[0]
        page = self.ask("GET", headers["Location"])[2].decode()
        found = re.search(r'data-form-token="(\w+)"', page)
        self.form_token = found[1] if found else ""

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of one request. Underscores in names of headers are dashes; an
        empty header is not sent."""
        sent = {"Cookie": self.cookie, "Host": self.host}
        if method == "POST":
            sent |= {"Origin": self.origin, "Content-Type": "application/json"}
            sent["X-Form-Token"] = self.form_token
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            kept = {name: value for name, value in sent.items() if value}
            self.connection.request(method, path, data, kept)
            reply = self.connection.getresponse()
            return reply.status, reply.headers, reply.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def post(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of a post."""
        status, _, data = self.ask("POST", path, {} if body is None else body, **headers)
        try:
            return status, json.loads(data)
        except ValueError:
            return status, data.decode()

    def insist(self, path: str, body: Any = None) -> Any:
        """The answer to a post that is sent again until the server answers."""
        while True:
            try:
                status, answer = self.post(path, body)
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
                continue
            assert status == 200, (status, answer)
            return answer

    def next(self) -> Any:
        """The next item, None where there is none."""
        return self.insist("/api/next")["item"]


def sent_vote(item_id: str, number: int, verdict: str = "first", **more: Any) -> dict[str, Any]:
    """A vote as a page sends it."""
    name = content_hash(item_id, number, length=32)
    return {"vote_id": name, "item_id": item_id, "verdict": verdict, "seconds": 1.5, **more}


def vote_all(link: str, person: int, limit: int) -> list[dict[str, Any]]:
    """Vote until nothing is left or `limit` votes are given; those that the server confirmed."""
    client = Client(link)
    while True:
        try:
            client.open()
            break
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
    confirmed = []
    while len(confirmed) < limit and (item := client.next()) is not None:
        verdict = ("first", "second", "tie")[len(confirmed) % 3]
        vote = sent_vote(item["item_id"], person, verdict, comment=f"{person}")
        client.insist("/api/vote", vote)
        confirmed.append(vote)
    client.close()
    return confirmed


@dataclass
class Crowd:
    """Several people who vote at once while the server is killed and started again."""

    server: Process
    each: int
    confirmed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def run(self, kills: int, every: int) -> None:
        """Everybody votes `each` times; a kill after every `every` committed votes."""

        def work(number: int, name: str) -> None:
            self.confirmed[name] = vote_all(self.server.links[name], number, self.each)

        threads = [
            threading.Thread(target=work, args=pair) for pair in enumerate(self.server.people)
        ]
        for thread in threads:
            thread.start()
        for kill in range(1, kills + 1):
            while count_votes(self.server.database) < kill * every:
                assert any(thread.is_alive() for thread in threads), "all voted before the kill"
                time.sleep(0.01)
            self.server.stop()
            self.server.start()
        for thread in threads:
            thread.join()


def count_votes(path: Path) -> int:
    """How many votes a database has."""
    with open_votes(path) as db:
        return int(db.execute("SELECT count(*) FROM votes WHERE undone IS NULL").fetchone()[0])


def check_votes(crowd: Crowd) -> tuple[int, int, int]:
    """How many votes were confirmed, and of those how many the database lacks or has double."""
    with open_votes(crowd.server.database) as db:
        rows = [name for (name,) in db.execute("SELECT vote_id FROM votes WHERE undone IS NULL")]
    sent = [vote["vote_id"] for votes in crowd.confirmed.values() for vote in votes]
    return len(sent), len(set(sent) - set(rows)), len(rows) - len(set(rows) & set(sent))
