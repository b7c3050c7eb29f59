"""Run by RewardBench's own Python: the rewards of conversations by its default loader.

    python rewardbench_scores.py MODEL CONVERSATIONS.json REWARDS.json

Its classes are used as `rewardbench.rewardbench` uses them: `REWARD_MODEL_CONFIG["default"]`, and
texts by the tokenizer's chat template, as `prepare_dialogue_from_tokenizer` renders them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from rewardbench import REWARD_MODEL_CONFIG
from transformers import AutoTokenizer, BatchEncoding


def main(model: str, given: str, out: str) -> None:
    # The pipeline moves its inputs to "cuda", whatever there is.
    BatchEncoding.to = lambda self, device: self
    entry = REWARD_MODEL_CONFIG["default"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = entry["model_builder"](model, torch_dtype=torch.float32)
    score = entry["pipeline_builder"]("text-classification", model=loaded, tokenizer=tokenizer)
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False)
        for chat in json.loads(Path(given).read_text())
    ]
    rewards: list[float] = []
    for start in range(0, len(texts), 8):
        batch = texts[start : start + 8]
        found = score(batch, padding=True, truncation=True, max_length=2048)
        rewards += found[:, 0].tolist()
    Path(out).write_text(json.dumps(rewards))


if __name__ == "__main__":
    main(*sys.argv[1:])
