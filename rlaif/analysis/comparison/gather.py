"""What runs and files say: judgements by source, the texts that they are about, battles, runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import structs

from rlaif.analysis.comparison.vote_files import read_vote_file
from rlaif.config.arms import HUMAN
from rlaif.config.columns import LabelColumns
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import GivenPair, LabelledPair, given_pair
from rlaif.core.records import (
    AnnotatorKind,
    Completion,
    Judgement,
    Message,
    Preference,
    Prompt,
    content_hash,
    make_prompt,
    message_text,
)
from rlaif.core.resources import find
from rlaif.data.given import read_given
from rlaif.data.loaded import record_of
from rlaif.data.readers import OnError, detect_format, read_labelled
from rlaif.data.readers.alpaca_eval import baseline_beside
from rlaif.data.readers.base import answer_id
from rlaif.data.rows import file_rows, is_votes
from rlaif.metrics.battles import make_battle, read_battles
from rlaif.metrics.winrate import Battle
from rlaif.pipeline.constitutions import run_weights
from rlaif.pipeline.runs import Run, load_run
from rlaif.preferences.labels import given_label, pair_judgement
from rlaif.preferences.votes import answer_ids

MANIFEST = "manifest.json"
EXPORTED = ("step", "run_seed", "run_round", "run_arms", "answers")
"""What `rlaif export --records judgements` adds to a judgement."""
KINDS: Mapping[str, tuple[frozenset[str], type[Any]]] = {
    "judgements": (frozenset({"judgement_id"}), Judgement),
    "preferences": (frozenset({"preference_id"}), Preference),
    "completions": (frozenset({"completion_id", "prompt_id"}), Completion),
    "prompts": (frozenset({"prompt_id", "messages"}), Prompt),
}
"""By the name of a file of records, the columns that tell its rows (narrower ones first), and what
the rows are."""
ALONE = ("responses", "messages", "sft", "kto")
"""Formats of answers that stand alone."""
VERSUS = "alpaca_eval_outputs"


class SourceKey(NamedTuple):
    """One source of feedback: a judge of these settings, the people of a file, an arm's labels."""

    name: str
    kind: AnnotatorKind
    settings: str = ""


class Text(NamedTuple):
    """An answer: its prompt, what it says, and the model that wrote it where that is known."""

    prompt_id: str
    text: str
    author: str | None = None


@dataclass
class Gathered:
    """All that was read.

    `texts` and `prompts` are by id; `judgements`, `weights` (of principles), `places` (the inputs'
    names) and `battles` (of named models) by source. `compared` are the pairs that somebody
    compared. `loaded` are the sources that do not say in which order their answers were shown,
    and `arms` those that are the labels of a run's arms.
    """

    texts: dict[str, Text] = field(default_factory=dict)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    judgements: dict[SourceKey, list[Judgement]] = field(default_factory=lambda: defaultdict(list))
    weights: dict[SourceKey, Mapping[str, float]] = field(default_factory=dict)
    places: dict[SourceKey, list[str]] = field(default_factory=lambda: defaultdict(list))
    battles: dict[SourceKey, list[Battle]] = field(default_factory=lambda: defaultdict(list))
    compared: dict[str, GivenPair] = field(default_factory=dict)
    loaded: set[SourceKey] = field(default_factory=set)
    arms: set[SourceKey] = field(default_factory=set)
    runs: dict[str, Run] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def add_judgement(self, judgement: Judgement, place: str) -> SourceKey:
        """File a judgement of answers under its source; returns the source."""
        settings = "" if judgement.annotator_kind == HUMAN else judgement.judge_hash
        key = SourceKey(judgement.judge, judgement.annotator_kind, settings)
        # What the annotator wrote is not measured, and is most of what a judgement holds.
        self.judgements[key].append(structs.replace(judgement, raw=None, rationale=None))
        self.note_place(key, place)
        if len(set(judgement.shown)) == 2:
            self.add_pair(judgement.prompt_id, *judgement.shown)
        return key

    def add_pair(self, prompt_id: str, first: str, second: str) -> None:
        """Two answers that somebody compared, by their ids."""
        name = content_hash(*sorted((first, second)))
        self.compared[name] = GivenPair(name, prompt_id, *sorted((first, second)))

    def note_place(self, key: SourceKey, place: str) -> None:
        """Which input a source was read from."""
        if place not in self.places[key]:
            self.places[key].append(place)


