"""What real servers send, and what comes of it: every shape through `sample`, `judge`,
`judge-bench` and `run`, on real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.core.records import make_prompt
from rlaif.engines.remote import attempt
from tests.engines.test_openai_commands import rlaif, write_rows
from tests.servers.shapes import FLAGGED, NOT_HERE, ODD, SHAPES, Shape, ShapedServer, body, choice
from tests.servers.shapes import error as answers_with

TOPS = {"Yes": -0.3, "No": -1.5}
COMMANDS = ("sample", "judge", "judge-bench", "run")
JUDGING = COMMANDS[1:]
GOOD = [f"Say {i}." for i in range(5)]
PRINCIPLE = {"id": "useful", "text": "The answer is useful."}


def last_prompt() -> str:
    """An odd prompt that comes after the others by its id."""
    ids = [make_prompt([{"role": "user", "content": text}]).prompt_id for text in GOOD]
    odd = (f"Say {ODD} {i}." for i in range(1000))
    return next(
        text
        for text in odd
        if make_prompt([{"role": "user", "content": text}]).prompt_id > max(ids)
    )


@pytest.fixture(scope="module")
def server() -> Iterator[ShapedServer]:
    with ShapedServer(tops=TOPS) as made:
        yield made


@dataclass
class Outcome:
    """What a command did: `odd` and `good` are the records about the odd prompt and the others."""

    code: int
    said: str
    odd: list[dict[str, Any]] = field(default_factory=list)
    good: list[dict[str, Any]] = field(default_factory=list)

    @property
    def words(self) -> str:
        return " ".join(self.said.split())


@dataclass
class Bench:
    """A folder in which the commands run, each time into an empty one of its own."""

    folder: Path
    server: ShapedServer
    odd: str
    structured: bool = False

    def run(self, command: str, label: bool = False, **keys: Any) -> Outcome:
        """Run one command; with `label` its judge reads label probabilities."""
        out = Path(f"{command}-{len(list(self.folder.iterdir()))}")
        return self.again(command, out, label, **keys)

    def again(self, command: str, out: Path, label: bool = False, **keys: Any) -> Outcome:
        """Run a command into a folder, or go on there."""
        limits = {"concurrency": 1, "retries": 2} | keys.pop("limits", {})
        model = {"path": "m", "engine": "openai", "base_url": self.server.url, "limits": limits}
        Path("far.yaml").write_text(yaml.safe_dump(model | {"cache": False} | keys))
        words = getattr(self, "_" + command.replace("-", "_"))(out, label)
        code, said = rlaif(*words, "--quiet")
        found = Outcome(code, said)
        ids = {make_prompt([{"role": "user", "content": self.odd}]).prompt_id}
        kind = "completions" if command == "sample" else "judgements"
        for path in sorted(out.rglob(f"{kind}.jsonl")):
            for line in path.read_text().splitlines():
                if line:
                    row = json.loads(line)
                    (found.odd if row["prompt_id"] in ids else found.good).append(row)
        return found

    def _far(self, label: bool) -> dict[str, Any]:
        """The judge's keys."""
        if label:
            return {"kind": "yes_no", "principles": ["useful"]}
        return {"kind": "rating"} | ({"structured": True} if self.structured else {})

    def _sample(self, out: Path, label: bool) -> list[str]:
        return ["sample", "prompts.jsonl", "--set", "n=1", "--model", "far.yaml", "--out", str(out)]

    def _judge(self, out: Path, label: bool) -> list[str]:
        words = ["--constitution", "rules.yaml"] if label else []
        for key, value in self._far(label).items():
            words += ["--set", f"{key}={json.dumps(value)}"] if key != "kind" else ["--kind", value]
        return ["judge", "sampled", *words, "--model", "far.yaml", "--out", str(out)]

    def _judge_bench(self, out: Path, label: bool) -> list[str]:
        file = {"judges": [{"id": "far"} | self._far(label)]}
        Path("judges.yaml").write_text(yaml.safe_dump(file))
        judge = ["--judge", "judges.yaml", "--no-baselines"]
        judge += ["--constitution", "rules.yaml"] if label else []
        return ["judge-bench", "pairs.jsonl", *judge, "--model", "far.yaml", "--out", str(out)]

    def _run(self, out: Path, label: bool) -> list[str]:
        far = yaml.safe_load(Path("far.yaml").read_text())
        steps = [
            {"sample": {"n": 1}},
            {"judge": {"id": "far", "by": "far", "principles": ["useful"]} | self._far(label)},
        ]
        data = {
            "name": "small",
            "models": {"policy": {"path": "none", "engine": "fake"}, "far": far},
            "constitution": "rules.yaml",
            "prompts": {"path": "prompts.jsonl", "holdout": 1},
            "rounds": 1,
            "steps": steps,
        }
        Path("experiment.yaml").write_text(yaml.safe_dump(data))
        return ["run", "experiment.yaml", "--no-report", "--out", str(out)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: ShapedServer) -> Bench:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(attempt, "FIRST_WAIT", 0.001)
    monkeypatch.chdir(tmp_path)
    odd = last_prompt()
    texts = [*GOOD, odd]
    write_rows(Path("prompts.jsonl"), [{"prompt": text} for text in texts])
    rows = [{"prompt": text, "chosen": "Gladly.", "rejected": "No."} for text in texts]
    write_rows(Path("pairs.jsonl"), rows)
    rules = {"name": "rules", "version": "1", "principles": [PRINCIPLE]}
    Path("rules.yaml").write_text(yaml.safe_dump(rules))
    made = Bench(tmp_path, server, odd)
    server.set(None)
    assert made.again("sample", Path("sampled")).code == 0
    return made


