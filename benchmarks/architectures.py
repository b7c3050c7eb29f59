"""Every causal language model of the installed transformers: what trains, and that it trains as
plain transformers would.

    python benchmarks/architectures.py [--quick] [--only NAME ...] [--jobs N] [--rows FILE] [--json]

Of each architecture a model with tiny sizes and random weights is built, and tried in a process of
its own, with a time-out and a limit of memory: the log-probs and gradients of the first training
step beside the model's own forward, row by row; two steps of DPO, and the export loaded twice by
plain transformers; a reward model, and its margins by `rlaif score`'s engine and by transformers'
sequence classifier. All in fp32 on a CPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

QUICK = (
    *("llama", "qwen3", "gemma2", "mistral", "phi3", "olmo2", "gpt_neox", "gpt2"),
    *("bloom", "gpt_oss", "mamba", "qwen3_moe", "bert"),
)
SECONDS = 180
MEMORY = 6 << 30
"""Bytes of data that a trial may hold."""
SHARED = (
    *("architecture_parts.trial", "transformers.modeling_utils", "transformers.generation"),
    *("transformers.models.auto", "transformers.models.llama.modeling_llama", "peft"),
    *("transformers.models.auto.tokenization_auto", "tokenizers", "safetensors.torch"),
)
PACKED, PADDED, REFUSED = "trains packed", "trains padded", "refused"
ABSENT, CRASHED, DIFFERS = "not buildable", "CRASHED", "DIFFERS"
FAULTS = (CRASHED, DIFFERS)


@dataclass
class Row:
    """What was found of one architecture. `reward` is how its reward model went, in the same words
    as `outcome`, and the reasons say why where that is not plain."""

    name: str
    outcome: str = CRASHED
    reason: str = ""
    reward: str = ""
    reward_reason: str = ""
    seconds: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)


def attempt(name: str, results: Connection) -> None:
    """Try one architecture in this process, and send what is found as it is found."""
    from architecture_parts import trial

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLAIF_CACHE"] = str(Path(folder) / "cache")
        try:
            for found in trial.trial(name, Path(folder)):
                results.send(found)
            results.send({"end": "done"})
        except trial.Refused as error:
            results.send({"end": REFUSED, "reason": _plain(str(error), folder)})
        except trial.Differs as error:
            results.send({"end": DIFFERS, "reason": str(error)})
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            kind = ABSENT if isinstance(error, trial.NotText) else CRASHED
            said = str(error) if kind == ABSENT else f"{trial.in_a_line(error)} ({where})"
            trace = traceback.format_exc()
            results.send({"end": kind, "reason": _plain(said, folder), "trace": trace})


def _plain(text: str, folder: str) -> str:
    """The words without the places of the trial's own folders."""
    return re.sub(rf"{re.escape(folder)}/\S*?:? ", "", text)


def conclude(row: Row, end: str, reason: str) -> None:
    """The outcome of training and that of the reward model, from where the trial ended."""
    found = row.found
    trained = PACKED if found.get("packed") else PADDED
    if "class" not in found:
        row.outcome, row.reason = ABSENT, reason
    elif "moved" not in found:
        stage = f"{found['stage']}: " if "stage" in found else ""
        row.outcome, row.reason = end, stage + reason
    else:
        row.outcome = trained
        row.reason = "; ".join(found["left_out"])
        row.reward = "as transformers" if end == "done" else end
        row.reward_reason = "" if end == "done" else reason


def read_rows(path: Path | None) -> dict[str, Row]:
    """What an earlier call found, by name."""
    if path is None or not path.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()]
    return {row.name: row for row in rows}


def run(names: list[str], jobs: int, kept: Path | None) -> list[Row]:
    """Try all, `jobs` at a time, and append each row to the file `kept`."""
    context = multiprocessing.get_context("fork")
    waiting, running, rows = list(names), {}, []
    while waiting or running:
        while waiting and len(running) < jobs:
            receiver, sender = context.Pipe(duplex=False)
            row = Row(waiting.pop(0))
            process = context.Process(target=attempt, args=(row.name, sender))
            process.start()
            sender.close()
            running[receiver] = row, process, time.monotonic()
        wait(list(running), timeout=1)
        for receiver, (row, process, began) in list(running.items()):
            end = _received(receiver, row)
            late = time.monotonic() - began > SECONDS
            if end is None and late:
                process.kill()
                end = {"end": CRASHED, "reason": f"not done after {SECONDS} s"}
            elif end is None:
                continue
            process.join()
            if end["end"] == "died":
                code = process.exitcode
                end = {"end": CRASHED, "reason": f"the process ended with exit code {code}"}
            row.seconds = time.monotonic() - began
            conclude(row, end["end"], end.get("reason", ""))
            row.found["trace"] = end.get("trace", "")
            del running[receiver]
            receiver.close()
            rows.append(row)
            print(_line(row), file=sys.stderr, flush=True)
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps(vars(row)) + "\n")
    return rows


