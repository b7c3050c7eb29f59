"""The annotation pages in a real browser: keyboard and mouse, desktop and phone, a server that goes
down, and texts that want to run."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from rlaif.data.vote_store import slot_of_a
from rlaif.data.votes import AskedPrinciple, VoteItem, read_votes
from rlaif.web.annotate.server import AnnotationServer
from tests.support.annotating import Process, make_database, make_items, serve
from tests.support.browsing import axe_faults, launched, needs_chromium

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = needs_chromium

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 375, "height": 700},
    "has_touch": True,
    "is_mobile": True,
}
BRIEF = AskedPrinciple("brief", "Choose the shorter answer.")
KIND = AskedPrinciple("kind", "Choose the kinder answer.")
HOSTILE = (
    "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    "<svg onload=\"document.title='run'\"> [x](javascript:document.title='run') "
    "![x](http://198.51.100.1/x.png) </textarea></div>{{ 7 * 7 }} ' \" --><iframe src=//x>"
)


@pytest.fixture(scope="module")
def browser():
    with launched() as chromium:
        yield chromium


class Watched:
    """A page, what its console said, and what it asked for elsewhere."""

    def __init__(self, context: Any):
        self.page = context.new_page()
        self.said: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", self._note)

    def _note(self, request: Any) -> None:
        if not request.url.startswith("http://127.0.0.1:"):
            self.elsewhere.append(request.url)

    def wait(self, count: int) -> None:
        """Until the person has `count` votes and the next item, or the end, is shown."""
        words = "1 vote" if count == 1 else f"{count} votes"
        # The page's policy forbids the evaluation of texts, so nothing waits for a function.
        sync_api.expect(self.page.locator("#done")).to_have_text(words)
        self.page.wait_for_selector("#item:not([hidden]) .choice:enabled, #finished:not([hidden])")

    def shown(self) -> tuple[str, str]:
        """The question and the first answer."""
        return self.page.inner_text("#prompt"), self.page.text_content("#first .text-html") or ""


@contextmanager
def opened(browser: Any, server: AnnotationServer | str, who: str, size: Any) -> Iterator[Watched]:
    """A person's page, which has complained of nothing and asked nobody else when it ends."""
    context = browser.new_context(**size)
    watched = Watched(context)
    watched.page.goto(server if isinstance(server, str) else server.links()[who])
    watched.page.wait_for_selector("#item:not([hidden]), #finished:not([hidden])")
    yield watched
    assert watched.said == [] and watched.elsewhere == []
    context.close()


def test_votes_by_keyboard(browser: Any, tmp_path: Path) -> None:
    items = [structs.replace(i, principles=["brief", "kind"]) for i in make_items(6)]
    path = make_database(tmp_path / "v.db", items, principles=[BRIEF, KIND])
    with serve(path) as server, opened(browser, server, "ada", DESKTOP) as seen:
        page, keys = seen.page, seen.page.keyboard
        assert "/open/" not in page.url and page.evaluate("document.cookie") == ""
        assert page.evaluate("document.activeElement.id") == "question-title"
        texts = []
        for count, key in enumerate("120bs", 1):
            texts.append(seen.shown())
            keys.press(key)
            seen.wait(count)
        assert page.inner_text("#status") == "Saved."
        # A comment's letters are no votes, and the principles take the digits while they are asked.
        keys.press("c")
        keys.type("b 1 2 u")
        keys.press("Escape")
        keys.press("p")
        keys.press("2")
        keys.press("0")
        texts.append(seen.shown())
        keys.press("1")
        seen.wait(6)
        assert page.inner_text("#finished-title") == "That is all. Thank you!"
    votes = read_votes(path)
    slots = [slot_of_a(0, "ada", vote.item_id) for vote in votes]
    answers = [("a", "b"), ("b", "a")]
    wanted = [answers[slots[0]][0], answers[slots[1]][1], "tie", "both_bad", "skip"]
    assert [v.verdict for v in votes] == [*wanted, answers[slots[5]][0]]
    assert {0, 1} == set(slots) and [v.slot_of_a for v in votes] == slots
    assert votes[5].comment == "b 1 2 u"
    assert votes[5].principles == {"brief": answers[slots[5]][1], "kind": "tie"}
    assert all(0 < v.seconds < 120 for v in votes)
    for (question, first), vote, slot in zip(texts, votes, slots, strict=True):
        number = vote.item_id.removeprefix("i")
        assert f"Question {number}?" in question
        assert first.strip() == f"The answer {'ab'[slot]}{number}."


