"""What an experiment works with, in lines: prompts, models, judges, seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.config.arms import MAIN
from rlaif.config.models import RESERVED_MODELS, ModelSpec
from rlaif.config.prompts import AnySource, FileSource, PromptsSpec
from rlaif.judges.common import JudgeBase
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.explain.words import count_words, show_value

_OF_JUDGES = {"id", "kind", "by", "principles", "uses", "reasoning"}


def list_facts(
    experiment: Experiment, prompts: Mapping[str, tuple[int, int]], arm: str | None = None
) -> dict[str, tuple[str, ...]]:
    """Lines by heading; `prompts` counts those to train on and those held out, by set, as far as
    that is known. Of the arms only `arm`, where it is given."""
    judges = experiment.all_judges().values()
    seeds = ", ".join(str(seed) for seed in experiment.all_seeds)
    sets = experiment.set_specs
    posed = {e.step.id: e.step.judge for e in experiment.entries if e.kind == "questions"}
    found = {
        "Prompts": tuple(
            _describe_set(name, sets[name], prompts.get(name), posed.get(name)) for name in sets
        ),
        "Models": tuple(_describe_model(n, m) for n, m in experiment.models.items()),
        "Constitution": (experiment.constitution,) if experiment.constitution else (),
        "Judges": tuple(_describe_judge(judge) for judge in judges),
        "Seeds": (f"{seeds}: the whole for each",) if len(experiment.all_seeds) > 1 else (seeds,),
        "Arms": tuple(
            f"{name} sets {', '.join(f'{p} to {show_value(v)}' for p, v in spec.set.items())}"
            for name, spec in experiment.arms.items()
            if spec.set and (arm is None or name == arm)
        ),
    }
    return {heading: lines for heading, lines in found.items() if lines}


def _describe_set(
    name: str, spec: PromptsSpec, counts: tuple[int, int] | None, judge: str | None
) -> str:
    source = spec.path or spec.dataset or "those of the loaded pairs"
    if spec.generate is not None:
        source = " and ".join(_describe_source(one) for one in spec.generate.sources)
    if spec.environment is not None:
        keys = spec.environment.model_dump()
        source = f"episodes of {keys['kind']}, at most {keys['max_turns']} turns each"
    if judge is not None:
        about = "loaded pairs" if counts is not None else "answers of the run"
        source = f"questions of judge {judge} about {about}"
    split = "" if counts is None else f": {counts[0]:,} to train on, {counts[1]:,} held out"
    return f"{'' if name == MAIN else f'{name}, '}{source}{split}"


def _describe_source(source: AnySource) -> str:
    if isinstance(source, FileSource):
        return source.path or source.dataset or ""
    return f"{source.count:,} written by {source.by} ({source.kind})"


def _describe_model(name: str, spec: ModelSpec) -> str:
    about = [spec.path, *([spec.role] if spec.role else []), *(["M0"] if name == "policy" else [])]
    if spec.system_prompt and spec.system_prompt not in ("keep", "drop"):
        about.append(f"system prompt: {spec.system_prompt}")
    return f"{name}: {', '.join(about)}"


def _describe_judge(judge: JudgeBase) -> str:
    """Who is asked, and what: the first sentence on its kind, its principles and other keys."""
    asks = judge.asks()
    kind = (type(judge).__doc__ or "").strip().replace("\n", " ").split(". ")[0]
    about = " ".join(kind.split()).rstrip(".").replace("`", "")
    by = f" by {_name_asked(asks)}" if asks else ""
    principles = judge.principles
    on = f"; on {', '.join(principles)}" if principles else ""
    keys: Mapping[str, Any] = judge.model_dump(
        mode="json", exclude_defaults=True, exclude=_OF_JUDGES
    )
    others = "".join(f"; {key} {show_value(value)}" for key, value in keys.items())
    return f"{judge.id}: {judge.kind}{by}. {about}{on}{others}"


def _name_asked(asks: Mapping[str, str]) -> str:
    if set(asks) == {"by"}:
        name = asks["by"]
        return f"`{name}`" if name in RESERVED_MODELS else name
    return ", ".join(f"{name} ({role})" for role, name in asks.items())


def list_unasked(experiment: Experiment, asked: set[str], used: set[str]) -> list[str]:
    """Judges that no step asks (`asked` are those that some do) and models that none uses."""
    judges = (name for name in experiment.all_judges() if name not in asked)
    models = (name for name in experiment.models if name not in used)
    return [f"judge {name}: no step asks it" for name in judges] + [
        f"model {name}: no step uses it" for name in models
    ]


def list_undrawn(train: int, drawn: int, heldout: int, measured: bool) -> list[str]:
    """Prompts that nothing is made of."""
    found = []
    if drawn < train:
        found.append(f"{train - drawn:,} of {count_words(train, 'training prompt')}: never drawn")
    if heldout and not measured:
        found.append(f"{count_words(heldout, 'held-out prompt')}: no step evaluates")
    return found
