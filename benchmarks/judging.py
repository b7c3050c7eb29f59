"""How fast judges ask a server, next to a bare client and to the ideal, and in how much memory.

    python benchmarks/judging.py [--calls 10000] [--concurrency 64] [--memory-calls 100000]
                                 [--quick] [--json]

A scripted server in a process of its own answers after a fixed latency. Each way of asking makes
as many calls in a process of its own, imports excluded: `rlaif` with retries, request cache and
records on; `bare`, a plain loop over `AsyncOpenAI`, which keeps nothing. The ideal is
calls x latency / concurrency. The ways take turns, and the fastest turn of each counts.
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


def ask_bare(url: str, count: int, concurrency: int) -> Cost:
    """A plain loop over the client."""
    import openai

    async def main() -> Cost:
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
        return Cost.now().since(began)

    return asyncio.run(main())


def ask_rlaif(url: str, count: int, concurrency: int) -> Cost:
    """A judge with retries, cache and records, to the last record."""
    import rlaif.engines.openai
    from rlaif.config import ModelSpec, YesNoJudge
    from rlaif.constitution import Constitution
    from rlaif.engines.base import Model
    from rlaif.engines.build import EnginePool
    from rlaif.judges.build import build_judge
    from rlaif.records import Completion, content_hash, make_prompt
    from rlaif.steps.judge import ask_model
    from rlaif.store import Store

    assert rlaif.engines.openai
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
        began, made = Cost.now(), 0
        for batch in ask_model(judge, model, pool, calls(), set()):
            step.append("judgements", batch)
            made += len(batch)
        cost = Cost.now().since(began)
        assert made == count, f"{made} of {count} judged"
    return cost


WAYS = {"rlaif": ask_rlaif, "bare": ask_bare}


def in_a_process(way: str, url: str, count: int, concurrency: int) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory (MB) of one way of asking, in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--url", url]
    command += ["--calls", str(count), "--concurrency", str(concurrency)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(latency: float, count: int, concurrency: int, turns: int) -> dict[str, float]:
    """Both ways against each other and the ideal, at one latency."""
    best: dict[str, float] = {}
    cpu: dict[str, float] = {}
    with server(latency) as url:
        for _ in range(turns):
            for way in WAYS:
                measured = in_a_process(way, url, count, concurrency)
                best[way] = min(best.get(way, math.inf), measured["seconds"])
                cpu[way] = min(cpu.get(way, math.inf), measured["cpu"])
    ideal = count * latency / concurrency
    row = {
        "latency": latency,
        "calls": count,
        "rlaif_calls_per_second": count / best["rlaif"],
        "bare_calls_per_second": count / best["bare"],
        "share_of_bare": best["bare"] / best["rlaif"],
        "times_ideal": best["rlaif"] / ideal,
        "bare_times_ideal": best["bare"] / ideal,
        "rlaif_cpu_ms": 1000 * cpu["rlaif"] / count,
        "bare_cpu_ms": 1000 * cpu["bare"] / count,
    }
    print(
        f"latency {latency * 1000:.0f} ms, {count} calls: "
        f"rlaif {row['rlaif_calls_per_second']:.0f} calls/s, "
        f"bare client {row['bare_calls_per_second']:.0f} calls/s; "
        f"{row['share_of_bare']:.2f} x the bare client (goal {MIN_SHARE}), "
        f"{row['times_ideal']:.2f} x the ideal time (bare {row['bare_times_ideal']:.2f}); "
        f"CPU a call {row['rlaif_cpu_ms']:.2f} ms, bare {row['bare_cpu_ms']:.2f} ms",
        flush=True,
    )
    return row


def memory(counts: tuple[int, int], concurrency: int) -> list[dict[str, float]]:
    """Peak memory of few and of many calls."""
    rows = []
    with server(0.0) as url:
        for count in counts:
            measured = in_a_process("rlaif", url, count, concurrency)
            rows.append({"calls": count, "peak_mb": measured["peak_mb"]})
            print(f"{count} calls: {measured['peak_mb']:.0f} MB at its peak", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--memory-calls", type=int, default=100_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        cost = WAYS[options.way](options.url, options.calls, options.concurrency)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": cost.wall, "cpu": cost.cpu, "peak_mb": peak}))
        return
    scale = 10 if options.quick else 1
    count = options.calls // scale
    rows = [compare(latency, count, options.concurrency, options.turns) for latency in (0.05, 1.0)]
    counts = (1000, options.memory_calls // scale)
    result = {"speed": rows, "memory": memory(counts, options.concurrency)}
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
