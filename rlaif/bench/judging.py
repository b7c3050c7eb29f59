"""Labelled pairs judged and stored: what was judged once is read, and no engine is asked again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from rlaif.bench.entrants import Entrant
from rlaif.compare.verdicts import Verdict, verdict
from rlaif.data.labelled import LabelledPair
from rlaif.experiment import StepProgress
from rlaif.judges.base import Judge, is_staged
from rlaif.plan import VERSIONS
from rlaif.records import Completion, Judgement, content_hash
from rlaif.steps.asking import Group, Kept, verdicts
from rlaif.steps.context import Engines
from rlaif.store import Store


def judge_pairs(
    entrant: Entrant,
    pairs: Sequence[LabelledPair],
    seed: int,
    store: Store,
    engines: Engines,
    progress: StepProgress,
    known: Sequence[Judgement] = (),
) -> tuple[list[Verdict], list[Judgement]]:
    """One verdict per pair, and every judgement. Where a judge looks at one answer at a time, an
    answer that has a judgement in `known` is not judged again."""
    groups = _groups(entrant.judge, pairs, seed, {j.subject for j in known})
    folder = store.step(_hash(entrant, groups, seed))
    finished = folder.done() is not None
    progress.begin_step(entrant.judge.id)
    if not finished:
        folder.repair()
    found = verdicts(entrant.judge, entrant.models, engines, groups, seed, Kept(folder), progress)
    if not finished:
        judge = entrant.judge
        folder.finish({"kind": "judge-bench", "judge": judge.id, "judge_hash": judge.judge_hash})
    judged = {j.judgement_id: j for j in (*known, *found)}
    by_shown: dict[frozenset[str], list[Judgement]] = defaultdict(list)
    for judgement in judged.values():
        by_shown[frozenset(judgement.shown)].append(judgement)
    said = [verdict(p, _about(p, by_shown), entrant.weights) for p in pairs]
    return said, list(judged.values())


def _groups(judge: Judge, pairs: Iterable[LabelledPair], seed: int, known: set[str]) -> list[Group]:
    """Each pair once; for a judge that looks at one answer at a time, each answer once."""
    taken = set(known)
    groups: dict[tuple[str, ...], Group] = {}
    for pair in pairs:
        answers = [pair.first, pair.second]
        calls = judge.calls(pair.prompt, answers, seed)
        if not is_staged(judge) and all(len(call.shown) == 1 for call in calls):
            answers = [a for a in answers if a.completion_id not in taken]
            taken |= {a.completion_id for a in answers}
        if answers:
            groups.setdefault(tuple(a.completion_id for a in answers), (pair.prompt, answers))
    return list(groups.values())


def _about(pair: LabelledPair, by_shown: dict[frozenset[str], list[Judgement]]) -> list[Judgement]:
    first, second = pair.first.completion_id, pair.second.completion_id
    shown = dict.fromkeys([frozenset([first]), frozenset([second]), frozenset([first, second])])
    return [judgement for ids in shown for judgement in by_shown.get(ids, [])]


def _hash(entrant: Entrant, groups: Sequence[Group], seed: int) -> str:
    return content_hash(
        "judge-bench",
        VERSIONS["judge"],
        entrant.judge.judge_hash,
        {role: model.identity() for role, model in sorted(entrant.models.items())},
        [
            [p.prompt_id, p.tags, p.reference, [[a.completion_id, a.digest] for a in answers]]
            for p, answers in groups
        ],
        seed,
    )


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
