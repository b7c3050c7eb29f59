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

from rlaif.config.arms import HUMAN, MAIN
from rlaif.config.base import hashed_keys
from rlaif.config.models import INITIAL, RESERVED_MODELS
from rlaif.config.steps import EvaluateStep, SampleStep
from rlaif.constitution.own_rules import code_of
from rlaif.core.numbers import rank_correlation
from rlaif.core.records import content_hash
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Model
from rlaif.judges.base import compares_judgements, roles_of
from rlaif.metrics import metrics
from rlaif.metrics.agreement import reward_accuracy
from rlaif.metrics.decompose import Decomposition, decompose_change, score_parts
from rlaif.metrics.metrics import Measured, Values
from rlaif.pipeline.plan.base import DRIFT_PROMPTS, Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext, by_prompt
from rlaif.pipeline.steps.held_out import list_lessons, refuse_trained_on
from rlaif.pipeline.steps.judge import judged
from rlaif.pipeline.steps.label import given_pairs
from rlaif.pipeline.steps.load import loaded_pairs
from rlaif.pipeline.steps.pair import group_by_prompt
from rlaif.pipeline.steps.sample import sampled
from rlaif.pipeline.steps.template_variables import measured_under, with_variables
from rlaif.preferences.aggregate import compared_scores, weights_of
from rlaif.preferences.labels import annotator_verdicts
from rlaif.train.trackers import Tracked, open_trackers

VERSION = 3
MAKES = "metrics"
SECONDS_PER_UNIT = 0.0

OF_SET = ":"
"""Stands between the name of a set of prompts, other than main, and that of a figure or input."""
VALUES = "values"
"""The file of values by prompt, from which several seeds are read together."""


def check_evaluation(walk: Walk, index: int, step: EvaluateStep) -> None:
    """Refuse judges that there are none of, and a frozen judge that moves. Raises ConfigError."""
    unknown = sorted(set(step.judges or []) - set(walk.experiment.all_judges()))
    if unknown:
        hint = suggest(unknown[0], sorted(walk.experiment.all_judges()))
        raise walk.inputs.fail(index, f"judges: {unknown[0]!r} is no judge{hint}", "judges")
    marking = [j for j in step.judges or [] if walk.experiment.all_judges()[j].kind == "verdict"]
    if marking:
        raise walk.inputs.fail(
            index,
            f"judges: {marking[0]!r} marks answers to a judge's questions, and held-out prompts "
            "are none; a judge is measured by a `bench` step",
            "judges",
        )
    meta = [j for j in step.judges or [] if compares_judgements(walk.yardstick.judges[j])]
    if meta:
        fault = f"judges: {meta[0]!r} compares judgements, and answers are evaluated"
        raise walk.inputs.fail(index, fault, "judges")
    if step.judged_by != INITIAL and not _is_made_once(walk, step.judged_by):
        is_moving = step.judged_by in RESERVED_MODELS or step.judged_by in _made(walk)
        why = "is another model in later rounds" if is_moving else no_model_like(walk, step)
        raise walk.inputs.fail(
            index,
            f"judged_by: {step.judged_by!r} {why}; it takes the step of a model that is made once, "
            "such as an SFT before the rounds, or ID@ROUND",
            "judged_by",
        )


def no_model_like(walk: Walk, step: EvaluateStep) -> str:
    """That the step's frozen judge is no model, or one that is given."""
    return "is given" if walk.given(step.judged_by) else "is no model"


def _made(walk: Walk) -> list[str]:
    return walk.yardstick.experiment.made_models


def _is_made_once(walk: Walk, name: str) -> bool:
    """Whether a name is of one model alone: ID@ROUND, or a step of a stage of one round."""
    own, _, when = name.partition("@")
    rounds = [
        stage.rounds
        for stage in walk.yardstick.experiment.all_stages
        for entry in stage.steps
        if entry.makes_model and entry.step.id == own
    ]
    return rounds == [1] or (bool(rounds) and when.isdigit())


