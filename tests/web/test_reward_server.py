"""A reward model behind HTTP, on a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from rlaif.config.models import ModelSpec
from rlaif.core.errors import RlaifError
from rlaif.engines.base import RewardRequest
from rlaif.engines.local.reward import load
from rlaif.kernels.heads import GatedHead, HeadConfig, LinearHead
from rlaif.train.checkpoint import export_head
from rlaif.web import reward_app as serve_app
from rlaif.web import serving
from rlaif.web.reward_app import RewardServer
from rlaif.web.reward_server import RewardClient, RewardService, left_of

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
    server = RewardServer(service, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield service, f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
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
        ({"messages": [[{"role": "user"}]]}, "messages[0].content is None"),
        ({"query": ["half \ud800"], "prompts": ["half"]}, "half a surrogate"),
        ({"messages": [[*PROMPT, {"role": "assistant", "content": "\udfff"}]]}, "half a surrogate"),
        (b'{"query": ' + 5000 * b"[" + 5000 * b"]" + b"}", "nested too deep"),
        (b'{"query": ["\xff"]}', "not valid JSON"),
        (b'{"query": ' + 5000 * b"9" + b"}", "not valid JSON"),
        ({"messages": [[*PROMPT, {"role": "assistant", "content": long}]]}, "do not fit"),
    ):
        status, answer = post(url + "/get_reward", body)
        assert status == 400 and said in answer["error"]["message"], body
    assert post(url + "/elsewhere", {})[0] == 404
    assert service.counts.refused == 15
    with pytest.raises(RlaifError, match="do not fit"):
        RewardClient(url)(["x"], [long])
    assert len(RewardClient(url)(["x"], ["y"])) == 1
    with pytest.raises(RlaifError, match="cannot be reached"):
        RewardClient("http://127.0.0.1:9")(["x"], ["y"])


@pytest.fixture(scope="module")
def plain_engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """A reward model without a gate, as OpenRLHF and verl know them."""
    torch.manual_seed(1)
    head = LinearHead(HeadConfig("linear", 64))
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, 64))
    out = tmp_path_factory.mktemp("plain") / "model"
    export_head(tiny_model, head, out)
    return load(ModelSpec(path=str(out), dtype="float32"), out, "plain")


@pytest.fixture
def plain(plain_engine):
    service = RewardService(plain_engine)
    server = RewardServer(service, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield service, server.port
    server.shutdown()
    thread.join()
    service._jobs.put(None)


def rendered(engine) -> tuple[str, list[str]]:
    """The prompt as the template writes it, and the whole conversations."""
    start = engine.render(PROMPT)[0]
    turns = [{"role": "assistant", "content": a} for a in ANSWERS]
    return start, [engine.rendered([*PROMPT, turn])[0] for turn in turns]


def openrlhf(queries: list[str], prompts: list[str]) -> dict:
    """What OpenRLHF's remote reward function posts."""
    return {"query": queries, "prompts": prompts, "labels": [None] * len(queries)}


def test_openrlhf_s_padded_and_left_truncated_queries_are_scored(plain, plain_engine):
    _, port = plain
    url = f"http://127.0.0.1:{port}/get_reward"
    start, whole = rendered(plain_engine)
    direct = wanted(plain_engine)
    pad, end = plain_engine.tokenizer.pad_token, plain_engine.tokenizer.eos_token
    ended = [start + a + end for a in ANSWERS]
    for texts in (whole, ended, [pad + pad + t + pad for t in ended], [pad * 3 + t for t in whole]):
        status, answer = post(url, openrlhf(texts, [start] * 3))
        assert status == 200 and answer["rewards"] == pytest.approx(direct, abs=1e-5)
        assert answer["scores"] == answer["rewards"]
    # Its trainer cuts a long prompt on its left, and its own server never looks at `prompts`.
    cut = [text[len(start) // 2 :] for text in whole]
    status, answer = post(url, openrlhf(cut, [start] * 3))
    assert status == 200 and len(answer["rewards"]) == 3
    alone = post(url, {"query": cut})[1]["rewards"]
    assert answer["rewards"] == pytest.approx(alone, abs=1e-4)
    status, answer = post(url, openrlhf(whole, ["another prompt"] * 3))
    assert status == 200 and answer["rewards"] == pytest.approx(direct, abs=1e-4)


def test_a_gate_reads_what_is_left_of_a_prompt(served, engine):
    _, url = served
    start, whole = rendered(engine)
    cut = len(start) // 2
    status, answer = post(f"{url}/get_reward", openrlhf([whole[0][cut:]], [start]))
    assert status == 200
    same = post(f"{url}/get_reward", openrlhf([whole[0][cut:]], [start[cut:]]))[1]
    assert answer["rewards"] == same["rewards"]


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("abcdefghij", "abcdefghijX", "abcdefghij"),
        ("xxabcdefgh", "abcdefghX", "abcdefgh"),
        ("abcabcabcabc", "bcabcabcX", "bcabcabc"),
        ("abcdefghij", "other text", ""),
        ("abcdefghij", "ij", ""),
        ("", "text", ""),
    ],
)
def test_what_is_left_of_a_prompt(prompt, text, expected):
    assert left_of(prompt, text) == expected


