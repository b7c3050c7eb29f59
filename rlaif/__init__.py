"""Experiments in which AI feedback trains a language model.

The names in `__all__` are the public Python interface. Each is imported on first use, so that
`import rlaif` stays instant and needs no tensor library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.constitution.model import load_constitution
    from rlaif.constitution.rules import apply_check
    from rlaif.core.records import Completion, Judgement, Preference, Prompt, make_prompt
    from rlaif.engines.build import load_engine
    from rlaif.judges.build import build_judge
    from rlaif.pipeline.experiment import run_experiment
    from rlaif.pipeline.reading import load_experiment
    from rlaif.pipeline.runs import load_run
    from rlaif.preferences.aggregate import candidate_scores, combine
    from rlaif.preferences.pairing import prompt_pairs
    from rlaif.report.build import build_report
    from rlaif.train.run import train as train_model

    __version__: str

# `train_model` and not `train`: the package `rlaif.train` has that name.
_PUBLIC = {
    "Completion": "rlaif.core.records:Completion",
    "Judgement": "rlaif.core.records:Judgement",
    "Preference": "rlaif.core.records:Preference",
    "Prompt": "rlaif.core.records:Prompt",
    "apply_check": "rlaif.constitution.rules:apply_check",
    "build_judge": "rlaif.judges.build:build_judge",
    "build_report": "rlaif.report.build:build_report",
    "candidate_scores": "rlaif.preferences.aggregate:candidate_scores",
    "combine": "rlaif.preferences.aggregate:combine",
    "load_constitution": "rlaif.constitution.model:load_constitution",
    "load_engine": "rlaif.engines.build:load_engine",
    "load_experiment": "rlaif.pipeline.reading:load_experiment",
    "load_run": "rlaif.pipeline.runs:load_run",
    "make_prompt": "rlaif.core.records:make_prompt",
    "prompt_pairs": "rlaif.preferences.pairing:prompt_pairs",
    "run_experiment": "rlaif.pipeline.experiment:run_experiment",
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
        return _installed_version()
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rlaif' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _installed_version() -> str:
    """The installed version; a checkout that is not installed has none."""
    from importlib import metadata

    try:
        return metadata.version("rlaif")
    except metadata.PackageNotFoundError:
        return "0+not-installed"
