"""A judge that writes reasons first does so whichever prompt comes first, also where its principle
does not apply to that one and nothing is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import load_run
from tests.servers.scripted import ScriptedServer

Writer = Callable[..., Path]


def written(write: Writer, folder: Path, url: str, tagged: int) -> Path:
    remote = {"path": "m", "engine": "openai", "base_url": url, "cache": False}
    judge: dict[str, Any] = {"kind": "yes_no", "cot": True, "by": "asked", "max_new_tokens": 8}
    path = write(
        folder,
        None,
        models={"policy": remote, "asked": remote | {"path": "n"}},
        rounds=1,
        steps=[{"sample": {"n": 2, "max_new_tokens": 8}}, {"judge": {"id": "grader", **judge}}],
    )
    rows = [
        {"prompt": f"Why {n}?", "tags": ["howto"] if n % 2 == tagged else []} for n in range(12)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    principles = [{"id": "brief", "text": "It is short.", "applies_when": {"tags": ["howto"]}}]
    content = {"name": "small", "principles": principles}
    (folder / "constitution.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return path


@pytest.mark.parametrize("tagged", [0, 1])
def test_the_first_call_that_asks_says_how_a_judge_asks(
    tmp_path: Path, write_experiment: Writer, tagged: int
) -> None:
    out = tmp_path / "out"
    with ScriptedServer(tops={"Yes": -0.3, "No": -1.9}, context=9999) as server:
        run_experiment(written(write_experiment, tmp_path, server.url, tagged), out)
    statuses = [row["status"] for row in load_run(out).rows("judgements")]
    assert set(statuses) == {"ok", "not_applicable"}
