"""Errors that a user can act on. The command line prints them without a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_USER = 2
EXIT_GATE = 3
EXIT_MIRROR = 4
EXIT_INTERRUPTED = 130


HIDDEN = "[hidden]"
_IN_ADDRESS = re.compile(r"(?<=://)[^\s'\"]*@")


def without_passwords(text: str) -> str:
    """`text` without what stands before the host in its addresses."""
    return _IN_ADDRESS.sub(f"{HIDDEN}@", text)


class RlaifError(Exception):
    """A user error: the message says where it is, what was expected and what to do.

    A name and password within an address are taken out of it.
    """

    exit_code = EXIT_USER

    def __init__(self, message: str = ""):
        super().__init__(without_passwords(message))


def say_place(path: Path | str | None, line: int | None, note: str = "") -> str:
    """How a message begins that is about a place: `FILE:LINE (note): `; empty without a file."""
    if path is None:
        return ""
    place = f"{path}:{line}" if line else f"{path}"
    return f"{place} ({note}): " if note else f"{place}: "


class ConfigError(RlaifError):
    """A YAML file, an override or a data row that cannot be used.

    `path` and `line` (1-based) point at the offending place where it is known, and `note` says
    what stands there, such as `step ID`.
    """

    def __init__(
        self,
        message: str,
        path: Path | str | None = None,
        line: int | None = None,
        note: str = "",
    ):
        super().__init__(f"{say_place(path, line, note)}{message}")
        self.path = path
        self.line = line


class StoreError(RlaifError):
    """A run folder that cannot be read, written or locked."""


class EngineError(RlaifError):
    """A model that cannot be loaded, or an engine that lacks what a step needs."""


class GateStopped(RlaifError):
    """A declared gate, alarm or budget, or the wait that a server asks for, stopped the run; what
    was computed is kept."""

    exit_code = EXIT_GATE


class MirrorError(RlaifError):
    """A run that is complete, and its mirror is not."""

    exit_code = EXIT_MIRROR


@contextmanager
def placed(path: Path, line: int | None, note: str = "") -> Iterator[None]:
    """Say of errors within, but for those that point at `path` themselves, which place of `path`
    they come from: another file is wrong as a rule, and this is where it is named."""
    try:
        yield
    except RlaifError as error:
        if str(error).startswith(f"{path}:"):
            raise
        raise type(error)(f"{say_place(path, line, note)}{error}") from error


@contextmanager
def explain_library(what: str, kind: type[RlaifError], advice: str = "") -> Iterator[None]:
    """Raise `kind` for whatever a library raises as it reads a user's file or folder: `what` is
    wrong, in the library's words, and the advice.

    On input that its authors did not foresee, a library raises an error of any class: `tokenizers`
    a bare Exception, `datasets` an IndexError for the folder `/`.
    """
    try:
        yield
    except RlaifError:
        raise
    except Exception as error:
        plain = type(error) is Exception or isinstance(error, OSError | ValueError | RuntimeError)
        words = str(error).strip() or type(error).__name__
        said = words if plain else f"{type(error).__name__}: {words}"
        raise kind(f"{what}: {said}{advice and '. '}{advice}") from error
