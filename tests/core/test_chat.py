"""`system_role`: what a model is told whose template knows no system role, at servers and here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlaif.config.models import ModelSpec
from rlaif.core.answers import AnswerTurn
from rlaif.core.chat import ChatSettings, render_prompt, with_system_role
from rlaif.core.errors import EngineError
from rlaif.core.records import Message
from rlaif.engines.base import GenerateRequest, Model, Sampling

STRICT = (
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOLD: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi."},
]


def turns(*pairs: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": text} for role, text in pairs]


def test_system_turns_begin_the_next_user_turn_and_roles_alternate() -> None:
    given = turns(
        *[("system", "A"), ("system", "B"), ("user", "C"), ("assistant", "D")],
        *[("system", "E"), ("user", "F"), ("user", "G")],
    )
    merged = turns(("user", "A\n\nB\n\nC"), ("assistant", "D"), ("user", "E\n\nF\n\nG"))
    assert with_system_role(given, "merge") == merged
    assert with_system_role(given, "keep") == given
    dropped = turns(("user", "C"), ("assistant", "D"), ("user", "F"), ("user", "G"))
    assert with_system_role(given, "drop") == dropped


@pytest.fixture
def strict(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose chat template wants roles to alternate, the user's first."""
    folder = tmp_path / "strict"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(STRICT)
    config = folder / "tokenizer_config.json"
    import json

    kept = {k: v for k, v in json.loads(config.read_text()).items() if k != "chat_template"}
    config.write_text(json.dumps(kept))
    return folder


def engine(folder: Path, **keys: Any) -> Any:
    from rlaif.engines.local.hf import load

    spec = ModelSpec.model_validate({"path": str(folder), "dtype": "float32", **keys})
    return load(spec, folder, "strict")


def test_a_template_that_refuses_a_system_turn_is_named_with_the_key(strict: Path) -> None:
    request = GenerateRequest("r", TOLD, Sampling(2))
    with pytest.raises(EngineError, match="`system_role: merge`") as refused:
        list(engine(strict).generate([request]))
    assert "must alternate" in str(refused.value)
    assert "system, user" in str(refused.value)
    merged = engine(strict, system_role="merge")
    assert merged.render(TOLD)[0] == "<user>Be brief.\n\nHi.\n<assistant>"
    assert [r.finish_reason for b in merged.generate([request]) for r in b] != ["failed"]
    assert engine(strict, system_role="drop").render(TOLD)[0] == "<user>Hi.\n<assistant>"
    own = engine(strict, system_role="merge", system_prompt="Be brief.")
    assert own.render(TOLD[1:])[0] == "<user>Be brief.\n\nHi.\n<assistant>"


def test_training_sees_the_turns_that_sampling_saw(strict: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(strict)
    answer: Message = {"role": "assistant", "content": "Hello."}
    chat = ChatSettings(system_role="merge")
    turn = AnswerTurn(tokenizer, TOLD, chat)
    assert turn.text(answer) == ("Hello.", "\n")
    assert turn.given == "<user>Be brief.\n\nHi.\n<assistant>"
    assert turn.given == render_prompt(tokenizer, TOLD, chat)


def test_the_key_at_its_default_changes_no_hash() -> None:
    keys = {"path": "m", "engine": "openai", "base_url": "http://h/v1"}
    plain, merged = (
        Model("k", "m", ModelSpec.model_validate(keys | more)).identity()
        for more in ({}, {"system_role": "merge"})
    )
    assert plain == ["k", "openai", "auto", "auto", None, "keep", "chat", 1, 20, {}]
    assert merged == [*plain, {"system_role": "merge"}]


def test_an_engine_without_turns_refuses_the_key() -> None:
    with pytest.raises(ValidationError, match="`system_role` is read by engine"):
        ModelSpec.model_validate({"path": "none", "engine": "fake", "system_role": "merge"})
