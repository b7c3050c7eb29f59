"""Run folders with one damaged byte or file, and experiment files that were changed at random: what
the command line makes of each. Used by `test_damage.py` and, at length, by `benchmarks/damage.py`.

A case is fine when the command ends with exit code 0 and the very outputs of the undamaged folder,
or with one that means a named error. A traceback is not, nor are other outputs with exit code 0.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlaif.cli import main
from rlaif.core.errors import EXIT_INTERRUPTED
from rlaif.core.integrity import file_digest
from rlaif.core.progress import QuietProgress
from rlaif.pipeline.experiment import run_experiment

CHANGING = ("latency", "seconds", "cost", "timing", "check", "place", "config_hash")
"""Keys of records that are others in every run, or follow from what is compared anyway."""
QUESTIONS = ["Name a fruit.", "What is a river?", "Why is it?", "What do bees make?", "How long?"]
SCRIPT = {
    "default": "It is so, and it will be so.",
    "rules": [
        {"match": "true of this answer", "labels": {"yes": 0.7, "no": 0.2}},
        {"match": "river", "replies": ["Water that flows.", "A long stream of it.", "Water."]},
        {"match": "bees", "replies": ["Honey.", "Bees make honey and wax, all day long."]},
    ],
}
CONSTITUTION = {
    "name": "tiny",
    "principles": [
        {
            "id": "brief",
            "text": "The answer has three to six words.",
            "weight": 2,
            "check": {"rule": "word_limits", "params": {"min": 3, "max": 6}},
        },
        {"id": "useful", "text": "The answer is useful."},
    ],
}


@dataclass(frozen=True)
class Result:
    """What a command said; `fault` is the traceback of one that broke."""

    code: int
    out: str
    err: str
    fault: str = ""


def command(*words: str) -> Result:
    """`rlaif WORDS` in this process, as a shell would see it."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["rlaif", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except Exception:
        return Result(1, out.getvalue(), err.getvalue(), traceback.format_exc())
    finally:
        sys.argv = before
    if code == EXIT_INTERRUPTED:
        # Somebody wants the whole trial to end.
        raise KeyboardInterrupt
    return Result(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Project:
    """An experiment, a run folder of it that is finished or not, and what finishing it must give.
    `said` is what the reading commands say of the folder as it is."""

    name: str
    experiment: Path
    run: Path
    outputs: dict[str, Any]
    said: dict[str, str] = field(default_factory=dict)


def outputs(root: Path) -> dict[str, Any]:
    """All that a run makes, without what is another in every run."""
    found: dict[str, Any] = {}
    for path in sorted(root.glob("steps/*/*.jsonl")):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
        kept = sorted(json.dumps(_steady(row), sort_keys=True) for row in rows)
        found[str(path.relative_to(root))] = kept
    for path in sorted(root.glob("models/**/*")):
        if path.is_file() and path.name != "checksums.json":
            found[str(path.relative_to(root))] = file_digest(path)
    for name in ("config.yaml", "prompts.jsonl"):
        found[name] = (root / name).read_bytes()
    rounds = (root / "rounds.jsonl").read_text("utf-8").splitlines()
    found["rounds"] = [_steady(json.loads(line)) for line in rounds]
    found["dataset"] = sorted(str(p.relative_to(root)) for p in root.glob("dataset/**/*.parquet"))
    return found


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if k not in CHANGING}
    return [_steady(v) for v in value] if isinstance(value, list) else value


def said(root: Path, scratch: Path) -> dict[str, Result]:
    """What the commands that read a run folder say and write."""
    scratch.mkdir(parents=True, exist_ok=True)
    found = {"status": command("status", str(root), "--json")}
    for kind in ("judgements", "trl", "metrics"):
        out = scratch / f"{kind}.jsonl"
        out.unlink(missing_ok=True)
        result = command("export", str(root), str(out), "--records", kind)
        text = out.read_text("utf-8") if out.exists() else ""
        found[kind] = Result(result.code, text, result.err, result.fault)
    return found


