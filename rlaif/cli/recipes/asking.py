"""The values of a recipe's template: from options, from questions in a terminal, or by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from rlaif.cli.recipes import RECIPES, Recipe
from rlaif.config.prompts import PromptsSpec
from rlaif.constitution.model import Constitution, load_constitution
from rlaif.core.errors import ConfigError
from rlaif.core.resources import find, shipped_root
from rlaif.core.yamlio import suggest
from rlaif.data.readers import read_labelled
from rlaif.data.rows import ENDINGS
from rlaif.data.sources import PromptSet, load_prompts, split_prompts

SEEDS_FILE = "prompts/seeds/everyday.jsonl"
FULL_MODELS = ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct")
"""The policy of the full size in place of an embedded one: the first that is not the judge."""
HOLDOUTS = (64, 32, 16, 8, 4, 2, 1)
"""How many prompts may be held out; at least as many are left to train on."""
HELD_OUT = 512
"""How many of labelled pairs' prompts are, in the full size, where there are enough."""
SAMPLED = 40
"""Training prompts per round of the small size."""
COUNT = 10_000
"""Rows of a dataset that is not here, until the file says the true number."""


class Asking:
    """Where answers come from: options, else questions in a terminal, else defaults. `notes` has
    what the user should know of them."""

    def __init__(self, file: Path, given: Mapping[str, Any], interactive: bool) -> None:
        self.file = file
        self.given = given
        self.interactive = interactive
        self.notes: list[str] = []

    def answer(
        self, name: str, question: str, default: str | None, read: Callable[[str], Any] = str
    ) -> Any:
        """The answer as `read` reads it, which raises ConfigError for one that cannot be. Without
        a default there must be one."""
        option = f"--{name.replace('_', '-')}"
        given = self.given[name]
        if given is None and self.interactive:
            return click.prompt(question, default=default, value_proc=_asked_again(read))
        text = default if given is None else str(given)
        if text is None:
            raise ConfigError(f"{option} is needed: {question}")
        try:
            return read(_check_text(text))
        except ConfigError as error:
            raise ConfigError(f"{option}: {error}") from None

    def find(self, name: str) -> Path | None:
        """The file of that name, where a run will look for it; None, and a note, where it is not
        there yet."""
        try:
            return find(name, self.file)
        except ConfigError:
            self.notes.append(f"{name} is not there yet")
            return None


