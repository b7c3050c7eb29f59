"""Whose preferences become a dataset where a run has several seeds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlaif.config.dataset import DatasetSpec
from rlaif.core.errors import ConfigError
from rlaif.core.store import Store
from rlaif.pipeline.choice import Choice, find_unsaid, preference_steps


def run_of(folder: Path, seeds: list[int]) -> Any:
    """A finished run that has made preferences with each of these seeds."""
    store = Store(folder)
    steps = []
    for seed in seeds:
        store.step(f"h{seed}").finish({"counts": {"preferences": 1}})
        row = {"kind": "pair", "id": "pair", "seed": seed, "round": 1, "arms": ["main"]}
        steps.append(row | {"hash": f"h{seed}"})
    manifest = {"steps": steps, "seeds": seeds, "arms": []}
    return SimpleNamespace(store=store, manifest=manifest, root=folder)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_chosen_seeds_preferences_are_taken_0_too(tmp_path: Path, seed: int) -> None:
    run, spec = run_of(tmp_path, [0, 1]), DatasetSpec()
    choice = Choice(seed=seed)
    assert find_unsaid(run, spec, choice) is None
    assert [step["hash"] for step in preference_steps(run, spec, choice)] == [f"h{seed}"]
    assert choice.folder == f"dataset-seed{seed}"


def test_seeds_have_to_be_told_apart_and_be_there(tmp_path: Path) -> None:
    run, spec = run_of(tmp_path, [0, 1]), DatasetSpec()
    unsaid = find_unsaid(run, spec)
    assert unsaid == "its seeds have preferences of their own: say --seed 0 or 1"
    with pytest.raises(ConfigError, match=r"no seed 2 \(seeds: 0, 1\)"):
        find_unsaid(run, spec, Choice(seed=2))
