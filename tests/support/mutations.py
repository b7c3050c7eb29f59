"""Experiment files that were changed at random, in their text or in their structure."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import yaml

WRONG: list[Any] = [None, -1, 0, 1.5, "", " ", "x", "policy", [], {}, [None], {"x": {}}, True]
WRONG += ["é" * 70, 10**30, -(10**30), 1e300, 10**10, {1: 2}, [[]], "(", "a\nb", 3, [1, 2], "none"]
BEYOND: list[Any] = [float("nan"), float("inf"), float("-inf"), 1e308, 10**30]
"""Numbers that no key can mean."""
PIECES = ["{", "}", "[", "]", ":", "- ", "\t", "&a ", "*a", "!!x ", "'", '"', "|", "%", "\n"]
PIECES += [
    "\u0000",
    "---\n",
    "? ",
    "{{",
    "{%",
    "\ud800",
    "<<: ",
    "~",
    ".inf",
    "0x",
    "1_0",
    "2026-11-1",
]

SIZES: list[Any] = [0, 1, 2, 3, 7, 0.0, 0.1, 0.5, 1.0, 40, 999, 10**6, 10**9, -1, 1e-9, 1e9]
NAMES = ["policy", "initial", "previous", "earlier", "current", "nobody", "checks", "self", "main"]
NAMES += ["rules", "yes_no", "rating", "pairwise", "additive", "critique", "random", "longest"]
NAMES += ["best_vs_worst", "all", "reference", "useful", "brief", "useful@1", "self@*", "keep", "/"]
NAMES += ["prompts.jsonl", "answers.yaml", "constitution.yaml", "prompts/judges/pairwise.j2", "."]
KEYS = ["n", "by", "id", "uses", "temperature", "top_p", "top_k", "max_new_tokens", "stop", "kind"]
KEYS += ["principles", "template", "samples", "weights", "strategy", "min_margin", "max_pairs"]
KEYS += ["prompts", "system_prompt", "judges", "against", "resamples", "checks", "mode", "reason"]
KEYS += ["standardise", "balance_lengths", "scale", "abstain", "limit", "holdout", "max_words"]
KEYS += ["max_context", "role", "seeds", "budget", "alarms", "retention", "description", "formats"]

Loc = tuple[Any, ...]


def places(value: Any, loc: Loc = ()) -> Iterator[Loc]:
    """The place of every key and item in a document."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        yield (*loc, key)
        if isinstance(child, (dict, list)):
            yield from places(child, (*loc, key))


def at(value: Any, loc: Loc) -> Any:
    for key in loc:
        value = value[key]
    return value


def numbers(data: dict[str, Any]) -> list[Loc]:
    """The places of all numbers."""
    found = [loc for loc in places(data) if isinstance(at(data, loc), (int, float))]
    return [loc for loc in found if not isinstance(at(data, loc), bool)]


def values(rng: random.Random, data: dict[str, Any]) -> str:
    """A document with one to three values replaced by others of their kind, or optional keys that
    were put in or left out: many of these are experiments."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        loc = rng.choice(list(places(data)))
        parent, key = at(data, loc[:-1]), loc[-1]
        value = parent[key]
        if isinstance(value, str):
            parent[key] = rng.choice(NAMES)
        elif isinstance(value, (int, float)):
            parent[key] = rng.choice(SIZES)
        elif isinstance(value, dict):
            value[rng.choice(KEYS)] = rng.choice([*NAMES, *SIZES, *WRONG])
        elif value:
            del value[rng.randrange(len(value))]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def structure(rng: random.Random, data: dict[str, Any]) -> str:
    """A document with one to three keys or items replaced, removed, renamed, moved or doubled."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        loc = rng.choice(list(places(data)))
        parent, key = at(data, loc[:-1]), loc[-1]
        kind = rng.randrange(5)
        if kind == 0 and isinstance(parent, dict):
            parent[rng.choice(["nmae", "by", "id", "path", "", "x" * 200])] = parent.pop(key)
        elif kind == 1:
            del parent[key]
        elif kind == 2:
            parent[key] = copy.deepcopy(at(data, rng.choice(list(places(data)))))
        elif kind == 3 and isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
        else:
            parent[key] = rng.choice(WRONG)
        if not data:
            break
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def text(rng: random.Random, data: dict[str, Any]) -> str:
    """A document's text with characters taken out, doubled, moved or put in."""
    found = yaml.safe_dump(data, sort_keys=False)
    for _ in range(rng.randrange(1, 5)):
        place, size = rng.randrange(len(found) + 1), rng.randrange(1, 12)
        piece = rng.choice(PIECES)
        found = rng.choice(
            [
                found[:place] + found[place + size :],
                found[:place] + piece + found[place:],
                found[:place] + found[place : place + size] * 2 + found[place + size :],
            ]
        )
    return found


def beyond(rng: random.Random, data: dict[str, Any]) -> str:
    """A document with a number that no key can mean in the place of one; it must be refused."""
    data = copy.deepcopy(data)
    loc = rng.choice(numbers(data))
    at(data, loc[:-1])[loc[-1]] = rng.choice(BEYOND)
    return yaml.safe_dump(data, sort_keys=False)


MUTATIONS = {"values": values, "structure": structure, "text": text, "beyond": beyond}
