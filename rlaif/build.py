"""From a finished run to a dataset: its preferences in several formats, with a card."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rlaif.compare.aggregate import candidate_scores
from rlaif.config import DatasetSpec
from rlaif.data.card import Facts, card, sampled_by
from rlaif.data.dataset import TEST, TRAIN, Tables, held_prompts, labelled_pair, pair_tables
from rlaif.data.dataset import write_tables as write_parquet
from rlaif.data.describe import Description, Spread, describe
from rlaif.data.labelled import LabelledPair
from rlaif.data.raw import raw_row
from rlaif.errors import ConfigError, StoreError
from rlaif.manifest import NOT_INSTALLED
from rlaif.plan.training import PREFERENCES
from rlaif.records import VALUED, Completion, Judgement, Preference, Prompt, R, from_json
from rlaif.runs import Run
from rlaif.steps.context import ByPrompt
from rlaif.steps.missing import why_no_pairs
from rlaif.store import explain_os_errors, partial_of, sweep, write_atomic

MARKER = "rlaif.json"
"""A file that says that the folder was written here and may be written anew."""

Step = Mapping[str, Any]


@dataclass(frozen=True)
class Built:
    """What was written: rows by format and split, and how many pairs a format could not hold."""

    folder: Path
    rows: dict[str, dict[str, int]]
    lost: dict[str, int]


def build_dataset(run: Run, spec: DatasetSpec, folder: Path) -> Built:
    """Write the dataset of a run to `folder`, which is replaced when it was written by this.

    Raises ConfigError where the run has no finished preferences, StoreError where the folder holds
    something else.
    """
    _check_folder(folder)
    used = _preference_steps(run, spec)
    above = _upstream(run, used)
    prompts = run.prompt_records()
    written = {
        c.completion_id: (c.model, c.weights_hash, c.finish_reason)
        for c in _records(run, above, Completion)
    }
    preferences = list(
        {p.preference_id: p for p in _records(run, used, Preference) if p.paired}.values()
    )
    if not preferences:
        steps = ", ".join(sorted({step["id"] for step in used}))
        why = why_no_pairs(run.store, [step["hash"] for step in used])
        raise ConfigError(
            f"{run.root}: {steps} made no pair, so there is no dataset to write{why}. Lower "
            "`min_margin` in `pair`, sample more answers per prompt, or look at the judges' scores"
        )
    pairs = _pairs(preferences, {name: model for name, (model, *_) in written.items()}, prompts)
    held = held_prompts((pair.prompt.prompt_id for pair in pairs), spec.test)
    judging = _judging(run, above)
    tables, lost = pair_tables(pairs, [f for f in spec.formats if f != "ultrafeedback"], held)
    if "ultrafeedback" in spec.formats:
        answers, said = _by_prompt(run, above, Completion), _by_prompt(run, judging, Judgement)
        tables["ultrafeedback"] = _raw(prompts, answers, said, held, spec.overall)
    tables = {name: tables[name] for name in spec.formats}
    title = spec.title or str(run.manifest["name"])
    found = describe(pairs)
    facts = Facts(
        title=title,
        configs=(),
        pairs=_by_split(pair.prompt.prompt_id in held for pair in pairs),
        prompts=_by_split(name in held for name in {p.prompt.prompt_id for p in pairs}),
        models=_models((model, weights) for model, weights, _ in written.values()),
        judges=_judges(run, above),
        generators=[line for spec in _configured(run, "sample") for line in sampled_by(spec)],
        pairing=_pairing(run, above),
        example=_example(pairs, held),
        constitution=_constitution(run),
        funnel=[*_funnel(run, above), _last_row(pairs, held)],
        spread=_figures(found),
        limits=_limits(found, _records(run, judging, Judgement), _endings(preferences, written)),
        lost=lost,
        agreement=_agreement(run, preferences),
        version=str(run.manifest["versions"]["rlaif"]).replace(NOT_INSTALLED, ""),
    )
    _write(folder, spec, facts, tables)
    rows = {name: {s: len(r) for s, r in splits.items()} for name, splits in tables.items()}
    return Built(folder, rows, lost)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
        raise StoreError(
            f"{folder} is not empty and was not written by rlaif. Choose another folder, or delete "
            f"the folder {folder} to have it written anew."
        )


def _write(folder: Path, spec: DatasetSpec, facts: Facts, tables: Tables) -> None:
    """The whole folder at once: a kill leaves the old one or a hidden half."""
    partial = partial_of(folder)
    sweep(folder.parent)
    with explain_os_errors(folder):
        try:
            partial.mkdir(parents=True)
            configs = write_parquet(partial, tables, folder.name)
            write_atomic(partial / "README.md", card(spec, replace(facts, configs=configs)))
            write_atomic(partial / MARKER, json.dumps({"rlaif": facts.version}))
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _preference_steps(run: Run, spec: DatasetSpec) -> list[Step]:
    """Each round's last step that makes preferences, or those called `uses`."""
    found: dict[int, Step] = {}
    for step in run.manifest["steps"]:
        if step["kind"] not in PREFERENCES or spec.uses not in (None, step["id"]):
            continue
        marker = run.store.step(step["hash"]).done() or {}
        if "preferences" in marker.get("counts", {}):
            found[step["round"]] = step
    if not found:
        what = f"step {spec.uses!r}" if spec.uses else "any step"
        raise ConfigError(f"{run.root}: no finished preferences by {what}; run it first")
    return list(found.values())