def write(folder: Path, data: dict[str, Any]) -> Path:
    """An experiment's files; the path of the experiment itself."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS)
    (folder / "prompts.jsonl").write_text(lines)
    (folder / "constitution.yaml").write_text(yaml.safe_dump(CONSTITUTION))
    (folder / "answers.yaml").write_text(yaml.safe_dump(SCRIPT))
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def scripted(**changes: Any) -> dict[str, Any]:
    """An experiment in which a scripted engine answers and judges."""
    ask = {"principles": ["useful"], "template": "prompts/judges/yes_no_short.j2"}
    data = {
        "name": "scripted",
        "seed": 3,
        "models": {"policy": {"path": "none", "engine": "fake", "script": "answers.yaml"}},
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 2},
        "rounds": 2,
        "steps": [
            {"sample": {"n": 3, "temperature": 1.0, "max_new_tokens": 8}},
            {"judge": {"id": "checks", "kind": "rules"}},
            {"judge": {"id": "self", "kind": "yes_no", "by": "policy", **ask}},
            {"pair": {"weights": {"checks": 1.0, "self": 0.2}}},
            {"evaluate": {"resamples": 20}},
        ],
        "dataset": {"license": "mit"},
    }
    return data | changes


def trained(model: Path) -> dict[str, Any]:
    """An experiment that trains a tiny model, with a checkpoint after every step."""
    data = scripted(name="trained", rounds=1)
    data["models"] = {"policy": {"path": str(model), "dtype": "float32"}}
    keys = {"learning_rate": 1e-4, "batch_size": 1, "checkpoint_every": 1, "precision": "fp32"}
    del data["steps"][2]
    data["steps"][2] = {"pair": {"weights": {"checks": 1.0}}}
    data["steps"].insert(3, {"train": {"method": "dpo", "epochs": 3, **keys}})
    return data


def served(url: str) -> dict[str, Any]:
    """An experiment whose judge is on a server, with a price and a cache."""
    data = scripted(name="served", rounds=1, budget=1000.0)
    price = {"input": 1.0, "output": 2.0}
    data["models"]["far"] = {
        "path": "far",
        "engine": "openai",
        "base_url": url,
        "price": price,
        "limits": {"retries": 0},
    }
    data["steps"][2] = {"judge": {"id": "far", "kind": "yes_no", "by": "far"}}
    data["steps"][3] = {"pair": {"weights": {"checks": 1.0, "far": 0.2}}}
    return data


def tiny_model(folder: Path) -> Path:
    """A random two-layer Llama with a tokenizer of bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.conftest import make_tokenizer

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(5)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Killed(Exception):
    """Stands for whatever ends a process."""


class KillAt(QuietProgress):
    """Ends a run at report number `count` of progress in a step whose title ends so."""

    def __init__(self, title: str, count: int):
        self.title, self.left, self.here = title, count, False

    def begin_step(self, title: str) -> None:
        self.here = title.endswith(self.title)

    def advance(self, count: int, tokens: int = 0, note: str = "") -> None:
        self.left -= self.here
        if self.here and self.left <= 0:
            raise Killed


def project(name: str, folder: Path, data: dict[str, Any], kill: tuple[str, int] | None) -> Project:
    """Run an experiment to its end; and, with `kill`, once more until a step that is ended at this
    report of its progress, which is the folder that is then damaged."""
    path = write(folder / "files", data)
    whole = folder / "whole"
    run_experiment(path, whole)
    run = whole
    if kill is not None and kill[1] == 0:
        run = begun(whole, folder / "killed", kill[0])
    elif kill is not None:
        run = folder / "killed"
        try:
            run_experiment(path, run, progress=KillAt(*kill))
        except Killed:
            pass
        else:
            raise AssertionError(f"no step {kill} to be killed in")
    results = said(run, folder / "said")
    # Early in a run there may be nothing to export yet, which is said with exit code 2.
    allowed = (0,) if kill is None else (0, 2)
    assert all(r.code in allowed and not r.fault for r in results.values()), results
    return Project(name, path, run, outputs(whole), {k: r.out for k, r in results.items()})


def begun(whole: Path, out: Path, step: str) -> Path:
    """A copy of a finished run in which a step has half of its records, and none after it is done;
    for steps that run beside others, which no report of progress ends at one place."""
    shutil.copytree(whole, out)
    steps = json.loads((out / "manifest.json").read_text())["steps"]
    place = next(n for n, row in enumerate(steps) if row["id"] == step)
    for row in steps[place:]:
        (out / "steps" / row["hash"] / "done.json").unlink(missing_ok=True)
    path = out / "steps" / steps[place]["hash"] / "judgements.jsonl"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return out


# How a file is damaged: each gives its new bytes, or None for a file that goes.
Damage = Callable[[random.Random, bytes], bytes | None]


def flipped(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def changed(rng: random.Random, data: bytes) -> bytes:
    """One digit or letter became another one, which no reader of JSON can notice."""
    places = [i for i, byte in enumerate(data) if chr(byte).isalnum() and byte < 128]
    if not places:
        return flipped(rng, data)
    at = rng.choice(places)
    same = b"0123456789" if chr(data[at]).isdigit() else b"abcdefghijklmnopqrstuvwxyz"
    return data[:at] + bytes([rng.choice([b for b in same if b != data[at]])]) + data[at + 1 :]


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def cut_at_a_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[: rng.randrange(len(lines))])


def zeroed(rng: random.Random, data: bytes) -> bytes:
    """A block that never reached the disk."""
    at, size = rng.randrange(len(data)), rng.randrange(1, 65)
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


def replaced(rng: random.Random, data: bytes) -> bytes:
    choices = [b"{}", b"[]", b"null", b"\n", b"3", b'{"a": 1}\n', rng.randbytes(64), b"[" * 5000]
    return rng.choice(choices)


