"""Trainers that cannot be installed here: what they post to a reward server, and how they read it.

`openrlhf.json` and `verl.json` are written after the sources that each names. Where an answer has a
number, the file has the text of the conversation's last turn, whose reward is meant. These tests
need no other package, and so are part of the default suite.
"""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.same_scores import by_template, reward_model

HERE = Path(__file__).parent
EXCHANGES = [
    pytest.param(exchange, id=f"{name}-{number}")
    for name in ("openrlhf", "verl")
    for number, exchange in enumerate(json.loads((HERE / f"{name}.json").read_text())["exchanges"])
]


@pytest.fixture(scope="module")
def served(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The server's address, and the rewards of the two answers as a plain caller reads them."""
    from rlaif.config.models import ModelSpec
    from rlaif.engines.local.reward import load
    from rlaif.web.reward_app import RewardServer
    from rlaif.web.reward_server import RewardService

    folder = reward_model(tiny_model, tmp_path_factory.mktemp("peers") / "rm")
    # The template would put a system turn of its own before these.
    template = folder / "chat_template.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    answers = ("A plum.", "No.")
    chats = [
        [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": text}]
        for text in answers
    ]
    rewards = dict(zip(answers, by_template(folder, chats), strict=True))
    service = RewardService(load(ModelSpec(path=str(folder), dtype="float32"), folder, "rm"))
    server = RewardServer(service, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}", rewards
    server.shutdown()
    thread.join()
    service.close()


def assert_has(found: Any, wanted: Any, rewards: dict[str, float]) -> None:
    """Everything of the recorded answer is in the one found."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            assert_has(found[key], value, rewards)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_has(one, other, rewards)
    elif wanted in rewards:
        assert found == pytest.approx(rewards[wanted], abs=1e-4)
    else:
        assert found == wanted


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_recorded_request_gets_the_recorded_answer(served: Any, exchange: Any) -> None:
    url, rewards = served
    assert len(set(rewards.values())) == 2
    data = json.dumps(exchange["request"]).encode()
    request = urllib.request.Request(
        url + exchange["path"], data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert_has(json.load(answer), exchange["answer"], rewards)