def plan_start(walk: Walk, index: int, step: EvaluateStep) -> None:
    """M0's evaluation, unless a model that judges is yet to be made."""
    needed = [step.judged_by] if step.judged_by != INITIAL else []
    needed += [name for judge in _judges_of(walk, step) for name in judge.asks().values()]
    made = {name for name in needed if name.partition("@")[0] in _made(walk)}
    if step.id not in walk.started and all(walk.made_by(name) for name in made):
        walk.started.add(step.id)
        place, walk.round = walk.round, 0
        evaluated(walk, index, step, walk.initial)
        walk.round = place


def plan(walk: Walk, index: int, step: EvaluateStep) -> None:
    """An evaluation of the policy as it is at this point, or of the model that is named."""
    plan_start(walk, index, step)
    if step.id not in walk.started:
        raise walk.inputs.fail(
            index,
            "a judge of this evaluation asks a model that no step before it has made: put the "
            "evaluation after it, or name other `judges`",
            "judges",
        )
    model = walk.model(index, step.model, "model")
    evaluated(walk, index, step, with_variables(walk, index, step, model))


def evaluated(walk: Walk, index: int, step: EvaluateStep, model: Model) -> None:
    """The figures of `model` beside those of M0 and of the models that it is compared with."""
    inputs = _plan_sets(walk, index, step, model)
    moved = model.key != walk.initial.key
    if moved:
        old = _plan_sets(walk, index, step, walk.initial)
        inputs |= {f"initial/{k}": v for k, v in old.items()}
        inputs |= _plan_drift(walk, step, model)
    others = [name for name in step.against if name != INITIAL] if moved else []
    for name in others:
        old = _plan_sets(walk, index, step, walk.model(index, name, "against"))
        inputs |= {f"{compared_under(name)}{k}": v for k, v in old.items()}
    if walk.round:
        inputs |= {f"train/completions/{k}": p.hash for k, p in walk.completions.items()}
        inputs |= {f"train/judgements/{k}": p.hash for k, p in walk.judgements.items()}
        inputs |= {f"train/preferences/{p.id}": p.hash for p in _answer_pairs(walk)}
    weights = walk.yardstick_weights()
    keys = hashed_keys(step, exclude={"id"})
    ids = _heldout(walk, step)
    facts = walk.facts(ids) if step.checks else []
    facts += code_of(check.rule for check in step.checks)
    planned = walk.add(
        Planned(
            step_hash("evaluate", keys, inputs, weights, facts, walk.seed, walk.round),
            "evaluate",
            step.id,
            walk.seed,
            walk.round,
            step,
            inputs,
            models={"policy": model, "initial": walk.initial},
            prompts=ids,
            options={"principle_weights": weights},
            lessons=list_lessons(walk, model),
        )
    )
    walk.by_id[step.id, walk.round] = planned


def compared_under(name: str) -> str:
    """What the inputs of the model begin with that an evaluation's model is compared with."""
    return f"{name}/" if name in RESERVED_MODELS else f"against/{name}/"


def _heldout(walk: Walk, step: EvaluateStep) -> tuple[str, ...]:
    """The held-out prompts of all its sets."""
    sets = [walk.inputs.set_named(name) for name in step.prompts or [MAIN]]
    return tuple(dict.fromkeys(p.prompt_id for one in sets for p in one.heldout))


def _plan_sets(walk: Walk, index: int, step: EvaluateStep, model: Model) -> dict[str, str]:
    """What `model` is measured by, for each set of prompts; names of other sets than main begin
    with theirs."""
    found: dict[str, str] = {}
    for name in step.prompts or [MAIN]:
        prefix = "" if name == MAIN else f"{name}{OF_SET}"
        found |= {f"{prefix}{k}": v for k, v in _plan_measured(walk, step, model, name).items()}
    return found


