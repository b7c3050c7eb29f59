"""A file of judges to measure."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rlaif.config.base import Strict
from rlaif.config.judges import JudgeStep
from rlaif.config.models import ModelSpec


class JudgesFile(Strict):
    """Judges, the models that their `by` names (`policy` is the command's --model), and the
    constitution that they follow."""

    models: dict[str, ModelSpec] = {}
    constitution: str | None = None
    judges: Annotated[list[JudgeStep], Field(min_length=1)]

    @model_validator(mode="after")
    def _ids_differ(self) -> JudgesFile:
        ids = [judge.id for judge in self.judges]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"judge ids must differ; {twice} is used twice (set `id:`)")
        return self
