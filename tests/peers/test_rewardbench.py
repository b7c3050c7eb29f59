"""RewardBench's own loader, in an environment of its own, gives the margins of `rlaif score`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.same_scores import assert_same, by_rlaif, conversations, margins, reward_model

pytestmark = pytest.mark.peer

PYTHON = os.environ.get("RLAIF_REWARDBENCH_PYTHON")


def test_rewardbench_gives_the_same_margins(tmp_path: Path, tiny_model: Path) -> None:
    if PYTHON is None:
        pytest.skip("REWARDBENCH IS NOT INSTALLED: make test-peers")
    folder = reward_model(tiny_model, tmp_path / "model")
    chats = [chat for pair in conversations() for chat in pair]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    script = Path(__file__).with_name("rewardbench_scores.py")
    words = [PYTHON, script, folder, tmp_path / "chats.json", tmp_path / "rewards.json"]
    subprocess.run(list(map(str, words)), check=True)
    found = json.loads((tmp_path / "rewards.json").read_text())
    assert_same(margins(found), margins(by_rlaif(folder, chats, tmp_path)))