def _upstream(run: Run, used: Sequence[Step]) -> list[Step]:
    """The steps whose output went into these, themselves included, in the plan's order."""
    by_hash = {step["hash"]: step for step in run.manifest["steps"]}
    wanted: set[str] = set()
    left = [step["hash"] for step in used]
    while left:
        name = left.pop()
        if name in by_hash and name not in wanted:
            wanted.add(name)
            left += by_hash[name]["inputs"].values()
    return [step for step in by_hash.values() if step["hash"] in wanted]


def _records(run: Run, steps: Sequence[Step], kind: type[R]) -> Iterator[R]:
    for step in steps:
        yield from run.store.step(step["hash"]).records(kind)


def _by_prompt(run: Run, steps: Sequence[Step], kind: type[R]) -> ByPrompt[R]:
    return ByPrompt([run.store.step(step["hash"]) for step in steps], kind)


def _pairs(
    preferences: Sequence[Preference], authors: Mapping[str, str], prompts: Mapping[str, Prompt]
) -> list[LabelledPair]:
    pairs = []
    for preference in sorted(preferences, key=lambda p: p.preference_id):
        prompt = prompts.get(preference.prompt_id)
        pairs.append(labelled_pair(preference, authors, prompt.source if prompt else None))
    return pairs


def _judging(run: Run, above: Sequence[Step]) -> list[Step]:
    """The steps in which judges of the run saw these steps' completions."""
    known = {step["hash"] for step in above}
    return [
        step
        for step in run.manifest["steps"]
        if step["kind"] == "judge" and known & set(step["inputs"].values())
    ]


def _raw(
    prompts: Mapping[str, Prompt],
    answers: ByPrompt[Completion],
    said: ByPrompt[Judgement],
    held: frozenset[str],
    overall: str | None,
) -> dict[str, list[dict[str, Any]]]:
    splits: dict[str, list[dict[str, Any]]] = {TRAIN: [], TEST: []}
    for name in answers.prompts():
        if name not in prompts:
            continue
        # What a filter keeps stands in two steps.
        given = {c.completion_id: c for c in answers.of(name)}
        row = raw_row(prompts[name], [given[c] for c in sorted(given)], said.of(name), overall)
        if row is not None:
            splits[TEST if name in held else TRAIN].append(row)
    return splits


