"""Trackers as they are installed, each without a network: what they were told is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlaif.train.trackers import Tracked, open_trackers

pytestmark = pytest.mark.peer

TOLD = {"method": "dpo", "lora": {"r": 4, "export": "both"}, "beta": 0.1, "uses": None}
STEPS = [(1, {"loss": 0.5, "score/self": 0.25}), (2, {"loss": 0.25, "score/self": 0.5})]


def logged(name: str, folder: Path, twice: bool = True) -> None:
    """Two steps, with the tracker closed and opened again between them."""
    tracked = Tracked("tried", "run-1", folder, TOLD)
    for step, numbers in STEPS:
        with open_trackers([name], tracked) as (log,):
            log(step, numbers)


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    logged("mlflow", tmp_path)
    (run,) = mlflow.search_runs(experiment_names=["tried"], output_format="list")
    told = {"method": "dpo", "lora.r": "4", "lora.export": "both", "beta": "0.1"}
    assert run.data.params == told
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run.info.run_id, "score/self")
    assert [(m.step, m.value) for m in history] == [(1, 0.25), (2, 0.5)]


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb: Any = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    seen: list[Any] = []
    own = wandb.init

    def init(**keys: Any) -> Any:
        seen.append(own(**keys))
        return seen[-1]

    monkeypatch.setattr(wandb, "init", init)
    logged("wandb", tmp_path)
    assert dict(seen[0].config) == {
        "method": "dpo",
        "lora.r": 4,
        "lora.export": "both",
        "beta": 0.1,
    }
    assert seen[0].id == seen[1].id == "run-1"
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-run-1.wandb"))) >= 1


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio: Any = pytest.importorskip("trackio")
    logged("trackio", tmp_path)
    run = trackio.Api().runs("tried")[0]
    assert run.name == "run-1"
    assert {"method": "dpo", "lora.r": 4}.items() <= dict(run.config).items()
