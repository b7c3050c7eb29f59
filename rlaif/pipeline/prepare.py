"""From an experiment's file to all that its plan depends on.

Models that are the same weights under several names are found here. Labeller, proxy and gold judge
must differ, and a judge that is the evaluated model must be called so: otherwise a rising score may
be a model that likes itself (arXiv 2210.10760 on proxy and gold, 2404.13076 on models that favour
their own texts).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from rlaif.config.arms import MAIN
from rlaif.config.models import REMOTE, RESERVED_MODELS, ModelSpec, thinking_of
from rlaif.config.prompts import PromptMix, PromptsSpec
from rlaif.config.steps import LoadStep
from rlaif.constitution.model import Constitution, load_constitution
from rlaif.core.errors import ConfigError, placed
from rlaif.core.integrity import CHUNK
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Prompt, content_hash
from rlaif.core.resources import find
from rlaif.core.rowfiles import list_shards
from rlaif.core.yamlio import Lines, Loc, line_of, read_text
from rlaif.data.embed import model_folder
from rlaif.data.readers import read_labelled
from rlaif.data.rows import Source, is_votes, rows_hash, source_rows, vote_rows
from rlaif.data.sources import (
    PromptSet,
    load_prompts,
    loaded_source,
    provisional_prompts,
    split_apart,
    split_prompts,
)
from rlaif.engines.base import Model
from rlaif.engines.build import Loader, known_capabilities, server_key, whole
from rlaif.engines.model_folders import check_weights, locate, model_hash, resolve
from rlaif.judges.base import Judge, roles_of
from rlaif.judges.build import build_judge
from rlaif.judges.common import JudgeBase
from rlaif.pipeline.constitutions import refuse_code
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.plan.base import PlanInputs, no_model, replace_path
from rlaif.pipeline.question_sets import make_question_set
from rlaif.pipeline.reading import FileOfArm, load_arms
from rlaif.pipeline.stages import StepEntry
from rlaif.pipeline.steps.context import Progress
from rlaif.pipeline.system_prompts import render_system_prompt

ABSENT = "not here yet:"
"""How the identity of a model begins that a dry run does not fetch."""


def prepare(
    path: Path,
    overrides: Sequence[str] = (),
    fetch: bool = True,
    profile: str | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    load: Loader | None = None,
) -> PlanInputs:
    """Everything a plan needs. Prompts that models write are generated into the run folder `out`,
    by models in this process or where `load` has them.

    With `fetch` false nothing is downloaded, converted or asked of a model: a model that is not on
    disk yet gets a placeholder identity, and a dataset whose `count` is given made-up prompts, as
    have sets that are not generated yet; `provisional` names them. Raises ConfigError, EngineError.
    """
    own, arms = load_arms(path, overrides, profile)
    preparing = _Preparing(path, fetch, out, progress or QuietProgress(), load)
    experiment = preparing.with_scripts(own)
    posed = {entry.step.id for entry in experiment.entries if entry.kind == "questions"}
    names = [name for name in experiment.set_specs if name not in posed]
    sets = {name: preparing.prompts(name, experiment, own) for name in names}
    sets, taken = split_apart(sets)
    inputs = preparing.inputs(own, sets)
    found = {}
    for name, file in arms.items():
        try:
            found[name] = replace(preparing.inputs(file, sets), arm=name)
        except ConfigError as error:
            raise ConfigError(f"arm {name}: {error}") from None
    notes = [f"set {name}: {n} training prompts are held out in another set" for name, n in taken]
    provisional = tuple(preparing.provisional)
    notes += inputs.notes
    return replace(inputs, arms=found, provisional=provisional, notes=tuple(notes))


@dataclass
class _Preparing:
    """What the arms of one file have in common is read once."""

    path: Path
    fetch: bool
    out: Path | None
    progress: Progress
    load: Loader | None
    keys: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    provisional: list[str] = field(default_factory=list)
    """What a dry run takes for granted."""

    def inputs(self, file: FileOfArm, sets: Mapping[str, PromptSet]) -> PlanInputs:
        """The inputs of one arm's file."""
        experiment, path = self.with_scripts(file), self.path
        with self._at(file, ("constitution",)):
            constitution = _load_constitution(experiment.constitution, path)
        thinking = thinking_of(experiment.models.values())
        judges: dict[str, Judge] = {}
        own: dict[str, Constitution | None] = {}
        for name, spec in experiment.all_judges().items():
            with self._at(file, experiment.loc_of(name), f"judge {name}"):
                judges[name] = build_judge(
                    spec, constitution, path, thinking, experiment.all_judges()
                )
                own[name] = _load_constitution(spec.constitution, path)
        sets, notes = self.with_questions(file, experiment, judges, sets)
        keys = self.model_keys(file, experiment)
        check_same_weights(experiment, keys, judges, path, file.lines)
        inputs = PlanInputs(
            experiment,
            path,
            file.lines,
            constitution,
            sets[MAIN],
            judges,
            keys,
            self.file_hashes(file, experiment),
            notes=notes,
            sets={name: found for name, found in sets.items() if name != MAIN},
            constitutions={name: found for name, found in own.items() if found is not None},
            system_prompts=self.system_prompts(file, experiment, constitution),
            at=file.at,
        )
        _check_judges(inputs)
        _check_capabilities(inputs)
        refuse_code(inputs)
        return inputs

    def with_questions(
        self,
        file: FileOfArm,
        experiment: Experiment,
        judges: Mapping[str, Judge],
        sets: Mapping[str, PromptSet],
    ) -> tuple[dict[str, PromptSet], tuple[str, ...]]:
        """The sets with those of `questions`, which an arm's own judges may ask, and what a user
        should know of these."""
        found, notes = dict(sets), []
        for loc, entry in zip(experiment.step_locs, experiment.entries, strict=True):
            step = entry.step
            if entry.kind == "questions":
                with self._at(file, (*loc, "questions"), f"step {step.id}"):
                    found[step.id], note = make_question_set(
                        experiment, step, judges, sets, self.path
                    )
                notes += [] if note is None else [note]
        return found, tuple(notes)

    def _at(self, file: FileOfArm, loc: Loc, note: str = "") -> AbstractContextManager[None]:
        """Within, errors say that they come from `loc` of the file."""
        return placed(self.path, line_of(loc, file.lines), note)

    def with_scripts(self, file: FileOfArm) -> Experiment:
        """The experiment with the fake engines' scripts found where its own file is."""
        models = dict(file.experiment.models)
        for name, spec in models.items():
            if spec.script:
                with self._at(file, ("models", name, "script")):
                    found = str(find(spec.script, self.path))
                models[name] = spec.model_copy(update={"script": found})
        return file.experiment.model_copy(update={"models": models})

    def prompts(self, name: str, experiment: Experiment, file: FileOfArm) -> PromptSet:
        """The prompts of a set, made up where a dry run would have to fetch them."""
        spec = experiment.set_specs[name]
        made = name not in {MAIN, *experiment.prompt_sets}
        loc = experiment.loc_of(name) if made else ("prompt_sets", name)
        loc = ("prompts",) if name == MAIN else loc
        if not self.fetch and spec.count is not None and not Path(spec.dataset or "").exists():
            self.provisional.append(f"{spec.count} made-up prompts in place of {spec.dataset}")
            with self._at(file, loc):
                return provisional_prompts(spec, spec.dataset or "", spec.count)
        loads = [e.load for e in experiment.entries if e.load is not None]
        own = [load for load in loads if load.id == name and load.prompts == "own"]
        with self._at(file, loc):
            if spec.generate is not None:
                return self._generate_prompts(name, spec, spec.generate, experiment, file)
            if own or spec.from_pairs:
                return _prompts_of_pairs(spec, own or experiment.pair_loads, experiment, self.path)
            return load_prompts(spec, self.path)

    def _generate_prompts(
        self, name: str, spec: PromptsSpec, mix: PromptMix, experiment: Experiment, file: FileOfArm
    ) -> PromptSet:
        """The prompts that models write, or made-up ones in a dry run before they are there."""
        # What compares and rejects prompts loads libraries that nothing else here needs.
        from rlaif.pipeline.prompt_generation.run import check_mix
        from rlaif.pipeline.prompt_generation.sets import (
            count_calls,
            count_prompts,
            generate_set,
            read_set,
        )

        check_mix(mix, experiment.models)
        models = {
            by: Model(self._model_key(model, file, ("models", by)), by, model)
            for by, model in experiment.models.items()
            if by in {source.by for source in mix.written}
        }
        found: list[Prompt] | None = None
        if self.out is not None and self.fetch:
            found = generate_set(
                name,
                mix,
                self.path,
                models,
                self.out,
                experiment.budget,
                self.progress,
                self.load,
            )
        elif self.out is not None:
            found = read_set(name, mix, self.path, models, self.out)
        if found is not None:
            return split_prompts(spec, found, f"set {name}")
        count, calls = count_prompts(mix, self.path), count_calls(mix)
        self.provisional.append(
            f"{count} made-up prompts in place of those that are generated for set {name} before "
            f"the first step, in at most {calls} model calls"
        )
        return provisional_prompts(spec, f"set {name}", count)

    def model_keys(self, file: FileOfArm, experiment: Experiment) -> dict[str, str]:
        """Those of `model_keys`; what is the same weights in several arms is looked at once."""
        found = model_keys(experiment, lambda spec, loc: self._model_key(spec, file, loc))
        for name, key in found.items():
            absent = f"model {name} ({key.removeprefix(ABSENT)}) is not here yet"
            if key.startswith(ABSENT) and absent not in self.provisional:
                self.provisional.append(absent)
        return found

    def _model_key(self, spec: ModelSpec, file: FileOfArm, loc: Loc) -> str:
        known = spec.model_dump_json()
        if known not in self.keys:
            with self._at(file, loc):
                self.keys[known] = model_key(spec, self.fetch)
        return self.keys[known]

    def system_prompts(
        self, file: FileOfArm, experiment: Experiment, constitution: Constitution | None
    ) -> dict[str, str]:
        """The texts of the template files that sample steps name."""
        placed_steps = list(zip(experiment.step_locs, experiment.entries, strict=True))
        for (number, _), entries in file.at.items():
            placed_steps += [(("stages", number, "at"), entry) for entry in entries]
        found: dict[str, str] = {}
        for loc, entry in placed_steps:
            for name in entry.sample.templates if entry.sample else ():
                with self._at(file, loc, f"step {entry.step.id}: system_prompt"):
                    found[name] = render_system_prompt(name, constitution, self.path)
        return found

    def file_hashes(self, file: FileOfArm, experiment: Experiment) -> dict[str, str]:
        """The hashes of what the steps read, by name."""
        names: set[str] = set()
        for loc, entry in zip(experiment.step_locs, experiment.entries, strict=True):
            with self._at(file, loc, f"step {entry.step.id}"):
                for name, source in _sources_of(entry, experiment, self.path).items():
                    names.add(name)
                    if name not in self.files:
                        self.files[name] = self._source_hash(source)
        return {name: self.files[name] for name in sorted(names)}

    def _source_hash(self, source: Source) -> str:
        """The hash of what is read: of a dataset's rows, whichever copy of them the hub gave."""
        if isinstance(source, Path):
            return _file_hash(source)
        if not self.fetch and not Path(source.name).exists():
            self.provisional.append(f"the rows of {source.name} are not here yet")
            return ABSENT + source.name
        return rows_hash(source_rows(source))


