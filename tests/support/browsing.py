"""A page as a real browser shows it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed: the page's script was NOT exercised"
)


def dumped(page: Path, hash_: str = "") -> str:
    """The page's markup once its script has run."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
         f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", f"file://{page}{hash_}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


@contextmanager
def launched() -> Iterator[Any]:
    """A headless Chromium that playwright drives."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as played:
        browser = played.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def wait_for_count(found: Any, number: int) -> None:
    """Wait until there are `number` such elements: those of a page that comes appear one by one."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    api.expect(found).to_have_count(number, timeout=30_000)


def axe_faults(page: Any) -> list[str]:
    """The serious and critical faults that axe-core finds."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {[node['html'][:200] for node in fault['nodes']][:3]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
