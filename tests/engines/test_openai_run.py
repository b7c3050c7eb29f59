"""Whole runs whose models are on a server: plan, dry run, records, metrics, budget, commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from rlaif.cli import cli
from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError, GateStopped
from rlaif.core.store import Store
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.engines.remote.cache import cache_path
from rlaif.engines.remote.meter import Account, run_account
from rlaif.engines.remote.openai import load
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.forecast import dry_run_report, forecast
from rlaif.pipeline.manifest import read_rounds
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import load_run
from rlaif.pipeline.verify import verify_run
from tests.servers.scripted import ScriptedServer

TOPS = {"Yes": -0.3, "yes": -3.0, "No": -1.9}
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "number"}},
    "required": ["score"],
    "additionalProperties": False,
}
PRICE = {"input": 1.0, "output": 4.0}
TEMPLATE = """Score the answer between the marks from 0 to 1, as JSON.
{{ fence }}
{{ response }}
{{ fence }}
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))


def scored(body: dict[str, Any], choice: int) -> str:
    if "as JSON" in str(body):
        return '{"score": 0.75}' if "response_format" in body else 'I say {"score": 0.5} here'
    return "A plain answer."


def experiment(
    write: Callable[..., Path],
    folder: Path,
    url: str,
    policy: bool = False,
    price: dict[str, float] = PRICE,
    **changes: Any,
) -> Path:
    """Two judges on the server; with `policy` it answers the prompts too."""
    remote = {"path": "m", "engine": "openai", "base_url": url, "price": price}
    models = {"policy": remote if policy else {"path": "none", "engine": "fake"}, "remote": remote}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.j2").write_text(TEMPLATE)
    ask = {"by": "remote", "principles": ["useful"]}
    template = {
        "id": "json",
        "kind": "template",
        "by": "remote",
        "template": "score.j2",
        "parse": {"json_schema": SCHEMA},
        "max_new_tokens": 8,
    }
    steps = [
        {"sample": {"n": 2, "temperature": 1.0, "max_new_tokens": 8}},
        {"judge": {"id": "liked", "kind": "yes_no", **ask}},
        {"judge": template},
        {"evaluate": {"resamples": 20}},
    ]
    changes |= {"models": models, "steps": steps, "allow_same_weights": policy}
    return write(folder, None, rounds=1, **changes)


def spent_in(out: Path) -> float:
    return sum(json.loads(line)["cost"] for line in (out / "spend.jsonl").open())


