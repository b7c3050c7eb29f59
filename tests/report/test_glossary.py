"""The glossary: one list, on the pages and in the docs."""

from __future__ import annotations

from pathlib import Path

from rlaif.report.build import make_environment
from rlaif.report.glossary import GLOSSARY

ROOT = Path(__file__).resolve().parents[2]


def test_pages_and_docs_explain_the_same_words() -> None:
    text = " ".join((ROOT / "docs" / "glossary.md").read_text("utf-8").split())
    page = make_environment().get_template("glossary.html.j2").render()
    for term, about in GLOSSARY.items():
        assert f"- **{term}**: {about}" in text
        assert f"<dt>{term}</dt>" in page
    assert text.count("- **") == len(GLOSSARY)
    assert {"M0", "nats", "par", "arm", "margin", "label mass"} <= GLOSSARY.keys()


def test_pages_and_readme_lead_to_it() -> None:
    for name in ("report", "bench", "reward"):
        source = (ROOT / "rlaif" / "report" / f"{name}.html.j2").read_text("utf-8")
        assert '{% include "glossary.html.j2" %}' in source
        assert 'href="#glossary"' in source, name
    assert "(docs/glossary.md)" in (ROOT / "README.md").read_text("utf-8")
