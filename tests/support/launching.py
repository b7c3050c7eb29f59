"""Jobs, experiments for them, and programs that stand in for those of a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.pipeline.launch.job import Job

JUDGE = {"engine": "openai", "base_url": "https://judge.example/v1", "key_env": "JUDGE_KEY"}
STEPS: list[dict[str, Any]] = [
    {"sample": {"n": 2, "max_new_tokens": 8}},
    {"judge": {"id": "checks", "kind": "rules"}},
    {"pair": {}},
]
LISTS = r"""#!/bin/bash
printf '%s\0' "$PWD" "$@" > "$SAID"
"""
"""A program that writes down where it was started and with which words."""
INSIDE = r"""#!/bin/bash
while [[ $1 != docker://* ]]; do shift; done
shift
exec "$@"
"""
"""Apptainer, for a command that needs no container."""


def plain_job(**changes: Any) -> Job:
    """A job with two GPUs."""
    given: dict[str, Any] = {
        "name": "rlaif-small",
        "command": ("rlaif", "run", "--out=runs/small", "--", "small.yaml"),
        "image": "rlaif:1-cuda",
        "gpus": 2,
        "gpu": None,
        "types": ("L4", "H100"),
        "cpus": 16,
        "memory": 48,
        "seconds": 5400,
        "secrets": ("JUDGE_KEY",),
        "folder": "/data/project",
        "storage": None,
        "resources": {},
    }
    return Job(**given | changes)


def put_program(folder: Path, name: str, text: str) -> Path:
    """A program of that name in a folder that can be put on PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, "utf-8")
    path.chmod(0o755)
    return path


def with_programs(folder: Path, **more: str) -> dict[str, str]:
    """An environment in which the programs of `folder` come first."""
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"} | more


def words_of(path: Path) -> list[str]:
    """What a program of LISTS has written down."""
    return path.read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1]


def run_script(text: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A script, by bash."""
    command = ["bash", "-c", text]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def find_program(name: str) -> str | None:
    """A program on PATH, or of a package beside the interpreter."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def said_by(command: Sequence[str]) -> str:
    """What a checker finds; nothing where all is well."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return f"{done.stdout}{done.stderr}" if done.returncode else ""
