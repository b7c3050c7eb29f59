"""What reads a whole run holds no more texts than it shows, and is not made again for nothing."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rlaif.cli import cli
from rlaif.core.records import content_hash
from rlaif.core.store import StepFolder
from rlaif.data.rows import GROUP, Spool, write_rows
from rlaif.pipeline.runs import load_run
from rlaif.report.browser import MAX_ANSWERS, MAX_PAIRS
from rlaif.report.gather import Sources, gather_shown
from tests.servers.scripted import ScriptedServer

Row = dict[str, Any]


def preferences(count: int) -> list[Row]:
    rng = random.Random(3)
    return [
        {
            "preference_id": f"f_{rng.getrandbits(60):015x}",
            "seed": 1,
            "arm": "main",
            "round": 1 + number % 2,
            "prompt": [{"role": "user", "content": f"Question {number}?"}],
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "assistant", "content": "No."}],
            "score_chosen": rng.random(),
            "score_rejected": None if number % 5 == 0 else rng.random(),
            "margin": 0.1,
            "reason": "",
            "source": "rlaif",
            "chosen_id": f"c_{number}_0",
            "rejected_id": f"c_{number}_1",
        }
        for number in range(count)
    ]


def held_out(prompts: int) -> list[tuple[Any, Row]]:
    return [
        (
            {"seed": seed, "round": number, "model": f"M{number}", "prompt_id": f"p_{i}",
             "completion_id": f"h_{i}_{seed}_{number}"},
            {"messages": [{"role": "assistant", "content": "word " * (i % 9)}],
             "finish_reason": "stop"},
        )
        for seed in (1, 2) for number in (0, 1) for i in range(prompts)
    ]  # fmt: skip


def judgement(subject: str, score: float | None) -> Row:
    return {
        "judgement_id": f"j_{subject}", "shown": [subject], "subject": subject, "judge": "self",
        "principle": None, "status": "ok" if score is not None else "unparsed", "score": score,
    }  # fmt: skip


def test_figures_are_of_all_records_and_texts_of_the_first_by_id() -> None:
    pairs, answers = preferences(3 * MAX_PAIRS + 7), held_out(MAX_ANSWERS + 50)
    judged = [judgement(row["completion_id"], 0.1 * (n % 10)) for n, (row, _) in enumerate(answers)]
    judged += [judgement(row["chosen_id"], None) for row in pairs]
    asked: list[int] = []

    def about(ids: Any) -> Iterator[Row]:
        asked.append(len(ids))
        return (row for row in judged if row["subject"] in ids)

    # The same pair in two steps counts once.
    sources = Sources(
        lambda: iter([*pairs, *pairs[:9]]), lambda: iter(answers), about, lambda _: iter(()),
        lambda: iter(()),
    )  # fmt: skip
    shown = gather_shown(sources, by_arm=False)
    assert (shown.pairs_total, len(shown.pairs)) == (len(pairs), MAX_PAIRS)
    ids = sorted(row["preference_id"] for row in pairs)
    assert [entry["id"] for entry in shown.pairs] == ids[:MAX_PAIRS]
    for side in ("chosen", "rejected"):
        drawn = shown.pair_scores[side]
        assert list(drawn) == ["M1", "M2"]
        for number, name in enumerate(drawn):
            own = [row[f"score_{side}"] for row in pairs if row["round"] == number + 1]
            assert list(drawn[name]) == [value for value in own if value is not None]
    assert shown.answers_total == 2 * (MAX_ANSWERS + 50)
    assert len(shown.answers) == MAX_ANSWERS
    assert all(len(entry["models"]) == 2 for entry in shown.answers)
    assert sorted(shown.lengths["M0"]) == sorted(
        len(c["messages"][0]["content"].split()) for row, c in answers if row["model"] == "M0"
    )
    assert {name: len(values) for name, values in shown.scores["self"].items()} == {
        "M0": len(answers) // 2,
        "M1": len(answers) // 2,
    }
    # Nothing is asked about pairs that are not shown.
    assert asked == [len(answers) + 2 * MAX_PAIRS]
    assert all(entry["judged_chosen"][0]["value"] is None for entry in shown.pairs)


@pytest.fixture
def scripted(tmp_path: Path, write_experiment: Callable[..., Path]) -> Path:
    path = write_experiment(
        tmp_path,
        None,
        models={"policy": {"path": "none", "engine": "fake", "script": "script.yaml"}},
        rounds=1,
        steps=[
            {"sample": {"n": 2, "temperature": 1.0, "max_new_tokens": 40}},
            {"judge": {"id": "checks", "kind": "rules"}},
            {"pair": {"strategy": "all"}},
        ],
        dataset={"formats": ["trl", "ultrafeedback"]},
    )
    rules = [{"match": ".", "replies": ["a brief answer", "many long words " * 20]}]
    (tmp_path / "script.yaml").write_text(yaml.safe_dump({"rules": rules}), "utf-8")
    return path


def run(*words: str | Path) -> str:
    done = CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def stamps(*folders: Path) -> dict[str, tuple[int, int]]:
    """The inode and time of every file."""
    files = [f for folder in folders for f in ([folder] if folder.is_file() else folder.rglob("*"))]
    return {str(f): (f.stat().st_ino, f.stat().st_mtime_ns) for f in files if f.is_file()}


def test_a_finished_run_writes_neither_report_nor_dataset_again(
    scripted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["run", scripted, "--out", out, "--quiet"]
    run(*words)
    page, dataset = out / "report.html", out / "dataset"
    before = stamps(page, dataset)
    assert len(before) > 3
    assert "Nothing to do" in run(*words)
    assert stamps(page, dataset) == before

    # What is asked for otherwise, damaged or gone is written again.
    run(*words, "--set", "description=Another.")
    assert "Another." in page.read_text("utf-8")
    after = stamps(dataset)
    page.unlink()
    next(dataset.glob("trl/*.parquet")).unlink()
    run(*words, "--set", "description=Another.")
    assert page.exists() and len(stamps(dataset)) == len(after)


def test_records_that_were_made_anew_make_a_new_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(4))
    )
    asked = [0]

    def another_each_time(body: dict[str, Any], number: int) -> str:
        asked[0] += 1
        return "word " * (asked[0] % 7) + str(asked[0])

    with ScriptedServer(another_each_time) as server:
        policy = {"path": "m", "engine": "openai", "base_url": server.url, "cache": False}
        data = {
            "name": "small",
            "models": {"policy": policy},
            "prompts": {"path": "prompts.jsonl", "holdout": 1},
            "rounds": 1,
            "steps": [
                {"sample": {"n": 2}},
                {"judge": {"id": "longest", "kind": "longer"}},
                {"pair": {"strategy": "all"}},
            ],
            "dataset": {"formats": ["trl"]},
        }
        path, out = tmp_path / "experiment.yaml", tmp_path / "out"
        path.write_text(yaml.safe_dump(data))
        words = ["run", path, "--out", out, "--quiet", "--no-report"]

        def rows() -> list[Row]:
            files = sorted((out / "dataset" / "trl").glob("*.parquet"))
            return [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]

        run(*words)
        before = rows()
        shutil.rmtree(out / "steps")
        run(*words)
    assert len(rows()) == len(before)
    assert rows() != before
    texts = {row["chosen"][-1]["content"] for row in load_run(out).rows("preferences")}
    assert {row["chosen"][-1]["content"] for row in rows()} == texts


def test_the_report_command_writes_whenever_it_is_called(scripted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("run", scripted, "--out", out, "--quiet")
    os.truncate(out / "report.html", 5000)
    run("report", out)
    assert (out / "report.html").stat().st_size > 10_000


def test_no_reading_of_a_run_holds_all_of_a_file(
    scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run("run", scripted, "--out", out, "--quiet", "--no-report")

    def forbidden(self: StepFolder, name: str) -> list[Row]:
        raise AssertionError(f"all of {name} was read at once")

    monkeypatch.setattr(StepFolder, "read", forbidden)
    run("report", out)
    run("export", out, tmp_path / "pairs.parquet")
    for kind in ("completions", "judgements", "preferences", "prompts"):
        run("export", out, tmp_path / f"{kind}.jsonl", "--records", kind)
    prompts = load_run(out).prompt_records()
    assert [prompts[name].prompt_id for name in prompts] == list(prompts)
    assert len(list(load_run(out).rows("preferences"))) > 0


TEXTS = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
VALUES = st.one_of(st.none(), st.integers(-9, 9), st.floats(-1, 1, width=32), st.booleans())
ROWS = st.lists(
    st.fixed_dictionaries(
        {"text": st.one_of(st.none(), TEXTS), "number": st.one_of(st.none(), st.floats(-1, 1))},
        optional={
            "words": st.lists(TEXTS, max_size=2),
            "more": st.dictionaries(
                st.sampled_from("ab"), st.none() | TEXTS, min_size=1, max_size=2
            ),
        },
    ),
    max_size=6,
)


@given(ROWS)
def test_rows_that_were_spooled_come_back_and_make_one_table(rows: list[Row]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, Spool(Path(folder)) as spool:
        for row in rows:
            spool.add(row)
        assert list(spool.rows()) == rows
        assert spool.digest(12) == content_hash(rows, length=12)
        path = Path(folder) / "rows.parquet"
        if rows:
            spool.write_parquet(path, spool.schema())
            found = pyarrow.parquet.read_table(path).to_pylist()
            assert [row["text"] for row in found] == [row["text"] for row in rows]
            assert [row.get("words") for row in found] == [row.get("words") for row in rows]


def test_a_column_of_a_later_group_is_in_the_table(tmp_path: Path) -> None:
    rows: list[Row] = [{"a": None} for _ in range(GROUP + 1)]
    rows += [{"a": "late", "b": [{"c": 1}]}, {"a": "later", "b": [{"c": 2.5, "d": "x"}]}]
    path = tmp_path / "rows.parquet"
    assert write_rows(iter(rows), path) == GROUP + 3
    found = pyarrow.parquet.read_table(path).to_pylist()
    assert found[0] == {"a": None, "b": None}
    assert found[-1] == {"a": "later", "b": [{"c": 2.5, "d": "x"}]}


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "csv"])
def test_rows_of_every_ending_are_written_one_by_one(tmp_path: Path, ending: str) -> None:
    held = [0]

    def rows() -> Iterator[Row]:
        for number in range(3):
            held[0] += 1
            yield {"number": number} | ({"late": "é"} if number == 2 else {})

    path = tmp_path / f"rows.{ending}"
    assert write_rows(rows(), path) == held[0] == 3
    text = (
        gzip.decompress(path.read_bytes()).decode()
        if ending.endswith("gz")
        else path.read_text("utf-8")
    )
    if ending == "csv":
        assert text.splitlines() == ["number,late", "0,", "1,", "2,é"]
    else:
        lines = json.loads(text) if ending == "json" else list(map(json.loads, text.splitlines()))
        assert lines == [{"number": 0}, {"number": 1}, {"number": 2, "late": "é"}]
    assert not list(tmp_path.glob(".*"))
