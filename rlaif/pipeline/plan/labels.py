"""Planning who labels loaded pairs, and the comparison of the arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.config.arms import AI, HUMAN, RANDOM, ArmSpec
from rlaif.config.steps import EvaluateStep, LabelStep
from rlaif.constitution.own_rules import code_of
from rlaif.core.yamlio import suggest
from rlaif.pipeline.plan.base import PlanInputs, Planned, step_hash
from rlaif.pipeline.plan.walk import Walk


def plan_label(walk: Walk, index: int, step: LabelStep) -> None:
    """Preferences of the loaded pairs, labelled as this arm says."""
    own = walk.label or ArmSpec(labels=step.labels, flip=step.flip)
    if not walk.pairs:
        raise walk.inputs.fail(
            index, "label has no pairs: put `- load: {type: pairs, path: FILE}` before it"
        )
    labellers = _labellers(walk, own)
    judges = _judges(walk, index, labellers)
    _check_weights(walk, index, step, judges)
    inputs = {f"pairs/{k}": p.hash for k, p in walk.pairs.items()}
    inputs |= {f"judgements/{name}": walk.judgements[name].hash for name in judges}
    options: dict[str, Any] = {
        "labels": own.labels,
        "flip": own.flip,
        "labellers": labellers,
        "judges": sorted(set(judges) & set(walk.experiment.all_judges())),
        "judge_weights": step.weights,
        "principle_weights": walk.principle_weights(),
    }
    digest = step_hash("label", inputs, options, walk.seed, walk.round)
    prompts = tuple(dict.fromkeys(p for pairs in walk.pairs.values() for p in pairs.prompts))
    place = (walk.seed, walk.round)
    planned = walk.add(
        Planned(digest, "label", step.id, *place, step, inputs, {}, prompts, options)
    )
    walk.replace(walk.preferences, step.id)
    walk.preferences = [planned]
    walk.by_id[step.id, walk.round] = planned


def _labellers(walk: Walk, own: ArmSpec) -> list[str]:
    """Whoever labels in any arm: all must have decided a pair for it to be used, so that every arm
    trains on the same pairs. A coin decides every pair."""
    arms = [*walk.experiment.arms.values()] or [own]
    return sorted({arm.labels for arm in arms} - {RANDOM})


def _judges(walk: Walk, index: int, labellers: list[str]) -> list[str]:
    """The ids of the steps whose judgements the labellers are."""
    known = sorted(walk.judgements)
    found: set[str] = set()
    for name in labellers:
        if name == AI:
            judges = set(known) & set(walk.experiment.all_judges())
            if not judges:
                raise walk.inputs.fail(index, "labels: 'ai' needs a judge step before `label`")
            found |= judges
        elif name in known:
            found.add(name)
        elif name != HUMAN:
            hint = suggest(name, [HUMAN, AI, RANDOM, *known])
            raise walk.inputs.fail(
                index, f"labels: {name!r} is no judge step before `label`{hint}", "labels"
            )
    return sorted(found)


def _check_weights(walk: Walk, index: int, step: LabelStep, judges: list[str]) -> None:
    unknown = sorted(set(step.weights or {}) - set(judges))
    if unknown:
        hint = suggest(unknown[0], judges)
        message = f"weights: {unknown[0]!r} is no judge before this step{hint}"
        raise walk.inputs.fail(index, message, "weights")
    if step.weights is not None and not any(step.weights.values()):
        raise walk.inputs.fail(index, "weights: every weight is 0; nothing counts", "weights")


def plan_comparisons(inputs: PlanInputs, walks: Mapping[str, Walk]) -> list[Planned]:
    """Each round's policies of all arms beside one another, and their labels."""
    experiment = inputs.experiment
    evaluate = next((e.evaluate for e in reversed(experiment.steps) if e.evaluate), None)
    label = next((e.label for e in experiment.steps if e.label is not None), None)
    if len(walks) < 2 or evaluate is None or label is None:
        return []
    rounds = range(1, experiment.rounds + 1)
    return [_comparison(walks, evaluate, label, number) for number in rounds]


def _comparison(
    walks: Mapping[str, Walk], step: EvaluateStep, label: LabelStep, number: int
) -> Planned:
    inputs: dict[str, str] = {}
    for arm, walk in walks.items():
        policy = walk.by_id[step.id, number].models["policy"]
        parts = walk.evaluations[step.id, policy.key]
        inputs |= {f"arms/{arm}/{name}": digest for name, digest in parts.items()}
        inputs[f"labels/{arm}"] = walk.by_id[label.id, number].hash
    walk = next(iter(walks.values()))
    ids = tuple(p.prompt_id for p in walk.inputs.prompts.heldout)
    facts = walk.facts(ids) if step.checks else []
    facts += code_of(check.rule for check in step.checks)
    weights = walk.principle_weights()
    keys = step.model_dump(mode="json", exclude={"id"})
    return Planned(
        step_hash("compare", keys, inputs, weights, facts, walk.seed, number),
        "compare",
        f"{step.id}.arms",
        walk.seed,
        number,
        step,
        inputs,
        prompts=ids,
        options={"principle_weights": weights, "arms": list(walks)},
    )
