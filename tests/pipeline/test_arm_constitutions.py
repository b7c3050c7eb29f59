"""Runs whose arms and judges have constitutions of their own: records, what if, datasets."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from rlaif.__main__ import main
from rlaif.analysis.fit_weights import fitted_constitution, run_votes
from rlaif.analysis.reach import measure_reach
from rlaif.analysis.whatif import ablate_principles, effect, load_pairings, rescore_completions
from rlaif.config.dataset import DatasetSpec
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.data.readers import read_labelled
from rlaif.pipeline.choice import Choice
from rlaif.pipeline.constitutions import run_constitution, run_weights
from rlaif.pipeline.dataset import build_dataset
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import Run, load_run
from rlaif.report.build import build_report
from tests.support.planted import CONSTITUTION, REPLIES

OTHER = {
    "name": "listing",
    "principles": [
        {"id": "listed", "text": "It is a list.", "weight": 3, "check": {"rule": "is_list"}},
        {
            "id": "long",
            "text": "The answer has at least six words.",
            "check": {"rule": "word_limits", "params": {"min": 6, "max": 90}},
        },
    ],
}
# The same principle as in the run's constitution, of another weight, and one more.
THIRD = {
    "name": "third",
    "principles": [
        CONSTITUTION["principles"][0] | {"weight": 0.5},  # type: ignore[operator]
        OTHER["principles"][1] | {"weight": 4},  # type: ignore[operator]
    ],
}
ARMS: dict[str, Any] = {
    "own": {},
    "margin": {"set": {"steps.pair.strategy": "margin", "steps.pair.min_margin": 0.3}},
    "other": {"set": {"constitution": "other.yaml"}},
}
STEPS: list[dict[str, Any]] = [
    {"sample": {"n": 4, "temperature": 1.0, "max_new_tokens": 40}},
    {"judge": {"id": "checks", "kind": "rules"}},
    {"judge": {"id": "apart", "kind": "rules", "constitution": "third.yaml"}},
    {"pair": {"strategy": "all", "weights": {"checks": 2.0, "apart": 1.0}}},
]


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {"constitution": CONSTITUTION, "other": OTHER, "third": THIRD}
    files["script"] = {"rules": [{"match": ".", "replies": REPLIES}]}
    for name, data in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data), "utf-8")
    prompts = [json.dumps({"prompt": f"Question {n}?"}) for n in range(14)]
    (folder / "prompts.jsonl").write_text("\n".join(prompts), "utf-8")
    data = {
        "name": "constitutions",
        "models": {"policy": {"path": "none", "engine": "fake", "script": "script.yaml"}},
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 2},
        "arms": ARMS,
        "steps": STEPS,
    } | changes
    path = folder / "experiment.yaml"
    kept = {key: value for key, value in data.items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False), "utf-8")
    return path


def ran(folder: Path, **changes: Any) -> Run:
    run_experiment(write(folder, **changes), folder / "run")
    return load_run(folder / "run")


class Said(NamedTuple):
    code: int
    out: str
    err: str


def call(*words: Any) -> Said:
    """The command as the shell runs it."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["rlaif", *map(str, words)])
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    assert "Traceback" not in err.getvalue()
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return ran(tmp_path_factory.mktemp("constitutions"))


def test_the_manifest_has_every_constitution_and_whose_it_is(run: Run, tmp_path: Path) -> None:
    held = run.manifest["constitutions"]
    assert list(held) == ["judge apart", "arm other"]
    assert held["arm other"]["name"] == "listing"
    assert set(run.manifest["arm_judges"]) == {"other"}
    assert set(run.manifest["arm_judges"]["other"]) == {"checks"}
    assert run_constitution(run).name == "two"
    assert run_constitution(run, "margin").name == "two"
    assert run_constitution(run, "other").name == "listing"
    assert run_weights(run) == {"brief": 2, "listed": 1, "apart/brief": 0.5, "apart/long": 4}
    assert run_weights(run, "other") == {
        "listed": 3,
        "long": 1,
        "apart/brief": 0.5,
        "apart/long": 4,
    }
    lineage = {(row["kind"], row["name"]): row for row in run.view().lineage}
    assert lineage["constitution", "listing"]["detail"].endswith("arm other")
    assert lineage["constitution", "third"]["detail"].endswith("judge apart")
    own = run.manifest["judges"]["checks"]
    assert lineage["judge", "checks (arm other)"]["hash"] != own
    assert lineage["judge", "checks"]["hash"] == own
    page = build_report(run.view(), tmp_path / "page.html").read_text("utf-8")
    assert "Constitution of arm other" in page and "Constitution of judge apart" in page


def test_an_arm_without_a_constitution_and_a_judge_that_differs_by_arm(tmp_path: Path) -> None:
    arms = {"own": {}, "judge": {"set": {"steps.apart.constitution": "other.yaml"}}}
    run = ran(tmp_path, arms=arms)
    assert list(run.manifest["constitutions"]) == ["judge apart", "arm judge judge apart"]
    assert run_weights(run, "judge")["apart/listed"] == 3
    assert ablate_principles(run).arms_left_out == ("judge",)


