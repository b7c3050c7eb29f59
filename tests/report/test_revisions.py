"""The browser of revised answers: parent, principle, critique and revision of each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlaif.core.records import Completion
from rlaif.pipeline.runs import load_run
from rlaif.report.build import build_report
from tests.pipeline.test_revise import DRAFTS, LONG, folder_of, ran, revise, write
from tests.support.browsing import dumped, needs_chromium

Writer = Callable[..., Path]


@pytest.fixture
def path(tmp_path: Path, write_experiment: Writer) -> Path:
    """The run folder of an experiment whose answers were revised twice."""
    steps = [DRAFTS, revise(times=2, max_new_tokens=20)]
    ran(write(tmp_path, write_experiment, steps))
    return tmp_path / "out"


def page_of(path: Path) -> str:
    build_report(load_run(path).view(), path / "page.html")
    return (path / "page.html").read_text(encoding="utf-8")


def test_the_page_has_every_revision_with_its_parent_principle_and_critique(path: Path) -> None:
    run = load_run(path)
    shown = run.view().shown
    drafts = {c.completion_id: c.text for c in folder_of(run, "drafts").records(Completion)}
    last = {c.parent_id: c for c in folder_of(run, "revisions").records(Completion)}
    assert shown.revisions_total == len(shown.revisions) == len(drafts) == 10
    for entry in shown.revisions:
        assert entry["original"] == drafts[entry["id"]] == LONG
        assert (entry["by"], entry["model"], entry["step"]) == ("M0", "M0", "revisions")
        assert len(entry["turns"]) == 2
        end, revision = entry["turns"][-1], last[entry["id"]]
        assert (end["revision"], end["principle"]) == (revision.text, revision.principle)
        assert end["id"] == revision.completion_id and end["critique"]
    page = page_of(path)
    assert 'id="revision-browser"' in page and "Revised answers" in page


def test_a_run_without_revisions_has_no_browser_of_them(
    tmp_path: Path, write_experiment: Writer
) -> None:
    ran(write(tmp_path, write_experiment, [DRAFTS]))
    assert "Revised answers" not in page_of(tmp_path / "out")


@needs_chromium
def test_a_real_browser_shows_critique_and_revision(path: Path) -> None:
    page_of(path)
    page = path / "page.html"
    shown = dumped(page, "#revision=3")
    assert "3 of 10" in shown and "revised by M0" in shown
    assert LONG in shown and "the critique before it" in shown
    assert "Revision 2" in shown and ("Plums." in shown or "Dear friend" in shown)
