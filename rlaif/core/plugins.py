"""What a user's own code is found by: `package.module:name`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rlaif.core.yamlio import suggest


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
