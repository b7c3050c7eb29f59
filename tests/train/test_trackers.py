"""Trackers: what was logged is read back from TensorBoard; what cannot start says why."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.errors import ConfigError
from rlaif.train.trackers import open_trackers


def test_tensorboard_has_every_steps_numbers(tmp_path, make_model):
    pytest.importorskip("tensorboard", reason="TENSORBOARD IS NOT INSTALLED")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "dpo", data, "--out", tmp_path / "out", "--model", make_model(0), "--json"]
    words += ["--batch-size", 2, "--precision", "fp32", "--set", "trackers=[tensorboard]"]
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


def test_a_tracker_that_is_missing_or_does_not_start_says_why(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = r"wandb is not installed .*pip install wandb"
    with (
        pytest.raises(ConfigError, match=words),
        open_trackers(["wandb"], "project", "run", tmp_path),
    ):
        pass

    def refuse(**_):
        raise OSError("no login.")

    monkeypatch.setitem(sys.modules, "wandb", fake("wandb", init=refuse))
    with (
        pytest.raises(ConfigError, match=r"wandb does not start: no login\. Mend"),
        open_trackers(["wandb"], "project", "run", tmp_path),
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
        with open_trackers(["trackio"], "project", "run", tmp_path) as (log,):
            log(1, {"loss": 0.5})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [(1, {"loss": 0.5})]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split("\n")[:2] == ["hello project", "goodbye"]
