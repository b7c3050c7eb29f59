"""Sets of prompts that an experiment generates before its first step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.config.prompts import PromptMix
from rlaif.core.errors import ConfigError, GateStopped
from rlaif.engines.fake import FakeEngine
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.explain.plan import explain_file
from rlaif.pipeline.forecast import dry_run_report
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.prompt_generation.sets import count_calls
from rlaif.pipeline.runs import load_run
from tests.servers.scripted import ScriptedServer

WRITTEN = {"id": "new", "kind": "self_instruct", "by": "policy", "seeds": "seeds.jsonl", "count": 6}
GENERATE: dict[str, Any] = {
    "sources": [
        {"id": "given", "kind": "file", "path": "seeds.jsonl"},
        WRITTEN | {"most_alike": 0.9, "calls": 24},
    ],
}
NOUNS = ["apple", "river", "engine", "garden", "ladder", "violin", "window", "harbour", "pencil"]


def write(folder: Path, prompts: dict[str, Any], **keys: Any) -> Path:
    """An experiment whose model writes instructions when it is asked for a list."""
    rows = [{"prompt": f"Why is a {noun} of use?"} for noun in NOUNS[:4]]
    (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [f"1. Describe the {noun} in a few words." for noun in NOUNS]
    rules = [
        {"match": "numbered list", "replies": tasks},
        {"match": ".", "replies": ["Yes.", "Well, no."]},
    ]
    (folder / "script.yaml").write_text(yaml.safe_dump({"rules": rules}))
    data: dict[str, Any] = {
        "name": "generated",
        "models": {"policy": {"path": "x", "engine": "fake", "script": "script.yaml"}},
        "constitution": "constitutions/concise_helper.yaml",
        "prompts": prompts,
        "judges": [{"id": "checks", "kind": "rules"}],
        "steps": [{"sample": {"n": 1}}, {"judge": "checks"}, {"evaluate": {"judges": ["checks"]}}],
    }
    path = folder / "generated.yaml"
    path.write_text(yaml.safe_dump(data | keys))
    return path


def prompts_of(run: Path) -> set[str]:
    rows = [json.loads(line) for line in (run / "prompts.jsonl").read_text().splitlines()]
    return {row["messages"][0]["content"] for row in rows}


def count_asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of requests that ask the model to write prompts, as they come."""
    asked: list[str] = []
    generate = FakeEngine.generate

    def counting(self: FakeEngine, requests: Any, done: Any = frozenset()) -> Any:
        new = [r.request_id for r in requests if r.request_id not in done]
        asked.extend(name for name in new if name.startswith("w_"))
        return generate(self, requests, done)

    monkeypatch.setattr(FakeEngine, "generate", counting)
    return asked


def test_a_run_writes_its_own_prompts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = count_asked(monkeypatch)
    path = write(tmp_path, {"generate": GENERATE, "holdout": 3})
    result = run_experiment(path, tmp_path / "run")
    found = prompts_of(tmp_path / "run")
    assert {f"Why is a {noun} of use?" for noun in NOUNS[:4]} <= found
    assert any(text.startswith("Describe the") for text in found) and len(found) == 10
    report = json.loads((tmp_path / "run" / "generated" / "main" / "report.json").read_text())
    assert report["prompts"] == 10 and report["sources"]["new"]["mixed"] == 6
    counts = load_run(tmp_path / "run").manifest["prompts"]
    assert (counts["train"], counts["heldout"]) == (7, 3) and result.ran > 0
    first = list(asked)
    assert first
    assert run_experiment(path, tmp_path / "run").ran == 0
    assert asked == first


def test_a_dry_run_makes_prompts_up_until_they_are_written(tmp_path: Path) -> None:
    path = write(tmp_path, {"generate": GENERATE, "holdout": 3})
    out = tmp_path / "run"
    before = json.loads(dry_run_report(path, out, [], True))
    assert before["provisional"] == [
        "10 made-up prompts in place of those that are generated for set main before the first "
        "step, in at most 24 model calls"
    ]
    assert not out.exists()
    run_experiment(path, out)
    after = json.loads(dry_run_report(path, out, [], True))
    assert after["provisional"] == [] and all(step["reused"] for step in after["steps"])
    # Another source has not been asked yet.
    other = json.loads(dry_run_report(path, out, ["prompts.generate.seed=5"], True))
    assert other["provisional"]


def test_what_an_interrupted_process_wrote_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One task in each call, so that there are several rounds of calls.
    mix = {"sources": [WRITTEN | {"count": 9, "calls": 160, "most_alike": 0.9}]}
    path = write(tmp_path, {"generate": mix, "holdout": 3})
    run_experiment(path, tmp_path / "whole")
    out = tmp_path / "run"
    generate = FakeEngine.generate

    batches: list[Any] = []

    def dying(self: FakeEngine, requests: Any, done: Any = frozenset()) -> Any:
        if batches:
            raise KeyboardInterrupt
        for batch in generate(self, requests, done):
            batches.append(batch)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "generate", dying)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(path, out)
    asked = count_asked(monkeypatch)
    run_experiment(path, out)
    kept = (out / "generated" / "main" / "prompts.jsonl").read_bytes()
    assert kept == (tmp_path / "whole" / "generated" / "main" / "prompts.jsonl").read_bytes()
    rows = [row for file in out.glob("generated/main/steps/*/written.jsonl") for row in file.open()]
    assert 0 < len(asked) < len(rows)


