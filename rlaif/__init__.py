"""Experiments in which AI feedback trains a language model.

The names in `__all__` are the public Python interface. Each is imported on first use, so that
`import rlaif` stays instant and needs no tensor library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.compare.aggregate import candidate_scores, combine
    from rlaif.config import load_experiment
    from rlaif.constitution import load_constitution
    from rlaif.data.pairs import prompt_pairs
    from rlaif.engines.build import load_engine
    from rlaif.experiment import run_experiment
    from rlaif.judges.build import build_judge
    from rlaif.records import Completion, Judgement, Preference, Prompt, make_prompt
    from rlaif.report.build import build_report
    from rlaif.rules import apply_check
    from rlaif.runs import load_run
    from rlaif.train.run import train as train_model

    __version__: str

# `train_model` and not `train`: the package `rlaif.train` has that name.
_PUBLIC = {
    "Completion": "rlaif.records:Completion",
    "Judgement": "rlaif.records:Judgement",
    "Preference": "rlaif.records:Preference",
    "Prompt": "rlaif.records:Prompt",
    "apply_check": "rlaif.rules:apply_check",
    "build_judge": "rlaif.judges.build:build_judge",
    "build_report": "rlaif.report.build:build_report",
    "candidate_scores": "rlaif.compare.aggregate:candidate_scores",
    "combine": "rlaif.compare.aggregate:combine",
    "load_constitution": "rlaif.constitution:load_constitution",
    "load_engine": "rlaif.engines.build:load_engine",
    "load_experiment": "rlaif.config:load_experiment",
    "load_run": "rlaif.runs:load_run",
    "make_prompt": "rlaif.records:make_prompt",
    "prompt_pairs": "rlaif.data.pairs:prompt_pairs",
    "run_experiment": "rlaif.experiment:run_experiment",
    "train_model": "rlaif.train.run:train",
}

__all__ = [
    "Completion",
    "Judgement",
    "Preference",
    "Prompt",
    "__version__",
    "apply_check",
    "build_judge",
    "build_report",
    "candidate_scores",
    "combine",
    "load_constitution",
    "load_engine",
    "load_experiment",
    "load_run",
    "make_prompt",
    "prompt_pairs",
    "run_experiment",
    "train_model",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rlaif' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version; a checkout that is not installed has none."""
    from importlib import metadata

    try:
        return metadata.version("rlaif")
    except metadata.PackageNotFoundError:
        return "0+not-installed"
