"""The prompts of a set that an experiment generates, kept in its run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlaif.config.prompts import FileSource, MagpieSource, PromptMix, WrittenSource
from rlaif.core.errors import ConfigError
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Prompt
from rlaif.core.store import Store, make_folder
from rlaif.engines.base import Model
from rlaif.engines.build import EnginePool, Loader
from rlaif.engines.remote.meter import run_account
from rlaif.pipeline.prompt_generation.run import Unwritten, mix_prompts, read_source, write_mix
from rlaif.pipeline.steps.context import Progress

FOLDER = "generated"
"""The folder of a run folder that has a folder for each generated set."""


def generate_set(
    name: str,
    mix: PromptMix,
    path: Path,
    models: Mapping[str, Model],
    out: Path,
    budget: float | None,
    progress: Progress,
    load: Loader | None = None,
) -> list[Prompt]:
    """The prompts of set `name` of a run in `out`. What models wrote in an earlier process is not
    asked for again; what servers are asked counts against the run's budget. `load` has another
    machine load the models. Raises RlaifError."""
    store = Store(out / FOLDER / name)
    make_folder(store.root)
    pool = EnginePool(store, account=run_account(out, budget), load=load)
    try:
        with pool.account.meters.kept_in(store.root):
            chosen, report = mix_prompts(mix, path, models, pool, store, progress)
    finally:
        pool.close()
    write_mix(store.root, chosen, report)
    return chosen


def read_set(
    name: str, mix: PromptMix, path: Path, models: Mapping[str, Model], out: Path
) -> list[Prompt] | None:
    """The prompts of a set that a run in `out` has generated; None where something is missing.
    Nothing is asked or written."""
    try:
        store = Store(out / FOLDER / name)
        return mix_prompts(mix, path, models, None, store, QuietProgress())[0]
    except Unwritten:
        return None


def count_prompts(mix: PromptMix, path: Path) -> int:
    """How many prompts a mix has if every source brings what it is asked for. Raises ConfigError
    where that is unknown."""
    return mix.count or sum(_count_source(source, path) for source in mix.sources)


def count_calls(mix: PromptMix) -> int:
    """The largest number of model calls that a mix makes."""
    return sum(_count_source_calls(source) for source in mix.written)


def _count_source_calls(source: WrittenSource) -> int:
    longest = source.longest_answers if isinstance(source, MagpieSource) else None
    written = round(source.count * (longest or 1.0))
    return (source.calls or 4 * written) + (written if longest else 0)


def _count_source(source: FileSource | WrittenSource, path: Path) -> int:
    if isinstance(source, WrittenSource):
        return source.count
    if source.dataset is not None and not Path(source.dataset).exists():
        raise ConfigError(
            f"source {source.id}: how many prompts {source.dataset} has is not known before it is "
            "read; give `count`, the number of prompts in the mix"
        )
    return len(read_source(source, path))
