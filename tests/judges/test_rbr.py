"""Rule-based rewards: the fit recovers planted weights, and the judge uses what was fitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from pydantic import TypeAdapter

from rlaif.cli import cli
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.records import Completion, Judgement, Preference, content_hash, make_prompt, to_json
from rlaif.engines.base import ScoreResult
from rlaif.judges.base import Answered
from rlaif.judges.build import JudgeStep, build_judge
from rlaif.judges.rbr import fit, fit_hinge

RULES = Constitution.model_validate(
    {
        "name": "r",
        "principles": [
            {"id": "judges", "text": "The answer judges the user."},
            {"id": "offers", "text": "The answer offers help."},
            {"id": "noise", "text": "The answer has commas."},
        ],
    }
)
PROMPT = make_prompt([{"role": "user", "content": "Help me."}])


def completion(index: int) -> Completion:
    text = f"answer {index}"
    return Completion(
        f"k{index}", PROMPT.prompt_id, index, [{"role": "assistant", "content": text}],
        "m", "w", {}, "stop", digest=content_hash(text),
    )  # fmt: skip


def weights_file(folder: Path, **weights: float) -> str:
    path = folder / "weights.yaml"
    path.write_text(yaml.safe_dump({"weights": weights}))
    return str(path)


def judge_of(**spec: Any) -> Any:
    model: Any = TypeAdapter(JudgeStep).validate_python({"kind": "rbr"} | spec)
    return build_judge(model, RULES)


def answered(calls: Any, probs: dict[str, float]) -> dict[str, Answered]:
    found = {}
    for call in calls:
        yes = probs[call.principle]
        labels = {"yes": yes, "no": 1 - yes} if yes >= 0 else {"yes": 0.0, "no": 0.0}
        found[call.call_id] = Answered(ScoreResult(call.call_id, labels, 1.0, [], 1), "m")
    return found


def test_the_reward_is_the_weighted_sum(tmp_path: Path) -> None:
    judge = judge_of(weights=weights_file(tmp_path, judges=-2.0, offers=1.0))
    calls = judge.calls(PROMPT, [completion(0)], 1)
    assert {c.principle for c in calls} == {"judges", "offers"}
    (judgement,) = judge.conclude(calls, answered(calls, {"judges": 0.25, "offers": 0.8}))
    assert judgement.distribution["reward"] == pytest.approx(-0.5 + 0.8)
    assert judgement.score == pytest.approx(1 / (1 + np.exp(-0.3)))
    assert judgement.distribution["judges"] == 0.25
    (missing,) = judge.conclude(calls, answered(calls, {"judges": -1, "offers": 0.8}))
    assert (missing.status, missing.score) == ("unparsed", None)


def test_the_hash_covers_the_weights_and_not_the_files_name(tmp_path: Path) -> None:
    one = judge_of(weights=weights_file(tmp_path, judges=-2.0)).judge_hash
    (tmp_path / "other").mkdir()
    assert judge_of(weights=weights_file(tmp_path / "other", judges=-2.0)).judge_hash == one
    assert judge_of(weights=weights_file(tmp_path, judges=-1.0)).judge_hash != one
    assert judge_of(weights=weights_file(tmp_path, offers=-2.0)).judge_hash != one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights: {jugdes: 1}", "did you mean 'judges'"),
        ("weights: {}", "no weights"),
        ("weight: {judges: 1}", "did you mean"),
        ("weights: {judges: high}", "number"),
        ("{weights: {judges: 1}, bias: 1}", "bias"),
    ],
)
def test_bad_weights_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "weights.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        judge_of(weights=str(path))


def test_the_fit_recovers_the_direction_of_planted_weights() -> None:
    generator = np.random.default_rng(1)
    gaps = generator.uniform(-1, 1, (400, 3))
    planted = np.array([-2.0, 1.0, 0.0])
    gaps[gaps @ planted < 0] *= -1
    found = fit_hinge(gaps)
    assert (gaps @ found > 0).mean() > 0.98
    assert found[0] / found[1] == pytest.approx(-2, rel=0.25)
    assert abs(found[2]) < 0.1 * abs(found[0])


def test_separable_pairs_end_at_loss_zero() -> None:
    gaps = np.array([[1.0, 0.0], [1.0, 0.0]])
    found = fit_hinge(gaps)
    assert np.maximum(0, 1 - gaps @ found).mean() == pytest.approx(0, abs=1e-6)
    assert found[1] == 0


def test_a_ridge_keeps_weights_small() -> None:
    gaps = np.array([[0.1], [0.1]])
    free, held = (fit_hinge(gaps, ridge=r)[0] for r in (0.0, 1.0))
    assert held == pytest.approx(0.1, abs=0.02) and free > 5


def records(count: int) -> tuple[list[Judgement], list[Preference]]:
    judgements, preferences = [], []
    for n in range(count):
        for side, offers in (("good", 0.9), ("bad", 0.2)):
            for name, value in (("offers", offers), ("noise", 0.5)):
                key = f"{n}{side}{name}"
                judgements.append(
                    Judgement(key, key, f"p{n}", "completion", [f"{n}{side}"], f"{n}{side}", "j",
                              "m", "ai", name, "ok", score=value)
                )  # fmt: skip
        preferences.append(
            Preference(f"x{n}", f"p{n}", 1, [], [], [], 1, 0, 1, 1, 1, "", "", [], f"{n}good",
                       f"{n}bad")
        )  # fmt: skip
    return judgements, preferences


def test_fitting_records_splits_by_prompt_and_skips_what_lacks_a_value() -> None:
    judgements, preferences = records(60)
    broken = Judgement("b", "b", "p0", "completion", ["0good"], "0good", "j", "m", "ai", "offers",
                       "unparsed")  # fmt: skip
    found = fit([*judgements, broken], preferences)
    assert found.weights["offers"] > 1 and found.weights["noise"] == 0
    assert found.skipped == 1
    assert found.fitted[0] + found.held_out[0] == 59 and found.held_out[0] > 0
    assert found.fitted[1] == found.held_out[1] == 1.0
    with pytest.raises(RlaifError, match="no pair can be fitted"):
        fit([], preferences)


def rewarding(gap: float, count: int) -> list[Judgement]:
    """A reward model that prefers the better answer of each pair by `gap`."""
    return [
        Judgement(f"r{n}{side}", f"r{n}{side}", f"p{n}", "completion", [f"{n}{side}"], f"{n}{side}",
                  "rm", "m", "ai", None, "ok", 0.5, raw_value=3.0 + value)
        for n in range(count)
        for side, value in (("good", gap), ("bad", 0.0))
    ]  # fmt: skip


def test_weights_are_fitted_beside_a_reward_model() -> None:
    """2411.01111, section 4.2: the loss is of the reward model's reward plus the sum."""
    judgements, preferences = records(60)
    alone = fit(judgements, preferences)
    # What is separated by the margin already needs no weight.
    assert set(fit(judgements, preferences, rewards=rewarding(1.0, 60)).weights.values()) == {0.0}
    half = fit(judgements, preferences, rewards=rewarding(0.5, 60)).weights["offers"]
    against = fit(judgements, preferences, rewards=rewarding(-1.0, 60))
    assert 0 < half < alone.weights["offers"] < against.weights["offers"]
    assert against.fitted[1] == 1.0
    # With weights of 0 it is the reward model that orders the pairs, held-out ones too.
    separated = fit(judgements, preferences, rewards=rewarding(1.0, 60))
    assert separated.fitted[1] == separated.held_out[1] == 1.0
    # An answer that the reward model has not judged is in no pair.
    fewer = fit(judgements, preferences, rewards=rewarding(0.5, 50))
    assert fewer.skipped == 10
    with pytest.raises(RlaifError, match="no judgement of the rewards has a raw value"):
        fit(judgements, preferences, rewards=judgements)


def test_the_command_writes_weights_that_the_judge_reads(tmp_path: Path) -> None:
    judgements, preferences = records(30)
    for name, rows in (("judgements", judgements), ("preferences", preferences)):
        text = "".join(json.dumps(to_json(row)) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    out = tmp_path / "weights.yaml"
    paths = [str(tmp_path / f"{n}.jsonl") for n in ("judgements", "preferences")]
    done = CliRunner().invoke(cli, ["rbr-weights", *paths, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["fitted"][1] == 1.0
    assert judge_of(weights=str(out)).weights["offers"] > 1


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
@pytest.mark.parametrize("option", ["--margin", "--ridge"])
def test_the_command_takes_no_number_that_no_fit_can_use(
    tmp_path: Path, option: str, value: str
) -> None:
    words = ["rbr-weights", "j.jsonl", "p.jsonl", "--out", str(tmp_path / "w"), option, value]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2 and option in done.output
