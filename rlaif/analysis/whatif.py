"""What a run's stored judgements say under other principle weights. Nothing is asked again.

A principle of weight 0 counts as left out; so does a judge that is left with no principle.

`ablate_principles` leaves one principle out at a time: which of the preferences depend on it?
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlaif.config.steps import PairStep
from rlaif.constitution.textstats import is_blank
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Completion, Judgement, Preference, Prompt
from rlaif.metrics.intervals import Interval, paired_interval, rare_share_interval
from rlaif.metrics.metrics import counts_per_prompt, per_prompt, value_interval
from rlaif.metrics.votes import side_with_label
from rlaif.pipeline.constitutions import arms_alike, judges_constitutions, run_weights
from rlaif.pipeline.runs import Run
from rlaif.pipeline.steps.context import by_prompt
from rlaif.pipeline.steps.pair import group_by_prompt, judge_weights, standardised
from rlaif.preferences.aggregate import Scores, combine, weights_of
from rlaif.preferences.pairing import Candidate, prompt_pairs, score_prompt

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Pairing:
    """One finished pair step of a run and what it was made from, by prompt id."""

    step: PairStep
    seed: int
    prompts: Mapping[str, Prompt]
    completions: Mapping[str, Sequence[Completion]]
    judgements: Mapping[str, Mapping[str, list[Judgement]]]
    initial: Mapping[str, Sequence[Judgement]]
    preferences: Sequence[Preference]

    def counted(self) -> dict[str, float]:
        """The weights, as declared, of the judges that count."""
        declared = judge_weights(self.step, list(self.judgements))
        return {judge: weight for judge, weight in declared.items() if weight > 0}


@dataclass(frozen=True, slots=True)
class Effect:
    """What becomes of `preferences` stored preferences. `flipped`: the rejected answer now scores
    more; `tied`: both the same; `missing`: one has no score left. `flip_rate` is the share flipped
    and `other_pairs` the share of prompts that would get other pairs, over prompts."""

    preferences: int
    flipped: int
    tied: int
    missing: int
    flip_rate: Interval | None
    other_pairs: Interval | None


@dataclass(frozen=True, slots=True)
class LabelledCandidates:
    """A labelled pair that was found among a run's answers. `label` as in LabelledPair."""

    pairing: int
    prompt_id: str
    first: str
    second: str
    label: float


def load_pairings(run: Run, arm: str | None = None) -> list[Pairing]:
    """The finished pair steps of a run that look at judgements: of the arms with the run's own
    constitution, or of `arm`. Raises ConfigError for none."""
    arms, left_out = arms_alike(run, arm)
    prompts = run.prompt_records()
    made = []
    for planned in run.manifest["steps"]:
        if not set(arms) & set(planned["arms"]):
            continue
        step = run.spec_of(planned)
        judged = any(name.startswith("judgements/") for name in planned["inputs"])
        finished = run.store.step(planned["hash"]).done() is not None
        if isinstance(step, PairStep) and step.form == "score" and judged and finished:
            made.append(_load_pairing(run, planned, step, prompts))
    if not made:
        which = "this run" if arm is None else f"arm {arm} of this run"
        more = f". {left_out_words(left_out)}" if left_out else ""
        raise ConfigError(
            f"{which} has no finished pair step that is made from judgements{more}", run.root
        )
    return made


def left_out_words(arms: Sequence[str]) -> str:
    """That the figures are not of some arms, and how to have theirs."""
    which = f"arm{'s' * (len(arms) > 1)} {', '.join(arms)}"
    return f"Left out: {which}, which judge by another constitution (--arm names one)"


def _load_pairing(
    run: Run, planned: Mapping[str, Any], step: PairStep, prompts: Mapping[str, Prompt]
) -> Pairing:
    inputs: dict[str, dict[str, str]] = defaultdict(dict)
    for name, digest in planned["inputs"].items():
        role, _, judge = name.partition("/")
        inputs[role][judge] = digest

    def load_judgements(digest: str) -> list[Judgement]:
        return list(run.store.step(digest).records(Judgement))

    folders = [run.store.step(digest) for digest in inputs["completions"].values()]
    judged = {judge: load_judgements(digest) for judge, digest in inputs["judgements"].items()}
    return Pairing(
        step,
        planned["seed"],
        prompts,
        by_prompt([c for folder in folders for c in folder.records(Completion)]),
        {judge: group_by_prompt(rows) for judge, rows in judged.items()},
        {judge: load_judgements(digest) for judge, digest in inputs["initial"].items()},
        list(run.store.step(planned["hash"]).records(Preference)),
    )


