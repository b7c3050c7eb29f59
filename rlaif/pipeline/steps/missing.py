"""Why there are no pairs, as far as finished steps tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rlaif.core.store import Store


def why_no_pairs(store: Store, steps: Iterable[str]) -> str:
    """What left no pairs in these steps (hashes) and in those before them, in parentheses; empty
    where nothing did."""
    reasons = [reason for marker in _markers(store, steps) for reason in _reasons(store, marker)]
    return f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""


def _markers(store: Store, steps: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """What the finished steps say of themselves, each once, those before a step after it."""
    left, seen = sorted(steps), set[str]()
    while left:
        digest = left.pop(0)
        if digest not in seen:
            seen.add(digest)
            marker = store.step(digest).done() or {}
            yield marker
            left += marker.get("inputs", {}).values()


def _reasons(store: Store, marker: Mapping[str, Any]) -> Iterator[str]:
    counts = marker.get("counts", {})
    if counts.get("tied_prompts"):
        yield f"all candidates tie on {counts['tied_prompts']} of {counts['prompts']} prompts"
    for name, digest in marker.get("inputs", {}).items():
        if name.startswith("judgements/"):
            done = store.step(digest).done() or {}
            judged = done.get("counts", {})
            if judged.get("judgements") and not judged["with_value"]:
                judge, count = name.split("/", 1)[1], judged["judgements"]
                yield f"none of the {count} verdicts of judge {judge} has a value"
                for error, times in done.get("errors", {}).items():
                    yield f"{times} verdicts of judge {judge} are missing: {error}"
    for stage in marker.get("funnel", ()):
        if stage["came"] and not stage["left"]:
            why = ", ".join(f"{reason}: {count}" for reason, count in stage["why"].items())
            yield f"the filter {stage['filter']} leaves none of {stage['came']}: {why}"