def _load_constitution(name: str | None, path: Path) -> Constitution | None:
    return None if name is None else load_constitution(find(name, path))


def model_keys(experiment: Experiment, key_of: Callable[[ModelSpec, Loc], str]) -> dict[str, str]:
    """Model name (or folder in a train step) to the identity of its weights, which `key_of` tells
    of a model and the place that names it."""
    keys = {name: key_of(spec, ("models", name)) for name, spec in experiment.models.items()}
    policy = experiment.models["policy"]
    made = set(experiment.made_models)
    for loc, entry in zip(experiment.step_locs, experiment.entries, strict=True):
        for name in _models_named(entry):
            # A folder of weights may be named where a model's name is expected.
            known = name in RESERVED_MODELS or name in keys or name.partition("@")[0] in made
            if not known and ("/" in name or Path(name).exists()):
                keys[name] = key_of(replace_path(policy, name), (*loc, entry.kind))
    return keys


def _models_named(entry: StepEntry) -> list[str]:
    """The models that a step trains with or averages."""
    if entry.average is not None:
        return list(entry.average.models)
    step = entry.train or entry.distill
    if step is None:
        return []
    keys = ("from_", "reference", "teacher")
    return [getattr(step, key) for key in keys if hasattr(step, key)]


def model_key(spec: ModelSpec, fetch: bool) -> str:
    """The identity of a model's weights, script or plug-in; `fetch` may bring weights here."""
    if spec.engine == "fake":
        script = read_text(Path(spec.script)) if spec.script else ""
        return "fake:" + content_hash(script)
    if spec.engine in REMOTE:
        if fetch:
            # Here and not when the judge's turn comes, hours later.
            server_key(spec)
        said = "" if spec.weights is None else f":{spec.weights}"
        return f"server:{spec.base_url}:{spec.path}{said}"
    if ":" in spec.engine and locate(spec.path) is None:
        # A plug-in's path need not be a folder of weights.
        return f"plugin:{spec.engine}:{spec.path}"
    folder = whole(resolve(spec.path)) if fetch else locate(spec.path)
    if fetch and spec.gpus is not None:
        # Now: GPUs that are not there would show only when the engine starts.
        from rlaif.engines.vllm.vllm_options import visible_gpus

        visible_gpus(spec)
    if folder is None:
        return ABSENT + spec.path
    # A plug-in may keep weights in files of its own kind.
    if ":" not in spec.engine:
        check_weights(folder)
    return f"weights:{model_hash(folder, spec)}"


