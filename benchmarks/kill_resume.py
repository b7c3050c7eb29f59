"""Kill a run again and again with SIGKILL, resume it, and compare it with one that was left alone.

    python benchmarks/kill_resume.py [--experiment PATH] [--kills 12] [--quick] [--json]

The kills are aimed by watching the run folder: a part file that has just grown, a marker that has
just appeared, an optimiser step, a checkpoint being written or just written, an export under way.
Preferences, evaluation rows and exported weights must be the same bytes. Exit code 1 when they are
not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
POLL = 0.001
WORDS = {True: "identical", False: "DIFFERENT", None: "nothing to compare"}
QUESTIONS = [
    "Name a red fruit.",
    "How do I boil an egg?",
    "What is a river?",
    "Why is the sky blue?",
    "Give me a tip for sleeping well.",
    "Which month comes after May?",
    "What do bees make?",
    "How long is a minute?",
    "What is a good name for a cat?",
    "Where does rain come from?",
]
# (round, kind, moment). The first ones are taken first; any number of them cover the kinds evenly.
TARGETS: list[tuple[int, str, str]] = [
    (0, "sample", "append"),
    (0, "judge", "append"),
    (0, "logprobs", "append"),
    (0, "evaluate", "marker"),
    (1, "sample", "append"),
    (1, "pair", "append"),
    (1, "train", "optimiser step"),
    (1, "train", "checkpoint being written"),
    (1, "train", "checkpoint written"),
    (1, "train", "export"),
    (2, "judge", "append"),
    (2, "train", "optimiser step"),
    (1, "train", "marker"),
    (0, "sample", "begun"),
    (1, "judge", "append"),
    (1, "logprobs", "append"),
    (2, "pair", "marker"),
    (2, "sample", "append"),
    (2, "train", "begun"),
    (2, "evaluate", "append"),
]


@dataclass(frozen=True)
class Kill:
    """One kill: what it was aimed at, and whether the step's marker was there when it fell."""

    round: int
    step: str
    kind: str
    moment: str
    finished: bool
    seconds: float


