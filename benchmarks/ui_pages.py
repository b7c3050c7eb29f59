"""The pages of `rlaif ui` on a run of 1,000,000 judgements: building the index, and every page.

    python benchmarks/ui_pages.py [--quick] [--json] [--keep FOLDER]

The run has prompts of 300 bytes, four answers of about 600 bytes to each, 25 judgements of each
answer by two judges (one of which writes 150 bytes) and a pair of each prompt; its steps are
written through the store, as a run would leave them. The server builds the index, and each page is
asked for over HTTP by one client. Printed are the seconds and bytes of the index, the median and
the 95th percentile of each page in milliseconds, and the server's resident memory before and after.
--quick takes a run of 50,000 judgements; with --keep the run stays for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = {True: 500, False: 10_000}
ANSWERS, CHECKS, ASKED, SAMPLES = 4, 5, 10, 2
REPEATS = 40
"""How often each page is asked for."""
BATCH = 64
"""Prompts whose records are one commit."""
WORDS = [f"{a}{b}{c}" for a in "bdfklmnprstv" for b in "aeiou" for c in ("n", "r", "st", "l", "m")]
RARE, COMMON, MISSING = "zyzzyva", "ban", "notthere"
PAGE_LIMIT_MS = 200


def words_of(rng: random.Random, size: int) -> str:
    """A text of about `size` bytes: COMMON is in nearly all of them, RARE in one of 5,000."""
    text = " ".join(rng.choices(WORDS, k=size // 5))
    rare = f" {RARE}" if rng.random() < 1 / 5_000 else ""
    return f"{COMMON} {text}{rare}."


def write_experiment(folder: Path, count: int) -> None:
    """An experiment of two judges and one round on `count` prompts."""
    rng = random.Random(7)
    with (folder / "prompts.jsonl").open("w") as file:
        for number in range(count + 1):
            prompt = {"prompt": f"Question {number}: {words_of(rng, 280)}"}
            file.write(json.dumps(prompt) + "\n")
    check = {"rule": "word_limits", "params": {"min": 1, "max": 40}}
    principles = [{"id": f"check{n}", "check": check} for n in range(CHECKS)]
    principles += [{"id": f"text{n}", "text": f"Be good in way {n}."} for n in range(ASKED)]
    constitution = {"name": "many", "principles": principles}
    (folder / "constitution.yaml").write_text(yaml.safe_dump(constitution))
    asked = [f"text{n}" for n in range(ASKED)]
    data = {
        "name": "many judgements",
        "models": {"policy": {"path": "none", "engine": "fake"}},
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 1},
        "steps": [
            {"sample": {"n": ANSWERS}},
            {"judge": {"id": "rules", "kind": "rules"}},
            {"judge": {"id": "self", "kind": "yes_no", "by": "policy", "principles": asked}},
            {"pair": {"strategy": "best_vs_worst"}},
        ],
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def write_run(folder: Path) -> int:
    """The finished run of the experiment in `folder`; how many judgements it has."""
    from rlaif.core.store import Store
    from rlaif.pipeline.manifest import write_manifest, write_rounds
    from rlaif.pipeline.plan.unroll import make_plan
    from rlaif.pipeline.prepare import prepare

    store = Store(folder / "run")
    store.prepare()
    inputs = prepare(folder / "experiment.yaml")
    plan = make_plan(inputs)
    write_manifest(store, inputs, plan)
    folders = {planned.id: store.step(planned.hash) for planned in plan}
    files = {"sample": "completions", "rules": "judgements", "self": "judgements"}
    files["pair"] = "preferences"
    counts = dict.fromkeys(files, 0)
    prompts = inputs.prompts.train
    for start in range(0, len(prompts), BATCH):
        made = [make_records(prompt) for prompt in prompts[start : start + BATCH]]
        for step, name in files.items():
            rows = [row for found in made for row in found[step]]
            folders[step].append(name, rows)
            counts[step] += len(rows)
    for planned in plan:
        if planned.id in files:
            own = {files[planned.id]: counts[planned.id]}
            summary = {"hash": planned.hash, "kind": planned.kind, "id": planned.id}
            summary |= {"inputs": planned.inputs, "seconds": 1.0, "counts": own}
            folders[planned.id].finish(summary)
    write_rounds(inputs, plan, store)
    return counts["rules"] + counts["self"]


def make_records(prompt: Any) -> dict[str, list[Any]]:
    """What the steps leave of a prompt, by step."""
    from rlaif.config.steps import PairStep
    from rlaif.core.records import Completion, content_hash
    from rlaif.preferences.pairing import Candidate, make_preference

    rng = random.Random(prompt.prompt_id)
    answers = []
    for index in range(ANSWERS):
        said: Any = [{"role": "assistant", "content": words_of(rng, rng.randint(300, 900))}]
        name = "x_" + content_hash(prompt.prompt_id, index)
        answers.append(
            Completion(name, prompt.prompt_id, index, said, "policy", "none", {}, "stop")
        )
    rules = [
        make_judgement(answer, "rules", f"check{n}", 0, rng.random(), None)
        for answer in answers
        for n in range(CHECKS)
    ]
    asked = [
        make_judgement(answer, "self", f"text{n}", sample, rng.random(), words_of(rng, 140))
        for answer in answers
        for n in range(ASKED)
        for sample in range(SAMPLES)
    ]
    scored = sorted((Candidate(answer, rng.random()) for answer in answers), key=lambda c: -c.score)
    judged = {"rules": rules, "self": asked}
    pair = make_preference(prompt, (scored[0], scored[-1]), PairStep(), 1, judged, {})
    return {"sample": answers, "rules": rules, "self": asked, "pair": [pair]}


def make_judgement(
    answer: Any, judge: str, principle: str, sample: int, score: float, raw: str | None
) -> Any:
    """A judgement of one answer; of those that were asked for, one in 50 could not be read."""
    from rlaif.core.records import Judgement, content_hash

    name = content_hash(answer.completion_id, judge, principle, sample)
    unread = raw is not None and score < 0.02
    return Judgement(
        "j_" + name, "c_" + name, answer.prompt_id, "completion", [answer.completion_id],
        answer.completion_id, judge, f"program:{judge}", "ai" if raw else "rule", principle,
        "unparsed" if unread else "ok", score=None if unread else score, raw=raw,
        sample_index=sample, judge_hash="none",
    )  # fmt: skip


def list_pages(run: str, prompt: str) -> dict[str, str]:
    """Every page, and the searches that are quickest and slowest, by what it is called."""
    browse = f"run/{run}/browse?show="
    return {
        "runs": "",
        "run": f"run/{run}",
        "flow": f"run/{run}/flow",
        "curves": f"curves?run={run}",
        "config": f"config?run={run}",
        "prompt": f"run/{run}/prompt?id={prompt}",
        "pairs": f"{browse}pairs",
        "pairs, page 300": f"{browse}pairs&page=300",
        "pairs, common word": f"{browse}pairs&q={COMMON}",
        "pairs, rare word": f"{browse}pairs&q={RARE}",
        "pairs, judges disagree": f"{browse}pairs&differ=judges",
        "pairs, judge against": f"{browse}pairs&differ=against&judge=self&principle=text3",
        "pairs, margin and gap": f"{browse}pairs&low=0.9&gap_low=20",
        "answers": f"{browse}answers",
        "answers, rare word": f"{browse}answers&q={RARE}",
        "answers, length": f"{browse}answers&gap_low=170",
        "judgements": f"{browse}judgements",
        "judgements, page 400": f"{browse}judgements&page=400",
        "judgements, common word": f"{browse}judgements&q={COMMON}",
        "judgements, rare word": f"{browse}judgements&q={RARE}",
        "judgements, no match": f"{browse}judgements&q={MISSING}",
        "judgements, two words": f"{browse}judgements&q={COMMON}+dun+mur",
        "judgements, phrase": f"{browse}judgements&q=%22dun+mur%22",
        "judgements, unparsed": f"{browse}judgements&status=unparsed",
        "judgements, narrow value": f"{browse}judgements&low=0.5&high=0.5001",
        "judgements, all filters": f"{browse}judgements&judge=self&principle=text9&status=ok"
        "&low=0.99995",
        "judgements, word and value": f"{browse}judgements&q={COMMON}&low=0.99995",
        "prompts": f"{browse}prompts",
        "prompts, rare word": f"{browse}prompts&q={RARE}",
    }


def fetch(url: str) -> str:
    """A page's text. Raises where it is refused."""
    with urllib.request.urlopen(url, timeout=120) as answer:
        return str(answer.read().decode())


