"""A reward model behind HTTP, on a real socket."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from rlaif.config import ModelSpec
from rlaif.engines.base import RewardRequest
from rlaif.engines.reward import load
from rlaif.errors import RlaifError
from rlaif.heads import GatedHead, HeadConfig
from rlaif.serve import RewardService, make_server
from rlaif.serve_client import RewardClient
from rlaif.train.export import export_head

PROMPT = [{"role": "user", "content": "Name a fruit."}]
ANSWERS = ["A plum.", "No.", "A plum is a fruit, and so is a pear."]


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    torch.manual_seed(0)
    config = HeadConfig("gated", 64, ("kind", "short"), gate_layers=1, gate_width=8)
    head = GatedHead(config)
    with torch.no_grad():
        head.weight.copy_(torch.randn(2, 64))
    out = tmp_path_factory.mktemp("served") / "model"
    export_head(tiny_model, head, out)
    return load(ModelSpec(path=str(out), dtype="float32"), out, "served")


@pytest.fixture
def served(engine):
    service = RewardService(engine)
    server = make_server(service, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield service, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    service._jobs.put(None)


def post(url: str, body: object) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wanted(engine) -> list[float]:
    requests = [
        RewardRequest(str(i), PROMPT, {"role": "assistant", "content": text})
        for i, text in enumerate(ANSWERS)
    ]
    found = {r.request_id: r.reward for batch in engine.reward(requests) for r in batch}
    return [found[str(i)] for i in range(len(ANSWERS))]


def test_every_door_gives_the_engine_s_rewards(served, engine):
    _, url = served
    direct = wanted(engine)
    client = RewardClient(url)
    texts = client(prompts=["Name a fruit."] * 3, completions=ANSWERS, x=1)
    assert texts == pytest.approx(direct, abs=1e-5)
    turns = [[{"role": "assistant", "content": a}] for a in ANSWERS]
    assert client([PROMPT] * 3, turns) == pytest.approx(direct, abs=1e-5)
    start = engine.render(PROMPT)[0]
    render = partial(engine.tokenizer.apply_chat_template, tokenize=False)
    body = {"query": [render([*PROMPT, t[0]]) for t in turns], "prompts": [start] * 3}
    status, answer = post(url + "/get_reward", body)
    assert status == 200 and answer["rewards"] == pytest.approx(direct, abs=1e-5)
    logs = answer["extra_logs"]
    both = zip(logs["objective/kind"], logs["objective/short"], strict=True)
    assert [a + b for a, b in both] == pytest.approx(direct, abs=1e-5)
    status, answer = post(url + "/v1/chat/completions", {"messages": [*PROMPT, turns[0][0]]})
    said = json.loads(answer["choices"][0]["message"]["content"])
    assert said["reward"] == pytest.approx(direct[0], abs=1e-5)


def test_requests_that_wait_are_computed_together_and_counted(served, engine):
    service, url = served
    hold = threading.Event()
    compute = engine.reward_ids

    def slow(rows, done=frozenset()):
        hold.wait(10)
        return compute(rows, done)

    engine.reward_ids = slow
    try:
        with ThreadPoolExecutor(9) as pool:
            client = RewardClient(url)
            jobs = [pool.submit(client, ["Name a fruit."], [ANSWERS[i % 3]]) for i in range(9)]
            while service.counts.requests < 9:
                hold.wait(0.01)
            hold.set()
            found = [job.result(60)[0] for job in jobs]
    finally:
        engine.reward_ids = compute
    assert found == pytest.approx(wanted(engine) * 3, abs=1e-5)
    assert service.counts.answers == 9 and service.counts.batches < 9
    with urllib.request.urlopen(url + "/metrics") as answer:
        text = answer.read().decode()
    assert "rlaif_reward_answers_total 9" in text and "# TYPE" in text
    with urllib.request.urlopen(url + "/health") as answer:
        assert json.load(answer) == {"healthy": True}


def test_what_cannot_be_scored_is_refused_in_words_and_the_server_goes_on(served, engine):
    service, url = served
    long = "a " * 2000
    for body, said in (
        (b"not json", "Expecting value"),
        ([], "JSON object"),
        ({"query": "text"}, "query"),
        ({"query": ["text"]}, "gate"),
        ({"query": ["text"], "prompts": ["other"]}, "does not begin"),
        ({"query": ["a", "b"], "prompts": ["a"]}, "2 texts"),
        ({"messages": [PROMPT]}, "must end with"),
        ({"messages": [[{"role": "user"}]]}, "role and content"),
        ({"messages": [[*PROMPT, {"role": "assistant", "content": long}]]}, "do not fit"),
    ):
        status, answer = post(url + "/get_reward", body)
        assert status == 400 and said in answer["error"]["message"], body
    assert post(url + "/elsewhere", {})[0] == 404
    assert service.counts.refused == 10
    with pytest.raises(RlaifError, match="do not fit"):
        RewardClient(url)(["x"], [long])
    assert len(RewardClient(url)(["x"], ["y"])) == 1
    with pytest.raises(RlaifError, match="cannot be reached"):
        RewardClient("http://127.0.0.1:9")(["x"], ["y"])
