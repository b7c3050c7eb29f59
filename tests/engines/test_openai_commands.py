"""Commands with a model on a server: by a YAML file, in the quickstart, and no key shown."""

from __future__ import annotations

import json
import logging
import math
import random
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.core.errors import RlaifError
from rlaif.engines.remote import attempt
from tests.servers.faults import FaultProxy
from tests.servers.scripted import ScriptedServer, prompt_text

TOPS = {"Yes": -0.3, "No": -1.5, "A": -0.2, "B": -2.0}
CANARY = "sk-canary/0123\\456789"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(attempt, "FIRST_WAIT", 0.01)
    monkeypatch.chdir(tmp_path)


def rlaif(*words: str | Path) -> tuple[int, str]:
    """The exit code, and everything printed or raised."""
    done = CliRunner().invoke(cli, [str(word) for word in words])
    raised = "".join(traceback.format_exception(done.exception)) if done.exception else ""
    code = done.exception.exit_code if isinstance(done.exception, RlaifError) else done.exit_code
    return code, done.output + raised


def model_file(folder: Path, url: str, **keys: Any) -> Path:
    """A YAML file that names the server's model."""
    path = folder / "far.yaml"
    path.write_text(yaml.safe_dump({"path": "m", "engine": "openai", "base_url": url, **keys}))
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_command_that_asks_a_model_takes_a_file_with_a_server_in_it(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"Say {i}."} for i in range(3)])
    rows = [{"prompt": f"Say {i}.", "chosen": "Gladly.", "rejected": "No."} for i in range(3)]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    commands: list[list[str | Path]] = [
        ["sample", prompts, "--set", "n=2", "--out", "sampled"],
        ["judge", "sampled", "--kind", "rating", "--out", "judged"],
        ["judge-bench", pairs, "--judge", "rating", "--out", "bench"],
    ]
    with ScriptedServer(lambda b, i: "Rating: 7", context=10_000) as server:
        model = model_file(tmp_path, server.url)
        for words in commands:
            before = server.calls
            code, said = rlaif(*words, "--model", model, "--quiet")
            assert code == 0, said
            asked = json.loads((Path(str(words[-1])) / "remote.json").read_text())
            assert [row["calls"] for row in asked.values()] == [server.calls - before]
            assert server.calls > before


