"""From a finished run to a dataset: its preferences in several formats, with a card."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from rlaif.config.dataset import DatasetSpec
from rlaif.core.errors import ConfigError, StoreError
from rlaif.core.ids import IdSet, from_blob, open_scratch, to_blob
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import (
    Completion,
    Judgement,
    Preference,
    R,
    content_hash,
    from_json,
    make_prompt,
)
from rlaif.core.rowindex import Index
from rlaif.core.store import explain_os_errors, partial_of, read_json, write_atomic
from rlaif.data.card import Facts, sampled_by, write_card
from rlaif.data.dataset import TEST, TRAIN, PairTables, held_prompts, labelled_pair, raw_row
from rlaif.data.dataset import write_tables as write_parquet
from rlaif.data.describe import Describer, Description
from rlaif.data.rows import Spool
from rlaif.pipeline import provenance as told
from rlaif.pipeline.choice import WHOLE, Choice, describe_origin, find_unsaid, preference_steps
from rlaif.pipeline.manifest import NOT_INSTALLED
from rlaif.pipeline.runs import Run, load_run
from rlaif.pipeline.steps.context import ByPrompt
from rlaif.pipeline.steps.pair import why_no_pairs
from rlaif.preferences.aggregate import compared_scores

MARKER = "rlaif.json"
"""A file that says that the folder was written here and may be written anew."""

Step = Mapping[str, Any]


@dataclass(frozen=True)
class Built:
    """What was written: rows by format and split, and how many pairs a format could not hold."""

    folder: Path
    rows: dict[str, dict[str, int]]
    lost: dict[str, int]


def build_chosen(root: Path, choice: Choice = WHOLE) -> Built:
    """Write the chosen dataset of a finished run into its folder, as its `dataset` section says, or
    with the defaults where it has none. Raises as `build_dataset` does."""
    run = load_run(root)
    spec = run.experiment().dataset or DatasetSpec()
    if choice.step is not None:
        spec = spec.model_copy(update={"uses": choice.step})
    return build_dataset(run, spec, root / choice.folder, choice)


def build_dataset(run: Run, spec: DatasetSpec, folder: Path, choice: Choice = WHOLE) -> Built:
    """Write the dataset of a run to `folder`, which is replaced when it was written by this.

    Raises ConfigError where the run has no finished preferences or they are of several policies and
    `choice` does not say which, StoreError where the folder holds something else.
    """
    _check_folder(folder)
    unsaid = find_unsaid(run, spec, choice)
    if unsaid is not None:
        raise ConfigError(unsaid, run.root)
    used = preference_steps(run, spec, choice)
    given = _Given(run, _find_upstream(run, used), used, choice)
    if not given.count:
        steps = ", ".join(sorted({step["id"] for step in used}))
        why = why_no_pairs(run.store, [step["hash"] for step in used])
        raise ConfigError(
            f"{run.root}: {steps} made no pair, so there is no dataset to write{why}. Lower "
            "`min_margin` in `pair`, sample more answers per prompt, or look at the judges' scores"
        )
    key = run.records_key()
    if choice != WHOLE:
        key = content_hash(key, choice.arm, choice.seed, spec.model_dump(mode="json"))
    known = _already_there(folder, key)
    if known is not None:
        return known
    held = held_prompts(given.prompt_ids(), spec.test)
    with _folder_for(folder) as partial, PairTables(partial, spec.formats) as tables:
        seen = _Seen(given.run)
        for preference, pair, answers in given:
            is_held = pair.prompt.prompt_id in held
            tables.add(pair, is_held)
            seen.add(preference, pair, answers, TEST if is_held else TRAIN)
        if "ultrafeedback" in spec.formats:
            _add_raw(tables.tables["ultrafeedback"], given, held, spec.overall)
        facts = _collect_facts(given, spec, seen, tables.lost)
        configs = write_parquet(partial, tables.tables, folder.name)
        rows = {
            name: {split: spool.count for split, spool in splits.items()}
            for name, splits in tables.tables.items()
        }
        built = Built(folder, rows, tables.lost)
        write_atomic(partial / "README.md", write_card(spec, replace(facts, configs=configs)))
        write_atomic(partial / MARKER, json.dumps(_make_marker(partial, key, facts.version, built)))
    return built


class _Given:
    """What a dataset is made from, read as it is asked for: the records of the steps `used` and of
    those `above`, which went into them. `count` is the number of paired preferences by id, of which
    a scratch database has the number of the last step that has it, and its prompt."""

    def __init__(
        self, run: Run, above: Sequence[Step], used: Sequence[Step], choice: Choice = WHOLE
    ):
        self.run = run
        self.above = above
        self.used = used
        self.choice = choice
        self.prompts = run.prompt_records()
        self.judging = _find_judging(run, above, used, choice)
        self.answers = _by_prompt(run, above, Completion)
        self._indexes: list[Index] = []
        self._db = open_scratch(
            self,
            "CREATE TABLE pairs (id BLOB PRIMARY KEY, step INTEGER, prompt BLOB) WITHOUT ROWID",
        )
        for number, step in enumerate(used):
            folder = run.store.step(step["hash"])
            self._indexes.append(folder.index("preferences", "preference_id"))
            self._indexes[-1].grow()
            # A record that was brought in may go by an id of its own, so its prompt is hashed.
            rows = (
                (to_blob(p.preference_id), number, to_blob(make_prompt(p.prompt).prompt_id))
                for p in folder.records(Preference)
                if p.paired
            )
            self._db.executemany("INSERT OR REPLACE INTO pairs VALUES (?, ?, ?)", rows)
        (self.count,) = self._db.execute("SELECT COUNT(*) FROM pairs").fetchone()

    def prompt_ids(self) -> Iterator[str]:
        """The prompts of the pairs, with repeats."""
        for (blob,) in self._db.execute("SELECT prompt FROM pairs"):
            yield from_blob(blob)

    def __iter__(self) -> Iterator[tuple[Preference, LabelledPair, dict[str, Completion]]]:
        """Each preference once, in the order of ids, as a labelled pair, and with the sampled
        answers to its prompt by id."""
        for name, number, prompt_id in self._db.execute("SELECT * FROM pairs ORDER BY id"):
            preference = self._indexes[number].records(from_blob(name), Preference)[-1]
            answers = {c.completion_id: c for c in self.answers.of(preference.prompt_id)}
            authors = {n: c.model for n, c in answers.items()}
            prompt = self.prompts.get(from_blob(prompt_id))
            source = prompt.source if prompt else None
            yield preference, labelled_pair(preference, authors, source), answers

    def records(self, steps: Sequence[Step], kind: type[R]) -> Iterator[R]:
        """The records of a kind of some steps, one held at a time."""
        for step in steps:
            yield from self.run.store.step(step["hash"]).records(kind)


class _Seen:
    """What the card says of the pairs, gathered as they go by."""

    def __init__(self, run: Run):
        self._describer = Describer()
        self._first: LabelledPair | None = None
        self._training: LabelledPair | None = None
        self.human = _read_human_judgements(run)
        self.decided = self.agreed = 0
        self.endings: Counter[str] = Counter()
        self.pairs: Counter[str] = Counter()
        self.prompts = {TRAIN: IdSet(), TEST: IdSet()}

    def add(
        self,
        preference: Preference,
        pair: LabelledPair,
        answers: Mapping[str, Completion],
        split: str,
    ) -> None:
        """One more pair of a split, with the answers to its prompt by id."""
        self.pairs[split] += 1
        self.prompts[split].add(pair.prompt.prompt_id)
        self._describer.add(pair)
        self._first = self._first or pair
        if split == TRAIN:
            self._training = self._training or pair
        for side in (preference.chosen_id, preference.rejected_id):
            if side in answers:
                self.endings[answers[side].finish_reason] += 1
        people = self.human.get(preference.prompt_id)
        if people is not None:
            scores = compared_scores(people, None, True)
            chosen = scores.get(preference.chosen_id)
            rejected = scores.get(preference.rejected_id)
            if chosen is not None and rejected is not None and chosen != rejected:
                self.decided += 1
                self.agreed += chosen > rejected

    def found(self) -> Description:
        """The figures of the pairs."""
        return self._describer.found()

    @property
    def example(self) -> LabelledPair:
        """The first pair of the training split, or of all where it has none."""
        pair = self._training or self._first
        assert pair is not None
        return pair

    def by_split(self) -> dict[str, int]:
        """The number of pairs in each split that has any."""
        return {split: self.pairs[split] for split in (TRAIN, TEST) if self.pairs[split]}


def _collect_facts(given: _Given, spec: DatasetSpec, seen: _Seen, lost: Mapping[str, int]) -> Facts:
    run, above, found = given.run, given.above, seen.found()
    authors = Counter((c.model, c.weights_hash) for c in _list_completions(given))
    return Facts(
        title=spec.title or str(run.manifest["name"]),
        configs=(),
        pairs=seen.by_split(),
        prompts={split: len(seen.prompts[split]) for split in seen.by_split()},
        models=told.models(authors),
        judges=told.judges(run, above),
        generators=[line for step in told.sampling(run, above) for line in sampled_by(step)],
        pairing=told.pairing(run, above),
        example=told.example(seen.example),
        constitution=told.constitution(run, given.choice.arm, given.judging),
        origin=describe_origin(run, given.used, given.choice),
        funnel=[*told.funnel(run, above), told.last_row(seen.by_split())],
        spread=told.figures(found),
        limits=told.limits(found, given.records(given.judging, Judgement), seen.endings),
        lost=lost,
        agreement=_describe_agreement(seen),
        version=str(run.manifest["versions"]["rlaif"]).replace(NOT_INSTALLED, ""),
    )


def _list_completions(given: _Given) -> Iterator[Completion]:
    """The answers that went in, each once: what a filter keeps stands in two steps."""
    seen = IdSet()
    for completion in given.records(given.above, Completion):
        if seen.is_new(completion.completion_id):
            yield completion


def _make_marker(partial: Path, key: str, version: str, built: Built) -> dict[str, Any]:
    """What a folder says of itself: what it was made from, and the files that are in it."""
    files = sorted(p for p in partial.rglob("*") if p.is_file())
    sizes = {str(p.relative_to(partial)): p.stat().st_size for p in files}
    return {"rlaif": version, "run": key, "files": sizes, "rows": built.rows, "lost": built.lost}


def _already_there(folder: Path, key: str) -> Built | None:
    """The dataset in the folder, where it is that of just this run and none of its files has gone
    or changed its size."""
    marker = read_json(folder / MARKER) if (folder / MARKER).exists() else None
    if not isinstance(marker, dict) or marker.get("run") != key:
        return None
    sizes = {
        name: (folder / name).stat().st_size if (folder / name).is_file() else None
        for name in marker["files"]
    }
    return Built(folder, marker["rows"], marker["lost"]) if sizes == marker["files"] else None


def _check_folder(folder: Path) -> None:
    if folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
        raise StoreError(
            f"{folder} is not empty and was not written by rlaif. Choose another folder, or delete "
            f"the folder {folder} to have it written anew."
        )


@contextmanager
def _folder_for(folder: Path) -> Iterator[Path]:
    """A folder to write in, which then takes the place of `folder`: a kill leaves the old one, or a
    hidden half."""
    partial = partial_of(folder)
    with explain_os_errors(folder):
        try:
            partial.mkdir(parents=True)
            yield partial
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _find_upstream(run: Run, used: Sequence[Step]) -> list[Step]:
    """The steps whose output went into these, themselves included, in the plan's order."""
    by_hash = {step["hash"]: step for step in run.manifest["steps"]}
    wanted: set[str] = set()
    left = [step["hash"] for step in used]
    while left:
        name = left.pop()
        if name in by_hash and name not in wanted:
            wanted.add(name)
            left += by_hash[name]["inputs"].values()
    return [step for step in by_hash.values() if step["hash"] in wanted]


