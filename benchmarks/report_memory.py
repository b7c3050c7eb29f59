"""The memory of what reads a whole run: its report, its dataset, its exports.

    python benchmarks/report_memory.py [--quick] [--json] [--keep FOLDER] [--only COMMAND ...]

A run of many prompts of 1 kB, four answers of about 1 kB to each, six checks of each answer and a
pair of each prompt. With --quick its steps run; otherwise what they would leave is written into the
run folder, since to judge 400,000 answers takes longer than all that is measured. Each command is a
process of its own, and the peak of its resident memory is what the system says when it ends.
`rlaif run` is measured twice: the second finds the report there, too. With --keep the runs stay for
the next time, so that commands can be measured one by one with --only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from step_memory import long_text

ROOT = Path(__file__).resolve().parents[1]
SIZES = {True: (1_000, 10_000), False: (10_000, 100_000)}
BYTES = 1_000
LIMITS = {"min": 1, "max": 40}
CHECKS = {
    "words": {"rule": "word_limits", "params": LIMITS},
    "sentences": {"rule": "sentence_limits", "params": LIMITS},
    "characters": {"rule": "word_limits", "params": {"min": 20, "max": 200}},
    "repetition": {"rule": "no_repeated_ngrams", "params": {}},
    "fewer": {"rule": "word_limits", "params": {"min": 1, "max": 20}},
    "more": {"rule": "word_limits", "params": {"min": 60, "max": 90}},
}
KINDS = {"sample": "completions", "judge": "judgements", "pair": "preferences"}
COMMANDS = {
    "report": ["report", "{run}"],
    "run again": ["run", "{folder}/experiment.yaml", "--out", "{run}", "--quiet"],
    "run, all finished": ["run", "{folder}/experiment.yaml", "--out", "{run}", "--quiet"],
    "dataset": ["build", "{folder}/dataset.yaml", "--out", "{run}", "--quiet"],
    "dataset again": ["build", "{folder}/dataset.yaml", "--out", "{run}", "--quiet"],
    "export to JSONL": ["export", "{run}", "{folder}/pairs.jsonl"],
    "export to Parquet": ["export", "{run}", "{folder}/pairs.parquet"],
    "export of judgements": ["export", "{run}", "{folder}/j.jsonl", "--records", "judgements"],
    "status": ["status", "{run}"],
}


def experiment(count: int, folder: Path) -> None:
    """The experiment's files, and the same with a dataset."""
    with (folder / "prompts.jsonl").open("w") as file:
        for i in range(count + 1):
            file.write(json.dumps({"prompt": long_text(f"prompt {i}", BYTES)}) + "\n")
    principles = [{"id": name, "check": check} for name, check in CHECKS.items()]
    text = yaml.safe_dump({"name": "six", "principles": principles})
    (folder / "constitution.yaml").write_text(text)
    data: dict[str, Any] = {
        "name": "memory",
        "models": {"policy": {"path": "none", "engine": "report_memory:Varied"}},
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 1},
        "steps": [
            {"sample": {"n": 4, "max_new_tokens": 500}},
            {"judge": {"id": "rules", "kind": "rules"}},
            {"pair": {"strategy": "best_vs_worst"}},
        ],
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    data["dataset"] = {"formats": ["trl", "ultrafeedback"]}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def write_run(folder: Path) -> None:
    """The finished steps of the experiment in `folder`, as they are after `rlaif run`."""
    from rlaif.core.store import Store
    from rlaif.pipeline.manifest import write_manifest, write_rounds
    from rlaif.pipeline.plan.unroll import make_plan
    from rlaif.pipeline.prepare import prepare

    store = Store(folder / "run")
    store.prepare()
    inputs = prepare(folder / "experiment.yaml")
    plan = make_plan(inputs)
    write_manifest(store, inputs, plan)
    counts = {"completions": 0, "failed": 0, "judgements": 0, "with_value": 0, "calls": 0}
    counts |= {"prompts": 0, "preferences": 0}
    steps = {planned.kind: planned for planned in plan}
    folders = {kind: store.step(planned.hash) for kind, planned in steps.items()}
    prompts = inputs.prompts.train
    for start in range(0, len(prompts), 256):
        made = [records(prompt) for prompt in prompts[start : start + 256]]
        for kind, name in KINDS.items():
            rows = [row for found in made for row in found[name]]
            folders[kind].append(name, rows)
            counts[name] += len(rows)
    counts |= {
        "prompts": len(prompts),
        "with_value": counts["judgements"],
        "calls": counts["judgements"],
    }
    for kind, planned in steps.items():
        summary = {"hash": planned.hash, "kind": kind, "id": planned.id, "inputs": planned.inputs}
        summary |= {
            "seconds": 1.0,
            "statuses": {"ok": counts["judgements"]},
            "weights": {"rules": 1.0},
        }
        names = {
            "sample": ("completions", "failed"),
            "judge": ("calls", "judgements", "with_value"),
            "pair": ("prompts", "preferences"),
        }[kind]
        folders[kind].finish(summary | {"counts": {name: counts[name] for name in names}})
    write_rounds(inputs, plan, store)


