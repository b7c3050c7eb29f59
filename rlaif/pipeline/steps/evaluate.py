"""evaluate: every metric of a policy on held-out prompts, with intervals over prompts, next to M0
and the last round's policy, and the diagnostics of the round that made it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from statistics import fmean
from typing import Any

from rlaif.config.arms import HUMAN
from rlaif.core.errors import RlaifError
from rlaif.core.numbers import rank_correlation
from rlaif.core.records import content_hash
from rlaif.metrics import metrics
from rlaif.metrics.agreement import reward_accuracy
from rlaif.metrics.decompose import Decomposition, decompose_change, score_parts
from rlaif.metrics.metrics import Measured, Values
from rlaif.pipeline.steps.context import StepContext, by_prompt
from rlaif.pipeline.steps.label import given_pairs
from rlaif.pipeline.steps.pair import group_by_prompt
from rlaif.preferences.aggregate import compared_scores
from rlaif.preferences.labels import annotator_verdicts
from rlaif.train.metrics import Tracked, open_trackers

VALUES = "values"
"""The file of values by prompt, from which several seeds are read together."""


def run(context: StepContext) -> dict[str, Any]:
    """One row: {metrics, deltas, made_of}; deltas are paired differences over the same prompts, and
    `made_of` says by judge what the change of its score since M0 is made of (`Decomposition`).
    Beside it the values by prompt, a row for each metric."""
    assert_held_out(context)
    with ExitStack() as stack:
        # Before anything is computed: a tracker may be missing.
        logs = [stack.enter_context(open_trackers(*tracked)) for tracked in _trackers(context)]
        row = _evaluated(context)
        for log in chain(*logs):
            log(context.planned.round, figures(row))
    if not context.folder.read("evaluation"):
        context.folder.append("evaluation", [row])
    return {"counts": {"prompts": len(context.planned.prompts), "metrics": len(row["metrics"])}}


def _evaluated(context: StepContext) -> dict[str, Any]:
    step = context.planned.step
    new = answer_values(context, "")
    new |= _drift(context)
    new |= _round_values(context)
    row: dict[str, Any] = {"metrics": metrics.compute_intervals(new), "deltas": {}, "made_of": {}}
    for name in ("initial", "previous"):
        if name in step.against and f"{name}/completions" in context.planned.inputs:
            old = answer_values(context, f"{name}/")
            row["deltas"][name] = metrics.compute_differences(new, old)
            if name == "initial":
                row["made_of"] = _made_of(context, row["deltas"][name], new, old)
    row["counts"] = {name: len(values) for name, values in sorted(new.items())}
    if not context.folder.read(VALUES):
        rows = [{"metric": n, "values": metrics.to_shares(new[n])} for n in sorted(new)]
        context.folder.append(VALUES, rows)
    return row


def _trackers(context: StepContext) -> list[tuple[list[str], Tracked]]:
    """The trackers of the experiment's trainings, and what they are told: a line of each arm over
    its rounds, the same in every round of a run folder."""
    experiment, planned = context.inputs.experiment, context.planned
    trained = [e.train or e.distill for e in experiment.steps]
    names: list[str] = []
    for step in trained:
        names += [name for name in (step.trackers if step else ()) if name not in names]
    if not names:
        return []
    root = content_hash(str(context.store.root.resolve()), length=8)
    keys = planned.step.model_dump(mode="json", exclude={"id"})
    tracked = []
    for arm in planned.arms:
        arms = f"-{arm}" if len(experiment.arm_names) > 1 else ""
        name = f"{planned.id}-seed{planned.seed}{arms}-{root}"
        about = {"step": planned.id, "seed": planned.seed, "arm": arm, **keys}
        folder = context.store.root / "evaluations" / name
        folder.mkdir(parents=True, exist_ok=True)
        tracked.append((names, Tracked(experiment.name, name, folder, about)))
    return tracked


def figures(row: Mapping[str, Any]) -> dict[str, float]:
    """An evaluation's means and the ends of their intervals by name, and its differences."""
    groups = {"": row["metrics"]}
    groups |= {f"minus_{name}/": deltas for name, deltas in row["deltas"].items()}
    ends = {"mean": "", "low": "/low", "high": "/high"}
    return {
        f"{group}{name}{end}": value
        for group, intervals in groups.items()
        for name, interval in intervals.items()
        for key, end in ends.items()
        if (value := interval.get(key)) is not None
    }