def is_fine(row: dict[str, Any]) -> bool:
    return row.get("status") in ("ok", "tie") or row.get("finish_reason") in ("stop", "length")


RECORD = {
    "page": "<html><title>Sign in</title></html>",
    "event stream": "event stream",
    "finish reason error": "Upstream died",
    "null content": "the answer has no text",
    "usage NaN": "nan tokens",
    "usage infinite": "inf tokens",
    "usage absurd": "1e+30 tokens",
    "deep": "nested too deeply",
    "bomb": "longer than 16 MB",
    "no HTTP": "not HTTP",
    "empty": "it is empty",
    "flagged": "requires moderation. Your input was flagged",
    "not here now": "No endpoints found right now",
    "429 in a 200": "Too Many Requests",
    "no choices": "the answer has no choices",
    "unexpected endpoint": "Unexpected endpoint or method",
    "typographic quotes": "the answer is not JSON",
    "too long": "maximum context length is 8192 tokens",
    "withheld": "content filter withheld the answer",
}
"""Shapes that fail a record where they do not pass, and what is said then."""


@pytest.mark.parametrize("name", RECORD)
def test_a_record_fails_with_its_reason_and_the_run_goes_on(bench: Bench, name: str) -> None:
    for command in COMMANDS:
        bench.server.set(SHAPES[name])
        found = bench.run(command)
        assert found.code == 0, found.said
        assert "Traceback" not in found.said
        assert found.good
        assert all(map(is_fine, found.good))
        for row in found.odd:
            assert row.get("status", row.get("finish_reason")) == "failed"
            assert RECORD[name] in row["error"]
        if found.odd:
            assert RECORD[name] in found.words


@pytest.mark.parametrize("command", COMMANDS)
def test_a_step_whose_calls_all_failed_is_not_done(bench: Bench, command: str) -> None:
    bench.server.set(SHAPES["page"], every=True)
    found = bench.run(command, limits={"retries": 0})
    assert found.code == 2, found.said
    assert "Sign in" in found.words and "delete" in found.words
    done = [json.loads(p.read_text()) for p in bench.folder.glob(f"{command}-*/**/done.json")]
    # What a run sampled from a script before is done.
    assert all(marker["kind"] == "sample" for marker in done)
    assert not done or command == "run"


PASSING = [n for n in RECORD if n not in ("flagged", "deep", "bomb", "too long", "withheld")]


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_asked_again_and_never_kept(bench: Bench, name: str) -> None:
    for command in COMMANDS:
        bench.server.set(SHAPES[name], times=1)
        found = bench.run(command, cache=True)
        assert found.code == 0, found.said
        assert all(map(is_fine, [*found.good, *found.odd]))
    kept = rlaif("cache", "export", "kept.jsonl")
    assert kept[0] == 0
    answers = [json.loads(line)["answer"] for line in Path("kept.jsonl").read_text().splitlines()]
    texts = [c["message"]["content"] for answer in answers for c in answer["choices"]]
    assert set(texts) == {"Rating: 4"}


UNCOUNTED = ["usage of strings", "usage of lists", "usage of nulls", "negative usage", "no usage"]


@pytest.mark.parametrize("name", [*UNCOUNTED, "details a list"])
def test_tokens_that_nobody_counted_are_unknown_and_their_cost_an_estimate(
    bench: Bench, name: str
) -> None:
    price = {"input": 1.0, "output": 4.0}
    for command in COMMANDS:
        bench.server.set(SHAPES[name], every=True)
        found = bench.run(command, price=price)
        assert found.code == 0, found.said
        rows = [*found.good, *found.odd]
        assert all(map(is_fine, rows))
        if command == "sample":
            assert {row["token_ids"] is None for row in rows} == {True}
        else:
            assert {(r["prompt_tokens"], r["new_tokens"], r["cost"]) for r in rows} == {(None,) * 3}
    for ledger in bench.folder.rglob("spend.jsonl"):
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert lines
        assert all(line["estimated"] and line["cost"] > 0 for line in lines)
    shown = rlaif("status", str(next(bench.folder.glob("run-*"))))[1]
    assert "answers without a count of tokens" in shown
    assert "by estimate" in shown


