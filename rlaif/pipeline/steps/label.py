"""label: preferences of loaded pairs, chosen by people, judges or a coin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rlaif.config.arms import AI, HUMAN, RANDOM, ArmSpec, labellers_of
from rlaif.config.steps import LabelStep
from rlaif.core.errors import RlaifError
from rlaif.core.labelled import GivenPair
from rlaif.core.records import Judgement
from rlaif.core.yamlio import suggest
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.stages import has_arm
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext
from rlaif.preferences.labels import (
    TURNED,
    Verdicts,
    annotator_verdicts,
    choose_nested,
    flip_coins,
    flip_labels,
    keep_decided,
    label_pair,
    share_out,
)

VERSION = 2
MAKES = "preferences"
SECONDS_PER_UNIT = 0.0


def plan(walk: Walk, index: int, step: LabelStep) -> None:
    """Preferences of the loaded pairs, labelled as this arm says."""
    labels, flip, used = _read_arm(step, walk.label)
    if not walk.pairs:
        raise walk.inputs.fail(
            index, "label has no pairs: put `- load: {type: pairs, path: FILE}` before it"
        )
    labellers = _find_labellers(walk, step, labels)
    judges = _find_judge_steps(walk, index, labellers)
    _check_weights(walk, index, step, judges)
    inputs = {f"pairs/{k}": p.hash for k, p in walk.pairs.items()}
    inputs |= {f"judgements/{name}": walk.judgements[name].hash for name in judges}
    options: dict[str, Any] = {
        # A list keeps the order of shares, which says whose pairs are nested.
        "labels": labels if isinstance(labels, str) else [list(row) for row in labels.items()],
        "flip": flip,
        "labellers": labellers,
        "judges": sorted(set(judges) & set(walk.experiment.all_judges())),
        "judge_weights": step.weights,
        "principle_weights": walk.principle_weights(),
    }
    if used is not None:
        options["labels_used"] = used
    digest = step_hash("label", inputs, options, walk.seed, walk.round)
    prompts = tuple(dict.fromkeys(p for pairs in walk.pairs.values() for p in pairs.prompts))
    place = (walk.seed, walk.round)
    planned = walk.add(
        Planned(digest, "label", step.id, *place, step, inputs, {}, prompts, options)
    )
    walk.replace(walk.preferences, step.id)
    walk.preferences = [planned]
    walk.by_id[step.id, walk.round] = planned


def _read_arm(
    step: LabelStep, arm: ArmSpec | None
) -> tuple[str | dict[str, float], float | None, int | None]:
    """Who labels, the share turned round and how many labels are used: as the arm says, and where
    it does not, the step."""
    arm = arm or ArmSpec()
    used = arm.labels_used or step.labels_used
    if arm.labels is None:
        return step.labels, step.flip, used
    return arm.labels, arm.flip, used


def _find_labellers(walk: Walk, step: LabelStep, labels: str | dict[str, float]) -> list[str]:
    """Whoever labels in any arm: all must have decided a pair for it to be used, so that every arm
    trains on the same pairs. A coin decides every pair."""
    found = set(labellers_of(labels))
    for name, arm in walk.experiment.arms.items():
        # Of an arm that sets keys, its own file.
        own = walk.yardstick.arms.get(name, walk.yardstick).experiment
        for stage in own.all_stages:
            steps = [e.label for e in stage.steps if has_arm(e.arms, name) and e.label is not None]
            for same in (s for s in steps if s.id == step.id and has_arm(stage.arms, name)):
                found |= set(labellers_of(_read_arm(same, arm)[0]))
    return sorted(found - {RANDOM})


def _find_judge_steps(walk: Walk, index: int, labellers: list[str]) -> list[str]:
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


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """One pair for each prompt, or as many labels as are used."""
    count = len(planned.prompts)
    return Size(min(count, planned.options.get("labels_used", count)))


def run(context: StepContext) -> dict[str, Any]:
    """Every arm labels the same pairs: those that each arm's labeller has decided."""
    options, seed = context.planned.options, context.planned.seed
    pairs = given_pairs(context, "pairs")
    known = {name: verdicts_of(context, pairs, name) for name in options["labellers"]}
    for name, found in known.items():
        if not found:
            raise RlaifError(_no_verdict(context, name, len(pairs)))
    kept = keep_decided(pairs, list(known.values()))
    if not kept:
        raise RlaifError(_nothing_decided(known, len(pairs)))
    undecided = len(pairs) - len(kept)
    if "labels_used" in options:
        kept = _choose_used(kept, options["labels_used"], seed)
    given = options["labels"]
    shares = [(given, 1.0)] if isinstance(given, str) else [(name, share) for name, share in given]
    whose = share_out(kept, shares, seed)
    known[RANDOM] = flip_coins(kept, seed)
    said = {pair.pair_id: known[whose[pair.pair_id]][pair.pair_id] for pair in kept}
    turned: frozenset[str] = frozenset()
    if options["flip"] is not None:
        said, turned = flip_labels(said, options["flip"], seed)
    answers = {c.completion_id: c for c in context.completions("pairs")}
    made = [
        label_pair(
            pair,
            context.prompts[pair.prompt_id],
            answers,
            said[pair.pair_id],
            whose[pair.pair_id] + TURNED * (pair.pair_id in turned),
            context.planned.round,
        )
        for pair in kept
    ]
    if not context.folder.read("preferences"):
        context.folder.append("preferences", made)
    counts = {"preferences": len(made), "undecided": undecided, "turned": len(turned)}
    if "labels_used" in options:
        counts["unused"] = len(pairs) - undecided - len(made)
    return {"counts": counts, "labellers": dict(sorted(Counter(whose.values()).items()))}