class Opinionated(ScriptedServer):
    """A server that thinks differently of every text, so that no two answers tie."""

    def respond(self, path: str, key: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        share = random.Random(prompt_text(body)).uniform(0.1, 0.9)
        self.tops = {"Yes": math.log(share), "No": math.log(1 - share)}
        return super().respond(path, key, body)


def test_the_quickstart_with_its_judge_on_a_server(tiny_model: Path, tmp_path: Path) -> None:
    small = ["rounds=1", "prompts.holdout=4", "steps.sample.prompts=6", "steps.sample.n=2"]
    small += ["steps.sample.max_new_tokens=24", "steps.pair.min_margin=0.001"]
    small += ["steps.evaluate.resamples=20"]
    with Opinionated(context=10_000) as server:
        far = f"{{path: m, engine: openai, base_url: '{server.url}'}}"
        settings = [f"models.policy.path={tiny_model}", f"models.far={far}", "steps.self.by=far"]
        words = [word for setting in [*settings, *small] for word in ("--set", setting)]
        code, said = rlaif("run", "experiments/quickstart.yaml", *words, "--quiet", "--out", "run")
        assert code == 0, said
        asked = server.calls
    status = json.loads(rlaif("status", "run", "--json")[1])
    assert status["state"] == "done"
    # Round 1 samples two answers to each prompt; M0 and M1 answer the held-out ones.
    assert status["remote"]["far"]["calls"] + status["remote"]["far"]["cache_hits"] == 12 + 4 + 4
    assert status["remote"]["far"]["calls"] == asked > 0
    assert f"far: {asked} calls, " in rlaif("status", "run")[1]
    assert "Models on servers" in Path("run/report.html").read_text()


def test_a_judge_whose_server_is_broken_is_named_with_its_error(
    tiny_model: Path, tmp_path: Path
) -> None:
    keys = ["rounds=1", "prompts.holdout=4", "steps.sample.prompts=3", "steps.sample.n=2"]
    keys += [f"models.policy.path={tiny_model}", "steps.sample.max_new_tokens=8"]
    with (
        ScriptedServer(tops=TOPS, context=10_000) as server,
        FaultProxy(server.url, lambda n: "broken") as proxy,
    ):
        far = f"{{path: m, engine: openai, base_url: '{proxy.url}', limits: {{retries: 0}}}}"
        settings = [*keys, f"models.far={far}", "steps.self.by=far"]
        words = [word for setting in settings for word in ("--set", setting)]
        code, said = rlaif("run", "experiments/quickstart.yaml", *words, "--quiet", "--out", "run")
    assert code == 2
    plain = " ".join(said.split())
    assert "none of the 4 verdicts of judge evaluate.self has a value" in plain
    assert "4 calls of judge evaluate.self failed: gave up after 1 attempts: status 500" in plain


class Telltale(ScriptedServer):
    """A server that tells the key wherever it can, and fails now and then."""

    def respond(self, path: str, key: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.calls % 5 == 0:
            return 429, {"error": {"message": f"too fast, {key}"}}
        if self.calls % 7 == 0:
            return 400, {"error": {"message": f"what is this, {key}?", "param": key}}
        return super().respond(path, key, body)


@pytest.mark.parametrize("rejected", [False, True])
def test_no_command_shows_or_keeps_the_key(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    write_experiment: Callable[..., Path],
    rejected: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("CANARY_KEY", CANARY)
    key = "another" if rejected else CANARY
    changes = {"system_fingerprint": CANARY, "note": f"Bearer {CANARY}"}
    header = f"x-request-id: {CANARY}\r\n"
    with Telltale(
        lambda b, i: "Rating: 7", 0.0, key, TOPS, changes, context=10_000, headers=header
    ) as server:
        far = {"path": "m", "engine": "openai", "base_url": server.url, "key_env": "CANARY_KEY"}
        far["price"] = {"input": 1.0, "output": 2.0}
        model = model_file(tmp_path, server.url, key_env="CANARY_KEY")
        ask = {"id": "liked", "kind": "rating", "by": "far", "principles": ["useful"]}
        path = write_experiment(
            tmp_path / "e",
            None,
            models={"policy": far, "far": far | {"path": "other"}},
            steps=[{"sample": {"n": 2}}, {"judge": ask}, {"evaluate": {"resamples": 20}}],
            rounds=1,
            budget=10,
        )
        rows = [{"prompt": f"Say {i}.", "chosen": "Gladly.", "rejected": "No."} for i in range(3)]
        pairs = write_rows(tmp_path / "pairs.jsonl", rows)
        commands: list[list[str | Path]] = [
            ["run", path, "--out", "run", "--dry-run"],
            ["run", path, "--out", "run"],
            ["run", path, "--out", "run", "--json"],
            ["status", "run", "--json"],
            ["report", "run", "--out", "again.html"],
            ["export", "run", "judgements.jsonl", "--records", "judgements"],
            ["prompt", "render", path],
            ["cache", "stats"],
            ["cache", "export", "answers.jsonl"],
            ["sample", tmp_path / "e" / "prompts.jsonl", "--out", "sampled", "--model", model],
            ["judge-bench", pairs, "--judge", "rating", "--model", model],
        ]
        done = {" ".join(map(str, words)): rlaif(*words) for words in commands}
    codes = {code for code, _ in done.values()}
    assert codes == ({0, 2} if rejected else {0}), "\n".join(text for _, text in done.values())
    printed = [*(text for _, text in done.values()), caplog.text]
    assert all("sk-canary" not in text for text in printed)
    # Reasons of failures are printed without it.
    assert any("[key]" in text for text in printed[:-1])
    written = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    assert Path("cache/requests.sqlite") in written
    if not rejected:
        assert {Path("run/report.html"), Path("run/spend.jsonl"), Path("answers.jsonl")} <= written
        assert any(p.name == "remote.json" for p in written)
    assert [p for p in written if b"sk-canary" in (tmp_path / p).read_bytes()] == []