def _plan_measured(walk: Walk, step: EvaluateStep, model: Model, name: str) -> dict[str, str]:
    """Sample the held-out prompts of a set from `model`, judge them, score them under M0."""
    known = walk.evaluations.setdefault((step.id, name), {})
    own_key = measured_under(step, model)
    if own_key in known:
        return known[own_key]
    samples = (e.sample for e in walk.yardstick.experiment.entries)
    template = next(filter(None, samples), SampleStep())
    changed: dict[str, Any] = {"n": step.n, "id": f"{step.id}.sample"}
    # A pool and instructions are for training data; the policy is measured without them.
    changed |= dict.fromkeys(("pool", "principles", "system_prompt"))
    for key in ("temperature", "max_new_tokens"):
        if getattr(step, key) is not None:
            changed[key] = getattr(step, key)
    ids = sorted(p.prompt_id for p in walk.inputs.set_named(name).heldout)
    sample = template.model_copy(update=changed)
    suffix = "" if name == MAIN else f".{name}"
    # The same random numbers for every model make the paired differences tighter.
    seed = f"heldout/{walk.seed}"
    answers = sampled(walk, sample, model, ids, seed, f"{step.id}.sample{suffix}")
    parts = {"completions": answers.hash}
    for judge in _judges_of(walk, step):
        pool = [answers]
        # A comparison shows M0's answers beside these, and M0 has nothing to be compared with.
        if walk.yardstick.judges[judge.id].comparative:
            if model.key == walk.initial.key:
                continue
            first = known[walk.initial.key]["completions"]
            pool.append(next(p for p in walk.done if p.hash == first))
        parts[f"judgements/{judge.id}"] = _judged(
            walk, step, judge, pool, f"{step.id}.{judge.id}{suffix}"
        )
    own = model.key == walk.initial.key
    parts["logprobs"] = _plan_logprobs(
        walk, step, f"logprobs{suffix}", [answers], walk.initial, own
    )
    if name == MAIN:
        parts |= _plan_pairs(walk, step, model)
    known[own_key] = parts
    return parts


def _judged(walk: Walk, step: EvaluateStep, judge: Any, pool: list[Planned], name: str) -> str:
    """The hash of an evaluation judge's verdicts: the judge is the same for every arm."""
    models = walk.frozen_models(judge, step.judged_by)
    return judged(walk, judge, pool, models, name, judge=walk.yardstick.judges[judge.id]).hash


def _plan_logprobs(
    walk: Walk,
    step: EvaluateStep,
    name: str,
    answers: list[Planned],
    model: Model,
    own: bool = False,
) -> str:
    """The hash of the log-probs of answers under `model`; `own` where it wrote them."""
    hashes = [a.hash for a in answers]
    return walk.add(
        Planned(
            step_hash("logprobs", *hashes, model.identity()),
            "logprobs",
            f"{step.id}.{name}",
            walk.seed,
            walk.round,
            step,
            inputs={f"completions/{i}": digest for i, digest in enumerate(hashes)},
            models={"by": model},
            prompts=answers[0].prompts,
            options={"own": own},
        )
    ).hash


def _plan_pairs(walk: Walk, step: EvaluateStep, model: Model) -> dict[str, str]:
    """Log-probs of the held-out pairs under `model` and M0, the pairs' labels and the judges'
    verdicts. There are held-out pairs where the prompts are those of the pairs."""
    if not walk.experiment.prompts.from_pairs or model.key == walk.initial.key:
        return {}
    ids = sorted(p.prompt_id for p in walk.inputs.prompts.heldout)
    pairs = [
        loaded_pairs(walk, load, ids, f"{step.id}.{load.id}") for load in walk.experiment.pair_loads
    ]
    parts = {f"pairs/{p.id}": p.hash for p in pairs}
    for judge in _judges_of(walk, step):
        name = f"{step.id}.pairs.{judge.id}"
        parts[f"pair_judgements/{judge.id}"] = _judged(walk, step, judge, pairs, name)
    parts["pair_logprobs"] = _plan_logprobs(walk, step, "pairs.logprobs", pairs, model)
    parts["pair_logprobs_initial"] = _plan_logprobs(
        walk, step, "pairs.initial", pairs, walk.initial
    )
    return parts


def _answer_pairs(walk: Walk) -> list[Planned]:
    """This round's latest preferences between answers: those between judgements say nothing of the
    policy's answers."""
    latest = [p for p in walk.preferences if not _are_of_judgements(walk, p)]
    if latest or not walk.preferences:
        return latest
    made = [p for (_, number), p in walk.by_id.items() if number == walk.round]
    pairs = [p for p in made if p.kind in ("pair", "label") and not _are_of_judgements(walk, p)]
    return pairs[-1:]


