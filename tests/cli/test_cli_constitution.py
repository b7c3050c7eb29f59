"""`rlaif constitution ...` as users meet it: what it prints, writes and refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.cli import main
from rlaif.constitution.model import load_constitution
from rlaif.pipeline.runs import load_run
from tests.support.planted import CONSTITUTION, REPLIES, SCRIPT, pairs, two_checks_run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rlaif(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlaif", "constitution", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


@pytest.fixture
def finished(tmp_path: Path, write_experiment: Callable[..., Path]) -> Path:
    """A finished run; `labels.jsonl` beside it says that lists are better."""
    made = load_run(two_checks_run(tmp_path, write_experiment))
    prompts = made.prompt_records()
    answers: dict[str, set[str]] = {}
    for row in made.rows("completions"):
        answers.setdefault(row["prompt_id"], set()).add(row["messages"][-1]["content"])
    kept = [
        {"prompt": prompts[name].question, "chosen": REPLIES[1], "rejected": text}
        for name, texts in answers.items()
        for text in sorted(texts - {REPLIES[1]})
        if REPLIES[1] in texts
    ]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    (tmp_path / "labels.jsonl").write_text(text, "utf-8")
    return tmp_path


def test_ablate_prints_a_table_and_json(finished: Path, rlaif: Call) -> None:
    code, out, err = rlaif("ablate", finished / "run", "--labels", finished / "labels.jsonl")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()] == [
        "left",
        "brief",
        "listed",
        "agreement",
    ]
    code, out, _ = rlaif("ablate", finished / "run", "--json")
    rows = json.loads(out)["rows"]
    assert [row["principle"] for row in rows] == ["brief", "listed"]
    assert rows[0]["effect"]["flipped"] > 0 and rows[0]["agreement"] is None
    assert rlaif("ablate", finished)[0] == 2


def test_diff_tells_the_effect_on_a_run(finished: Path, rlaif: Call) -> None:
    path, new = finished / "constitution.yaml", finished / "new.yaml"
    new.write_text(path.read_text("utf-8").replace("weight: 2", "weight: 0.2"), "utf-8")
    code, out, err = rlaif("diff", path, new, "--run", finished / "run")
    assert code == 0, err
    assert "~ brief.weight: 2.0 -> 0.2\n" in out
    assert "judgements kept" in out and " flip, " in out
    code, out, _ = rlaif("diff", path, new, "--run", finished / "run", "--json")
    found = json.loads(out)
    assert found["changes"][0]["field"] == "weight"
    assert found["run"]["effect"]["flipped"] > 0


def test_fit_writes_weights_that_the_next_run_uses(finished: Path, rlaif: Call) -> None:
    words = ["fit", finished / "run", "--labels", finished / "labels.jsonl", "--folds", "2"]
    out_file = finished / "fitted.yaml"
    code, out, err = rlaif(
        *words, "--constitution", finished / "constitution.yaml", "--out", out_file
    )
    assert code == 0, err
    assert "held-out agreement" in out
    weights = {p.id: p.weight for p in load_constitution(out_file).principles}
    assert weights["listed"] > weights["brief"]
    code, out, _ = rlaif(*words, "--json")
    assert {row["principle"] for row in json.loads(out)["weights"]} == {"brief", "listed"}
    code, _, err = rlaif("fit", finished / "run")
    assert code == 2 and "--labels" in err


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("fit", "--folds", 1),
        ("infer", "--pairs", 0),
        ("infer", "--propose", 0),
        ("infer", "--candidates", -1),
        ("infer", "--keep", -1),
        ("fit", "--seed", -1),
        ("infer", "--seed", 2**64),
    ],
)
def test_counts_out_of_range_are_refused(
    rlaif: Call, tmp_path: Path, command: str, option: str, value: int
) -> None:
    words = [command, tmp_path / "pairs.jsonl", "--out", tmp_path / "out.yaml", option, str(value)]
    code, _, err = rlaif(*words)
    assert code == 2
    assert option in err and "range" in err


def test_ablate_says_when_no_judgement_is_about_a_principle(
    finished: Path, rlaif: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlaif.analysis.whatif._count_judged", lambda *_: {})
    code, out, _ = rlaif("ablate", finished / "run")
    assert code == 0
    assert "nothing to leave out" in out


def test_fit_on_pairs_judges_them_once(finished: Path, rlaif: Call) -> None:
    words = [
        "fit",
        finished / "labels.jsonl",
        "--folds",
        "2",
        "--work",
        finished / "work",
        "--json",
    ]
    code, out, err = rlaif(*words, "--constitution", finished / "constitution.yaml", "--quiet")
    assert code == 0, err
    found = {row["principle"]: row for row in json.loads(out)["weights"]}
    assert found["listed"]["coefficient"] > 0 > found["brief"]["coefficient"]
    stored = {p: p.read_bytes() for p in (finished / "work").rglob("*.jsonl")}
    assert stored
    assert rlaif(*words, "--constitution", finished / "constitution.yaml", "-q")[1] == out
    assert {p: p.read_bytes() for p in (finished / "work").rglob("*.jsonl")} == stored
    assert rlaif("fit", finished / "labels.jsonl")[0] == 2


def test_infer_writes_a_constitution_that_loads(tmp_path: Path, rlaif: Call) -> None:
    rows = [
        {"prompt": p.prompt.question}
        | dict(zip(("chosen", "rejected"), _best_first(p), strict=True))
        for p in pairs("shorter", 30)
    ]
    data, out_file = tmp_path / "pairs.jsonl", tmp_path / "found.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "script.yaml").write_text(yaml.safe_dump(SCRIPT), "utf-8")
    model = tmp_path / "model.yaml"
    model.write_text("{path: none, engine: fake, script: script.yaml}", "utf-8")
    words = ["infer", data, "--out", out_file, "--model", model, "--quiet", "--propose", "10"]
    code, out, err = rlaif(*words)
    assert code == 0, err
    assert "the longer answer was preferred in 0.0% of 30 pairs" in out
    first = load_constitution(out_file).principles[0]
    assert "shorter" in first.text and first.weight == 1
    assert "# 30 for, 0 against" in out_file.read_text("utf-8")
    code, text, _ = rlaif(*words, "--json")
    assert json.loads(text)["kept"][0] == first.id
    assert rlaif("lint", out_file)[0] == 0
    code, _, err = rlaif(*words[:4], "--model", tmp_path / "absent.yaml")
    assert code == 2 and "not found" in err


def _best_first(pair: Any) -> list[str]:
    texts = [pair.first.text, pair.second.text]
    return texts if pair.label > 0.5 else texts[::-1]


def test_lint_takes_prompts_and_revising(tmp_path: Path, rlaif: Call) -> None:
    path, prompts = tmp_path / "c.yaml", tmp_path / "prompts.jsonl"
    path.write_text(
        "name: c\nprinciples:\n"
        "  - {id: a, text: The answer is short and clear., applies_when: {tags: [x]}}\n"
        "  - {id: b, check: {rule: answers_terms}}\n",
        "utf-8",
    )
    prompts.write_text('{"prompt": "And?"}\n', "utf-8")
    code, out, _ = rlaif("lint", path, "--prompts", prompts)
    assert code == 0
    assert f"{path}:3: warning: a: applies to none of the 1 prompts" in out
    assert f"{path}:4: warning: b: check answers_terms gives nothing" in out
    assert rlaif("lint", path, "--revise")[0] == 2
    rows = json.loads(rlaif("lint", path, "--json")[1])
    assert {row["level"] for row in rows} == {"note"}


def test_show_has_a_table(tmp_path: Path, rlaif: Call) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(CONSTITUTION), "utf-8")
    lines = rlaif("show", path, "--table")[1].splitlines()
    assert lines[0] == "two, version 1: 2 principles"
    assert lines[2].split()[:3] == ["brief", "2", "(67%)"]
    assert "word_limits(max=3, min=1) or a model" in lines[2]
    assert json.loads(rlaif("show", path, "--json")[1])["name"] == "two"
    assert yaml.safe_load(rlaif("show", path)[1])["name"] == "two"


def test_import_writes_yaml_that_loads(tmp_path: Path, rlaif: Call) -> None:
    source, out_file = tmp_path / "theirs.json", tmp_path / "ours.yaml"
    data = {
        "constitutions": [{"critic": "What is rude in it?", "revision": "Write it kindly."}],
        "system_chat": [["u", "a"], ["u", "a"]],
    }
    source.write_text(json.dumps(data), "utf-8")
    code, out, err = rlaif("import", source, "--out", out_file, "--name", "theirs")
    assert code == 0, err
    assert "1 principles written" in out and "left out: system_chat: 2 entries" in out
    loaded = load_constitution(out_file)
    assert (loaded.name, loaded.principles[0].revision) == ("theirs", "Write it kindly.")
    source.write_text("[]", "utf-8")
    assert rlaif("import", source, "--out", out_file)[0] == 2