@dataclass(frozen=True)
class Reading:
    """How files of labelled pairs are read."""

    from_: str | None = None
    columns: LabelColumns | None = None
    on_error: OnError = "skip"


def gather_inputs(inputs: Sequence[str], reading: Reading) -> Gathered:
    """Everything in runs, step folders and files, each a path or `NAME=PATH`. Raises ConfigError
    for one that cannot be read."""
    gathered = Gathered()
    for name, path in _name_inputs(inputs):
        files = [path / f"{kind}.jsonl" for kind in KINDS if path.is_dir()]
        if (path / MANIFEST).is_file():
            _add_run(gathered, name, path)
        elif is_votes(path):
            _add_votes(gathered, name, path)
        elif any(file.is_file() for file in files):
            for file in filter(Path.is_file, files):
                _add_records(gathered, name, file, file.stem)
        else:
            _add_file(gathered, name, path, reading)
    return gathered


def _name_inputs(inputs: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Each input's own name, or else the end of its path; of equal ends, the path."""
    named: list[tuple[str, Path]] = []
    for given in inputs:
        name, mark, rest = given.partition("=")
        own = bool(mark and name) and not Path(given).exists()
        path = find(rest if own else given)
        named.append((name if own else _end_of(path), path))
    ends = Counter(name for name, _ in named)
    for name, path in named:
        yield (name if ends[name] == 1 else str(path)), path


def _end_of(path: Path) -> str:
    name = path.resolve().name.removesuffix(".gz")
    return name if path.is_dir() else name.rsplit(".", 1)[0]


def _add_file(gathered: Gathered, name: str, path: Path, reading: Reading) -> None:
    told = reading.from_ is not None or reading.columns is not None
    head = None if told or path.is_dir() else next(file_rows(path, lambda fault: None), None)
    row = {} if head is None else head[1]
    kind = next((kind for kind, (own, _) in KINDS.items() if own <= row.keys()), None)
    format_ = None if kind or not row else _detect(row, path)
    if kind is not None:
        _add_records(gathered, name, path, kind)
    elif format_ in ALONE:
        _add_answers(gathered, name, path)
    elif format_ == VERSUS and baseline_beside(path) is None:
        _add_battles(gathered, name, path, reading)
    else:
        _add_pairs(gathered, name, path, reading)


def _detect(row: dict[str, Any], path: Path) -> str | None:
    try:
        return detect_format(row, path)
    except ConfigError:
        # Whoever reads the pairs says what is wrong.
        return None


def _add_pairs(gathered: Gathered, name: str, path: Path, reading: Reading) -> None:
    """The labels of a file of pairs: people's as one source of the input's name, a judge's by the
    judge's own. Pairs whose authors are named are battles too."""
    found = read_labelled(path, reading.from_, reading.columns, reading.on_error)
    alike: Counter[tuple[str, str, float]] = Counter()
    for pair in found:
        key = SourceKey(_annotator(name, pair), pair.annotator_kind)
        _add_texts(gathered, pair)
        if pair.authors is not None:
            gathered.battles[key].append(make_battle(pair))
            gathered.note_place(key, name)
        if pair.label is not None:
            gathered.add_judgement(given_label(pair, given_pair(pair), key.name, alike), name)
            gathered.loaded.add(key)
    gathered.skipped += found.skipped


def _annotator(name: str, pair: LabelledPair) -> str:
    return name if pair.annotator_kind == HUMAN else pair.annotator or name


def _add_texts(gathered: Gathered, pair: LabelledPair) -> None:
    tags = [pair.subset] if pair.subset else pair.prompt.tags
    prompt = structs.replace(pair.prompt, tags=tags, source=pair.source or pair.prompt.source)
    gathered.prompts.setdefault(prompt.prompt_id, prompt)
    for answer in (pair.first, pair.second):
        gathered.texts.setdefault(answer.completion_id, Text(prompt.prompt_id, answer.text))
    given = given_pair(pair)
    gathered.add_pair(prompt.prompt_id, given.first, given.second)


def _add_battles(gathered: Gathered, name: str, path: Path, reading: Reading) -> None:
    """AlpacaEval's preferences without the baseline's outputs: who won is known, and no pair."""
    battles, skipped = read_battles(path, reading.from_, reading.columns, reading.on_error)
    key = SourceKey(name, "ai")
    gathered.battles[key] += battles
    gathered.note_place(key, name)
    gathered.skipped += skipped


def _add_answers(gathered: Gathered, name: str, path: Path) -> None:
    """A model's answers, under the input's name."""
    given = read_given(path)
    gathered.prompts |= {p.prompt_id: p for p in given.prompts}
    for answer in given.completions:
        gathered.texts[answer.completion_id] = Text(answer.prompt_id, answer.text, name)


def _add_votes(gathered: Gathered, name: str, path: Path) -> None:
    """People's votes and the verdicts of the judges that their items came with."""
    items, judgements, left_out = read_vote_file(path, name)
    for item in items:
        prompt = make_prompt(item.prompt, tags=item.tags)
        gathered.prompts.setdefault(prompt.prompt_id, prompt)
        for own, side in zip(answer_ids(item, True), (item.a, item.b or []), strict=True):
            gathered.texts.setdefault(own, Text(prompt.prompt_id, message_text(side[-1])))
    for judgement in judgements:
        key = gathered.add_judgement(judgement, name)
        if key.kind != HUMAN:
            gathered.loaded.add(key)
    if left_out:
        gathered.skipped.append(
            f"{path}: {left_out} votes, on questions with a known answer or given with a judge's "
            "verdict in sight"
        )


def _add_records(gathered: Gathered, name: str, path: Path, kind: str) -> None:
    place = None
    for place, row in file_rows(path):
        if kind == "judgements":
            row = {key: value for key, value in row.items() if key not in EXPORTED}
        _add_record(gathered, name, record_of(KINDS[kind][1], row, place))
    if place is None:
        raise ConfigError(f"there are no {kind} in this file", path)


def _add_record(gathered: Gathered, name: str, record: Any) -> None:
    if isinstance(record, Judgement):
        if record.subject_kind == "completion":
            gathered.add_judgement(record, name)
    elif isinstance(record, Preference):
        _add_preference(gathered, SourceKey(name, "model"), name, record)
    elif isinstance(record, Completion):
        if record.finish_reason != "failed":
            text = Text(record.prompt_id, record.text, name)
            gathered.texts[record.completion_id] = text
    else:
        gathered.prompts[record.prompt_id] = record


def _add_preference(gathered: Gathered, key: SourceKey, place: str, row: Preference) -> None:
    """A chosen and a rejected answer, as a judgement by `key`."""
    if not row.paired:
        return
    prompt = make_prompt(row.prompt)
    gathered.prompts.setdefault(prompt.prompt_id, prompt)
    turns = (row.chosen, row.rejected)
    sides = [_add_side(gathered, prompt.prompt_id, row.prompt, side) for side in turns]
    call = "c_" + content_hash(key.name, row.preference_id)
    judgement = pair_judgement(
        call,
        prompt.prompt_id,
        sides,
        1.0,
        judge=key.name,
        annotator_id=key.name,
        annotator_kind=key.kind,
    )
    gathered.loaded.add(gathered.add_judgement(judgement, place))


def _add_side(
    gathered: Gathered, prompt_id: str, prompt: list[Message], side: list[Message]
) -> str:
    name = answer_id(prompt, side)
    gathered.texts.setdefault(name, Text(prompt_id, message_text(side[-1])))
    return name


def _add_run(gathered: Gathered, name: str, path: Path) -> None:
    """A run's judges, its loaded labels and the labels of its arms, and the run itself."""
    run = gathered.runs[name] = load_run(path)
    gathered.prompts |= dict(run.prompt_records().items())
    weights = run_weights(run)
    for step in run.manifest["steps"]:
        folder = run.store.step(step["hash"])
        if folder.done() is None:
            continue
        for answer in folder.records(Completion):
            gathered.texts[answer.completion_id] = Text(answer.prompt_id, answer.text)
        for judgement in folder.records(Judgement):
            if judgement.subject_kind == "completion":
                key = gathered.add_judgement(judgement, name)
                gathered.weights[key] = weights
                if step["kind"] == "load":
                    gathered.loaded.add(key)
        for arm in step["arms"] if step["kind"] == "label" else []:
            key = SourceKey(f"arm {arm}", "model")
            gathered.arms.add(key)
            for preference in folder.records(Preference):
                _add_preference(gathered, key, name, preference)
