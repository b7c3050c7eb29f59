"""Where shipped files are found, and a user's own code (`package.module:name`)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.core.yamlio import suggest

SHIPPED_FOLDERS = ("constitutions", "prompts", "experiments")


def shipped_root() -> Path:
    """The folder that holds the shipped folders.

    In a wheel they lie inside the package; in a checkout beside it.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parent


def expand_home(name: str | Path) -> Path:
    """The path with `~` as the user's home. One that begins with `~` and names no user, such as
    `~.jsonl`, is a name like any other."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def find(name: str | Path, beside: str | Path | None = None) -> Path:
    """The file or folder that a config calls `name`.

    Looked for as given (from the working folder), beside the file that names it and in that file's
    parent folder, then among the shipped files. Raises ConfigError with the places that were tried.
    """
    given = expand_home(name)
    tried = [given] if given.is_absolute() else []
    if not given.is_absolute():
        bases = [Path.cwd()]
        if beside is not None:
            bases += Path(beside).resolve().parents[:2]
        tried = list(dict.fromkeys(base / given for base in [*bases, shipped_root()]))
    for place in tried:
        if _path_exists(place):
            return place
    listed = "\n  ".join(str(place) for place in tried)
    raise ConfigError(f"{name}: not found; looked in\n  {listed}")


def _path_exists(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:
        # A name that is longer than a file system allows, for one.
        return False


def find_object(reference: str) -> Any:
    """The object that `package.module:name` refers to. Raises ValueError that says what is missing;
    what the module itself raises goes through."""
    module_name, _, name = reference.partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        # A missing import inside a module that was found is that module's own fault.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{module_name} cannot be imported: it needs {error.name}, which is not installed"
            ) from error
        raise ValueError(
            f"there is no module {error.name!r}; is it installed, or on PYTHONPATH?"
        ) from None
    if not hasattr(module, name):
        hint = suggest(name, [n for n in dir(module) if not n.startswith("_")])
        raise ValueError(f"module {module_name} has no {name!r}{hint}")
    return getattr(module, name)
