"""Judging through a connection that spoils three calls in ten, killed with SIGKILL again and again.

    python benchmarks/judging_faults.py [--calls 10000] [--kills 20] [--concurrency 64]
                                        [--share 0.3] [--quick] [--json]

A scripted server counts what it is asked; a proxy before it draws a fault of any kind for a share
of the calls: refused and broken connections, late, dripping, cut and repeated answers, 429, 500,
503, and every shape of `tests/servers/shapes.py` (errors in a 200, pages, event streams, null
contents, usage and log-probs that cannot be, bodies too deep and too long, moderation, 404). A few
calls are answered with what stops a step: no key, no money, a wait of a day. A judging process asks
through it, is killed or stops, and is started again. Then come the phases of `fault_phases.py`:
what refuses every call of a step, or leaves it unanswered. Exit code 1 unless every record is there
once, labelled or failed with its reason; nothing committed (an answer in the cache, a record in the
folder) was asked for again; each kill or stop lost at most the calls that were open; and each phase
ended as it should.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fault_phases import number_of, run_phases, show_phases, user_turn  # noqa: E402

from rlaif.core.records import make_prompt  # noqa: E402
from rlaif.core.store import Store  # noqa: E402
from rlaif.engines.remote.cache import RequestCache, cache_limit, cache_path  # noqa: E402
from rlaif.engines.remote.meter import in_words, read_meters  # noqa: E402
from tests.servers.faults import KINDS as FAULTS  # noqa: E402
from tests.servers.faults import FaultProxy  # noqa: E402
from tests.servers.scripted import ScriptedServer  # noqa: E402
from tests.servers.shapes import SHAPES, STOPPING  # noqa: E402

TOPS = {"Yes": -0.2, "No": -2.0}
LATENCY = 0.02
KINDS = [*FAULTS, *SHAPES]
STOPS = 6
"""Of so many equal parts of the calls each has an answer that stops the step."""
REASONS = (
    "gave up after",
    "status 403: mm requires moderation",
    "status 400: This model's maximum context length is",
    "the server answered without log-probs",
    "the server gives 0.9 as a log-prob",
    "the server names tokens by their ids",
    "the server's content filter withheld",
    "the model thinks before it answers",
)
"""How the reasons of failed records may begin."""
SETTLE = 0.5
"""Seconds in which a call that was on its way when the process died reaches the server."""


@dataclass
class Kills:
    """What each kill or stop did: how many calls it lost that the server had answered, and the
    numbers of the records that were committed then, by how many attempts had been made. `stopped`:
    how often the process stopped by itself."""

    stopped: int = 0
    lost: list[int] = field(default_factory=list)
    committed: list[tuple[int, set[int]]] = field(default_factory=list)


def cached() -> set[int]:
    """The numbers of the records whose answers are in the request cache."""
    cache = RequestCache(cache_path(), cache_limit())
    found = {number_of(row["request"]) for row in cache.rows()}
    cache.close()
    return found


def recorded(out: Path, numbers: Mapping[str, int]) -> set[int]:
    """The numbers of the records that are there, by the `numbers` of prompts."""
    return {numbers[row["prompt_id"]] for row in Store(out).step("judging").rows("judgements")}


def judging(url: str, out: Path, count: int, concurrency: int) -> subprocess.Popen[bytes]:
    """The process that judges, or goes on judging."""
    command = [sys.executable, "-m", "tests.support.judging", url, str(out), str(count)]
    return subprocess.Popen([*command, str(concurrency)], cwd=ROOT)


def killed(
    server: ScriptedServer,
    proxy: FaultProxy,
    out: Path,
    options: argparse.Namespace,
    draw: random.Random,
) -> Kills:
    """Kill the process `options.kills` times, at moments drawn evenly over the answers, and have it
    go on to the end. Each time that it stopped by itself it goes on too."""
    kills = Kills()
    numbers = {make_prompt(user_turn(i)).prompt_id: i for i in range(options.calls)}
    # The last answers come at once, and would leave nothing to kill.
    span = max(options.calls - 2 * options.concurrency, options.calls // 2)
    moments = [span * (n + draw.random()) / options.kills for n in range(options.kills)]
    while True:
        before = len(server.asked)
        process = judging(proxy.url, out, options.calls, options.concurrency)
        wanted = moments[0] if moments else float("inf")
        # Some calls of each process at least: a kill while it is starting shows nothing.
        while len(server.answered) < wanted or len(server.asked) < before + options.concurrency:
            if process.poll() is not None:
                break
            time.sleep(0.002)
        else:
            os.kill(process.pid, signal.SIGKILL)
            moments.pop(0)
        ended = process.wait()
        if ended == 0 and not moments:
            return kills
        if ended not in (-signal.SIGKILL, 2, 3):
            sys.exit(f"the process ended with {ended}, and {len(moments)} kills are left")
        kills.stopped += ended != -signal.SIGKILL
        time.sleep(SETTLE)
        known = cached() | recorded(out, numbers)
        asked = {number_of(body) for body in server.asked[before:]}
        kills.lost.append(len(asked - known))
        kills.committed.append((len(proxy.asked), known))


def report(proxy: FaultProxy, kills: Kills, out: Path, count: int) -> dict[str, Any]:
    """Every figure, JSON-ready."""
    rows = Store(out).step("judging").read("judgements")
    asked = [number_of(body) for body in proxy.asked]
    again = sum(not known.isdisjoint(asked[start:]) for start, known in kills.committed)
    meter = read_meters(Store(out).step("judging").path)["server"]
    return {
        "calls": count,
        "attempts": proxy.calls,
        "faults": dict(sorted(proxy.done.items())),
        "kills": len(kills.lost) - kills.stopped,
        "stops": kills.stopped,
        "lost_by_a_kill": kills.lost,
        "statuses": dict(Counter(row["status"] for row in rows)),
        "reasons": dict(Counter(row["error"] for row in rows if row["status"] == "failed")),
        "missing": count - len({row["call_id"] for row in rows}),
        "duplicates": len(rows) - len({row["call_id"] for row in rows}),
        "kills_after_which_a_committed_answer_was_asked_for": again,
        "meter": meter.summary(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.3, help="of the calls with a fault")
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls, 5 kills")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.calls, options.kills = options.calls // 10, 5
    draw, stop_every = random.Random(11), max(1, options.calls // STOPS)
    faults: dict[int, str | None] = {}

    def fault(number: int) -> str | None:
        drawn = draw.choice(KINDS) if draw.random() < options.share else None
        if number % stop_every == stop_every - 1:
            drawn = list(STOPPING)[number // stop_every % len(STOPPING)]
        return faults.setdefault(number, drawn)

    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        ScriptedServer(tops=TOPS, latency=LATENCY) as server,
        FaultProxy(server.url, fault) as proxy,
    ):
        os.environ["RLAIF_CACHE"] = folder
        out = Path(folder) / "run"
        kills = killed(server, proxy, out, options, random.Random(12))
        found = report(proxy, kills, out, options.calls)
        found["seconds"] = round(time.monotonic() - began, 1)
        show(found, options.concurrency)
        found["phases"] = run_phases(Path(folder))
    show_phases(found["phases"])
    if options.json:
        print(json.dumps(found))
    return 0 if is_good(found, options.concurrency) else 1


def is_good(found: dict[str, Any], concurrency: int) -> bool:
    """Whether nothing was lost, doubled or paid twice, and each phase ended as it should."""
    wrong = ("missing", "duplicates", "kills_after_which_a_committed_answer_was_asked_for")
    explained = all(str(why).startswith(REASONS) for why in found["reasons"])
    known = set(found["statuses"]) <= {"ok", "failed"}
    few = max(found["lost_by_a_kill"], default=0) <= concurrency
    phases = all(not row["wrong"] for row in found["phases"].values())
    return few and known and explained and phases and not any(found[name] for name in wrong)


def show(found: dict[str, Any], concurrency: int) -> None:
    """The figures in words."""
    spoilt = sum(found["faults"].values())
    kinds = ", ".join(f"{kind} {count}" for kind, count in found["faults"].items())
    print(
        f"{found['calls']} records, {found['attempts']} attempts of which {spoilt} were spoilt "
        f"({spoilt / found['attempts']:.1%}: {kinds}), {found['kills']} kills, "
        f"{found['stops']} stops, {found['seconds']} s"
    )
    print(f"records: {found['statuses']}, {found['missing']} missing, {found['duplicates']} twice")
    for reason, count in found["reasons"].items():
        print(f"  {count} failed: {reason}")
    again = found["kills_after_which_a_committed_answer_was_asked_for"]
    print(f"kills and stops after which something committed was asked for again: {again}")
    lost = found["lost_by_a_kill"]
    most = max(lost, default=0)
    print(f"calls lost by a kill: {sum(lost)} in all, {most} at most ({concurrency} may be open)")
    print(f"all processes together: {found['meter']['calls']} answers, {in_words(found['meter'])}")


if __name__ == "__main__":
    sys.exit(main())