@pytest.mark.parametrize("left", [0, 3, None])
def test_a_ledger_that_lost_lines_counts_for_what_the_steps_say(
    tmp_path: Path,
    write_experiment: Callable[..., Path],
    left: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "run"
    with ScriptedServer(scored, tops=TOPS) as server:
        path = experiment(write_experiment, tmp_path / "e", server.url)
        run_experiment(path, out)
    spent = spent_in(out)
    assert verify_run(out).faults == ()
    assert run_account(out).spent == pytest.approx(spent)
    lines = (out / "spend.jsonl").read_text().splitlines(keepends=True)
    if left is None:
        (out / "spend.jsonl").unlink()
    else:
        (out / "spend.jsonl").write_text("".join(lines[:left]))
    caplog.clear()
    assert run_account(out).spent == pytest.approx(spent)
    assert "lines are missing" in caplog.text
    (fault,) = verify_run(out).faults
    assert "spend.jsonl: lines are missing" in fault


@pytest.mark.parametrize("policy", [False, True])
def test_a_run_with_models_on_a_server(
    tmp_path: Path, write_experiment: Callable[..., Path], policy: bool
) -> None:
    out = tmp_path / "run"
    with ScriptedServer(scored, tops=TOPS) as server:
        path = experiment(write_experiment, tmp_path / "e", server.url, policy)
        inputs = prepare(path, fetch=False)
        rows = forecast(inputs, Store(out))
        run_experiment(path, out)
        asked = server.calls
        again = run_experiment(path, out)
        assert again.ran == 0
        assert server.calls == asked
    steps = {p.name: Store(out).step(p.name) for p in (out / "steps").iterdir()}
    judgements = [row for s in steps.values() for row in s.read("judgements")]
    assert {row["status"] for row in judgements} == {"ok"}
    assert {row["score"] for row in judgements if row["judge"] == "json"} == {0.75}
    assert all(row["cost"] > 0 for row in judgements)
    assert all(row["prompt_tokens"] > 0 for row in judgements)
    remote = load_run(out).remote().values()
    assert sum(n["calls"] for n in remote) == asked
    assert all(n["latency"]["p50"] > 0 for n in remote if n["calls"])
    spent = spent_in(out)
    assert sum(n["cost"] for n in remote) == pytest.approx(spent)
    assert sum(s["cost"] or 0.0 for s in load_run(out).status()["steps"]) == pytest.approx(spent)
    expected = sum(row.cost or 0.0 for row in rows)
    assert spent <= expected < 20 * spent
    metrics = read_rounds(out)[-1].metrics["metrics"]
    assert "length/words" in metrics
    # The server counts tokens and does not say which: their number per answer is not known here.
    assert ("length/tokens" in metrics) is not policy


def test_a_budget_stops_a_run_and_a_higher_one_goes_on(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    # With input for nothing the most that a call may cost is near what it does cost.
    out, price = tmp_path / "run", {"input": 0.0, "output": 4.0}
    with ScriptedServer(scored, tops=TOPS) as server:
        path = experiment(write_experiment, tmp_path / "e", server.url, price=price, budget=0.0001)
        with pytest.raises(GateStopped, match=r"the budget of 0\.0001 is spent"):
            run_experiment(path, out)
        first = server.calls
        assert first > 0
        assert "NOT ENOUGH" in dry_run_report(path, out, (), False)
        run_experiment(path, out, ["budget=1"])
        assert len(server.asked) == len({json.dumps(b, sort_keys=True) for b in server.asked})
    # The numbers of both runs: the step that was stopped half way goes on counting.
    remote = load_run(out).remote()["remote"]
    assert remote["calls"] == server.calls > first
    assert remote["cost"] == pytest.approx(spent_in(out))
    assert ", 0 to do" in dry_run_report(path, out, ["budget=1"], False)
    fresh = dry_run_report(path, tmp_path / "fresh", ["budget=1"], False)
    assert "1 of the budget of 1 are left: enough" in fresh


GRPO = {
    "method": "grpo",
    "rewards": {"far": 1.0},
    "rollouts": 3,
    "batch_size": 2,
    "sync_every": 2,
    "n": 4,
    "max_new_tokens": 16,
}


def test_the_rewards_of_on_policy_training_are_forecast(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    remote = {"path": "m", "engine": "openai", "base_url": "http://127.0.0.1:9/v1", "price": PRICE}
    path = write_experiment(
        tmp_path / "e",
        None,
        models={"policy": {"path": "builtin/smollm2-135m-instruct"}, "remote": remote},
        judges=[{"id": "far", "kind": "rating", "by": "remote", "max_new_tokens": 8}],
        steps=[{"train": GRPO}],
        rounds=1,
        budget=100,
    )
    (row,) = forecast(prepare(path, fetch=False), Store(tmp_path / "run"))
    answers = 3 * 2 * 2 * 4
    judged = row.calls - answers
    assert judged >= answers
    assert judged % answers == 0
    assert row.tokens == answers * 16 + judged * 8
    assert row.cost is not None
    assert row.cost > judged * 8 * PRICE["output"] / 1e6
    report = dry_run_report(path, tmp_path / "run", (), False)
    assert "left: enough" in report
    few = dry_run_report(path, tmp_path / "run", ["budget=0.001"], False)
    assert "NOT ENOUGH" in few


@pytest.mark.parametrize("priced", ["policy", None])
def test_what_a_judge_of_several_models_costs_is_said_to_be_unknown(
    tmp_path: Path, write_experiment: Callable[..., Path], priced: str | None
) -> None:
    url = "http://127.0.0.1:9/v1"
    models: dict[str, Any] = {n: {"path": "none", "engine": "fake"} for n in ("policy", "remote")}
    models |= {"far": {"path": "f", "engine": "openai", "base_url": url, "price": PRICE}}
    if priced:
        models[priced] = {"path": "m", "engine": "openai", "base_url": url, "price": PRICE}
    of = [{"kind": "yes_no", "by": "policy"}, {"kind": "direct", "by": "remote"}]
    path = write_experiment(
        tmp_path / "e",
        None,
        models=models,
        steps=[{"sample": {}}, {"judge": {"kind": "jury", "pool": "vote", "of": of}}],
        rounds=1,
        budget=100,
    )
    rows = forecast(prepare(path, fetch=False), Store(tmp_path / "run"))
    assert all(r.cost_known for r in rows if r.kind != "judge")
    assert all(r.cost_known is (priced is None) for r in rows if r.kind == "judge")
    assert any(r.kind == "judge" for r in rows)
    report = dry_run_report(path, tmp_path / "run", (), False)
    assert ("whether that is enough is unknown" in report) is (priced is not None)


def test_a_server_without_json_schemas_is_asked_for_text(tmp_path: Path) -> None:
    class Strict(ScriptedServer):
        def respond(self, path: str, key: str, body: dict[str, Any]) -> Any:
            if "response_format" in body:
                return 400, {"error": {"message": "response_format is not supported"}}
            return super().respond(path, key, body)

    messages = [{"role": "user", "content": "as JSON"}]
    request = GenerateRequest("r", messages, Sampling(8), json_schema=SCHEMA)  # type: ignore[arg-type]
    with Strict(scored) as server:
        made = load(spec(base_url=server.url), None, "m", Account())
        ((result,),) = made.generate([request])
    assert result.text == 'I say {"score": 0.5} here'


def spec(**keys: Any) -> ModelSpec:
    return ModelSpec.model_validate({"path": "m", "engine": "openai", **keys})


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_samples_of_a_prompt_share_calls(api: str) -> None:
    def ask(name: str, text: str, seed: int) -> GenerateRequest:
        return GenerateRequest(name, [{"role": "user", "content": text}], Sampling(6, seed=seed))

    asked = [ask(f"{p}{i}", f"prompt {p}", i) for p in "ab" for i in range(5)]
    with ScriptedServer() as server:
        made = load(spec(base_url=server.url, samples_per_call=4, api=api), None, "m", Account())
        results = {r.request_id: r.text for batch in made.generate(asked) for r in batch}
        again = {r.request_id: r.text for batch in made.generate(asked) for r in batch}
        assert sorted(body.get("n", 1) for body in server.asked) == [1, 1, 4, 4]
    assert len(results) == 10
    assert len({results[f"a{i}"] for i in range(4)}) > 1
    assert again == results


def test_what_a_reasoning_model_thought_is_kept_apart() -> None:
    thought = {"reasoning_content": "Let me see.", "content": "Fine.", "role": "assistant"}
    choices = [{"index": 0, "finish_reason": "stop", "message": thought}]
    with ScriptedServer(changes={"choices": choices}) as server:
        made = load(spec(base_url=server.url), None, "m", Account())
        request = GenerateRequest("r", [{"role": "user", "content": "Is it?"}], Sampling(6))
        ((result,),) = made.generate([request])
    assert (result.text, result.reasoning) == ("Fine.", "Let me see.")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "needs `base_url`"),
        ({"base_url": "127.0.0.1:8000"}, "must begin with http"),
        ({"base_url": "http://me:secret@host/v1"}, "may hold no key"),
        ({"base_url": "http://host/v1?key=secret"}, "may hold no key"),
        ({"base_url": "http://host/v1", "dtype": "float32"}, "`dtype` is read by engine hf"),
        ({"base_url": "http://host/v1", "system_prompt": "drop"}, "the server renders"),
        ({"base_url": "http://host/v1", "engine": "fake"}, "`base_url` is read by engine openai"),
        ({"base_url": "http://host/v1", "api_key": "secret"}, "api_key"),
    ],
)
def test_keys_that_reach_nothing_are_refused(keys: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**keys)