def _prompts_of_pairs(
    spec: PromptsSpec, loads: Sequence[LoadStep], experiment: Experiment, path: Path
) -> PromptSet:
    """The prompts of the pairs that some steps load."""
    names = [loaded_source(step, experiment.loaded_name(step), path) for step in loads]
    readings = [
        read_labelled(name, step.format, step.columns, step.on_error)
        for name, step in zip(names, loads, strict=True)
    ]
    prompts = [pair.prompt for reading in readings for pair in reading]
    return split_prompts(spec, prompts, ", ".join(map(str, names)))


def _sources_of(entry: StepEntry, experiment: Experiment, path: Path) -> dict[str, Source]:
    """The files and datasets that a step reads, by name."""
    if entry.load is not None and entry.load.type == "prompts":
        # The ids of prompts say all that a plan needs of a set.
        return {}
    if entry.load is not None:
        name = experiment.loaded_name(entry.load) or ""
        return {name: loaded_source(entry.load, name, path)}
    if entry.filter is None:
        return {}
    files: dict[str, Source] = {name: find(name, path) for name in entry.filter.files()}
    return files | {name: model_folder(name, path) for name in entry.filter.models()}


def _file_hash(path: Path) -> str:
    """The hash of a file's bytes, of a database's votes, or of all names and files in a folder."""
    if is_votes(path):
        return rows_hash(vote_rows(path))
    if not path.is_dir():
        digest = hashlib.sha256()
        for part in list_shards(path) or [path]:
            with part.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()
    inside = sorted(p for p in path.rglob("*") if p.is_file())
    return content_hash([[str(p.relative_to(path)), _file_hash(p)] for p in inside])


