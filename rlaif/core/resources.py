"""Where the shipped constitutions, prompts and experiments are found."""

from __future__ import annotations

from pathlib import Path

from rlaif.core.errors import ConfigError

SHIPPED_FOLDERS = ("constitutions", "prompts", "experiments")


def shipped_root() -> Path:
    """The folder that holds the shipped folders.

    In a wheel they lie inside the package; in a checkout beside it.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parent


def find(name: str | Path, beside: str | Path | None = None) -> Path:
    """The file or folder that a config calls `name`.

    Looked for as given (from the working folder), beside the file that names it and in that file's
    parent folder, then among the shipped files. Raises ConfigError with the places that were tried.
    """
    given = Path(name).expanduser()
    tried = [given] if given.is_absolute() else []
    if not given.is_absolute():
        bases = [Path.cwd()]
        if beside is not None:
            bases += Path(beside).resolve().parents[:2]
        tried = list(dict.fromkeys(base / given for base in [*bases, shipped_root()]))
    for place in tried:
        if _exists(place):
            return place
    listed = "\n  ".join(str(place) for place in tried)
    raise ConfigError(f"{name}: not found; looked in\n  {listed}")


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:
        # A name that is longer than a file system allows, for one.
        return False
