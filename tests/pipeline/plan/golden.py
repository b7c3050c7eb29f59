"""The plan hashes of the shipped experiments and of the small ones of `bases`.

    python -m tests.pipeline.plan.golden

writes them anew, into `tests/plan/golden_hashes.json`. A change of that file says that finished
steps of run folders are made again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import yaml

from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from tests.pipeline.plan.bases import BASES
from tests.pipeline.plan.files import write_files

FILE = Path(__file__).parent / "golden_hashes.json"
OF_DATA = ("ai_vs_human.yaml",)
SHIPPED = Path(__file__).parents[3] / "experiments"


def golden_hashes(folder: Path) -> dict[str, dict[str, str]]:
    """By experiment the hash of each step, by round, kind and id. The files that the experiments
    name are written into `folder`."""
    write_files(folder)
    found = {}
    for path in sorted(SHIPPED.glob("*.yaml")):
        given = [f"data={folder / 'labelled.jsonl'}"] if path.name in OF_DATA else []
        found[path.name] = hashes(path, given)
    for name, data in BASES.items():
        path = folder / "experiment.yaml"
        text = yaml.safe_dump(data).replace("@url", "http://127.0.0.1:9/v1").replace("@", "models/")
        path.write_text(text, encoding="utf-8")
        found[name] = hashes(path)
    return found


def hashes(path: Path, overrides: Sequence[str] = ()) -> dict[str, str]:
    """The hashes of one experiment, with names in place of its models' weights."""
    with patch("rlaif.pipeline.prepare.model_keys", _names):
        plan = make_plan(prepare(path, overrides, fetch=False))
    return {f"{p.seed} {p.round} {p.kind} {p.id} {' '.join(p.arms)}": p.hash for p in plan}


def _names(experiment: Experiment, fetch: bool) -> dict[str, str]:
    return {name: f"weights:{spec.path}" for name, spec in experiment.models.items()}


def main() -> None:
    """Write the file."""
    with TemporaryDirectory() as folder:
        found = golden_hashes(Path(folder))
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
