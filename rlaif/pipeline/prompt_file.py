"""A run's files of prompts, of which only ids and places are held in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.core.errors import StoreError
from rlaif.core.records import Prompt, from_json
from rlaif.pipeline.manifest import ADVICE


class PromptFile(Mapping[str, Prompt]):
    """The prompts of some files by id. Ids and places are held, and no texts; a file is opened for
    each reading."""

    def __init__(self, paths: Sequence[Path]):
        self._places: dict[str, tuple[Path, int]] = {}
        for path in paths:
            if path.exists():
                self._find_places(path)

    def _find_places(self, path: Path) -> None:
        place = 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    self._places[_parse_prompt(path, line).prompt_id] = (path, place)
                place += len(line)

    def __getitem__(self, prompt_id: str) -> Prompt:
        path, place = self._places[prompt_id]
        with path.open("rb") as file:
            file.seek(place)
            return _parse_prompt(path, file.readline())

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _parse_prompt(path: Path, line: bytes) -> Prompt:
    return from_json(Prompt, parse_row(path, line))


def parse_row(path: Path, line: bytes) -> Any:
    """The row of a line. Raises StoreError where it is damaged."""
    try:
        return json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        raise StoreError(f"{path}: damaged. {ADVICE}") from None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The prompts of a file, as rows; none where there is no file."""
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    yield parse_row(path, line)