def _are_of_judgements(walk: Walk, planned: Planned) -> bool:
    """Whether preferences are between judgements, or filtered ones."""
    if planned.kind == "filter":
        read = {h for name, h in planned.inputs.items() if name.startswith("preferences/")}
        return any(_are_of_judgements(walk, p) for p in walk.done if p.hash in read)
    return planned.kind == "pair" and planned.step.form == "judgements"


def _judges_of(walk: Walk, step: EvaluateStep) -> list[Any]:
    """Evaluation judges, excluding those by a model that every round makes anew: their rewards
    cannot be compared between rounds. One that is made once may judge where it is named."""
    experiment = walk.yardstick.experiment
    judges = experiment.all_judges()
    moving = {name for name in _made(walk) if not _is_frozen(walk, step, name)}
    # What marks answers to questions, or compares judgements, has nothing to say of answers.
    every = [
        name
        for name, judge in judges.items()
        if judge.kind != "verdict" and not compares_judgements(walk.yardstick.judges[name])
    ]
    wanted = [judges[j] for j in (step.judges if step.judges is not None else every)]
    return [judge for judge in wanted if not moving & set(judge.asks().values())]


def _is_frozen(walk: Walk, step: EvaluateStep, name: str) -> bool:
    staged = walk.yardstick.experiment.stages is not None
    return staged and step.judges is not None and _is_made_once(walk, name)


def _plan_drift(walk: Walk, step: EvaluateStep, model: Model) -> dict[str, str]:
    """Each moving judge's verdicts on M0's held-out answers, a fixed set of texts."""
    if step.prompts is not None and MAIN not in step.prompts:
        return {}
    found = {}
    first = walk.evaluations[step.id, MAIN][walk.initial.key]["completions"]
    fixed = next(p for p in walk.done if p.hash == first)
    for judge in _judges_of(walk, step):
        own = walk.yardstick.judges[judge.id]
        asks = {role: judge.asks()[role] for role in roles_of(own)}
        now = {role: model for role, name in asks.items() if name in ("policy", "current")}
        if now and not own.comparative:
            name = f"{step.id}.drift.{judge.id}"
            models = walk.frozen_models(judge, step.judged_by) | now
            made = judged(walk, judge, [fixed], models, name, DRIFT_PROMPTS, own)
            found[f"drift/{judge.id}"] = made.hash
    return found


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """One row of values for each prompt."""
    return Size(len(planned.prompts))


def run(context: StepContext) -> dict[str, Any]:
    """One row: {metrics, deltas, made_of}; deltas are paired differences over the same prompts, and
    `made_of` says by judge what the change of its score since M0 is made of (`Decomposition`).
    Beside it the values by prompt, a row for each metric."""
    refuse_trained_on(context)
    with ExitStack() as stack:
        # Before anything is computed: a tracker may be missing.
        logs = [stack.enter_context(open_trackers(*tracked)) for tracked in _list_trackers(context)]
        row = _evaluate_round(context)
        for log in chain(*logs):
            log(context.planned.round, figures(row))
    # After a kill it may be there already.
    if not context.folder.read("evaluation"):
        context.folder.append("evaluation", [row])
    return {"counts": {"prompts": len(context.planned.prompts), "metrics": len(row["metrics"])}}


def _evaluate_round(context: StepContext) -> dict[str, Any]:
    step = context.planned.step
    row: dict[str, Any] = {"metrics": {}, "deltas": {}, "made_of": {}, "counts": {}}
    values: dict[str, Measured] = {}
    for prompts in step.prompts or [MAIN]:
        prefix = "" if prompts == MAIN else f"{prompts}{OF_SET}"
        new = answer_values(context, prefix)
        if prompts == MAIN:
            new |= _drift_values(context) | _round_values(context)
        row["metrics"] |= _prefixed(prefix, metrics.compute_intervals(new))
        for name in step.compared:
            other = f"{compared_under(name)}{prefix}"
            if f"{other}completions" in context.planned.inputs:
                old = answer_values(context, other)
                deltas = metrics.compute_differences(new, old)
                row["deltas"].setdefault(name, {}).update(_prefixed(prefix, deltas))
                if name == INITIAL and prompts == MAIN:
                    row["made_of"] = _made_of(context, deltas, new, old)
        values |= _prefixed(prefix, new)
    row["counts"] = {name: len(found) for name, found in sorted(values.items())}
    if not context.folder.read(VALUES):
        rows = [{"metric": n, "values": metrics.to_shares(values[n])} for n in sorted(values)]
        context.folder.append(VALUES, rows)
    return row


