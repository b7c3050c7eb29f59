"""Labelled pairs judged and stored: what was judged once is read, and no engine is asked again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rlaif.bench.entrants import Entrant
from rlaif.compare.verdicts import Verdict, verdict
from rlaif.data.labelled import LabelledPair
from rlaif.judges.base import Call
from rlaif.plan import VERSIONS
from rlaif.records import Completion, Judgement, content_hash, from_json
from rlaif.steps.context import Engines, Progress
from rlaif.steps.judge import ask
from rlaif.store import StepFolder, Store

Judged = dict[str, list[Judgement]]
"""Judgements by the id of their call."""


def judge_pairs(
    entrant: Entrant,
    pairs: Sequence[LabelledPair],
    seed: int,
    store: Store,
    engines: Engines,
    progress: Progress,
    known: Mapping[str, list[Judgement]] | None = None,
) -> tuple[list[Verdict], Judged]:
    """One verdict per pair, and every judgement. A call in `known` is not made again."""
    judge = entrant.judge
    by_pair = [judge.calls(p.prompt, [p.first, p.second], seed) for p in pairs]
    every = {c.call_id: c for calls in by_pair for c in calls}
    asked = [c for c in every.values() if c.call_id not in (known or {})]
    folder = store.step(_hash(entrant, asked, seed))
    if folder.done() is None:
        _ask(entrant, asked, folder, engines, progress)
    judged: Judged = dict(known or {})
    for row in folder.read("judgements"):
        judged.setdefault(row["call_id"], []).append(from_json(Judgement, row))
    verdicts = []
    for pair, calls in zip(pairs, by_pair, strict=True):
        names = dict.fromkeys(c.call_id for c in calls)
        found = [j for name in names for j in judged.get(name, [])]
        verdicts.append(verdict(pair, found, entrant.weights))
    return verdicts, judged


def _hash(entrant: Entrant, calls: Sequence[Call], seed: int) -> str:
    prompts = {c.prompt.prompt_id: (c.prompt.tags, c.prompt.reference) for c in calls}
    return content_hash(
        "judge-bench",
        VERSIONS["judge"],
        entrant.judge.judge_hash,
        entrant.model.identity() if entrant.model is not None else None,
        sorted(c.call_id for c in calls),
        sorted([name, tags, reference or ""] for name, (tags, reference) in prompts.items()),
        seed,
    )


def _ask(
    entrant: Entrant,
    calls: list[Call],
    folder: StepFolder,
    engines: Engines,
    progress: Progress,
) -> None:
    folder.repair()
    done = {row["call_id"] for row in folder.read("judgements")}
    progress.start(f"calls of {entrant.judge.id}", len(calls), len(done))
    for judgements in ask(entrant.judge, entrant.model, engines, calls, done):
        folder.append("judgements", judgements)
        progress.advance(len({j.call_id for j in judgements}))
    progress.finish()
    judge = entrant.judge
    folder.finish({"kind": "judge-bench", "judge": judge.id, "judge_hash": judge.judge_hash})


def attack_pairs(
    attack: Callable[[str, int], str],
    pairs: Sequence[LabelledPair],
    verdicts: Sequence[Verdict],
    seed: int,
) -> dict[int, LabelledPair]:
    """The pairs that a judge decided, by place, with the attack on the answer it found worse."""
    found = {}
    for place, (pair, said) in enumerate(zip(pairs, verdicts, strict=True)):
        if said.prob is None or said.prob == 0.5:
            continue
        own = int(content_hash("attack", seed, pair.pair_id, length=8), 16)
        if said.prob > 0.5:
            found[place] = replace(pair, second=_with_text(pair.second, attack, own))
        else:
            found[place] = replace(pair, first=_with_text(pair.first, attack, own))
    return found


def _with_text(answer: Completion, attack: Callable[[str, int], str], seed: int) -> Completion:
    text = attack(answer.text, seed)
    return replace(
        answer,
        completion_id="x_" + content_hash(answer.completion_id, text),
        messages=[{"role": "assistant", "content": text}],
        digest=content_hash(text),
    )
