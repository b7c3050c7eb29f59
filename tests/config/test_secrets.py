"""A password or key that a user wrote in the wrong place is never printed back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rlaif.config.models import ModelSpec
from rlaif.core.errors import RlaifError, without_passwords
from rlaif.core.yamlio import shown_value
from tests.engines.test_openai_commands import rlaif

SECRET = "hunter2-0123456789-abcdef"
FAR = {"path": "m", "engine": "openai", "base_url": "http://host/v1"}
MISPLACED: list[dict[str, Any]] = [
    {"base_url": f"http://me:{SECRET}@host/v1"},
    {"base_url": f"http://me:{SECRET}#x@host/v1"},
    {"base_url": f"http://{SECRET}@host/v1"},
    {"base_url": f"http://host/v1?api_key={SECRET}"},
    {"base_url": f"ftp://me:{SECRET}@host"},
    {"base_url": [f"http://me:{SECRET}@host/v1"]},
    {"api_key": SECRET},
    {"headers": {"Authorization": f"Bearer {SECRET}"}},
    {"key_env": f"{SECRET}"},
    {"key_env": ["a", SECRET]},
    {"extra_body": {"api_key": SECRET}},
    {"extra_body": {"metadata": [{"Authorization": f"Bearer {SECRET}"}]}},
    {"extra_body": {"extra_headers": {"x-api-key": SECRET}}},
    {"extra_body": f"Bearer {SECRET}"},
    {"limits": {"concurrency": SECRET}},
    {"limits": {"api_key": SECRET}},
    {"price": f"http://me:{SECRET}@host"},
    {"temperature": SECRET, "base_url": f"http://me:{SECRET}@host/v1"},
    {"api": SECRET},
    {"engine": "hf", "base_url": f"http://me:{SECRET}@host/v1"},
]


@pytest.mark.parametrize("keys", MISPLACED)
def test_no_refused_value_is_printed_back(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = FAR | keys
    Path("far.yaml").write_text(yaml.safe_dump(model))
    Path("p.jsonl").write_text('{"prompt": "Hi."}\n')
    experiment = {
        "name": "x",
        "models": {"policy": {"path": "none", "engine": "fake"}, "far": model},
        "prompts": {"path": "p.jsonl"},
        "steps": [{"sample": {}}],
    }
    Path("e.yaml").write_text(yaml.safe_dump(experiment))
    for words in (
        ["sample", "p.jsonl", "--model", "far.yaml", "--out", "out", "--quiet"],
        ["run", "e.yaml", "--out", "run", "--quiet"],
    ):
        code, said = rlaif(*words)
        assert code == 2, said
        assert SECRET not in said
        assert SECRET[:8] not in said
    with pytest.raises(ValidationError) as refused:
        ModelSpec.model_validate(model)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "setting",
    [
        f"models.far.base_url=http://me:{SECRET}@host/v1",
        f"models.far.api_key={SECRET}",
        f"models.far=[{SECRET}",
        f"models.far.x.y.z={SECRET}",
        f"steps.none.key={SECRET}",
        SECRET,
        f"http://me:{SECRET}@host",
    ],
)
def test_no_override_is_printed_back(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"prompt": "Hi."}\n')
    experiment = {
        "name": "x",
        "models": {"policy": {"path": "none", "engine": "fake"}, "far": FAR},
        "prompts": {"path": "p.jsonl"},
        "steps": [{"sample": {}}],
    }
    Path("e.yaml").write_text(yaml.safe_dump(experiment))
    code, said = rlaif("run", "e.yaml", "--set", setting, "--out", "run", "--quiet")
    assert code == 2, said
    assert SECRET not in said


def test_a_key_in_place_of_its_variable_is_not_shown_when_it_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("far.yaml").write_text(yaml.safe_dump(FAR | {"key_env": "sk_live_0123456789abc"}))
    Path("p.jsonl").write_text('{"prompt": "Hi."}\n')
    code, said = rlaif("sample", "p.jsonl", "--model", "far.yaml", "--out", "out")
    assert code == 2
    assert "sk_live" not in said
    assert "may be the key itself" in said


@pytest.mark.parametrize(
    ("value", "loc", "shown"),
    [
        ("yesno", ("judge", "kind"), "'yesno'"),
        (0.5, ("n",), "0.5"),
        ([1, 2], ("gpus",), "[1, 2]"),
        ({"a": 1}, ("x",), ""),
        ([{"a": 1}], ("x",), ""),
        ("abc", ("models", "far", "api_key"), "[hidden]"),
        ("max", ("models", "far", "max_tokens_key"), "'max'"),
        ("many", ("max_new_tokens",), "'many'"),
        ("Bearer abc123def", ("x",), "'[hidden]'"),
        ("sk-0123456789abcdefghij", ("x",), "'[hidden]'"),
    ],
)
def test_what_is_shown_of_a_refused_value(value: Any, loc: tuple[str, ...], shown: str) -> None:
    assert shown_value(value, loc) == shown


def test_an_address_in_any_error_has_no_password() -> None:
    text = "no answer from 'http://me:p@ss/word@host/v1', nor from http://host/v1"
    plain = "no answer from 'http://[hidden]@host/v1', nor from http://host/v1"
    assert without_passwords(text) == plain
    assert str(RlaifError(text)) == plain
