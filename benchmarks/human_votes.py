"""From answers to an answer, with people in it: sample, judge and pair, let scripted voters vote in
a real browser, train an arm on their votes and one on a judge, compare.

    python benchmarks/human_votes.py --out runs/human_votes
    python benchmarks/human_votes.py --out runs/human_votes --pairs 200 --set prompts.limit=48

A voter prefers the shorter of two answers and errs one time in ten, at random. It sees what a
person sees: the page of `rlaif annotate` in Chromium (playwright), and it votes with the keys 1, 2
and 0.
A second start with the same `--out` goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROMPTS = "prompts/seeds/everyday.jsonl"
CONSTITUTION = "constitutions/concise_helper.yaml"
EXPERIMENT = "experiments/ai_vs_human.yaml"
NAMES = ("ada", "ben", "cleo", "dina")
ERRORS = 0.1
SETS = ("prompts.holdout=24", "prompts.limit=24")
"""The rest of the pairs is what the AI labeller learns from."""
CHANGED = """([before, texts]) => {
  const text = name => document.querySelector(name).innerText;
  if (text("#done") === before) return false;
  if (!document.querySelector("#finished").hidden) return true;
  return ["first", "second"].some((side, i) => text(`#${side} .text-html`) !== texts[i]);
}"""
"""Whether a vote was counted and something else is shown."""


def main(given: Sequence[str] | None = None) -> None:
    """Print the seconds of each part, how well the votes follow the rule, and the answer."""
    began = time.monotonic()
    with timed("all of it"):
        figures = run_study(given)
    if figures:
        print(json.dumps({"seconds": round(time.monotonic() - began, 1), **figures}))


def run_study(given: Sequence[str] | None) -> dict[str, Any]:
    """Make pairs, let people vote, train and compare the arms; the figures, where `--json` asks for
    them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="Folder to write or go on with.")
    parser.add_argument("--model", default="builtin/smollm2-135m-instruct")
    parser.add_argument("--pairs", type=int, default=96, help="Prompts with two answers each.")
    parser.add_argument("--voters", type=int, default=3, choices=range(1, 5))
    parser.add_argument("--overlap", type=int, default=2, help="Votes on an item.")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="One JSON object as the last line.")
    options = parser.parse_args(given)
    names, db = NAMES[: options.voters], options.out / "votes.db"
    with timed("sample, judge and pair"):
        pairs = make_pairs(options.out, options.model, options.pairs)
    with timed("vote"), serving(pairs, db, names, options.overlap) as links:
        counts = vote_all(links)
    followed = follow_rule(db)
    print(f"{sum(counts.values())} votes: {counts}; {followed:.3f} for the shorter answer")
    sets = [f"data={db}", f"models.policy.path={options.model}", *SETS, *options.set]
    with timed("arms"):
        said = call("run", EXPERIMENT, "--out", options.out / "run", "--quiet", *as_options(sets))
    print(said)
    if not options.json:
        return {}
    [arms] = json.loads(call("status", options.out / "run", "--json"))["arms"]
    return {"votes": counts, "shorter": followed, "arms": arms}


def as_options(sets: Sequence[str]) -> list[str]:
    return [word for item in sets for word in ("--set", item)]


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a part took, and the processor time of it and of all that it started: on two
    cores with nothing beside it, a part takes no less than half of this."""
    began, used = time.monotonic(), processor_seconds()
    yield
    seconds, used = time.monotonic() - began, processor_seconds() - used
    print(f"{what}: {seconds:.0f} s, processor {used:.0f} s", flush=True)


def processor_seconds() -> float:
    """The processor time of this process and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def call(*words: Any) -> str:
    """What an `rlaif` command prints. Raises SystemExit with its errors where it fails."""
    command = [sys.executable, "-m", "rlaif", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def make_pairs(out: Path, model: str, count: int) -> Path:
    """Two answers to each of the first prompts, which a judge has compared."""
    prompts, answers, judged, pairs = (
        out / name for name in ("prompts.jsonl", "answers", "checks", "pairs")
    )
    out.mkdir(parents=True, exist_ok=True)
    lines = Path(PROMPTS).read_text(encoding="utf-8").splitlines(keepends=True)
    prompts.write_text("".join(lines[:count]), encoding="utf-8")
    sampling = as_options(["n=2", "temperature=0.9", "max_new_tokens=48"])
    call("sample", prompts, "--model", model, "--out", answers, "--quiet", *sampling)
    call("judge", answers, "--constitution", CONSTITUTION, "--out", judged, "--quiet")
    call("pair", answers, judged, "--out", pairs, "--quiet", *as_options(["min_margin=0"]))
    return next(pairs.rglob("preferences.jsonl"))


@contextmanager
def serving(pairs: Path, db: Path, names: Sequence[str], overlap: int) -> Iterator[dict[str, str]]:
    """Each person's link, while `rlaif annotate` runs."""
    command = [sys.executable, "-m", "rlaif", "annotate", pairs, "--db", db, "--port", 0]
    command += ["--people", ",".join(names), "--overlap", overlap]
    server = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        found: dict[str, str] = {}
        while not found.keys() >= set(names):
            line = server.stdout.readline()
            if not line:
                raise SystemExit("rlaif annotate ended early")
            if match := re.match(r"  (\w+): (http\S+)", line):
                found[match[1]] = match[2]
        yield {name: found[name] for name in names}
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def vote_all(links: dict[str, str]) -> dict[str, int]:
    """Let everybody vote in turn, each in a browser window of their own, until nothing is left; how
    many votes each gave."""
    from playwright.sync_api import sync_playwright

    counts = dict.fromkeys(links, 0)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
            args=["--no-sandbox"],
        )
        pages = {}
        for name, link in links.items():
            pages[name] = chromium.new_context().new_page()
            pages[name].goto(link)
        waiting = set(pages)
        while waiting:
            for name in [name for name in pages if name in waiting]:
                if vote_once(pages[name], name):
                    counts[name] += 1
                else:
                    waiting.discard(name)
        chromium.close()
    return counts


def vote_once(page: Any, name: str) -> bool:
    """One vote with a key; False where there is nothing left to vote on."""
    page.wait_for_selector("#item:not([hidden]), #finished:not([hidden])")
    if page.locator("#finished").is_visible():
        return False
    texts = [page.inner_text(f"#{side} .text-html") for side in ("first", "second")]
    before = page.inner_text("#done")
    page.keyboard.press(choose_key(name, texts))
    page.wait_for_function(CHANGED, arg=[before, texts])
    return True


def choose_key(name: str, texts: Sequence[str]) -> str:
    """The key for the shorter answer, or one time in ten for the other; 0 for equal lengths."""
    first, second = map(len, texts)
    if first == second:
        return "0"
    wrong = random.Random(f"{name} {sorted(texts)}").random() < ERRORS
    return "1" if (first < second) != wrong else "2"


def follow_rule(db: Path) -> float:
    """The share of decided votes for the shorter answer, from the database."""
    from rlaif.data.votes import read_items, read_votes

    items = {item.item_id: item for item in read_items(db)}
    right = []
    for vote in read_votes(db):
        item = items[vote.item_id]
        if vote.verdict in ("a", "b") and item.b is not None:
            gap = len(item.a[0]["content"]) - len(item.b[0]["content"])
            right.append((gap < 0) == (vote.verdict == "a"))
    return sum(right) / len(right) if right else float("nan")


if __name__ == "__main__":
    main()
