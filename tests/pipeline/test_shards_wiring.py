"""A run whose records lie in many files: the same dataset, figures, exports and index as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rlaif.core import rowfiles
from rlaif.core.rowfiles import list_shards, read_rows
from rlaif.pipeline.dataset import build_chosen
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.exports import judgement_rows, trl_rows
from rlaif.pipeline.runs import Run
from rlaif.pipeline.steps.load import load_preferences
from rlaif.report.build import build_report
from rlaif.web.ui.index import grow_index, make_source, open_index
from rlaif.web.ui.records import Reader
from rlaif.web.ui.state import States

PROMPTS = 24
SCRIPT = {"rules": [{"match": ".", "replies": ["Yes.", "It is as you say, most of the time."]}]}


def run_in(folder: Path) -> Path:
    folder.mkdir()
    lines = (json.dumps({"prompt": f"Question {number}?"}) for number in range(PROMPTS))
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    (folder / "script.yaml").write_text(yaml.safe_dump(SCRIPT))
    brief = {"id": "brief", "check": {"rule": "word_limits", "params": {"min": 4, "max": 20}}}
    constitution = yaml.safe_dump({"name": "brief", "principles": [brief]})
    (folder / "constitution.yaml").write_text(constitution)
    experiment = {
        "name": "shards",
        "models": {"policy": {"path": "none", "engine": "fake", "script": "script.yaml"}},
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 2},
        "steps": [
            {"sample": {"n": 2}},
            {"judge": {"id": "rules", "kind": "rules"}},
            {"pair": {"strategy": "best_vs_worst"}},
        ],
        "dataset": {"formats": ["trl", "ultrafeedback"]},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    run_experiment(folder / "experiment.yaml", folder / "run")
    return folder / "run"


def test_every_reader_sees_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_in(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(rowfiles, "SHARD_BYTES", 2000)
        # Batches of the fake engine and of pairs are larger than all there is here.
        patch.setattr("rlaif.engines.fake.BATCH", 2)
        patch.setattr("rlaif.pipeline.steps.judge.SILENT_BATCH", 2)
        patch.setattr("rlaif.pipeline.steps.pair.BATCH", 2)
        sharded = run_in(tmp_path / "sharded")
    firsts = [path for path in sharded.glob("steps/*/*.jsonl") if path.stem.isalpha()]
    assert len(firsts) == 3
    assert all(len(list_shards(path)) > 1 for path in firsts)
    one, many = Run(whole), Run(sharded)
    for step in many.manifest["steps"]:
        kind = next((sharded / "steps" / step["hash"]).glob("*s.jsonl")).name
        rows = [list(read_rows(root / "steps" / step["hash"] / kind)) for root in (whole, sharded)]
        assert rows[0] == rows[1]
    assert list(trl_rows(one)) == list(trl_rows(many))
    assert list(judgement_rows(one)) == list(judgement_rows(many))
    for left, right in zip(_dataset(whole), _dataset(sharded), strict=True):
        assert left == right
    shown = [run.view().shown for run in (one, many)]
    assert shown[0].pair_scores == shown[1].pair_scores
    assert shown[0].pairs_total == shown[1].pairs_total > 0
    build_report(many.view(), tmp_path / "report.html")
    pairs = next(s["hash"] for s in many.manifest["steps"] if s["kind"] == "pair")
    read = [load_preferences(root / "steps" / pairs) for root in (whole, sharded)]
    assert read[0] == read[1] and len(read[0]) == shown[0].pairs_total
    # While a step runs its records are counted in the logs of all its files.
    (sharded / "steps" / pairs / "done.json").unlink()
    counts = {step.hash: step.counts for step in States().state(sharded).steps}
    assert counts[pairs] == {"preferences": len(read[0])}


def test_pages_find_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowfiles, "SHARD_BYTES", 2000)
    monkeypatch.setattr("rlaif.engines.fake.BATCH", 2)
    monkeypatch.setattr("rlaif.pipeline.steps.judge.SILENT_BATCH", 2)
    monkeypatch.setattr("rlaif.pipeline.steps.pair.BATCH", 2)
    run = run_in(tmp_path / "sharded")
    source = make_source(run, Run(run).manifest)
    path = tmp_path / "index.sqlite"
    done, total = grow_index(path, source)
    assert done == total
    with open_index(path, source.key) as db, Reader(source) as reader:
        assert db is not None
        for kind in ("completions", "judgements", "preferences"):
            addresses = [at for (at,) in db.execute(f"SELECT id FROM {kind} ORDER BY id")]
            folders = [run / "steps" / step["hash"] for step in Run(run).manifest["steps"]]
            rows = [row for folder in folders for row in read_rows(folder / f"{kind}.jsonl")]
            assert len(rows) > 2
            assert [reader.row(kind, at) for at in addresses] == rows
        # A pair's verdicts are looked up by its address.
        assert db.execute("SELECT COUNT(*) FROM stands").fetchone()[0] > 0


def _dataset(run: Path) -> list[tuple[str, bytes]]:
    folder = build_chosen(run).folder
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # The marker has the hash of the config, which names the folder.
    return [(p.name, p.read_bytes()) for p in files if p.name != "rlaif.json"]
