"""A training's kernels, and what a model could not take, stand where a reader looks."""

from __future__ import annotations

import json

import pytest

import rlaif.engines.local.proof as proof
from rlaif.engines.local.forward import PLAIN, Choice
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import load_run
from rlaif.report.build import build_report

WHY = "branches are padded and not packed, which is slower: the gradient of x differs"


@pytest.mark.parametrize("packed", [True, False])
def test_a_trainings_kernels_are_in_its_marker_status_and_report(
    packed, write_experiment, tiny_model, tmp_path, monkeypatch
):
    if not packed:
        monkeypatch.setattr(proof, "_known", {})
        monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
        plain = Choice(PLAIN.packed, PLAIN.parts, (WHY,))
        monkeypatch.setattr(proof, "prove", lambda *arguments: plain)
    steps = [
        {"sample": {"n": 3, "temperature": 1.0, "max_new_tokens": 12}},
        {"judge": {"id": "checks", "kind": "rules"}},
        {"pair": {}},
        {"train": {"learning_rate": 1e-4, "batch_size": 2, "precision": "fp32"}},
    ]
    path = write_experiment(tmp_path / "x", tiny_model, rounds=1, steps=steps)
    run_experiment(path, tmp_path / "run")
    (marker,) = [
        row
        for p in (tmp_path / "run/steps").glob("*/done.json")
        if (row := json.loads(p.read_text()))["kind"] == "train"
    ]
    kernels = marker["kernels"]
    assert kernels["packed"] is packed
    assert kernels["attention"] == ("group by group" if packed else "sdpa (transformers)")
    build_report(load_run(tmp_path / "run").view(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "What training was computed with" in page
    assert f"<td>{'packed' if packed else 'padded'}</td>" in page
    assert f"torch {kernels['torch']}, transformers {kernels['transformers']}" in page
    status = load_run(tmp_path / "run").status()
    (step,) = [step for step in status["steps"] if step["kind"] == "train"]
    assert step["notes"] == ([] if packed else [f"train: {WHY}"])
    assert (WHY in page) is (not packed)
