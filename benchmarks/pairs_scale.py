"""How the pair step grows: seconds and peak memory from judgements to preferences.

    python benchmarks/pairs_scale.py [--rows 10000 100000 1000000 5000000] [--quick] [--json]

Each size runs in a process of its own: four answers a prompt, each rated under four aspects,
written as finished steps, then the real pair step on them. The time is the pair step's, and so is
the memory: what the process peaks at above what it held before, and the peak of any one worker (0
where there are none). Seconds of CPU are the process's own, without workers. Give multiples of 16.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rlaif.config.steps import PairStep
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, Judgement, Prompt, make_prompt
from rlaif.core.store import Store
from rlaif.data.sources import PromptSet
from rlaif.pipeline.plan.base import PlanInputs, Planned
from rlaif.pipeline.steps import pair
from rlaif.pipeline.steps.context import StepContext

ANSWERS = 4
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
BATCH = 5000
TARGET_SECONDS = 10.0


def main() -> None:
    """Print one row per size, and how time and memory grow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 5_000_000]
    )
    parser.add_argument("--quick", action="store_true", help="two small sizes")
    parser.add_argument("--json", action="store_true", help="a last line with every figure")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measured(options.one)))
        return
    found: list[dict[str, float]] = []
    for rows in [1_600, 16_000] if options.quick else options.rows:
        command = [sys.executable, __file__, "--one", str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
        print(shown(found[-1], found[-2] if len(found) > 1 else None), flush=True)
    if options.json:
        print(json.dumps({"pairs_scale": found}))


def shown(now: dict[str, float], before: dict[str, float] | None) -> str:
    """A line about one size and its growth from the one before."""
    text = (
        f"{now['judgements']:>9,.0f} judgements: {now['pairs']:>9,.0f} pairs in "
        f"{now['seconds']:7.2f} s ({now['cpu_seconds']:.2f} s of CPU), "
        f"{now['pair_mb']:6.0f} MB on top of {now['before_mb']:.0f} MB, a worker "
        f"{now['worker_mb']:.0f} MB"
    )
    if before is not None:
        size = now["judgements"] / before["judgements"]
        text += (
            f"; x{size:g} rows: x{now['seconds'] / before['seconds']:.1f} time, "
            f"{now['pair_mb'] - before['pair_mb']:+.0f} MB"
        )
    if now["judgements"] == 1_000_000:
        verdict = "met" if now["seconds"] <= TARGET_SECONDS else "missed"
        text += f"; target {TARGET_SECONDS:g} s {verdict}"
    return text


def measured(rows: int) -> dict[str, float]:
    """Seconds and peak memory of the pair step on `rows` judgements."""
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name))
        prompts = written(store, rows)
        inputs = PlanInputs(None, Path(name), {}, None, PromptSet([], [], 0), {}, {})  # type: ignore[arg-type]
        planned = Planned(
            "pairs",
            "pair",
            "pair",
            0,
            1,
            PairStep(),
            {"judgements/rated": "rated", "completions/sample": "sample"},
            options={"principle_weights": {}},
        )
        folder = store.step("pairs")
        context = StepContext(planned, folder, store, inputs, prompts, None, QuietProgress())  # type: ignore[arg-type]
        idle = peak_mb()
        began, cpu = time.perf_counter(), time.process_time()
        counts = pair.run(context)["counts"]
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "judgements": rows,
        "pairs": counts["preferences"],
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "before_mb": round(idle, 1),
        "pair_mb": round(peak_mb() - idle, 1),
        "worker_mb": round(peak_mb(resource.RUSAGE_CHILDREN), 1),
    }


def peak_mb(who: int = resource.RUSAGE_SELF) -> float:
    """The most memory that this process, or any one that it started, has held, in MB."""
    return resource.getrusage(who).ru_maxrss / 1024


def written(store: Store, rows: int) -> dict[str, Prompt]:
    """Judge and sample steps with `rows` judgements; the prompts by id."""
    prompts: dict[str, Prompt] = {}
    for kind, count in (("completions", -(-rows // len(ASPECTS))), ("judgements", rows)):
        step = store.step("sample" if kind == "completions" else "rated")
        made = records(kind, rows, prompts)
        for _ in range(0, count, BATCH):
            step.append(kind, list(islice(made, BATCH)))
        step.finish({"counts": {kind: count}})
    return prompts


def records(kind: str, rows: int, prompts: dict[str, Prompt]) -> Iterator[Completion | Judgement]:
    """The completions, or the judgements under every aspect, prompt by prompt."""
    answers = -(-rows // len(ASPECTS))
    for number in range(answers):
        asked, place = divmod(number, ANSWERS)
        prompt = make_prompt([{"role": "user", "content": f"What is item {asked}?"}])
        prompts[prompt.prompt_id] = prompt
        name = f"k_{number:024x}"
        if kind == "completions":
            said = f"Item {asked}, said in way {place}. " * 8
            yield Completion(
                name,
                prompt.prompt_id,
                place,
                [{"role": "assistant", "content": said}],
                "M0",
                "w",
                {},
                "stop",
                digest=name,
            )
        else:
            yield from judgements(number, name, prompt.prompt_id)


def judgements(number: int, subject: str, prompt_id: str) -> Iterator[Judgement]:
    """One rating of an answer under each aspect."""
    for index, aspect in enumerate(ASPECTS):
        key = f"{subject}_{index}"
        score = (number * len(ASPECTS) + index) * 2_654_435_761 % 1000 / 999
        yield Judgement(
            f"j{key}",
            f"c{key}",
            prompt_id,
            "completion",
            [subject],
            subject,
            "rated",
            "m:w",
            "ai",
            aspect,
            "ok",
            score,
            raw="Text 1\nRating: 4\nRationale: it does what was asked.",
            judge_hash="h",
        )


if __name__ == "__main__":
    main()
