"""Prompts of several sources as one set. A pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlaif.core.records import Prompt, content_hash


def mixed(
    given: Mapping[str, Sequence[Prompt]],
    weights: Mapping[str, float],
    count: int | None,
    seed: int,
) -> list[Prompt]:
    """`count` prompts, of each source a share by its weight; all of them where it is None.

    A source that has fewer than its share gives all, and the others make up for it by their
    weights. Which ones of a source, its prompts' ids and the seed decide. The result is in the
    order of ids, and a prompt of two sources is there once, as the first source has it.
    """
    known: dict[str, Prompt] = {}
    own: dict[str, list[Prompt]] = {}
    for name, prompts in given.items():
        fresh = {p.prompt_id: p for p in prompts if p.prompt_id not in known}
        known |= fresh
        own[name] = sorted(fresh.values(), key=lambda p: content_hash("mix", seed, p.prompt_id))
    if count is not None:
        sizes = shares({name: len(rows) for name, rows in own.items()}, weights, count)
        own = {name: rows[: sizes[name]] for name, rows in own.items()}
    return sorted((p for rows in own.values() for p in rows), key=lambda p: p.prompt_id)


def shares(sizes: Mapping[str, int], weights: Mapping[str, float], count: int) -> dict[str, int]:
    """How many of `count` each source gives: by weight, no more than it has, largest remainders
    first, ties by name."""
    taken = dict.fromkeys(sizes, 0)
    left = min(count, sum(sizes.values()))
    while left:
        room = [name for name in sorted(sizes) if taken[name] < sizes[name]]
        total = sum(weights[name] for name in room)
        wanted = {name: left * weights[name] / total for name in room}
        rest = left - sum(map(int, wanted.values()))
        ordered = sorted(room, key=lambda name: (int(wanted[name]) - wanted[name], name))
        for place, name in enumerate(ordered):
            given = min(int(wanted[name]) + (place < rest), sizes[name] - taken[name])
            taken[name] += given
            left -= given
    return taken