def _by_split(held: Iterable[bool]) -> dict[str, int]:
    counts = Counter(TEST if flag else TRAIN for flag in held)
    return {split: counts[split] for split in (TRAIN, TEST) if counts[split]}


def _models(authors: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"model": model, "weights": digest, "answers": str(count)}
        for (model, digest), count in sorted(Counter(authors).items())
    ]


def _judges(run: Run, above: Sequence[Step]) -> list[dict[str, str]]:
    kinds = {spec["id"]: str(spec["kind"]) for spec in _configured(run, "judge")}
    used = dict.fromkeys(step["id"] for step in above if step["kind"] == "judge")
    found = [
        {"judge": name, "kind": kinds.get(name, ""), "hash": run.manifest["judges"].get(name, "")}
        for name in used
    ]
    loaded = [
        {"judge": s["id"], "kind": "loaded", "hash": ""} for s in above if s["kind"] == "load"
    ]
    return [*found, *loaded]


def _configured(run: Run, kind: str) -> list[dict[str, Any]]:
    """The steps of a kind in the resolved experiment."""
    config = yaml.safe_load((run.root / "config.yaml").read_text(encoding="utf-8"))
    return [entry[kind] for entry in config["steps"] if kind in entry]


def _pairing(run: Run, above: Sequence[Step]) -> list[str]:
    """By which scores each `pair` step chose. A spread in round 1 may have changed the weights."""
    specs = {spec["id"]: spec for spec in _configured(run, "pair")}
    lines: dict[str, None] = {}
    for step in above:
        weights = (run.store.step(step["hash"]).done() or {}).get("weights")
        if step["id"] not in specs or not weights:
            continue
        spec = specs[step["id"]]
        shares = ", ".join(f"{judge} {_short(w)}" for judge, w in sorted(weights.items()))
        line = (
            f"{step['id']}: strategy {spec['strategy']}, by the mean of the judges' scores on "
            f"[0, 1] with the weights {shares}"
        )
        if spec["min_margin"] > 0:
            line += f"; at least {_short(spec['min_margin'])} apart"
        lines[line] = None
    return list(lines)


def _example(pairs: Sequence[LabelledPair], held: frozenset[str]) -> dict[str, str]:
    """The first pair of the training split, or of all where it has none."""
    pair = next((p for p in pairs if p.prompt.prompt_id not in held), pairs[0])
    scores = [f" ({_short(score)})" for score in pair.scores or ()] or ["", ""]
    return {
        "Prompt": pair.prompt.question,
        f"Chosen{scores[0]}": pair.first.text,
        f"Rejected{scores[1]}": pair.second.text,
    }


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _constitution(run: Run) -> str | None:
    held = run.manifest["constitution"]
    if not held:
        return None
    return f"{held['name']}, version {held['version']}, hash {run.manifest['constitution_hash']}"


def _funnel(run: Run, above: Sequence[Step]) -> list[dict[str, Any]]:
    """Rows in and out of every step, and why the others went."""
    prompts = run.manifest["prompts"]
    first = {"step": "prompts", "what": "prompts", "came": prompts["train"] + prompts["heldout"]}
    rows = [first | {"left": prompts["train"], "why": f"held out: {prompts['heldout']}"}]
    for step in above:
        marker = run.store.step(step["hash"]).done() or {}
        name = f"{step['id']}, round {step['round']}"
        if step["kind"] == "pair":
            paired = len({p.prompt_id for p in run.store.step(step["hash"]).records(Preference)})
            marker = {**marker, "paired_prompts": paired}
        for came, left, what, why in _stages(step["kind"], marker):
            shown = "; ".join(f"{reason}: {count}" for reason, count in why.items() if count)
            rows.append({"step": name, "what": what, "came": came, "left": left, "why": shown})
    return rows


