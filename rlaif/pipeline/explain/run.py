"""The `Flow` of a run folder: its manifest's steps, with what the finished ones have made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.config.arms import MAIN
from rlaif.core.store import Store
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.explain.build import make_flow
from rlaif.pipeline.explain.facts import list_facts
from rlaif.pipeline.explain.rows import done_counts, read_rows
from rlaif.pipeline.explain.words import count_words
from rlaif.pipeline.remarks import list_kept
from rlaif.report.flow import Flow


def explain_run(manifest: Mapping[str, Any], experiment: Experiment, store: Store) -> Flow:
    """What a run has done so far."""
    hashes = [step["hash"] for step in manifest["steps"]]
    markers = {digest: m for digest in hashes if (m := store.step(digest).done()) is not None}
    rows = read_rows(manifest["steps"], done_counts(markers))
    prompts = manifest["prompts"]
    facts = list_facts(experiment, {MAIN: (prompts["train"], prompts["heldout"])})
    done = len(markers)
    state = "" if done == len(rows) else f", of which {done:,} are done"
    facts["In all"] = (count_words(len(rows), "step") + state,)
    return make_flow(manifest["name"], rows, facts, kept=list_kept(experiment))
