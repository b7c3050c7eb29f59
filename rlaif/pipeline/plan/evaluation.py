"""Planning an evaluation: held-out answers of a model, judged by frozen judges."""

from __future__ import annotations

from typing import Any

from rlaif.config.models import RESERVED_MODELS
from rlaif.config.steps import EvaluateStep, SampleStep
from rlaif.constitution.own_rules import code_of
from rlaif.core.errors import ConfigError
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Model
from rlaif.pipeline.plan.base import DRIFT_PROMPTS, Planned, step_hash
from rlaif.pipeline.plan.steps import judged, loaded_pairs, sampled
from rlaif.pipeline.plan.walk import Walk, no_model


def check_judges(walk: Walk, index: int, step: EvaluateStep) -> None:
    """Refuse judges that there are none of. Raises ConfigError."""
    unknown = sorted(set(step.judges or []) - set(walk.experiment.all_judges()))
    if unknown:
        hint = suggest(unknown[0], sorted(walk.experiment.all_judges()))
        raise walk.inputs.fail(index, f"judges: {unknown[0]!r} is no judge{hint}", "judges")


def plan_evaluate(walk: Walk, index: int, step: EvaluateStep) -> None:
    """An evaluation of the policy as it is at this point."""
    evaluated(walk, step, walk.policy)


def evaluated(walk: Walk, step: EvaluateStep, model: Model) -> None:
    """The figures of `model` beside those of M0 and of the last round's policy."""
    parts = _measured(walk, step, model)
    inputs = dict(parts)
    moved = model.key != walk.initial.key
    if moved:
        inputs |= {f"initial/{k}": v for k, v in _measured(walk, step, walk.initial).items()}
        inputs |= _drift(walk, step, model)
    if moved and "previous" in step.against:
        inputs |= {f"previous/{k}": v for k, v in _measured(walk, step, walk.previous).items()}
    if walk.round:
        inputs |= {f"train/completions/{k}": p.hash for k, p in walk.completions.items()}
        inputs |= {f"train/judgements/{k}": p.hash for k, p in walk.judgements.items()}
        inputs |= {f"train/preferences/{p.id}": p.hash for p in walk.preferences}
    weights = walk.principle_weights()
    keys = step.model_dump(mode="json", exclude={"id"})
    ids = tuple(p.prompt_id for p in walk.inputs.prompts.heldout)
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
        )
    )
    walk.by_id[step.id, walk.round] = planned


def _measured(walk: Walk, step: EvaluateStep, model: Model) -> dict[str, str]:
    """Sample the held-out prompts from `model`, judge them, score them under M0."""
    if (step.id, model.key) in walk.evaluations:
        return walk.evaluations[step.id, model.key]
    template = next((e.sample for e in walk.experiment.steps if e.sample), SampleStep())
    changed: dict[str, Any] = {"n": step.n, "id": f"{step.id}.sample"}
    changed |= dict.fromkeys(("pool", "principles", "system_prompt"))
    for key in ("temperature", "max_new_tokens"):
        if getattr(step, key) is not None:
            changed[key] = getattr(step, key)
    ids = sorted(p.prompt_id for p in walk.inputs.prompts.heldout)
    sample = template.model_copy(update=changed)
    # The same random numbers for every model make the paired differences tighter.
    answers = sampled(walk, sample, model, ids, f"heldout/{walk.seed}", f"{step.id}.sample")
    parts = {"completions": answers.hash}
    for judge in _eval_judges(walk, step):
        pool = [answers]
        if walk.inputs.judges[judge.id].comparative:
            if model.key == walk.initial.key:
                continue
            first = walk.evaluations[step.id, walk.initial.key]["completions"]
            pool.append(next(p for p in walk.done if p.hash == first))
        made = judged(walk, judge, pool, _frozen(walk, judge), f"{step.id}.{judge.id}")
        parts[f"judgements/{judge.id}"] = made.hash
    own = model.key == walk.initial.key
    parts["logprobs"] = _scored(walk, step, "logprobs", [answers], walk.initial, own)
    parts |= _measured_pairs(walk, step, model)
    walk.evaluations[step.id, model.key] = parts
    return parts


def _scored(
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


def _measured_pairs(walk: Walk, step: EvaluateStep, model: Model) -> dict[str, str]:
    """Log-probs of the held-out pairs under `model` and M0, the pairs' labels and the judges'
    verdicts. There are held-out pairs where the prompts are those of the pairs."""
    if not walk.experiment.prompts.from_pairs or model.key == walk.initial.key:
        return {}
    ids = sorted(p.prompt_id for p in walk.inputs.prompts.heldout)
    pairs = [
        loaded_pairs(walk, load, ids, f"{step.id}.{load.id}") for load in walk.experiment.pair_loads
    ]
    parts = {f"pairs/{p.id}": p.hash for p in pairs}
    for judge in _eval_judges(walk, step):
        made = judged(walk, judge, pairs, _frozen(walk, judge), f"{step.id}.pairs.{judge.id}")
        parts[f"pair_judgements/{judge.id}"] = made.hash
    parts["pair_logprobs"] = _scored(walk, step, "pairs.logprobs", pairs, model)
    parts["pair_logprobs_initial"] = _scored(walk, step, "pairs.initial", pairs, walk.initial)
    return parts


def _eval_judges(walk: Walk, step: EvaluateStep) -> list[Any]:
    """Without those that a distilled model answers: it is new in every round, so its rewards
    cannot be compared between rounds."""
    judges = walk.experiment.all_judges()
    moving = {e.distill.id for e in walk.experiment.steps if e.distill is not None}
    wanted = [judges[j] for j in (step.judges if step.judges is not None else judges)]
    return [judge for judge in wanted if not moving & set(judge.asks().values())]


def _frozen(walk: Walk, judge: Any) -> dict[str, Model]:
    """An evaluation never uses a moving judge: reserved names mean the frozen M0."""
    found = {}
    for role, name in walk.names(judge).items():
        model = walk.initial if name in RESERVED_MODELS else walk.given(name)
        if model is None:
            fault = f"judge {judge.id}: {no_model(name, walk.experiment)}"
            raise ConfigError(fault, walk.inputs.path)
        found[role] = model
    return found


def _drift(walk: Walk, step: EvaluateStep, model: Model) -> dict[str, str]:
    """Each moving judge's verdicts on M0's held-out answers, a fixed set of texts."""
    found = {}
    first = walk.evaluations[step.id, walk.initial.key]["completions"]
    fixed = next(p for p in walk.done if p.hash == first)
    for judge in _eval_judges(walk, step):
        now = {r: model for r, n in walk.names(judge).items() if n in ("policy", "current")}
        if now and not walk.inputs.judges[judge.id].comparative:
            name = f"{step.id}.drift.{judge.id}"
            models = _frozen(walk, judge) | now
            made = judged(walk, judge, [fixed], models, name, DRIFT_PROMPTS)
            found[f"drift/{judge.id}"] = made.hash
    return found
