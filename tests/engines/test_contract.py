"""What every engine promises. A new one is a row in ENGINES.

RLAIF_CONTRACT names the engines to test, such as RLAIF_CONTRACT=vllm or ray-hf where these have
environments of their own; fake, hf and openai when it is not set.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.engines.base import (
    Divisible,
    Engine,
    GenerateRequest,
    GenerateResult,
    Sampling,
    ScoreRequest,
)
from rlaif.engines.build import load_engine
from rlaif.engines.fake import FakeEngine, FakeScript
from tests.servers.scripted import CONTEXT, ScriptedServer

REPLIES = [f"{word} red né blue 日本 green 🙂 stone" for word in ("One", "Two", "Three", "Four")]
LABELS = {"yes": ("Yes", " Yes"), "no": ("No", " No")}
QUESTION = "Name three colours and a fruit."


SCRIPT = {"rules": [{"match": "", "replies": REPLIES, "labels": {"yes": 0.6, "no": 0.3}}]}


def fake(folder: Path) -> AbstractContextManager[Engine]:
    return nullcontext(FakeEngine(FakeScript.model_validate(SCRIPT), context=CONTEXT))


def hf(folder: Path) -> AbstractContextManager[Engine]:
    spec = ModelSpec(path=str(folder), dtype="float32", device="cpu", max_context=CONTEXT)
    return nullcontext(load_engine(spec, folder, "hf"))


@contextmanager
def openai(folder: Path) -> Iterator[Engine]:
    with ScriptedServer(tops={"Yes": -0.4, " No": -1.6, "Well": -3.0}) as server:
        # Without the cache: the server itself must give the same answer again.
        spec = ModelSpec(path="m", engine="openai", base_url=server.url, cache=False)
        yield load_engine(spec, None, "m")


def vllm(folder: Path) -> AbstractContextManager[Engine]:
    spec = ModelSpec(path=str(folder), engine="vllm", dtype="float32", max_context=CONTEXT)
    return nullcontext(load_engine(spec, folder, "vllm"))


def vllm_server(folder: Path) -> AbstractContextManager[Engine]:
    # Without the cache: the server itself must give the same answer again.
    spec = ModelSpec(
        path=str(folder), engine="vllm-server", dtype="float32", max_context=CONTEXT, cache=False
    )
    return nullcontext(load_engine(spec, folder, "vllm-server"))


@contextmanager
def on_actors(spec: ModelSpec, folder: Path | None) -> Iterator[Engine]:
    """The engine on two nodes of a Ray cluster."""
    from rlaif.cluster.executor import open_cluster
    from rlaif.cluster.settings import ClusterSettings
    from tests.support.clusters import started_cluster

    with started_cluster([1, 1]) as cluster:
        settings = ClusterSettings(cluster.address)
        with open_cluster(settings) as executor:
            yield executor.load(spec, folder, "m")


@contextmanager
def ray_fake(folder: Path) -> Iterator[Engine]:
    with TemporaryDirectory() as place:
        script = Path(place) / "script.yaml"
        script.write_text(yaml.safe_dump(SCRIPT))
        spec = ModelSpec(path="none", engine="fake", script=str(script), max_context=CONTEXT)
        with on_actors(spec, None) as engine:
            yield engine


def ray_hf(folder: Path) -> AbstractContextManager[Engine]:
    spec = ModelSpec(path=str(folder), dtype="float32", device="cpu", max_context=CONTEXT)
    return on_actors(spec, folder)


ENGINES: dict[str, Callable[[Path], AbstractContextManager[Engine]]] = {
    "fake": fake,
    "hf": hf,
    "openai": openai,
    "vllm": vllm,
    "vllm-server": vllm_server,
    "ray-fake": ray_fake,
    "ray-hf": ray_hf,
}


@pytest.fixture(
    scope="module", params=os.environ.get("RLAIF_CONTRACT", "fake,hf,openai").split(",")
)
def engine(request: pytest.FixtureRequest, model_folder: Path) -> Iterator[Engine]:
    with ENGINES[request.param](model_folder) as made:
        yield made
        made.close()


def ask(name: str, text: str = QUESTION, new: int = 6, **sampling: object) -> GenerateRequest:
    values = {"max_new_tokens": new, "temperature": 1.0} | sampling
    return GenerateRequest(name, [{"role": "user", "content": text}], Sampling(**values))  # type: ignore[arg-type]


def answers(engine: Engine, *requests: GenerateRequest) -> dict[str, GenerateResult]:
    results = [result for batch in engine.generate(list(requests)) for result in batch]
    assert sorted(r.request_id for r in results) == sorted(r.request_id for r in requests)
    return {r.request_id: r for r in results}


def texts(engine: Engine, *requests: GenerateRequest) -> dict[str, str]:
    return {name: r.text for name, r in answers(engine, *requests).items()}


def test_every_id_comes_back_once_whatever_the_order(engine: Engine) -> None:
    requests = [ask(f"r{i}", f"{QUESTION} ({i})", seed=i) for i in range(6)]
    assert texts(engine, *requests) == texts(engine, *reversed(requests))


def test_a_seed_gives_one_answer_and_seeds_give_several(engine: Engine) -> None:
    found = texts(engine, *(ask(f"r{i}", seed=i % 4) for i in range(8)))
    assert all(found[f"r{i}"] == found[f"r{i + 4}"] for i in range(4))
    assert len(set(found.values())) > 1


def test_greedy_answers_are_equal(engine: Engine) -> None:
    assert len(set(texts(engine, *(ask(f"r{i}", temperature=0.0) for i in range(2))).values())) == 1


def test_a_stop_string_ends_the_answer_and_is_not_in_it(engine: Engine) -> None:
    whole = answers(engine, ask("whole", seed=2))["whole"].text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    cut = answers(engine, ask("cut", seed=2, stop=(stop,)))["cut"]
    assert cut.text.rstrip() == whole[: whole.index(stop)].rstrip()
    assert cut.finish_reason == "stop"


def test_the_token_limit_ends_the_answer(engine: Engine) -> None:
    result = answers(engine, ask("short", new=2, seed=1))["short"]
    assert result.finish_reason == "length"
    assert result.tokens_made == 2
    assert result.text


def test_text_of_any_script_goes_through(engine: Engine) -> None:
    results = answers(
        engine, ask("fine", "Wie heißt 日本 auf Français? 🙂"), ask("half", "broken \ud83d pair")
    )
    assert results["fine"].finish_reason != "failed"
    results["fine"].text.encode()
    assert (results["half"].finish_reason, results["half"].text) == ("failed", "")
    assert "Unicode" in (results["half"].error or "")


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_prompt_fails_alone(engine: Engine, text: str) -> None:
    results = answers(engine, ask("good"), ask("empty", text), ask("fine"))
    assert results["empty"].finish_reason == "failed"
    assert results["empty"].error == "the prompt is empty"
    assert {results[n].finish_reason for n in ("good", "fine")} <= {"stop", "length"}


def test_a_prompt_that_does_not_fit_fails_alone_and_the_others_are_kept(engine: Engine) -> None:
    results = answers(engine, ask("good"), ask("long", "word " * (CONTEXT + 1)), ask("fine"))
    assert results["long"].finish_reason == "failed"
    assert "context" in (results["long"].error or "")
    assert {results[n].finish_reason for n in ("good", "fine")} <= {"stop", "length"}


def test_an_answer_is_held_to_a_json_schema(engine: Engine) -> None:
    if "json_schema" not in engine.capabilities:
        pytest.skip("this engine does not promise it")
    moods = {"mood": {"enum": ["calm", "cross"]}}
    schema = {"type": "object", "properties": moods, "required": ["mood"]}
    schema |= {"additionalProperties": False}
    asked = [replace(ask(f"r{i}", new=40, seed=i), json_schema=schema) for i in range(4)]
    ended = [r for r in answers(engine, *asked).values() if r.finish_reason == "stop"]
    assert ended
    assert all(json.loads(r.text)["mood"] in ("calm", "cross") for r in ended)


def test_what_is_done_is_not_asked_again(engine: Engine) -> None:
    requests = [ask(f"r{i}", seed=i) for i in range(3)]
    assert list(engine.generate(requests, {"r0", "r1", "r2"})) == []
    left = {r.request_id for batch in engine.generate(requests, {"r0", "r1"}) for r in batch}
    assert "r2" in left


def test_batches_that_are_laid_out_are_those_that_come(engine: Engine) -> None:
    if not isinstance(engine, Divisible):
        pytest.skip("this engine does not promise it")
    requests = [ask(f"r{i}", f"{QUESTION} ({i})", new=2 + i % 2, seed=i) for i in range(6)]
    requests.append(ask("empty", ""))
    scores = [ScoreRequest(f"s{i}", requests[i].messages, labels=LABELS) for i in range(6)]
    for asked, come in ((requests, engine.generate(requests)), (scores, engine.score(scores))):
        expected = list(come)
        # Apart, and as another process has them.
        batches = pickle.loads(pickle.dumps(engine.lay_out(asked)))
        assert [engine.answer(batch) for batch in batches] == expected
        known = {result.request_id for result in expected[0]}
        assert len(engine.lay_out(asked, known)) == len(expected) - 1


def test_a_closed_stream_leaves_an_engine_that_works(engine: Engine) -> None:
    # Different limits, since a batch of an engine in this process holds one.
    stream = engine.generate([ask(f"r{i}", new=2 + i % 2, seed=i) for i in range(60)])
    assert next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    assert answers(engine, ask("after"))["after"].finish_reason != "failed"


def test_label_probabilities_and_their_mass(engine: Engine) -> None:
    messages = [{"role": "user", "content": "Is water wet? Answer Yes or No."}]
    requests = [ScoreRequest(f"s{i}", messages, labels=LABELS) for i in range(3)]  # type: ignore[arg-type]
    requests.append(ScoreRequest("empty", [{"role": "user", "content": " "}], labels=LABELS))
    results = {r.request_id: r for batch in engine.score(requests) for r in batch}
    assert sorted(results) == ["empty", "s0", "s1", "s2"]
    assert results["empty"].error == "the prompt is empty"
    for name in ("s0", "s1", "s2"):
        result = results[name]
        assert result.error is None
        assert set(result.label_probs) == {"yes", "no"}
        assert all(0 < p < 1 for p in result.label_probs.values())
        assert result.label_mass == pytest.approx(sum(result.label_probs.values()))
        assert result.label_mass is not None and result.label_mass <= 1
        assert result.label_probs == pytest.approx(results["s0"].label_probs, rel=1e-4)


def test_what_an_engine_cannot_do_is_refused(engine: Engine) -> None:
    assert isinstance(engine.concurrent, bool)
    assert {"generate", "label_logprobs"} <= engine.capabilities
    if "token_logprobs" not in engine.capabilities:
        request = ScoreRequest("s", [{"role": "user", "content": "Hello"}], continuation=" you")
        with pytest.raises(EngineError, match="log-probs"):
            list(engine.score([request]))


def test_what_the_model_sees_can_be_looked_at(engine: Engine) -> None:
    text, tokens = engine.render([{"role": "user", "content": QUESTION}])
    assert QUESTION in text
    assert all(isinstance(token, int) for token in tokens)