def _prefixed(prefix: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by the names that they have beside those of other sets of prompts."""
    return {f"{prefix}{name}": value for name, value in found.items()}


def _list_trackers(context: StepContext) -> list[tuple[list[str], Tracked]]:
    """The trackers of the experiment's trainings, and what they are told: a line of each arm over
    its rounds, the same in every round of a run folder."""
    experiment, planned = context.inputs.experiment, context.planned
    trained = [e.train or e.distill for e in experiment.entries]
    names: list[str] = []
    for step in trained:
        names += [name for name in (step.trackers if step else ()) if name not in names]
    if not names:
        return []
    # The run folder tells apart two runs of one experiment that send to the same tracker.
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
            _load_score_parts(context, "", judge),
            _load_score_parts(context, "initial/", judge),
            *cut,
        )
        if made is not None:
            # What is shown beside it is the mean of the same differences.
            assert math.isclose(made["change"], deltas[f"score/{judge}"]["mean"], abs_tol=1e-9)
            found[judge] = made
    return found


def _load_score_parts(context: StepContext, prefix: str, judge: str) -> dict[str, Values]:
    weights = context.planned.options["principle_weights"]
    ids = {c.completion_id for c in context.completions(f"{prefix}completions")}
    given = context.judgements(f"{prefix}judgements/{judge}")
    return score_parts(given, weights_of(judge, weights), ids)


def _reward_values(context: StepContext, prefix: str) -> dict[str, Values]:
    """How often the implicit reward agrees with each annotator of the held-out pairs."""
    weights = context.planned.options["principle_weights"]
    pairs = given_pairs(context, f"{prefix}pairs")
    judgements = {HUMAN: context.judgements(f"{prefix}pairs")}
    for name in context.planned.inputs:
        if name.startswith(f"{prefix}pair_judgements/"):
            judgements[name.rsplit("/", 1)[1]] = context.judgements(name)
    new = _read_logprobs(context, f"{prefix}pair_logprobs")
    old = _read_logprobs(context, f"{prefix}pair_logprobs_initial")
    found: dict[str, Values] = {}
    for name, rows in judgements.items():
        values = reward_accuracy(pairs, new, old, annotator_verdicts(pairs, {name: rows}, weights))
        if values:
            found[f"reward_accuracy/{name}"] = values
    return found


def _read_logprobs(context: StepContext, name: str) -> dict[str, float]:
    """Completion id to summed log-prob; one that could not be scored is absent."""
    rows: Iterator[dict[str, Any]] = context.read_all(name, "logprobs")
    return {row["completion_id"]: row["logprob"] for row in rows if row["logprob"] is not None}


def _drift_values(context: StepContext) -> dict[str, Values]:
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
    # Answers that stand alone have no margin and no other length.
    preferences = [p for p in context.preferences("train/preferences") if p.paired]
    found["pairs/margin"] = metrics.per_prompt((p.prompt_id, p.margin) for p in preferences)
    found["pairs/length_gap"] = metrics.per_prompt(
        (p.prompt_id, float(_count_words(p.chosen) - _count_words(p.rejected))) for p in preferences
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
    found |= _measure_agreement(context, scores)
    return {name: values for name, values in found.items() if values}


def _count_words(messages: list[Any]) -> int:
    return sum(len(m["content"].split()) for m in messages)


def _candidate_scores(context: StepContext) -> dict[str, dict[str, dict[str, float]]]:
    """judge -> prompt -> candidate -> score, on the round's training samples."""
    weights = context.planned.options["principle_weights"]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in context.planned.inputs:
        if name.startswith("train/judgements/"):
            judge = name.rsplit("/", 1)[1]
            groups = group_by_prompt(context.judgements(name))
            own = weights_of(judge, weights)
            found[judge] = {
                prompt: {c: s for c, s in compared_scores(rows, own, True).items() if s is not None}
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


def _measure_agreement(
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