def _asked_again(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read`, with its errors as those after which a question is repeated."""

    def read_answer(text: str) -> Any:
        try:
            return read(_check_text(text))
        except ConfigError as error:
            raise click.UsageError(str(error)) from None

    return read_answer


def _check_text(text: str) -> str:
    if not text.strip():
        raise ConfigError("an empty text is no answer")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{text!a} is no valid UTF-8") from None
    return text


def read_recipe(text: str) -> Recipe:
    """The recipe of that name. Raises ConfigError."""
    if text not in RECIPES:
        listed = "".join(f"\n  {name:<16}{recipe.summary}" for name, recipe in RECIPES.items())
        raise ConfigError(f"{text!r} is no recipe{suggest(text, [*RECIPES])}:{listed}")
    return RECIPES[text]


def find_values(asking: Asking, recipe: Recipe) -> dict[str, Any]:
    """The values of the recipe's template. Raises ConfigError."""
    always = ("recipe", "name", "model", "constitution", *recipe.takes)
    for name, given in asking.given.items():
        if given is not None and name not in always:
            raise ConfigError(f"--{name.replace('_', '-')}: this recipe has no use for it")
    policy = "Policy: builtin/NAME, a folder or a hub id"
    values = {
        "name": asking.answer("name", "Name", asking.file.stem or "experiment"),
        "model": asking.answer("model", policy, "builtin/smollm2-135m-instruct"),
    }
    constitutions = _ask_constitutions(asking, recipe)
    values |= {key: name for key, (name, _) in constitutions.items()}
    values |= _ask_judge(asking, recipe, [found for _, found in constitutions.values()])
    if values["labeller"] == values["model"]:
        raise ConfigError("--judge: that is the policy itself: say `--judge self`")
    if values["model"].startswith("builtin/"):
        values["full_model"] = next(m for m in FULL_MODELS if m != values["labeller"])
    else:
        values["full_model"] = None
    values |= _ask_data(asking, recipe)
    if "rounds" in recipe.takes:
        values["rounds"] = asking.answer("rounds", "Rounds", "2", _read_rounds)
    seeds = "seeds" in recipe.takes
    values["seeds"] = asking.answer("seeds", "Seeds", "1", _read_seeds) if seeds else [1]
    return values


def _ask_constitutions(
    asking: Asking, recipe: Recipe
) -> dict[str, tuple[str, Constitution | None]]:
    """The name of each constitution, and what is in it if it is there."""

    def read(text: str) -> tuple[str, Constitution | None]:
        name = _constitution_file(text)
        path = asking.find(name)
        found = None if path is None else load_constitution(path)
        if "judge" not in recipe.takes and found is not None and not _has_texts(found):
            raise ConfigError(f"{name} has no principle with a text for the policy to judge by")
        return name, found

    shipped = ", ".join(_shipped_constitutions())
    question = f"Constitution: a file, or one of {shipped}"
    first = asking.answer("constitution", question, "concise_helper", read)
    if "against" not in recipe.takes:
        return {"constitution": first}
    # Where programs can judge by the first, they can by this one; a model is asked about texts.
    checked = first[1] is None or _has_checks(first[1])
    programs = checked and asking.given["judge"] in (None, "rules")
    other = "brevity_only" if programs else "honest"

    def read_other(text: str) -> tuple[str, Constitution | None]:
        found = read(text)
        if found[0] == first[0]:
            raise ConfigError("both constitutions are the same one")
        return found

    question = "Constitution B, of the other arm"
    return {"constitution": first, "against": asking.answer("against", question, other, read_other)}


def _shipped_constitutions() -> list[str]:
    return sorted(path.stem for path in (shipped_root() / "constitutions").glob("*.yaml"))


def _constitution_file(text: str) -> str:
    """The file of a shipped constitution's name; any other path as it is. Raises ConfigError for a
    bare name that none has."""
    shipped = _shipped_constitutions()
    name = text.replace("-", "_")
    if name in shipped:
        return f"constitutions/{name}.yaml"
    if not Path(text).suffix and len(Path(text).parts) == 1 and not Path(text).exists():
        known = ", ".join(shipped)
        raise ConfigError(f"{text!r} is no file and none of {known}{suggest(name, shipped)}")
    return text


def _has_checks(constitution: Constitution) -> bool:
    return any(principle.check is not None for principle in constitution.principles)


def _has_texts(constitution: Constitution) -> bool:
    return any(p.text and p.check is None for p in constitution.principles)


def _ask_judge(
    asking: Asking, recipe: Recipe, constitutions: Sequence[Constitution | None]
) -> dict[str, Any]:
    """The judge: its kind and id, the model that it asks, and whether programs can judge too."""
    known = [found for found in constitutions if found is not None]
    unchecked = [found.name for found in known if not _has_checks(found)]
    textless = [found.name for found in known if not _has_texts(found)]
    # A constitution that is not there yet may have checks; only a judge that was asked for says so.
    has_checks = len(known) == len(constitutions) and not unchecked
    found: dict[str, Any] = {"has_checks": has_checks, "labeller": None, "served": None}

    def read(text: str) -> dict[str, Any]:
        if text == "rules" and unchecked:
            raise ConfigError(
                f"rules runs the checks of a constitution, and {unchecked[0]!r} has none: take "
                "self or a model, or another constitution, such as concise_helper"
            )
        if text == "self" and textless and recipe.by_principles:
            raise ConfigError(
                f"the policy is asked about principles with a text and no check, and "
                f"{textless[0]!r} has none: take rules or a model, or another constitution"
            )
        if text in ("rules", "self"):
            return {"judge": text, "judge_id": "checks" if text == "rules" else "self"}
        server = text.startswith(("http://", "https://"))
        kind = "server" if server else "model"
        return {"judge": kind, "judge_id": "rated", "labeller": text}

    if "judge" not in recipe.takes:
        return found | read("self")
    question = "Judge: rules, self (the policy), a model, or a server's address"
    found |= asking.answer("judge", question, "self" if unchecked else "rules", read)
    if found["judge"] == "server":
        found["served"] = asking.answer("judge_model", "The server's name for the model", None)
    elif asking.given["judge_model"] is not None:
        raise ConfigError("--judge-model: only for a server, which --judge names by its address")
    return found


def _ask_data(asking: Asking, recipe: Recipe) -> dict[str, Any]:
    """The files and datasets, and how many prompts of them are held out and sampled."""
    values: dict[str, Any] = {}
    if "demonstrations" in recipe.takes:
        question = "Demonstrations to learn from first: a file of prompts and completions, or none"

        def read_file(text: str) -> str | None:
            if text != "none":
                asking.find(text)
            return None if text == "none" else text

        values["demonstrations"] = asking.answer("demonstrations", question, "none", read_file)
    if "data" in recipe.takes:

        def read_pairs(text: str) -> dict[str, Any]:
            path = asking.find(text)
            prompts = None if path is None else [p.prompt for p in read_labelled(path, None, None)]
            split = None if prompts is None else lambda spec: split_prompts(spec, prompts, text)
            return {"data": text, "prompts": {"shipped": False, **_find_sizes(split)}}

        question = "Pairs of answers that people labelled: a file"
        values |= asking.answer("data", question, "pairs.jsonl", read_pairs)
        return values
    question = "Prompts: a file or a dataset"
    read = partial(_read_prompts, asking)
    return values | {"prompts": asking.answer("prompts", question, SEEDS_FILE, read)}


def _read_prompts(asking: Asking, text: str) -> dict[str, Any]:
    """The source of prompts: shipped ones by their name, a file, or a dataset."""
    seeds = [path.stem for path in (shipped_root() / "prompts/seeds").glob("*.jsonl")]
    name = f"prompts/seeds/{text}.jsonl" if text in seeds else text
    is_file = name.endswith(ENDINGS) or Path(name).is_file()
    here = asking.find(name) if is_file else Path(name) if Path(name).is_dir() else None
    given = {"path": name} if is_file else {"dataset": name}
    split = None if here is None else lambda spec: load_prompts(spec, asking.file)
    return {
        "name": name,
        "dataset": not is_file,
        "shipped": name in [f"prompts/seeds/{stem}.jsonl" for stem in seeds],
        **_find_sizes(split, given),
    }


def _find_sizes(
    split: Callable[[PromptsSpec], PromptSet] | None, source: Mapping[str, str] | None = None
) -> dict[str, int]:
    """How many prompts there are (`count`), are for training, are sampled in the small size, and
    are held out, also in the full size. `split` reads and splits prompts that are here. Raises
    ConfigError where there are too few."""
    if split is None:
        here = {"count": COUNT, "training": COUNT, "sampled": SAMPLED}
        return {**here, "holdout": HOLDOUTS[0], "holdout_full": HELD_OUT}
    for holdout in HOLDOUTS:
        try:
            found = split(PromptsSpec(**(source or {}), holdout=holdout))
        except ConfigError:
            if holdout == HOLDOUTS[-1]:
                raise
            continue
        training = len(found.train)
        if training >= holdout:
            break
    count = training + holdout
    return {
        "count": count,
        "training": training,
        "sampled": min(SAMPLED, training),
        "holdout": holdout,
        "holdout_full": max(holdout, min(HELD_OUT, count // 8)),
    }


def _read_rounds(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise ConfigError(f"{text!r} is no whole number from 1")
    return int(text)


def _read_seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 20 and int(part) < 2**63 for part in parts):
        raise ConfigError(f"{text!r}: expected whole numbers such as 1,2,3")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{text!r}: each seed once")
    return seeds