def test_votes_by_touch_on_a_phone(browser: Any, tmp_path: Path) -> None:
    items = [structs.replace(i, principles=["brief"]) for i in make_items(3)]
    path = make_database(tmp_path / "v.db", items, principles=[BRIEF])
    with serve(path) as server, opened(browser, server, "ben", PHONE) as seen:
        page = seen.page
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        # One answer at a time, and the other at a touch.
        assert page.is_visible("#first") and not page.is_visible("#second")
        page.tap("text=Second answer >> nth=0")
        assert page.is_visible("#second") and not page.is_visible("#first")
        page.tap("fieldset >> text=Second")
        page.fill("#comment", "from the train")
        page.tap(".vote >> text=Tie")
        seen.wait(1)
        page.tap("#undo")
        seen.wait(0)
        assert "taken back" in page.inner_text("#status")
        page.tap(".vote >> text=Both bad")
        seen.wait(1)
        assert axe_faults(page) == []
    assert [(v.verdict, v.comment, v.principles) for v in read_votes(path)] == [
        ("both_bad", "", {})
    ]


def test_ratings_on_a_described_scale(browser: Any, tmp_path: Path) -> None:
    items = [
        structs.replace(i, kind="rating", b=None, b_id=None, judges=[], principles=["brief"])
        for i in make_items(3)
    ]
    scale = {1: "of no use", 2: "fair", 3: "good"}
    asked = AskedPrinciple("brief", "The answer is short.", {0: "no", 1: "yes"})
    path = make_database(tmp_path / "v.db", items, kind="rating", scale=scale, principles=[asked])
    with serve(path) as server, opened(browser, server, "ada", DESKTOP) as seen:
        assert axe_faults(seen.page) == []
        assert "of no use" in seen.page.inner_text(".vote")
        seen.page.keyboard.press("3")
        seen.wait(1)
        seen.page.click("fieldset >> text=yes")
        seen.page.click(".vote >> text=of no use")
        seen.wait(2)
        seen.page.keyboard.press("s")
        seen.wait(3)
    said = [(v.verdict, v.rating, v.principles) for v in read_votes(path)]
    assert said == [("rated", 3, {}), ("rated", 1, {"brief": "1"}), ("skip", None, {})]


@pytest.mark.parametrize("mode", ["hidden", "after", "shown"])
def test_ai_verdicts(browser: Any, tmp_path: Path, mode: str) -> None:
    path = make_database(tmp_path / "v.db", make_items(2), prelabels=mode)
    with serve(path) as server, opened(browser, server, "ada", DESKTOP) as seen:
        page = seen.page
        number = page.inner_text("#prompt").split()[-1].removesuffix("?")
        slot = ("first", "second")[slot_of_a(0, "ada", f"i{number}")]
        said = f"j: the {slot} answer is better (80%)"
        assert page.is_visible("#prelabels") == (mode == "shown")
        assert (said in page.content()) == (mode == "shown")
        page.keyboard.press("1")
        seen.wait(1)
        assert (said in page.inner_text("#status")) == (mode != "hidden")
        # Who votes again has seen it.
        page.keyboard.press("u")
        seen.wait(0)
        page.keyboard.press("1")
        seen.wait(1)
    assert [v.prelabel_shown for v in read_votes(path)] == [mode != "hidden"]


