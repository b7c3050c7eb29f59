"""An actor in this process: how calls are laid out, and what it says of an absent folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

from rlaif.cluster.actor import CHUNK, EngineActor
from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.engines.base import GenerateRequest, GenerateResult, Sampling

REQUESTS = [
    GenerateRequest(f"r{n}", [{"role": "user", "content": f"Word {n}?"}], Sampling(4, 0.0))
    for n in range(2 * CHUNK + 3)
]


class Plain:
    """An engine without a layout of its own, as vLLM's is: it answers what it is given."""

    capabilities = frozenset({"generate"})
    weights_hash = "plain"
    concurrent = False

    def __init__(self, spec: ModelSpec, folder: Path | None, name: str):
        self.name = name

    def generate(
        self, requests: Iterable[GenerateRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[GenerateResult]]:
        """One result a batch, in the order of the requests."""
        for request in requests:
            yield [GenerateResult(request.request_id, "a word", [1, 2], "stop", 3)]


def test_an_engine_without_a_layout_is_given_chunks_of_what_is_left() -> None:
    actor = EngineActor({"path": "none", "engine": "tests.cluster.test_actor:Plain"}, None, "m")
    done = {"r0", "r300"}
    batches = actor.lay_out(REQUESTS, done)
    assert [len(batch) for batch in batches] == [CHUNK, CHUNK, 1]
    asked = [request.request_id for batch in batches for request in batch]
    assert asked == [r.request_id for r in REQUESTS if r.request_id not in done]
    answered = actor.answer("generate", batches[-1])
    assert [(r.request_id, r.text) for r in answered] == [(asked[-1], "a word")]
    assert (actor.about().name, actor.about().weights_hash) == ("m", "plain")
    assert not actor.about().loses and not actor.lost(REQUESTS[0].messages)


def test_an_engine_with_a_layout_answers_as_it_does_by_itself() -> None:
    actor = EngineActor({"path": "none", "engine": "fake"}, None, "m")
    batches = actor.lay_out(REQUESTS[:40], {"r7"})
    found = [result for batch in batches for result in actor.answer("generate", batch)]
    alone = [r for batch in actor._engine().generate(REQUESTS[:40], {"r7"}) for r in batch]
    assert found == alone


def test_a_folder_that_a_node_lacks_is_named(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    actor = EngineActor({"path": absent, "engine": "hf"}, absent, "judge")
    with pytest.raises(EngineError, match=f"model 'judge': node .* has no folder {absent}"):
        actor.about()
