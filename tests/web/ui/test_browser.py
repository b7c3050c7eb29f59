"""The pages in a real browser: by mouse and keyboard, wide and narrow, with text that would act."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlaif.web.ui.app import UiServer
from rlaif.web.ui.library import open_library, run_id
from tests.support.browsing import axe_faults, launched, needs_chromium, wait_for_count
from tests.web.ui.conftest import SAFE, add_judgements

pytestmark = needs_chromium
WIDE: Mapping[str, Any] = {"viewport": {"width": 1280, "height": 900}}
NARROW: Mapping[str, Any] = {
    "viewport": {"width": 375, "height": 740},
    "has_touch": True,
    "is_mobile": True,
}


class Watch:
    """A page, and what it did that it should not: errors, and requests beyond the server."""

    def __init__(self, page: Any, base: str):
        self.page = page
        self.base = base
        self.faults: list[str] = []
        page.set_default_timeout(30_000)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: self.faults.append(f"dialog {dialog.message}"))
        page.on("request", self._see)

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _see(self, request: Any) -> None:
        if not request.url.startswith(self.base):
            self.faults.append(f"request to {request.url}")

    def settle(self) -> None:
        """Wait until the index behind the page is complete."""
        self.page.wait_for_load_state("load")
        self.page.locator(".building").wait_for(state="detached")

    def check(self) -> None:
        """Nothing happened that should not, nothing sticks out, and axe finds no serious fault."""
        page = self.page
        # Elements are there before the style sheet is.
        page.wait_for_load_state("load")
        assert page.evaluate("window.hacked") is None
        # A phone would show a wider page smaller, with a larger inner width.
        width = page.viewport_size["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width, page.url
        serious = axe_faults(page)
        assert not serious, (page.url, serious)
        assert not self.faults, page.url


@pytest.fixture(scope="module")
def browser():
    with launched() as chromium:
        yield chromium


@contextmanager
def browsed(
    browser: Any, server: UiServer, size: Mapping[str, Any], **more: Any
) -> Iterator[Watch]:
    """A page of its own in the browser of this module."""
    context = browser.new_context(**size, **more)
    yield Watch(context.new_page(), server.url)
    context.close()


def test_by_mouse_from_the_list_to_a_judgement(browser: Any, server: UiServer, runs: Path) -> None:
    with browsed(browser, server, WIDE) as watch:
        page = watch.page
        page.goto(server.url)
        assert page.locator(".card").count() == 3
        watch.check()
        page.get_by_role("link", name="run 4 ").click()
        page.get_by_role("heading", name="Where it stands").wait_for()
        watch.check()
        page.get_by_role("link", name="Browse records").click()
        watch.settle()
        page.get_by_role("link", name="Judgements", exact=True).click()
        watch.settle()
        page.locator("select[name=judge]").select_option("written")
        page.get_by_role("button", name="Apply").click()
        # What was not chosen is not in the address.
        page.wait_for_url("**/browse?show=judgements&judge=written")
        watch.settle()
        assert page.locator(".item").count() == 25 and "60 judgements match" in page.content()
        page.get_by_text("what the judge wrote").first.click()
        assert SAFE in page.locator(".item pre").first.inner_text()
        watch.check()
        page.get_by_role("link", name="Next →").first.click()
        wait_for_count(page.get_by_text("page 2 of 3"), 2)
        page.locator(".item h3 a").first.click()
        page.get_by_role("heading", name="Answers").wait_for()
        target = page.locator("li:target")
        wait_for_count(target, 1)
        assert "written" in target.inner_text()
        wait_for_count(page.locator(".marked"), 1)
        watch.check()
        # The same address shows the same to somebody else.
        url, text = page.url, target.inner_text()
        page.goto(server.url)
        page.goto(url)
        assert page.locator("li:target").inner_text() == text


def test_by_keyboard_on_a_phone(browser: Any, server: UiServer, runs: Path) -> None:
    with browsed(browser, server, NARROW) as watch:
        page = watch.page
        page.goto(f"{server.url}run/{run_id((runs / 'second').resolve())}/browse?show=answers")
        watch.settle()
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "q"
        page.keyboard.type('"red green" blu*')
        page.keyboard.press("Enter")
        page.wait_for_url("**q=%22red+green%22**")
        watch.settle()
        count = page.locator(".item").count()
        assert 0 < count <= 25
        texts = page.locator(".item .text").all_inner_texts()
        assert all("red green blue" in text for text in texts)
        watch.check()
        page.locator("body").press("Escape")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.goto(page.url.partition("?")[0] + "?show=judgements&judge=written")
        page.keyboard.press("n")
        page.wait_for_url("**page=2**")
        page.keyboard.press("p")
        page.wait_for_url("**judge=written")
        link = page.locator(".item h3 a").first
        link.focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/prompt?**")
        watch.check()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["desktop", "phone"])
def test_every_other_page(
    browser: Any, server: UiServer, runs: Path, size: Mapping[str, Any]
) -> None:
    with browsed(browser, server, size) as watch:
        page = watch.page
        page.goto(server.url)
        for box in page.get_by_role("checkbox").all()[:2]:
            box.check()
        page.get_by_role("button", name="Curves together").click()
        page.locator("svg.plot").first.wait_for()
        wait_for_count(page.locator(".legend a"), 2)
        watch.check()
        page.get_by_text("Metrics (main ones)").click()
        page.get_by_label("score/checks", exact=True).check()
        page.get_by_role("button", name="Show").click()
        page.wait_for_url("**metric=score**")
        wait_for_count(page.locator("svg.plot"), 1)
        watch.check()
        page.go_back()
        page.goto(server.url)
        for box in page.get_by_role("checkbox").all()[1:3]:
            box.check()
        page.get_by_role("button", name="Compare two configs").click()
        page.locator("tr.differs").first.wait_for()
        watch.check()
        base = f"{server.url}run/{run_id((runs / 'first').resolve())}"
        for path in ("", "/flow", "/browse", "/browse?show=prompts"):
            page.goto(base + path)
            watch.settle()
            watch.check()
        page.goto(base.replace("/run/", "/config?run="))
        watch.check()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["mouse", "keyboard"])
def test_how_the_feedback_of_runs_compares(
    browser: Any, server: UiServer, runs: Path, size: Mapping[str, Any]
) -> None:
    with browsed(browser, server, size) as watch:
        page, by_mouse = watch.page, size is WIDE

        def press(found: Any, key: str = "Enter") -> None:
            if by_mouse:
                found.click()
            else:
                found.focus()
                page.keyboard.press(key)

        page.goto(server.url)
        for name in ("first", "second"):
            press(page.get_by_label(f"Mark {name}", exact=True), "Space")
        press(page.get_by_role("button", name="Compare feedback"))
        page.get_by_role("heading", name="AI and human feedback compared").wait_for()
        names = [run_id((runs / name).resolve()) for name in ("first", "second")]
        assert [part.partition("=")[2] for part in page.url.partition("?")[2].split("&")] == names
        watch.check()
        press(page.get_by_role("link", name="Agreement", exact=True))
        assert page.url.endswith("#h-agreement")
        parts = page.locator("section:has(#h-agreement) details").first
        shown = parts.evaluate("part => part.open")
        press(parts.locator("summary"))
        assert parts.evaluate("part => part.open") != shown
        watch.check()
        press(page.get_by_role("link", name="rlaif", exact=True))
        page.get_by_role("heading", name="Runs").wait_for()
        press(page.get_by_role("button", name="Compare feedback"))
        page.get_by_text("Choose one run or several in the list.").wait_for()
        # The browser says aloud that a page was not found.
        watch.faults = [fault for fault in watch.faults if "404" not in fault]
        watch.check()


def test_it_is_live_while_a_run_writes(
    browser: Any, server: UiServer, runs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "live"
    shutil.copytree(runs / "first", folder)
    add_judgements(folder, 3, "one")
    own = UiServer(open_library([folder]), 0)
    thread = threading.Thread(target=own.serve_forever)
    thread.start()
    try:
        with browsed(browser, own, WIDE) as watch:
            page = watch.page
            page.goto(f"{own.url}run/{run_id(folder.resolve())}")
            step = page.locator("#steps tr", has_text="checks").filter(has_text="running")
            page.evaluate("window.same = true")
            before = int(step.inner_text().split(" judgements")[0].split()[-1])
            add_judgements(folder, 4, "two")
            page.locator("#steps tr", has_text=f"{before + 4} judgements").wait_for()
            # Without the page being loaded again, and with what had the focus.
            assert page.evaluate("window.same") is True
            page.goto(f"{own.url}run/{run_id(folder.resolve())}/browse?show=judgements&q=three")
            watch.settle()
            assert page.locator(".item").count() == 0
            add_judgements(folder, 5, "three")
            page.locator(".item").nth(4).wait_for()
            watch.check()
    finally:
        own.shutdown()
        thread.join()


def test_the_pages_need_no_script(browser: Any, server: UiServer, runs: Path) -> None:
    with browsed(browser, server, WIDE, java_script_enabled=False) as watch:
        page = watch.page
        base = f"{server.url}run/{run_id((runs / 'first').resolve())}"
        for _ in range(50):
            page.goto(f"{base}/browse?show=answers")
            if page.locator(".building").count() == 0:
                break
            page.wait_for_timeout(100)
        page.get_by_label("Search the text").fill("red")
        page.get_by_role("button", name="Apply").click()
        page.wait_for_url("**q=red**")
        assert page.locator(".item").count() > 0
        page.locator(".item h3 a").first.click()
        page.get_by_role("heading", name="Answers").wait_for()
        assert not watch.faults
