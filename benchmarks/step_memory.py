"""How the memory of sample and judge steps grows with the number of prompts.

    python benchmarks/step_memory.py [--quick] [--json]

Prompts of 2 kB, two answers of 4 kB to each, from an engine that answers at once and takes requests
one by one, as one that asks a server does. Every number of prompts is a process of its own, and of
each step it reports the peak of the resident memory less what was held when the step began: the
prompts themselves are part of the plan, and were there before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SIZES = {True: (1_000, 10_000), False: (1_000, 10_000, 100_000)}
PROMPT_BYTES, ANSWER_BYTES = 2_000, 4_000
JUDGES = {
    "rules": {"kind": "rules"},
    "rating": {"kind": "rating", "by": "policy"},
    "reasons": {"kind": "yes_no", "by": "policy", "cot": True},
    "jury": {
        "kind": "jury",
        "of": [{"id": name, "kind": "rating", "by": "policy"} for name in ("one", "two")],
    },
}


def long_text(name: str, size: int) -> str:
    """Words that `name` decides; the last of them is a score."""
    word = hashlib.sha256(name.encode()).hexdigest()[:15]
    return f"{word} " * (size // 16) + "Score: 3"


class Instant:
    """An engine that answers as it is asked. See `rlaif.engines.base.Engine`."""

    capabilities = frozenset({"generate", "label_logprobs"})
    concurrent = True
    weights_hash = "none"

    def __init__(self, spec: Any, folder: Path | None, name: str):
        self.name = name

    def generate(
        self, requests: Iterable[Any], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[Any]]:
        """A long text for each request; a short one to a judge, whose prompt is long."""
        from rlaif.engines.base import GenerateResult

        waiting = (r for r in requests if r.request_id not in done)
        while batch := list(islice(waiting, 64)):
            yield [
                GenerateResult(r.request_id, self._text(r), [1], "stop", 1, logprobs=[-1.0])
                for r in batch
            ]

    def _text(self, request: Any) -> str:
        judging = len(request.messages[-1]["content"]) > PROMPT_BYTES + 500
        return long_text(request.request_id, 100 if judging else ANSWER_BYTES)

    def score(
        self, requests: Iterable[Any], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[Any]]:
        """Yes and no alike."""
        from rlaif.engines.base import ScoreResult

        waiting = (r for r in requests if r.request_id not in done)
        while batch := list(islice(waiting, 64)):
            yield [
                ScoreResult(r.request_id, dict.fromkeys(r.labels, 1 / len(r.labels)), 1.0, [], 1)
                for r in batch
            ]

    def close(self) -> None:
        """Nothing to free."""


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}: this needs Linux")


def work(count: int, folder: Path) -> None:
    """Run the steps for `count` prompts; prints each step's peak in bytes."""
    from rlaif.core.progress import QuietProgress
    from rlaif.pipeline.experiment import run_experiment

    class Measuring(QuietProgress):
        """Notes what is held when a step begins, and its peak when it ends."""

        def begin_step(self, title: str) -> None:
            self.name = title.split("] ")[1]
            Path("/proc/self/clear_refs").write_text("5")
            self.held = status("VmRSS")

        def finish(self) -> None:
            peaks[self.name] = status("VmHWM") - self.held

    peaks: dict[str, int] = {}
    path = experiment(count, folder)
    # Everything is imported before the first step is measured.
    run_experiment(experiment(20, folder / "warm"), folder / "warm-run", (), QuietProgress())
    run_experiment(path, folder / "run", (), Measuring())
    print(json.dumps(peaks))


def experiment(count: int, folder: Path) -> Path:
    """The experiment's file with its prompts and constitution beside it."""
    folder.mkdir(exist_ok=True)
    with (folder / "prompts.jsonl").open("w") as file:
        for i in range(count + 1):
            file.write(json.dumps({"prompt": long_text(f"prompt {i}", PROMPT_BYTES)}) + "\n")
    checks = {"rule": "word_limits", "params": {"min": 1, "max": 100}}
    principle = {"id": "brief", "text": "The answer is brief.", "check": checks}
    useful = {"id": "useful", "text": "The answer is useful."}
    constitution = {"name": "one", "version": "1", "principles": [principle, useful]}
    (folder / "constitution.yaml").write_text(yaml.safe_dump(constitution))
    judges = [{"judge": {"id": name, **judge}} for name, judge in JUDGES.items()]
    data = {
        "name": "memory",
        "models": {"policy": {"path": "none", "engine": "step_memory:Instant"}},
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 1},
        "steps": [{"sample": {"n": 2, "max_new_tokens": 2000}}, *judges],
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def in_a_process(count: int) -> dict[str, int]:
    """The peaks of all steps at one number of prompts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--count", str(count), "--folder", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    peaks: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def main() -> None:
    """Print the table, and with --json every figure in one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 and 10,000 prompts alone")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count is not None:
        work(options.count, options.folder)
        return
    sizes = SIZES[options.quick]
    peaks = {count: in_a_process(count) for count in sizes}
    texts = PROMPT_BYTES + 2 * ANSWER_BYTES
    steps = {}
    for name in ("sample", *JUDGES):
        growth = (peaks[sizes[-1]][name] - peaks[sizes[0]][name]) / (sizes[-1] - sizes[0])
        steps[name] = {
            "peak_mb": {count: round(peaks[count][name] / 1e6, 1) for count in sizes},
            "bytes_per_prompt": round(growth),
        }
        shown = ", ".join(f"{count}: {mb} MB" for count, mb in steps[name]["peak_mb"].items())
        print(f"{name}: {shown}; {growth:.0f} bytes more per prompt of {texts} bytes of text")
    if options.json:
        print(json.dumps({"text_bytes_per_prompt": texts, "steps": steps}))


if __name__ == "__main__":
    main()
