"""Whole experiments on a tiny model: done once, interrupted anywhere, the same bits in the end."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.core.errors import ConfigError, GateStopped, RlaifError
from rlaif.core.progress import QuietProgress
from rlaif.core.store import StepFolder
from rlaif.pipeline.experiment import RunResult, run_experiment
from rlaif.pipeline.exports import trl_rows
from rlaif.pipeline.manifest import read_rounds
from rlaif.pipeline.runs import Run, load_run
from rlaif.train.loop import TrainJob

Writer = Callable[..., Path]
KINDS = ("sample", "judge", "logprobs", "pair", "train", "evaluate")


class Interrupted(Exception):
    """Stands for whatever ends a process."""


class InterruptAt(QuietProgress):
    """Fails at the first report of progress in a step whose title ends so."""

    def __init__(self, title: str):
        self.title = title
        self.here = False

    def begin_step(self, title: str) -> None:
        self.here = title.endswith(self.title)

    def advance(self, count: int, tokens: int = 0, note: str = "") -> None:
        if self.here:
            raise Interrupted(self.title)


def outputs(root: Path) -> dict[str, Any]:
    """Everything that must be the same: preferences, evaluations, judgements, weights."""
    run = load_run(root)
    found: dict[str, Any] = {
        "preferences": list(run.rows("preferences")),
        "evaluation": list(run.rows("evaluation")),
        "completions": list(run.rows("completions")),
        "judgements": [row | {"latency": None} for row in run.rows("judgements")],
        "rounds": (root / "rounds.jsonl").read_bytes(),
    }
    for path in sorted(root.glob("models/*/*.safetensors")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(root))] = digest
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiment")


@pytest.fixture(scope="module")
def finished(base: Path, tiny_model: Path, write_experiment: Writer) -> tuple[Path, Path]:
    """The experiment file and the folder of an uninterrupted run."""
    path = write_experiment(base / "config", tiny_model)
    out = base / "whole"
    result = run_experiment(path, out)
    assert result.reused == 0
    return path, out


def test_the_run_made_everything(finished: tuple[Path, Path]) -> None:
    _, out = finished
    run = load_run(out)
    status = run.status()
    assert status["state"] == "done"
    assert {step["kind"] for step in status["steps"]} == set(KINDS)
    assert [r["round"] for r in status["rounds"]] == [0, 1, 2]
    assert [r["policy"] for r in status["rounds"]] == ["M0", "M1", "M2"]
    assert len(list(out.glob("models/*/model.safetensors"))) == 2
    for row in status["rounds"]:
        for interval in row["metrics"].values():
            if interval["low"] is not None:
                assert interval["low"] <= interval["mean"] <= interval["high"]
            assert interval["n"] >= 1
    last = status["rounds"][-1]
    assert {"initial", "previous"} == set(last["deltas"])
    for name in ("score/checks", "score/self", "kl/initial", "check/terms", "drift/self"):
        assert name in last["metrics"]
    assert status["rounds"][0]["metrics"]["kl/initial"]["mean"] == pytest.approx(0, abs=1e-4)
    assert last["metrics"]["kl/initial"]["mean"] != 0
    assert len(run.preferences) > 2
    assert not set(run.preferences.prompt_id) & {
        c
        for s in run.manifest["steps"]
        if s["kind"] == "evaluate"
        for c in [
            row["prompt_id"]
            for row in run.store.step(s["inputs"]["completions"]).read("completions")
        ]
    }


def test_frames_and_view(finished: tuple[Path, Path]) -> None:
    run = load_run(finished[1])
    assert len(run.prompts) == 8
    assert {"messages", "logprobs", "run_round"} <= set(run.completions.columns)
    assert set(run.judgements.judge) == {"checks", "self"}
    assert {"seed", "round", "metric", "mean", "low", "high", "n"} <= set(run.rounds.columns)
    assert run.view().name == "small"


def test_a_second_run_does_nothing(finished: tuple[Path, Path]) -> None:
    path, out = finished
    stamps = {p: p.stat().st_mtime_ns for p in (out / "steps").rglob("*") if p.is_file()}
    result = run_experiment(path, out, progress=InterruptAt(""))
    assert (result.ran, result.reused) == (0, len(load_run(out).manifest["steps"]))
    assert {p: p.stat().st_mtime_ns for p in (out / "steps").rglob("*") if p.is_file()} == stamps


def test_only_the_masters_of_the_last_round_are_kept(finished: tuple[Path, Path]) -> None:
    _, out = finished
    trained = [s["hash"] for s in load_run(out).manifest["steps"] if s["kind"] == "train"]
    kept = [(out / "models" / h / "masters").is_dir() for h in trained]
    assert kept == [False, True]
    assert not list((out / "steps").glob("*/work/checkpoint*"))


def test_interrupted_in_every_step_and_resumed_gives_the_same_bits(
    base: Path, finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = finished
    out = base / "interrupted"
    for title in (
        "[round 0] evaluate.sample",
        "[round 0] evaluate.self",
        "[round 1] checks",
        "[round 1] train",
    ):
        with pytest.raises(Interrupted, match=title.split("] ")[1]):
            run_experiment(path, out, progress=InterruptAt(title))
    finish = StepFolder.finish
    ended: set[str] = set()

    def interrupted(
        folder: StepFolder, summary: dict[str, Any], model: Path | None = None
    ) -> dict[str, Any]:
        # The records are there, the marker is not.
        if summary["kind"] not in ended:
            ended.add(summary["kind"])
            raise Interrupted(summary["kind"])
        return finish(folder, summary, model)

    with monkeypatch.context() as patch:
        patch.setattr(StepFolder, "finish", interrupted)
        for _ in KINDS:
            with pytest.raises(Interrupted):
                run_experiment(path, out)
        assert ended == set(KINDS)
    for title in ("[round 2] train", "[round 2] evaluate.logprobs"):
        with pytest.raises(Interrupted):
            run_experiment(path, out, progress=InterruptAt(title))
    run_experiment(path, out)
    assert outputs(out) == outputs(whole)


def test_an_edit_redoes_only_what_it_changes(
    base: Path, finished: tuple[Path, Path], tiny_model: Path
) -> None:
    path, out = finished
    before = outputs(out)
    result = run_experiment(path, out, ["steps.train.beta=0.2", "rounds=1"])
    ran = {s["id"] for s in load_run(out).status()["steps"] if s["round"] == 1}
    assert {"train", "evaluate"} <= ran
    # Sampling, judging and pairing of round 1 and all of round 0 are found again.
    assert result.reused == 9
    assert load_run(out).status()["state"] == "done"
    # And the first experiment's outputs lie untouched beside them.
    run_experiment(path, out)
    assert {k: v for k, v in outputs(out).items() if not k.startswith("models")} == {
        k: v for k, v in before.items() if not k.startswith("models")
    }


def test_masters_that_a_new_round_needs_are_made_again(
    base: Path, finished: tuple[Path, Path]
) -> None:
    path, straight = finished
    out = base / "one-more"
    run_experiment(path, out, ["rounds=1"])
    trained = next(s["hash"] for s in load_run(out).manifest["steps"] if s["kind"] == "train")
    shutil.rmtree(out / "models" / trained / "masters")
    result = run_experiment(path, out, ["retention.masters=all"])
    assert result.ran > 0
    assert len(list(out.glob("models/*/masters"))) == 2
    mine, theirs = outputs(out), outputs(straight)
    for key in ("preferences", "evaluation"):
        assert mine[key] == theirs[key]


def test_several_seeds(base: Path, tiny_model: Path, write_experiment: Writer) -> None:
    steps = _steps(tiny_model, write_experiment, base)
    path = write_experiment(
        base / "seeds", tiny_model, seed=None, seeds=[1, 2], rounds=1, steps=steps
    )
    out = base / "seeds-run"
    result = run_experiment(path, out)
    assert [(r.seed, r.round) for r in result.rounds] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    texts = [
        {
            row["messages"][0]["content"]
            for row in load_run(out).rows("completions")
            if row["run_seed"] == s
        }
        for s in (1, 2)
    ]
    assert texts[0] != texts[1]
    assert len(list(out.glob("models/*/masters"))) == 2


def _steps(tiny_model: Path, write: Writer, base: Path) -> list[Any]:
    data = yaml.safe_load(write(base / "template", tiny_model).read_text(encoding="utf-8"))
    steps: list[Any] = data["steps"]
    return steps


def test_an_alarm_stops_the_run_and_keeps_what_was_computed(
    base: Path, finished: tuple[Path, Path]
) -> None:
    path, _ = finished
    settings = ["alarms.on_alarm=stop", "alarms.length_high=0.0001", "alarms.length_low=0.00001"]
    out = base / "gated"
    with pytest.raises(GateStopped, match=r"stopped after round 1.*\n.*times as long") as caught:
        run_experiment(path, out, settings)
    assert caught.value.exit_code == 3
    assert [r.round for r in read_rounds(out)] == [0, 1]
    state = load_run(out).status()
    assert state["state"] == "unfinished"
    assert [a["name"] for a in state["alarms"] if a["severity"] == "alarm"]
    # Asked again, it stops again, and computes nothing.
    with pytest.raises(GateStopped):
        run_experiment(path, out, settings, progress=InterruptAt(""))


def preference_row(question: str) -> dict[str, Any]:
    return {"prompt": question, "chosen": "A good answer.", "rejected": "A bad one."}


def loading(base: Path, write: Writer, model: Path, question: str, name: str) -> Path:
    steps = [
        {"load": {"type": "preferences", "path": "human.jsonl"}},
        {"train": {"learning_rate": 1e-4, "batch_size": 2}},
        {"evaluate": {"judges": [], "resamples": 50}},
    ]
    path = write(base / name, model, steps=steps, rounds=1)
    rows = [preference_row("Is this from elsewhere?"), preference_row(question)]
    (base / name / "human.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_loaded_preferences_train_and_held_out_ones_are_refused(
    base: Path, finished: tuple[Path, Path], tiny_model: Path, write_experiment: Writer
) -> None:
    heldout = load_run(finished[1])
    digest = next(s for s in heldout.manifest["steps"] if s["kind"] == "evaluate")
    ids = {
        r["prompt_id"]
        for r in heldout.store.step(digest["inputs"]["completions"]).read("completions")
    }
    prompts = heldout.prompts
    questions = {p.prompt_id: p.messages[0]["content"] for p in prompts.itertuples()}
    bad = next(questions[i] for i in sorted(ids))
    path = loading(base, write_experiment, tiny_model, "And this too?", "loaded")
    result = run_experiment(path, base / "loaded-run")
    assert result.rounds[-1].policy_out == "M1"
    path = loading(base, write_experiment, tiny_model, bad, "leaked")
    with pytest.raises(RlaifError, match="is held out and was trained on"):
        run_experiment(path, base / "leaked-run")


def test_when_every_candidate_ties_the_message_says_so(
    base: Path, tiny_model: Path, write_experiment: Writer
) -> None:
    # Empty answers cannot be told apart by word count: all below the least.
    steps = [
        {"sample": {"n": 2, "max_new_tokens": 1}},
        {"judge": {"id": "checks", "kind": "rules"}},
        {"pair": {}},
        {"train": {}},
        {"evaluate": {"judges": [], "resamples": 50}},
    ]
    path = write_experiment(base / "tied", tiny_model, steps=steps, rounds=1)
    constitution = base / "tied" / "constitution.yaml"
    constitution.write_text(
        constitution.read_text().replace("max: 6", "max: 60").replace("min: 3", "min: 50")
    )
    with pytest.raises(RlaifError, match=r"no preferences.*min_margin") as caught:
        run_experiment(path, base / "tied-run")
    assert "all candidates tie on 5 of 5 prompts" in str(caught.value)


def test_a_run_folder_holds_what_is_needed_to_know_it(finished: tuple[Path, Path]) -> None:
    _, out = finished
    manifest = Run(out).manifest
    assert manifest["versions"]["torch"]
    assert set(manifest["judges"]) == {"checks", "self"}
    assert manifest["prompts"]["train"] == 5
    assert manifest["prompts"]["heldout"] == 3
    for step in manifest["steps"]:
        assert (out / "steps" / step["hash"] / "done.json").exists()
    for card in out.glob("models/*/README.md"):
        assert "base model" in card.read_text(encoding="utf-8")


def test_roles_with_the_same_weights_are_refused(
    base: Path, tiny_model: Path, write_experiment: Writer
) -> None:
    models = {
        "policy": {"path": str(tiny_model), "role": "labeller"},
        "judge": {"path": str(tiny_model), "role": "gold"},
    }
    path = write_experiment(base / "roles", tiny_model, models=models)
    with pytest.raises(ConfigError, match="different roles and the same weights"):
        run_experiment(path, base / "roles-run")


def test_a_scripted_experiment_needs_no_model(base: Path, write_experiment: Writer) -> None:
    path = write_experiment(base / "scripted", None, rounds=1)
    result: RunResult = run_experiment(path, base / "scripted-run")
    metrics = result.rounds[-1].metrics["metrics"]
    assert metrics["length/words"]["mean"] == 4.0
    assert metrics["score/checks"]["mean"] == 1.0
    # The script gives no label any probability: every verdict is unread, and none is a number.
    assert metrics["unparsed_rate/self"]["mean"] == 1.0
    assert "score/self" not in metrics


def test_two_evaluations_in_a_round_and_a_gate(base: Path, write_experiment: Writer) -> None:
    steps = [
        {"sample": {"n": 2}},
        {"judge": {"id": "checks", "kind": "rules"}},
        {"evaluate": {"resamples": 50}},
        {"evaluate": {"id": "again", "n": 2, "resamples": 50}},
    ]
    path = write_experiment(
        base / "twice", None, rounds=1, steps=steps, alarms={"on_alarm": "stop"}
    )
    with pytest.raises(GateStopped, match="no signal"):
        run_experiment(path, base / "twice-run")


def test_consistency_with_the_model_of_the_round_before_labels_softly(
    tmp_path: Path, tiny_model: Path, write_experiment: Writer
) -> None:
    ask = {"kind": "yes_no", "principles": ["useful"], "template": "prompts/judges/yes_no_short.j2"}
    train = {"learning_rate": 1e-2, "batch_size": 2, "precision": "fp32"}
    path = write_experiment(
        tmp_path / "files",
        tiny_model,
        steps=[
            {"sample": {"n": 4, "temperature": 1.0, "max_new_tokens": 8}},
            {"judge": {"id": "self", "by": "policy", **ask}},
            {"judge": {"id": "before", "by": "earlier", **ask}},
            {"pair": {"consistency": "before"}},
            {"train": train},
        ],
    )
    run_experiment(path, tmp_path / "run")
    rows = list(load_run(tmp_path / "run").rows("preferences"))
    probs = {number: [r["prob"] for r in rows if r["round"] == number] for number in (1, 2)}
    # In the first round both are M0.
    assert set(probs[1]) == {1.0}
    # Of four answers there are six pairs to agree on.
    assert all(6 * prob == pytest.approx(round(6 * prob)) for prob in probs[2])
    assert min(probs[2]) < 1.0


def test_answers_that_stand_alone_are_no_pairs_in_what_is_measured(
    tmp_path: Path, tiny_model: Path, write_experiment: Writer
) -> None:
    train = {"method": "kto", "learning_rate": 1e-4, "batch_size": 2, "precision": "fp32"}
    path = write_experiment(
        tmp_path / "files",
        tiny_model,
        steps=[
            {"load": {"type": "preferences", "path": "single.jsonl"}},
            {"train": train},
            {"evaluate": {"resamples": 50}},
        ],
        judges=[{"id": "checks", "kind": "rules"}],
        rounds=1,
    )
    rows = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i > 1} for i in range(4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "files/single.jsonl").write_text(text)
    run_experiment(path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert not [name for name in run.status()["rounds"][-1]["metrics"] if "pairs/" in name]
    assert run.view().shown.pairs == []
    found = list(trl_rows(run))
    assert [set(row) >= {"prompt", "completion", "label"} for row in found] == [True] * 4
    assert sum(row["label"] for row in found) == 2


def test_references_against_the_models_own_samples_are_spin(
    tmp_path: Path, tiny_model: Path, write_experiment: Writer
) -> None:
    train = {"learning_rate": 1e-3, "batch_size": 8, "precision": "fp32", "warmup_ratio": 0.0}
    path = write_experiment(
        tmp_path / "files",
        tiny_model,
        steps=[
            {"sample": {"n": 2, "temperature": 1.0, "max_new_tokens": 8}},
            {"pair": {"strategy": "reference"}},
            {"train": train | {"uses": ["pair@*"]}},
        ],
        judges=[],
    )
    rows = [{"prompt": f"q{i}", "reference": f"Answer {i}."} for i in range(8)]
    rows[0].pop("reference")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "files/prompts.jsonl").write_text(text)
    run_experiment(path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    pairs = list(run.rows("preferences"))
    sampled = {row["completion_id"]: row for row in run.rows("completions")}
    by_round = {n: [row for row in pairs if row["round"] == n] for n in (1, 2)}
    assert {n: len(found) for n, found in by_round.items()} in ({1: 8, 2: 8}, {1: 10, 2: 10})
    for row in pairs:
        question = row["prompt"][-1]["content"]
        assert row["chosen"][0]["content"] == f"Answer {question[1:]}."
        own = sampled[row["rejected_id"]]
        assert own["model"] == f"M{row['round'] - 1}"
        assert own["messages"] == row["rejected"]
    for step in run.manifest["steps"]:
        if step["kind"] == "train":
            work = tmp_path / "run/steps" / step["hash"] / "work/metrics.jsonl"
            first = json.loads(work.read_text().splitlines()[0])
            # The reference is the model that the round starts from.
            assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_spin_needs_reference_answers(
    tmp_path: Path, tiny_model: Path, write_experiment: Writer
) -> None:
    steps = [{"sample": {}}, {"pair": {"strategy": "reference"}}, {"train": {}}]
    path = write_experiment(tmp_path / "files", tiny_model, steps=steps, judges=[])
    with pytest.raises(ConfigError, match="no training prompt has a `reference` answer"):
        run_experiment(path, tmp_path / "run")
    steps[1]["pair"]["min_margin"] = 0.2
    path = write_experiment(tmp_path / "files", tiny_model, steps=steps, judges=[])
    with pytest.raises(ConfigError, match="min_margin: strategy reference looks at no judgement"):
        run_experiment(path, tmp_path / "run")


def test_a_training_is_told_how_its_policy_renders_conversations(
    tmp_path: Path, tiny_model: Path, write_experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = {"path": str(tiny_model), "dtype": "float32", "system_prompt": "Be brief."}
    row = {"prompt": "Name a red fruit.", "chosen": "A cherry.", "rejected": "A brick."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    steps = [{"load": {"type": "preferences", "path": "pairs.jsonl"}}, {"train": {}}]
    models = {"policy": policy | {"system_role": "merge"}}
    path = write_experiment(tmp_path, tiny_model, rounds=1, models=models, steps=steps)
    jobs: list[TrainJob[Any]] = []

    def find(job: TrainJob[Any]) -> Any:
        jobs.append(job)
        raise RlaifError("far enough")

    monkeypatch.setattr("rlaif.train.run.find_trainer", find)
    with pytest.raises(RlaifError, match="far enough"):
        run_experiment(path, tmp_path / "run")
    assert (jobs[0].chat.system_prompt, jobs[0].chat.system_role) == ("Be brief.", "merge")
    assert jobs[0].seed == 3 and [p.chosen[0]["content"] for p in jobs[0].preferences] == [
        "A cherry."
    ]