def test_verl_s_classify_gives_the_reward_as_it_is(plain, plain_engine):
    _, port = plain
    url = f"http://127.0.0.1:{port}/classify"
    _, whole = rendered(plain_engine)
    direct = wanted(plain_engine)
    # What verl's reward loop posts to a vLLM server, and how it reads the answer.
    for text, reward in zip(whole, direct, strict=True):
        body = {"model": "plain", "input": text, "use_activation": False}
        status, answer = post(url, body)
        assert status == 200
        assert answer["data"][-1]["probs"][-1] == pytest.approx(reward, abs=1e-4)
    ids = plain_engine.tokenizer(whole, add_special_tokens=False)["input_ids"]
    for given in (whole, ids):
        status, answer = post(url, {"input": given, "add_special_tokens": False})
        assert [one["probs"][0] for one in answer["data"]] == pytest.approx(direct, abs=1e-4)
        assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    squeezed = post(url, {"input": ids[0], "use_activation": True})[1]["data"][0]["probs"][0]
    assert squeezed == pytest.approx(torch.sigmoid(torch.tensor(direct[0])).item(), abs=1e-4)
    for body, said in (
        ({"input": []}, "must be a text"),
        ({"input": [[1], "a", 3]}, "must be a text"),
        ({"input": [10**9]}, "token ids from 0"),
        ({"input": "a", "use_activation": "no"}, "true or false"),
    ):
        status, answer = post(url, body)
        assert status == 400 and said in answer["error"]["message"], body


def test_a_gated_model_says_which_door_is_its_own(served):
    _, url = served
    status, answer = post(f"{url}/classify", {"input": "text"})
    assert status == 400 and "use /get_reward" in answer["error"]["message"]


def exchange(port: int, data: bytes) -> bytes:
    """All that the server says on a connection of its own, until it closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(data)
        parts = []
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_six_hundred_connections_at_once_are_all_answered(plain, plain_engine):
    service, port = plain
    _, whole = rendered(plain_engine)
    body = json.dumps({"query": [whole[0]]}).encode()
    head = f"POST /get_reward HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    message = head.encode() + b"Connection: close\r\n\r\n" + body

    async def ask(gate: asyncio.Event) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await gate.wait()
        writer.write(message)
        answer = await reader.read()
        writer.close()
        return answer

    async def everybody() -> list[bytes]:
        gate = asyncio.Event()
        jobs = [asyncio.create_task(ask(gate)) for _ in range(600)]
        await asyncio.sleep(0.1)
        gate.set()
        return await asyncio.gather(*jobs)

    answers = asyncio.run(everybody())
    assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 200 OK"}
    assert service.counts.answers == 600


def test_slow_clients_and_large_bodies_are_cut_off_and_bad_ones_answered(plain, monkeypatch):
    service, port = plain
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(serve_app, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(serve_app, "MOST_BYTES", 1000)
    post_line = b"POST /get_reward HTTP/1.1\r\nHost: x\r\n"
    assert exchange(port, b"") == b"", "no head came"
    assert exchange(port, post_line) == b"", "half a head came"
    slow = exchange(port, post_line + b"Content-Length: 50\r\n\r\n{")
    assert b" 408 " in slow and b"within 0.2 seconds" in slow
    large = exchange(port, post_line + b"Content-Length: 5000\r\n\r\n" + 5000 * b"x")
    assert b" 413 " in large
    chunk = b"258\r\n" + 600 * b"x" + b"\r\n"
    chunked = post_line + b"Transfer-Encoding: chunked\r\n\r\n" + 2 * chunk + b"0\r\n\r\n"
    assert b" 413 " in exchange(port, chunked)
    empty = exchange(port, post_line + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
    assert b" 413 " in empty
    assert b" 400 " in exchange(port, b"nonsense\r\n\r\n")
    long = exchange(port, b"GET /" + 100_000 * b"a" + b" HTTP/1.1\r\n")
    assert b" 400 " in long or b" 431 " in long
    got = exchange(port, b"GET /get_reward HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b" 405 " in got and b"not with GET" in got
    assert service.healthy
