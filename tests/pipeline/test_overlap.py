"""Sampling here and judging on a server at once: what is judged when, what is kept, what ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.steps import SampleStep
from rlaif.core.errors import EngineError, GateStopped
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, make_prompt
from rlaif.core.store import Store
from rlaif.engines.local.hf import HfEngine
from rlaif.pipeline.experiment import run_both, run_experiment
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.runs import load_run
from rlaif.pipeline.steps.context import LiveSamples, StepContext
from rlaif.pipeline.steps.judge import Groups
from tests.servers.scripted import ScriptedServer, prompt_text

Writer = Callable[..., Path]
PATIENCE_SECONDS = 60
PRICE = {"input": 0.0, "output": 4.0}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The embedded model's conversion lies in the ordinary cache: only the requests' is moved.
    monkeypatch.setattr(
        "rlaif.engines.remote.session.cache_path", lambda: tmp_path / "requests.sqlite"
    )


def verdict(body: dict[str, Any], choice: int) -> str:
    return f"Reasons first. Score: {len(prompt_text(body)) % 5 + 1}"


JUDGES = {
    "rating": {"kind": "rating", "max_new_tokens": 8},
    "cot": {"kind": "yes_no", "cot": True, "max_new_tokens": 8},
    "jury": {
        "kind": "jury",
        "of": [
            {"id": "one", "kind": "rating", "by": "far", "max_new_tokens": 8},
            {"id": "two", "kind": "direct", "by": "far", "expected": False, "max_new_tokens": 8},
        ],
    },
}


def experiment(
    write: Writer, folder: Path, model: Path, url: str, judge: dict[str, Any], **far: Any
) -> Path:
    """Three answers of a small model to each of five prompts, judged on the server at `url`. A
    batch holds the answers to one or two prompts."""
    policy = {"path": str(model), "dtype": "float32", "system_prompt": "drop", "batch_tokens": 70}
    server = {"path": "m", "engine": "openai", "base_url": url, "cache": False, **far}
    asks = {} if judge["kind"] == "jury" else {"by": "far"}
    steps = [
        {"sample": {"n": 3, "temperature": 1.0, "max_new_tokens": 6}},
        {"judge": {"id": "checks", "kind": "rules"}},
        {"judge": {"id": "judge", **judge, **asks}},
    ]
    models = {"policy": policy, "far": server}
    budget = {"budget": 1.0} if "price" in far else {}
    return write(folder, model, models=models, steps=steps, rounds=1, **budget)


def one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlaif.pipeline.experiment.split_group", lambda steps: (steps, []))


def found(out: Path) -> dict[str, Any]:
    """Records by id and what the markers count, without times, costs and the order of arrival."""
    run = load_run(out)
    timed = {"latency": None, "cost": None}
    rows: dict[str, Any] = {row["judgement_id"]: row | timed for row in run.rows("judgements")}
    rows |= {row["completion_id"]: row for row in run.rows("completions")}
    for step in run.manifest["steps"]:
        marker = run.store.step(step["hash"]).done()
        assert marker is not None
        rows[step["hash"]] = (marker["counts"], marker.get("statuses"))
    return rows


def waiting_after_a_batch(
    monkeypatch: pytest.MonkeyPatch, enough: Callable[[int], bool]
) -> list[int]:
    """Have the sampler give out a batch only when `enough` holds of the number of those before it,
    or patience ends. The numbers for which it held are in the list."""
    sampled, seen = HfEngine.generate, []

    def sampling(self: HfEngine, requests: Any, done: Any = frozenset()) -> Iterator[Any]:
        for number, batch in enumerate(sampled(self, requests, done)):
            until = time.monotonic() + PATIENCE_SECONDS
            while not (held := enough(number)) and time.monotonic() < until:
                time.sleep(0.01)
            if held:
                seen.append(number)
            yield batch

    monkeypatch.setattr(HfEngine, "generate", sampling)
    return seen


def when_judging_ends(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once the steps that run beside the sampling are at their end."""
    ended = threading.Event()

    def spied(here: Any, far: Callable[[], None], end_far: Any) -> None:
        def watched() -> None:
            try:
                far()
            finally:
                ended.set()

        run_both(here, watched, end_far)

    monkeypatch.setattr("rlaif.pipeline.experiment.run_both", spied)
    return ended


