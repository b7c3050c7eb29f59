"""TRL trains a step on what rlaif exports, and its GRPO takes the rewards of `rlaif serve`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.same_scores import reward_model

pytestmark = pytest.mark.peer

ROWS = [
    {
        "prompt": f"Name fruit number {i}.",
        "chosen": f"A plum, {i} times.",
        "rejected": "No." + i * "!",
        "score_chosen": 0.9,
        "score_rejected": 0.1,
    }
    for i in range(4)
]


def exported(tmp_path: Path, name: str) -> Any:
    """The rows in a format, as `rlaif convert` writes it and `datasets` reads it."""
    from datasets import load_dataset

    from rlaif.data.convert import convert_pairs

    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    convert_pairs(given, tmp_path / f"{name}.jsonl", name)
    return load_dataset("json", data_files=str(tmp_path / f"{name}.jsonl"), split="train")


@pytest.fixture
def loaded(tiny_model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(tiny_model)


def settings(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    } | more


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [row["train_loss"] for row in trainer.state.log_history if "train_loss" in row]


@pytest.mark.parametrize("name", ["trl", "openrlhf", "ultrafeedback_binarized"])
def test_dpo_trains_on_exported_pairs(tmp_path: Path, loaded: Any, name: str) -> None:
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = loaded
    data = exported(tmp_path, name)
    keys = [c for c in ("prompt", "chosen", "rejected") if c in data.column_names]
    if isinstance(data[0].get("prompt"), str):
        # Whole conversations beside a text: TRL takes what was asked from the conversations.
        keys.remove("prompt")
    trainer = DPOTrainer(
        model,
        args=DPOConfig(**settings(tmp_path)),
        train_dataset=data.select_columns(keys),
        processing_class=tokenizer,
    )
    # At the start the policy is its reference: the loss is that of a coin.
    assert losses(trainer) == pytest.approx([0.6931], abs=1e-3)


def test_kto_trains_on_exported_pairs(tmp_path: Path, loaded: Any) -> None:
    from trl import KTOConfig, KTOTrainer

    model, tokenizer = loaded
    # TRL parts pairs into answers with a label by itself.
    data = exported(tmp_path, "trl").select_columns(["prompt", "chosen", "rejected"])
    trainer = KTOTrainer(
        model,
        args=KTOConfig(**settings(tmp_path, per_device_train_batch_size=4)),
        train_dataset=data,
        processing_class=tokenizer,
    )
    assert len(losses(trainer)) == 1


def test_a_reward_model_trains_on_exported_pairs(tmp_path: Path, tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    start = reward_model(tiny_model, tmp_path / "start")
    model = AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32)
    data = exported(tmp_path, "trl").select_columns(["prompt", "chosen", "rejected"])
    trainer = RewardTrainer(
        model,
        args=RewardConfig(**settings(tmp_path)),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    assert len(losses(trainer)) == 1


@pytest.fixture
def served(tmp_path: Path, tiny_model: Path) -> Iterator[str]:
    from rlaif.config.models import ModelSpec
    from rlaif.engines.local.reward import load
    from rlaif.web.reward_app import RewardServer
    from rlaif.web.reward_server import RewardService

    folder = reward_model(tiny_model, tmp_path / "rm")
    service = RewardService(load(ModelSpec(path=str(folder), dtype="float32"), folder, "rm"))
    server = RewardServer(service, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    service.close()


def test_grpo_learns_from_the_rewards_of_rlaif_serve(
    tmp_path: Path, loaded: Any, served: str
) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from rlaif.web.reward_server import RewardClient

    model, tokenizer = loaded
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in ROWS]
    more = {"num_generations": 2, "max_completion_length": 6}
    trainer = GRPOTrainer(
        model,
        reward_funcs=RewardClient(served),
        args=GRPOConfig(**settings(tmp_path, **more)),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "reward" in row]
    assert row["reward"] == pytest.approx(row["rewards/rlaif_reward/mean"])
    assert row["reward_std"] > 0
