"""What pip installs of us."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.peer

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_says_that_it_is_typed(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*words, str(ROOT)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("rlaif-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "rlaif/py.typed" in names
    assert any(name.startswith("rlaif/shipped/prompts/") for name in names)