def assert_held_out(context: StepContext) -> None:
    """Refuse to evaluate on a prompt that was trained on."""
    trained = {p.prompt_id for p in context.preferences("train/preferences")}
    overlap = trained & set(context.planned.prompts)
    if overlap:
        raise RlaifError(
            f"prompt {min(overlap)} is held out and was trained on: the loaded preferences hold it."
            " Remove it from the file, or from the held-out split."
        )


def answer_values(context: StepContext, prefix: str) -> dict[str, Measured]:
    """Every metric of the answers whose inputs are named under `prefix`."""
    weights = context.planned.options["principle_weights"]
    completions = context.completions(f"{prefix}completions")
    ids = {c.completion_id for c in completions}
    found = metrics.text_values(completions, context.prompts, context.planned.step.checks)
    rows = list(context.read_all(f"{prefix}logprobs", "logprobs"))
    found |= metrics.likelihood_values(completions, rows)
    for name in context.planned.inputs:
        if name.startswith(f"{prefix}judgements/"):
            judge = name.rsplit("/", 1)[1]
            judgements = context.judgements(name)
            if any(len(j.shown) > 1 for j in judgements):
                found |= metrics.pairwise_values(judge, judgements, ids)
            else:
                found |= metrics.judge_values(judge, judgements, weights, ids)
    return found | _reward_values(context, prefix)


def _made_of(
    context: StepContext,
    deltas: Mapping[str, Any],
    new: Mapping[str, Measured],
    old: Mapping[str, Measured],
) -> dict[str, Decomposition]:
    """What the change of each judge's score since M0 is made of."""
    cut = metrics.to_shares(new["truncated_rate"]), metrics.to_shares(old["truncated_rate"])
    found = {}
    for name in sorted(context.planned.inputs):
        judge = name.removeprefix("judgements/")
        if judge == name or f"score/{judge}" not in deltas:
            continue
        made = decompose_change(
            _parts(context, "", judge), _parts(context, "initial/", judge), *cut
        )
        if made is not None:
            # What is shown beside it is the mean of the same differences.
            assert math.isclose(made["change"], deltas[f"score/{judge}"]["mean"], abs_tol=1e-9)
            found[judge] = made
    return found


def _parts(context: StepContext, prefix: str, judge: str) -> dict[str, Values]:
    weights = context.planned.options["principle_weights"]
    ids = {c.completion_id for c in context.completions(f"{prefix}completions")}
    return score_parts(context.judgements(f"{prefix}judgements/{judge}"), weights, ids)


def _reward_values(context: StepContext, prefix: str) -> dict[str, Values]:
    """How often the implicit reward agrees with each annotator of the held-out pairs."""
    weights = context.planned.options["principle_weights"]
    pairs = given_pairs(context, f"{prefix}pairs")
    judgements = {HUMAN: context.judgements(f"{prefix}pairs")}
    for name in context.planned.inputs:
        if name.startswith(f"{prefix}pair_judgements/"):
            judgements[name.rsplit("/", 1)[1]] = context.judgements(name)
    new = _logprobs(context, f"{prefix}pair_logprobs")
    old = _logprobs(context, f"{prefix}pair_logprobs_initial")
    found: dict[str, Values] = {}
    for name, rows in judgements.items():
        values = reward_accuracy(pairs, new, old, annotator_verdicts(pairs, {name: rows}, weights))
        if values:
            found[f"reward_accuracy/{name}"] = values
    return found


def _logprobs(context: StepContext, name: str) -> dict[str, float]:
    """Completion id to summed log-prob; one that could not be scored is absent."""
    rows: Iterator[dict[str, Any]] = context.read_all(name, "logprobs")
    return {row["completion_id"]: row["logprob"] for row in rows if row["logprob"] is not None}


