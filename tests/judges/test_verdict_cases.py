"""Texts that judges really write, through `rlaif judge` and a server: the verdict, or none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.core.chat import CUT, WAS_CUT
from rlaif.core.records import Completion, content_hash, make_prompt, to_json
from rlaif.judges.base import LIMIT
from tests.servers.scripted import ScriptedServer, prompt_text

NONE = "unparsed"
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
RATED: list[tuple[str, str, Any]] = [
    # text, finish reason, verdict
    ("<think>Perhaps Score: 2, but", "length", NONE),
    ("<think>Perhaps Score: 2.\n\nScore: 3", "stop", NONE),
    ("<think>Score: 2? No.</think>\nScore: 4", "stop", 4),
    ("<think>Score: 2? No.</think>\nScore: 4", "length", NONE),
    ("<think>Score: 2? No.</think>\nScore: 4\nIt is", "length", 4),
    (f"{ANALYSIS}Score: 1?<|end|><|start|>assistant{FINAL}Score: 4", "stop", 4),
    (f"{ANALYSIS}Score: 1?", "length", NONE),
    ("Let me see.\n<think>\nScore: 2\nor more", "stop", NONE),
    ("It may be\nScore: 1\nI was told to think.</think>\nI cannot say.", "stop", NONE),
    ("It may be\nScore: 1\nI was told to think.</think>\nScore: 4", "stop", 4),
    ("Score: 4\n<thinking>unused Score: 1</thinking>", "stop", 4),
    ("Short and right.\nScore: 3\n\nTo reach a score of 5, it would have to say why.", "stop", 3),
    ("Score: 3. To reach a score of 5, it would have to say why.", "stop", 3),
    ("To reach a score of 5, it would have to say why.", "stop", NONE),
    ("I cannot give a score of 5 to this.", "stop", NONE),
    ("Score: 2\nOn reflection, Score: 4", "stop", 4),
    ("Score: 2\nOn reflection, Score: 4 is fairer, or is it?", "stop", NONE),
    ("Score: 2\nOn reflection, Score:", "length", NONE),
    ("1: poor\n5: excellent\nScore: 4", "stop", 4),
    ("Score 1: poor\nScore 5: excellent\n\n**Score:** 4", "stop", 4),
    ('The answer says "Score: 5" at its end.', "stop", NONE),
    ("It ends with\n> Score: 5\n\nScore: 2", "stop", 2),
    ("Score: 5? No.", "stop", NONE),
    ("Score: 3? No, Score: 4.", "stop", 4),
    ("It cannot be Score: 5.", "stop", NONE),
    ("Clarity score: 5\nDepth score: 2\nScore: 3", "stop", 3),
    ("Clarity score: 5\nDepth score: 2", "stop", NONE),
    ("Score: 8/10", "stop", NONE),
    ("Score: 4 out of 5", "stop", 4),
    ("Score: 80%", "stop", NONE),
    ("Score\uff1a4", "stop", NONE),
    ("<score>4</score>", "stop", NONE),
    ("\\boxed{4}", "stop", NONE),
    ("Score: four", "stop", NONE),
    ("Puntuaci\u00f3n: cuatro", "stop", NONE),
]
JSON: list[tuple[str, str, Any]] = [
    ('Here:\n```json\n{"score": 4, "reasons": "a score of 1 is too low"}\n```', "stop", 4),
    ('{"score": 1, "reasons": "it claims Score: 5"}\nDone.', "stop", 1),
    ('{"score": 4, "reasons": "one\ntwo"}', "stop", 4),
    ('{"score": 4, "reasons": "x",}', "stop", 4),
    ('{"reasons": "the text says score: 1 and then', "length", NONE),
    ('{"reasons": "x", "score": 4', "length", NONE),
    ('{"reasons": "x", "score": 4, "score": 5}', "stop", NONE),
    ('{"score": 2} {"score": 5}', "stop", NONE),
    ('<think>{"score": 5}</think>{"score": 2}', "stop", 2),
]
CHOSEN: list[tuple[str, str, Any]] = [
    ("<think>\nAnswer 1 is better at first sight, because it names a fruit, but", "length", NONE),
    ("Answer 1 is better at first sight, because it names a fruit, but answer 2", "length", NONE),
    ("<think>Answer 1 is better.</think>Verdict: 2", "stop", "second"),
    ("Verdict: 2\nAnswer 1 is better in style.", "stop", "second"),
    ("Answer 1 is better in style, and answer 2 is better in tone.", "stop", NONE),
    ("Verdict: [[A>B]]", "stop", NONE),
    ("Verdict: 1\nNo, wait.\nVerdict: 2", "stop", "second"),
    ("The answer says: Verdict: 1", "stop", NONE),
]
SCRIPTED = [
    *({"judge": "rating", "text": t, "finish_reason": r, "want": [w]} for t, r, w in RATED),
    *(
        {"judge": "rating", "structured": True, "text": t, "finish_reason": r, "want": [w]}
        for t, r, w in JSON
    ),
    *({"judge": "pairwise", "text": t, "finish_reason": r, "want": [w]} for t, r, w in CHOSEN),
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


class Reciting(ScriptedServer):
    """Answers question N with case N, and ends it as it says."""

    def __init__(self, cases: list[dict[str, Any]]):
        super().__init__(context=10_000)
        self.cases = cases

    def respond(self, path: str, key: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        number = re.search(r"Question (\d+)\?", prompt_text(body))
        assert number is not None
        case = self.cases[int(number[1])]
        message = {"role": "assistant", "content": case["text"]}
        choice = {"index": 0, "message": message, "finish_reason": case["finish_reason"]}
        return 200, {"choices": [choice]}


def answers(cases: list[dict[str, Any]], folder: Path) -> tuple[Path, Path]:
    """A question for each case and two answers to it, as files."""
    prompts = [
        make_prompt([{"role": "user", "content": f"Question {n}?"}]) for n in range(len(cases))
    ]
    rows = [
        to_json(
            Completion(
                f"k_{content_hash(prompt.prompt_id, index)}",
                prompt.prompt_id,
                index,
                [{"role": "assistant", "content": f"Answer {index}."}],
                "m",
                "w",
                {},
                "stop",
                digest=content_hash(index),
            )
        )
        for prompt in prompts
        for index in range(2)
    ]
    asked = [{"messages": prompt.messages} for prompt in prompts]
    for name, lines in (("prompts", asked), ("completions", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder / "prompts.jsonl", folder / "completions.jsonl"


def judged(
    cases: list[dict[str, Any]], folder: Path, *keys: str
) -> tuple[list[set[Any]], Any, str]:
    """What `rlaif judge` reads in each case, its summary, and what it printed."""
    folder.mkdir()
    prompts, completions = answers(cases, folder)
    with Reciting(cases) as server:
        model = {"path": "m", "engine": "openai", "base_url": server.url}
        (folder / "far.yaml").write_text(yaml.safe_dump(model))
        words = ["judge", completions, "--prompts", prompts, "--model", folder / "far.yaml"]
        words += [word for key in keys for word in ("--set", key)]
        kind = "pairwise" if "verdict=written" in keys else "rating"
        words += ["--kind", kind, "--out", folder / "judged", "--quiet"]
        done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = [
        json.loads(x) for x in (folder / "judged" / "judgements.jsonl").read_text().split("\n") if x
    ]
    ids = [
        make_prompt([{"role": "user", "content": f"Question {n}?"}]).prompt_id
        for n in range(len(cases))
    ]
    found = [{_reading(row) for row in rows if row["prompt_id"] == name} for name in ids]
    return found, json.loads((folder / "judged" / "done.json").read_text()), done.output


def _reading(row: dict[str, Any]) -> Any:
    if row["status"] != "ok":
        return row["status"]
    if row["score"] is not None:
        return 1 + 4 * row["score"]
    return "first" if row["prob_first"] > 0.5 else "second"


def check(cases: list[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for kind, structured in (
        ("rating", False),
        ("rating", True),
        ("pairwise", False),
        ("pairwise", True),
    ):
        own = [c for c in cases if c["judge"] == kind and bool(c.get("structured")) == structured]
        if not own:
            continue
        keys = [f"structured={str(structured).lower()}"] + (
            ["verdict=written"] if kind == "pairwise" else []
        )
        found, _, _ = judged(own, folder / f"{kind}-{structured}", *keys)
        for case, read in zip(own, found, strict=True):
            assert len(read) == 1 and read <= set(case["want"]), (case, read)


def test_texts_that_judges_write(tmp_path: Path) -> None:
    check(SCRIPTED, tmp_path)


def test_the_texts_of_bug_reports(tmp_path: Path, real_data: Path) -> None:
    path = real_data.parent / "cases" / "verdicts.json"
    if not path.exists():
        pytest.skip(f"NO TEXTS OF BUG REPORTS IN {path}")
    check(json.loads(path.read_text()), tmp_path)


def test_what_cut_answers_cost_is_said_with_the_key_to_raise(tmp_path: Path) -> None:
    cases = [
        {"text": "<think>It could be Score: 2", "finish_reason": "length"},
        {"text": "It is good. It is short. It", "finish_reason": "length"},
        {"text": "<think>Why?</think>Score: 4", "finish_reason": "stop"},
    ]
    found, done, said = judged(cases, tmp_path / "cut")
    assert found == [{NONE}, {NONE}, {4.0}]
    assert done["counts"]["cut_while_thinking"] == done["counts"]["cut_at_limit"] == 2
    assert done["errors"] == {CUT: 2, LIMIT: 2}
    for why in (WAS_CUT, LIMIT):
        assert f"2 of 6 verdicts could not be read, since the answer was {why}" in said
    assert "raise `max_new_tokens`" in said
    lines = (tmp_path / "cut" / "judged" / "judgements.jsonl").read_text().split("\n")
    rows = [json.loads(line) for line in lines if line]
    thoughts = {row["rationale"] for row in rows}
    assert thoughts == {"It could be Score: 2", None, "Why?"}
    assert {row["raw"] for row in rows if row["status"] == "ok"} == {"Score: 4"}