ABSENT = ["null log-prob", "null top", "log-probs a list", "top without token"]


@pytest.mark.parametrize("name", ABSENT)
def test_log_probs_that_cannot_be_read_are_absent(bench: Bench, name: str) -> None:
    for command in JUDGING:
        bench.server.set(SHAPES[name])
        found = bench.run(command, label=True)
        assert found.code == 0, found.said
        assert found.good
        assert all(map(is_fine, found.good))
        assert all("without log-probs" in row["error"] for row in found.odd)


def test_probabilities_under_the_name_of_log_probs_are_refused(bench: Bench) -> None:
    for command in JUDGING:
        bench.server.set(SHAPES["probabilities"])
        found = bench.run(command, label=True)
        assert found.code == 0, found.said
        assert all(map(is_fine, found.good))
        assert all("0.9 as a log-prob" in row["error"] for row in found.odd)


UNREADABLE = {
    "thinking first": "the model thinks before it answers",
    "cut while thinking": "the model thinks before it answers",
    "token ids": "names tokens by their ids (token_id:16)",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_first_token_that_is_no_label_is_no_verdict(bench: Bench, name: str) -> None:
    for command in JUDGING:
        bench.server.set(SHAPES[name])
        found = bench.run(command, label=True)
        assert found.code == 0, found.said
        assert all(map(is_fine, found.good))
        assert all(UNREADABLE[name] in row["error"] for row in found.odd)


STOPPING: dict[str, tuple[Shape, bool, tuple[str, ...]]] = {
    "no /v1": (
        body(error="Unexpected endpoint or method. (POST /chat/completions)"),
        True,
        ("Unexpected endpoint or method", "/v1"),
    ),
    "no key in a 200": (
        body(error={"message": "No auth credentials found", "code": 401}),
        False,
        ("No auth credentials found",),
    ),
    "no model": (answers_with(404, **NOT_HERE), True, ("No endpoints found right now",)),
    "no money": (
        answers_with(429, message="You have no quota left", type="insufficient_quota", code=None),
        False,
        ("You have no quota left",),
    ),
    "forbidden": (answers_with(403, message="Country not supported"), True, ("Country not",)),
}


@pytest.mark.parametrize("name", STOPPING)
def test_what_no_other_call_would_fare_better_with_stops_at_once(bench: Bench, name: str) -> None:
    shape, every, words = STOPPING[name]
    for command in COMMANDS:
        bench.server.set(shape, every)
        found = bench.run(command)
        assert found.code == 2, found.said
        assert all(word in found.words for word in words)
        assert found.odd == []
        assert all(map(is_fine, found.good))
        assert not every or bench.server.calls == 1


REMEDIES: dict[str, tuple[Shape, dict[str, Any], str]] = {
    "max_tokens": (
        answers_with(
            400,
            message="Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
        ),
        {},
        "max_tokens_key: max_completion_tokens",
    ),
    "temperature": (
        answers_with(400, message="Unsupported value: 'temperature' does not support 0."),
        {},
        "extra_body: {temperature: null}",
    ),
    "system role": (
        answers_with(400, message="System role not supported"),
        {"system_prompt": "Be brief."},
        "system_role: merge",
    ),
    "alternating": (
        answers_with(500, message="Jinja Exception: Conversation roles must alternate user/..."),
        {"system_prompt": "Be brief."},
        "system_role: merge",
    ),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_a_first_wave_that_is_all_refused_stops_with_the_remedy(bench: Bench, name: str) -> None:
    shape, keys, remedy = REMEDIES[name]
    for command in COMMANDS:
        bench.server.set(shape, every=True)
        found = bench.run(command, **keys)
        assert found.code == 2, found.said
        assert remedy in found.words
        assert bench.server.calls == 4
        assert found.odd == found.good == []


def test_the_folder_of_a_stopped_command_takes_the_mended_one(bench: Bench) -> None:
    shape, keys, _ = REMEDIES["system role"]
    for command in COMMANDS[:3]:
        bench.server.set(shape, every=True, when=lambda asked: len(asked["messages"]) > 1)
        assert bench.again(command, Path(f"{command}-out"), **keys).code == 2
        mended = bench.again(command, Path(f"{command}-out"), **keys, system_role="merge")
        assert mended.code == 0, mended.said


def test_a_model_without_a_system_role_is_told_by_the_user_turn(bench: Bench) -> None:
    def has_system(asked: dict[str, Any]) -> bool:
        return any(m["role"] == "system" for m in asked["messages"])

    for command in COMMANDS:
        bench.server.set(
            answers_with(400, message="System role not supported"), True, when=has_system
        )
        found = bench.run(command, system_prompt="Be brief.", system_role="merge")
        assert found.code == 0, found.said
        assert all(
            m["messages"][0]["content"].startswith("Be brief.\n\n") for m in bench.server.asked
        )
        dropped = bench.run(command, system_prompt="Be brief.", system_role="drop")
        assert dropped.code == 0
        assert "Be brief." not in json.dumps(bench.server.asked[-1])


def test_a_wait_of_a_day_is_said_and_the_run_can_be_gone_on_with(bench: Bench) -> None:
    for command in COMMANDS:
        busy = answers_with(429, "retry-after: 86400\r\n", message="Daily limit reached")
        bench.server.set(busy)
        out = Path(f"{command}-out")
        found = bench.again(command, out)
        assert found.code == 3, found.said
        assert "requires a wait of 24 h" in found.words
        assert "Daily limit reached" in found.words
        assert found.odd == []
        assert found.good
        before = len(found.good)
        bench.server.set(None)
        done = bench.again(command, out)
        assert done.code == 0, done.said
        assert all(map(is_fine, [*done.good, *done.odd]))
        assert len(done.good) + len(done.odd) - before == bench.server.calls


def test_thinking_that_used_up_the_tokens_is_said_with_the_key(bench: Bench) -> None:
    thought = {"content": "", "reasoning_content": "First, I compare"}
    for command in COMMANDS:
        bench.server.set(choice(message=thought, finish_reason="length"))
        found = bench.run(command)
        assert found.code == 0, found.said
        assert all(map(is_fine, found.good))
        for row in found.odd:
            assert not is_fine(row)
            assert "thinking used up the tokens" in row["error"]
            assert "max_new_tokens" in row["error"]


NO_SCHEMA = [
    answers_with(400, message="Structured outputs are not supported by this model"),
    answers_with(500, message="failed to compile json_schema grammar"),
    answers_with(400, message="'response_format.type' must be 'text'"),
    body(error={"message": "guided decoding backend not available", "code": 422}),
]


@pytest.mark.parametrize("shape", NO_SCHEMA)
def test_a_refused_schema_is_left_out_once_and_loudly(
    bench: Bench, shape: Shape, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The prompt asks for JSON with or without the schema, and the model writes it.
    monkeypatch.setattr(bench.server, "text", '{"reasons": "Fine.", "score": "4"}')
    monkeypatch.setattr(bench, "structured", True)
    for command in JUDGING:
        caplog.clear()
        bench.server.set(shape, True, when=lambda asked: "response_format" in asked)
        found = bench.run(command)
        assert found.code == 0, found.said
        assert len([r for r in caplog.records if "JSON schema is left out" in r.message]) == 1
        assert sum("response_format" in asked for asked in bench.server.asked) == 1
        rows = [*found.good, *found.odd]
        assert {(row["status"], row["score"]) for row in rows} == {("ok", 0.75)}
        assert len(bench.server.asked) == len(rows) + 1


def test_moderation_before_any_answer_fails_records_alone(bench: Bench) -> None:
    bench.server.set(answers_with(403, **FLAGGED), every=True, times=3)
    found = bench.run("sample")
    assert found.code == 0
    rows = [*found.good, *found.odd]
    assert [is_fine(row) for row in rows].count(False) == 3


def test_reasons_of_failures_are_in_the_status_the_report_and_the_bench_page(bench: Bench) -> None:
    bench.server.set(SHAPES["flagged"], every=True, times=2)
    ran = bench.again("run", Path("run-out"))
    assert rlaif("report", "run-out")[0] == 0
    bench.server.set(SHAPES["flagged"])
    judged = bench.again("judge-bench", Path("bench-out"))
    shown = {
        "run": ran.said,
        "status": rlaif("status", "run-out")[1],
        "json": rlaif("status", "run-out", "--json")[1],
        "report": Path("run-out/report.html").read_text(),
        "bench": judged.words,
        "page": Path("bench-out/report.html").read_text(),
    }
    for name, text in shown.items():
        assert "Your input was flagged" in text, name
    assert "2 failed: status 403" in shown["run"]
    assert "2 failed: status 403" in shown["status"]
    assert "2 failed: status 403" in shown["bench"]
    assert "seconds by the clock per pair" in shown["bench"]