@pytest.mark.parametrize("arm", [None, "own", "margin", "other"])
def test_pairs_are_looked_at_by_the_weights_that_made_them(run: Run, arm: str | None) -> None:
    pairings, weights = load_pairings(run, arm), run_weights(run, arm)
    assert [p.step.min_margin for p in pairings] == {None: [0.0, 0.3], "margin": [0.3]}.get(
        arm, [0.0]
    )
    for pairing in pairings:
        scores = rescore_completions(pairing, weights)
        assert pairing.preferences
        for row in pairing.preferences:
            assert scores[row.prompt_id][row.chosen_id] == pytest.approx(row.score_chosen)
    same = effect(pairings, weights, weights)
    assert (same.flipped, same.tied, same.missing) == (0, 0, 0)


def test_the_ablation_is_of_one_constitution_and_says_whom_it_leaves_out(run: Run) -> None:
    whole = ablate_principles(run)
    assert [row.principle for row in whole.rows] == ["brief", "listed", "apart/brief", "apart/long"]
    assert whole.arms_left_out == ("other",)
    found = {row.principle: row for row in whole.rows}
    assert found["apart/long"].effect != found["brief"].effect
    # 12 prompts with 4 answers, of which two arms share the judgements.
    assert found["apart/brief"].judgements == found["brief"].judgements == 48
    other = ablate_principles(run, arm="other")
    assert [row.principle for row in other.rows] == ["listed", "long", "apart/brief", "apart/long"]
    assert other.arms_left_out == ()
    said = call("constitution", "ablate", run.root)
    assert "Left out: arm other, which judge by another constitution" in said.err
    one = json.loads(call("constitution", "ablate", run.root, "--arm", "other", "--json").out)
    assert one == json.loads(json.dumps(other.to_json()))
    wrong = call("constitution", "ablate", run.root, "--arm", "othr")
    assert wrong.code == 2 and "no arm 'othr'; did you mean 'other'?" in wrong.err


def test_a_change_reaches_the_arms_of_that_constitution_alone(run: Run) -> None:
    own = run_constitution(run)
    data = own.model_dump()
    data["principles"][1]["weight"] = 60
    heavier = Constitution.model_validate(data)
    reach = measure_reach(run, own, heavier)
    assert reach.effect.preferences == sum(len(p.preferences) for p in load_pairings(run))
    assert reach.effect.flipped > 0 and reach.arms_left_out == ("other",)
    assert {j.judge: (j.kept, j.judgements) for j in reach.judges} == {
        "checks": (True, 96),
        "apart": (True, 96),
    }
    assert any("Left out: arm other" in line for line in reach.lines())
    # Another check is asked of the judges that use it, not of one with a constitution of its own.
    data["principles"][0]["check"]["params"]["max"] = 9
    changed = measure_reach(run, own, Constitution.model_validate(data))
    assert {j.judge: j.kept for j in changed.judges} == {"checks": False, "apart": True}
    listing = run_constitution(run, "other")
    within = measure_reach(run, listing, listing, "other")
    assert within.same_start and all(j.kept for j in within.judges)
    assert within.effect.flipped == 0
    assert not measure_reach(run, own, own, "other").same_start


def test_weights_are_fitted_of_one_constitution(run: Run) -> None:
    assert fitted_constitution(run).name == "two"
    assert fitted_constitution(run, arm="other").name == "listing"
    assert fitted_constitution(run, ["apart"]).name == "third"
    with pytest.raises(ConfigError, match="judge by several constitutions"):
        fitted_constitution(run, ["checks", "apart"])
    pairings = load_pairings(run, "own")
    (pairing,) = pairings
    row = pairing.preferences[0]
    texts = {c.completion_id: c for c in pairing.completions[row.prompt_id]}
    pair = (texts[row.chosen_id], texts[row.rejected_id])
    labels = [LabelledPair("l", pairing.prompts[row.prompt_id], *pair, label=1.0)]
    votes, _ = run_votes(pairings, labels, apart=["apart"])
    assert set(votes[0].votes) == {"brief", "listed"}
    assert set(run_votes(pairings, labels, ["apart"])[0][0].votes) == {"brief", "long"}


def pairs_of(run: Run, arm: str, step: str = "pair") -> set[tuple[str, str]]:
    rows = run.rows("preferences")
    return {
        (row["chosen"][-1]["content"], row["prompt"][-1]["content"])
        for row in rows
        if arm in row["run_arms"].split() and row["step"] == step
    }


def built_pairs(folder: Path) -> set[tuple[str, str]]:
    files = [*(folder / "trl").glob("*.parquet")]
    pairs = [pair for file in files for pair in read_labelled(file, "trl")]
    return {
        ((p.first if p.label == 1 else p.second).text, p.prompt.messages[-1]["content"])
        for p in pairs
    }


