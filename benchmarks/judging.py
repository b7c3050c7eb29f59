"""How fast judges ask a server, next to other ways and to the ideal, and in how much memory.

    python benchmarks/judging.py [--calls 10000] [--concurrency 64] [--latency 0.05 1.0]
                                 [--distilabel PYTHON] [--memory-calls 100000] [--quick] [--json]

A scripted server in a process of its own answers after a fixed latency. Each way of asking makes
as many calls in a process of its own, imports excluded: `rlaif` with retries, request cache and
records on; `bare`, a plain loop over `AsyncOpenAI`, which keeps nothing; with `--distilabel` also
`distilabel`, by the Python of an environment that has it (see README.md). The ideal is
calls x latency / concurrency; by waves it is the latency times the most calls that a place must
make one after the other. The ways take turns, and the fastest turn of each counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
WORDS = "The answer names a colour, a fruit and a reason, and says where it may be wrong. "
MAX_RATIO = 1.05
MIN_SHARE = 0.95
MIN_TIMES_DISTILABEL = 2.0
REPLICAS = (1, 2)
"""In how many processes distilabel is tried, the calls shared among them."""
MARKS = (1_000, 10_000, 100_000)
"""Numbers of judgements at which the peak of memory is read."""


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock and of this process's CPU time."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Cost:
        """Both clocks as they stand."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, began: Cost) -> Cost:
        """What went by from `began` to this."""
        return Cost(self.wall - began.wall, self.cpu - began.cpu)


def texts(count: int) -> Iterator[str]:
    """Different answers of about a thousand bytes."""
    return (f"{WORDS * 12}({i})" for i in range(count))