def _choose_used(pairs: list[GivenPair], count: int, seed: int) -> list[GivenPair]:
    if count > len(pairs):
        raise RlaifError(
            f"labels_used: {count} pairs are wanted, and {len(pairs)} are decided by every "
            "labeller. Ask for fewer, or load more pairs"
        )
    return choose_nested(pairs, count, seed)


def given_pairs(context: StepContext, prefix: str) -> list[GivenPair]:
    """The pairs in the inputs under `prefix`, by prompt and id; each once."""
    rows = (GivenPair(**row) for row in context.read_all(prefix, "pairs"))
    found = {pair.pair_id: pair for pair in rows}
    return sorted(found.values(), key=lambda pair: (pair.prompt_id, pair.pair_id))


def verdicts_of(context: StepContext, pairs: list[GivenPair], labels: str) -> Verdicts:
    """What `labels` (human, ai, or a step's id) says of the pairs."""
    options = context.planned.options
    weights: Mapping[str, float] | None = None
    judgements: dict[str, list[Judgement]]
    if labels == HUMAN:
        judgements = {HUMAN: context.judgements("pairs")}
    elif labels == AI:
        weights = options["judge_weights"]
        judgements = {name: context.judgements(f"judgements/{name}") for name in options["judges"]}
    else:
        judgements = {labels: context.judgements(f"judgements/{labels}")}
    return annotator_verdicts(pairs, judgements, options["principle_weights"], weights)


def _no_verdict(context: StepContext, labels: str, pairs: int) -> str:
    judges = [f"judgements/{name}" for name in context.planned.options["judges"]]
    names = {HUMAN: ["pairs"], AI: judges}.get(labels, [f"judgements/{labels}"])
    rows = [row for name in names for row in context.judgements(name)]
    if not rows:
        return f"labels {labels!r}: none of the {pairs} pairs has a label"
    return (
        f"labels {labels!r}: none of its {len(rows)} judgements gives a verdict on one of the "
        f"{pairs} loaded pairs. Were they made for other answers, or could none be read?"
    )


def _nothing_decided(known: Mapping[str, Verdicts], pairs: int) -> str:
    shown = ", ".join(
        f"{name} {sum(p != 0.5 for p in found.values())}" for name, found in sorted(known.items())
    )
    return (
        f"no pair was decided by every labeller. Of {pairs} pairs each decided: {shown}. "
        "Ties and answers that could not be read decide nothing."
    )
