"""The keys that all environments share, and the table of their kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, TypeAdapter

from rlaif.config.base import OneOf, SpecTable, Strict


class EnvironmentSpec(Strict):
    """Keys of all environments."""

    max_turns: PositiveInt = Field(
        8, description="Turns of the policy after which an episode that is not over is cut."
    )
    role: Literal["user", "tool"] = Field(
        "user", description="Whose turns the environment's are in the chat template."
    )

    def build_environment(self) -> Any:
        """The environment of the spec (`rlaif.environments.base`). Raises ConfigError."""
        raise NotImplementedError


ENVIRONMENTS: SpecTable[EnvironmentSpec] = SpecTable(
    {
        "number": "rlaif.environments.number:NumberSpec",
        "rooms": "rlaif.environments.rooms:RoomsSpec",
        "gymnasium": "rlaif.environments.gym:GymnasiumSpec",
    }
)


def _name_kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "custom" if isinstance(kind, str) and ":" in kind else str(kind)


AnyEnvironment = Annotated[
    EnvironmentSpec,
    OneOf(
        SpecTable({**ENVIRONMENTS.rows, "custom": "rlaif.environments.custom:CustomSpec"}),
        "kind",
        f"`kind` must be {', '.join(ENVIRONMENTS)} or package.module:Name",
        name_kind=_name_kind,
    ),
]
"""An environment in the experiment file."""


def read_environment(keys: Mapping[str, Any]) -> EnvironmentSpec:
    """The spec of an environment's keys, as a prompt has them."""
    adapter: TypeAdapter[EnvironmentSpec] = TypeAdapter(AnyEnvironment)
    return adapter.validate_python(dict(keys))
