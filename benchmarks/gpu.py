"""The GPU check: proves or refutes every path of this package on one GPU; see docs/gpu.md.

    python benchmarks/gpu.py correct|speed [--device cuda|cpu] [--tiny] [--budget SECONDS]
        [--out DIR] [--only PART ...] [--jobs N] [--compile-cache ARCHIVE]

Each part's result is a line of DIR/gpu.jsonl as soon as it is known. A part that is there, by the
same code on the same device and size, is not run again. The table comes last, also after SIGTERM.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

from gpu_parts.cache import NAME, pack, unpack  # noqa: E402
from gpu_parts.plan import PARTS, Part, code_hash, read_results, scratch, write_result  # noqa: E402

PACKAGES = (
    *("torch", "triton", "transformers", "tokenizers", "huggingface-hub", "accelerate", "peft"),
    *("safetensors", "numpy", "pandas", "pyarrow", "scikit-learn", "matplotlib", "rich", "click"),
    *("pydantic", "pydantic-core", "msgspec", "platformdirs", "py3langid", "rapidfuzz"),
    *("jsonschema", "gguf", "datasets", "dill", "multiprocess", "trl", "liger-kernel"),
    *("cut-cross-entropy", "openai", "httpx2", "phonenumberslite", "python-stdnum"),
)
BUDGETS = {"correct": 200.0, "speed": 390.0, "cpu": 600.0}
"""Seconds. A CPU needs under 180 for either, and more where others use it too."""
LAST_SECONDS = 8.0
"""Of the budget on a GPU, kept for packing the compile cache and for the table."""


class NoGpu(Exception):
    """torch sees none."""


@dataclass
class Check:
    """One call of this script."""

    command: str
    device: str
    tiny: bool
    out: Path
    deadline: float
    code: str
    log: Any
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    printed: set[str] = field(default_factory=set)

    def missing(self, parts: list[Part]) -> list[Part]:
        """The parts without a result."""
        known = read_results(self.out, self.code)
        return [part for part in parts if part.name not in known]

    def start(self, group: str, parts: list[Part]) -> None:
        """A process for the parts of a group."""
        words = [self.command, str(self.out), self.device, str(self.tiny), str(self.deadline)]
        command = [sys.executable, "-m", "gpu_parts.worker", *words, self.code]
        self.running[group] = subprocess.Popen(
            [*command, *(part.name for part in parts)],
            env=environment(),
            cwd=ROOT,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.starts[group] = self.starts.get(group, 0) + 1

    def ended(self, group: str, parts: list[Part]) -> bool:
        """Take note of a group's process that has ended. Whether the group is finished."""
        status = self.running.pop(group).returncode
        if status == 76:
            raise NoGpu
        left = self.missing(parts)
        if not left or time.time() > self.deadline - 1:
            return True
        if status == 75 and not self.enough_time():
            return True
        if status != 75:
            # It died within the first part that has no result.
            why = f"signal {-status}" if status < 0 else f"status {status}"
            error = f"its process ended with {why}: see gpu.log"
            write_result(self.out, self.code, left[0].name, False, 0.0, {}, error)
        return not self.missing(parts)

    def enough_time(self) -> bool:
        """Whether another process could still do something."""
        return time.time() < self.deadline - 20

    def kill(self) -> None:
        """End every process that was started, and what those started."""
        for process in self.running.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()
        self.running.clear()

    def say_new(self) -> None:
        """A line for each result that has come."""
        for name, row in read_results(self.out, self.code).items():
            if name not in self.printed:
                self.printed.add(name)
                print(f"{name:15} {verdict(row):22} {row['seconds']:7.1f} s", flush=True)


def environment() -> dict[str, str]:
    """What every process of the check finds."""
    own = [str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(own),
    }


def print_versions(device: str) -> None:
    """Of everything that the result may depend on; what is missing is said too."""
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores")
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    print(", ".join(found))
    print(f"not installed: {', '.join(missing) or 'nothing'}")
    if device == "cuda":
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        try:
            said = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            said = f"nvidia-smi: {error}"
        print(said, flush=True)


def verdict(row: dict[str, Any]) -> str:
    """A result in words."""
    if row["ok"] is None:
        return "skipped: needs a GPU"
    return "passed" if row["ok"] else "FAILED"


def table(command: str, parts: list[Part], known: dict[str, dict[str, Any]], where: str) -> str:
    """Every part with its result, and each of its checks with its figures."""
    lines = [f"{command} on {where}", ""]
    for part in parts:
        row = known.get(part.name)
        if row is None:
            lines.append(f"{part.name:15} {'not run':22} {'':9} {part.title}")
            continue
        lines.append(f"{part.name:15} {verdict(row):22} {row['seconds']:7.1f} s {part.title}")
        if row["error"] and not row["error"].startswith("failed: "):
            lines.append(f"    {row['error']}")
        lines += [_check_line(name, found) for name, found in row["figures"].items()]
    results = [verdict(row) for name, row in known.items() if name in {p.name for p in parts}]
    count = {what: results.count(what) for what in ("passed", "FAILED", "skipped: needs a GPU")}
    lines += ["", ", ".join(f"{n} {what}" for what, n in count.items())]
    lines[-1] += f", {len(parts) - len(results)} not run"
    return "\n".join(lines)


