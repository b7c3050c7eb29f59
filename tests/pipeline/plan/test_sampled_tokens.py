"""A policy is trained on the tokens that were sampled, and not on what their text would become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import load_run
from rlaif.train import run as train
from rlaif.train.loop import TrainJob
from tests.pipeline.plan.bases import TRAINING, experiment
from tests.pipeline.plan.files import write_files
from tests.pipeline.plan.models import write_models


def test_a_train_step_is_given_the_tokens_of_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path)
    write_models(tmp_path)
    steps = [
        {"sample": {"n": 2, "temperature": 1.0, "max_new_tokens": 6}},
        {"judge": {"kind": "perplexity", "by": "policy"}},
        {"pair": {}},
        {"train": TRAINING | {"method": "sft"}},
    ]
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment(steps=steps)).replace("@", f"{tmp_path}/"))
    given: list[dict[str, list[int]]] = []
    find_trainer = train.find_trainer

    def watched(job: TrainJob[Any]) -> Any:
        given.append(dict(job.token_ids))
        return find_trainer(job)

    monkeypatch.setattr(train, "find_trainer", watched)
    run_experiment(path, tmp_path / "run")
    samples = list(load_run(tmp_path / "run").rows("completions"))
    assert len(samples) == 12
    assert all(row["token_ids"] for row in samples)
    assert given == [{row["completion_id"]: row["token_ids"] for row in samples}]
