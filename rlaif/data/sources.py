"""Where prompts come from: a data file or any `datasets` dataset, by a column map.

`drawn` draws the principle that a completion is written under (UltraFeedback, 2310.01377,
section 2.2), with shares that depend on where its prompt is from.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from rlaif.config.prompts import Columns, PromptsSpec
from rlaif.config.steps import LoadStep, SamplePrinciples
from rlaif.core.errors import ConfigError
from rlaif.core.ids import IdSet
from rlaif.core.records import Message, Prompt, content_hash, make_prompt
from rlaif.core.resources import find
from rlaif.data.prompt_table import PromptTable
from rlaif.data.rows import HubData, Placed, Source, dataset_rows, file_rows
from rlaif.data.turns import conversation
from rlaif.environments.play import make_starts

HELDOUT_SPLITS = frozenset({"heldout", "held_out", "holdout", "test", "eval", "validation"})


@dataclass(frozen=True)
class PromptSet:
    """Training, held-out and validation prompts, disjoint by content, and how many duplicates were
    dropped."""

    train: Sequence[Prompt]
    heldout: list[Prompt]
    duplicates: int
    validation: list[Prompt] = field(default_factory=list)

    def every(self) -> Iterator[Prompt]:
        """Those to train on, those held out, and those for choosing among models."""
        return chain(self.train, self.heldout, self.validation)

    def by_id(self) -> list[Mapping[str, Prompt]]:
        """`every` by id, in parts."""
        lists = [self.heldout, self.validation]
        first: list[Mapping[str, Prompt]] = []
        if isinstance(self.train, PromptTable):
            first = [self.train.by_id()]
        else:
            lists = [list(self.train), *lists]
        return [*first, *({p.prompt_id: p for p in part} for part in lists if part)]


def split_apart(
    sets: Mapping[str, PromptSet],
) -> tuple[dict[str, PromptSet], list[tuple[str, int]]]:
    """The sets without training prompts that are held out or for validation in any of them, and how
    many each lost. Raises ConfigError where a set is left with nothing to train on."""
    kept_apart = {p.prompt_id for one in sets.values() for p in [*one.heldout, *one.validation]}
    found: dict[str, PromptSet] = {}
    taken: list[tuple[str, int]] = []
    for name, one in sets.items():
        lost = sum(p.prompt_id in kept_apart for p in one.train)
        if lost and lost == len(one.train):
            raise ConfigError(
                f"set of prompts {name!r}: all {len(one.train)} training prompts are held out in "
                "other sets; give it prompts of its own"
            )
        if lost:
            taken.append((name, lost))
            one = replace(
                one, train=PromptTable(p for p in one.train if p.prompt_id not in kept_apart)
            )
        found[name] = one
    return found, taken


def load_prompts(spec: PromptsSpec, beside: Path | None = None) -> PromptSet:
    """The prompts of an experiment, split once and for all.

    A `split` column decides where it is given; otherwise the `holdout` prompts of smallest id are
    held out, which no seed and no order of rows changes. Raises ConfigError, and RlaifError where
    an environment fails.
    """
    if spec.environment is not None:
        starts = make_starts(spec.environment, spec.episodes or 0)
        return split_prompts(spec, starts, f"environment {starts[0].source}")
    name, rows = _read_prompt_rows(spec, beside)
    prompts = PromptTable()
    duplicates = 0
    for place, row in rows:
        prompt = _make_row_prompt(row, spec.columns, place, name)
        split = str(row.get(spec.columns.split or "split") or "")
        duplicates += not prompts.add(prompt, split in HELDOUT_SPLITS)
    if not prompts:
        raise ConfigError(f"{name}: no prompts in it; at least {spec.holdout + 1} are needed")
    return _split_prompts(spec, prompts, duplicates, name)


def provisional_prompts(spec: PromptsSpec, name: str, count: int) -> PromptSet:
    """`count` made-up prompts in place of those of `name`, with a reference answer where a column
    of these is named, split as `load_prompts` does."""
    answer = None if spec.columns.reference is None else "An answer."
    made = _make_up_prompts(name, count, answer)
    # A bound on words is for the rows themselves.
    every = spec.model_copy(update={"max_words": None})
    return split_prompts(every, made, f"{name} (count: {count})")


# Arms and plans ask again, and an id is a hash.
@lru_cache(maxsize=4)
def _make_up_prompts(name: str, count: int, answer: str | None) -> tuple[Prompt, ...]:
    texts = (f"Row {number} of {name}" for number in range(count))
    return tuple(make_prompt([{"role": "user", "content": t}], "", [], answer) for t in texts)


def loaded_source(step: LoadStep, name: str | None, beside: Path | None) -> Source:
    """What a load step reads: its dataset, or the file called `name`. Raises ConfigError where that
    is not there."""
    if step.dataset is not None:
        return HubData(step.dataset, step.dataset_split, step.dataset_config)
    return find(name or "", beside)


def split_prompts(spec: PromptsSpec, given: Iterable[Prompt], name: str) -> PromptSet:
    """Prompts that came with something else, such as labelled pairs, split as `load_prompts` does.
    Several pairs may share a prompt, so these are no duplicates. Raises ConfigError."""
    return _split_prompts(spec, PromptTable(given), 0, name)


def every_prompt(path: Path) -> list[Prompt]:
    """The different prompts of a JSONL or Parquet file, by id. Raises ConfigError."""
    return all_prompts(PromptsSpec(path=str(path)), None)


def all_prompts(spec: PromptsSpec, beside: Path | None) -> list[Prompt]:
    """The different prompts of a file or dataset, by id, none held out. Raises ConfigError."""
    if spec.environment is not None:
        starts = make_starts(spec.environment, spec.episodes or 0)
        return sorted(starts, key=lambda start: start.prompt_id)
    name, rows = _read_prompt_rows(spec, beside)
    found = (_make_row_prompt(row, spec.columns, place, name) for place, row in rows)
    prompts = {prompt.prompt_id: prompt for prompt in found}
    if not prompts:
        raise ConfigError("no prompts in it", name)
    return [prompts[name] for name in sorted(prompts)]


def _split_prompts(
    spec: PromptsSpec, prompts: PromptTable, duplicates: int, name: str
) -> PromptSet:
    """`prompts` split, of which the marked ones are declared to be held out; what is left of the
    table are the training prompts."""
    if spec.max_words is not None:
        prompts.remove(IdSet(p.prompt_id for p in prompts if not _fits_prompt(p, spec.max_words)))
    total = len(prompts)
    declared = prompts.has_marked()
    heldout = prompts.take_smallest(spec.holdout, marked=declared)
    if len(heldout) < spec.holdout:
        said = " marked held out" if declared else ""
        raise ConfigError(
            f"{name}: `holdout: {spec.holdout}`, and there are only {len(heldout)} prompts{said}"
        )
    prompts.remove_marked()
    rest = len(prompts)
    validation = prompts.take_smallest(spec.validation)
    if len(validation) < spec.validation:
        raise ConfigError(
            f"{name}: `validation: {spec.validation}`, and there are only {rest} prompts that "
            "are not held out"
        )
    if not prompts:
        raise ConfigError(
            f"{name}: {total} different prompts, of which {spec.holdout + spec.validation} "
            "are held out: none is left to train on. Add prompts or lower `prompts.holdout`."
        )
    if spec.limit is not None:
        prompts.keep_first(spec.limit)
    return PromptSet(prompts, heldout, duplicates, validation)


def _fits_prompt(prompt: Prompt, max_words: int) -> bool:
    return sum(len(turn["content"].split()) for turn in prompt.messages) <= max_words


def _read_prompt_rows(spec: PromptsSpec, beside: Path | None) -> tuple[str, Placed]:
    if spec.dataset is not None:
        return spec.dataset, dataset_rows(spec.dataset, spec.dataset_split)
    assert spec.path is not None
    path = find(spec.path, beside)
    return str(path), file_rows(path)


def _make_row_prompt(row: dict[str, Any], columns: Columns, place: str, name: str) -> Prompt:
    if columns.messages or (columns.prompt is None and row.get("messages") is not None):
        messages = _read_messages(row.get(columns.messages or "messages"), place)
    else:
        column = columns.prompt or next((c for c in ("prompt", "instruction") if c in row), None)
        value = row.get(column) if column else None
        if isinstance(value, list):
            messages = _read_messages(value, place)
        elif isinstance(value, str) and value.strip():
            messages = [{"role": "user", "content": value}]
        else:
            raise ConfigError(
                f"{place}: no prompt found; the row has {sorted(row)}. Name the column with "
                "`prompts.columns.prompt` or `prompts.columns.messages`."
            )
    tags = row.get(columns.tags or "tags") or []
    tags = [tags] if isinstance(tags, str) else tags
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ConfigError(f"{place}: `tags` must be a list of texts")
    reference = row.get(columns.reference or "reference")
    if not isinstance(reference, str | None):
        raise ConfigError(f"{place}: `reference` must be a text")
    group = row.get(columns.group or "group") if columns.group or "prompt_id" in row else None
    if not isinstance(group, str | None):
        raise ConfigError(f"{place}: `group` must be a text")
    source = str(row.get("source") or name.rsplit("/", 1)[-1])
    # A row of a run's prompts, which may be the start of an episode.
    environment = row.get("environment") if "prompt_id" in row else None
    return make_prompt(messages, source, tags, reference, group, environment)


def _read_messages(value: Any, place: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{place}: `messages` must be a list of {{role, content}} turns")
    messages = conversation(value, "user", "messages", place)
    if messages[-1]["role"] not in ("user", "tool") or not messages[-1]["content"].strip():
        raise ConfigError(f"{place}: the last turn must be a user turn with text in it")
    return messages


@dataclass(frozen=True, slots=True)
class Instruction:
    """A principle's name and one of its texts."""

    principle: str
    text: str


def drawn(wanted: SamplePrinciples, prompt: Prompt, *seed: object) -> Instruction:
    """The principle and its text for one completion. The shares are those of the prompt's source,
    or of its first tag that has some, or the default ones."""
    names = [prompt.source, *prompt.tags]
    shares = next((wanted.shares[n] for n in names if n in wanted.shares), wanted.default_shares)
    rng = random.Random(content_hash("principle", *map(str, seed), prompt.prompt_id))
    ordered = sorted(shares)
    (name,) = rng.choices(ordered, [shares[key] for key in ordered])
    return Instruction(name, rng.choice(wanted.texts[name]))


def with_system(messages: list[Message], text: str) -> list[Message]:
    """The messages with `text` as their system turn, after what that turn says already."""
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    whole = f"{messages[0]['content']}\n\n{text}"
    return [{"role": "system", "content": whole}, *messages[1:]]


def chosen_members(count: int, wanted: int, prompt_id: str, *seed: object) -> list[int]:
    """Which `wanted` of `count` members of a pool answer a prompt, in their order."""
    rng = random.Random(content_hash("pool", *map(str, seed), prompt_id))
    return sorted(rng.sample(range(count), wanted))