def _by_prompt(run: Run, steps: Sequence[Step], kind: type[R]) -> ByPrompt[R]:
    return ByPrompt([run.store.step(step["hash"]) for step in steps], kind)


def _find_judging(
    run: Run, above: Sequence[Step], used: Sequence[Step], choice: Choice
) -> list[Step]:
    """The steps in which judges saw these steps' completions: of the chosen arm, or of every arm
    that has the preferences `used`."""
    known = {step["hash"] for step in above}
    shared = set.intersection(*(set(step["arms"]) for step in used))
    arms = shared if choice.arm is None else {choice.arm}
    return [
        step
        for step in run.manifest["steps"]
        if step["kind"] == "judge"
        and known & set(step["inputs"].values())
        and arms <= set(step["arms"])
    ]


def _add_raw(
    splits: Mapping[str, Spool], given: _Given, held: Container[str], overall: str | None
) -> None:
    answers = given.answers
    said = _by_prompt(given.run, given.judging, Judgement)
    for name in answers.prompts():
        prompt = given.prompts.get(name)
        if prompt is None:
            continue
        # What a filter keeps stands in two steps.
        made = {c.completion_id: c for c in answers.of(name)}
        row = raw_row(prompt, [made[c] for c in sorted(made)], said.of(name), overall)
        if row is not None:
            splits[TEST if name in held else TRAIN].add(row)


class _ByWhom(msgspec.Struct):
    """Who gave a judgement."""

    annotator_kind: str


def _read_human_judgements(run: Run) -> dict[str, list[Judgement]]:
    """What people said, by prompt. Several people's records are one opinion here, whatever step
    loaded them."""
    found: dict[str, list[Judgement]] = {}
    for step in run.manifest["steps"]:
        folder = run.store.step(step["hash"])
        for row in folder.rows_where("judgements", _ByWhom, lambda r: r.annotator_kind == "human"):
            judgement = from_json(Judgement, row | {"judge": "people"})
            found.setdefault(judgement.prompt_id, []).append(judgement)
    return found


def _describe_agreement(seen: _Seen) -> list[str]:
    """How often people who judged both answers of a pair prefer the chosen one."""
    if not seen.decided:
        return []
    return [
        f"People prefer the chosen answer in {seen.agreed} of the {seen.decided} pairs that they "
        "decided."
    ]
