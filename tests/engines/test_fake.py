"""The scripted engine: the same requests in, the same answers out, as the script says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError
from rlaif.core.records import Message
from rlaif.engines.base import GenerateRequest, Sampling, ScoreRequest
from rlaif.engines.fake import FakeEngine, FakeScript, load

SCRIPT = {
    "default": "I do not know.",
    "rules": [
        {
            "match": "France",
            "replies": ["Paris.", "It is Paris."],
            "labels": {"yes": 0.7, "no": 0.2},
        },
        {"match": "red (fruit|car)", "replies": ["A cherry is red. Stop here."]},
    ],
}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(FakeScript.model_validate(SCRIPT))


def ask(text: str, name: str = "r", **sampling: Any) -> GenerateRequest:
    messages: list[Message] = [{"role": "user", "content": text}]
    return GenerateRequest(name, messages, Sampling(**sampling))


def answer(engine: FakeEngine, request: GenerateRequest) -> Any:
    ((result,),) = engine.generate([request])
    return result


def test_the_seed_picks_a_reply(engine: FakeEngine) -> None:
    texts = [answer(engine, ask("Capital of France?", seed=s)).text for s in range(4)]
    assert texts == ["Paris.", "It is Paris.", "Paris.", "It is Paris."]


def test_no_rule_gives_the_default(engine: FakeEngine) -> None:
    assert answer(engine, ask("Hello")).text == "I do not know."


def test_length_and_stop(engine: FakeEngine) -> None:
    short = answer(engine, ask("A red fruit?", max_new_tokens=2))
    assert (short.text, short.finish_reason, len(short.token_ids)) == ("A cherry", "length", 2)
    stopped = answer(engine, ask("A red fruit?", stop=(" Stop",)))
    assert (stopped.text, stopped.finish_reason) == ("A cherry is red.", "stop")
    assert len(stopped.logprobs) == len(stopped.token_ids) == 4


def test_an_empty_prompt_fails_alone(engine: FakeEngine) -> None:
    ((empty, good),) = engine.generate([ask(" ", "a"), ask("France", "b")])
    assert (empty.finish_reason, empty.error, empty.text) == ("failed", "the prompt is empty", "")
    assert good.finish_reason == "stop"


def test_labels_are_the_scripts(engine: FakeEngine) -> None:
    messages = ask("France").messages
    labels = {"yes": ("Yes",), "no": ("No",), "maybe": ("Maybe",)}
    ((result,),) = engine.score([ScoreRequest("s", messages, labels=labels)])
    assert result.label_probs == {"yes": 0.7, "no": 0.2, "maybe": 0.0}
    assert result.label_mass == pytest.approx(0.9)
    ((other,),) = engine.score([ScoreRequest("s", ask("Hello").messages, labels=labels)])
    assert other.label_mass == 0.0


def test_a_continuation_has_a_logprob_per_token(engine: FakeEngine) -> None:
    messages = ask("France").messages
    requests = [
        ScoreRequest("a", messages, continuation="three little words"),
        ScoreRequest("b", messages, continuation_ids=[1, 2]),
    ]
    ((first, second),) = engine.score(requests)
    assert (len(first.token_logprobs), len(second.token_logprobs)) == (3, 2)
    assert first.label_mass is None


def test_batches_do_not_depend_on_the_order_and_done_ones_are_skipped(engine: FakeEngine) -> None:
    requests = [ask("France", f"r{i:02}", seed=i) for i in range(70)]
    whole = list(engine.generate(requests))
    assert [len(batch) for batch in whole] == [32, 32, 6]
    assert list(engine.generate(requests[::-1])) == whole
    done = {r.request_id for r in whole[0]}
    assert list(engine.generate(requests, done)) == whole[1:]


def test_a_script_is_read_from_a_file_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "script.yaml"
    path.write_text(yaml.safe_dump(SCRIPT))
    spec = ModelSpec(path="none", engine="fake", script=str(path))
    loaded = load(spec, None, "fake")
    assert answer(loaded, ask("France", seed=1)).text == "It is Paris."
    assert loaded.weights_hash == FakeEngine(FakeScript.model_validate(SCRIPT)).weights_hash
    path.write_text("rules:\n  - match: '('\n")
    with pytest.raises(ConfigError, match=r"script\.yaml:2: .*not a regular expression"):
        load(spec, None, "fake")
    path.write_text("defalt: x\n")
    with pytest.raises(ConfigError, match="did you mean 'default'"):
        load(spec, None, "fake")
