"""Data sets of labelled pairs by their published columns: one column map each in `presets.yaml`,
read as any map."""

from __future__ import annotations

from pathlib import Path

from rlaif.config.base import Strict
from rlaif.config.columns import LabelColumns
from rlaif.core.yamlio import load_yaml, validate
from rlaif.data.readers.base import Format, value_at
from rlaif.data.readers.columns import format_of_map
from rlaif.data.rows import Row


class Preset(Strict):
    """A column map; the columns besides its own that a file is known by; and a place in which a
    row of it has something."""

    about: str
    columns: LabelColumns
    needed: tuple[str, ...] = ()
    has: str | None = None

    def fits_row(self, row: Row) -> bool:
        """Whether a row has something at `has`."""
        return self.has is None or value_at(row, self.has) is not None


def load_presets() -> dict[str, Format]:
    """The presets as formats, by name, the narrower ones first."""
    path = Path(__file__).with_suffix(".yaml")
    formats = {}
    for name, given in load_yaml(path)[0].items():
        preset = validate(Preset, given, {}, path)
        formats[name] = format_of_map(preset.columns, preset.about, preset.needed, preset.fits_row)
    return formats