def _received(receiver: Connection, row: Row) -> dict[str, str] | None:
    """How the trial ended, once it has; what it found meanwhile goes into the row."""
    try:
        while receiver.poll():
            message = receiver.recv()
            if "end" in message:
                return message
            row.found.update(message)
    except EOFError:
        return {"end": "died"}
    return None


def _line(row: Row) -> str:
    figures = " ".join(_figure(row.found, key) for key in ("logprobs", "gradients", "margins"))
    words = f"{row.reason} | {row.reward} {row.reward_reason}".strip(" |")
    return f"{row.name:28} {row.outcome:14} {figures} {row.seconds:5.1f} s  {words}"


def _figure(found: dict[str, Any], key: str) -> str:
    return f"{found[key]:.0e}" if key in found else "-"


def table(rows: list[Row]) -> str:
    """Markdown: the figures of what trains, and all reasons with the names that they are for."""
    lines = []
    for outcome in (PACKED, PADDED):
        chosen = [r for r in rows if r.outcome == outcome]
        lines += [f"**{outcome}** ({len(chosen)})", ""]
        lines += [f"|{' architecture | log-probs | gradients | margins |' * 2}", "|---" * 8 + "|"]
        cells = [_cells(r) for r in chosen]
        half = -(-len(cells) // 2)
        lines += ["|" + "".join(cells[i::half]) for i in range(half)]
        lines += ["", *_by_reason([(r, r.reason) for r in chosen if r.reason])]
    without = [r for r in rows if r.reward not in ("", "as transformers")]
    lines += [f"**trains, without a reward model** ({len(without)})", ""]
    lines += _by_reason([(r, f"{r.reward}: {r.reward_reason}") for r in without])
    for outcome in (REFUSED, ABSENT, *FAULTS):
        chosen = [r for r in rows if r.outcome == outcome]
        lines += [f"**{outcome}** ({len(chosen)})", ""]
        lines += _by_reason([(r, r.reason) for r in chosen])
    return "\n".join(lines)


def _cells(row: Row) -> str:
    figures = [_figure(row.found, key) for key in ("logprobs", "gradients", "margins")]
    return f" {' | '.join([row.name, *figures])} |"


def _by_reason(pairs: list[tuple[Row, str]]) -> list[str]:
    """A line for each reason with the names it is for; what is one architecture's own in a reason,
    its name or a number, does not make it another."""
    names: dict[str, list[str]] = {}
    for row, reason in pairs:
        said = re.sub(rf"\b({re.escape(row.name)}|[A-Z]\w+For\w+|\w+Head\w*)\b", "X", reason)
        said = re.sub(r"the gradient of \S+ differ", "gradients differ", said)
        said = re.sub(r" by \S+ of their size, and \S+ is rounding", "", said)
        said = said.removeprefix("branches are padded and not packed, which is slower: ")
        names.setdefault(said, []).append(row.name)
    return [*(f"- {said}: {', '.join(of)}" for said, of in names.items()), ""]


def main() -> int:
    """Try them, print the table; exit code 1 where one crashed or differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a dozen well-known ones")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these, by their model_type")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--rows", type=Path, help="a line for each that was tried, to go on from")
    args = parser.parse_args()
    # In a process that has threads of torch's, none may be forked.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known

    logging.disable(logging.CRITICAL)
    unknown = [name for name in args.only or () if name not in known]
    if unknown:
        parser.error(f"transformers {transformers.__version__} has no {', '.join(unknown)}")
    # What all trials import is there before they are forked; a thread would not live on in them.
    for name in SHARED:
        importlib.import_module(name)
    names = list(args.only or (QUICK if args.quick else sorted(known)))
    known_rows = read_rows(args.rows)
    rows = [known_rows[n] for n in names if n in known_rows]
    rows += run([n for n in names if n not in known_rows], args.jobs, args.rows)
    rows.sort(key=lambda row: names.index(row.name))
    faults = [r for r in rows if r.outcome in FAULTS or r.reward in FAULTS]
    print(table(rows))
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    seconds = sum(row.seconds for row in rows)
    print(f"{len(rows)} architectures, {seconds:.0f} s of trials, {versions}")
    for r in faults:
        print(f"{r.name}: {r.outcome} {r.reason} {r.reward} {r.reward_reason}\n{r.found['trace']}")
    if args.json:
        print(json.dumps({"versions": versions, "rows": [vars(r) for r in rows]}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
