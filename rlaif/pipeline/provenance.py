"""What the card of a dataset tells of the run that it was made from: pure functions of a run's
manifest, config and markers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlaif.constitution.model import Constitution
from rlaif.core.ids import IdSet
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import VALUED, Judgement, Preference
from rlaif.data.describe import Description, Spread
from rlaif.pipeline.constitutions import (
    has_constitution,
    hash_constitution,
    judges_constitutions,
    run_constitution,
)
from rlaif.pipeline.runs import Run

Step = Mapping[str, Any]


def models(authors: Mapping[tuple[str, str], int]) -> list[dict[str, str]]:
    """Who wrote the answers, by name and weights, and how many."""
    return [
        {"model": model, "weights": digest, "answers": str(count)}
        for (model, digest), count in sorted(authors.items())
    ]


def judges(run: Run, above: Sequence[Step]) -> list[dict[str, str]]:
    """Who judged: the judges of the steps, and those whose judgements were loaded."""
    used = {step["id"]: step for step in above if step["kind"] == "judge"}
    found = []
    for name, step in used.items():
        spec = run.spec_of(step)
        kind = "" if spec is None else str(spec.kind)
        # An arm may have the judge in another form.
        others = run.manifest.get("arm_judges", {}).get(next(iter(step["arms"]), ""), {})
        digest = others.get(name) or run.manifest["judges"].get(name, "")
        found.append({"judge": name, "kind": kind, "hash": digest})
    loaded = [
        {"judge": s["id"], "kind": "loaded", "hash": ""} for s in above if s["kind"] == "load"
    ]
    return [*found, *loaded]


def sampling(run: Run, above: Sequence[Step]) -> list[dict[str, Any]]:
    """The sample and revise steps of the resolved experiment that went in, each once; the members
    of a pool are one step."""
    found: dict[str, dict[str, Any]] = {}
    for step in above:
        if step["kind"] in ("sample", "revise"):
            whole = {**step, "id": step["id"].partition("/")[0]}
            spec = run.spec_of(whole)
            if spec is not None:
                found[whole["id"]] = spec.model_dump(mode="json", by_alias=True)
    return list(found.values())


def pairing(run: Run, above: Sequence[Step]) -> list[str]:
    """By which scores each `pair` step chose. A spread in round 1 may have changed the weights."""
    lines: dict[str, None] = {}
    for step in above:
        weights = (run.store.step(step["hash"]).done() or {}).get("weights")
        spec = run.spec_of(step) if step["kind"] == "pair" else None
        if spec is None or not weights:
            continue
        shares = ", ".join(f"{judge} {_format_short(w)}" for judge, w in sorted(weights.items()))
        line = (
            f"{step['id']}: strategy {spec.strategy}, by the mean of the judges' scores on "
            f"[0, 1] with the weights {shares}"
        )
        if spec.min_margin > 0:
            line += f"; at least {_format_short(spec.min_margin)} apart"
        lines[line] = None
    return list(lines)


def example(pair: LabelledPair) -> dict[str, str]:
    """The texts of a pair by what they are."""
    scores = [f" ({_format_short(score)})" for score in pair.scores or ()] or ["", ""]
    return {
        "Prompt": pair.prompt.question,
        f"Chosen{scores[0]}": pair.first.text,
        f"Rejected{scores[1]}": pair.second.text,
    }


def _format_short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def constitution(run: Run, arm: str | None, judging: Sequence[Step]) -> str | None:
    """The constitution of the run or of an arm in a few words, and those of the judges that judged
    by one of their own; None where there was none."""
    used = {step["id"] for step in judging}
    main = run_constitution(run, arm) if has_constitution(run, arm) else None
    said = [] if main is None else [_name_constitution(main)]
    said += [
        f"that of judge {name}: {_name_constitution(own)}"
        for name, own in judges_constitutions(run, arm).items()
        if name in used
    ]
    return "; ".join(said) or None


def _name_constitution(held: Constitution) -> str:
    return f"{held.name}, version {held.version}, hash {hash_constitution(held)}"


def funnel(run: Run, above: Sequence[Step]) -> list[dict[str, Any]]:
    """Rows in and out of every step, and why the others went."""
    prompts = run.manifest["prompts"]
    first = {"step": "prompts", "what": "prompts", "came": prompts["train"] + prompts["heldout"]}
    rows = [first | {"left": prompts["train"], "why": f"held out: {prompts['heldout']}"}]
    for step in above:
        marker = run.store.step(step["hash"]).done() or {}
        name = f"{step['id']}, round {step['round']}"
        if step["kind"] == "pair":
            pairs = run.store.step(step["hash"]).records(Preference)
            paired = len(IdSet(p.prompt_id for p in pairs))
            marker = {**marker, "paired_prompts": paired}
        for came, left, what, why in stages(step["kind"], marker):
            shown = "; ".join(f"{reason}: {count}" for reason, count in why.items() if count)
            rows.append({"step": name, "what": what, "came": came, "left": left, "why": shown})
    return rows


def stages(kind: str, marker: Mapping[str, Any]) -> list[tuple[int, int, str, dict[str, int]]]:
    """(in, out, what, why the others went) of each stage of a step of a kind, by its marker."""
    counts = marker.get("counts", {})
    if kind == "sample":
        made, failed = counts["completions"], counts["failed"]
        return [(made, made - failed, "completions", {"failed": failed})]
    if kind == "revise":
        kept, failed = counts["completions"], counts["failed"]
        return [(kept + failed, kept, "revisions", {"failed": failed})]
    if kind == "judge":
        missing = {k: n for k, n in marker["statuses"].items() if k not in ("ok", "tie")}
        return [(counts["judgements"], counts["with_value"], "judgements", missing)]
    if kind == "filter":
        return [
            (stage["came"], stage["left"], stage["filter"], stage["why"])
            for stage in marker["funnel"]
        ]
    if kind == "pair" and not {"matched", "questions"}.isdisjoint(counts):
        what = "matched" if "matched" in counts else "questions"
        said = {"preferences", "prompts", "same_value", what}
        why = {name: count for name, count in counts.items() if name not in said}
        named = "answers to pairs" if what == "matched" else "questions to pairs"
        return [(counts[what], counts["preferences"], named, why)]
    if kind == "pair":
        without = {n: c for n, c in counts.items() if n not in ("preferences", "prompts")}
        rest = counts["prompts"] - marker["paired_prompts"] - sum(without.values())
        without["no two answers fit its keys"] = rest
        return [(counts["prompts"], counts["preferences"], "prompts to pairs", without)]
    return []


def last_row(splits: Mapping[str, int]) -> dict[str, Any]:
    """The row of the funnel for the dataset itself."""
    why = "; ".join(f"{split}: {count}" for split, count in splits.items())
    total = sum(splits.values())
    return {"step": "dataset", "what": "pairs", "came": total, "left": total, "why": why}


def figures(found: Description) -> dict[str, str]:
    """Measured lengths and gaps, in words."""

    def format_spread(spread: Spread | None) -> str:
        if spread is None:
            return "-"
        mean, low, high = map(_format_short, (spread.mean, spread.low, spread.high))
        return f"{mean} ({low} to {high})"

    longer = found.longer_chosen
    return {
        "words of the chosen: mean (5% to 95%)": format_spread(found.chosen_words),
        "words of the rejected": format_spread(found.rejected_words),
        "chosen is the longer one": "-" if longer is None else f"{100 * longer:.0f}%",
        "gap of the scores": format_spread(found.gap),
    }


def limits(
    found: Description, judgements: Iterable[Judgement], endings: Mapping[str, int]
) -> list[str]:
    """What a reader must know. `endings` are the finish reasons of the pairs' answers, as far as
    they were sampled here."""
    said = [
        "The labels are the opinion of the judges above and no more: their errors and their taste "
        "are in it.",
        "The answers are written by models; nobody checked their facts.",
    ]
    # Every format puts the chosen answer where it belongs; that is no finding.
    said += [f"{w[0].upper()}{w[1:]}." for w in found.warnings if "always the" not in w]
    if cut := endings.get("length", 0):
        total = sum(endings.values())
        said.append(f"{cut} of the pairs' {total} answers were cut at the limit of tokens.")
    valued = Counter(j.status in VALUED for j in judgements)
    if valued[False]:
        said.append(
            f"{valued[False]} of {valued.total()} judgements have no value and count nowhere."
        )
    return said
