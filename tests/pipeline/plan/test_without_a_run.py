"""Keys whose effect needs no run: limits of alarms, how long a server is waited for, and what only
`judge-bench` looks at of a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import pytest

from rlaif.config.columns import LabelColumns
from rlaif.config.models import ModelSpec
from rlaif.data.readers import read_labelled
from rlaif.engines.remote.connection import opener
from rlaif.metrics.diagnostics import AlarmLimits, RoundMetrics, find_alarms
from rlaif.metrics.intervals import IntervalJson
from rlaif.pipeline.experiment_file import AlarmsConfig
from tests.pipeline.plan.more_files import write_more_files


def interval(mean: float) -> IntervalJson:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 64}


FIRST = {"length/words": 10.0, "distinct_2": 1.0, "pairs/margin": 0.9}
LATEST = {
    "kl/initial": 40.0,
    "distinct_2": 0.7,
    "empty_rate": 0.1,
    "pairs/margin": 0.1,
    "samples/zero_variance": 0.95,
    "unparsed_rate/j": 0.4,
    "position_bias/j": 0.6,
    "score/j": 0.98,
    "samples/spread/j": 0.01,
    "label_mass/j": 0.4,
}
CHANGES = {
    "distinct_2": -0.3,
    "repetition_4": 0.2,
    "refusal_rate": 0.2,
    "list_rate": 0.5,
    "not_applicable_rate/j": 0.2,
}
QUIETER = {
    "kl_budget": 50.0,
    "length_low": 0.1,
    "length_high": 5.0,
    "distinct_drop": 0.5,
    "repetition_rise": 0.3,
    "empty_rate": 0.2,
    "refusal_rise": 0.3,
    "not_applicable_rise": 0.3,
    "unparsed_rate": 0.5,
    "zero_variance": 0.97,
    "saturation_mean": 0.99,
    "position_bias": 0.7,
    "saturation_spread": 0.001,
    "gap_decline": 20.0,
    "label_mass": 0.3,
    "drift_half_widths": 9.0,
}
"""Of each limit a value at which its alarm of the round below falls silent."""


def alarms(words: float, config: AlarmsConfig) -> list[str]:
    """The alarms of a round in which everything is wrong, with answers of so many words."""
    first = {name: interval(value) for name, value in FIRST.items()}
    latest = {name: interval(v) for name, v in (LATEST | {"length/words": words}).items()}
    changes = {name: interval(value) for name, value in CHANGES.items()}
    history: list[RoundMetrics] = [
        {"metrics": first, "deltas": {}},
        {"metrics": latest, "deltas": {"initial": changes}},
    ]
    limits = AlarmLimits(**config.model_dump(exclude={"on_alarm"}))
    return [alarm.name for alarm in find_alarms(history, limits)]


@pytest.mark.parametrize("key", [k for k in AlarmsConfig.model_fields if k != "on_alarm"])
def test_every_limit_decides(key: str) -> None:
    words = 2.5 if key == "length_low" else 30.0
    loud = alarms(words, AlarmsConfig())
    quiet = alarms(words, AlarmsConfig.model_validate({key: QUIETER[key]}))
    assert len(quiet) == len(loud) - 1
    assert set(quiet) < set(loud)


def test_the_limits_of_a_config_are_those_of_the_check() -> None:
    assert AlarmsConfig().model_dump(exclude={"on_alarm"}) == asdict(AlarmLimits())


@pytest.mark.parametrize(
    ("key", "part"), [("connect_seconds", "connect"), ("read_seconds", "read")]
)
def test_a_server_is_waited_for_as_long_as_is_said(
    key: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(
        httpx2, "Timeout", lambda *args, **keys: said.append({"read": args[0], **keys})
    )
    for limits in ({}, {key: 7.5}):
        spec: dict[str, Any] = {
            "path": "m",
            "engine": "openai",
            "base_url": "http://127.0.0.1:9/v1",
        }
        opener(ModelSpec.model_validate(spec | {"limits": limits}), None)
    assert said[0][part] != said[1][part] == 7.5


def test_a_column_of_subsets_is_read(tmp_path: Path) -> None:
    write_more_files(tmp_path)
    columns = LabelColumns(prompt="prompt", chosen="one", rejected="two", subset="team")
    pairs = list(read_labelled(tmp_path / "columns.jsonl", columns=columns))
    assert {pair.subset for pair in pairs} == {"t0", "t1"}
