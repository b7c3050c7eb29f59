"""What an experiment does: everything in its run folder and everything that its server was asked,
without ids, hashes and times, which would differ though nothing else does."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from rlaif.core.store import Store
from rlaif.engines.model_folders import weights_hash
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import load_run
from tests.pipeline.plan.judging_server import JudgingServer

Place = Sequence[str | int]
HEX = re.compile(r"(?<![\w.])(?:[a-z]_)?[0-9a-f]{12,}\b")
SAID_TWICE = {"sampling", "system_prompt", "timing", "seconds", "latency", "check", "digest"}
SAID_TWICE |= {"files", "time", "hash", "inputs", "read", "kin", "calls_open", "kernels"}
SAID_TWICE |= {"latency_buckets"}
"""What a record copies from the config without using it, and what differs with every run."""


@dataclass
class Sweep:
    """Runs experiments whose files are in `folder`, each in a run folder of its own."""

    folder: Path
    server: JudgingServer
    count: int = 0
    plans: dict[str, list[Planned]] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)

    def hashes(self, data: Mapping[str, Any]) -> list[str]:
        """The hashes of an experiment's steps. The same experiment is planned once."""
        return [planned.hash for planned in self._plan(data)]

    def _plan(self, data: Mapping[str, Any]) -> list[Planned]:
        name = json.dumps(data)
        if name not in self.plans:
            self.plans[name] = self.plan(data)
        return self.plans[name]

    def observe(self, data: Mapping[str, Any]) -> str:
        """All that a run does. The same experiment is run once."""
        name = json.dumps(data)
        if name not in self.known:
            self.known[name] = self._observed(data, self._plan(data))
        return self.known[name]

    def observe_again(self, data: Mapping[str, Any]) -> str:
        """All that another run does."""
        return self._observed(data, self.plan(data))

    def plan(self, data: Mapping[str, Any]) -> list[Planned]:
        """The plan of an experiment, made anew."""
        return make_plan(prepare(self._written(data)))

    def _observed(self, data: Mapping[str, Any], plan: Sequence[Planned]) -> str:
        path = self._written(data)
        out = self.folder / f"run{self.count}"
        self.server.forget()
        run_experiment(path, out)
        places = {str(out): "RUN", str(path): "EXPERIMENT", self.server.url: "SERVER"}
        done = list(_stored(out, plan))
        asked = _sorted([path, _unseeded(body)] for path, body in self.server.taken)
        text = json.dumps([done, asked], indent=0, sort_keys=True)
        for place, name in places.items():
            text = text.replace(place, name)
        return HEX.sub("#", text)

    def _written(self, data: Mapping[str, Any]) -> Path:
        self.count += 1
        text = yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=False)
        text = text.replace("@url", self.server.url)
        text = re.sub(r"@(?=tiny|small|strict|rewards|rivals|set)", f"{self.folder}/", text)
        path = self.folder / f"experiment{self.count}.yaml"
        path.write_text(text, encoding="utf-8")
        return path


def changed(data: Mapping[str, Any], place: Place, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment with some keys of the spec at `place` set; those that are ... are taken
    out."""
    whole = copy.deepcopy(dict(data))
    spec: Any = whole
    for part in place:
        spec = spec[part]
    spec |= copy.deepcopy(dict(keys))
    for key in [k for k, v in spec.items() if v is ...]:
        del spec[key]
    return whole


def _stored(out: Path, plan: Sequence[Planned]) -> Iterator[Any]:
    store = Store(out)
    for planned in plan:
        folder = store.step(planned.hash)
        yield [planned.kind, planned.round, _plain(folder.done())]
        for file in sorted(folder.path.rglob("*.jsonl")):
            yield file.name, _sorted(json.loads(x) for x in file.read_text().splitlines() if x)
        yield sorted(p.name for p in folder.path.rglob("*") if not HEX.search(p.name))
        model = store.model_path(planned.hash)
        if model.is_dir():
            names = sorted(str(p.relative_to(model)) for p in model.rglob("*") if p.is_file())
            # A hash, with its digits spelt so that they are not taken for an id.
            yield names, " ".join(weights_hash(model))
    yield _sorted(map(json.loads, (out / "prompts.jsonl").read_text().splitlines()))
    for name in ("dataset", "evaluations"):
        for file in sorted((out / name).rglob("*")):
            yield str(file.relative_to(out)), _content(file)
    run = load_run(out)
    page = run.page()
    yield page.primary, run.answers(page)
    yield (out / "rounds.jsonl").read_text() if (out / "rounds.jsonl").exists() else ""


def _content(file: Path) -> Any:
    """What a file says; nothing of one in another format."""
    if file.suffix == ".parquet":
        return _sorted(pq.read_table(file).to_pylist())
    if file.suffix == ".json":
        return _plain(json.loads(file.read_text()))
    return file.read_text() if file.suffix in (".md", ".jsonl", ".yaml") else ""


def _sorted(rows: Iterable[Any]) -> list[Any]:
    """Rows as they are told, in an order that their ids have no part in."""
    return sorted(HEX.sub("#", json.dumps(_plain(row), sort_keys=True)) for row in rows)


def _unseeded(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request without its seed, which hangs together with hashes."""
    return {key: value for key, value in body.items() if key != "seed"}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in SAID_TWICE and not _timed(k)}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _timed(key: str) -> bool:
    return key.endswith(("seconds", "_per_second", "seconds_per_pair", "memory_gb"))
