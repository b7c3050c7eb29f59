"""From what the command line names to judges with the models that they ask."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from rlaif.config.base import Strict
from rlaif.config.models import ModelSpec, thinking_of
from rlaif.constitution.model import load_constitution
from rlaif.core.errors import ConfigError
from rlaif.core.resources import find
from rlaif.core.yamlio import Lines, load_yaml, suggest, validate
from rlaif.engines.base import Model
from rlaif.engines.build import known_capabilities
from rlaif.judges.base import Judge, compares_judgements, roles_of
from rlaif.judges.build import BASELINES, JUDGES, JudgeStep, build_judge
from rlaif.pipeline.plan.base import replace_path
from rlaif.pipeline.prepare import model_key


class JudgesFile(Strict):
    """Judges, the models that their `by` names (`policy` is the command's --model), and the
    constitution that they follow."""

    models: dict[str, ModelSpec] = {}
    constitution: str | None = None
    judges: Annotated[list[JudgeStep], Field(min_length=1)]

    @model_validator(mode="after")
    def _ids_differ(self) -> JudgesFile:
        ids = [judge.id for judge in self.judges]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"judge ids must differ; {twice} is used twice (set `id:`)")
        return self


@dataclass(frozen=True)
class Entrant:
    """A judge that is measured. `models` are those that it asks, by role; `weights` are those of
    the principles."""

    judge: Judge
    kind: str
    models: Mapping[str, Model]
    weights: Mapping[str, float]

    @property
    def label(self) -> str | None:
        """The names of its models; None where it asks none."""
        return ", ".join(dict.fromkeys(m.label for m in self.models.values())) or None

    @property
    def baseline(self) -> bool:
        """Whether it understands nothing, so that any other judge must beat it."""
        return self.kind in BASELINES


def find_entrants(
    texts: Sequence[str], model: ModelSpec, constitution: str | None, with_baselines: bool
) -> list[Entrant]:
    """The judges that `texts` name, each a kind, a YAML file of judges, or a reward model's folder;
    then the baselines that are not among them. `perplexity` joins where a judge asks a model that
    gives log-probs, and asks the first such model. Raises ConfigError."""
    found: list[Entrant] = []
    for text in texts:
        found += _read_named(text, model, constitution)
    if with_baselines:
        taken = {e.judge.id for e in found}
        able = [m.spec for e in found for m in e.models.values() if _gives_logprobs(m)]
        for name in BASELINES:
            if name not in taken and (able or name != "perplexity"):
                found += _read_named(name, able[0] if able else model, None)
    ids = [e.judge.id for e in found]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ConfigError(f"judge-bench: {twice} is named twice; give the judges different ids")
    return found


def _gives_logprobs(model: Model) -> bool:
    return "token_logprobs" in (known_capabilities(model.spec) or ())


def _read_named(text: str, model: ModelSpec, constitution: str | None) -> list[Entrant]:
    path: Path | None = None
    lines: Lines = {}
    if text in JUDGES or ":" in text:
        data: dict[str, Any] = {"judges": [{"kind": text, "id": text.rsplit(":", 1)[-1]}]}
    elif Path(text).is_dir():
        name = _slug_of_folder(Path(text).resolve().name)
        data = {"judges": [{"kind": "reward_model", "id": name, "by": text}]}
    elif Path(text).suffix in (".yaml", ".yml"):
        path = find(text)
        data, lines = load_yaml(path)
    else:
        raise ConfigError(
            f"--judge {text}: neither a kind of judge, nor a YAML file of judges, nor a folder of "
            f"a reward model{suggest(text, list(JUDGES))}"
        )
    file = validate(JudgesFile, data, lines, path or f"--judge {text}")
    return _make_entrants(file, model, constitution, path, lines)


def _slug_of_folder(name: str) -> str:
    """A folder's name as a judge's id: a letter, then letters, digits, `-` and `_`."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
    return plain if plain[:1].isascii() and plain[:1].isalpha() else f"rm-{plain}".rstrip("-")


def _make_entrants(
    file: JudgesFile, model: ModelSpec, constitution: str | None, path: Path | None, lines: Lines
) -> list[Entrant]:
    named = file.constitution or constitution
    rules = load_constitution(find(named, path)) if named is not None else None
    weights = {p.id: p.weight for p in rules.principles} if rules is not None else {}
    thinking = thinking_of([model, *file.models.values()])
    found = []
    specs = {spec.id: spec for spec in file.judges}
    for index, spec in enumerate(file.judges):
        judge, names = build_judge(spec, rules, path, thinking, specs), spec.asks()
        if compares_judgements(judge):
            line = lines.get(("judges", index))
            fault = f"judge {spec.id} compares judgements, and these are pairs of answers"
            raise ConfigError(fault, path, line)
        models: dict[str, Model] = {}
        for role in roles_of(judge):
            asked = _find_model(names[role], file, model, path)
            if asked is None:
                hint = suggest(names[role], ["policy", *file.models])
                line = lines.get(("judges", index, role), lines.get(("judges", index)))
                fault = f"judge {spec.id}: no model is called {names[role]!r}{hint}"
                raise ConfigError(fault, path, line)
            models[role] = asked
        found.append(Entrant(judge, spec.kind, models, weights))
    return found


def _find_model(name: str, file: JudgesFile, model: ModelSpec, path: Path | None) -> Model | None:
    """The model of a judge's `by`: one of the file's, `policy` for the command's, or a folder."""
    if name in file.models:
        spec = file.models[name]
        if spec.script is not None:
            spec = spec.model_copy(update={"script": str(find(spec.script, path))})
        return Model(model_key(spec, True), name, spec)
    if name == "policy":
        return Model(model_key(model, True), Path(model.path).name, model)
    if Path(name).is_dir():
        spec = replace_path(model, name)
        return Model(model_key(spec, True), Path(name).name, spec)
    return None
