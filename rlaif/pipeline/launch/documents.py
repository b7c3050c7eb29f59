"""Values as YAML that people read: a text of several lines is written as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """As the safe one, which puts a text of several lines between quotes."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """See yaml."""
        style = "|" if "\n" in data else None
        if not all(line.isprintable() for line in data.split("\n")):
            # Only between these have other line breaks an escape, and YAML takes all for \n.
            style = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def write_documents(documents: Sequence[Mapping[str, Any]]) -> str:
    """The text of the documents, which reads back as they are."""
    return yaml.dump_all(
        [dict(document) for document in documents],
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf"),
    )