def records(prompt: Any) -> dict[str, list[Any]]:
    """What the steps leave of a prompt."""
    from rlaif.config.steps import PairStep
    from rlaif.core.records import Completion, Judgement, content_hash
    from rlaif.preferences.pairing import Candidate, make_preference

    completions = []
    for index in range(4):
        name = "x_" + content_hash(prompt.prompt_id, index)
        text = long_text(name, BYTES // 2 + int(name[-4:], 16) % BYTES)
        said = [{"role": "assistant", "content": text}]
        completions.append(
            Completion(name, prompt.prompt_id, index, said, "policy", "none", {}, "stop", [1],
                       [-1.0], digest=content_hash(said))
        )  # fmt: skip
    judgements = [
        Judgement(
            "j_" + content_hash(c.completion_id, check), "c_" + content_hash(c.text, check),
            prompt.prompt_id, "completion", [c.completion_id], c.completion_id, "rules",
            "program:rules", "rule", check, "ok", score=int(c.completion_id[-2:], 16) / 255,
            judge_hash="none",
        )
        for c in completions for check in CHECKS
    ]  # fmt: skip
    best, *_, worst = sorted(completions, key=lambda c: c.completion_id[-2:], reverse=True)
    scored = tuple(Candidate(c, int(c.completion_id[-2:], 16) / 255) for c in (best, worst))
    pair = make_preference(prompt, scored, PairStep(), 1, {"rules": judgements}, {})
    return {"completions": completions, "judgements": judgements, "preferences": [pair]}


def environment() -> dict[str, str]:
    """The environment in which commands are of this checkout, and find the engines here."""
    places = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    return {**os.environ, "PYTHONPATH": places}


def measured(command: list[str]) -> tuple[float, float]:
    """(megabytes at most, seconds) of a command of rlaif."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "rlaif", *command],
        stdout=subprocess.DEVNULL,
        env=environment(),
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: ended with status {status}")
    # Linux counts in kB, as does no other system.
    return usage.ru_maxrss * 1024 / 1e6, time.monotonic() - began


def make_run(count: int, folder: Path, scripted: bool) -> None:
    """A finished run of `count` prompts in `folder`, whose steps run where `scripted`."""
    folder.mkdir(parents=True, exist_ok=True)
    experiment(count, folder)
    if scripted:
        run = ["run", f"{folder}/experiment.yaml", "--out", f"{folder}/run", "--no-report"]
        measured(run)
    else:
        command = [sys.executable, __file__, "--write", str(folder)]
        subprocess.run(command, check=True, env=environment())


def at_size(
    count: int, folder: Path, scripted: bool, commands: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """What each of the `commands` takes for a run of `count` prompts, made where it is absent."""
    if not (folder / "run").exists():
        make_run(count, folder, scripted)
    places = {"folder": str(folder), "run": str(folder / "run")}
    found = {}
    for name in commands:
        found[name] = measured([word.format(**places) for word in COMMANDS[name]])
        peak, seconds = found[name]
        print(f"{count:,} prompts, {name}: {peak:.0f} MB, {seconds:.1f} s", file=sys.stderr)
    return found


def __getattr__(name: str) -> Any:
    """`Varied`, an engine whose answers differ in length: as in step_memory, where rlaif is."""
    if name != "Varied":
        raise AttributeError(name)
    from step_memory import Instant

    class Varied(Instant):
        """Answers of a half to one and a half kB."""

        def _text(self, request: Any) -> str:
            size = BYTES // 2 + int(request.request_id[-4:], 16) % BYTES
            return long_text(request.request_id, size)

    return Varied


def main() -> None:
    """Print the table, and with --json every figure in one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 and 10,000 prompts")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="Keep the runs in this folder.")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=COMMANDS, metavar="COMMAND")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write is not None:
        write_run(options.write)
        return
    sizes = SIZES[options.quick]
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = {
            count: at_size(count, folder / str(count), options.quick, options.only)
            for count in sizes
        }
    rows = {
        name: {
            count: {
                "peak_mb": round(found[count][name][0]),
                "seconds": round(found[count][name][1], 1),
            }
            for count in sizes
        }
        for name in options.only
    }
    for name, row in rows.items():
        cells = [f"{n:,} prompts: {c['peak_mb']} MB, {c['seconds']} s" for n, c in row.items()]
        print(f"{name}: {'; '.join(cells)}")
    if options.json:
        print(json.dumps({"prompts": list(sizes), "commands": rows}))


if __name__ == "__main__":
    main()