def rescore_completions(pairing: Pairing, weights: Weights) -> dict[str, Scores]:
    """The combined score of every candidate by prompt id, each on [0, 1] or None (missing)."""
    judges = {
        judge: weight
        for judge, weight in pairing.counted().items()
        if _has_voice(pairing.judgements[judge], weights_of(judge, weights))
    }
    if not judges:
        return {p: {c.completion_id: None for c in row} for p, row in pairing.completions.items()}
    if pairing.step.standardise == "initial":
        judges = standardised(pairing.initial, judges, weights)
    scores = {}
    for prompt_id in pairing.completions:
        rows = {judge: pairing.judgements[judge].get(prompt_id, []) for judge in judges}
        answers = pairing.completions[prompt_id]
        blank = {c.completion_id for c in answers if is_blank(c.text)}
        parts = score_prompt(rows, weights, pairing.step, blank)
        scores[prompt_id] = combine(parts, judges, pairing.step.missing)
    return scores


def _has_voice(groups: Mapping[str, list[Judgement]], weights: Weights) -> bool:
    seen = {j.principle for rows in groups.values() for j in rows}
    return any(p is None or weights.get(p, 1.0) > 0 for p in seen)


def effect(pairings: Sequence[Pairing], before: Weights, after: Weights) -> Effect:
    """What replacing the weights `before` by `after` does to the stored preferences."""
    counts = {"flipped": 0, "tied": 0, "missing": 0}
    flips: list[tuple[str, bool]] = []
    others: list[tuple[str, bool]] = []
    for pairing in pairings:
        old, new = rescore_completions(pairing, before), rescore_completions(pairing, after)
        for preference in pairing.preferences:
            scores = new.get(preference.prompt_id, {})
            change = _describe_change(scores, preference.chosen_id, preference.rejected_id)
            if change != "kept":
                counts[change] += 1
            flips.append((preference.prompt_id, change == "flipped"))
        for prompt_id in pairing.completions:
            same = _scored_pairs(pairing, prompt_id, old) == _scored_pairs(pairing, prompt_id, new)
            others.append((prompt_id, not same))
    return Effect(
        sum(len(p.preferences) for p in pairings),
        **counts,
        flip_rate=rare_share_interval(counts_per_prompt(flips)),
        other_pairs=rare_share_interval(counts_per_prompt(others)),
    )


def _describe_change(scores: Scores, chosen: str, rejected: str) -> str:
    above, below = scores.get(chosen), scores.get(rejected)
    if above is None or below is None:
        return "missing"
    return "kept" if above > below else "flipped" if above < below else "tied"


def _scored_pairs(
    pairing: Pairing, prompt_id: str, scores: Mapping[str, Scores]
) -> set[tuple[str, str]]:
    candidates = [
        Candidate(c, score)
        for c in pairing.completions[prompt_id]
        if (score := scores[prompt_id].get(c.completion_id)) is not None
    ]
    made = prompt_pairs(pairing.prompts[prompt_id], candidates, pairing.step, pairing.seed)
    return {(a.completion.completion_id, b.completion.completion_id) for a, b in made}


def find_labelled(
    pairings: Sequence[Pairing], labels: Iterable[LabelledPair]
) -> tuple[list[LabelledCandidates], int]:
    """The labelled pairs whose prompt and both texts are in the run, in every pair step that has
    them, and how many of the given ones are in none. Pairs without a label or with equal texts are
    in none. Raises ConfigError when nothing is found."""
    given = list(labels)
    found = []
    seen: set[int] = set()
    for number, pairing in enumerate(pairings):
        ids = {
            (prompt_id, c.text.strip()): c.completion_id
            for prompt_id, row in pairing.completions.items()
            for c in sorted(row, key=lambda c: c.completion_id, reverse=True)
        }
        for place, pair in enumerate(given):
            prompt_id = pair.prompt.prompt_id
            first = ids.get((prompt_id, pair.first.text.strip()))
            second = ids.get((prompt_id, pair.second.text.strip()))
            if pair.label is not None and first and second and first != second:
                found.append(LabelledCandidates(number, prompt_id, first, second, pair.label))
                seen.add(place)
    if not found:
        raise ConfigError(
            f"none of the {len(given)} labelled pairs is about two answers of this run to one of "
            "its prompts: prompt and texts must be those of the run (rlaif export DIR FILE)"
        )
    return found, len(given) - len(seen)