@pytest.mark.parametrize(
    ("price", "remote", "message"),
    [(None, True, "needs the `price` of every remote model"), (None, False, "has no effect")],
)
def test_a_budget_that_counts_nothing_is_refused(price: Any, remote: bool, message: str) -> None:
    server = {"path": "m", "engine": "openai", "base_url": "http://host/v1", "price": price}
    models = {"policy": {"path": "none", "engine": "fake"}} | ({"judge": server} if remote else {})
    data = {"name": "x", "models": models, "prompts": {"path": "p"}, "budget": 1, "steps": []}
    with pytest.raises(ValidationError, match=message):
        Experiment.model_validate(data | {"steps": [{"sample": {}}]})


def test_a_key_that_is_not_set_is_missed_before_the_run_and_not_by_a_dry_one(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    remote = {"path": "m", "engine": "openai", "base_url": "http://127.0.0.1:9/v1"}
    models = {"policy": {"path": "none", "engine": "fake"}, "remote": remote | {"key_env": "NONE"}}
    path = write_experiment(tmp_path / "e", None, models=models, steps=[{"sample": {}}])
    prepare(path, fetch=False)
    with pytest.raises(ConfigError, match="environment variable NONE"):
        prepare(path)


def test_a_judge_that_needs_a_prefill_says_so_before_the_run(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    steps = [
        {"sample": {}},
        {"judge": {"kind": "rating", "by": "remote", "expected": True, "principles": ["useful"]}},
    ]
    remote = {"path": "m", "engine": "openai", "base_url": "http://127.0.0.1:9/v1"}
    models = {"policy": {"path": "none", "engine": "fake"}, "remote": remote}
    path = write_experiment(tmp_path / "f", None, models=models, steps=steps)
    with pytest.raises(ConfigError, match=r"\['prefill'\], which engine 'openai' lacks"):
        prepare(path, fetch=False)
    remote["prefill"] = True  # type: ignore[assignment]
    prepare(write_experiment(tmp_path / "g", None, models=models, steps=steps), fetch=False)


def test_looking_at_the_cache_creates_none() -> None:
    shown = CliRunner().invoke(cli, ["cache", "stats"])
    assert "0 answers, 0.0 MB of 10000 MB" in shown.output
    assert not cache_path().exists()


def test_the_cache_commands(tmp_path: Path, write_experiment: Callable[..., Path]) -> None:
    with ScriptedServer(scored, tops=TOPS) as server:
        path = experiment(write_experiment, tmp_path / "e", server.url)
        run_experiment(path, tmp_path / "run")
    runner = CliRunner()
    stats = json.loads(runner.invoke(cli, ["cache", "stats", "--json"]).output)
    assert stats["answers"] == server.calls > 0
    assert "m at http://127.0.0.1" in runner.invoke(cli, ["cache", "stats"]).output
    target = tmp_path / "answers.jsonl"
    assert runner.invoke(cli, ["cache", "export", str(target)]).exit_code == 0
    rows = [json.loads(line) for line in target.open()]
    assert len(rows) == server.calls
    assert {row["request"]["model"] for row in rows} == {"m"}
    assert runner.invoke(cli, ["cache", "prune"]).exit_code != 0
    assert "0 answers dropped" in runner.invoke(cli, ["cache", "prune", "--to-mb", "100"]).output
    dropped = runner.invoke(cli, ["cache", "prune", "--all"]).output
    assert dropped.startswith(f"{server.calls} answers dropped")