def test_a_dataset_of_a_run_with_arms_is_of_one_of_them(run: Run) -> None:
    asked = call("build", run.root)
    assert asked.code == 2
    assert "its arms have preferences of their own: say --arm own, margin or other" in asked.err
    for arm, name in (("own", "two"), ("other", "listing")):
        done = call("build", run.root, "--arm", arm, "--json")
        folder = run.root / f"dataset-{arm}"
        assert json.loads(done.out)["folder"] == str(folder)
        assert built_pairs(folder) == pairs_of(run, arm) and built_pairs(folder)
        card = (folder / "README.md").read_text("utf-8")
        (step,) = (s for s in run.manifest["steps"] if s["id"] == "pair" and arm in s["arms"])
        assert f"The preferences are those of arm {arm}, step pair (`{step['hash']}`)." in card
        assert f"Constitution: {name}, version" in card
        assert "that of judge apart: third, version" in card
        own = (
            run.manifest["arm_judges"].get(arm, {}).get("checks", run.manifest["judges"]["checks"])
        )
        assert f"| checks | rules | {own} |" in card
    assert built_pairs(run.root / "dataset-own") != built_pairs(run.root / "dataset-other")
    assert call("build", run.root, "--arm", "nobody").code == 2
    refused = call("build", run.root, "--arm", "own", "--set", "seed=3")
    assert refused.code == 2 and "go with CONFIG" in refused.err


def test_only_the_judgements_of_the_arm_are_in_its_dataset(run: Run) -> None:
    call("build", run.root, "--arm", "other")
    import datasets

    folder = run.root / "dataset-other"
    loaded = datasets.load_dataset(
        str(folder), "ultrafeedback", cache_dir=str(run.root.parent / "cache")
    )
    kept = {name for split in loaded.values() for r in split for name in _criteria(r)}
    assert kept and not any("brief" in name and "apart" not in name for name in kept)


def _criteria(row: dict[str, Any]) -> set[str]:
    return {
        name
        for completion in row["completions"]
        for name, said in (completion.get("annotations") or {}).items()
        if said
    }


def test_seeds_and_stages_are_asked_for_too(tmp_path: Path) -> None:
    stages = [
        {"id": "one", "steps": [*STEPS[:2], {"pair": {"id": "first", "strategy": "all"}}]},
        {"id": "two", "steps": [STEPS[0], STEPS[2], {"pair": {"id": "second"}}]},
    ]
    stages[1]["steps"][0] = {"sample": {"id": "again", "n": 4, "temperature": 1.0}}  # type: ignore[index]
    keys: dict[str, Any] = {"arms": None, "steps": None, "stages": stages, "seeds": [1, 2]}
    path = write(tmp_path, dataset={"title": "Named"}, **keys)
    result = run_experiment(path, tmp_path / "run")
    assert result.dataset is None
    assert result.unsaid == "its seeds have preferences of their own: say --seed 1 or 2"
    out = tmp_path / "run"
    asked = call("build", path, "--out", out, "--seed", 2, "-q")
    assert "several stages make preferences: say --step first or second" in asked.err
    done = call("build", path, "--out", out, "--seed", 2, "--step", "second", "-q", "--json")
    folder = out / "dataset-seed2-second"
    assert json.loads(done.out)["folder"] == str(folder)
    card = (folder / "README.md").read_text("utf-8")
    assert "# Named" in card and "The preferences are those of seed 2, step second (" in card
    assert "first" not in card.partition("## How it was made")[2].partition("##")[0]
    assert call("build", out, "--seed", 3, "--step", "first").code == 2
    again = call("build", out, "--seed", 1, "--step", "first", "--json")
    other = out / "dataset-seed1-first"
    assert json.loads(again.out)["folder"] == str(other)
    # A folder that has the pairs of one seed is written anew for another, whose pairs are others.
    pairs = built_pairs(other)
    spec = DatasetSpec(title="Named", uses="first")
    build_dataset(load_run(out), spec, other, Choice(seed=2, step="first"))
    assert "those of seed 2, step first (" in (other / "README.md").read_text("utf-8")
    assert built_pairs(other) != pairs


def test_what_is_sure_to_be_missing_is_asked_before_anything_runs(tmp_path: Path) -> None:
    path = write(tmp_path, dataset={})
    for words, fault in [
        ([], "say --arm own, margin or other"),
        (["--arm", "owm"], "no such arm; did you mean 'own'?"),
        (["--arm", "own", "--step", "pairs"], "no step with pairs; did you mean 'pair'?"),
        (["--arm", "own", "--seed", "9"], "the seeds are 0"),
    ]:
        done = call("build", path, "--out", tmp_path / "run", *words)
        assert done.code == 2 and fault in done.err, done.err
    assert not (tmp_path / "run").exists()
    done = call("build", path, "--out", tmp_path / "run", "--arm", "margin", "-q")
    assert done.code == 0 and (tmp_path / "run" / "dataset-margin" / "README.md").exists()
