"""What a machine has of what rlaif needs, and the command for what it lacks.

Nothing here imports torch or writes a file: the devices and the built-in model are looked at last,
by `rlaif.analysis.probe` in a process of its own, so that a broken installation is a finding too.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rlaif.core.errors import ConfigError
from rlaif.core.filesystems import find_file_system
from rlaif.core.resources import expand_home
from rlaif.engines.model_folders import BUILTIN, cache_folder, locate

State = Literal["ok", "note", "missing"]
MODEL = "builtin/smollm2-135m-instruct"
DEVELOPMENT = ("test", "dev")
"""Extras for work on rlaif itself."""
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN", "WANDB_API_KEY")
"""Variables that are named even where they are not set."""
KEY_NAME = re.compile(r"[A-Z0-9_]+_(API_KEY|TOKEN)")
QUICKSTART_GB = 3.0
"""What the quickstart's run folder and the converted model take at most, with room to spare."""
LOW_GB = 20.0
PROBE_SECONDS = 300
GB = 1e9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: "ok", "note" (works, but should be known) or "missing".
    `remedy` is the command, or what else to do; `needed` says whether the README's quickstart
    needs it."""

    name: str
    state: State
    detail: str
    remedy: str = ""
    needed: bool = False

    @property
    def fatal(self) -> bool:
        """Whether the quickstart cannot run because of this."""
        return self.needed and self.state == "missing"


def examine(out: Path) -> Iterator[Finding]:
    """Everything about this machine, what is quickly known first. `out` is where runs go."""
    yield _examine_python()
    yield from _examine_packages()
    yield from _examine_extras()
    yield from _examine_keys(os.environ)
    yield from _examine_folder("run folder", out)
    yield from _examine_folder("cache", cache_folder())
    yield _examine_request_cache()
    yield from _examine_probe(_run_probe())


def _requirements() -> tuple[str, list[Requirement]]:
    """The range of Pythons and the requirements of the installed package; empty if there is
    none."""
    try:
        about = metadata.metadata("rlaif")
    except metadata.PackageNotFoundError:
        return "", []
    rows = [Requirement(text) for text in about.get_all("Requires-Dist") or ()]
    return about["Requires-Python"] or "", rows


def _examine_python() -> Finding:
    wanted, rows = _requirements()
    here = f"{platform.python_version()} ({sys.executable})"
    if not rows:
        text = f"Python {here}; rlaif is not installed as a package, so versions are not checked"
        return Finding("python", "note", text, "pip install --editable .")
    if platform.python_version() not in SpecifierSet(wanted, prereleases=True):
        remedy = f"make a virtual environment with Python {wanted}"
        return Finding("python", "missing", f"{here}, and {wanted} is needed", remedy, True)
    return Finding("python", "ok", f"{here}, {wanted} is needed")


def _examine_packages() -> Iterator[Finding]:
    """A finding for each package that is absent or too old, and one for all others."""
    good = []
    for wanted in _requirements()[1]:
        if not _is_wanted(wanted, ""):
            continue
        found = _find_version(wanted)
        if found is not None and wanted.specifier.contains(found, prereleases=True):
            good.append(wanted.name)
            continue
        has = f"{found} is installed" if found else "not installed"
        need = f"{wanted.specifier} is needed" if wanted.specifier else "it is needed"
        yield Finding(wanted.name, "missing", f"{has}, {need}", _pip_install(wanted), True)
    if good:
        yield Finding("packages", "ok", f"{len(good)} in the supported versions")


def _is_wanted(requirement: Requirement, extra: str) -> bool:
    """Whether the package is required here, with an extra or (empty) without any."""
    marker = requirement.marker
    environment: dict[str, Any] = {**default_environment(), "extra": extra}
    return marker is None or marker.evaluate(environment)


def _find_version(requirement: Requirement) -> str | None:
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None


def _pip_install(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    wanted = shlex.quote(f"{requirement.name}{extras}{requirement.specifier}")
    return f"{shlex.quote(sys.executable)} -m pip install {wanted}"


def _examine_extras() -> Iterator[Finding]:
    """What each extra adds, if it is there."""
    rows = _requirements()[1]
    if not rows:
        return
    for extra in metadata.metadata("rlaif").get_all("Provides-Extra") or ():
        own = [r for r in rows if _is_wanted(r, extra) and not _is_wanted(r, "")]
        versions = {r.name: _find_version(r) for r in own}
        absent = [
            r.name
            for r in own
            if (found := versions[r.name]) is None
            or not r.specifier.contains(found, prereleases=True)
        ]
        name = f"extra {extra}"
        if not absent:
            yield Finding(name, "ok", ", ".join(f"{n} {v}" for n, v in versions.items()))
        elif extra not in DEVELOPMENT:
            wanted = shlex.quote(f"{_find_source()}[{extra}]")
            command = f"{shlex.quote(sys.executable)} -m pip install {wanted}"
            yield Finding(name, "note", f"not installed (optional): {', '.join(absent)}", command)


def _find_source() -> str:
    """What pip is to install rlaif from: the folder that it was installed from, or the index."""
    text = metadata.distribution("rlaif").read_text("direct_url.json")
    url = str(json.loads(text)["url"]) if text else ""
    return unquote(urlparse(url).path) if url.startswith("file:") else "rlaif"


def _examine_keys(environment: Mapping[str, str]) -> Iterator[Finding]:
    """API keys by the names of their variables; a value is never shown."""
    names = sorted({*KEYS, *filter(KEY_NAME.fullmatch, environment)})
    filled = [name for name in names if environment.get(name, "").strip()]
    blank = [name for name in names if name in environment and name not in filled]
    if filled:
        yield Finding("API keys", "ok", f"set: {', '.join(filled)}")
    if blank:
        yield Finding("API keys", "note", f"set, but empty: {', '.join(blank)}")
    if not filled:
        text = "none is set; only models on servers need one"
        yield Finding("API keys", "note", text, "export NAME=..., and `key_env: NAME` in the model")


def _examine_folder(name: str, folder: Path) -> Iterator[Finding]:
    """Whether a folder can be written, its free space and its file system."""
    place = _nearest(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "cannot be written" if place.is_dir() else "is no folder"
        yield Finding(name, "missing", f"{folder}: {place} {why}", _other_folder(name), True)
        return
    free = shutil.disk_usage(place).free / GB
    text = f"{folder}: {free:.1f} GB free"
    if free < QUICKSTART_GB:
        lack = f"{text}, the quickstart needs {QUICKSTART_GB:g} GB"
        yield Finding(name, "missing", lack, _other_folder(name), True)
    elif free < LOW_GB:
        yield Finding(name, "note", f"{text}: little for larger models", _other_folder(name))
    else:
        yield Finding(name, "ok", text)
    system = find_file_system(place)
    if system is not None and system.networked:
        text = (
            f"{folder} is on {system.type} ({system.mounted}), a network file system: locks of "
            "runs and SQLite files (votes, the request cache) may fail there"
        )
        yield Finding(f"{name}, file system", "note", text, _other_folder(name))


def _nearest(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    whole = expand_home(folder).absolute()
    return next(place for place in [whole, *whole.parents] if place.exists())


def _other_folder(name: str) -> str:
    if name == "cache":
        return "export RLAIF_CACHE=/another/folder"
    return "rlaif run EXPERIMENT --out /another/folder"


def _examine_request_cache() -> Finding:
    from rlaif.engines.remote.cache import cache_limit, cache_path

    name, path = "request cache", cache_path()
    try:
        limit = cache_limit() / GB
    except ConfigError as error:
        return Finding(name, "missing", str(error), "export RLAIF_CACHE_GB=10")
    size = f"{path.stat().st_size / GB:.2f} GB" if path.exists() else "nothing yet"
    return Finding(name, "ok", f"{path}: {size}, at most {limit:g} GB")


def _run_probe() -> Mapping[str, Any]:
    """What `rlaif.analysis.probe` finds, or an `error`."""
    command = [sys.executable, "-m", "rlaif.analysis.probe", MODEL]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {PROBE_SECONDS} s"}
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        found["error"] = last
    return found


def _examine_probe(found: Mapping[str, Any]) -> Iterator[Finding]:
    error = found.get("error", "")
    if "device" not in found:
        torch = next((r for r in _requirements()[1] if r.name == "torch"), Requirement("torch"))
        text = f"torch cannot be used: {error}"
        yield Finding("device", "missing", text, _pip_install(torch), True)
    else:
        yield Finding("device", "ok", _describe_device(found))
    yield _examine_model(found)


def _describe_device(found: Mapping[str, Any]) -> str:
    gpus: Sequence[str] = found["gpus"]
    rest = f": {', '.join(gpus)}" if gpus else f", {found['threads']} threads"
    return f"auto gives {found['device']} and {found['dtype']} (torch {found['torch']}{rest})"


def _examine_model(found: Mapping[str, Any]) -> Finding:
    entry, folder = BUILTIN[MODEL], locate(MODEL)
    if folder is None:
        spec = find_spec(entry["package"])
        if spec is None or not _has_file(spec.submodule_search_locations, entry["file"]):
            return Finding("built-in model", "missing", "not installed", entry["install"], True)
        text = f"installed; the first run converts it into {cache_folder()}"
        return Finding("built-in model", "ok", text)
    if "model" in found:
        return Finding("built-in model", "ok", f"{folder}: loads, {found['model']:,} parameters")
    if "device" not in found:
        return Finding("built-in model", "note", f"{folder}: not tried without torch")
    again = f"rm -r {shlex.quote(str(folder))} (the next run makes it again)"
    text = f"{folder}: does not load: {found.get('error', '')}"
    return Finding("built-in model", "missing", text, again, True)


def _has_file(folders: Sequence[str] | None, name: str) -> bool:
    return any((Path(folder) / name).exists() for folder in folders or ())
