"""System prompts that are written in a template file: rendered once, when an experiment is planned.

What is rendered is the step's key from then on, as if it had been written there: it is hashed, and
a comment in the template, or its name, changes nothing.
"""

from __future__ import annotations

from pathlib import Path

from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.judges.templates import load_template

VARIABLES = frozenset({"constitution", "principles"})
"""What a template may use: the constitution (`name`, `description`, and `principles` with their
`id`, `text`, `weight`, `critique` and `revision`), and the texts of its principles."""


def render_system_prompt(name: str, constitution: Constitution | None, beside: Path | None) -> str:
    """The text of the template file that a config calls `name`. Raises ConfigError with its line,
    for what cannot be rendered and where nothing is."""
    template = load_template(name, VARIABLES, beside=beside)
    if [section for section, _ in template.sections] != ["user"]:
        raise ConfigError(
            "a system prompt is one text: leave the lines such as ---user--- out", template.name
        )
    if constitution is None:
        if template.variables:
            used = ", ".join(f"{{{{ {variable} }}}}" for variable in sorted(template.variables))
            raise ConfigError(
                f"the template uses {used}, and there is no `constitution`", template.name
            )
        values = {}
    else:
        keys = ("id", "text", "weight", "critique", "revision")
        rows = [{key: getattr(p, key) for key in keys} for p in constitution.principles]
        about = {"name": constitution.name, "description": constitution.description}
        texts = [p.text for p in constitution.principles if p.text]
        values = {"constitution": {**about, "principles": rows}, "principles": texts}
    (turn,) = template.messages(values)
    if not turn["content"]:
        raise ConfigError("the template renders to an empty text", template.name)
    return turn["content"]
