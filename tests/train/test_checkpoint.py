"""Checkpoints: the newest counts, with what each part of it is of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.config.training import LoraOptions
from rlaif.core.errors import StoreError
from rlaif.train import checkpoint


def trained(value: float) -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
    """Two weights of that value, and an optimiser that has made a step on them."""
    masters = {name: torch.full((2,), value) for name in ("a", "b")}
    optimizer = torch.optim.AdamW(list(masters.values()), lr=0.0, fused=True)
    for place, master in enumerate(masters.values(), 1):
        master.grad = torch.full((2,), value * place)
    optimizer.step()
    return masters, optimizer


def save(work: Path, step: int, value: float) -> None:
    masters, optimizer = trained(value)
    torch.manual_seed(step)
    checkpoint.save(work, step, masters, optimizer, {"fingerprint": "f", "beta": value})


def restored(work: Path, fingerprint: str = "f") -> tuple[Any, dict[str, torch.Tensor], Any]:
    masters, optimizer = trained(0.0)
    state = checkpoint.restore(work, masters, optimizer, fingerprint)
    return state, masters, optimizer


def test_the_newest_of_two_is_restored(tmp_path: Path) -> None:
    """A kill between the new one's name and the old one's end leaves both."""
    work = tmp_path / "work"
    work.mkdir()
    save(work, 9, 1.0)
    older = next(work.glob("checkpoint-*"))
    shutil.copytree(older, tmp_path / "kept")
    save(work, 10, 2.0)
    assert not older.exists()
    shutil.copytree(tmp_path / "kept", older)
    state, masters, optimizer = restored(work)
    assert (state["step"], state["beta"]) == (10, 2.0)
    assert {name: master.tolist() for name, master in masters.items()} == {
        "a": [2.0, 2.0],
        "b": [2.0, 2.0],
    }
    # Each weight has its own moments: a tenth of its gradient after one step.
    moments = [optimizer.state[masters[name]]["exp_avg"].tolist() for name in "ab"]
    assert moments == [pytest.approx([0.2, 0.2]), pytest.approx([0.4, 0.4])]


def test_the_random_state_is_that_of_the_time(tmp_path: Path) -> None:
    save(tmp_path, 7, 1.0)
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(99)
    restored(tmp_path)
    assert torch.equal(torch.rand(3), wanted)


def test_torn_ones_go_and_those_of_other_trainings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "partial-00000003").mkdir()
    assert restored(tmp_path)[0] is None and list(tmp_path.iterdir()) == []
    save(tmp_path, 3, 1.0)
    with pytest.raises(StoreError, match="other data or options"):
        restored(tmp_path, "another")
    checkpoint.clear(tmp_path)
    assert restored(tmp_path)[0] is None


@pytest.mark.parametrize(("rank", "seed"), [(0, 5), (1, 6), (2, None)])
def test_each_rank_goes_on_with_its_own_random_state(
    rank: int, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {}
    for number in (0, 1):
        torch.manual_seed(5 + number)
        states[f"cpu|{number}"] = torch.get_rng_state()
    # A rank that was not there goes on from the seed that it has.
    torch.manual_seed(77 if seed is None else seed)
    wanted = torch.rand(2)
    torch.manual_seed(77)
    monkeypatch.setattr("rlaif.train.parallel.rank", lambda: rank)
    checkpoint._set_random_state(states)
    assert torch.equal(torch.rand(2), wanted)


@pytest.mark.parametrize(
    ("export", "exact"), [(None, True), ("merged", True), ("adapter", False), ("both", False)]
)
def test_only_an_adapter_that_is_kept_starts_from_the_weights_beside_it(
    tmp_path: Path, export: Any, exact: bool
) -> None:
    (tmp_path / "config.json").write_text("{}")
    lora = None if export is None else LoraOptions(export=export)
    assert checkpoint.from_masters(tmp_path, lora) == exact
