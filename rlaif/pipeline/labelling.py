"""Who labelled the pairs of a run's arms, how many they are, and what one label cost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlaif.config.arms import AI, HUMAN, RANDOM, ArmSpec, describe_labels, labellers_of
from rlaif.config.steps import LabelStep
from rlaif.core.store import Store
from rlaif.engines.remote.meter import Meter, meters_of
from rlaif.pipeline.experiment_file import Experiment
from rlaif.report.view import ArmRow, LabellingRow

Step = Mapping[str, Any]


class HasArms(Protocol):
    """A run with its manifest, its store and its experiment, or that of one arm."""

    manifest: dict[str, Any]
    store: Store

    def experiment(self, arm: str | None = None) -> Experiment:
        """The experiment as it was run, or as one arm has it."""
        ...


def arm_rows(run: HasArms) -> dict[str, ArmRow]:
    """Who labels in each arm that has a `label` step; empty where no two arms differ in that."""
    experiment = run.experiment()
    labelled = {a for s in run.manifest["steps"] if s["kind"] == "label" for a in s["arms"]}
    rows = {
        name: _arm_row(run.experiment(name), arm)
        for name, arm in experiment.arms.items()
        if name in labelled
    }
    differ = {str((row["labels"], row["flip"], row["labels_used"])) for row in rows.values()}
    said = any(arm.labelled for arm in experiment.arms.values())
    return rows if said or len(differ) > 1 else {}


def _arm_row(experiment: Experiment, arm: ArmSpec) -> ArmRow:
    step = _label_step(experiment)
    labels, flip = (step.labels, step.flip) if arm.labels is None else (arm.labels, arm.flip)
    return {
        "labels": describe_labels(labels),
        "labellers": labellers_of(labels),
        "flip": flip or 0.0,
        "judges": experiment.labellers(arm),
        "labels_used": arm.labels_used or step.labels_used,
        "set": {key: value for key, value in arm.set.items() if not _is_label_key(key, step)},
    }


def _is_label_key(path: str, step: LabelStep) -> bool:
    """Whether a path of an arm says who labels, as its other keys do."""
    own = [f"steps.{name}.{key}" for name in (step.id, "label") for key in ArmSpec.model_fields]
    return path in own


def _label_step(experiment: Experiment) -> LabelStep:
    found: list[LabelStep] = [e.label for e in experiment.entries if e.label is not None]
    return found[0]


@dataclass(frozen=True)
class _Unit:
    """What one label costs; None is not known, and `notes` say why."""

    calls: float | None = None
    tokens: float | None = None
    price: float | None = None
    notes: tuple[str, ...] = ()


def labelling_rows(run: HasArms) -> list[LabellingRow]:
    """What each arm's labels are and cost, of the arms whose `label` steps are finished."""
    rows = []
    for name, arm in arm_rows(run).items():
        steps = [s for s in run.manifest["steps"] if s["kind"] == "label" and name in s["arms"]]
        markers = {s["hash"]: run.store.step(s["hash"]).done() for s in steps}
        steps = [step for step in steps if markers[step["hash"]]]
        if steps:
            counts = [_count_labels(markers[step["hash"]] or {}, arm) for step in steps]
            rows.append(_labelling_row(run, name, arm, steps, counts))
    return rows


def _count_labels(marker: Mapping[str, Any], arm: ArmRow) -> dict[str, int]:
    # Steps of earlier versions have one labeller and do not name it.
    own: dict[str, int] = marker.get("labellers", {arm["labels"]: marker["counts"]["preferences"]})
    return own


def _labelling_row(
    run: HasArms, name: str, arm: ArmRow, steps: Sequence[Step], counts: Sequence[Mapping[str, int]]
) -> LabellingRow:
    total = Counter[str]()
    for row in counts:
        total.update(row)
    seeds = len({step["seed"] for step in steps})
    units = {who: _unit_of(run, name, who, steps) for who in total}
    labels = total.total()
    price = _mean_of(total, {who: unit.price for who, unit in units.items()})
    used = arm["labels_used"]
    return {
        "arm": name,
        "line": name if used is None else name_line(name, used),
        "labels": labels / seeds,
        "by": {who: count / seeds for who, count in total.items()},
        "calls": _mean_of(total, {who: unit.calls for who, unit in units.items()}),
        "tokens": _mean_of(total, {who: unit.tokens for who, unit in units.items()}),
        "price": price,
        "cost": None if price is None else price * labels / seeds,
        "notes": list(dict.fromkeys(note for unit in units.values() for note in unit.notes)),
    }