def _stages(kind: str, marker: Mapping[str, Any]) -> list[tuple[int, int, str, dict[str, int]]]:
    counts = marker.get("counts", {})
    if kind == "sample":
        made, failed = counts["completions"], counts["failed"]
        return [(made, made - failed, "completions", {"failed": failed})]
    if kind == "judge":
        missing = {k: n for k, n in marker["statuses"].items() if k not in ("ok", "tie")}
        return [(counts["judgements"], counts["with_value"], "judgements", missing)]
    if kind == "filter":
        return [
            (stage["came"], stage["left"], stage["filter"], stage["why"])
            for stage in marker["funnel"]
        ]
    if kind == "pair":
        without = {n: c for n, c in counts.items() if n not in ("preferences", "prompts")}
        rest = counts["prompts"] - marker["paired_prompts"] - sum(without.values())
        without["no two answers fit its keys"] = rest
        return [(counts["prompts"], counts["preferences"], "prompts to pairs", without)]
    return []


def _last_row(pairs: Sequence[LabelledPair], held: frozenset[str]) -> dict[str, Any]:
    splits = _by_split(pair.prompt.prompt_id in held for pair in pairs)
    why = "; ".join(f"{split}: {count}" for split, count in splits.items())
    return {"step": "dataset", "what": "pairs", "came": len(pairs), "left": len(pairs), "why": why}


def _figures(found: Description) -> dict[str, str]:
    def shown(spread: Spread | None) -> str:
        if spread is None:
            return "-"
        return f"{_short(spread.mean)} ({_short(spread.low)} to {_short(spread.high)})"

    longer = found.longer_chosen
    return {
        "words of the chosen: mean (5% to 95%)": shown(found.chosen_words),
        "words of the rejected": shown(found.rejected_words),
        "chosen is the longer one": "-" if longer is None else f"{100 * longer:.0f}%",
        "gap of the scores": shown(found.gap),
    }


def _endings(
    preferences: Iterable[Preference], written: Mapping[str, tuple[str, str, str]]
) -> list[str]:
    """The finish reasons of the pairs' answers, as far as they were sampled here."""
    names = [name for p in preferences for name in (p.chosen_id, p.rejected_id)]
    return [written[name][2] for name in names if name in written]


def _limits(
    found: Description, judgements: Iterable[Judgement], endings: Sequence[str]
) -> list[str]:
    """`endings` are the finish reasons of the pairs' answers."""
    limits = [
        "The labels are the opinion of the judges above and no more: their errors and their taste "
        "are in it.",
        "The answers are written by models; nobody checked their facts.",
    ]
    # Every format puts the chosen answer where it belongs; that is no finding.
    limits += [f"{w[0].upper()}{w[1:]}." for w in found.warnings if "always the" not in w]
    if cut := sum(ending == "length" for ending in endings):
        limits.append(
            f"{cut} of the pairs' {len(endings)} answers were cut at the limit of tokens."
        )
    valued = Counter(j.status in VALUED for j in judgements)
    if valued[False]:
        limits.append(
            f"{valued[False]} of {valued.total()} judgements have no value and count nowhere."
        )
    return limits


def _agreement(run: Run, preferences: Sequence[Preference]) -> list[str]:
    """How often people who judged both answers of a pair prefer the chosen one."""
    human: dict[str, list[Judgement]] = {}
    for row in run.rows("judgements"):
        if row["annotator_kind"] == "human":
            kept = {k: v for k, v in row.items() if not k.startswith("run_") and k != "step"}
            # Several people's records are one opinion here, whatever step loaded them.
            human.setdefault(row["prompt_id"], []).append(
                from_json(Judgement, kept | {"judge": "people"})
            )
    decided = agreed = 0
    for preference in preferences:
        scores = candidate_scores(human.get(preference.prompt_id, []), None, True)
        chosen, rejected = scores.get(preference.chosen_id), scores.get(preference.rejected_id)
        if chosen is not None and rejected is not None and chosen != rejected:
            decided += 1
            agreed += chosen > rejected
    if not decided:
        return []
    return [
        f"People prefer the chosen answer in {agreed} of the {decided} pairs that they decided."
    ]