def experiment_file(folder: Path, quick: bool) -> Path:
    """A two-round experiment of a few prompts and tokens on the embedded model."""
    questions = QUESTIONS[:7] if quick else QUESTIONS
    lines = [json.dumps({"prompt": text}) + "\n" for text in questions]
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    # Copies: an edit of the shipped files between the two runs would make them two experiments.
    shutil.copy(ROOT / "constitutions" / "concise_helper.yaml", folder / "constitution.yaml")
    shutil.copy(ROOT / "prompts" / "judges" / "yes_no_short.j2", folder / "question.j2")
    ask = {"principles": ["useful"], "template": str(folder / "question.j2")}
    train: dict[str, Any] = {"learning_rate": 2e-5, "batch_size": 2}
    data = {
        "name": "kill-resume",
        "seed": 3,
        # Small batches: several appends a step.
        "models": {
            "policy": {
                "path": "builtin/smollm2-135m-instruct",
                "system_prompt": "drop",
                "batch_tokens": 256,
            }
        },
        "constitution": str(folder / "constitution.yaml"),
        "prompts": {"path": str(folder / "prompts.jsonl"), "holdout": 3},
        "rounds": 2,
        "steps": [
            {"sample": {"n": 3, "temperature": 1.0, "max_new_tokens": 8 if quick else 16}},
            {"judge": {"id": "checks", "kind": "rules"}},
            {"judge": {"id": "self", "kind": "yes_no", "by": "policy", **ask}},
            {"pair": {"weights": {"checks": 1.0, "self": 0.5}}},
            {"train": train | {"checkpoint_every": 1}},
            {"evaluate": {"resamples": 200}},
        ],
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def start(experiment: Path, out: Path) -> subprocess.Popen[bytes]:
    """The run in a process group of its own."""
    command = [sys.executable, "-m", "rlaif", "run", str(experiment), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--quiet", "--no-report"],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def run_whole(experiment: Path, out: Path) -> float:
    """Run to the end; the seconds that it took."""
    began = time.monotonic()
    code = start(experiment, out).wait()
    if code != 0:
        log = (out.parent / f"{out.name}.log").read_text(encoding="utf-8", errors="replace")
        sys.exit(f"the run in {out} ended with exit code {code}:\n{log[-3000:]}")
    return time.monotonic() - began


def manifest_steps(out: Path) -> list[dict[str, Any]]:
    """The planned steps, once the manifest is there."""
    try:
        steps: list[dict[str, Any]] = json.loads((out / "manifest.json").read_text("utf-8"))[
            "steps"
        ]
    except FileNotFoundError:
        return []
    return steps


class Watch:
    """What has happened in one step's folder since the process was started."""

    def __init__(self, out: Path, step: dict[str, Any]):
        self.folder = out / "steps" / step["hash"]
        self.partial = out / "models" / f"{step['hash']}.partial"
        self.before = self.sizes()
        self.checkpoints = self.names("checkpoint-*")

    def sizes(self) -> dict[str, int]:
        """The size of every part file, the training's rows among them."""
        found = {}
        for pattern in ("*.jsonl", "work/metrics.jsonl"):
            for path in self.folder.glob(pattern):
                try:
                    found[str(path.relative_to(self.folder))] = path.stat().st_size
                except FileNotFoundError:
                    continue
        return found

    def names(self, pattern: str) -> set[str]:
        """The checkpoints there are."""
        return {p.name for p in (self.folder / "work").glob(pattern)}

    def finished(self) -> bool:
        """Whether the step's marker is there."""
        return (self.folder / "done.json").exists()

    def grown(self, name: str | None = None) -> bool:
        """Whether a part file (or the one called `name`) is longer than before."""
        now = self.sizes()
        return any(
            size > self.before.get(part, 0)
            for part, size in now.items()
            if (part == name if name else not part.startswith("work/"))
        )

    def reached(self, moment: str) -> bool:
        """Whether the moment to kill has come."""
        if moment == "begun":
            return self.folder.is_dir()
        if moment == "append":
            return self.grown()
        if moment == "optimiser step":
            return self.grown("work/metrics.jsonl")
        if moment == "checkpoint being written":
            return bool(self.names("partial-*"))
        if moment == "checkpoint written":
            return bool(self.names("checkpoint-*") - self.checkpoints)
        if moment == "export":
            return self.partial.is_dir()
        return self.finished()


def find_target(out: Path, target: tuple[int, str, str]) -> list[dict[str, Any]]:
    """The unfinished steps that a target means; several judges may stand for one kind.

    After round 0 the samples and judgements are the round's own, which come before its training;
    those of an evaluation have a dot in their id.
    """
    number, kind, _ = target
    return [
        step
        for step in manifest_steps(out)
        if step["round"] == number
        and step["kind"] == kind
        and (number == 0 or kind not in ("sample", "judge") or "." not in step["id"])
        and not (out / "steps" / step["hash"] / "done.json").exists()
    ]


def run_and_kill(experiment: Path, out: Path, target: tuple[int, str, str]) -> Kill | None:
    """Start the run and kill it at the target; None when it ended before, or had passed it."""
    if manifest_steps(out) and not find_target(out, target):
        return None
    began = time.monotonic()
    process = start(experiment, out)
    watches: list[tuple[dict[str, Any], Watch]] = []
    while process.poll() is None:
        if not watches:
            watches = [(step, Watch(out, step)) for step in find_target(out, target)]
        for step, watch in watches:
            moment = target[2]
            finished = watch.finished()
            if finished or watch.reached(moment):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                finished = watch.finished()
                if finished and moment != "marker":
                    moment += " (just after its marker)"
                seconds = time.monotonic() - began
                return Kill(target[0], step["id"], step["kind"], moment, finished, seconds)
        time.sleep(POLL)
    if process.returncode != 0:
        log = (out.parent / f"{out.name}.log").read_text(encoding="utf-8", errors="replace")
        sys.exit(f"a resumed run failed with exit code {process.returncode}:\n{log[-3000:]}")
    return None


def compare(first: Path, second: Path) -> dict[str, bool | None]:
    """Whether the two runs made the same bytes; None where neither made any."""
    steps = manifest_steps(first)
    if [s["hash"] for s in steps] != [s["hash"] for s in manifest_steps(second)]:
        sys.exit(
            "the two runs planned different steps: a file of the experiment was edited meanwhile"
        )
    found: dict[str, bool | None] = {}
    for name, part in (("preferences", "preferences"), ("evaluations", "evaluation")):
        kind = "pair" if part == "preferences" else "evaluate"
        paths = [f"steps/{s['hash']}/{part}.jsonl" for s in steps if s["kind"] == kind]
        found[name] = same_files(first, second, paths)
    paths = sorted(str(p.relative_to(first)) for p in first.glob("models/*/**/*.safetensors"))
    found["weights"] = same_files(first, second, paths)
    return found


def same_files(first: Path, second: Path, paths: Sequence[str]) -> bool | None:
    """Whether every one of the files is there in both folders with the same bytes."""
    if not any((root / path).is_file() for path in paths for root in (first, second)):
        return None
    return all((root / path).is_file() for path in paths for root in (first, second)) and all(
        digest(first / path) == digest(second / path) for path in paths
    )


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chosen_targets(experiment_rounds: int, count: int) -> list[tuple[int, str, str]]:
    """The first `count` targets that the experiment has, in the order of running."""
    order = {
        k: i for i, k in enumerate(("sample", "judge", "pair", "train", "logprobs", "evaluate"))
    }
    moments = ("begun", "append", "optimiser step", "checkpoint being written")
    moments += ("checkpoint written", "export", "marker")
    fitting = [t for t in TARGETS if t[0] <= experiment_rounds][:count]
    return sorted(fitting, key=lambda t: (t[0], order[t[1]], moments.index(t[2])))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiment", type=Path, help="another experiment file")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="fewer prompts and tokens")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--work", type=Path, help="where the runs are kept [default: a new folder]")
    options = parser.parse_args()
    work = (options.work or Path(tempfile.mkdtemp(prefix="kill-resume-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    experiment = options.experiment or experiment_file(work, options.quick)
    rounds = yaml.safe_load(experiment.read_text(encoding="utf-8")).get("rounds", 1)
    seconds = run_whole(experiment, work / "whole")
    print(f"uninterrupted: {seconds:.0f} s in {work / 'whole'}", flush=True)
    killed = work / "killed"
    kills: list[Kill] = []
    for target in chosen_targets(rounds, options.kills):
        kill = run_and_kill(experiment, killed, target)
        if kill is not None:
            kills.append(kill)
            print(
                f"kill {len(kills):>2}: round {kill.round} {kill.kind:9} {kill.step:18} "
                f"{kill.moment:42} after {kill.seconds:5.1f} s",
                flush=True,
            )
    run_whole(experiment, killed)
    identical = compare(work / "whole", killed)
    by_step = dict(sorted(Counter(kill.kind for kill in kills).items()))
    enough = len(kills) >= min(options.kills, 10)
    print(f"{len(kills)} kills: " + ", ".join(f"{n} in {kind}" for kind, n in by_step.items()))
    for name, same in identical.items():
        print(f"{name:12} {WORDS[same]}")
    if not enough:
        print("too few kills fell: the run was faster than the watcher")
    if options.json:
        row = {
            "kills": len(kills),
            "kills_by_step": by_step,
            "identical": identical,
            "moments": [[k.round, k.kind, k.step, k.moment] for k in kills],
            "seconds_uninterrupted": round(seconds, 1),
            "experiment": str(experiment),
            "folder": str(work),
        }
        print(json.dumps(row))
    return 0 if all(identical.values()) and enough else 1


if __name__ == "__main__":
    sys.exit(main())
