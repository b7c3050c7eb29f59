"""What the page on environments shows is a valid experiment, and an environment that can be
played."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.environments.base import Step
from rlaif.environments.play import Play
from rlaif.pipeline.experiment_file import Experiment

PAGE = Path("docs/environments.md")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return str(found)


def test_the_example_is_an_experiment() -> None:
    data = {"name": "e", "models": {"policy": {"path": "none"}}, **yaml.safe_load(block("yaml"))}
    spec = Experiment.model_validate(data).prompts
    assert spec.environment is not None and spec.environment.max_turns == 6
    assert (spec.episodes, spec.holdout) == (64, 16)


def test_the_class_on_the_page_is_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec(block("python"), names)
    monkeypatch.setattr("tests.support.environments.Doors", names["Doors"], raising=False)
    play = Play({"kind": "tests.support.environments:Doors", "seed": 3})
    assert play.reset() == "Two doors. Answer left or right."
    assert play.step("Right!") == Step("A wall.")
    assert play.step("So left.") == Step("You are out.", 1.0, True, "leave the room")
