"""An environment class of one's own."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rlaif.config.base import PluginName
from rlaif.config.environments import EnvironmentSpec
from rlaif.core.errors import ConfigError
from rlaif.core.resources import find_object
from rlaif.environments.base import Environment


class CustomSpec(EnvironmentSpec):
    """An environment class of your own, `kind: package.module:Name`, called with `options`."""

    kind: PluginName
    options: dict[str, Any] = Field({})

    def build_environment(self) -> Environment:
        """The class that `kind` names is called as Name(**options)."""
        try:
            plugin = find_object(self.kind)
        except ValueError as error:
            raise ConfigError(f"environment {self.kind}: {error}") from error
        try:
            environment: Environment = plugin(**self.options)
        # A plug-in may raise anything.
        except Exception as error:
            raise ConfigError(
                f"environment {self.kind}: made with `options` {self.options} it raised "
                f"{type(error).__name__}: {error}"
            ) from error
        lacking = [name for name in ("reset", "step") if not hasattr(environment, name)]
        if lacking:
            raise ConfigError(
                f"environment {self.kind} is no environment: it lacks {', '.join(lacking)} "
                "(see rlaif/environments/base.py)"
            )
        return environment