def _check_line(name: str, found: dict[str, Any]) -> str:
    said = " ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in found.items()
        if key not in ("ok", "error")
    )
    error = "" if found["ok"] is None else f" {found.get('error', '')}"
    return f"    {verdict(found):20} {name:40} {said}{error}".rstrip()


def run(check: Check, parts: list[Part], jobs: int) -> None:
    """Run what has no result, group by group, `jobs` of them at once, until the deadline."""
    groups: dict[str, list[Part]] = {}
    for part in check.missing(parts):
        groups.setdefault(part.group, []).append(part)
    waiting = list(groups)
    while waiting or check.running:
        while waiting and len(check.running) < jobs and check.enough_time():
            group = waiting.pop(0)
            check.start(group, check.missing(groups[group]))
        if not check.running:
            break
        time.sleep(0.1)
        for group in [g for g, process in check.running.items() if process.poll() is not None]:
            done = check.ended(group, groups[group])
            if not done and check.enough_time() and check.starts[group] <= len(groups[group]):
                waiting.insert(0, group)
        check.say_new()
        if time.time() > check.deadline + 3:
            print("the budget is used up", flush=True)
            break
    check.kill()
    check.say_new()


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=sorted(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    parser.add_argument(
        "--budget", type=float, help="seconds [correct 200, speed 390; on a CPU 600]"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="[runs/gpu]")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--again", nargs="+", metavar="PART", default=[], help="run these anew")
    parser.add_argument(
        "--jobs", type=int, help="groups at once [correct on a GPU 5, which is not timed; else 1]"
    )
    parser.add_argument("--compile-cache", type=Path, help=f"an archive to begin with [DIR/{NAME}]")
    options = parser.parse_args(arguments)
    names = [part.name for part in PARTS[options.command]]
    unknown = sorted({*(options.only or []), *options.again} - set(names))
    if unknown:
        parser.error(f"{options.command} has no part {unknown[0]!r}; it has {', '.join(names)}")
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu wants --tiny: the full sizes are for a GPU")
    return options


def forget(out: Path, code: str, names: list[str]) -> None:
    """Let these parts count as not run."""
    for name in names:
        if name in read_results(out, code):
            path = out / "gpu.jsonl"
            mark = f'"part": "{name}"'
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in lines if mark not in line))


def main() -> int:
    began = time.time()
    options = options_of()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    cuda = options.device == "cuda"
    budget = options.budget or (BUDGETS[options.command] if cuda else BUDGETS["cpu"])
    code = code_hash(options.device, options.tiny)
    print_versions(options.device)
    cache = Path(
        os.environ.get("TORCHINDUCTOR_CACHE_DIR") or scratch(out) / "compile-cache"
    ).resolve()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    if cuda:
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(os.cpu_count() or 16))
        archive = options.compile_cache or out / NAME
        if archive.exists():
            print(f"{unpack(archive, cache)} compiled files from {archive}", flush=True)
    forget(out, code, options.again)
    parts = [p for p in PARTS[options.command] if options.only is None or p.name in options.only]
    deadline = began + budget - (LAST_SECONDS if cuda else 0.0)
    jobs = options.jobs or (5 if cuda and options.command == "correct" else 1)
    with (out / "gpu.log").open("ab") as log:
        check = Check(options.command, options.device, options.tiny, out, deadline, code, log)
        check.printed = set(read_results(out, code))
        old = [part.name for part in parts if part.name in check.printed]
        print(f"already done by this code: {', '.join(old) or 'nothing'}", flush=True)

        def stop(number: int, frame: FrameType | None) -> None:
            raise SystemExit(128 + number)

        signal.signal(signal.SIGTERM, stop)
        status = 0
        try:
            run(check, parts, jobs)
        except NoGpu:
            print(
                "torch sees no GPU here: use --device cpu --tiny, or see gpu.log", file=sys.stderr
            )
            return 2
        except (KeyboardInterrupt, SystemExit) as stopped:
            status = stopped.code if isinstance(stopped, SystemExit) else 130
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            check.kill()
    known = read_results(out, code)
    where = f"{options.device}{', tiny sizes' if options.tiny else ''} (code {code})"
    text = table(options.command, parts, known, where)
    print(f"\n{text}\n{time.time() - began:.0f} s in all", flush=True)
    (out / f"gpu-{options.command}.txt").write_text(text + "\n")
    if cuda and cache.is_dir():
        kept, left = pack(cache, out / NAME)
        print(f"{kept} compiled files in {out / NAME}, {left} left out", flush=True)
    shutil.rmtree(scratch(out) / "parts", ignore_errors=True)
    failed = any(known.get(part.name, {"ok": False})["ok"] is False for part in parts)
    return int(status or failed)


if __name__ == "__main__":
    sys.exit(main())
