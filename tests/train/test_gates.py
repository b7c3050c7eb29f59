"""Gates of on-policy training: they warn, they stop before a rollout is learned from, and a stopped
training goes on to the same bits."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError
from safetensors.torch import load_file

from rlaif.cli import cli
from rlaif.config.gates import Gates, reached
from rlaif.config.methods import METHODS
from rlaif.core.errors import EXIT_GATE, GateStopped
from rlaif.pipeline.runs import load_run
from rlaif.report.build import build_report
from tests.support.on_policy import collector, learn, low_tokens, options_of

PPO = pytest.param("ppo", marks=pytest.mark.slow)
CALM = {"flat_groups": 0.5, "kl": 3.0, "entropy": 2.0, "length": 20.0, "reward_spread": 0.5}


@pytest.mark.parametrize(
    ("gate", "limit", "moved"),
    [
        ("flat_groups", 1.0, 1.0),
        ("kl", 6.0, 6.5),
        ("entropy", 0.5, 0.5),
        ("entropy", [None, 4.0], 5.0),
        ("length", 40, 41.0),
        ("length", [10, None], 9.0),
        ("reward_spread", 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("level", ["warn", "stop"])
def test_a_limit_is_reached_on_its_own_side(gate, limit, moved, level):
    gates = Gates.model_validate({gate: {level: limit}})
    assert not list(reached(gates, CALM, level))
    found = list(reached(gates, CALM | {gate: moved}, level))
    assert [name for name, _, _ in found] == [gate]
    assert not list(reached(gates, CALM | {gate: moved}, "stop" if level == "warn" else "warn"))
    # What was not measured reaches nothing.
    assert not list(reached(gates, {}, level))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gates": {"kl": {}}}, "give `warn`, `stop` or both"),
        ({"gates": {"length": {"stop": [9, 3]}}}, "low < high"),
        ({"gates": {"length": {"stop": [None, None]}}}, "one of the two"),
        ({"gates": {"kll": {"stop": 1}}}, "Extra inputs"),
        ({"method": "ppo", "gates": {"flat_groups": {"stop": 1}}}, "no effect"),
    ],
)
def test_gates_that_make_no_sense_are_refused(keys, message):
    keys = {"method": "grpo", "rewards": {"r": 1}, **keys}
    with pytest.raises(ValidationError, match=message):
        METHODS[keys["method"]].model_validate(keys)


def rows_of(out):
    return [json.loads(x) for x in (out / "work/metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["grpo", PPO, "online_dpo"])
def test_gates_measure_and_warn_and_change_no_weight(tmp_path, make_model, caplog, name):
    """With beta 0 too, where the method itself asks for no reference."""
    beta = {} if name == "online_dpo" else {"beta": 0.0}
    keys = {"rollouts": 3, "learning_rate": 1e-2, **beta}
    plain = options_of(name, **keys)
    never = {"warn": [-1e9, 1e9]}
    gates = dict.fromkeys(("kl", "entropy", "length", "reward_spread", "flat_groups"), never)
    gated = options_of(name, **keys, gates=gates | {"entropy": {"warn": 100.0}})
    learn(make_model(0), tmp_path / "a", plain)
    outcome = learn(make_model(0), tmp_path / "b", gated)
    one, other = (load_file(tmp_path / f"{x}/out/masters/model.safetensors") for x in "ab")
    assert all(torch.equal(one[n], other[n]) for n in one)
    rows = rows_of(tmp_path / "b")
    wanted = {"kl_reference", "rollout_entropy", "answer_tokens", "reward_spread", "flat_groups"}
    assert all(wanted <= row.keys() for row in rows)
    assert rows[0]["kl_reference"] == pytest.approx(0.0, abs=1e-4)
    assert abs(rows[-1]["kl_reference"]) > 1e-3
    if name != "online_dpo" and name != "ppo":
        assert rows[0]["rollout_entropy"] == pytest.approx(rows[0]["entropy"], rel=1e-4)
    (note,) = outcome.notes
    assert "at or below the limit of 100 (gates.entropy.warn), as in 3 of 3 rollouts" in note
    assert caplog.text.count("gates.entropy.warn") == 3


@pytest.mark.parametrize("name", ["grpo", PPO])
def test_a_stop_keeps_what_is_trained_and_the_same_command_goes_on(tmp_path, make_model, name):
    keys = {"rollouts": 4, "checkpoint_every": 3}
    keys["rewards"] = [{"judge": "r", "normalise": "running"}]
    whole = options_of(name, **keys)
    folder = make_model(0)
    real = collector(folder, whole, low_tokens)

    def collect(number, model):
        """The third rollout is one in which the rewards say nothing."""
        flat = collector(folder, whole, lambda ids: 0.5)
        return (flat if number == 2 else real)(number, model)

    learn(folder, tmp_path / "a", whole, collect=collect)
    gated = whole.model_copy(update={"gates": Gates.model_validate({"flat_groups": {"stop": 1.0}})})
    for _ in range(2):
        # Asked again without a change, it stops there again and has done nothing else.
        with pytest.raises(GateStopped) as stopped:
            learn(folder, tmp_path / "b", gated, collect=collect)
        said = str(stopped.value)
        assert "stopped at rollout 3" in said and "gates.flat_groups.stop" in said
        assert "is 1, at or above the limit of 1" in said
        assert "The 2 rollouts before it are kept" in said and "sample more answers" in said
        assert {row["rollout"] for row in rows_of(tmp_path / "b")} == {1, 2}
        assert not (tmp_path / "b/out").exists()
    kept = json.loads((tmp_path / "b/work/stopped.json").read_text())
    assert (kept["gate"], kept["rollout"], kept["limit"], kept["value"]) == (
        *("flat_groups", 3),
        *(1.0, 1.0),
    )
    drawn = []

    def counting(number, model):
        drawn.append(number)
        return collect(number, model)

    learn(folder, tmp_path / "b", whole, collect=counting)
    assert drawn == [2, 3]
    assert not (tmp_path / "b/work/stopped.json").exists()
    one, other = (load_file(tmp_path / f"{x}/out/masters/model.safetensors") for x in "ab")
    assert all(torch.equal(one[n], other[n]) for n in one)


def gated_run(write_experiment, folder, model, gates):
    train = {
        "method": "grpo",
        "rewards": [{"judge": "checks"}],
        "rollouts": 3,
        "batch_size": 2,
        "n": 2,
        "max_new_tokens": 8,
        "precision": "fp32",
        "gates": gates,
    }
    return write_experiment(
        folder,
        model,
        judges=[{"id": "checks", "kind": "rules"}],
        steps=[{"train": train}],
        rounds=1,
    )


def test_a_gate_stops_a_run_with_its_own_exit_code_and_is_in_status_and_report(
    tmp_path, make_model, write_experiment
):
    run = CliRunner().invoke
    out = tmp_path / "run"
    path = gated_run(write_experiment, tmp_path, make_model(0), {"length": {"stop": [0, 2]}})
    stopped = run(cli, ["run", str(path), "--out", str(out), "--quiet"])
    assert isinstance(stopped.exception, GateStopped)
    assert stopped.exception.exit_code == EXIT_GATE == 3
    said = str(stopped.exception)
    assert "gates.length.stop" in said and "rollout 1" in said and "Nothing was trained yet" in said
    assert "gates.length.stop" in run(cli, ["status", str(out), "--json"]).output
    page = build_report(load_run(out).view(), tmp_path / "stopped.html").read_text()
    assert "On-policy training" in page
    assert "gates.length.stop (2 or more) was reached in 1 of 1 rollouts" in page
    # Another limit goes on in the same step; what is only warned of is a note.
    path = gated_run(write_experiment, tmp_path, make_model(0), {"length": {"warn": 2}})
    done = run(cli, ["run", str(path), "--out", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    assert len(list((out / "steps").iterdir())) == 1
    page = build_report(load_run(out).view(), tmp_path / "done.html").read_text()
    assert (
        "gates.length.warn (2 or more) was reached in 3 of 3 rollouts, first in rollout 1" in page
    )
    assert "The mean reward went from" in page and "KL to the reference" not in page
    (row,) = load_run(out).view().steps
    assert any("gates.length.warn" in note for note in row["notes"])