DAMAGES: dict[str, Damage] = {
    "byte flipped": flipped,
    "character changed": changed,
    "cut": cut,
    "cut at a line": cut_at_a_line,
    "emptied": lambda rng, data: b"",
    "zeroed": zeroed,
    "removed": lambda rng, data: None,
    "replaced": replaced,
}


@dataclass(frozen=True)
class Case:
    """A damaged copy of a project's run folder: what was done to which file."""

    project: Project
    root: Path
    file: Path
    damage: str

    @property
    def finished(self) -> bool:
        """Whether the file is not of a step that is under way. One without a marker is."""
        if self.file.name == "done.json" and self.damage == "removed":
            return False
        if self.file.parts[0] != "steps":
            return True
        return (self.project.run / "steps" / self.file.parts[1] / "done.json").exists()

    def __str__(self) -> str:
        return f"{self.project.name}: {self.file} {self.damage}"


def cases(
    projects: list[Project], scratch: Path, seed: int, numbers: Iterable[int]
) -> Iterator[tuple[int, Case]]:
    """Damaged folders by number, one at a time: the kind of file is drawn first, then the file."""
    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        one = projects[number % len(projects)]
        kinds: dict[str, list[Path]] = {}
        for path in sorted(p for p in one.run.rglob("*") if p.is_file() and p.stat().st_size):
            kinds.setdefault(path.name, []).append(path.relative_to(one.run))
        file = rng.choice(kinds[rng.choice(sorted(kinds))])
        root = scratch / "run"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(one.run, root)
        name = rng.choice(sorted(DAMAGES))
        data = (root / file).read_bytes()
        made = DAMAGES[name](rng, data)
        if made is None:
            (root / file).unlink()
        else:
            (root / file).write_bytes(made)
        if made != data:
            yield number, Case(one, root, file, name)


def judge(case: Case, scratch: Path, rotten: bool = False) -> tuple[str, str]:
    """(what became of it, why): "same", "named" or, when it is not fine, "traceback", "silent" or
    "no way out". With `rotten` the file looks as old as it was, and `status --verify` is asked:
    "found", or "silent"."""
    if rotten:
        return _verified(case)
    for name, result in said(case.root, scratch / "said").items():
        if result.fault:
            return "traceback", f"{name}: {result.fault}"
        # What an unfinished step lost is made again; until then it is not said.
        if case.finished and result.code == 0 and result.out != case.project.said[name]:
            return "silent", f"{name} says something else"
    words = ["run", str(case.project.experiment), "--out", str(case.root), "--no-report", "-q"]
    first = result = command(*words)
    for _ in range(4):
        if result.fault:
            return "traceback", result.fault
        if result.code == 0:
            break
        if not _mended(case.root, result.err):
            return "no way out", result.err
        result = command(*words)
    if result.code or outputs(case.root) != case.project.outputs:
        return ("no way out" if result.code else "silent"), result.err
    return ("named" if first.code else "same"), first.err


def _mended(root: Path, words: str) -> bool:
    """Do what the error says: delete the folder, file or line that it names."""
    folder = re.search(r"[Dd]elete the folder (\S+?)[.;,]? (?:to|$)", words)
    file = re.search(rf"({re.escape(str(root))}\S*?)(?::(\d+))?: .*(?:this file|this line)", words)
    if folder is not None and str(root) in folder[1]:
        shutil.rmtree(folder[1])
        return True
    if file is None or not Path(file[1]).is_file():
        return False
    path = Path(file[1])
    if file[2]:
        lines = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join(lines[: int(file[2]) - 1] + lines[int(file[2]) :]))
    else:
        path.unlink()
    return True


def _verified(case: Case) -> tuple[str, str]:
    """Whether `status --verify` finds damage that left the file's time as it was, but in what is
    written anew or not read again, and in what a kill may have left so."""
    path, before = case.root / case.file, case.project.run / case.file
    if path.exists():
        time = before.stat()
        os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns))
    result = command("status", str(case.root), "--verify")
    if result.fault:
        return "traceback", result.fault
    if result.code == 2:
        return "found", result.err
    if not _vouched(case) or (path.exists() and _same_json(path, before)):
        return "nothing changed", ""
    return "silent", f"--verify says nothing: {result.out}"


def _vouched(case: Case) -> bool:
    """Whether `--verify` vouches for a file."""
    if not case.finished and case.file.suffix in (".jsonl", ".commits", ".json"):
        # Of what is under way, an end that is not whole is what a kill leaves.
        return False
    derived = case.file.parts[0] == "dataset" or "work" in case.file.parts
    return not derived and case.file.name not in ("request.json", "spend.jsonl", "remote.json")


def _same_json(first: Path, second: Path) -> bool:
    """Whether two files say the same but for spaces between their keys."""
    try:
        return json.loads(first.read_text()) == json.loads(second.read_text())
    except ValueError:
        return False
