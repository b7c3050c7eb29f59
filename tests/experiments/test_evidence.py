"""The page of evidence: sentences from numbers, pooling over seeds, and what was not run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.metrics.intervals import IntervalJson
from rlaif.metrics.pooled import seeds_interval
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import load_run
from rlaif.report.arenas import ArenaGroup, ArenaTable, RatedModel
from tools.evidence import (
    PAGE,
    System,
    arena_sentences,
    change_sentence,
    chosen,
    make_text,
    overview,
    pool,
    rating_words,
    read_table,
    show_agreement,
)

ROOT = Path(__file__).parents[2]


def change(mean: float, half: float, prompts: int = 48) -> IntervalJson:
    """A difference with a 95% interval of a normal figure."""
    ends = {"low": mean - half, "high": mean + half, "se": half / 1.96}
    return {"mean": mean, "n": prompts, "prompts": prompts, **ends}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("mean", "half", "words"),
    [
        (0.2, 0.1, "M1 is better than M0 in score/checks (+0.200 [+0.100, +0.300], 48 prompts)."),
        (-0.2, 0.1, "M1 is worse than M0 in score/checks"),
        (0.02, 0.01, "M1 is better than M0 in score/checks, by less than the margin ("),
        (-0.02, 0.01, "M1 is worse than M0 in score/checks, by less than the margin ("),
        (0.0, 0.03, "M1 is the same within the margin as M0 in score/checks"),
        (0.1, 0.2, "M1 cannot be told from M0 in score/checks"),
        # The 90% interval ends at 0.0503, which is outside.
        (0.0, 0.06, "M1 cannot be told from M0 in score/checks"),
    ],
)
def test_a_planted_difference_in_a_score_has_its_sentence(
    mean: float, half: float, words: str
) -> None:
    said = change_sentence("M1", "score/checks", change(mean, half), "M0", 0.05)
    assert said.startswith(words)


@pytest.mark.parametrize(
    ("mean", "half", "words"),
    [
        (3.0, 1.0, "length/words of M1 is higher than that of M0 (+3.000"),
        (-3.0, 1.0, "length/words of M1 is lower than that of M0"),
        (0.01, 1.0, "length/words of M1 cannot be told from that of M0"),
    ],
)
def test_another_figure_rises_or_falls_and_is_neither_good_nor_bad(
    mean: float, half: float, words: str
) -> None:
    said = change_sentence("M1", "length/words", change(mean, half), "M0", 0.05)
    assert said.startswith(words)


def test_a_judge_that_decided_nothing_has_no_agreement() -> None:
    judge = {"agreement": None, "low": None, "high": None, "n": 0, "ties": 24, "missing": 3}
    assert show_agreement(judge) == "it decided no pair (24 ties, 3 without a verdict)"
    right = judge | {"agreement": 0.75, "low": 0.5, "high": 0.9, "n": 20, "ties": 4, "missing": 0}
    assert show_agreement(right) == (
        "agreement 0.750 [0.500, 0.900] on 20 decided pairs (4 ties, 0 without a verdict)"
    )


def test_fewer_than_six_prompts_tell_nothing() -> None:
    said = change_sentence("M1", "score/checks", change(0.2, 0.1, 5), "M0", 0.05)
    assert "cannot be told from" in said


def test_the_table_names_experiments_and_the_page_has_them_all() -> None:
    margin, systems = read_table()
    assert margin > 0
    text = PAGE.read_text("utf-8")
    for system in systems:
        assert (ROOT / "experiments" / f"{system.name}.yaml").exists()
        assert len(system.seeds) in (1, 3) and system.metrics + system.bench + system.arenas
        assert f"\n## {system.name}\n" in text or f"\n| {system.name} |" in text
    assert [s.name for s in chosen(systems, ["spin", "cream"])] == ["spin", "cream"]
    with pytest.raises(SystemExit, match="nothing is no system"):
        chosen(systems, ["nothing"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of a scripted experiment, as `make evidence` leaves them."""
    folder = tmp_path_factory.mktemp("evidence")
    experiment: dict[str, Any] = {
        "name": "planted",
        "seed": 0,
        "models": {"policy": {"path": "x", "engine": "fake"}},
        "constitution": "constitutions/concise_helper.yaml",
        "prompts": {"path": "prompts/seeds/everyday.jsonl", "holdout": 8},
        "judges": [{"id": "checks", "kind": "rules"}],
        "steps": [{"sample": {"n": 1, "prompts": 2}}, {"evaluate": {}}],
    }
    path = folder / "planted.yaml"
    path.write_text(yaml.safe_dump(experiment))
    machine = {"processor": "Abacus", "cores": 2, "device": "cpu", "dtype": "float32"}
    for seed in (1, 2, 3):
        run_experiment(path, folder / f"planted-{seed}", [f"seed={seed}"])
        (folder / f"planted-{seed}.machine.json").write_text(json.dumps(machine))
    return folder


