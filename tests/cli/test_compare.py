"""`rlaif compare` as users meet it: what it prints, the page that it writes, mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.analysis.comparison.compute import compare_inputs
from rlaif.cli import cli
from rlaif.report.compare import render_comparison
from tests.support.planted_feedback import Planted, write_planted

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def run(*words: object) -> Any:
    return CliRunner().invoke(cli, ["compare", *map(str, words)], catch_exceptions=False)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("planted")
    return list(write_planted(folder, Planted(pairs=40)).values())


def test_answers_come_first_and_the_page_says_the_same(planted: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    done = run(*planted, "--out", page)
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert lines[0] == "Does AI feedback agree with people as people agree with one another?"
    assert lines[1].startswith("  judge")
    assert f"Page: {page}" in done.output
    text = page.read_text("utf-8")
    assert "40 pairs of 40 prompts" in text
    assert lines[0] in text


def test_json_is_the_result_that_the_page_is_made_of(planted: list[Path]) -> None:
    done = run(*planted, "--json", "--margin", "0.5", "--epsilon", "0.2")
    result = json.loads(done.stdout)
    assert (result["margin"], result["epsilon"]) == (0.5, 0.2)
    assert render_comparison(result) == render_comparison(result)
    assert result["answers"][0]["verdict"] in ("same", "better within", "worse within")


def test_two_models_that_are_asked_about_stand_first(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"Q{n}?",
            "output_1": "base",
            "generator_1": "base",
            "output_2": f"{name} {n}",
            "generator_2": name,
            "annotator": "gpt",
            "preference": 1.75 if (n + place) % 3 else 1.25,
        }
        for place, name in enumerate(("one", "two", "three"))
        for n in range(12)
    ]
    path = tmp_path / "battles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads(run(path, "--between", "two", "one", "--json").stdout)
    asked = [(r["first"], r["second"]) for r in result["contests"] if r["asked"]]
    assert asked == [("two", "one")]
    assert result["contests"][0]["asked"]
    sentences = [row["sentence"] for row in result["answers"]]
    assert sentences[0].startswith("one against two in win rate against base by gpt: cannot tell")


def test_a_margin_of_nothing_and_no_source_are_refused() -> None:
    assert CliRunner().invoke(cli, ["compare", "x", "--margin", "0"]).exit_code == 2
    assert CliRunner().invoke(cli, ["compare"]).exit_code == 2


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{HOSTILE} {n}", "chosen": f"a {n}", "rejected": HOSTILE, "source": HOSTILE}
        for n in range(8)
    ]
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    inputs = [f"<script>one</script>={tmp_path / 'one.jsonl'}", str(tmp_path / "two.jsonl")]
    page = render_comparison(compare_inputs(inputs))
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "<img" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None and "default-src 'none'" in policy[1] and "script" not in policy[1]
    # Two files of people's labels are no AI feedback, which the page says.
    assert "No question can be answered from these inputs" in page
