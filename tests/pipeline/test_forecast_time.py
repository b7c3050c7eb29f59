"""A dry run gives no time where nothing is known of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.engines.remote.meter import run_account
from rlaif.pipeline import forecast

FILE = """\
name: time
models: {policy: {path: MODEL}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 2}
steps:
  - sample: {n: 2}
  - judge: {id: checks, kind: rules}
  - pair: {}
  - train: {}
"""


def dry_run(path: Path, *words: str) -> str:
    result = CliRunner().invoke(cli, ["run", str(path), "--dry-run", "--out", "nowhere", *words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("model", ["builtin/smollm2-135m-instruct", "here", "large", "org/absent"])
def test_a_time_is_guessed_for_small_models_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    forecast._is_small.cache_clear()
    for name, size in (("here", 1000), ("large", 1001)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"x" * size)
    monkeypatch.setattr(forecast, "SMALL_BYTES", 1000)
    monkeypatch.setattr("rlaif.pipeline.prepare.check_weights", lambda folder: None)
    monkeypatch.setattr("rlaif.pipeline.prepare.model_hash", lambda folder, spec: spec.path)
    monkeypatch.setattr("rlaif.pipeline.forecast.locate", lambda name: ((tmp_path / name).exists()
                        and tmp_path / name) or None)  # fmt: skip
    lines = "".join(f'{{"prompt": "Question {n}?"}}\n' for n in range(9))
    (tmp_path / "prompts.jsonl").write_text(lines)
    path = tmp_path / "experiment.yaml"
    path.write_text(FILE.replace("MODEL", model))
    known = model in ("builtin/smollm2-135m-instruct", "here")
    steps = {s["kind"]: s["seconds"] for s in json.loads(dry_run(path, "--json"))["steps"]}
    assert (steps["sample"], steps["train"]) == ((4.2, 8.4) if known else (None, None))
    # A program takes no time that counts, whatever the model.
    assert steps["judge"] == steps["pair"] == 0.0
    last = dry_run(path)
    assert ("an unknown time in 2 steps" in last) == (not known)
    assert ("about 0.2 min (a rough guess" in last) == known


LOADED = """\
name: loaded
models: {policy: {path: builtin/smollm2-135m-instruct}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 2}
judges: [{id: opinion, kind: yes_no, by: initial}]
steps:
  - load: {id: shown, type: demonstrations, path: shown.jsonl}
  - train: {id: sft, method: sft, uses: [shown]}
  - load: {id: given, type: completions, path: given.jsonl}
  - judge: opinion
  - pair: {}
  - train: {id: dpo}
  - sample: {id: drawn, n: 2}
"""


def test_what_a_file_has_is_not_counted_as_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "".join(f'{{"prompt": "Question {n}?"}}\n' for n in range(9))
    (tmp_path / "prompts.jsonl").write_text(lines)
    for name in ("shown", "given"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "Why?", "completion": "So."}\n')
    path = tmp_path / "experiment.yaml"
    path.write_text(LOADED)
    rows = json.loads(dry_run(path, "--json"))["steps"]
    sizes = {row["id"]: (row["units"], row["calls"], row["seconds"]) for row in rows}
    assert sizes == {
        "shown": (None, 0, 0.0),
        "sft": (None, 0, None),
        "given": (None, 0, 0.0),
        "opinion": (None, None, None),
        "pair": (None, 0, 0.0),
        "dpo": (None, 0, None),
        "drawn": (14, 14, 4.2),
    }
    text = dry_run(path)
    assert "at most 14 model calls and those about loaded records" in text
    assert "unknown time in 3 steps: how many records a loaded file has is known when" in text
    assert "no rate is known" not in text
    done = CliRunner().invoke(cli, ["launch", str(path), "--to", "slurm", "--dry-run"])
    assert "the time of 3 steps is not known: give --hours, since" in str(done.exception)


def test_the_cost_of_a_step_is_that_of_its_judges_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "".join(f'{{"prompt": "Question {n}?"}}\n' for n in range(9))
    (tmp_path / "prompts.jsonl").write_text(lines)
    path = tmp_path / "experiment.yaml"

    def cost_of(rewards: str) -> float:
        server = "engine: openai, base_url: 'http://127.0.0.1:1/v1', path"
        path.write_text(
            "name: cost\nconstitution: constitutions/concise_helper.yaml\n"
            "models:\n  policy: {path: org/absent}\n"
            f"  one: {{{server}: a, price: {{input: 1, output: 2}}}}\n"
            f"  two: {{{server}: b, price: {{input: 30, output: 60}}}}\n"
            "prompts: {path: prompts.jsonl, holdout: 2}\n"
            "judges: [{id: a, kind: rating, by: one}, {id: b, kind: rating, by: two}]\n"
            f"steps: [train: {{method: grpo, rewards: {rewards}, n: 2, batch_size: 2}}]\n"
        )
        (step,) = json.loads(dry_run(path, "--json"))["steps"]
        return float(step["cost"])

    one, two = cost_of("{a: 1}"), cost_of("{b: 1}")
    assert two == pytest.approx(30 * one) and one > 0
    assert cost_of("{a: 1, b: 1}") == pytest.approx(one + two)


def test_what_a_run_has_spent_is_not_left_of_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{n}?"}}\n' for n in range(9)))
    path = tmp_path / "experiment.yaml"
    server = "engine: openai, base_url: 'http://127.0.0.1:1/v1', path: m"
    path.write_text(
        "name: spent\nbudget: 2\nprompts: {path: prompts.jsonl, holdout: 2}\n"
        f"models: {{policy: {{{server}, price: {{input: 0, output: 1000}}}}}}\n"
        "steps: [sample: {n: 1, max_new_tokens: 100}]\n"
    )
    # Seven answers of 100 tokens are 0.7 at most.
    assert "2 of the budget of 2 are left: enough" in dry_run(path)
    (tmp_path / "nowhere").mkdir()
    run_account(tmp_path / "nowhere").spend("m", 1.5)
    assert "0.5 of the budget of 2 are left: NOT ENOUGH" in dry_run(path)


def test_a_drifting_judge_is_asked_about_the_first_of_m0s_answers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 held-out prompts 16: a call for each answer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{n}?"}}\n' for n in range(24)))
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "name: drift\nprompts: {path: prompts.jsonl, holdout: 20}\n"
        "constitution: constitutions/concise_helper.yaml\n"
        "models: {policy: {path: builtin/smollm2-135m-instruct}}\n"
        "steps:\n- sample: {n: 2}\n"
        "- judge: {id: own, kind: rating, by: policy, principles: [useful]}\n"
        "- pair: {}\n- train: {}\n- evaluate: {}\n"
    )
    steps = json.loads(dry_run(path, "--json"))["steps"]
    calls = {row["id"]: row["calls"] for row in steps if row["kind"] == "judge"}
    assert calls == {"own": 8, "evaluate.own": 20, "evaluate.drift.own": 16}
