"""`rlaif judge-bench` as users meet it: what it prints, where it writes, how it says mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.core.errors import ConfigError


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"Question {i}?", "chosen": "A long answer." * (1 + i % 2), "rejected": "Short."}
        for i in range(12)
    ]
    rows += [{"prompt": "Last?", "chosen": "No.", "rejected": "A much longer answer."}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def run(*words: str | Path) -> str:
    done = CliRunner().invoke(cli, ["judge-bench", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_one_json_object_and_a_page(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pairs.parent)
    words = [pairs, "--judge", "longer", "--json", "--quiet"]
    printed = run(*words)
    result = json.loads(printed)
    row = result["judges"]["longer"]
    assert row["agreement"] == pytest.approx(12 / 13)
    assert (row["n"], row["ties"], row["tie_rule"]) == (13, 0, "excluded")
    assert 0.0 <= row["low"] <= row["agreement"] <= row["high"] <= 1.0
    assert set(result["judges"]) == {"longer", "first", "random", "overlap"}
    folder = pairs.parent / "runs" / "judge-bench" / "pairs"
    assert json.loads((folder / "bench.json").read_text("utf-8")) == result
    assert "longer" in (folder / "report.html").read_text("utf-8")
    assert run(*words) == printed


def test_the_table_names_judges_and_report(pairs: Path, tmp_path: Path) -> None:
    words = [pairs, "--judge", "longer", "--no-baselines", "--attack", "length_padding"]
    printed = run(*words, "--quiet", "--out", tmp_path / "out")
    assert "13 pairs, 13 prompts" in printed
    assert "0.923" in printed
    assert "length_padding" in printed
    assert "random" not in printed
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in printed


def test_a_judge_without_agreement_has_an_empty_cell(tmp_path: Path) -> None:
    path = tmp_path / "alike.jsonl"
    rows = [{"prompt": f"Question {i}?", "chosen": "Yes", "rejected": "Not"} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = [path, "--judge", "longer", "--no-baselines", "--quiet"]
    printed = run(*words, "--out", tmp_path / "out")
    heading = next(line for line in printed.splitlines() if "judge" in line and "ties" in line)
    row = next(line for line in printed.splitlines() if "longer" in line)
    names = [cell.strip() for cell in heading.split("┃")]
    cells = dict(zip(names, (cell.strip() for cell in row.split("│")), strict=True))
    assert cells["agreement"] == "–"
    assert (cells["n"], cells["ties"], cells["coverage"]) == ("0", "9", "9 of 9")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    table = page[page.index("Agreement with the labels") :].split("</table>")[0]
    assert ">–<" in table.replace('<span class="quiet">', "") and ">pairs<" in table


def test_columns_that_nobody_knows_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"frage": "x", "antwort": "y"}\n', "utf-8")
    with pytest.raises(ConfigError, match=r"'antwort', 'frage'"):
        run(path, "--judge", "longer")