def name_line(arm: str, count: int) -> str:
    """An arm's name without its count of labels: those that differ in it alone are one line."""
    name = re.sub(rf"(-|^|,)labels_used={count}(?=$|,)", "", arm)
    name = re.sub(rf"-{count}(?=$|-[A-Za-z_]+=)", "", name)
    return name.strip("-,") or "labels"


def _mean_of(counts: Mapping[str, int], values: Mapping[str, float | None]) -> float | None:
    """The mean over all labels; None where one of them is not known."""
    known = [(counts[who], value) for who, value in values.items() if counts[who]]
    if not known or any(value is None for _, value in known):
        return None
    return sum(n * v for n, v in known if v is not None) / sum(n for n, _ in known)


def _unit_of(run: HasArms, arm: str, who: str, steps: Sequence[Step]) -> _Unit:
    experiment = run.experiment(arm)
    if who == HUMAN:
        price = _label_step(experiment).human_price
        note = "What people's labels cost is not known: give `human_price` in `label`."
        return _Unit(0.0, 0.0, price, (note,) if price is None else ())
    if who == RANDOM:
        return _Unit(0.0, 0.0, 0.0)
    judges = experiment.labellers(ArmSpec(labels=AI)) if who == AI else [who]
    return _sum_units([_unit_of_judge(run, experiment, judge, steps) for judge in judges])


def _sum_units(units: Sequence[_Unit]) -> _Unit:
    """Of a label that several judges give together."""

    def total(values: Iterable[float | None]) -> float | None:
        known = list(values)
        return None if None in known else sum(v for v in known if v is not None)

    return _Unit(
        total(unit.calls for unit in units),
        total(unit.tokens for unit in units),
        total(unit.price for unit in units),
        tuple(dict.fromkeys(note for unit in units for note in unit.notes)),
    )


def _unit_of_judge(
    run: HasArms, experiment: Experiment, judge: str, steps: Sequence[Step]
) -> _Unit:
    """What a judge was asked, over the pairs that it was asked about: those that it or another
    labeller left undecided, and those that this arm does not use, cost as much."""
    pairs: dict[str, int] = {}
    for step in steps:
        digest = step["inputs"].get(f"judgements/{judge}")
        counts = (run.store.step(step["hash"]).done() or {})["counts"]
        if digest is not None:
            asked = counts["preferences"] + counts["undecided"] + counts.get("unused", 0)
            pairs[digest] = asked
    planned = [step for step in run.manifest["steps"] if step["hash"] in pairs]
    if any(step["kind"] != "judge" for step in planned) or not planned:
        return _Unit(notes=(f"What the labels of {judge} cost is not known: they were loaded.",))
    if not any(step["models"] for step in planned):
        # A program asks nobody.
        return _Unit(0.0, 0.0, 0.0)
    count, made, meter, priced = sum(pairs.values()), 0, Meter(), True
    for step in planned:
        folder = run.store.step(step["hash"])
        marker = folder.done() or {}
        meters = meters_of(folder.path, marker)
        made += marker["counts"]["calls"]
        for model, own in meters.items():
            meter.add(own)
            spec = experiment.models.get(model, experiment.models["policy"])
            priced = priced and spec.price is not None
        priced = priced and bool(meters)
    if not meter.calls + meter.hits:
        note = f"What the labels of {judge} cost is not known: no server counted it."
        return _Unit(made / count, None, None, (note,))
    return _Unit(
        (meter.calls + meter.hits) / count,
        (meter.input_tokens + meter.output_tokens) / count,
        meter.cost / count if priced else None,
        tuple(_notes_of(judge, meter, priced)),
    )


def _notes_of(judge: str, meter: Meter, priced: bool) -> Iterable[str]:
    if not priced:
        yield f"What the labels of {judge} cost is not known: a model of it has no `price`."
    if meter.hits:
        asked = meter.calls + meter.hits
        yield (
            f"{meter.hits} of {asked} calls of {judge} were answered by the cache, without tokens "
            "or cost: asked anew, its labels cost more."
        )
    if meter.uncounted:
        yield f"The tokens of {meter.uncounted} calls of {judge} were not counted."
