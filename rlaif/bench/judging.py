"""Labelled pairs judged and stored: what was judged once is read, and no engine is asked again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from rlaif.bench.entrants import Entrant
from rlaif.compare.verdicts import Cost, Verdict, verdict
from rlaif.data.labelled import LabelledPair
from rlaif.experiment import StepProgress
from rlaif.judges.base import Call, Judge, is_staged
from rlaif.plan import VERSIONS
from rlaif.records import Completion, Judgement, content_hash
from rlaif.steps.asking import Group, Kept, verdicts_by_group
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
    judge = entrant.judge
    calls = [judge.calls(p.prompt, [p.first, p.second], seed) for p in pairs]
    groups = _groups(judge, pairs, calls, {j.subject for j in known})
    folder = store.step(_hash(entrant, groups, seed))
    finished = folder.done() is not None
    progress.begin_step(judge.id)
    if not finished:
        folder.repair()
    kept = Kept(folder)
    by_group = verdicts_by_group(judge, entrant.models, engines, groups, seed, kept, progress)
    if not finished:
        folder.finish({"kind": "judge-bench", "judge": judge.id, "judge_hash": judge.judge_hash})
    judged = list({j.judgement_id: j for own in (known, *by_group) for j in own}.values())
    if is_staged(judge):
        by_pair, costs = _by_answers(pairs, groups, by_group), _shared_costs(kept, len(pairs))
    else:
        by_pair, costs = _by_call(calls, judged), _costs(calls, kept)
    said = [
        verdict(pair, own, entrant.weights, cost)
        for pair, own, cost in zip(pairs, by_pair, costs, strict=True)
    ]
    return said, judged


def _groups(
    judge: Judge,
    pairs: Sequence[LabelledPair],
    calls: Sequence[Sequence[Call]],
    known: set[str],
) -> list[Group]:
    """Each pair once; for a judge that looks at one answer at a time, each answer once."""
    taken = set(known)
    groups: dict[tuple[str, ...], Group] = {}
    for pair, own in zip(pairs, calls, strict=True):
        answers = [pair.first, pair.second]
        if not is_staged(judge) and all(len(call.shown) == 1 for call in own):
            answers = [a for a in answers if a.completion_id not in taken]
            taken |= {a.completion_id for a in answers}
        if answers:
            groups.setdefault(tuple(a.completion_id for a in answers), (pair.prompt, answers))
    return list(groups.values())


def _by_call(calls: Sequence[Sequence[Call]], judged: Iterable[Judgement]) -> list[list[Judgement]]:
    """The judgements of each pair's calls."""
    found: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judged:
        found[judgement.call_id].append(judgement)
    names = [dict.fromkeys(call.call_id for call in own) for own in calls]
    return [[j for name in own for j in found.get(name, [])] for own in names]


def _by_answers(
    pairs: Sequence[LabelledPair], groups: Sequence[Group], by_group: Sequence[list[Judgement]]
) -> list[list[Judgement]]:
    """Each pair's judgements, where verdicts rest on several calls and may differ with what an
    answer stands beside."""
    found = {
        tuple(answer.completion_id for answer in answers): own
        for (_, answers), own in zip(groups, by_group, strict=True)
    }
    return [found[pair.first.completion_id, pair.second.completion_id] for pair in pairs]


def _costs(calls: Sequence[Sequence[Call]], kept: Kept) -> list[Cost]:
    """What each pair's own calls cost; a call that has its reasons written first is two."""
    costs: list[Cost] = []
    for own in calls:
        asked = {c.call_id: c for c in own if c.request is not None}
        count = sum(1 if call.then is None else 2 for call in asked.values())
        judged = [j.latency for name in asked for j in kept.judgements.get(name, [])[:1]]
        reasons = [kept.reasons[name].latency for name in asked if name in kept.reasons]
        seconds = [s for s in (*judged, *reasons) if s is not None]
        costs.append((float(count), sum(seconds) if seconds else None))
    return costs


def _shared_costs(kept: Kept, count: int) -> list[Cost]:
    """All answers of a judge whose verdicts rest on several, spread evenly over `count` pairs."""
    answers = [*kept.answers.values(), *kept.reasons.values()]
    seconds = [a.latency for a in answers if a.latency is not None]
    each: Cost = (len(answers) / count, sum(seconds) / count if seconds else None)
    return [each] * count


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
