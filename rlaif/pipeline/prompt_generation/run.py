"""From sources to prompts, going on after a kill."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlaif.config.filters import HELDOUT, FilterSet
from rlaif.config.prompts import (
    FileSource,
    MagpieSource,
    PromptMix,
    PromptsSpec,
    WrittenSource,
)
from rlaif.core.chat import CUT
from rlaif.core.errors import ConfigError
from rlaif.core.records import Prompt, content_hash, make_prompt, to_json
from rlaif.core.store import StepFolder, Store, write_atomic, write_jsonl
from rlaif.core.yamlio import suggest
from rlaif.data.hygiene import of_prompt, sift_items
from rlaif.data.sources import all_prompts
from rlaif.engines.base import Engine, GenerateRequest, GenerateResult, Model, Sampling
from rlaif.pipeline.prompt_generation.accept import Accepted
from rlaif.pipeline.prompt_generation.ask import Ask, Writing, writing
from rlaif.pipeline.prompt_generation.mix import mixed
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import Engines, Progress
from rlaif.pipeline.steps.filter import nothing_left, read_beside

ROUND = 16
"""Calls that are made at once; what they bring is known to those of the next round."""


@dataclass
class SourceReport:
    """What became of one source: `refused` counts by why. `longest_answers` says that prompts were
    chosen by the length of their answers."""

    kind: str
    calls: int = 0
    failed: int = 0
    written: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    taken: int = 0
    mixed: int = 0
    longest_answers: float | None = None


class Unwritten(Exception):
    """Something that a model would have to be asked for."""


def make_prompts(
    spec: PromptMix,
    path: Path,
    models: Mapping[str, Model],
    engines: Engines,
    store: Store,
    progress: Progress,
) -> dict[str, Any]:
    """Write `prompts.jsonl` and `report.json` into the store's folder; the report.

    Raises ConfigError where a source cannot work or nothing is left.
    """
    chosen, report = mix_prompts(spec, path, models, engines, store, progress)
    write_mix(store.root, chosen, report)
    return report


def write_mix(folder: Path, chosen: Sequence[Prompt], report: Mapping[str, Any]) -> None:
    """Write `prompts.jsonl` and `report.json`."""
    write_jsonl(folder / "prompts.jsonl", [to_json(p) for p in chosen])
    write_atomic(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False))


def mix_prompts(
    spec: PromptMix,
    path: Path,
    models: Mapping[str, Model],
    engines: Engines | None,
    store: Store,
    progress: Progress,
) -> tuple[list[Prompt], dict[str, Any]]:
    """The prompts, and what became of each source. What models wrote is kept in the store's steps
    and not asked again.

    Raises ConfigError, and Unwritten where a model would have to be asked and `engines` is None.
    """
    reports: dict[str, SourceReport] = {}
    given: dict[str, list[Prompt]] = {}
    for source in spec.sources:
        if isinstance(source, FileSource):
            found = [(p, p.tags) for p in read_source(source, path)]
            reports[source.id] = SourceReport(source.kind, taken=len(found))
        else:
            found, reports[source.id] = _write_prompts(
                source, spec.seed, path, models[source.by], engines, store, progress
            )
        given[source.id] = [
            make_prompt(p.messages, source.id, [*tags, *source.tags], p.reference)
            for p, tags in found
        ]
    left, funnel = _filter_prompts(spec, path, given)
    weights = {source.id: source.weight for source in spec.sources}
    chosen = mixed(left, weights, spec.count, spec.seed)
    for name, count in Counter(p.source for p in chosen).items():
        reports[name].mixed = count
    report = {
        "prompts": len(chosen),
        "sources": {name: asdict(report) for name, report in reports.items()},
        "funnel": funnel,
    }
    return chosen, report


def read_source(source: FileSource, path: Path) -> list[Prompt]:
    """The prompts of a file or dataset. Raises ConfigError."""
    spec = PromptsSpec(**source.model_dump(exclude={"id", "weight", "tags", "kind"}))
    return all_prompts(spec, path)


def check_mix(spec: PromptMix, models: Collection[str]) -> None:
    """Raises ConfigError for a source that a model writes which is not there, and for a filter that
    needs more than prompts."""
    for source in spec.written:
        if source.by not in models:
            hint = suggest(source.by, sorted(models))
            raise ConfigError(f"source {source.id}: {source.by!r} is no model{hint}")
    if spec.filters:
        check_for_prompts(FilterSet(filters=spec.filters))


def _filter_prompts(
    spec: PromptMix, path: Path, given: dict[str, list[Prompt]]
) -> tuple[dict[str, list[Prompt]], list[dict[str, Any]]]:
    if not spec.filters:
        return given, []
    filters = FilterSet(filters=spec.filters)
    prompts = {p.prompt_id: p for rows in given.values() for p in rows}
    sifted = sift_items(
        [of_prompt(p) for p in prompts.values()], filters.filters, read_beside(filters, path, [])
    )
    if not sifted.kept:
        raise ConfigError(nothing_left("prompts", sifted))
    kept = set(sifted.kept)
    left = {name: [p for p in rows if p.prompt_id in kept] for name, rows in given.items()}
    return left, sifted.funnel()


def check_for_prompts(filters: FilterSet) -> None:
    """Raises ConfigError where a filter needs more than prompts."""
    for one in filters.filters:
        if one.of == "answers":
            raise ConfigError(f"{one.kind}: prompts have no answers; say `of: prompt`")
        if one.kind == "contamination" and HELDOUT in one.against:
            raise ConfigError("contamination: name the files that `against` means")


def _write_prompts(
    source: Any,
    seed: int,
    path: Path,
    model: Model,
    engines: Engines | None,
    store: Store,
    progress: Progress,
) -> tuple[list[tuple[Prompt, list[str]]], SourceReport]:
    """What a model writes, with its tags, until there are enough or the calls are used up."""
    named = getattr(source, "seeds", None) or getattr(source, "of", None)
    given = [p.question for p in all_prompts(PromptsSpec(path=named), path)] if named else []
    asked = writing(source, given, seed, path)
    template = asked.template.hash if asked.template else None
    keys = source.model_dump(mode="json", exclude={"weight", "tags", "id"})
    folder = store.step(
        step_hash("sample", "written", keys, given, template, model.identity(), seed)
    )
    if engines is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.repair()
    writer = _Writer(source.id, model, engines, folder)
    longest = getattr(source, "longest_answers", None)
    wanted = round(source.count * (longest or 1.0))
    report = SourceReport(source.kind, longest_answers=longest)
    progress.start(source.id, wanted)
    taken = _collect_prompts(asked, wanted, writer, report, progress)
    progress.finish()
    if longest is not None:
        taken = _keep_longest(taken, source, writer, seed)
    report.taken = len(taken)
    if not taken:
        raise ConfigError(
            f"source {source.id}: {report.calls} calls of {model.label!r} brought no prompt that "
            f"could be taken ({report.refused or 'nothing was written'}); use a larger model, or "
            "wider limits"
        )
    return [(make_prompt([{"role": "user", "content": t}]), tags) for t, tags in taken], report


@dataclass(frozen=True)
class _Writer:
    """The model of a source, and the folder of what it has said. Without `engines` nothing is
    asked."""

    source: str
    model: Model
    engines: Engines | None
    folder: StepFolder

    def generate(self, requests: Sequence[GenerateRequest], kind: str) -> dict[str, str | None]:
        """The texts by request id, None where one failed; those in the folder are not asked again.
        Raises Unwritten, and ConfigError where the engine cannot write in the user's place."""
        known = {row["request_id"]: row["text"] for row in self.folder.read(kind)}
        if not all(r.request_id in known for r in requests):
            for batch in self._get_engine(requests).generate(requests, known.keys()):
                rows = [_make_row(result) for result in batch]
                self.folder.append(kind, rows)
                known |= {row["request_id"]: row["text"] for row in rows}
        return {r.request_id: known[r.request_id] for r in requests}

    def _get_engine(self, requests: Sequence[GenerateRequest]) -> Engine:
        if self.engines is None:
            raise Unwritten
        engine = self.engines.get(self.model)
        if any(r.writes == "user" for r in requests) and "user_turn" not in engine.capabilities:
            raise ConfigError(
                f"source {self.source}: magpie needs an engine that leaves the user's turn open "
                f"(hf or vllm), and that of model {self.model.label!r} does not"
            )
        return engine


