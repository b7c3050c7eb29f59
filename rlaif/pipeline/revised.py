"""The revisions of a run, for its report: an answer, and what each critique made of it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rlaif.core.rowindex import Index
from rlaif.core.store import Store
from rlaif.report.browser import MAX_ANSWERS, revision_entry

Row = dict[str, Any]


def read_revisions(
    store: Store, steps: Iterable[Mapping[str, Any]], prompts: Callable[[], Iterator[Row]]
) -> tuple[int, list[Row]]:
    """How many answers were revised, and the entries of the first by id for the report's browser.
    `steps` are rows of the manifest, and `prompts` reads Prompt JSON."""
    revising = [step for step in steps if step["kind"] == "revise"]
    critiques = [(step["hash"], store.step(step["hash"])) for step in revising]
    every = {(row["parent_id"], h) for h, folder in critiques for row in folder.rows("critiques")}
    chosen = heapq.nsmallest(MAX_ANSWERS, every)
    turns: dict[tuple[str, str], list[Row]] = {key: [] for key in chosen}
    for digest, folder in critiques:
        for row in folder.rows("critiques"):
            if (row["parent_id"], digest) in turns:
                turns[row["parent_id"], digest].append(row)
    wanted = {row["prompt_id"] for key in chosen for row in turns[key]}
    texts = {p["prompt_id"]: p for p in prompts() if p["prompt_id"] in wanted} if wanted else {}
    by_hash = {step["hash"]: step for step in revising}
    indexes: dict[tuple[str, str], Index] = {}

    def find_answer(digest: str, name: str, answer: str) -> Row:
        if (digest, name) not in indexes:
            indexes[digest, name] = store.step(digest).index(name, "completion_id")
            indexes[digest, name].grow()
        found: list[Row] = indexes[digest, name].rows(answer)
        return found[-1] if found else {}

    entries = []
    for parent, digest in chosen:
        step = by_hash[digest]
        rows = sorted(turns[parent, digest], key=lambda row: int(row["time"]))
        sources = [h for n, h in step["inputs"].items() if n.startswith("completions/")]
        original = next(filter(None, (find_answer(h, "completions", parent) for h in sources)), {})
        revised = [find_answer(digest, "revisions", row["completion_id"]) for row in rows]
        prompt = texts.get(rows[0]["prompt_id"])
        entries.append(
            revision_entry(step, prompt, original, list(zip(rows, revised, strict=True)))
        )
    return len(every), entries
