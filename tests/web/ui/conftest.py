"""Runs for the pages: with hostile text in every field, and a server of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from rlaif.core.store import Store
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.manifest import read_manifest
from rlaif.web.ui.app import UiServer
from rlaif.web.ui.library import open_library
from tests.support.browsed import judgement

HOSTILE = (
    '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">'
    '\'"><a href="javascript:window.hacked = 3">{{ 7 * 7 }} {% raw %}</a>&lt;\ud800'
)
SAFE = "{{ 7 * 7 }} {% raw %}"
"""What is in the hostile text, and is shown as it is."""


def make_run(
    folder: Path, write_experiment: Callable[..., Path], name: str, seed: int = 3, rounds: int = 2
) -> Path:
    """A finished run of scripted answers in `folder/name`."""
    replies = [f"Answer {HOSTILE[:-1]}", "red green blue red", "I think so, red."]
    rule = {
        "match": ".",
        "replies": replies,
        "labels": {"Yes": 0.5, "No": 0.3, "yes": 0.5, "no": 0.3},
    }
    script = {"rules": [rule]}
    path = write_experiment(
        folder / f"of-{seed}",
        None,
        name=f"run {seed} <script>window.hacked = 4</script>",
        seed=seed,
        rounds=rounds,
        # The script's labels have a mass of 0.8.
        alarms={"label_mass": 0.9},
        models={"policy": {"path": "none", "engine": "fake", "script": "script.yaml"}},
    )
    (path.parent / "script.yaml").write_text(yaml.safe_dump(script, allow_unicode=True), "utf-8")
    rows = (path.parent / "prompts.jsonl").read_text()
    hostile = rows.replace(
        "Name a red fruit.", "Name a red fruit. <script>window.hacked = 5</script>"
    )
    (path.parent / "prompts.jsonl").write_text(hostile)
    run_experiment(path, folder / name)
    return folder / name


def add_judgements(run: Path, count: int, raw: str) -> None:
    """Commit judgements to the first judge step of a run, which then is not finished."""
    manifest = read_manifest(run)
    first = {s["kind"]: s for s in reversed(manifest["steps"]) if s["round"] == 1}
    folder = Store(run).step(first["judge"]["hash"])
    folder.marker.unlink(missing_ok=True)
    answers = list(Store(run).step(first["sample"]["hash"]).rows("completions"))
    made = [
        judgement(
            answers[n % len(answers)]["prompt_id"], f"j_{raw[:3]}_{n}",
            [answers[n % len(answers)]["completion_id"]], (n % 10) / 10, raw=f"{raw} {n}",
            judge="written", principle="plain <b>", rationale="why <script>hacked = 6</script>",
        )
        for n in range(count)
    ]  # fmt: skip
    folder.append("judgements", made)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, write_experiment: Callable[..., Path]) -> Path:
    """A folder of three runs: one is finished, one has hostile judgements and is not, and one is
    below a folder with a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, write_experiment, "first")
    second = make_run(folder, write_experiment, "second", seed=4)
    add_judgements(second, 60, HOSTILE)
    (folder / "<b>&'").mkdir()
    make_run(folder, write_experiment, "<b>&'/third", seed=5, rounds=1)
    return folder


@pytest.fixture(scope="module")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UiServer]:
    """A real server of the runs, on a free port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLAIF_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = UiServer(open_library([runs]), 0)
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()
