"""One reward model, at least 100 pairs, the same margins by every way of asking."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.same_scores import (
    assert_same,
    by_classify,
    by_pipeline,
    by_rlaif,
    by_template,
    conversations,
    margins,
    reward_model,
)


def test_every_way_of_asking_gives_the_same_margins(tmp_path: Path, tiny_model: Path) -> None:
    """RewardBench's loader is asked in tests/peers."""
    folder = reward_model(tiny_model, tmp_path / "model")
    chats = [chat for pair in conversations() for chat in pair]
    plain = by_template(folder, chats)
    wanted = margins(plain)
    assert (
        min(map(abs, wanted)) > 1e-3 and any(m > 0 for m in wanted) and any(m < 0 for m in wanted)
    )
    for ways in (
        by_rlaif(folder, chats, tmp_path),
        by_pipeline(folder, chats),
        by_classify(folder, chats),
    ):
        assert_same(margins(ways), wanted)
        assert ways == pytest.approx(plain, abs=1e-4)