def _drift(context: StepContext) -> dict[str, Values]:
    """A moving judge's scores of M0's answers, less the frozen judge's scores of the same texts."""
    weights = context.planned.options["principle_weights"]
    fixed = {c.completion_id for c in context.completions("initial/completions")}
    found: dict[str, Values] = {}
    for name in context.planned.inputs:
        if not name.startswith("drift/"):
            continue
        judge = name.split("/", 1)[1]
        moved, frozen = (
            metrics.to_shares(
                metrics.judge_values(judge, context.judgements(source), weights, fixed)[
                    f"score/{judge}"
                ]
            )
            for source in (name, f"initial/judgements/{judge}")
        )
        found[f"drift/{judge}"] = {p: moved[p] - frozen[p] for p in moved if p in frozen}
    return found


def _round_values(context: StepContext) -> dict[str, Measured]:
    """Diagnostics of the round's own samples and pairs, on its training prompts."""
    if not any(name.startswith("train/") for name in context.planned.inputs):
        return {}
    found: dict[str, Measured] = {}
    completions = context.completions("train/completions")
    preferences = [p for p in context.preferences("train/preferences") if p.paired]
    found["pairs/margin"] = metrics.per_prompt((p.prompt_id, p.margin) for p in preferences)
    found["pairs/length_gap"] = metrics.per_prompt(
        (p.prompt_id, float(_words(p.chosen) - _words(p.rejected))) for p in preferences
    )
    scores = _candidate_scores(context)
    for judge, by_prompts in scores.items():
        found |= metrics.sample_values(judge, {p: list(s.values()) for p, s in by_prompts.items()})
        found[f"samples/score/{judge}"] = {
            p: fmean(s.values()) for p, s in sorted(by_prompts.items()) if s
        }
        judged = context.judgements(f"train/judgements/{judge}")
        away = metrics.unfamiliar_values(judged)
        found |= {f"samples/{name}": values for name, values in away.items()}
    paired = {p.prompt_id for p in preferences}
    found["pairs/unpaired_prompts"] = {
        p: float(p not in paired) for p in sorted(by_prompt(completions))
    }
    found["samples/zero_variance"] = _zero_variance(scores)
    found |= _agreement(context, scores)
    return {name: values for name, values in found.items() if values}


def _words(messages: list[Any]) -> int:
    return sum(len(m["content"].split()) for m in messages)


def _candidate_scores(context: StepContext) -> dict[str, dict[str, dict[str, float]]]:
    """judge -> prompt -> candidate -> score, on the round's training samples."""
    weights = context.planned.options["principle_weights"]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in context.planned.inputs:
        if name.startswith("train/judgements/"):
            judge = name.rsplit("/", 1)[1]
            groups = group_by_prompt(context.judgements(name))
            found[judge] = {
                prompt: {
                    c: s for c, s in compared_scores(rows, weights, True).items() if s is not None
                }
                for prompt, rows in groups.items()
            }
    return found


def _zero_variance(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Values:
    """1 for a prompt whose candidates every judge scores alike: no learning signal."""
    alike: dict[str, list[bool]] = defaultdict(list)
    for by_prompts in scores.values():
        for prompt, values in by_prompts.items():
            if len(values) > 1:
                alike[prompt].append(len(set(values.values())) == 1)
    return {prompt: float(all(flags)) for prompt, flags in sorted(alike.items())}


def _agreement(
    context: StepContext, scores: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> dict[str, Values]:
    """Within a prompt, does a model judge rank the candidates as the programs do?"""
    programs = [
        judge
        for judge in scores
        if all(j.annotator_kind == "rule" for j in context.judgements(f"train/judgements/{judge}"))
    ]
    found: dict[str, Values] = {}
    for judge in scores:
        if judge in programs or not programs:
            continue
        rows: list[tuple[str, float | None]] = []
        for prompt, values in scores[judge].items():
            other = scores[programs[0]].get(prompt, {})
            common = sorted(set(values) & set(other))
            tau = rank_correlation([values[c] for c in common], [other[c] for c in common])
            rows.append((prompt, tau))
        found[f"judge_corr/{judge}"] = metrics.per_prompt(rows)
    return found
