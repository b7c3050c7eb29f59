"""What a whole step meets at a server, one phase each, through `rlaif judge`.

A phase that stops the step must stop it with its exit code and words, after few attempts and
without a record of its own; with the remedy that was named, or a mended server, the same command
then goes on in the same folder. One that does not stop it must leave each record labelled, or
without a label for the stated reason. Records that are there are never asked about again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlaif.core.records import VALUED, make_prompt  # noqa: E402
from tests.servers.scripted import ScriptedServer, prompt_text  # noqa: E402
from tests.servers.shapes import (  # noqa: E402
    NOT_HERE,
    SHAPES,
    STOPPING,
    Reply,
    Shape,
    choice,
    error,
    sent,
)

COUNT = 150
"""Records of a phase."""
LATER = 40
"""Answers before a phase that begins later than the step."""
OPEN = 8
"""Calls that may be open, and so those of a first wave."""
ROW = 20
"""Refusals in a row that stop a step."""
WINDOW = 100
"""Of so many last calls more than half may not be refused."""
LIMITS = {"concurrency": OPEN, "retries": 1, "read_seconds": 2.0}
WRITTEN = ("--kind", "rating")
STRUCTURED = (*WRITTEN, "--set", "structured=true")
LABELS = ("--kind", "yes_no", "--constitution", "rules.yaml")
MERGE = {"system_role": "merge"}
BRIEF = {"system_prompt": "Be brief."}
FLAG = "Your input was flagged"
THINKS = "the model thinks before it answers"
USED_UP = "thinking used up the tokens, raise `max_new_tokens`"


def number_of(asked: Reply) -> int:
    """The number of the prompt that a call is about."""
    found = re.search(r"What is (\d+) plus one", prompt_text(asked))
    assert found is not None
    return int(found[1])


def has(key: str) -> Callable[[Reply], bool]:
    """Whether a call has this key."""
    return lambda asked: key in asked


def always(asked: Reply) -> bool:
    return True


def has_system(asked: Reply) -> bool:
    return any(message["role"] == "system" for message in asked["messages"])


def is_in_two_thirds(asked: Reply) -> bool:
    return number_of(asked) % 3 > 0


def wordless(reply: Reply) -> bytes:
    """Nothing, for as long as the connection is held."""
    return b""


def odd_endpoint(reply: Reply) -> bytes:
    """What LM Studio says, with status 200, of a path that it does not know."""
    return sent({"error": "Unexpected endpoint or method. (POST /chat/completions)"})


@dataclass(frozen=True)
class Phase:
    """The server sends `shape`, after `after` answers, in place of those to calls for which `when`
    holds. `code` and `words` are how the command must end and what it must say. `reason` is why
    records have no label; where it is empty, each must have one in the end.

    `attempts`: how many calls it may make, at most, besides those that are answered. `model`: keys
    of the model; `remedy`: further ones, that mend it. Without a remedy the server is mended.
    `path`: that of the first `base_url`.
    """

    shape: Shape
    code: int
    words: tuple[str, ...]
    attempts: int
    after: int = 0
    when: Callable[[Reply], bool] = always
    judge: tuple[str, ...] = WRITTEN
    model: Mapping[str, Any] = field(default_factory=dict)
    remedy: Mapping[str, Any] | None = None
    path: str = "/v1"
    reason: str = ""


def refused(status: int, message: str, remedy: str, keys: Mapping[str, Any], **more: Any) -> Phase:
    """A first wave that is refused with a `message` that tells its `remedy`, by these `keys`."""
    shape = error(status, message=message)
    return Phase(shape, 2, (message, remedy), 2 * OPEN, remedy=keys, **more)


def no_schema(status: int, message: str) -> Phase:
    """A JSON schema that is refused: it is left out, once and loudly."""
    words = ("the JSON schema is left out", message)
    shape = error(status, message=message)
    return Phase(shape, 0, words, OPEN, when=has("response_format"), judge=STRUCTURED)


PHASES: Mapping[str, Phase] = {
    "base_url without /v1": Phase(
        odd_endpoint, 2, ("Unexpected endpoint or method", "lack /v1"), OPEN, path="",
    ),
    "no key": Phase(STOPPING["no key"], 2, ("No auth credentials found",), OPEN),
    "no money": Phase(STOPPING["no money"], 2, ("You have no quota left",), OPEN, LATER),
    "payment required": Phase(error(402, message="Add credits"), 2, ("Add credits",), OPEN, LATER),
    "forbidden": Phase(error(403, message="Region not served"), 2, ("Region not",), OPEN),
    "no model": Phase(error(404, **NOT_HERE), 2, ("No endpoints found",), OPEN),
    "a day": Phase(STOPPING["a day"], 3, ("requires a wait of 24 h", "Daily limit"), OPEN, LATER),
    "max_tokens": refused(
        400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.", "max_tokens_key: max_completion_tokens",
        {"max_tokens_key": "max_completion_tokens"}, when=has("max_tokens"),
    ),
    "temperature": refused(
        400, "Unsupported value: 'temperature' does not support 0.",
        "extra_body: {temperature: null}", {"extra_body": {"temperature": None}},
        when=has("temperature"),
    ),
    "unknown key": refused(
        422, "Unrecognized request argument supplied: min_p", "take `min_p` out of `extra_body`",
        {"extra_body": {}}, when=has("min_p"), model={"extra_body": {"min_p": 0.1}},
    ),
    "system role": refused(
        400, "System role not supported", "system_role: merge", MERGE, when=has_system, model=BRIEF,
    ),
    "roles must alternate": refused(
        500, "Jinja Exception: Conversation roles must alternate user/assistant",
        "system_role: merge", MERGE, when=has_system, model=BRIEF,
    ),
    "no structured outputs": no_schema(400, "Structured outputs are not supported by this model"),
    "no grammar": no_schema(500, "failed to compile json_schema grammar"),
    "no response_format": no_schema(422, "'response_format.type' must be 'text'"),
    "no log-probs": Phase(
        error(400, message="logprobs is not supported"), 2, ("gives no log-probs",), OPEN,
        when=has("logprobs"), judge=LABELS,
    ),
    "never answers": Phase(
        wordless, 2, ("takes calls and answers none", "read_seconds"), 2 * OPEN
    ),
    "unloaded": Phase(
        error(400, message="The model was unloaded"), 2,
        ("calls in a row were refused", "The model was unloaded"), ROW + OPEN, LATER,
    ),
    "no endpoint any more": Phase(
        error(404, **NOT_HERE), 2, ("calls in a row were refused", "No endpoints found"),
        2 * (ROW + OPEN), LATER,
    ),
    "two of three refused": Phase(
        error(400, message="Busy with others"), 2, (f"of the last {WINDOW} calls were refused",),
        WINDOW, when=is_in_two_thirds, reason="status 400: Busy with others",
    ),
    "all flagged": Phase(
        SHAPES["flagged"], 0, (FLAG,), COUNT, LATER, reason=FLAG,
    ),
    "thinking apart, cut": Phase(
        SHAPES["cut while thinking"], 0, (USED_UP,), COUNT, LATER, reason=USED_UP,
    ),
    "thinking in the text, cut": Phase(
        choice(message={"content": "<think>First, I compare. Score: 2"}, finish_reason="length"), 0,
        (USED_UP,), COUNT, LATER, reason=USED_UP,
    ),
    "labels of a model that thinks": Phase(
        SHAPES["thinking first"], 0, (THINKS,), COUNT, LATER, reason=THINKS, judge=LABELS,
    ),
}  # fmt: skip


class PhasedServer(ScriptedServer):
    """Serves under /v1 alone, and in the phase that is set sends its shape. `spoilt` counts that,
    `numbers` are those of the prompts of all calls since then."""

    def __init__(self) -> None:
        super().__init__(self._verdict, tops={"Yes": -0.3, "No": -1.5}, context=10_000)
        self.begin(None)

    def begin(self, phase: Phase | None) -> None:
        """Send what `phase` says from here on; good answers for None."""
        self.phase = phase
        self.good = self.spoilt = 0
        self.numbers: list[int] = []

    def _verdict(self, asked: Reply, number: int) -> str:
        if "one JSON object" in prompt_text(asked):
            return '{"reasons": "It is right.", "score": "4"}'
        return "Score: 4"

    def respond(self, path: str, key: str, body: Reply) -> Any:
        self.numbers.append(number_of(body))
        phase = self.phase
        known = {"max_tokens": body.get("max_completion_tokens")} | body
        status, reply = super().respond(path, key, known)
        if not path.startswith("/v1/"):
            self.spoilt += 1
            return status, odd_endpoint(reply)
        if phase is None or self.good < phase.after or not phase.when(body):
            self.good += 1
            return status, reply
        self.spoilt += 1
        return status, phase.shape(reply)


def rlaif(folder: Path, *words: str) -> tuple[int, str]:
    """The exit code of a command in `folder`, and what it printed, in one line."""
    done = subprocess.run(
        [sys.executable, "-m", "rlaif", *words],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, " ".join(done.stdout.split())


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def prepare(folder: Path) -> None:
    """The answers that every phase judges."""
    rows = [{"prompt": f"What is {i} plus one?"} for i in range(COUNT)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    principle = {"id": "right", "text": "The answer is right."}
    rules = {"name": "rules", "principles": [principle]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    (folder / "fake.yaml").write_text(yaml.safe_dump({"path": "none", "engine": "fake"}))
    words = ["--set", "n=1", "--model", "fake.yaml", "--out", "sampled", "--quiet"]
    code, said = rlaif(folder, "sample", "prompts.jsonl", *words)
    if code:
        sys.exit(said)


def judged(folder: Path, name: str) -> list[dict[str, Any]]:
    """The records that the phase `name` has so far."""
    paths = sorted((folder / name).rglob("judgements.jsonl"))
    lines = [line for path in paths for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line]


def run_phase(name: str, folder: Path, server: PhasedServer) -> dict[str, Any]:
    """Run one phase, and the same command once more. Its figures, JSON-ready; `wrong` says what was
    not as it should be, and is empty where all was."""
    phase = PHASES[name]
    numbers = {make_prompt(user_turn(i)).prompt_id: i for i in range(COUNT)}
    base = {"path": "m", "engine": "openai", "cache": False, "limits": LIMITS}
    place = server.url.removesuffix("/v1")
    out = name.replace(" ", "-").replace("/", "-")

    def judge(keys: Mapping[str, Any], path: str, begun: Phase | None) -> tuple[int, str]:
        far = base | {"base_url": place + path} | keys
        (folder / "far.yaml").write_text(yaml.safe_dump(far))
        server.begin(begun)
        words = ["sampled", *phase.judge, "--model", "far.yaml", "--out", out, "--quiet"]
        return rlaif(folder, "judge", *words)

    code, said = judge(phase.model, phase.path, phase)
    spoilt, asked = server.spoilt, len(server.numbers)
    rows = judged(folder, out)
    remedied = phase.remedy is not None
    keys = {**phase.model, **(phase.remedy or {})}
    second, said_then = judge(keys, "/v1", phase if remedied else None)
    again = {numbers[row["prompt_id"]] for row in rows} & set(server.numbers)
    every = judged(folder, out)
    valued = [row for row in every if row["status"] in VALUED]
    wrong = [f"it does not say {word!r}: {said}" for word in phase.words if word not in said]
    unlabelled = [row for row in every if row["status"] not in VALUED]
    checks = {
        f"exit code {code}: {said}": code == phase.code,
        f"{spoilt} attempts": 0 < spoilt <= phase.attempts,
        f"the second time, exit code {second}: {said_then}": second == 0,
        "a traceback": "Traceback" not in said + said_then,
        f"{len(every)} records": len({row["call_id"] for row in every}) == len(every) == COUNT,
        f"asked again: {sorted(again)}": not again,
        f"{len(unlabelled)} records without a label": bool(phase.reason) == bool(unlabelled),
        "another reason": all(phase.reason in (row["error"] or "") for row in unlabelled),
    }
    return {
        "code": code,
        "asked": asked,
        "spoilt": spoilt,
        "kept": len(rows),
        "labelled": len(valued),
        "unlabelled": len(unlabelled),
        "asked_again": len(again),
        "wrong": wrong + [what for what, good in checks.items() if not good],
    }


def user_turn(number: int) -> list[dict[str, Any]]:
    """The prompt with this number."""
    return [{"role": "user", "content": f"What is {number} plus one?"}]


def run_phases(folder: Path, names: Iterable[str] = PHASES) -> dict[str, dict[str, Any]]:
    """Every phase's figures."""
    prepare(folder)
    with PhasedServer() as server:
        return {name: run_phase(name, folder, server) for name in names}


def show_phases(found: Mapping[str, Mapping[str, Any]]) -> None:
    """The figures in words."""
    for name, row in found.items():
        print(
            f"{name}: exit code {row['code']} after {row['asked']} calls, {row['spoilt']} of them "
            f"spoilt, {row['kept']} records kept; then {row['labelled']} labelled, "
            f"{row['unlabelled']} not, {row['asked_again']} asked again"
        )
        for what in row["wrong"]:
            print(f"  WRONG: {what}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        show_phases(run_phases(Path(place), sys.argv[1:] or PHASES))
