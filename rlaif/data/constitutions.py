"""Constitutions of other projects, read into ours. Each has requests for critique and revision.

Two formats: `{"NAME": {"prompt": [CRITIQUE, ...], "edit_request": REVISION}}`, the prompts of
Constitutional AI (arXiv 2212.08073), and `{"constitutions": [{"critic", "revision"}],
"system_chat": [...]}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.constitution.model import Constitution, Principle
from rlaif.core.errors import ConfigError
from rlaif.core.yamlio import read_text

_LABEL = re.compile(
    r"^\s*(?:CritiqueRequest|RevisionRequest)\s*:\s*|\s*(?:Critique|Revision)\s*:\s*$"
)
_EXPECTED = (
    'expected {"NAME": {"prompt": [...], "edit_request": ...}} or '
    '{"constitutions": [{"critic": ..., "revision": ...}]}'
)


def import_constitution(path: Path, name: str | None = None) -> tuple[Constitution, list[str]]:
    """The constitution in a JSON file of another project, and what of the file was left behind.

    These files ask for critiques and name no choice between answers, so each principle's `text` is
    made from its critique. Raises ConfigError that names the entry.
    """
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid JSON: {error}", path) from None
    if not isinstance(data, dict) or not data:
        raise ConfigError(_EXPECTED, path)
    left: list[str] = []
    if "constitutions" in data:
        principles = _read_listed(data, path, left)
    else:
        principles = [p for key, entry in data.items() for p in _read_keyed(key, entry, path)]
    ids = [p.id for p in principles]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ConfigError(f"two entries would both be called {twice[0]!r}; rename one", path)
    text = f"Imported from {path.name}; the texts are made from the critiques."
    made = Constitution(name=name or path.stem, description=text, principles=tuple(principles))
    return made, left


def _read_listed(data: Mapping[str, Any], path: Path, left: list[str]) -> list[Principle]:
    rows = data["constitutions"]
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"constitutions: a list with something in it was {_EXPECTED}", path)
    for key in (k for k in data if k != "constitutions"):
        turns = data[key] if isinstance(data[key], list) else [data[key]]
        left.append(f"{key}: {len(turns)} entries; a constitution has no place for a few-shot chat")
    made = []
    for number, row in enumerate(rows, 1):
        place = f"constitutions[{number}]"
        if not isinstance(row, dict):
            raise ConfigError(f"{place}: {_EXPECTED}", path)
        critic, revision = (
            _read_text(row.get(key), f"{place}.{key}", path) for key in ("critic", "revision")
        )
        made.append(_make_principle(f"principle-{number}", critic, revision))
    return made


def _read_keyed(key: str, entry: Any, path: Path) -> list[Principle]:
    if not isinstance(entry, dict):
        raise ConfigError(f"{key}: {_EXPECTED}", path)
    given = entry.get("prompt")
    prompts = [given] if isinstance(given, str) else given
    if not isinstance(prompts, list) or not prompts:
        raise ConfigError(f"{key}.prompt: a text or a list of texts was expected", path)
    revision = _read_text(entry.get("edit_request"), f"{key}.edit_request", path)
    base = re.sub(r"[^a-z0-9_-]+", "-", key.lower()).strip("-_")[:60] or "principle"
    return [
        _make_principle(
            base if len(prompts) == 1 else f"{base}-{number}",
            _read_text(prompt, f"{key}.prompt", path),
            revision,
        )
        for number, prompt in enumerate(prompts, 1)
    ]


def _read_text(value: Any, place: str, path: Path) -> str:
    if not isinstance(value, str) or not _LABEL.sub("", value).strip():
        raise ConfigError(f"{place}: a text was expected, got {value!r:.60}", path)
    return " ".join(_LABEL.sub("", value.strip()).split())


def _make_principle(name: str, critique: str, revision: str) -> Principle:
    text = f"Choose the response that leaves less to find when asked: {critique}"
    return Principle(id=name, text=text, critique=critique, revision=revision)
