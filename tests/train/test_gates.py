"""Gates of on-policy training: they warn, they stop before a rollout is learned from, and a stopped
training goes on to the same bits."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError
from safetensors.torch import load_file

from rlaif.cli import cli
from rlaif.config.gates import LEVELS, Gates, reached
from rlaif.config.methods import METHODS
from rlaif.core.errors import EXIT_GATE, GateStopped
from rlaif.pipeline.runs import load_run
from rlaif.report.build import build_report
from rlaif.train.gates import last_good, look, warnings_of
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
@pytest.mark.parametrize("level", LEVELS)
def test_a_limit_is_reached_on_its_own_side(gate, limit, moved, level):
    gates = Gates.model_validate({gate: {level: limit}})
    assert not list(reached(gates, CALM, level))
    found = list(reached(gates, CALM | {gate: moved}, level))
    assert [name for name, _, _ in found] == [gate]
    others = [other for other in LEVELS if other != level]
    assert not any(list(reached(gates, CALM | {gate: moved}, other)) for other in others)
    # What was not measured reaches nothing.
    assert not list(reached(gates, {}, level))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gates": {"kl": {}}}, "give one or more of `warn`, `rollback`"),
        ({"gates": {"length": {"stop": [9, 3]}}}, "low < high"),
        ({"gates": {"length": {"stop": [None, None]}}}, "one of the two"),
        ({"gates": {"length": {"rollback": [9, 3]}}}, "low < high"),
        ({"gates": {"length": {"stop": 9}, "max_rollbacks": 2}}, "max_rollbacks has no effect"),
        ({"gates": {"length": {"rollback": 9}, "max_rollbacks": 0}}, "greater than 0"),
        ({"gates": {"kll": {"stop": 1}}}, "Extra inputs"),
        ({"method": "ppo", "gates": {"flat_groups": {"stop": 1}}}, "no effect"),
    ],
)
def test_gates_that_make_no_sense_are_refused(keys, message):
    keys = {"method": "grpo", "rewards": {"r": 1}, **keys}
    with pytest.raises(ValidationError, match=message):
        METHODS[keys["method"]].model_validate(keys)


def test_a_warning_names_the_rollout_that_went_furthest():
    gates = Gates.model_validate({"entropy": {"warn": 2.5}, "length": {"warn": 30}})
    entropies, lengths = (2.0, 1.0, 3.0), (31.0, 29.0, 33.0)
    rows = [
        {"rollout": n, "rollout_entropy": entropy, "answer_tokens": length}
        for n, (entropy, length) in enumerate(zip(entropies, lengths, strict=True), 1)
    ]
    low, high = warnings_of(gates, rows)
    assert low.startswith("rollout 2: ") and "is 1, at or below the limit of 2.5" in low
    assert high.startswith("rollout 3: ") and "is 33, at or above the limit of 30" in high
    assert low.endswith("as in 2 of 3 rollouts") and high.endswith("as in 2 of 3 rollouts")


def test_of_two_limits_that_a_rollout_reaches_the_stop_counts():
    gates = Gates.model_validate({"flat_groups": {"rollback": 1.0}, "length": {"stop": 5}})
    metrics = {"flat_groups": 1.0, "answer_tokens": 6.0}
    hit = look(gates, metrics, 3)
    assert (hit["gate"], hit["level"], hit["rollout"]) == ("length", "stop", 3)
    assert look(gates, metrics | {"answer_tokens": 4.0}, 3)["level"] == "rollback"
    assert look(gates, {"flat_groups": 0.5, "answer_tokens": 4.0}, 3) is None


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
    # What the rollout moved that nothing was learned from was not kept: it moves it once.
    last = [rows_of(tmp_path / x)[-1]["normal_mean/r"] for x in "ab"]
    assert last[0] == last[1]
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


def test_the_checkpoint_that_is_gone_back_to_is_one_whose_own_rollout_passed():
    assert [last_good(done, 3) for done in range(8)] == [0, 0, 0, 0, 3, 3, 3, 6]
    # Never before that of an earlier rollback, whose policy has passed once.
    assert [last_good(done, 3, [{"to": 3}]) for done in (3, 4, 7)] == [3, 3, 6]


BAD = {(2, 0), (4, 1)}
"""The rollouts (from 0), each with the number of rollbacks before it, whose rewards are flat."""


def rolled_back(make_model, name="grpo", **keys):
    """Options with a rollback, and what draws a training that they roll back twice: `drawn` are
    the rollouts that it was asked for, each with the rollbacks before it."""
    options = options_of(name, rollouts=6, **keys, rewards=[{"judge": "r", "normalise": "running"}])
    gates = Gates.model_validate({"flat_groups": {"rollback": 1.0}})
    real = collector(make_model(0), options, low_tokens)
    flat = collector(make_model(0), options, lambda ids: 0.5)
    drawn = []

    def collect(number, model, rollbacks=0):
        drawn.append((number, rollbacks))
        here = flat if (number, rollbacks) in BAD else real
        return here(number + 100 * rollbacks, model)

    return options, options.model_copy(update={"gates": gates}), collect, drawn


@pytest.mark.parametrize(
    ("name", "every", "kept", "drawn"),
    [
        # Checkpoints after rollouts 1, 2, ...: that of the bad rollout's own policy is not good.
        ("grpo", 1, [0, 1, 1, 2, 2, 2], "00 10 20 11 21 31 41 32 42 52"),
        pytest.param("grpo", 2, [1, 1, 2, 2, 2, 2], None, marks=pytest.mark.slow),
        pytest.param("ppo", 3, [1, 1, 1, 2, 2, 2], None, marks=pytest.mark.slow),
    ],
)
def test_a_rollback_gives_the_model_of_a_training_that_drew_those_rollouts_at_once(
    tmp_path, make_model, caplog, name, every, kept, drawn
):
    plain, gated, collect, asked = rolled_back(make_model, name, checkpoint_every=every)
    outcome = learn(make_model(0), tmp_path / "b", gated, collect=collect)
    if drawn:
        assert [f"{number}{rollbacks}" for number, rollbacks in asked] == drawn.split()
    used = {number: rollbacks for number, rollbacks in asked if (number, rollbacks) not in BAD}
    assert [used[number] for number in range(6)] == kept
    expected = learn(
        make_model(0), tmp_path / "a", plain, collect=lambda n, model: collect(n, model, used[n])
    )
    assert same_weights(tmp_path / "a", tmp_path / "b")
    rows = rows_of(tmp_path / "b")
    assert [row["rollout"] for row in rows if row["step"] % len(rows) == 0] == [6]
    assert [{r["rollout"]: r.get("rollbacks", 0) for r in rows}[n + 1] for n in range(6)] == kept
    assert outcome.metrics["last_reward"] == expected.metrics["last_reward"]
    assert [note.split(":")[0] for note in outcome.notes] == ["rollout 3", "rollout 5"]
    assert "drew new answers from there (rollback 2)" in outcome.notes[1]
    assert caplog.text.count("gates.flat_groups.rollback") == 2


def same_weights(one, other):
    a, b = (load_file(folder / "out/masters/model.safetensors") for folder in (one, other))
    return all(torch.equal(a[name], b[name]) for name in a)


def plain_rows(out):
    return [{k: v for k, v in row.items() if k != "timing"} for row in rows_of(out)]


class Killed(BaseException):
    """What ends a training at once, as a kill does."""


DIES = {
    # Before a rollback is known, while checkpoints go, before it is done, and thereafter.
    "rlaif.train.on_policy.write_rollbacks": (1, 2, 3, 4),
    "rlaif.train.checkpoint.drop_after": (1, 2),
    "rlaif.train.checkpoint.restore": (2, 3),
    "rlaif.train.checkpoint.save": (1, 2, 3, 4),
}
"""The functions in which a training ends at once, and at which of their calls."""
QUICK = {("write_rollbacks", 2), ("drop_after", 1), ("save", 3)}


@pytest.fixture(scope="module")
def whole(make_model, tmp_path_factory):
    """The folder of a training that rolled back twice and was not killed."""
    out = tmp_path_factory.mktemp("whole")
    _, gated, collect, _ = rolled_back(make_model, checkpoint_every=2)
    learn(make_model(0), out, gated, collect=collect)
    return out


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param(
            name,
            count,
            marks=[] if (name.rpartition(".")[2], count) in QUICK else pytest.mark.slow,
        )
        for name, counts in DIES.items()
        for count in counts
    ],
)
def test_killed_in_and_after_a_rollback_a_training_ends_in_the_same_bits(
    tmp_path, make_model, monkeypatch, whole, name, count
):
    _, gated, collect, _ = rolled_back(make_model, checkpoint_every=2)
    with monkeypatch.context() as patch:
        kill_at(patch, name, count)
        with pytest.raises(Killed):
            learn(make_model(0), tmp_path, gated, collect=collect)
    learn(make_model(0), tmp_path, gated, collect=collect)
    assert same_weights(whole, tmp_path)
    assert plain_rows(tmp_path) == plain_rows(whole)


def kill_at(patch, name, count):
    """The function of this name ends everything when it is called for the `count`th time."""
    module, _, function = name.rpartition(".")
    real = getattr(import_module(module), function)
    calls = []

    def kill(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            raise Killed
        return real(*args, **kwargs)

    patch.setattr(name, kill)


def test_rollbacks_are_bounded_and_a_start_that_reaches_the_limit_stops(tmp_path, make_model):
    _, gated, collect, _ = rolled_back(make_model, checkpoint_every=2)
    limit = {"flat_groups": {"rollback": 1.0}, "max_rollbacks": 1}
    bounded = gated.model_copy(update={"gates": Gates.model_validate(limit)})
    for _ in range(2):
        with pytest.raises(GateStopped, match=r"after 1 rollbacks \(gates.max_rollbacks\)") as one:
            learn(make_model(0), tmp_path / "b", bounded, collect=collect)
        assert "at rollout 5" in str(one.value) and "`max_rollbacks` the same" in str(one.value)
    # With a higher bound it goes on to what the higher bound would have given.
    learn(make_model(0), tmp_path / "a", gated, collect=collect)
    learn(make_model(0), tmp_path / "b", gated, collect=collect)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    flat = collector(make_model(0), gated, lambda ids: 0.5)
    with pytest.raises(GateStopped, match=r"at the start policy, at rollout 1.*starts anew"):
        learn(make_model(0), tmp_path / "c", gated, collect=flat)


def test_a_stop_in_between_does_not_change_where_a_rollback_goes(tmp_path, make_model):
    """A stop leaves a checkpoint of its own, which no rollback may go back to."""
    _, gated, collect, _ = rolled_back(make_model, checkpoint_every=4)
    learn(make_model(0), tmp_path / "a", gated, collect=collect)
    both = {"flat_groups": {"rollback": 1.0}, "length": {"stop": 0.1}}
    stopping = gated.model_copy(update={"gates": Gates.model_validate(both)})

    def stop_late(progress):
        if progress.metrics["rollout"] == 2 and "rollbacks" not in progress.metrics:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(make_model(0), tmp_path / "b", gated, collect=collect, progress=stop_late)
    with pytest.raises(GateStopped, match=r"gates\.length\.stop"):
        learn(make_model(0), tmp_path / "b", stopping, collect=collect)
    learn(make_model(0), tmp_path / "b", gated, collect=collect)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert plain_rows(tmp_path / "a") == plain_rows(tmp_path / "b")
