"""Where a run stands, by files that are made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlaif.core.integrity import seal_row
from rlaif.core.store import FORMAT, Store
from rlaif.engines.remote.meter import FILE, Meter
from rlaif.web.ui.state import States


def test_a_steps_cost_is_of_all_models_that_it_asked_with_what_was_estimated(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    asked = {
        "far": Meter(calls=2, cost=0.75, estimated=0.25).summary(),
        "near": Meter(calls=1, cost=2.0, estimated=0.125).summary(),
    }
    store.step("done").finish({"counts": {"judgements": 3}, "seconds": 4.5, "asked": asked})
    store.step("going").append("judgements", [{"row": 1}])
    (store.step("going").path / FILE).write_text(json.dumps({"far": asked["far"]}), "utf-8")
    store.step("local").finish({"counts": {"judgements": 1}, "seconds": 0.5})
    steps = [
        {"hash": name, "kind": "judge", "id": name, "seed": 1, "round": 1, "number": 1,
         "arms": [], "inputs": {}, "models": {}}
        for name in ("done", "going", "local", "waiting")
    ]  # fmt: skip
    manifest: dict[str, Any] = {key: {} for key in ("models", "judges", "prompts", "arms")}
    manifest |= {"format": FORMAT, "name": "some", "seeds": [1], "constitution": None}
    (tmp_path / "manifest.json").write_text(json.dumps(seal_row(manifest | {"steps": steps})))
    found = States().state(tmp_path)
    assert (found.fault, found.done, found.total, found.seconds) == ("", 2, 4, 5.0)
    assert [(s.id, s.state, s.cost, s.estimated) for s in found.steps] == [
        ("done", "done", 2.75, 0.375),
        ("going", "running", 0.75, 0.25),
        ("local", "done", None, 0),
        ("waiting", "waiting", None, 0),
    ]
    assert found.counts == {"judgements": 5}
