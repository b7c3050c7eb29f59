"""The gallery of the documentation has every experiment, as it is in its file."""

from __future__ import annotations

from pathlib import Path

import yaml

from tools.docs.gallery import (
    EXPERIMENTS,
    NOT_RUN,
    list_experiments,
    make_pages,
    read_evidence,
    read_header,
)

PAGES = dict(make_pages())


def test_each_experiment_has_a_page_with_its_file_and_its_evidence() -> None:
    evidence = read_evidence((EXPERIMENTS / "EVIDENCE.md").read_text("utf-8"))
    assert {Path(page).stem for page in PAGES} == {*list_experiments(), "index"}
    for name in list_experiments():
        page, text = PAGES[f"gallery/{name}.md"], (EXPERIMENTS / f"{name}.yaml").read_text("utf-8")
        assert f"```yaml\n{text}```" in page
        assert evidence.get(name, NOT_RUN) in page
        assert f'src="{name}.svg"' in page
        # Each file says what the paper did, and what it is.
        assert read_header(text) and "yaml-language-server" not in read_header(text)
        assert yaml.safe_load(text)["description"]
        assert f"[{name}]({name}.md)" in PAGES["gallery/index.md"]


def test_what_was_run_is_told_from_what_was_not() -> None:
    page = "# Evidence\n\n## spin\n\n    rlaif run\n\n- It rose.\n\n## Not run yet\n\n| cream |\n"
    assert read_evidence(page) == {"spin": "    rlaif run\n\n- It rose."}


def test_a_header_keeps_its_paragraphs_and_commands() -> None:
    text = "# yaml-language-server: x\n# One\n# two.\n#\n#     rlaif run\nname: x\n# not this\n"
    assert read_header(text) == "One\ntwo.\n\n    rlaif run"