PLANTED = System("planted", [1, 2, 3], "Nothing.", "Everything.", metrics=["score/checks"])


def test_seeds_are_pooled_as_the_project_pools_them(runs: Path) -> None:
    pooled = pool(PLANTED.folders(runs))
    by_seed = [load_run(folder) for folder in PLANTED.folders(runs).values()]
    own = [run.values("main", seed, 0)["score/checks"] for seed, run in enumerate(by_seed, 1)]
    expected = seeds_interval(own)
    (row,) = pooled.page.latest
    assert expected is not None
    assert row["metrics"]["metrics"]["score/checks"]["mean"] == pytest.approx(expected.mean)


def test_the_page_has_what_was_run_and_lists_what_was_not(runs: Path) -> None:
    other = System("other", [1], "Little.", "Much.", metrics=["score/checks"])
    text = make_text([PLANTED, other], runs, 0.05, files=runs)
    assert "## planted" in text and "Abacus, 2 cores, cpu, float32." in text
    assert "rlaif run experiments/planted.yaml --out runs/evidence/planted-1 --set seed=1" in text
    assert "| other | 1 | Little. | Much. |" in text and "| planted |" not in text
    # One seed is missing: nothing is claimed of the two that are there.
    missing = System("planted", [1, 2, 4], "Nothing.", "Everything.", metrics=["score/checks"])
    assert "| planted | 3 |" in make_text([missing], runs, 0.05, files=runs)


def test_the_table_counts_the_scores_of_each_part_by_how_they_came_out(runs: Path) -> None:
    differences = [(0.2, 0.1), (0.2, 0.05), (-0.2, 0.1), (0.01, 0.02), (0.0, 0.3)]
    scores = [
        change_sentence("M1", name, change(mean, half), "M0", 0.05)
        for name, (mean, half) in zip(
            ("score/a", "score/b", "check/c", "reward_accuracy/d", "other:score/e"),
            differences,
            strict=True,
        )
    ]
    length = change_sentence("M1", "length/words", change(0.0, 1.0), "M0", 0.05)
    lines = [f"- {line}" for line in [*scores, length]]
    part = "\n".join(["## one", "", "Config 1; seeds 1, 2; here.", *lines, "- Alarms: drift (2)."])
    assert overview({"one": part}).splitlines() == [
        "| system | seeds | better | worse | the same | cannot tell | other figures | alarms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| [one](#one) | 2 | 2 | 1 | 1 | 1 | 1 | drift (2) |",
    ]
    assert "| [planted](#planted) | 3 |" in make_text([PLANTED], runs, 0.05, files=runs)


def test_a_part_whose_runs_are_elsewhere_stays_until_its_file_changes(
    runs: Path, tmp_path: Path
) -> None:
    page = make_text([PLANTED], runs, 0.05, files=runs)
    elsewhere = tmp_path / "runs"
    assert make_text([PLANTED], elsewhere, 0.05, page, files=runs) == page
    assert "| planted | 3 |" in make_text([PLANTED], elsewhere, 0.05, files=runs)
    other_seeds = System("planted", [1, 2], "Nothing.", "Everything.", metrics=["score/checks"])
    assert "| planted | 2 |" in make_text([other_seeds], elsewhere, 0.05, page, files=runs)

    written = yaml.safe_load((runs / "planted.yaml").read_text("utf-8"))
    written["steps"][0]["sample"]["n"] = 2
    (tmp_path / "planted.yaml").write_text(yaml.safe_dump(written))
    # Neither the page nor the runs of a file that has changed are evidence of it.
    assert "| planted | 3 |" in make_text([PLANTED], elsewhere, 0.05, page, files=tmp_path)
    assert "| planted | 3 |" in make_text([PLANTED], runs, 0.05, page, files=tmp_path)