@contextmanager
def server(latency: float) -> Iterator[str]:
    """The base URL of a server that answers after `latency` seconds."""
    command = [sys.executable, str(ROOT / "tests/servers/scripted.py"), "--latency", str(latency)]
    command += ["--context", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Asked:
    """What a way of asking took, and the peak of memory (MB) by the number of answers so far."""

    cost: Cost
    peaks: dict[int, float]


def peak_mb() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ask_bare(url: str, count: int, concurrency: int) -> Asked:
    """A plain loop over the client."""
    import openai

    async def main() -> Asked:
        client = openai.AsyncOpenAI(base_url=url, api_key="none")
        pending = iter(enumerate(texts(count)))

        async def work() -> None:
            for i, text in pending:
                answer = await client.chat.completions.create(
                    model="m",
                    messages=[{"role": "user", "content": f"Is this answer useful?\n{text}"}],
                    max_tokens=1,
                    temperature=1.0,
                    seed=i,
                    logprobs=True,
                    top_logprobs=20,
                )
                assert answer.choices[0].logprobs is not None

        began = Cost.now()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return Asked(Cost.now().since(began), {count: peak_mb()})

    return asyncio.run(main())


def ask_rlaif(url: str, count: int, concurrency: int) -> Asked:
    """A judge with retries, cache and records, to the last record."""
    import rlaif.engines.remote.openai
    from rlaif.config.models import ModelSpec
    from rlaif.constitution.model import Constitution
    from rlaif.core.records import Completion, content_hash, make_prompt
    from rlaif.core.store import Store
    from rlaif.engines.base import Model
    from rlaif.engines.build import EnginePool
    from rlaif.judges.build import build_judge
    from rlaif.judges.yes_no import YesNoJudge
    from rlaif.pipeline.steps.judge import ask_model

    assert rlaif.engines.remote.openai
    principle = {"id": "useful", "text": "The answer is useful."}
    judge = build_judge(
        YesNoJudge(kind="yes_no", template="prompts/judges/yes_no_short.j2"),
        Constitution.model_validate({"name": "one", "principles": [principle]}),
    )
    limits = {"concurrency": concurrency}
    data = {"path": "m", "engine": "openai", "base_url": url, "limits": limits}
    model = Model(f"server:{url}", "server", ModelSpec.model_validate(data))
    prompt = make_prompt([{"role": "user", "content": "Name a colour and a fruit."}])

    def calls() -> Iterator[Any]:
        for i, text in enumerate(texts(count)):
            messages = [{"role": "assistant", "content": text}]
            name, digest = f"k{i}", content_hash(text)
            completion = Completion(
                name,
                prompt.prompt_id,
                0,
                messages,
                "",
                "",
                {},
                "stop",
                digest=digest,  # type: ignore[arg-type]
            )
            yield from judge.calls(prompt, [completion], 0)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLAIF_CACHE"] = folder
        store = Store(Path(folder) / "run")
        step, pool = store.step("judging"), EnginePool(store)
        step.path.mkdir(parents=True)
        peaks: dict[int, float] = {}
        began, made = Cost.now(), 0
        with pool.account.meters.kept_in(step.path):
            for batch in ask_model(judge, model, pool, calls(), set()):
                step.append("judgements", batch)
                made += len(batch)
                for mark in (m for m in MARKS if m <= made and m not in peaks):
                    peaks[mark] = peak_mb()
                    print(f"{mark} judgements: {peaks[mark]:.1f} MB at the peak", file=sys.stderr)
        cost = Cost.now().since(began)
        assert made == count, f"{made} of {count} judged"
    return Asked(cost, {**peaks, count: peak_mb()})


WAYS = {"rlaif": ask_rlaif, "bare": ask_bare}


def in_a_process(way: str, url: str, count: int, concurrency: int) -> dict[str, Any]:
    """Seconds, CPU seconds and peaks of memory of one way of asking, in a fresh process."""
    return last_line([sys.executable, __file__, "--way", way], url, count, concurrency)


def by_distilabel(python: Path, url: str, count: int, concurrency: int) -> float:
    """Seconds that distilabel takes for the same work with the best number of processes."""
    command = [str(python), str(ROOT / "benchmarks/judging_distilabel.py"), "--replicas"]
    ways = [[*command, str(replicas)] for replicas in REPLICAS]
    return min(float(last_line(way, url, count, concurrency)["seconds"]) for way in ways)


def last_line(command: list[str], url: str, count: int, concurrency: int) -> dict[str, Any]:
    """The JSON that a program ends with."""
    numbers = ["--url", url, "--calls", str(count), "--concurrency", str(concurrency)]
    done = subprocess.run([*command, *numbers], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(latency: float, options: argparse.Namespace) -> dict[str, float]:
    """All ways against each other and the ideal, at one latency."""
    count, concurrency = options.calls, options.concurrency
    best: dict[str, float] = {}
    cpu: dict[str, float] = {}
    with server(latency) as url:
        for _ in range(options.turns):
            for way in WAYS:
                measured = in_a_process(way, url, count, concurrency)
                best[way] = min(best.get(way, math.inf), measured["seconds"])
                cpu[way] = min(cpu.get(way, math.inf), measured["cpu"])
            if options.distilabel:
                seconds = by_distilabel(options.distilabel, url, count, concurrency)
                best["distilabel"] = min(best.get("distilabel", math.inf), seconds)
    ideal = count * latency / concurrency
    row: dict[str, float] = {"latency": latency, "calls": count, "concurrency": concurrency}
    row |= {f"{way}_calls_per_second": count / seconds for way, seconds in best.items()}
    row |= {f"{way}_times_ideal": seconds / ideal for way, seconds in best.items()}
    row |= {f"{way}_cpu_ms": 1000 * seconds / count for way, seconds in cpu.items()}
    row["times_ideal_by_waves"] = best["rlaif"] / (latency * math.ceil(count / concurrency))
    row |= {f"times_{way}": s / best["rlaif"] for way, s in best.items() if way != "rlaif"}
    show(row, list(best))
    return row


def show(row: dict[str, float], ways: list[str]) -> None:
    """One latency's figures in words."""
    milliseconds = row["latency"] * 1000
    print(f"latency {milliseconds:.0f} ms, {row['calls']} calls, {row['concurrency']} open:")
    for way in ways:
        cpu = f", CPU a call {row[f'{way}_cpu_ms']:.2f} ms" if f"{way}_cpu_ms" in row else ""
        print(
            f"  {way:10} {row[f'{way}_calls_per_second']:6.1f} calls/s, "
            f"{row[f'{way}_times_ideal']:.3f} x the ideal time{cpu}"
        )
    verdict = f"  rlaif makes {row['times_bare']:.2f} x the calls/s of bare (goal {MIN_SHARE})"
    if "times_distilabel" in row:
        verdict += f", {row['times_distilabel']:.2f} x distilabel's (goal {MIN_TIMES_DISTILABEL})"
    print(
        f"{verdict}, and takes {row['rlaif_times_ideal']:.3f} x the ideal time (goal {MAX_RATIO}), "
        f"{row['times_ideal_by_waves']:.3f} x that of whole waves",
        flush=True,
    )


def memory(count: int, concurrency: int) -> dict[str, float]:
    """Peaks of memory (MB) of one process by the number of judgements so far; it says them too."""
    with server(0.0) as url:
        peaks: dict[str, float] = in_a_process("rlaif", url, count, concurrency)["peaks"]
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--memory-calls", type=int, default=100_000, help="0 for no such run")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, nargs="*", default=[0.05, 1.0], help="seconds")
    parser.add_argument("--distilabel", type=Path, metavar="PYTHON", help="compare with it too")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        asked = WAYS[options.way](options.url, options.calls, options.concurrency)
        cost = asked.cost
        print(json.dumps({"seconds": cost.wall, "cpu": cost.cpu, "peaks": asked.peaks}))
        return
    if options.quick:
        options.calls, options.memory_calls = options.calls // 10, options.memory_calls // 10
    result: dict[str, Any] = {"speed": [compare(latency, options) for latency in options.latency]}
    if options.memory_calls:
        result["memory"] = memory(options.memory_calls, options.concurrency)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
