"""Whether a run folder holds what was written into it: every stored byte against its checksum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.core import integrity
from rlaif.core.errors import ConfigError, RlaifError, StoreError
from rlaif.core.finished import MASTERS, Verified, find_stale, read_marker, stale_in_words
from rlaif.core.store import StepFolder
from rlaif.engines.remote.meter import LEDGER, Account, counted_cost, lost_in_words, read_meters
from rlaif.pipeline.manifest import read_manifest, read_rounds


@dataclass(frozen=True, slots=True)
class Verification:
    """How much was compared, and what is damaged, in words that name the folder to delete."""

    compared: Verified
    faults: tuple[str, ...]


def verify_run(root: Path) -> Verification:
    """Compare everything in a run folder (or in one step's folder) with its checksums. Nothing is
    changed. Raises ConfigError when it is no such folder."""
    if not (root / "steps").is_dir() and not (root / "done.json").exists():
        raise ConfigError(f"{root} is not a run folder (no folder steps in it)")
    faults: dict[str, None] = {}

    def try_check(look: Callable[[], Verified]) -> Verified:
        try:
            return look()
        except RlaifError as error:
            faults[str(error)] = None
            return Verified()

    total = Verified()
    folders = sorted(p for p in (root / "steps").glob("*") if p.is_dir())
    for path in folders or [root]:
        total += try_check(StepFolder(path).verify)
        total += try_check(partial(_verify_small_file, partial(read_meters, path)))
    for path in sorted((root / "models").glob("*")):
        total += try_check(partial(_verify_model, path, root / "steps" / path.name))
    if folders:
        total += try_check(partial(_verify_small_file, partial(read_manifest, root)))
        total += try_check(partial(_verify_small_file, partial(read_rounds, root)))
        total += try_check(partial(_verify_small_file, partial(_made_from_what_is_there, folders)))
    total += try_check(partial(_verify_ledger, root))
    return Verification(total, tuple(faults))


def _verify_small_file(look: Callable[[], object]) -> Verified:
    """Read a small file, which compares it with its checksum."""
    look()
    return Verified()


def _made_from_what_is_there(folders: Sequence[Path]) -> None:
    """Raise StoreError if finished steps were made from records that have since been made again."""
    markers: dict[str, dict[str, Any]] = {}
    for path in folders:
        with suppress(StoreError):
            marker = read_marker(path / "done.json", "")
            markers |= {path.name: marker} if marker is not None else {}
    found = find_stale(markers)
    if found:
        raise StoreError(stale_in_words(path for path in folders if path.name in found))


def _verify_ledger(root: Path) -> Verified:
    """What was spent, against what the steps say of it. Raises StoreError where lines are gone."""
    account = Account(root / LEDGER, counted=counted_cost(root))
    if account.lost:
        raise StoreError(lost_in_words(account))
    return Verified()


def _verify_model(path: Path, step: Path) -> Verified:
    """A model of a step that has no marker yet; the marker vouches for others."""
    if (step / "done.json").exists() or path.name.endswith(".partial"):
        return Verified()
    compared = integrity.verify_folder(
        path, f"Delete the folder {path} to train it again.", (MASTERS,)
    )
    files = sum(p.is_file() for p in path.rglob("*"))
    return Verified(unchecked=files) if compared is None else Verified(files, compared)
