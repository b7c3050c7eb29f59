"""What wraps every page on loopback: names of hosts, methods and headers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from rlaif.web.security import HEADERS, LocalGuard, local_hosts


def ask(host: str, method: str = "GET") -> Any:
    guard = LocalGuard(PlainTextResponse("the page"), local_hosts(4000))
    client = TestClient(guard, base_url="http://127.0.0.1:4000")
    return client.request(method, "/", headers={"Host": host})


@pytest.mark.parametrize("host", ["127.0.0.1:4000", "localhost:4000", "LocalHost:4000"])
def test_its_own_names_are_answered(host: str) -> None:
    assert (ask(host).status_code, ask(host).text) == (200, "the page")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:4000", "127.0.0.1", "127.0.0.1:4001", "127.0.0.1:4000.evil", ""],
)
def test_a_rebound_name_is_refused(host: str) -> None:
    answer = ask(host)
    assert answer.status_code == 421 and "the page" not in answer.text


def test_two_host_headers_are_refused() -> None:
    guard = LocalGuard(PlainTextResponse("the page"), local_hosts(4000))
    headers = [("Host", "127.0.0.1:4000"), ("Host", "evil.example")]
    assert TestClient(guard).get("/", headers=headers).status_code == 421


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(method: str) -> None:
    answer = ask("127.0.0.1:4000", method)
    assert answer.status_code == 405 and answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("host", ["127.0.0.1:4000", "evil.example"])
def test_every_answer_has_the_headers(host: str) -> None:
    answer = ask(host)
    assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def run() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            raise AssertionError("nothing is read")

        guard = LocalGuard(PlainTextResponse("the page"), local_hosts(4000))
        await guard({"type": "websocket", "headers": []}, receive, send)

    asyncio.run(run())
    assert sent == [{"type": "websocket.close", "code": 1008}]
