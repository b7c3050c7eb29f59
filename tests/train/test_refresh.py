"""A reward model is kept from round to round until it is stale."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace
from pydantic import TypeAdapter

from rlaif.config.methods import AnyDistill
from rlaif.config.models import ModelSpec
from rlaif.core.errors import RlaifError
from rlaif.core.records import Preference
from rlaif.core.store import Store
from rlaif.engines.build import load_engine
from rlaif.metrics.intervals import Interval
from rlaif.pipeline.experiment import run_experiment
from rlaif.train.reward_model import accuracy, is_stale, keep, read_trained, split, write_trained
from rlaif.train.run import train

LINEAR = {"method": "linear", "precision": "fp32"}


def options(**keys: Any) -> Any:
    return TypeAdapter(AnyDistill).validate_python(keys)


def flipped(pairs: list[Preference], **changes: Any) -> list[Preference]:
    return [replace(p, chosen=p.rejected, rejected=p.chosen, **changes) for p in pairs]


def test_prompts_are_held_out_in_every_round_and_measured_in_the_newest(make_preferences):
    first = make_preferences(200)
    second = [replace(p, preference_id=f"s{p.preference_id}", round=1) for p in first]
    training, measured = split([*first, *second], 0.25)
    held = {p.prompt_id for p in measured}
    assert {p.round for p in measured} == {1} and len(training) == 2 * (200 - len(held))
    assert 25 < len(held) < 75 and not held & {p.prompt_id for p in training}
    assert split(list(reversed([*first, *second])), 0.25)[1] == measured[::-1]
    tied = [replace(p, prob=0.5) for p in first]
    with pytest.raises(RlaifError, match="none is left to measure on"):
        split(tied, 0.25)
    with pytest.raises(RlaifError, match="none is left to train on"):
        split(first[:1], 0.999)


def test_a_model_that_the_newest_pairs_fool_is_stale_and_one_that_they_do_not_is_kept(
    tmp_path, make_model, make_preferences
):
    step, pairs = options(**LINEAR), make_preferences(30)
    where = (make_model(0), tmp_path / "rm", tmp_path / "work", 0, "cpu")
    train(step, pairs[:20], {}, where[0], None, *where[1:])
    engine = load_engine(ModelSpec(path=str(where[1]), dtype="float32"), where[1], "rm")
    found = accuracy(engine, pairs[20:], step)
    assert found.mean >= 0.9 and found.n == 10
    write_trained(where[1], 3, found)
    trained = read_trained(where[1])
    assert (trained.round, trained.mean) == (3, found.mean)
    assert not is_stale(trained, accuracy(engine, pairs[20:], step), 0.0)
    fooled = accuracy(engine, flipped(pairs[20:]), step)
    assert fooled.mean == pytest.approx(1 - found.mean)
    assert is_stale(trained, fooled, 0.5) and not is_stale(trained, fooled, 1.0)
    # A label that says the rejected answer is the better one counts the other way round.
    assert accuracy(engine, flipped(pairs[20:], prob=0.1), step).mean == found.mean


def test_what_is_kept_is_the_same_model_and_outlives_changes_to_the_first(tmp_path, make_model):
    last, out = make_model(0), tmp_path / "kept"
    keep(last, out)
    names = sorted(p.name for p in last.iterdir())
    assert names == sorted(p.name for p in out.iterdir() if p.name != "checksums.json")
    assert all((last / n).read_bytes() == (out / n).read_bytes() for n in names)


@pytest.fixture
def rounds(write_experiment, tiny_model, tmp_path):
    """Runs the small experiment with a reward model that is refreshed; the summaries by round."""

    def run(count: int, drop: float) -> tuple[Store, list[dict[str, Any]]]:
        keys = {**LINEAR, "id": "reward", "from": "initial"}
        steps = [
            {"sample": {"n": 4, "temperature": 1.0, "max_new_tokens": 12}},
            {"judge": {"id": "checks", "kind": "rules"}},
            {"pair": {"weights": {"checks": 1.0}, "strategy": "all"}},
            {"distill": {**keys, "refresh": {"drop": drop, "held_out": 0.5}}},
        ]
        path = write_experiment(tmp_path / "x", tiny_model, steps=steps, rounds=count)
        run_experiment(path, tmp_path / "out")
        store = Store(tmp_path / "out")
        done = [json.loads(p.read_text()) for p in (tmp_path / "out/steps").glob("*/done.json")]
        made = [row for row in done if row["kind"] == "distill"]
        return store, sorted(made, key=lambda row: row["counts"]["steps"], reverse=True)

    return run


def test_in_an_experiment_a_fresh_model_is_kept_and_a_stale_one_is_trained_anew(rounds):
    store, (first,) = rounds(1, 0.4)
    folder = store.model_path(first["hash"])
    trained = read_trained(folder)
    assert trained.round == 1 and first["summary"]["held_out_accuracy"] == trained.mean
    # As if it had been better than anything can be: what it has now is a fall.
    write_trained(folder, 1, Interval(9.0, 9.0, 9.0, trained.n))
    _, both = rounds(2, 0.4)
    assert [row["counts"]["steps"] > 0 for row in both] == [True, True]
    again = next(row for row in both if row["hash"] != first["hash"])
    assert read_trained(store.model_path(again["hash"])).round == 2


def test_a_model_that_did_not_fall_by_so_much_is_kept(rounds):
    store, (first, second) = rounds(2, 1.0)
    assert second["counts"] == {"preferences": 0, "steps": 0, "kept_since_round": 1}
    assert second["weights_hash"] == first["weights_hash"]
    kept = store.model_path(second["hash"])
    assert read_trained(kept).round == 1 and (kept / "README.md").exists()
