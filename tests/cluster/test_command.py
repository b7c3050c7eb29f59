"""`rlaif run --executor ray` where there is no Ray, and options without it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlaif.cli import cli, runs


def said_by(*words: str) -> str:
    done = CliRunner().invoke(cli, ["run", "e.yaml", *words])
    assert done.exit_code != 0
    return f"{done.output} {done.exception}"


@pytest.fixture(autouse=True)
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text("{}")


def test_an_option_of_the_cluster_alone_is_refused() -> None:
    assert "--actor-cpus is for --executor ray" in said_by("--actor-cpus", "2")
    assert "--ray-address is for --executor ray" in said_by("--ray-address", "auto")


def test_without_ray_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    assert "pip install 'rlaif[ray]'" in said_by("--executor", "ray")


@pytest.mark.skipif(find_spec("ray") is None, reason="RAY IS NOT INSTALLED HERE: make test-ray")
@pytest.mark.ray
def test_a_cluster_that_is_not_there_is_named() -> None:
    said = said_by("--executor", "ray", "--ray-address", "ray://127.0.0.1:1")
    assert "a run starts on a node of the cluster" in said