def test_votes_wait_for_a_server_that_is_down(browser: Any, tmp_path: Path) -> None:
    path = make_database(tmp_path / "v.db", make_items(4))
    server = Process(path, ["ada"])
    server.start()
    context = browser.new_context(**DESKTOP)
    seen = Watched(context)
    page = seen.page
    page.goto(server.links["ada"])
    page.wait_for_selector("#item:not([hidden])")
    assert server.stop() == -signal.SIGKILL
    page.keyboard.press("1")
    page.wait_for_selector("#unsent:not([hidden])")
    assert "1 vote is not sent yet" in page.inner_text("#unsent")
    assert axe_faults(page) == []
    [waiting] = json.loads(page.evaluate("localStorage[document.body.dataset.storage + '.unsent']"))
    server.start()
    page.reload()
    seen.wait(1)
    assert [v.vote_id for v in read_votes(path)] == [waiting["body"]["vote_id"]]
    # And without a reload: it is sent again by itself or by the button.
    assert server.stop() == -signal.SIGKILL
    page.keyboard.press("2")
    page.wait_for_selector("#unsent:not([hidden])")
    server.start()
    # It may have tried by itself a moment ago, which hides the button.
    page.evaluate("document.getElementById('retry').click()")
    seen.wait(2)
    assert not page.is_visible("#unsent")
    assert len(read_votes(path)) == 2
    assert seen.elsewhere == [] and all("ERR_" in text for text in seen.said)
    context.close()
    assert server.stop(signal.SIGINT) == 0


def hostile_item() -> VoteItem:
    turn = {"role": "user", "content": HOSTILE}
    system = {"role": "system", "content": HOSTILE}
    [item] = make_items(1)
    judge = structs.replace(item.judges[0], judge=HOSTILE)
    answer = [{"role": "assistant", "content": HOSTILE}]
    return structs.replace(
        item,
        prompt=[system, turn],  # type: ignore[list-item]
        a=answer,  # type: ignore[arg-type]
        b=answer,  # type: ignore[arg-type]
        judges=[judge],
        principles=["brief"],
        tags=[HOSTILE],
    )


def test_texts_run_nothing(browser: Any, tmp_path: Path) -> None:
    asked = AskedPrinciple("brief", HOSTILE)
    path = make_database(
        tmp_path / "v.db", [hostile_item()], principles=[asked], prelabels="shown", source=HOSTILE
    )
    with serve(path) as server, opened(browser, server, "ada", DESKTOP) as seen:
        page = seen.page
        for place in ("#prompt", "#first", "#second", "fieldset", "#prelabels"):
            assert "<script>" in page.inner_text(place), place
        assert (
            page.evaluate("document.querySelectorAll('main script, iframe, img, svg').length") == 0
        )
        page.fill("#comment", HOSTILE)
        page.click(".vote >> text=Tie")
        seen.wait(1)
        assert page.title() == "Which answer is better?"
        page.goto(server.owner_link)
        assert "<script>" in page.inner_text("body")
        assert page.title().startswith("Votes: <script>")
        assert page.evaluate("document.querySelectorAll('script, iframe, img').length") == 0
        assert page.evaluate("document.querySelectorAll('[onload], [onerror]').length") == 0
    assert read_votes(path)[0].comment == HOSTILE


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pages_have_no_serious_fault(browser: Any, tmp_path: Path, size: Any) -> None:
    code = (
        "# Title\n\n```\n" + "x = 1  # " + "long " * 60 + "\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    )
    items = [
        structs.replace(i, a=[{"role": "assistant", "content": code}], principles=["brief"])
        for i in make_items(2)
    ]
    path = make_database(tmp_path / "v.db", items, principles=[BRIEF], prelabels="shown")
    with serve(path) as server, opened(browser, server, "ada", size) as seen:
        page = seen.page
        assert axe_faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == size["viewport"]["width"]
        page.keyboard.press("v")
        assert axe_faults(page) == []
        page.goto(server.owner_link)
        assert axe_faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == size["viewport"]["width"]


def test_two_people_see_their_own_orders(browser: Any, tmp_path: Path) -> None:
    path = make_database(tmp_path / "v.db", make_items(12), overlap=2)
    firsts: dict[str, list[str]] = {"ada": [], "ben": []}
    with serve(path) as server:
        for who, texts in firsts.items():
            with opened(browser, server, who, DESKTOP) as seen:
                for count in range(1, 13):
                    texts.append(seen.shown()[1].strip())
                    seen.page.keyboard.press("1")
                    seen.wait(count)
    by_item = [
        {t.rstrip(".").split("answer ")[1][1:]: t for t in texts} for texts in firsts.values()
    ]
    differ = sum(by_item[0][n] != by_item[1][n] for n in by_item[0])
    assert 1 <= differ <= 11