def test_a_system_of_peoples_labels_reads_the_data_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.evidence.DATA", tmp_path)
    people = System("people", [1], "Little.", "Much.", metrics=["score/x"], data="labels.jsonl")
    part = "## people\n\nConfig 0; seeds 1; Abacus.\n"
    # Whether the part is of today's file cannot be told without its data.
    assert people.lacks_data() and "\nConfig 0;" in make_text([people], tmp_path, 0.05, part)
    (tmp_path / "labels.jsonl").touch()
    assert not people.lacks_data()
    assert people.settings(1) == ["seed=1", f"data={tmp_path / 'labels.jsonl'}"]
    assert "| people | 1 |" in make_text([people], tmp_path, 0.05, part, files=tmp_path)
    assert PLANTED.settings(2) == ["seed=2"] and not PLANTED.lacks_data()


def test_runs_whose_data_is_gone_leave_the_page_as_it_is(runs: Path) -> None:
    gone = System("planted", [1, 2, 3], "Nothing.", "Everything.", data="gone.jsonl")
    part = "## planted\n\nConfig 0; seeds 1, 2, 3; Abacus.\n"
    assert part in make_text([gone], runs, 0.05, part, files=runs)


def test_check_fails_if_the_page_is_another_one(tmp_path: Path) -> None:
    page, runs = tmp_path / "EVIDENCE.md", tmp_path / "runs"
    margin, systems = read_table()
    page.write_text(make_text(systems, runs, margin))
    words = [sys.executable, "tools/evidence.py", "--check", "--runs", str(runs)]
    command = [*words, "--page", str(page)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    page.write_text(page.read_text().replace("Not run yet", "Proven"))
    failed = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert failed.returncode == 1 and "make evidence" in failed.stderr


def test_an_arena_rates_each_model_against_its_anchor() -> None:
    def own(name: str, rating: float, ends: tuple[float | None, float | None]) -> RatedModel:
        anchor = name == "initial"
        return RatedModel(name, anchor, 96, 48, rating, ends, rating + 5, ends, rating, ends)

    brief, initial = own("brief", 1080.4, (1020.0, None)), own("initial", 1000.0, (None, None))
    group = ArenaGroup("initial", [brief, initial], {})
    table = ArenaTable("programs, seed 3", "checks", 48, 96, 90, 4, None, [], [group], [], [])
    assert rating_words(table, group, brief) == (
        "arena programs, judge checks, 90 battles: brief against initial +80 [+20, none], at equal "
        "style +85 [+20, none]"
    )
    equal = own("equal", 999.6, (990.0, 1010.0))
    assert "equal against initial +0 [-10, +10]" in rating_words(table, group, equal)
    apart = ArenaGroup(None, [brief], {})
    assert "brief against the mean of its group +80" in rating_words(table, apart, brief)


def test_the_arenas_of_a_run_have_sentences(tmp_path: Path) -> None:
    replies = [{"match": "plainly", "replies": ["Yes."]}, {"match": ".", "replies": ["No, it is."]}]
    (tmp_path / "script.yaml").write_text(yaml.safe_dump({"rules": replies}))
    fake = {"path": "x", "engine": "fake", "script": "script.yaml"}
    experiment: dict[str, Any] = {
        "name": "battles",
        "seed": 4,
        "models": {"policy": fake, "plain": fake | {"system_prompt": "Speak plainly."}},
        "constitution": "constitutions/concise_helper.yaml",
        "prompts": {"path": "prompts/seeds/everyday.jsonl", "holdout": 8},
        "judges": [{"id": "checks", "kind": "rules"}],
        "steps": [
            {
                "arena": {
                    "id": "fair",
                    "models": ["initial", "plain"],
                    "judge": "checks",
                    "anchor": "initial",
                }
            }
        ],
    }
    path = tmp_path / "battles.yaml"
    path.write_text(yaml.safe_dump(experiment))
    run_experiment(path, tmp_path / "battles-4")
    system = System("battles", [4], "Nothing.", "Everything.", arenas=["fair"])
    pooled = pool(system.folders(tmp_path))
    said = list(arena_sentences(pooled.runs, system))
    assert said and all(one.startswith("Seed 4: arena fair, judge checks, ") for one in said)
    assert "plain against initial" in said[0]
    other = System("battles", [4], "Nothing.", "Everything.", arenas=["elsewhere"])
    assert list(arena_sentences(pooled.runs, other)) == []
