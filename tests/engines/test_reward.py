"""The engine of reward models: where a reward is read, by a plain pass of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.config.models import ModelSpec
from rlaif.engines.local.reward import RewardEngine, load
from rlaif.kernels.heads import GatedHead, HeadConfig
from rlaif.train.checkpoint import export_head

ROWS = {
    "long": ([5, 6, 7, 8, 9, 10, 11, 12, 13], 4),
    "short": ([9, 8, 7], 1),
    "middle": ([3, 1, 4, 1, 5, 9], 5),
}
"""Token ids, and how many of them are the prompt's."""


@pytest.fixture
def head() -> GatedHead:
    torch.manual_seed(0)
    config = HeadConfig("gated", 32, ("kind", "true"), gate_layers=1, gate_width=8)
    head = GatedHead(config)
    for param in head.parameters():
        torch.nn.init.normal_(param)
    return head


@pytest.fixture
def engine(tmp_path: Path, make_model: Any, head: GatedHead) -> RewardEngine:
    start = make_model(0)
    with torch.no_grad():
        export_head(start, head, tmp_path / "reward")
    spec = ModelSpec(path=str(tmp_path / "reward"), dtype="float32")
    return load(spec, tmp_path / "reward", "reward")


@torch.no_grad()
def test_a_gate_sees_the_prompts_last_token_and_the_head_the_answers(
    engine: RewardEngine, head: GatedHead
) -> None:
    assert engine.body is not None and engine.reads_prompt
    (batch,) = engine.reward_ids(ROWS)
    found = {result.request_id: result for result in batch}
    for name, (ids, prompt) in ROWS.items():
        states = engine.body._layers(input_ids=torch.tensor([ids])).last_hidden_state[0].float()
        wanted = head(states[-1:], states[prompt - 1 : prompt])
        assert found[name].reward == pytest.approx(float(wanted.reward[0]), rel=1e-4, abs=1e-5)
        parts = {key: float(values[0]) for key, values in wanted.parts.items()}
        assert found[name].parts == pytest.approx(parts, rel=1e-4, abs=1e-5)
        assert found[name].prompt_tokens == len(ids)
        # Another token would give another gate.
        other = head(states[-1:], states[prompt : prompt + 1])
        assert abs(float(other.reward[0] - wanted.reward[0])) > 1e-3


def test_a_batch_is_computed_unless_all_of_it_is_done(engine: RewardEngine) -> None:
    (whole,) = engine.reward_ids(ROWS)
    (again,) = engine.reward_ids(ROWS, {"long", "short"})
    assert again == whole
    assert list(engine.reward_ids(ROWS, set(ROWS))) == []


def test_the_context_is_the_smaller_of_what_is_said_and_what_there_is(
    engine: RewardEngine,
) -> None:
    limit = engine.limits.positions
    assert limit is not None and engine.context == limit

    def context(said: int) -> int:
        spec = engine.spec.model_copy(update={"max_context": said})
        assert engine.body is not None
        return RewardEngine(engine.body, None, engine.tokenizer, spec, "r", "d").context

    assert (context(5), context(limit + 9)) == (5, limit)
