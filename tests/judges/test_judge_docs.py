"""Every kind has a page whose example validates, builds and switches the quickstart's judge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.config import load_experiment
from rlaif.constitution import load_constitution
from rlaif.judges.build import JUDGES, build_judge

PAGES = Path("docs/judges")
QUICKSTART = Path("experiments/quickstart.yaml")


def example(kind: str) -> dict[str, Any]:
    text = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (step,) = yaml.safe_load(block)
    return dict(step["judge"])


@pytest.mark.parametrize("kind", JUDGES)
def test_a_page_says_what_it_costs_and_where_it_is_from(kind: str) -> None:
    text = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    for part in ("**Cost:**", "**Source:**", "**Use it**"):
        assert part in re.sub(r"\s+", " ", text), part
    assert f"judges/{kind}.md" in Path("docs/judges.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", JUDGES)
def test_one_line_switches_the_quickstart_to_the_pages_example(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = example(kind)
    assert spec["kind"] == kind
    if kind == "rbr":
        weights = tmp_path / "weights.yaml"
        weights.write_text("weights: {useful: 1.0}")
        spec["weights"] = str(weights)
    lines = QUICKSTART.read_text(encoding="utf-8").splitlines()
    (place,) = [n for n, line in enumerate(lines) if line.startswith("  - judge: {id: self, ")]
    step = {**spec, "id": "self"}
    lines[place] = f"  - judge: {yaml.safe_dump(step, default_flow_style=True, width=9999).strip()}"
    path = tmp_path / "experiment.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    experiment, _ = load_experiment(path)
    judge = build_judge(
        experiment.all_judges()["self"],
        load_constitution(Path("constitutions/concise_helper.yaml")),
        path,
    )
    assert judge.id == "self" and judge.judge_hash