@pytest.mark.parametrize("kind", JUDGES)
def test_the_server_judges_while_this_process_samples(
    tmp_path: Path,
    tiny_model: Path,
    write_experiment: Writer,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    with ScriptedServer(verdict, tops={"Yes": -0.3, "No": -1.9}) as server:
        path = experiment(write_experiment, tmp_path, tiny_model, server.url, JUDGES[kind])
        with monkeypatch.context() as patch:
            # No batch but the first comes out before the answers that lie there are asked about.
            seen = waiting_after_a_batch(patch, lambda number: len(server.asked) >= 3 * number)
            run_experiment(path, tmp_path / "at-once")
            asked = len(server.asked)
        assert seen == list(range(len(seen)))
        assert len(seen) > 2
        one_after_the_other(monkeypatch)
        run_experiment(path, tmp_path / "in-order")
        assert len(server.asked) == 2 * asked
    at_once = found(tmp_path / "at-once")
    assert at_once == found(tmp_path / "in-order")
    assert any(row.get("status") == "ok" for row in at_once.values() if isinstance(row, dict))


def test_a_prompt_is_judged_when_all_of_its_answers_are_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    prompts = [make_prompt([{"role": "user", "content": text}]) for text in ("One?", "Two?")]
    early, late = sorted(prompt.prompt_id for prompt in prompts)
    place = (0, 1)
    sampling = Planned("s", "sample", "s", *place, SampleStep(n=2), prompts=(early, late))
    judging = Planned("j", "judge", "j", *place, None, {"completions/0": "s"}, {}, (early, late))
    context = StepContext(
        judging,
        store.step("j"),
        store,
        None,  # type: ignore[arg-type]
        {prompt.prompt_id: prompt for prompt in prompts},
        None,  # type: ignore[arg-type]
        QuietProgress(),
        LiveSamples({"s": sampling}),
    )
    rows = {
        (name, index): Completion(f"{name}{index}", name, index, [], "m", "w", {}, "stop")
        for name in (early, late)
        for index in range(2)
    }
    samples = store.step("s")
    samples.append("completions", [rows[late, 0], rows[early, 0], rows[early, 1]])
    waves = Groups(context).waves()
    assert list(next(waves)) == [early]
    samples.append("completions", [rows[late, 1]])
    samples.finish({})
    assert [list(wave) for wave in waves] == [[late]]


def test_two_servers_work_at_once(
    tmp_path: Path, write_experiment: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(body: dict[str, Any], choice: int) -> str:
        until = time.monotonic() + PATIENCE_SECONDS
        while len(sampler.asked) == 5 and not judge.asked and time.monotonic() < until:
            time.sleep(0.01)
        judged_before.append(len(judge.asked))
        return "A plain answer."

    judged_before: list[int] = []
    with ScriptedServer(answer) as sampler, ScriptedServer(verdict) as judge:
        limits = {"concurrency": 1}
        models = {
            name: {"path": "m", "engine": "openai", "base_url": server.url, "limits": limits}
            for name, server in (("policy", sampler), ("far", judge))
        }
        steps = [{"sample": {"n": 1}}, {"judge": {"by": "far", **JUDGES["rating"]}}]
        path = write_experiment(tmp_path, None, models=models, steps=steps, rounds=1)
        run_experiment(path, tmp_path / "run")
        remote = [json.loads(p.read_text()) for p in (tmp_path / "run/steps").glob("*/remote.json")]
    assert len(judged_before) == 5
    assert judged_before[-1] > 0
    # Each step has its own server's numbers alone.
    assert sorted(name for row in remote for name in row) == ["M0", "far"]
    assert len(remote) == 2


def test_a_judge_that_fails_ends_the_sampling_and_what_was_made_is_kept(
    tmp_path: Path, tiny_model: Path, write_experiment: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedServer(verdict) as server:
        path = experiment(
            write_experiment, tmp_path, tiny_model, server.url, JUDGES["rating"], path="absent"
        )
        with monkeypatch.context() as patch:
            ended = when_judging_ends(patch)
            waiting_after_a_batch(patch, lambda number: number == 0 or ended.is_set())
            with pytest.raises(EngineError, match="status 404"):
                run_experiment(path, tmp_path / "run")
        kept = list(load_run(tmp_path / "run").rows("completions"))
        assert 0 < len(kept) < 15
        run_experiment(path, tmp_path / "run", ["models.far.path=m"])
    rows = list(load_run(tmp_path / "run").rows("completions"))
    assert rows[: len(kept)] == kept
    assert len({row["completion_id"] for row in rows}) == len(rows) == 15


def test_a_spent_budget_ends_both_and_a_higher_one_goes_on(
    tmp_path: Path, tiny_model: Path, write_experiment: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedServer(verdict) as server:
        path = experiment(
            write_experiment, tmp_path, tiny_model, server.url, JUDGES["rating"], price=PRICE
        )
        with monkeypatch.context() as patch:
            waiting_after_a_batch(patch, lambda number: len(server.answered) >= min(2, number))
            with pytest.raises(GateStopped, match="the budget of 8e-05 is spent") as stop:
                run_experiment(path, tmp_path / "run", ["budget=0.00008"])
        assert stop.value.exit_code == 3
        judged = list(load_run(tmp_path / "run").rows("judgements"))
        before = len(server.asked)
        assert 0 < len([row for row in judged if row["judge"] == "judge"]) == before < 15
        run_experiment(path, tmp_path / "run")
        assert len(server.asked) == 15
        one_after_the_other(monkeypatch)
        run_experiment(path, tmp_path / "in-order")
    assert found(tmp_path / "run") == found(tmp_path / "in-order")


def test_an_interrupt_ends_calls_that_are_open(
    tmp_path: Path, tiny_model: Path, write_experiment: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(QuietProgress):
        def advance(self, count: int, tokens: int = 0, note: str = "") -> None:
            if server.asked:
                raise KeyboardInterrupt

    # An answer takes longer than the test may.
    with ScriptedServer(verdict, latency=10 * PATIENCE_SECONDS) as server:
        path = experiment(write_experiment, tmp_path, tiny_model, server.url, JUDGES["rating"])
        with monkeypatch.context() as patch:
            waiting_after_a_batch(patch, lambda number: number == 0 or bool(server.asked))
            with pytest.raises(KeyboardInterrupt):
                run_experiment(path, tmp_path / "run", progress=Interrupting())
        assert server.asked
        assert not server.answered
        server.latency = 0.0
        run_experiment(path, tmp_path / "run")
    rows = list(load_run(tmp_path / "run").rows("completions"))
    assert len({row["completion_id"] for row in rows}) == len(rows) == 15


STUCK_RUN = """
import sys, time
from pathlib import Path
from rlaif.engines.local.hf import HfEngine
from rlaif.pipeline.experiment import run_experiment

sampled = HfEngine.generate

def sampling(self, requests, done=frozenset()):
    for batch in sampled(self, requests, done):
        yield batch
        time.sleep(600)

HfEngine.generate = sampling
run_experiment(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_between_sampling_and_judging_it_goes_on(
    tmp_path: Path, tiny_model: Path, write_experiment: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedServer(verdict) as server:
        path = experiment(write_experiment, tmp_path, tiny_model, server.url, JUDGES["rating"])
        out = tmp_path / "run"
        for _ in range(2):
            before = len(server.answered)
            command = [sys.executable, "-c", STUCK_RUN, str(path), str(out)]
            with subprocess.Popen(command) as process:
                until = time.monotonic() + PATIENCE_SECONDS
                while len(server.answered) < before + 2 and time.monotonic() < until:
                    time.sleep(0.01)
                process.send_signal(signal.SIGKILL)
            assert len(server.answered) > before
            assert not list(out.glob("steps/*/done.json"))
        run_experiment(path, out)
        one_after_the_other(monkeypatch)
        run_experiment(path, tmp_path / "in-order")
    assert found(out) == found(tmp_path / "in-order")
