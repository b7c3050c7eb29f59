"""What the tables of methods name: classes that load no tensor library, and what they point to."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlaif.config.methods import DISTILLATIONS, METHODS
from rlaif.core.resources import find_object

REQUIRED = {"rewards": {"r": 1.0}, "conditions": {"human": "Be kind."}, "teacher": "t"}


def test_the_classes_of_all_methods_load_nothing_heavy() -> None:
    code = "import sys\nfrom rlaif.config.methods import DISTILLATIONS, METHODS\n"
    code += "found = [*METHODS.values(), *DISTILLATIONS.values()]\n"
    code += "print(len(found), sorted(set(sys.modules) & {'torch', 'transformers'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{len(METHODS) + len(DISTILLATIONS)} []"


@pytest.mark.parametrize("name", [*METHODS, *DISTILLATIONS])
def test_what_a_method_is_carried_out_by_is_there(name: str) -> None:
    spec = {**METHODS, **DISTILLATIONS}[name]
    keys = {key: REQUIRED[key] for key in REQUIRED if key in spec.model_fields}
    step = spec.model_validate({"method": name, **keys})
    named = [getattr(step, part, None) for part in ("TASK", "LOSS", "FIT", "ADVANTAGES")]
    named += [step.trainer, getattr(step, "pair_loss", None)]
    assert all(callable(find_object(part)) for part in named if part is not None)


def test_an_ensemble_is_trained_by_its_members() -> None:
    step = DISTILLATIONS["cost"].model_validate({"method": "cost", "members": 2, "lora": {}})
    assert step.trainer == "rlaif.train.members:train_members"