def test_all_arms_and_seeds_share_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count_asked(monkeypatch)
    arms = {"one": {}, "two": {"set": {"steps.sample.temperature": 0.1}}}
    sets = {"own": {"generate": {"sources": [WRITTEN]}, "holdout": 0}}
    steps = [{"sample": {"n": 1, "prompts": {"set": "own", "count": 2}}}, {"evaluate": {}}]
    keys = {"arms": arms, "prompt_sets": sets, "steps": steps, "seeds": [1, 2]}
    path = write(tmp_path, {"path": "seeds.jsonl", "holdout": 2}, **keys)
    run_experiment(path, tmp_path / "run")
    assert len(asked) == len(set(asked)) > 0
    assert (tmp_path / "run" / "generated" / "own" / "prompts.jsonl").exists()
    words = explain_file(path).facts["Prompts"]
    assert "own, 6 written by policy (self_instruct): 6 to train on, 0 held out" in words


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({"generate": GENERATE, "path": "seeds.jsonl"}, "give one of `path`, `generate`"),
        ({"generate": GENERATE, "columns": {"prompt": "q"}}, "belong to a source of `generate`"),
        ({"generate": {"sources": [WRITTEN | {"by": "polici"}]}}, "source new: 'polici' is no "),
        ({"generate": {"sources": []}}, "at least 1"),
        ({"generate": {"sources": [WRITTEN, WRITTEN]}}, "the ids of sources must differ"),
        ({"generate": GENERATE, "holdout": 10}, "none is left to train on"),
        ({"generate": GENERATE | {"filters": [{"kind": "private"}]}}, "prompts have no answers"),
    ],
)
def test_what_cannot_be_generated_is_said_with_its_line(
    prompts: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = write(tmp_path, prompts)
    with pytest.raises(ConfigError, match=words) as caught:
        prepare(path, fetch=False, out=tmp_path / "run")
    # With the line of its key: the path alone says little in a long file.
    assert re.search(rf"^{re.escape(str(path))}:\d+", str(caught.value), re.MULTILINE)


def test_the_calls_of_a_mix_are_those_of_its_sources_with_answers_for_the_longest() -> None:
    plain: dict[str, Any] = {"kind": "magpie", "by": "policy"}
    sources = [
        {"id": "given", "kind": "file", "path": "seeds.jsonl"},
        WRITTEN | {"calls": 24},
        # 4 calls for each prompt, and where the longest answers decide one more for its answer.
        plain | {"id": "some", "count": 10},
        plain | {"id": "long", "count": 10, "longest_answers": 2.5},
        plain | {"id": "few", "count": 10, "longest_answers": 2.5, "calls": 30},
    ]
    asked = [count_calls(PromptMix.model_validate({"sources": sources[:n]})) for n in range(1, 6)]
    assert asked == [0, 24, 24 + 40, 64 + 100 + 25, 189 + 30 + 25]


def test_a_dataset_of_unknown_size_needs_the_size_of_the_mix(tmp_path: Path) -> None:
    source = {"id": "hub", "kind": "file", "dataset": "who/knows"}
    path = write(tmp_path, {"generate": {"sources": [source]}, "holdout": 2})
    with pytest.raises(ConfigError, match="source hub: how many prompts who/knows has"):
        prepare(path, fetch=False)
    inputs = prepare(path, ["prompts.generate.count=20"], fetch=False)
    assert len(inputs.prompts.train) == 18


def test_a_dataset_that_is_here_is_counted_and_read(tmp_path: Path) -> None:
    rows = [json.dumps({"asked": f"What is {noun} for?"}) + "\n" for noun in NOUNS]
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "train.jsonl").write_text("".join(rows[:1]))
    (tmp_path / "saved" / "test.jsonl").write_text("".join(rows))
    source = {"id": "saved", "kind": "file", "dataset": str(tmp_path / "saved")}
    source |= {"dataset_split": "test", "columns": {"prompt": "asked"}, "tags": ["use"]}
    path = write(tmp_path, {"generate": {"sources": [source]}, "holdout": 2})
    assert len(prepare(path, fetch=False).prompts.train) == len(NOUNS) - 2
    inputs = prepare(path, out=tmp_path / "run")
    assert {p.question for p in inputs.prompts.every()} == {f"What is {n} for?" for n in NOUNS}
    assert all(p.tags == ["use"] for p in inputs.prompts.every())


def test_what_writes_prompts_keeps_to_the_budget(tmp_path: Path) -> None:
    with ScriptedServer(lambda body, choice: "1. Describe the river.", context=9999) as server:
        policy = {"path": "m", "engine": "openai", "base_url": server.url, "cache": False}
        policy |= {"price": {"input": 0.0, "output": 4.0}}
        keys = {"models": {"policy": policy}, "budget": 1e-6}
        path = write(tmp_path, {"generate": GENERATE, "holdout": 3}, **keys)
        with pytest.raises(GateStopped, match="budget of 1e-06 is spent"):
            prepare(path, out=tmp_path / "run")
        assert not server.asked
