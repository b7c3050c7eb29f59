"""The arena step and its command: who meets, what becomes of missing verdicts, and resuming."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.records import Completion, make_prompt
from rlaif.core.resources import find
from rlaif.core.store import Store
from rlaif.metrics.arena import ArenaBattle
from rlaif.pipeline.contests import run_battles
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import Run, load_run
from rlaif.pipeline.steps.arena import _read_entrants, annotation_rows, read_battles
from tests.pipeline.test_kills import killed_in

NAMES = ("long", "middle", "short")


def answers(folder: Path, prompts: int = 10) -> list[Path]:
    """Files of answers to the same prompts, by how long they are on average."""
    draw = random.Random(8)
    made = []
    for name, words in zip(NAMES, (14, 9, 6), strict=True):
        rows = [
            {
                "prompt": f"Question {n}?",
                "completion": f"It is {'very ' * max(1, round(draw.gauss(words, 4)))}good {name}.",
            }
            for n in range(prompts)
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made.append(path)
    return made


def write(folder: Path, arena: dict[str, Any], **keys: Any) -> Path:
    """An experiment in which three files of answers meet."""
    asked = [{"prompt": f"Question {n}?"} for n in range(10)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    loads = [
        {"load": {"id": path.stem, "type": "completions", "path": path.name}}
        for path in answers(folder)
    ]
    whole = {
        "name": "met",
        "models": {"policy": {"engine": "fake", "path": "none"}},
        "prompts": {"path": "prompts.jsonl", "holdout": 2},
        "judges": [{"id": "longer", "kind": "longer"}],
        "steps": [
            *loads,
            {"arena": {"models": list(NAMES), "judge": "longer", "split": "all"} | arena},
        ],
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(whole | keys, sort_keys=False))
    return path


def arena_of(run: Run) -> tuple[list[ArenaBattle], dict[str, Any]]:
    (step,) = [s for s in run.manifest["steps"] if s["kind"] == "arena"]
    folder = run.store.step(step["hash"])
    return read_battles(folder), folder.read("arena")[0]


def met(folder: Path, **arena: Any) -> tuple[list[ArenaBattle], dict[str, Any]]:
    path = write(folder, arena)
    run_experiment(path, folder / "run")
    return arena_of(load_run(folder / "run"))


def test_every_two_meet_on_every_prompt_and_the_longer_wins(tmp_path: Path) -> None:
    battles, result = met(tmp_path)
    pairs = Counter((b.first, b.second) for b in battles)
    assert pairs == {("long", "middle"): 10, ("long", "short"): 10, ("middle", "short"): 10}
    for b in battles:
        one, two = b.lengths
        assert b.prob_first == (0.5 if one == two else float(one > two))
        assert b.chance == 1.0
    (group,) = result["groups"]
    assert [r["player"] for r in group["ratings"]] == list(NAMES)
    run = load_run(tmp_path / "run")
    (judged,) = run_battles(run).values()
    assert [b.prob_second for b in judged] == [1 - (b.prob_first or 0) for b in battles]
    assert "Arenas" in _report(run, tmp_path)


def _report(run: Run, folder: Path) -> str:
    from rlaif.report.build import build_report

    build_report(run.view(), folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_a_budget_is_kept_and_no_battle_comes_twice(tmp_path: Path) -> None:
    battles, result = met(tmp_path, battles=17, batch=5)
    assert len(battles) == result["battles"] == 17
    assert [sum(b.batch == n for b in battles) for n in range(4)] == [5, 5, 5, 2]
    assert len({(b.first, b.second, b.prompt_id) for b in battles}) == 17
    assert all(0 < b.chance < 1 for b in battles)


def test_a_budget_of_all_battles_draws_none(tmp_path: Path) -> None:
    battles, _ = met(tmp_path, battles=30)
    assert len(battles) == 30 and {b.chance for b in battles} == {1.0}


VERDICTS = {
    "rules": [
        # Of one prompt an order cannot be read, and of another both.
        {"match": "Question 3[^§]*long[^§]*short", "replies": ["?"]},
        {"match": "Question 4", "replies": ["?"]},
        {"match": ".", "replies": ["1"]},
    ]
}


def served(folder: Path) -> dict[str, Any]:
    (folder / "verdicts.yaml").write_text(yaml.safe_dump(VERDICTS))
    script = str(folder / "verdicts.yaml")
    return {
        "models": {"policy": {"engine": "fake", "path": "none", "script": script}},
        "judges": [{"id": "longer", "kind": "pairwise", "by": "policy", "verdict": "written"}],
    }


def test_a_battle_with_an_order_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path, {}, **served(tmp_path))
    run_experiment(path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    battles, result = arena_of(run)
    prompts = {p.question: p.prompt_id for p in prepare(path).prompts_by_id.values()}
    lost = {(b.prompt_id, b.first, b.second) for b in battles if b.prob_first is None}
    gone = {(prompts["Question 4?"], *b[1:]) for b in lost if b[0] == prompts["Question 4?"]}
    assert len(gone) == 3
    assert lost - gone == {(prompts["Question 3?"], "long", "short")}
    assert (result["battles"], result["judged"]) == (30, 26)
    # The first slot always wins: each battle is a tie of its two orders.
    assert {b.prob_first for b in battles} == {0.5, None}
    assert result["slot_one"]["mean"] == 1.0
    notes = [note for step in run.status()["steps"] for note in step["notes"]]
    assert "arena: 4 of 30 battles have no verdict" in notes


def test_what_is_shown_in_one_order_says_nothing_of_slots(tmp_path: Path) -> None:
    keys = served(tmp_path)
    keys["judges"][0]["order"] = "random"
    run_experiment(write(tmp_path, {}, **keys), tmp_path / "run")
    battles, result = arena_of(load_run(tmp_path / "run"))
    assert {b.prob_first for b in battles} == {0.0, 1.0, None}
    assert {b.slot_one for b in battles} == {None} and result["slot_one"] is None


def test_a_killed_arena_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, {"battles": 18, "batch": 4}, **served(tmp_path))
    folder = tmp_path / "kills"
    killed_in(folder, path, "arena")
    whole, killed = (folder / name for name in ("0", "1"))
    files = [p.relative_to(whole) for p in sorted(whole.rglob("steps/*/*.jsonl"))]
    assert any(p.name == "battles.jsonl" for p in files)
    for name in files:
        if name.name in ("battles.jsonl", "arena.jsonl"):
            assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("arena", "message"),
    [
        ({"judge": "nobody"}, "judge: 'nobody' is no judge"),
        ({"models": ["long", "nobody"]}, "models: 'nobody' is no model"),
        ({"models": ["long", "long"]}, "models: 'long' is named twice"),
        ({"models": ["policy", "initial"]}, "give the same answers here"),
        ({"anchor": "policy"}, "anchor: 'policy' is none of `models`"),
        ({"explore": 0.5}, "explore: only with `battles`"),
        ({"models": ["long"]}, "at least 2 items"),
        ({"prompts": "others"}, "'others' is no set of prompts"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_what_cannot_be_is_refused(tmp_path: Path, arena: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(prepare(write(tmp_path, arena)))


def test_models_share_their_answers_with_an_evaluation(tmp_path: Path, tiny_model: Path) -> None:
    path = write(
        tmp_path,
        {"models": ["initial", "other"], "split": "held_out", "max_new_tokens": 4},
        models={
            "policy": {"path": str(tiny_model)},
            "other": {"path": str(tiny_model), "system_prompt": "Be brief."},
        },
    )
    data = yaml.safe_load(path.read_text())
    data["steps"] = [data["steps"][-1], {"evaluate": {"max_new_tokens": 4}}]
    path.write_text(yaml.safe_dump(data))
    plan = make_plan(prepare(path))
    samples = [p for p in plan if p.kind == "sample"]
    assert len(samples) == 2 and len({p.hash for p in samples}) == 2
    assert {len(p.prompts) for p in samples} == {2}


def run_command(*words: str) -> Any:
    done = CliRunner().invoke(cli, ["arena", *words, "-q"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_the_command_rates_files_of_answers(tmp_path: Path) -> None:
    files = [str(path) for path in answers(tmp_path)]
    out = tmp_path / "out"
    words = (*files, "--judge", "longer", "--out", str(out), "--anchor", "short")
    first = json.loads(run_command(*words, "--json").stdout)
    assert [r["player"] for r in first["groups"][0]["ratings"]] == list(NAMES)
    assert first["judge"] == "longer" and first["battles"] == 30
    page = (out / "arena.html").read_text(encoding="utf-8")
    assert "3 models, 30 battles" in page and "anchor" in page
    assert json.loads(run_command(*words, "--json").stdout) == first
    assert "Bradley–Terry" in run_command(*words).stdout
    # What it writes is what `winrate` takes, and so is the run.
    for source in (out / "battles.jsonl", out):
        done = CliRunner().invoke(cli, ["winrate", str(source), "--json"], catch_exceptions=False)
        found = json.loads(done.stdout)
        found = found["judges"]["arena/longer"] if "judges" in found else found
        assert set(found["generators"]) == set(NAMES)
        assert found["generators"]["short"]["n_total"] == 20


def test_each_word_of_the_command_is_a_key_of_the_step(tmp_path: Path) -> None:
    words = ["--battles", "8", "--pairing", "uniform", "--anchor", "long", "--seed", "5"]
    words += ["--max-new-tokens", "9", "--temperature", "0.5", "--judge", "longer"]
    out = tmp_path / "out"
    run_command(*(str(path) for path in answers(tmp_path)), *words, "--out", str(out))
    written = yaml.safe_load((out / "asked" / "arena.yaml").read_text("utf-8"))
    assert written["seed"] == 5
    assert written["steps"][-1]["arena"] == {
        "models": list(NAMES),
        "judge": "longer",
        "split": "all",
        "anchor": "long",
        "max_new_tokens": 9,
        "temperature": 0.5,
        "battles": 8,
        "pairing": "uniform",
    }


def test_the_command_samples_models(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "brief.yaml").write_text(
        yaml.safe_dump({"path": str(tiny_model), "system_prompt": "Be brief."})
    )
    (tmp_path / "asked.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Is it {n}?"}) + "\n" for n in range(3))
    )
    words = [f"plain={tiny_model}", str(tmp_path / "brief.yaml"), "--judge", "longer"]
    words += ["--prompts", str(tmp_path / "asked.jsonl"), "--max-new-tokens", "6"]
    found = json.loads(run_command(*words, "--out", str(tmp_path / "out"), "--json").stdout)
    assert found["models"] == ["brief", "plain"] and found["battles"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one/model"], "needs two models"),
        (["a/model", "b/model", "--prompts", "p.jsonl"], "the name 'model' is taken"),
        (["a=one/model", "b=two/model"], "--prompts is missing"),
    ],
    ids=["alone", "one name", "nothing asked"],
)
def test_words_that_cannot_be_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["arena", *words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and message in done.output
    assert not (tmp_path / "out").exists()


def test_prompts_that_a_model_was_trained_on_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    path = write(
        tmp_path,
        {"models": ["initial", "sl"], "max_new_tokens": 3},
        models={"policy": {"path": str(tiny_model), "dtype": "float32"}},
    )
    rows = [{"prompt": "Question 1?", "completion": "It is good."}]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = yaml.safe_load(path.read_text())
    data["steps"] = [
        {"load": {"id": "good", "type": "demonstrations", "path": "good.jsonl"}},
        {"train": {"id": "sl", "method": "sft", "uses": ["good"], "precision": "fp32"}},
        data["steps"][-1],
    ]
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(RlaifError, match="was trained on"):
        run_experiment(path, tmp_path / "run")


@pytest.mark.slow
def test_the_shipped_experiment_rates_one_model_under_three_prompts(
    tmp_path: Path, tiny_model: Path
) -> None:
    told = {"brief": "Be brief.", "wordy": "Say much."}
    changes: dict[str, Any] = {
        f"models.{name}": {"path": str(tiny_model), "system_prompt": text}
        for name, text in told.items()
    }
    changes |= {"models.policy": {"path": str(tiny_model)}, "prompts.holdout": 12}
    changes |= {f"steps.{name}.max_new_tokens": 4 for name in ("programs", "opinions")}
    changes |= {"steps.opinions.battles": 24, "steps.opinions.batch": 8}
    overrides = [f"{path}={json.dumps(value)}" for path, value in changes.items()]
    run_experiment(find("experiments/elo_arena.yaml"), tmp_path / "run", overrides)
    run = load_run(tmp_path / "run")
    programs, opinions = (row["result"] for row in run.view().arenas)
    assert (programs["battles"], opinions["battles"]) == (36, 24)
    # Both arenas are of the same answers.
    assert sum(step["kind"] == "sample" for step in run.manifest["steps"]) == 3
    assert set(run_battles(run)) == {"programs/checks", "opinions/self"}


def entrant(index: int, text: str, ending: str = "stop") -> Completion:
    turns: Any = [{"role": "assistant", "content": text}]
    return Completion(f"k{9 - index}", "p", index, turns, "m", "w", {}, ending, digest=text)  # type: ignore[arg-type]


def test_of_several_answers_the_first_that_did_not_fail_takes_part(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [entrant(2, "third"), entrant(1, "second"), entrant(3, "last"), entrant(0, "", "failed")]
    store.step("given").append("completions", rows)
    planned = Planned("h", "arena", "arena", 0, 1, None, {"answers/x": "given"}, prompts=("p",))
    context: Any = SimpleNamespace(planned=planned, store=store)
    found = _read_entrants(context)
    assert found.names == ["x"]
    assert {name: c.text for name, c in found.answers[0].items()} == {"p": "second"}


def test_an_annotation_is_1_where_the_first_output_won_and_2_where_the_second(
    tmp_path: Path,
) -> None:
    folder, prompt = Store(tmp_path).step("met"), make_prompt([{"role": "user", "content": "Why?"}])
    battles = [
        ArenaBattle(
            prompt.prompt_id, "x", "y", prob, None, 1.0, 0, (1, 1), ("one", "two"), ({}, {})
        )
        for prob in (1.0, 0.0, 0.75, None)
    ]
    folder.append("battles", [asdict(battle) for battle in battles])
    folder.append("arena", [{"judge": "longer"}])
    texts = {"one": "First.", "two": "Second."}
    rows = list(annotation_rows(folder, {prompt.prompt_id: prompt}, texts))
    assert [row["preference"] for row in rows] == [1.0, 2.0, 1.25, None]
    first = (rows[0]["generator_1"], rows[0]["output_1"], rows[0]["generator_2"])
    assert first == ("x", "First.", "y") and rows[0]["instruction"] == "Why?"