def resident_mb(process: int) -> float:
    """The resident memory of a process, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if "VmRSS" in line).split()[1]) / 1e3


def cpu_seconds(process: int) -> float:
    """The processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def time_page(url: str, process: int) -> tuple[float, float, float]:
    """Median and 95th percentile of a page in milliseconds, after a first time, and the mean
    processor time of the server: on a machine that does other work, this is what a page takes."""
    fetch(url)
    taken = []
    used = cpu_seconds(process)
    for _ in range(REPEATS):
        began = time.perf_counter()
        fetch(url)
        taken.append(1e3 * (time.perf_counter() - began))
    used = cpu_seconds(process) - used
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1], 1e3 * used / REPEATS


def measure(run: Path, cache: Path) -> dict[str, Any]:
    """Build the index of a run by a server of its own, and time its pages."""
    command = [sys.executable, "-m", "rlaif", "ui", str(run), "--port", "0", "--no-open"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RLAIF_CACHE": str(cache)}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    try:
        base = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        name = re.findall(r'name="run" value="(\w+)"', fetch(base))[0]
        memory = {"before": resident_mb(server.pid)}
        pairs = f"{base}run/{name}/browse?show=pairs"
        began = time.monotonic()
        first: float | None = None
        while "is being built" in (text := fetch(pairs)):
            if first is None and 'class="item"' in text:
                first = time.monotonic() - began
            time.sleep(0.2)
        seconds, processor = time.monotonic() - began, cpu_seconds(server.pid)
        memory["index built"] = resident_mb(server.pid)
        prompt = re.findall(r"prompt\?id=(\w+)", text)[0]
        pages = {}
        for page, path in list_pages(name, prompt).items():
            pages[page] = time_page(base + path, server.pid)
            p50, p95, cpu = pages[page]
            print(f"{page}: {p50:.0f} ms, p95 {p95:.0f} ms, processor {cpu:.0f} ms", flush=True)
        memory["pages shown"] = resident_mb(server.pid)
    finally:
        server.terminate()
        server.wait()
    return {
        "index_seconds": round(seconds, 1),
        "index_processor_seconds": round(processor, 1),
        "first_results_seconds": None if first is None else round(first, 2),
        "index_mb": sum(p.stat().st_size for p in (cache / "ui").iterdir()) / 1e6,
        "memory_mb": memory,
        "pages_ms": {page: [round(value, 1) for value in times] for page, times in pages.items()},
    }


def main() -> None:
    """Make the run where it is absent, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a run of 50,000 judgements")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="Keep the run in this folder.")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write is not None:
        print(f"{write_run(options.write):,} judgements written")
        return
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "run" / "manifest.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_experiment(folder, PROMPTS[options.quick])
            command = [sys.executable, __file__, "--write", str(folder)]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        figures = measure(folder / "run", cache)
    print(f"index: {figures['index_seconds']} s ({figures['index_processor_seconds']} s of "
          f"processor time with the start), {figures['index_mb']:.0f} MB; the first results "
          f"after {figures['first_results_seconds']} s")  # fmt: skip
    print(f"memory of the server in MB: {figures['memory_mb']}")
    slow = {page: p95 for page, (_, p95, _) in figures["pages_ms"].items() if p95 > PAGE_LIMIT_MS}
    print(f"pages over {PAGE_LIMIT_MS} ms at p95: {slow or 'none'}")
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
