"""Win rates of a run's own held-out answers are the report's, and are ranked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.core.errors import ConfigError
from rlaif.core.integrity import seal_row
from rlaif.core.records import Completion, Judgement
from rlaif.core.store import FORMAT, Store
from rlaif.pipeline.contests import run_battles
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import load_run


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    write_experiment: Callable[..., Path],
) -> Path:
    folder = tmp_path_factory.mktemp("contests")
    path = write_experiment(folder / "config", tiny_model, seed=None, seeds=[3, 4])
    run_experiment(path, folder / "run")
    return folder / "run"


def measured(folder: Path) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["winrate", str(folder), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_rates_are_those_of_the_evaluation(finished: Path) -> None:
    found = measured(finished)
    assert found["run"] == "small"
    assert found["judges"].keys() == {"checks", "self"}
    rounds = [r for r in load_run(finished).status()["rounds"] if r["round"] > 0]
    assert len(rounds) == 4
    for row in rounds:
        name = f"{row['policy']} seed {row['seed']}"
        for judge, result in found["judges"].items():
            metric = row["deltas"]["initial"][f"win_rate/{judge}"]
            rate = result["generators"][name]
            assert rate["win_rate"] == pytest.approx(100 * metric["mean"]), (name, judge)
            assert rate["n_prompts"] == metric["n"] == 3
            assert rate["low"] < rate["high"]
    ranking = found["judges"]["checks"]["ranking"]
    assert {r["player"] for r in ranking} == {
        "M0",
        *(f"M{m} seed {s}" for m in (1, 2) for s in (3, 4)),
    }
    assert [r["player"] for r in ranking if r["is_anchor"]] == ["M0"]


def test_the_table_names_judge_and_models(finished: Path) -> None:
    done = CliRunner().invoke(cli, ["winrate", str(finished)], catch_exceptions=False)
    assert "Win rate (%) against M0 by judge checks" in done.stdout
    assert "M2 seed 4" in done.stdout
    wrong = CliRunner().invoke(cli, ["winrate", str(finished), "--from", "trl"])
    assert wrong.exit_code == 2 and "are for files" in wrong.output


def test_a_run_without_a_later_model_says_so(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write_experiment(tmp_path / "config", None)
    run_experiment(path, tmp_path / "run")
    with pytest.raises(ConfigError, match="no finished evaluation in which a judge saw a later"):
        run_battles(load_run(tmp_path / "run"))


def completion(name: str, prompt: str, text: str) -> Completion:
    messages = [{"role": "assistant", "content": text}]
    return Completion(name, prompt, 0, messages, "policy", "", {}, "stop")


def judgement(judge: str, shown: list[str], value: float | None) -> Judgement:
    kind = {"prob_first": value} if len(shown) > 1 else {"score": value}
    status = "ok" if value is not None else "unparsed"
    name = f"{judge}/{shown}"
    subject, prompt = shown[0], shown[0].partition("-")[2]
    return Judgement(
        name, name, prompt, "completion", shown, subject, judge, "a", "ai", None, status, **kind
    )


@pytest.fixture
def two_arms(tmp_path: Path) -> Path:
    """M0 and the policies of two arms on three prompts, scored by `scorer` and compared by `duel`.

    "people" wins prompts p0 and p1 and ties p2; "ai" has no score on p2. M0's second answer to p0
    is bad, so that its mean is what "people" beats.
    """
    store = Store(tmp_path)
    prompts = ("p0", "p1", "p2")
    scores: dict[str, list[float | None]] = {
        "old": [0.5, 0.2, 0.3], "people": [0.4, 0.9, 0.3], "ai": [0.1, 0.1, None]
    }  # fmt: skip
    for model, given in scores.items():
        own = [completion(f"{model}-{p}", p, f"{model} says {p}") for p in prompts]
        rows = [judgement("scorer", [c.completion_id], v) for c, v in zip(own, given, strict=True)]
        if model == "old":
            own.append(completion("old2-p0", "p0", "bad"))
            rows.append(judgement("scorer", ["old2-p0"], 0.1))
        else:
            # 0.8 and 0.6 for the new answer: 0.7 over both orders.
            pair = ["old-p1", f"{model}-p1"]
            duel = [judgement("duel", pair, 0.2), judgement("duel", pair[::-1], 0.6)]
            store.step(f"duel-{model}").append("judgements", duel)
        store.step(f"answers-{model}").append("completions", own)
        store.step(f"scores-{model}").append("judgements", rows)
    steps = []
    for arm in ("people", "ai"):
        store.step(f"evaluate-{arm}").append("evaluation", [{}])
        inputs = {
            "completions": f"answers-{arm}",
            "judgements/scorer": f"scores-{arm}",
            "judgements/duel": f"duel-{arm}",
            "initial/completions": "answers-old",
            "initial/judgements/scorer": "scores-old",
        }
        models = {"policy": ["M1", "key"]}
        steps.append({"hash": f"evaluate-{arm}", "kind": "evaluate", "id": "evaluate", "seed": 1,
                      "round": 1, "arms": [arm], "inputs": inputs, "models": models})  # fmt: skip
    for folder in sorted((tmp_path / "steps").iterdir()):
        store.step(folder.name).finish({"hash": folder.name})
    manifest: dict[str, Any] = {key: {} for key in ("models", "judges", "prompts")}
    manifest |= {"format": FORMAT, "name": "two", "seeds": [1], "arms": {"people": {}, "ai": {}}}
    manifest |= {"constitution": None, "steps": steps}
    (tmp_path / "manifest.json").write_text(json.dumps(seal_row(manifest)))
    return tmp_path


def test_every_arms_model_fights_m0(two_arms: Path) -> None:
    found = run_battles(load_run(two_arms))
    wins = {
        judge: {(b.second, b.prompt_id): b.prob_second for b in battles}
        for judge, battles in found.items()
    }
    assert wins["scorer"] == {
        ("M1 people", "p0"): 1.0,
        ("M1 people", "p1"): 1.0,
        ("M1 people", "p2"): 0.5,
        ("M1 ai", "p0"): 0.0,
        ("M1 ai", "p1"): 0.0,
        ("M1 ai", "p2"): None,
    }
    assert wins["duel"][("M1 people", "p1")] == pytest.approx(0.7)
    assert wins["duel"][("M1 people", "p0")] is None
    first = found["scorer"][0]
    assert (first.first, first.place) == ("M0", "prompt p0")
    assert first.lengths == (round((len("old says p0") + 3) / 2), len("people says p0"))


def test_the_command_counts_what_is_missing(two_arms: Path) -> None:
    ai = measured(two_arms)["judges"]["scorer"]["generators"]["M1 ai"]
    assert (ai["n_total"], ai["n_missing"], ai["win_rate"]) == (2, 1, 0.0)
    assert ai["high"] > 50, "two prompts say little"
