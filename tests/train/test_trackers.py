"""Trackers: what was logged is read back from TensorBoard; what cannot start says why."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.core.errors import ConfigError
from rlaif.train.trackers import Tracked, open_trackers


def test_tensorboard_has_every_steps_numbers(tmp_path, make_model):
    pytest.importorskip("tensorboard", reason="TENSORBOARD IS NOT INSTALLED")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "dpo", data, "--out", tmp_path / "out", "--model", make_model(0), "--json"]
    words += ["--batch-size", 2, "--precision", "fp32", "--set", "trackers=[tensorboard]"]
    words += ["--set", "lora.r=4"]
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    logged = EventAccumulator(str(tmp_path / "out/tensorboard"))
    logged.Reload()
    lines = (tmp_path / "out/work/metrics.jsonl").read_text().splitlines()
    for name in ("loss", "margin", "grad_norm", "learning_rate"):
        events = [(event.step, event.value) for event in logged.Scalars(name)]
        wanted = [(row["step"], pytest.approx(row[name])) for row in map(json.loads, lines)]
        assert events == wanted and len(events) == 2
    told = hyperparameters(logged)
    assert told["method"] == "dpo" and told["batch_size"] == 2 and told["lora.r"] == 4
    assert told["preferences"] == 4 and told["seed"] == 0 and told["model"] == str(make_model(0))
    assert "trackers" not in told and "uses" not in told


def hyperparameters(logged):
    """What TensorBoard's own plug-in shows of a run's hyperparameters."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = logged.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_the_figures_of_each_rounds_evaluation_are_one_line(tmp_path, tiny_model, write_experiment):
    pytest.importorskip("tensorboard", reason="TENSORBOARD IS NOT INSTALLED")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    import rlaif

    train = {"learning_rate": 1e-4, "batch_size": 2, "precision": "fp32", "method": "sft"}
    path = write_experiment(
        tmp_path / "given",
        tiny_model,
        steps=[
            {"sample": {"n": 2, "max_new_tokens": 4}},
            {"judge": {"id": "checks", "kind": "rules"}},
            {"pair": {"min_margin": 0.0}},
            {"train": train | {"trackers": ["tensorboard"], "lora": {"export": "adapter", "r": 2}}},
            {"evaluate": {"max_new_tokens": 5}},
        ],
    )
    result = rlaif.run_experiment(path, tmp_path / "run")
    (folder,) = (tmp_path / "run/evaluations").iterdir()
    logged = EventAccumulator(str(folder / "tensorboard"))
    logged.Reload()
    for name in ("length/words", "score/checks"):
        wanted = [
            (r.round, pytest.approx(r.metrics["metrics"][name]["mean"])) for r in result.rounds
        ]
        assert [(e.step, e.value) for e in logged.Scalars(name)] == wanted
        ended = [r.round for r in result.rounds if r.metrics["metrics"][name]["low"] is not None]
        assert ended and [e.step for e in logged.Scalars(f"{name}/low")] == ended
        assert [e.step for e in logged.Scalars(f"minus_previous/{name}")] == [1, 2]
    assert hyperparameters(logged)["max_new_tokens"] == 5
    again = rlaif.run_experiment(path, tmp_path / "run")
    assert again.ran == 0 and [e.step for e in logged.Scalars("length/words")] == [0, 1, 2]
    # Every round's model is an adapter for M0, and no merged copy is left behind.
    models = [f for f in (tmp_path / "run/models").iterdir() if f.is_dir()]
    assert sorted(json.loads((f / "adapter_config.json").read_text())["r"] for f in models) == [
        2,
        4,
    ]
    assert not any((f / "config.json").exists() for f in models)
    assert not (tmp_path / "run/merged").exists()


def test_a_tracker_that_is_missing_or_does_not_start_says_why(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = r"wandb is not installed .*pip install wandb"
    with (
        pytest.raises(ConfigError, match=words),
        open_trackers(["wandb"], Tracked("project", "run", tmp_path)),
    ):
        pass

    def refuse(**_):
        raise OSError("no login.")

    monkeypatch.setitem(sys.modules, "wandb", fake("wandb", init=refuse))
    with (
        pytest.raises(ConfigError, match=r"wandb does not start: no login\. Mend"),
        open_trackers(["wandb"], Tracked("project", "run", tmp_path)),
    ):
        pass


def fake(name, **functions):
    module = ModuleType(name)
    vars(module).update(functions)
    return module


def test_trackers_are_closed_and_leave_stdout_alone(tmp_path, monkeypatch, capsys):
    seen = []
    module = fake(
        "trackio",
        init=lambda **keys: print("hello", keys["project"]),
        log=lambda numbers, step: seen.append((step, numbers)),
        finish=lambda: print("goodbye"),
    )
    monkeypatch.setitem(sys.modules, "trackio", module)

    def interrupted():
        with open_trackers(["trackio"], Tracked("project", "run", tmp_path)) as (log,):
            log(1, {"loss": 0.5})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [(1, {"loss": 0.5})]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split("\n")[:2] == ["hello project", "goodbye"]
