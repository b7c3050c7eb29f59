"""What the policy sampled is what is learned from, token for token, also where its tokenizer would
write the same text in other tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from rlaif.chat import KEEP
from rlaif.config import METHODS
from rlaif.errors import StoreError
from rlaif.experiment import run_experiment
from rlaif.records import Completion, Preference
from rlaif.runs import load_run
from rlaif.store import Store
from rlaif.train.run import train
from rlaif.train.tokenise import encode, load_tokenizer


def tokens_of(preferences: list[Preference], folder: Path, sampled: dict[str, list[int]]) -> int:
    """Tokens of prompts and chosen answers."""
    keys: dict[str, Any] = {"both": False, "max_length": 1024, "overlong": "refuse"}
    tokenizer = load_tokenizer(folder)
    found = encode(preferences, tokenizer, sampled, train_on_eos=True, chat=KEEP, **keys)
    return sum(example.length for example in found.examples)


def test_a_train_step_learns_the_tokens_that_were_sampled(
    tmp_path: Path, tiny_model: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write_experiment(
        tmp_path / "files",
        tiny_model,
        rounds=1,
        models={"policy": {"path": str(tiny_model), "dtype": "float32"}},
        steps=[
            {"sample": {"n": 3, "temperature": 1.5, "max_new_tokens": 12}},
            {"judge": {"id": "checks", "kind": "rules"}},
            {"pair": {"strategy": "all"}},
            {"train": {"method": "sft", "batch_size": 64, "precision": "fp32"}},
        ],
    )
    run_experiment(path, tmp_path / "run")
    loaded, store = load_run(tmp_path / "run"), Store(tmp_path / "run")
    steps = {step["kind"]: step["hash"] for step in loaded.manifest["steps"]}
    answers = list(store.step(steps["sample"]).records(Completion))
    sampled = {c.completion_id: c.token_ids for c in answers if c.token_ids}
    pairs = list(store.step(steps["pair"]).records(Preference))
    done = store.step(steps["train"]).done()
    assert done is not None and done["counts"]["preferences"] == len(pairs) > 0
    learned = tokens_of(pairs, tiny_model, sampled)
    assert learned != tokens_of(pairs, tiny_model, {})
    assert done["tokens"] == learned


def test_a_training_goes_on_with_the_tokens_that_it_began_with(
    tmp_path: Path, make_model: Callable[[int], Path], make_preferences: Any
) -> None:
    options = METHODS["sft"].model_validate(
        {"method": "sft", "batch_size": 2, "precision": "fp32", "checkpoint_every": 1}
    )
    rows = make_preferences(4)

    def go_on(preferences: list[Preference], progress: Any = None) -> None:
        places = (tmp_path / "out", tmp_path / "work")
        train(options, preferences, {}, make_model(0), None, *places, 0, "cpu", progress)

    def stop(progress: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go_on(rows, stop)
    turns: Any = [{"role": "assistant", "content": "sey 0"}]
    with pytest.raises(StoreError, match="other data or options"):
        go_on([replace(rows[0], chosen=turns), *rows[1:]])
    asked: Any = [{"role": "user", "content": "Sax "}]
    with pytest.raises(StoreError, match="other data or options"):
        go_on([replace(rows[0], prompt=asked), *rows[1:]])
    go_on(rows)
    assert (tmp_path / "out").exists()
