"""The public Python interface: files and folders are given as text or as Path."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import rlaif
from rlaif.core.resources import find
from rlaif.engines.model_folders import resolve
from rlaif.train.average import average

EXPORTED = {name: getattr(rlaif, name) for name in rlaif.__all__}
DOCUMENTED = {"average": average, "find": find, "resolve": resolve}
"""What the documentation uses besides what `rlaif` exports."""
FUNCTIONS = {n: f for n, f in (EXPORTED | DOCUMENTED).items() if inspect.isfunction(f)}
PATHS = {
    "average": {"members", "out"},
    "build_judge": {"beside"},
    "build_report": {"out"},
    "find": {"beside", "name"},
    "load_constitution": {"path"},
    "load_engine": {"folder"},
    "load_experiment": {"path"},
    "load_run": {"root"},
    "resolve": {"name"},
    "run_experiment": {"out", "path"},
    "train_model": {"out", "reference", "start", "work"},
}
"""The parameters of every public function that name a file or folder."""


def kinds(hint: Any) -> set[Any]:
    """Every class that a type hint names."""
    # The arguments of a Callable are a list.
    parts = hint if isinstance(hint, list) else get_args(hint)
    alone = not parts and not isinstance(hint, list)
    return {hint} if alone else set().union(*map(kinds, parts))


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_path_may_be_a_text_in_every_public_function(name: str) -> None:
    """`name` of resolve may be the name of a model as well, so it was a text before."""
    hints = get_type_hints(FUNCTIONS[name])
    hints.pop("return", None)
    taken = {key: kinds(hint) for key, hint in hints.items()}
    assert {key for key, found in taken.items() if Path in found} == PATHS.get(name, set())
    assert [key for key in PATHS.get(name, ()) if str not in taken[key]] == []


def test_texts_do_what_paths_do(
    tmp_path: Path,
    tiny_model: Path,
    write_experiment: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_experiment(tmp_path / "given", None, rounds=1)
    for kind in (str, Path):
        out = tmp_path / kind.__name__
        result = rlaif.run_experiment(kind(path), kind(out))
        assert result.out == out and (out / "rounds.jsonl").exists()
        report = rlaif.build_report(rlaif.load_run(kind(out)).view(), kind(out / "page.html"))
        assert report == out / "page.html" and report.stat().st_size > 1000
        again = rlaif.run_experiment(kind(path), kind(out))
        assert again.ran == 0
        assert rlaif.load_experiment(kind(path))[0].name == "small"
        constitution = rlaif.load_constitution(kind(path.parent / "constitution.yaml"))
        assert constitution.name == "tiny"
        assert resolve(kind(tiny_model)) == tiny_model
        assert find(kind("constitution.yaml"), kind(path)) == path.parent / "constitution.yaml"


def test_training_and_loading_take_texts(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlaif.config.models import ModelSpec
    from rlaif.train.methods.reward_models import BradleyTerryDistill
    from tests.pipeline.test_model_card import read

    row = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    options = BradleyTerryDistill(batch_size=1, precision="fp32")
    members = []
    for seed in (1, 2):
        out, work = str(tmp_path / f"out{seed}"), str(tmp_path / "work")
        rlaif.train_model(options, [read(row)], {}, str(tiny_model), None, out, work, seed)
        shutil.rmtree(work)
        members.append(out)
    average(members, str(tmp_path / "mean"))
    spec = ModelSpec(path="x", dtype="float32", device="cpu")
    engine = rlaif.load_engine(spec, str(tmp_path / "mean"), "mean")
    assert "reward" in engine.capabilities


def test_the_package_says_that_it_is_typed() -> None:
    assert (files("rlaif") / "py.typed").is_file()


def test_the_documented_round_is_the_example() -> None:
    docs = Path(__file__).resolve().parents[1] / "docs"
    example = (docs / "examples" / "one_round.py").read_text("utf-8")
    assert f"```python\n{example}```" in (docs / "python.md").read_text("utf-8")
