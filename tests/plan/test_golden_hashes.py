"""The hashes of plans stay what they are: with another one, users' finished steps run again.

Where a change is meant, `python -m tests.plan.golden` writes the file anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plan.bases import BASES
from tests.plan.golden import FILE, SHIPPED, golden_hashes

KNOWN = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", ["here", "another/place"])
def test_hashes_are_those_of_the_file_from_any_folder(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = golden_hashes(tmp_path / folder)
    changed = [
        f"{name}: {step}"
        for name in KNOWN.keys() | found.keys()
        for step in KNOWN.get(name, {}).keys() | found.get(name, {}).keys()
        if KNOWN.get(name, {}).get(step) != found.get(name, {}).get(step)
    ]
    assert not sorted(changed)


def test_the_file_has_every_experiment() -> None:
    assert KNOWN.keys() == {p.name for p in SHIPPED.glob("*.yaml")} | BASES.keys()