def _check_judges(inputs: PlanInputs) -> None:
    """Raises ConfigError for a judge of `judges` by a model that is not given and no step makes;
    those of steps are looked at where they stand in the plan."""
    experiment = inputs.experiment
    made = set(experiment.made_models)
    known = RESERVED_MODELS | made | experiment.models.keys() | inputs.keys.keys()
    for index, judge in enumerate(experiment.judges):
        for name in judge.asks().values():
            if name.partition("@")[0] not in known and name not in known:
                line = line_of(("judges", index, "by"), inputs.lines)
                fault = f"by: {no_model(name, experiment)}"
                raise ConfigError(fault, inputs.path, line, f"judge {judge.id}")


def _check_capabilities(inputs: PlanInputs) -> None:
    for index, entry in enumerate(inputs.experiment.entries):
        if entry.judge is None:
            continue
        names = entry.judge.asks()
        for role, needs in roles_of(inputs.judges[entry.judge.id]).items():
            name = "policy" if names[role] in RESERVED_MODELS else names[role]
            spec = inputs.experiment.models.get(name)
            known = known_capabilities(spec) if spec is not None else None
            # What a hub id holds is known once it is fetched; the judge step looks again.
            if spec is not None and known is not None and needs - known:
                what = f"judge needs {sorted(needs - known)}, which engine {spec.engine!r} lacks"
                raise inputs.fail(index, what)


