"""What the annotation pages refuse, on a real socket."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest

from rlaif.core.errors import ConfigError
from rlaif.data.votes import read_votes
from rlaif.web.annotate.access import Access, Viewer, address_of
from rlaif.web.annotate.app import MOST_BYTES
from rlaif.web.annotate.server import AnnotationServer, Place, check_people
from tests.support.annotating import Client, make_database, make_items, sent_vote, serve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("votes") / "v.db"
    with serve(make_database(path, make_items(30))) as served:
        served.database = path  # type: ignore[attr-defined]
        yield served


@pytest.fixture
def ada(server: AnnotationServer):
    client = Client(server.links()["ada"])
    client.open()
    yield client
    client.close()


def raw(server: AnnotationServer, text: str) -> bytes:
    """The answer to bytes as they are."""
    import socket

    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as there:
        there.sendall(text.encode())
        there.settimeout(20)
        return there.recv(65536)


def test_the_link_is_exchanged_for_a_cookie(server: AnnotationServer) -> None:
    client = Client(server.links()["ada"])
    status, headers, body = client.ask("GET", client.path)
    assert (status, headers["Location"], body) == (303, "/", b"")
    cookie = headers["Set-Cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie
    assert server.access.token(Viewer("person", "ada")) not in headers["Set-Cookie"]
    # From another site the page itself leads on: a redirect would come without the cookie.
    status, headers, body = client.ask("GET", client.path, Sec_Fetch_Site="cross-site")
    assert status == 200 and headers["Set-Cookie"] and b'content="0; url=/"' in body
    client.close()


def test_every_answer_keeps_itself_to_itself(ada: Client) -> None:
    asked = [ada.ask("GET", path) for path in ("/", "/none", "/static/annotate.js", ada.path)]
    for _, headers, _ in [*asked, ada.ask("POST", "/api/next", {}, Host="evil.example")]:
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "*" not in policy
        assert headers["Server"] is None


def test_pages_have_nothing_inline(ada: Client) -> None:
    page = ada.ask("GET", "/")[2].decode()
    assert "<style" not in page and " style=" not in page and " on" + "click" not in page
    assert page.count("<script") == page.count('<script src="/static/') == 1


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example", ""]
)
def test_another_host_is_refused(ada: Client, server: AnnotationServer, host: str) -> None:
    if host:
        assert ada.ask("GET", "/", Host=host)[0] == 421
        assert ada.post("/api/next", Host=host)[0] == 421
    else:
        assert b" 400 " in raw(server, "GET / HTTP/1.1\r\n\r\n").split(b"\r\n")[0]
    assert ada.ask("GET", "/", Host=f"localhost:{server.port}")[0] == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", ""],
)
def test_another_origin_is_refused(ada: Client, server: AnnotationServer, origin: str) -> None:
    given = origin.replace("{port}", str(server.port))
    assert ada.post("/api/next", Origin=given)[0] == 403
    assert ada.post("/api/next")[0] == 200


def test_a_cross_site_post_is_refused(ada: Client, server: AnnotationServer) -> None:
    item = ada.next()
    vote = sent_vote(item["item_id"], 1)
    assert ada.post("/api/vote", vote, Sec_Fetch_Site="cross-site")[0] == 403
    assert ada.post("/api/vote", vote, X_Form_Token="")[0] == 403
    assert ada.post("/api/vote", vote, X_Form_Token="0" * 64)[0] == 403
    ben = server.access.form_token(Viewer("person", "ben"))
    assert ada.post("/api/vote", vote, X_Form_Token=ben)[0] == 403
    # What a form of another site could send without being asked for leave.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert ada.post("/api/vote", vote, Content_Type=kind)[0] == 415
    assert read_votes(server.database) == []  # type: ignore[attr-defined]


def test_nobody_is_let_in_without_a_link(server: AnnotationServer) -> None:
    client = Client(server.links()["ada"])
    for path in ("/", "/owner", "/owner/votes.jsonl", "/owner/votes.csv"):
        assert client.ask("GET", path)[0] == 403
    assert client.post("/api/next")[0] == 403
    client.close()


def test_a_guessed_token_is_refused(server: AnnotationServer, ada: Client) -> None:
    token = server.access.token(Viewer("person", "ada"))
    session = server.access.session(Viewer("person", "ada"))
    guesses = ["", "ada", "0" * 64, token[:-1], token + "0", token.upper(), session, "\u00e9" * 64]
    for guess in guesses:
        status, headers, _ = ada.ask(
            "GET", "/open/" + guess.encode().hex() if not guess.isascii() else f"/open/{guess}"
        )
        assert status in (403, 404) and headers["Set-Cookie"] is None
    name = server.access.cookie_name("person")
    for guess in (token, session[:-1], "ada", "", '"'):
        assert ada.ask("GET", "/", Cookie=f"{name}={guess}")[0] == 403
    # A person's session opens no owner's page, under whichever name.
    assert ada.ask("GET", "/owner")[0] == 403
    assert (
        ada.ask("GET", "/owner", Cookie=f"{server.access.cookie_name('owner')}={session}")[0] == 403
    )


def test_the_owner_s_link_opens_the_owner_s_page_alone(server: AnnotationServer) -> None:
    owner = Client(server.owner_link)
    owner.open()
    assert owner.ask("GET", "/owner")[0] == 200
    assert owner.ask("GET", "/")[0] == 403
    assert owner.post("/api/next")[0] == 403
    owner.close()


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/__init__.py",
        "/static/....//app.py",
        "/static//etc/passwd",
        "/static/app.py",
        "/static/annotate.html.j2",
        "/static/report.css%00.py",
        "/open/../../etc/passwd",
        "//etc/passwd",
    ],
)
def test_no_other_file_is_sent(ada: Client, path: str) -> None:
    status, _, body = ada.ask("GET", path)
    assert status in (403, 404) and b"import" not in body and b"root:" not in body


def test_a_large_body_is_refused(ada: Client, server: AnnotationServer) -> None:
    item = ada.next()
    long = sent_vote(item["item_id"], 2, comment="x" * MOST_BYTES)
    assert ada.post("/api/vote", long)[0] == 413
    ada.close()
    assert ada.post("/api/vote", sent_vote(item["item_id"], 2, comment="x" * 10_001))[0] == 400
    assert read_votes(server.database) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nonsense",
        b"[" * 60_000,
        b'{"vote_id": "\xff"}',
        {"vote_id": "short"},
        {"seconds": -1},
        {"seconds": "1"},
        {"verdict": "a"},
        {"verdict": "chosen"},
        {"unknown": 1},
        {"comment": 5},
        {"principles": {"brief": 1}},
    ],
    ids=lambda body: repr(body)[:24],
)
def test_what_is_no_vote_is_refused(ada: Client, body: object) -> None:
    vote = body if isinstance(body, bytes) else sent_vote(ada.next()["item_id"], 3) | dict(body)  # type: ignore[call-overload]
    status, answer = ada.post("/api/vote", vote)
    assert status == 400 and answer["error"].startswith("Not a valid request")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"item_id": "i999"}, "not handed to you"),
        ({"verdict": "rated", "rating": 3}, "no verdict on a pair"),
        ({"rating": 3}, "with no other"),
        ({"principles": {"brief": "first"}}, "is not asked about this item"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_vote_that_does_not_fit_its_item_is_refused(ada: Client, change: dict, said: str) -> None:
    status, answer = ada.post("/api/vote", sent_vote(ada.next()["item_id"], 4) | change)
    assert status == 409 and said in answer["error"]


def test_tokens_are_in_no_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    with serve(make_database(tmp_path / "v.db", make_items(1))) as server:
        client = Client(server.links()["ada"])
        client.open()
        client.ask("GET", "/open/" + "a" * 64)
        client.close()
    written = "".join([*capfd.readouterr(), caplog.text])
    assert server.access.token(Viewer("person", "ada")) not in written and "a" * 64 not in written


def test_codes_differ_by_purpose_person_and_database() -> None:
    ada, owner = Viewer("person", "ada"), Viewer("owner")
    one, two = Access(b"1" * 32, ["ada"]), Access(b"2" * 32, ["ada"])
    codes = [
        f(v) for a in (one, two) for v in (ada, owner) for f in (a.token, a.session, a.form_token)
    ]
    assert len(set(codes)) == 12
    assert one.by_token(one.token(ada)) == ada and two.by_token(one.token(ada)) is None
    # Whose name is no longer given has no link any more.
    assert Access(b"1" * 32, ["ben"]).by_token(one.token(ada)) is None
    assert one.cookie_name("person") != two.cookie_name("person")


def test_addresses() -> None:
    local = address_of("127.0.0.1", 80, None)
    assert local.hosts == {"127.0.0.1:80", "localhost:80", "[::1]:80"} and not local.secure
    public = address_of("0.0.0.0", 80, "https://Votes.example.org/")
    assert public.hosts == {"votes.example.org"} and public.secure
    assert public.is_own_origin("https://votes.example.org")
    assert not public.is_own_origin("http://votes.example.org")
    assert address_of("10.0.0.3", 8300, None).base == "http://10.0.0.3:8300"
    with pytest.raises(ConfigError, match="say with --address which one people open"):
        address_of("0.0.0.0", 80, None)
    for wrong in ("votes.example.org", "ftp://x", "https://x/path", "https://"):
        with pytest.raises(ConfigError, match="scheme and host were expected"):
            address_of("127.0.0.1", 80, wrong)


def test_names_of_people() -> None:
    check_people(["ada", "B.en-2"])
    for wrong, said in (
        (["a b"], "is no name"), ([""], "is no name"), (["../x"], "is no name"),
        (["ada", "Ada"], "twice"), ([], "nobody"), (["x" * 41], "is no name"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            check_people(wrong)


def test_a_port_that_is_taken_is_said(tmp_path: Path, server: AnnotationServer) -> None:
    from rlaif.data.vote_store import VoteStore

    store = VoteStore(make_database(tmp_path / "v.db", make_items(1)))
    with pytest.raises(ConfigError, match=r"in use\. Choose another --port"):
        AnnotationServer(store, ["ada"], Place(port=server.port))
    store.close()


def test_a_method_that_is_none(ada: Client) -> None:
    assert ada.ask("POST", "/", {})[0] == 405
    assert ada.ask("GET", "/api/vote")[0] == 405
    with pytest.raises((http.client.HTTPException, OSError, AssertionError)):
        assert ada.ask("TRACE", "/api/vote")[0] == 200