def measure_agreements(
    pairings: Sequence[Pairing], labelled: Sequence[LabelledCandidates], weights: Weights
) -> list[float | None]:
    """For each labelled pair: 1 where the scores side with its label, 0 where against it, 0.5 for
    equal scores; None where the label is a tie or a score is missing."""
    scores = [rescore_completions(pairing, weights) for pairing in pairings]
    values: list[float | None] = []
    for pair in labelled:
        row = scores[pair.pairing][pair.prompt_id]
        first, second = row.get(pair.first), row.get(pair.second)
        if first is None or second is None or pair.label == 0.5:
            values.append(None)
        else:
            values.append(side_with_label(first - second, pair.label))
    return values


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One principle left out. `agreement` is the share of labels that the scores side with then,
    `change` that less the agreement with it, on the same labels; both over prompts."""

    principle: str
    weight: float
    judgements: int
    effect: Effect
    agreement: Interval | None = None
    change: Interval | None = None


@dataclass(frozen=True, slots=True)
class Ablation:
    """Every principle that was judged and counts. `agreement` is with all of them; `labelled` the
    number of labels that are no tie and have scores, `strange` that of labelled pairs which are not
    about this run's answers. `arms_left_out` have another constitution."""

    rows: tuple[LeftOut, ...]
    labelled: int
    strange: int
    agreement: Interval | None
    arms_left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; an interval is an object with mean, low, high and n."""
        return asdict(self)


def ablate_principles(
    run: Run, labels: Sequence[LabelledPair] | None = None, arm: str | None = None
) -> Ablation:
    """The ablation of every principle in turn, from stored judgements alone: of the arms with the
    run's own constitution, or of `arm`. Principles of a judge that has a constitution of its own
    are called JUDGE/PRINCIPLE.

    Raises ConfigError when the run has no constitution, no finished pairs made from judgements, or
    none of the labelled pairs.
    """
    weights = run_weights(run, arm)
    if not weights:
        raise ConfigError("this run has no constitution", run.root)
    pairings = load_pairings(run, arm)
    judged = _count_judged(pairings, judges_constitutions(run, arm))
    labelled, strange = find_labelled(pairings, labels) if labels is not None else ([], 0)
    whole = measure_agreements(pairings, labelled, weights)
    rows = []
    for name in (n for n, weight in weights.items() if weight > 0 and judged.get(n)):
        without = {**weights, name: 0.0}
        values = measure_agreements(pairings, labelled, without)
        pairs = list(zip(values, whole, strict=True))
        now, then = (
            labelled_by_prompt(labelled, [None if None in pair else pair[i] for pair in pairs])
            for i in (0, 1)
        )
        rows.append(
            LeftOut(
                name,
                weights[name],
                judged[name],
                effect(pairings, weights, without),
                value_interval("vote_accuracy", labelled_by_prompt(labelled, values)),
                paired_interval(now, then),
            )
        )
    known = sum(value is not None for value in whole)
    found = value_interval("vote_accuracy", labelled_by_prompt(labelled, whole))
    return Ablation(tuple(rows), known, strange, found, tuple(arms_alike(run, arm)[1]))


def _count_judged(pairings: Sequence[Pairing], apart: Collection[str]) -> dict[str, int]:
    """How many different judgements by counted judges there are about each principle; those in
    `apart` have principles of their own."""
    ids: dict[str, set[str]] = defaultdict(set)
    for pairing in pairings:
        for judge in pairing.counted():
            for rows in pairing.judgements[judge].values():
                for judgement in rows:
                    if judgement.principle is not None:
                        own = f"{judge}/" if judge in apart else ""
                        ids[own + judgement.principle].add(judgement.judgement_id)
    return {principle: len(found) for principle, found in ids.items()}


def labelled_by_prompt(
    labelled: Sequence[LabelledCandidates], values: Sequence[float | None]
) -> dict[str, float]:
    """The mean by prompt of one value per labelled pair, missing ones left out."""
    pairs = zip(labelled, values, strict=True)
    return per_prompt((pair.prompt_id, value) for pair, value in pairs)
