"""Two names for one set of weights: what is refused, and what is one model in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError
from rlaif.engines import build
from rlaif.engines.model_folders import weights_hash
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.prepare import model_key, prepare, weights_names

Writer = Callable[..., Path]
URL = "http://127.0.0.1:9/v1"
FAKE = {"path": "none", "engine": "fake"}


def server(path: str = "m", url: str = URL, **keys: Any) -> dict[str, Any]:
    return {"path": path, "engine": "openai", "base_url": url, **keys}


def test_other_weights_of_a_server_are_another_model() -> None:
    """What is stored of answers does not count once `weights` says that they are others."""
    specs = [
        server(),
        server(weights="w1"),
        server(weights="w2"),
        server("n"),
        server(url=f"{URL}/x"),
    ]
    keys = [model_key(ModelSpec(**spec), fetch=False) for spec in specs]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (server(), server(), True),
        (server(), server(url=f"{URL}/"), True),
        (server(), server("n"), False),
        (server(), server(url="http://127.0.0.1:10/v1"), False),
        (server(weights="w1"), server("n", "http://other/v1", weights="w1"), True),
        (server(weights="w1"), server("n", "http://other/v1", weights="w2"), False),
        # One server has one set of weights under a name, whatever is said of them.
        (server(weights="w1"), server(weights="w2"), True),
        (FAKE, FAKE, False),
    ],
)
def test_labeller_and_gold_judge_must_be_different_weights(
    tmp_path: Path, write_experiment: Writer, one: Any, other: Any, same: bool
) -> None:
    models = {"policy": FAKE, "a": one | {"role": "labeller"}, "b": other | {"role": "gold"}}
    path = write_experiment(tmp_path, None, models=models)
    if same:
        with pytest.raises(ConfigError, match=r"'a' and 'b' have different roles and the same"):
            prepare(path)
        path = write_experiment(tmp_path, None, models=models, allow_same_weights=True)
    prepare(path)
    models["b"]["role"] = "labeller"
    prepare(write_experiment(tmp_path, None, models=models))


def test_a_server_that_declares_the_weights_of_a_folder_here_has_them(
    tmp_path: Path, tiny_model: Path, write_experiment: Writer
) -> None:
    declared = server(weights=weights_hash(tiny_model), role="gold")
    models = {"policy": {"path": str(tiny_model), "role": "proxy"}, "b": declared}
    path = write_experiment(tmp_path, tiny_model, models=models)
    with pytest.raises(ConfigError, match="'policy' and 'b' have different roles"):
        prepare(path)


def test_a_judge_that_is_the_policy_is_asked_by_that_name(
    tmp_path: Path, tiny_model: Path, write_experiment: Writer
) -> None:
    models = {"policy": {"path": str(tiny_model)}, "twin": {"path": str(tiny_model)}}
    judge = {"kind": "rating", "by": "twin"}
    steps = [{"sample": {}}, {"judge": judge}]
    path = write_experiment(tmp_path, tiny_model, models=models, steps=steps)
    with pytest.raises(ConfigError, match="'twin' has the policy's own weights"):
        prepare(path)
    prepare(path, ["allow_same_weights=true"])
    for name in ("policy", "initial"):
        judge["by"] = name
        prepare(write_experiment(tmp_path, tiny_model, models=models, steps=steps))


@pytest.mark.parametrize(
    ("judge", "named"),
    [
        ({"id": "one", "kind": "rating"}, "one"),
        ({"kind": "jury", "of": [{"id": "in", "kind": "rating"}]}, "in"),
        ({"kind": "meta", "by": "policy", "judge": {"id": "in", "kind": "additive"}}, "in"),
    ],
)
def test_whose_judge_it_is_must_be_said(
    tmp_path: Path, write_experiment: Writer, judge: Any, named: str
) -> None:
    path = write_experiment(tmp_path, None, steps=[{"sample": {}}, {"judge": judge}])
    with pytest.raises(ConfigError, match=f"judge {named}: `by` does not say which model"):
        prepare(path)


def test_one_model_under_two_names_is_loaded_once(
    tmp_path: Path, tiny_model: Path, write_experiment: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = [], build.load_engine

    def counting(spec: Any, *more: Any) -> Any:
        loaded.append(spec.path)
        return load(spec, *more)

    monkeypatch.setattr(build, "load_engine", counting)
    model = {"path": str(tiny_model), "dtype": "float32", "system_prompt": "drop"}
    ask = {"kind": "yes_no", "principles": ["useful"], "template": "prompts/judges/yes_no_short.j2"}
    steps = [
        {"sample": {"n": 1, "max_new_tokens": 4}},
        {"judge": {"id": "itself", "by": "policy", **ask}},
        {"judge": {"id": "first", "by": "initial", **ask}},
        {"judge": {"id": "other", "by": "twin", **ask}},
    ]
    models = {"policy": model, "twin": model}
    path = write_experiment(
        tmp_path, tiny_model, models=models, steps=steps, rounds=1, allow_same_weights=True
    )
    run_experiment(path, tmp_path / "run")
    assert loaded == [str(tiny_model)]


def test_a_server_is_known_in_any_spelling_of_its_address() -> None:
    names = [
        weights_names(ModelSpec(engine="openai", path="m", base_url=url), "")
        for url in ("http://one.example/v1", "HTTP://One.Example/v1/", "http://two.example/v1")
    ]
    assert names[0] == names[1] and not names[0] & names[2]