def _collect_prompts(
    asked: Writing,
    wanted: int,
    writer: _Writer,
    report: SourceReport,
    progress: Progress,
) -> list[tuple[str, list[str]]]:
    source: WrittenSource = asked.source
    accepted = Accepted(asked.given, source)
    taken: list[tuple[str, list[str]]] = []
    refused: Counter[str] = Counter()
    most = source.calls or 4 * wanted
    for start in range(0, most, ROUND):
        made = [text for text, _ in taken]
        calls = [asked.ask(n, made) for n in range(start, min(start + ROUND, most))]
        texts = writer.generate([call.request for call in calls], "written")
        before = len(taken)
        for call in calls:
            _accept_prompts(call, texts[call.request.request_id], accepted, taken, refused, report)
        report.calls += len(calls)
        progress.advance(min(len(taken), wanted) - min(before, wanted))
        if len(taken) >= wanted:
            break
    report.refused = dict(sorted(refused.items()))
    return taken[:wanted]


def _accept_prompts(
    call: Ask,
    text: str | None,
    accepted: Accepted,
    taken: list[tuple[str, list[str]]],
    refused: Counter[str],
    report: SourceReport,
) -> None:
    if text is None:
        report.failed += 1
        return
    for found in call.read(text):
        report.written += 1
        why = accepted.why_not(found)
        if why is None:
            taken.append((found, list(call.tags)))
        else:
            refused[why] += 1


def _keep_longest(
    taken: list[tuple[str, list[str]]],
    source: MagpieSource,
    writer: _Writer,
    seed: int,
) -> list[tuple[str, list[str]]]:
    """The prompts whose answers by the model are longest, in characters."""
    requests = {}
    for text, _ in taken:
        name = "a_" + content_hash("answer", source.id, text, seed)
        sampling = Sampling(
            4 * source.max_new_tokens, seed=int(content_hash(name, seed, length=7), 16)
        )
        requests[text] = GenerateRequest(name, [{"role": "user", "content": text}], sampling)
    answers = writer.generate(list(requests.values()), "answers")
    lengths = {text: len(answers[r.request_id] or "") for text, r in requests.items()}
    return sorted(taken, key=lambda row: (-lengths[row[0]], row[0]))[: source.count]


def _make_row(result: GenerateResult) -> dict[str, Any]:
    failed = result.finish_reason == "failed" or result.cut
    text = None if failed else result.text
    error = CUT if result.cut else result.error
    return {"request_id": result.request_id, "text": text, "error": error}
