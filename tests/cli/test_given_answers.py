"""`rlaif judge`, `score`, `pair` and `evaluate` on files of answers that were not sampled here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.core.errors import ConfigError
from rlaif.core.records import Judgement, make_prompt
from rlaif.core.store import StepFolder
from rlaif.data.given import read_given
from rlaif.data.rows import write_rows

Run = Callable[..., dict[str, Any]]
SUMS = [(f"{n}+1?", str(n + 1)) for n in range(6)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command in a folder with two files of answers and a constitution; what it printed."""
    monkeypatch.chdir(tmp_path)
    principle = {"id": "right", "check": {"rule": "numeric_match"}}
    Path("c.yaml").write_text(yaml.safe_dump({"name": "c", "principles": [principle]}), "utf-8")
    wrong = [n % 2 for n in range(6)]
    rows = [{"prompt": q, "completion": f"It is {a}.", "reference": a} for q, a in SUMS]
    write_rows(rows, Path("right.jsonl"))
    half = [
        {**row, "completion": "It is 99."} if w else row for row, w in zip(rows, wrong, strict=True)
    ]
    write_rows(half, Path("half.parquet"))

    def invoke(*words: str) -> dict[str, Any]:
        done = CliRunner().invoke(cli, [*words, "--json", "--quiet"])
        if done.exception is not None:
            raise done.exception
        return dict(json.loads(done.stdout))

    return invoke


def test_answers_are_judged_and_their_figures_have_intervals(run: Run) -> None:
    done = run("judge", "half.parquet", "--constitution", "c.yaml", "--out", "checks")
    assert done["counts"]["judgements"] == 6
    prompts = {p.prompt_id: p for p in read_given(Path("half.parquet")).prompts}
    scores = {
        prompts[j.prompt_id].reference: j.score
        for j in StepFolder(Path("checks")).records(Judgement)
    }
    assert scores == {str(n + 1): float(n % 2 == 0) for n in range(6)}
    row = run("evaluate", "half.parquet", "--judgements", "checks", "--out", "figures")
    figure = row["metrics"]["score/checks"]
    assert (figure["mean"], figure["n"]) == (0.5, 6)
    assert figure["low"] < 0.5 < figure["high"]
    assert row["deltas"] == {}


def test_two_files_are_compared(run: Run) -> None:
    both = ["right.jsonl", "--against", "half.parquet"]
    done = run("judge", *both, "--constitution", "c.yaml", "--out", "checks")
    assert done["counts"]["judgements"] == 12
    run("judge", *both, "--kind", "longer", "--out", "longer")
    judged = ["--judgements", "checks", "--judgements", "longer"]
    row = run("evaluate", *both, *judged, "--out", "figures")
    assert row["metrics"]["score/checks"]["mean"] == 1.0
    change = row["deltas"]["initial"]["score/checks"]
    assert (change["mean"], change["old"], change["n"]) == (0.5, 0.5, 6)
    # "It is 99." is longer than "It is 2.", and what both files say is a tie.
    win = row["metrics"]["win_rate_vs_initial/longer"]
    assert (win["mean"], win["n"]) == ((3 * 0.5 + 3 * 0.0) / 6, 6)
    assert "win_rate_vs_initial/longer" not in row["deltas"]["initial"]
    # The other way round.
    back = ["half.parquet", "--against", "right.jsonl"]
    run("judge", *back, "--kind", "longer", "--out", "back")
    row = run("evaluate", *back, "--judgements", "back", "--out", "figures-back")
    assert row["metrics"]["win_rate_vs_initial/back"]["mean"] == 0.75


def test_files_that_were_judged_apart_are_compared_alike(run: Run) -> None:
    for name, out in (("right.jsonl", "one"), ("half.parquet", "other")):
        run("judge", name, "--constitution", "c.yaml", "--out", f"{out}/checks")
    both = ["right.jsonl", "--against", "half.parquet", "--judgements", "one/checks"]
    row = run("evaluate", *both, "--against-judgements", "other/checks", "--out", "figures")
    assert row["deltas"]["initial"]["score/checks"]["mean"] == 0.5
    alone = ["evaluate", "right.jsonl", "--against-judgements", "other/checks", "--out", "alone"]
    done = CliRunner().invoke(cli, alone)
    assert done.exit_code == 2 and "--against-judgements is for --against" in done.stderr


def test_given_answers_make_pairs(run: Run) -> None:
    rows = [
        {"prompt": q, "completion": said, "reference": a} for q, a in SUMS for said in (a, "none")
    ]
    write_rows(rows, Path("two.csv"))
    run("judge", "two.csv", "--constitution", "c.yaml", "--out", "checks")
    done = run("pair", "two.csv", "checks", "--out", "pairs")
    assert done["counts"]["preferences"] == 6
    chosen = {row["chosen"][0]["content"] for row in StepFolder(Path("pairs")).read("preferences")}
    assert chosen == {a for _, a in SUMS}


def test_a_printed_evaluation_says_what_has_no_interval(run: Run) -> None:
    write_rows([{"prompt": "1+1?", "completion": "2"}], Path("one.jsonl"))
    words = ["evaluate", "one.jsonl", "--against", "one.jsonl", "--out", "figures", "--quiet"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert "length/words" in done.stdout


def test_other_prompts_cannot_be_compared(run: Run) -> None:
    write_rows([{"prompt": "1+1?", "completion": "2"}], Path("one.jsonl"))
    for words in (["judge", "right.jsonl"], ["evaluate", "right.jsonl"]):
        with pytest.raises(ConfigError, match=r"5 of its 6 prompts .* in one\.jsonl"):
            run(*words, "--against", "one.jsonl", "--constitution", "c.yaml", "--out", "no")
        assert not Path("no").exists()


def test_records_without_their_prompts_ask_for_them(run: Run) -> None:
    prompt = make_prompt([{"role": "user", "content": "1+1?"}])
    record = {"completion_id": "c", "prompt_id": prompt.prompt_id, "sample_index": 0, "model": "m"}
    record |= {"messages": [{"role": "assistant", "content": "2"}], "weights_hash": ""}
    write_rows([record | {"sampling": {}, "finish_reason": "stop"}], Path("records.jsonl"))
    with pytest.raises(ConfigError, match="--prompts"):
        run("judge", "records.jsonl", "--constitution", "c.yaml", "--out", "no")
    write_rows([{"prompt": "1+1?", "reference": "2"}], Path("prompts.jsonl"))
    given = ["--prompts", "prompts.jsonl", "--constitution", "c.yaml", "--out", "checks"]
    assert run("judge", "records.jsonl", *given)["counts"]["judgements"] == 1


def test_prompts_of_another_file_bring_their_references(run: Run) -> None:
    write_rows([{"prompt": "1+1?", "completion": "2"}], Path("one.jsonl"))
    write_rows([{"prompt": "1+1?", "reference": "2"}], Path("prompts.jsonl"))
    given = ["--prompts", "prompts.jsonl", "--constitution", "c.yaml", "--out", "checks"]
    run("judge", "one.jsonl", *given)
    assert [j.score for j in StepFolder(Path("checks")).records(Judgement)] == [1.0]