KEPT_APART = frozenset({"labeller", "proxy", "gold"})


def weights_names(spec: ModelSpec, key: str) -> frozenset[str]:
    """What a model's weights go by: models that have one of these in common are the same.

    `key` is its identity. A server's weights go by its address and the model's name there, and by
    the hash that `weights` declares, which may be that of a folder here. A script has none.
    """
    if spec.engine == "fake":
        return frozenset()
    if spec.engine not in REMOTE:
        return frozenset({key})
    declared = {f"weights:{spec.weights}"} if spec.weights is not None else set()
    return frozenset({f"server:{(spec.base_url or '').rstrip('/').lower()}:{spec.path}"} | declared)


def check_same_weights(
    experiment: Experiment,
    keys: Mapping[str, str],
    judges: Mapping[str, Judge],
    path: Path,
    lines: Lines,
) -> None:
    """Refuse roles that are silently one model, and judges that are silently the policy. Raises
    ConfigError, unless the experiment says `allow_same_weights`."""
    for name, spec in experiment.all_judges().items():
        asked = roles_of(judges[name])
        # A judge within may have a `by` that nothing asks.
        silent = [own for role, own in _find_unnamed(spec) if role in asked]
        if silent:
            raise ConfigError(
                f"judge {silent[0]}: `by` does not say which model is asked. Set `by: policy` to "
                "have the policy judge itself, or name another one of `models`.",
                path,
                line_of(experiment.loc_of(name), lines),
            )
    if experiment.allow_same_weights:
        return
    names = {n: weights_names(spec, keys[n]) for n, spec in experiment.models.items()}
    with placed(path, line_of(("models",), lines)):
        _check_roles(experiment, names)
    for judge in experiment.all_judges().values():
        for name in judge.asks().values():
            # A reserved name says openly that the policy judges.
            if name not in RESERVED_MODELS and names.get(name, frozenset()) & names["policy"]:
                raise ConfigError(
                    f"judge {judge.id}: model {name!r} has the policy's own weights. Ask it by the "
                    "name `policy` (or `initial`, the policy before training), name other "
                    "weights, or set `allow_same_weights: true`.",
                    path,
                    line_of(experiment.loc_of(judge.id), lines),
                )


def _check_roles(experiment: Experiment, names: Mapping[str, frozenset[str]]) -> None:
    roles = {n: s.role for n, s in experiment.models.items() if s.role in KEPT_APART}
    for one, other in combinations(roles, 2):
        if roles[one] != roles[other] and names[one] & names[other]:
            raise ConfigError(
                f"models {one!r} and {other!r} have different roles and the same weights. "
                "Name different models, or set `allow_same_weights: true`."
            )


def _find_unnamed(judge: JudgeBase, place: str = "") -> Iterator[tuple[str, str]]:
    """Role and id of each judge, those within `judge` too, whose `by` was left to its default."""
    if "by" in type(judge).model_fields and "by" not in judge.model_fields_set:
        yield f"{place}by", judge.id
    for name, inner in judge.judges_within().items():
        yield from _find_unnamed(inner, f"{place}{name}/")
