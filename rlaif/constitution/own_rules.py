"""Rules that a user wrote: a function that a check names as `package.module:name`.

It is called as `name(prompt, text, **params)` and gives a score on [0, 1], or None where it does
not apply. Its parameters are those of its signature: what has no default must be given, what has a
type is checked.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from rlaif.core.errors import RlaifError
from rlaif.core.records import Prompt, content_hash
from rlaif.core.resources import find_object

Score = Callable[[Prompt, str, Any], float | None]

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@functools.lru_cache(maxsize=256)
def own_rule(reference: str) -> tuple[Score, type[BaseModel]]:
    """The function of a rule, for a prompt, a text and its parameters, and the model of these.

    Raises ValueError where there is none, or where it cannot be called so.
    """
    try:
        function = find_object(reference)
    except ValueError as error:
        raise ValueError(f"rule {reference!r}: {error}") from None
    except Exception as error:
        reason = f"its module failed on import: {type(error).__name__}: {error}"
        raise ValueError(f"rule {reference!r}: {reason}") from error
    if not callable(function):
        raise ValueError(f"rule {reference!r} is no function of (prompt, text, **params)")
    return functools.partial(_score_answer, reference, function), _derive_params(
        reference, function
    )


def _derive_params(reference: str, function: Callable[..., Any]) -> type[BaseModel]:
    own = list(inspect.signature(function).parameters.values())
    if len(own) < 2 or any(p.kind not in _NAMED for p in own[2:]):
        raise ValueError(
            f"rule {reference!r} must be a function of (prompt, text) and named parameters; it is "
            f"{getattr(function, '__name__', reference)}{inspect.signature(function)}"
        )
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise ValueError(f"rule {reference!r}: its annotations cannot be read: {error}") from None
    fields: dict[str, Any] = {
        p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default)
        for p in own[2:]
    }
    return create_model("OwnParams", __config__=_STRICT, **fields)


def _score_answer(
    reference: str, function: Callable[..., Any], prompt: Prompt, text: str, params: BaseModel
) -> float | None:
    """The function's score. Raises RlaifError where it fails or gives what is no score."""
    named = {name: getattr(params, name) for name in type(params).model_fields}
    try:
        score = function(prompt, text, **named)
    except Exception as error:
        raise RlaifError(
            f"rule {reference!r} failed on an answer to prompt {prompt.prompt_id}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if score is None:
        return None
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise RlaifError(
            f"rule {reference!r} gave {score!r} for an answer to prompt {prompt.prompt_id}; "
            "expected a number from 0 to 1, or None where it does not apply"
        )
    return number


def code_of(rules: Iterable[str]) -> list[str]:
    """The hash of the file of each rule that a user wrote, since that decides its scores; nothing
    for shipped rules. What its module imports is not covered."""
    files = {name: inspect.getsourcefile(find_object(name)) for name in rules if ":" in name}
    return [
        content_hash(name, Path(file).read_text(encoding="utf-8", errors="replace"))
        for name, file in sorted(files.items())
        if file is not None
    ]
