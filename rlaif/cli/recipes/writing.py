"""Where an experiment file is written, with the schema that editors read beside it."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from rlaif.core.errors import ConfigError
from rlaif.core.store import write_atomic
from rlaif.pipeline.reading import experiment_schema, read_experiment

SCHEMA = "experiment.schema.json"
"""What the first line of a file names. Editors look for it beside the file, whichever folder is
open, and take no name with a space in it; a path into this installation would serve no one else."""


def check_places(file: Path, force: bool) -> None:
    """Raises ConfigError where writing would overwrite what `rlaif` did not make."""
    schema = file.with_name(SCHEMA)
    if file.exists() and not force:
        raise ConfigError("it is there already; --force overwrites it", file)
    if schema.exists() and not force and not _is_schema(schema):
        raise ConfigError("this is no schema of rlaif; --force overwrites it", schema)


def write_with_schema(file: Path, text: str) -> Path:
    """Write the experiment and, beside it, the schema of this version; the schema's path. Raises
    ConfigError, before anything is written, for an experiment that cannot be read."""
    read_experiment(yaml.safe_load(text), {}, file)
    schema = file.with_name(SCHEMA)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(schema, experiment_schema() + "\n")
    write_atomic(file, text)
    return schema


def _is_schema(path: Path) -> bool:
    """Whether it is the schema of an experiment, of any version."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("title") == "Experiment"
