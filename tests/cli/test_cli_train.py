"""`rlaif train METHOD`, `rlaif distill` and `rlaif score` on files."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.core.errors import RlaifError


@pytest.mark.parametrize(
    "method", ["sft", "dpo", "simpo", "kto", "ppo", "grpo", "online_dpo", "on_policy_distillation"]
)
def test_train_lists_the_keys_of_each_method(method):
    from rlaif.config.methods import METHODS

    result = CliRunner().invoke(cli, ["train", method, "--help"])
    assert result.exit_code == 0, result.output
    text = result.output
    for key in ("--learning-rate", "--epochs", "--micro-batch-tokens", "[default: "):
        assert key in text
    own = set(METHODS[method].model_fields) - {"reference", "rewards", "method", "from_"}
    for key in own & {"beta", "gamma", "clip", "kl_target", "desirable_weight", "loss"}:
        assert "--" + key.replace("_", "-") in text
    assert ("--reward " in text) == (method in ("ppo", "grpo", "online_dpo"))
    assert ("--teacher " in text) == (method == "on_policy_distillation")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train", "dop"], "No method 'dop'; did you mean 'dpo'?"),
        (["train", "qqqq"], "No method 'qqqq'; known here: apo_zero, cispo, dpo, grpo, gspo"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(words, hint):
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert hint in result.stderr


def test_what_fails_before_it_makes_anything_leaves_its_folder_to_the_next(tmp_path, tiny_model):
    out, torn, folder = tmp_path / "out", tmp_path / "torn.jsonl", tmp_path / "folder"
    torn.write_text('{"a": 1')
    folder.mkdir()
    for method, data, why in (
        ("dpo", torn, f"{torn}:1: not valid JSON"),
        ("dpo", folder, f"{folder}/preferences.jsonl: no such file"),
        ("kto", folder, f"{folder}/preferences.jsonl: no such file"),
    ):
        words = ["train", method, data, "--out", out, "--model", tiny_model, "--quiet"]
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert isinstance(result.exception, RlaifError)
        assert str(result.exception).startswith(why)


def test_train_and_distill_on_a_file_and_score_with_what_came_out(tmp_path, tiny_model):
    rows = [
        {
            "chosen": [
                {"role": "user", "content": f"Question {i}?"},
                {"role": "assistant", "content": f"yes {i}"},
            ],
            "rejected": [
                {"role": "user", "content": f"Question {i}?"},
                {"role": "assistant", "content": "no"},
            ],
        }
        for i in range(4)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(4)))

    def ran(*arguments):
        result = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout.strip().splitlines()[-1])

    common = ["--quiet", "--json", "--batch-size", 2, "--precision", "fp32", "--model", tiny_model]
    simpo = ran("train", "simpo", data, "--out", tmp_path / "simpo", "--gamma", 0.5, *common)
    assert simpo["counts"]["steps"] == 2
    assert (tmp_path / "simpo/model/model.safetensors").is_file()
    sets = ["--set", "batch_size=2", "--set", "precision=fp32", "--set", "learning_rate=1e-3"]
    where = ["--quiet", "--json", "--model", tiny_model]
    ran("distill", data, "--out", tmp_path / "rm", *sets, *where)
    ran("sample", prompts, "--out", tmp_path / "answers", "--set", "max_new_tokens=4", *where)
    scored = ran(
        *["score", tmp_path / "answers", "--model", tmp_path / "rm/model"],
        *["--out", tmp_path / "scores", "--quiet", "--json"],
    )
    assert scored["counts"]["with_value"] == scored["counts"]["judgements"] == 16
    sizes = ["--rollouts", 1, "--n", 2, "--max-new-tokens", 4, *common]
    reward = ["--reward", tmp_path / "rm/model"]
    grpo = ran("train", "grpo", prompts, "--out", tmp_path / "grpo", *reward, *sizes)
    assert grpo["counts"]["steps"] == 1
    rows = (tmp_path / "grpo/judgements.jsonl").read_text().splitlines()
    raw = [row["raw_value"] for row in map(json.loads, rows)]
    assert None not in raw
    # The reward as the model gives it, and not its sigmoid.
    (value,) = (v for k, v in grpo["summary"].items() if k.startswith("first_value/reward"))
    assert value == pytest.approx(sum(raw) / len(raw)) == grpo["summary"]["first_reward"]
    refused = ["train", "grpo", prompts, "--out", tmp_path / "no", "--set"]
    for terms, said in (
        ("[{judge: rules, value: raw}]", "judge 'rules' gives scores on [0, 1] and no raw value"),
        ("[{judge: rulse}]", "'rulse' is no judge; did you mean 'rules'?"),
        ("[{judge: rules, when: {tags: [x]}}]", "is for none of the"),
    ):
        words = [*refused, f"rewards={terms}", "--model", tiny_model, "--quiet"]
        words += ["--constitution", "constitutions/concise_helper.yaml"]
        result = CliRunner().invoke(cli, [str(w) for w in words])
        assert isinstance(result.exception, RlaifError) and said in str(result.exception)


def test_what_is_set_by_hand_wins_over_the_flags(tmp_path, tiny_model):
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    words = ["train", "dpo", data, "--out", tmp_path / "out", "--model", tiny_model, "--quiet"]
    words += ["--lora", "--set", "lora.r=3", "--precision", "fp32"]
    result = CliRunner().invoke(cli, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    request = json.loads((tmp_path / "out/request.json").read_text())
    assert request["step"]["lora"]["r"] == 3


def test_kto_and_sft_on_trls_unpaired_rows(tmp_path, tiny_model):
    rows = [
        {"prompt": f"Question {i}?", "completion": f"Answer {i}.", "label": i % 2 == 0}
        for i in range(4)
    ]
    data, good = tmp_path / "unpaired.jsonl", tmp_path / "good.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good.write_text("".join(json.dumps(r) + "\n" for r in rows if r.pop("label")))

    def ran(*arguments):
        common = ["--quiet", "--json", "--batch-size", 2, "--precision", "fp32"]
        words = ["train", *arguments, *common, "--model", tiny_model]
        return CliRunner().invoke(cli, [str(word) for word in words])

    for method, path, steps in (("kto", data, 2), ("sft", good, 1)):
        result = ran(method, path, "--out", tmp_path / method)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout.strip().splitlines()[-1])["counts"]["steps"] == steps
        assert (tmp_path / method / "model/model.safetensors").is_file()
        assert "completion" in CliRunner().invoke(cli, ["train", method, "--help"]).output
    refused = ran("dpo", data, "--out", tmp_path / "dpo")
    assert isinstance(refused.exception, RlaifError)
    assert "4 of 4 rows are answers that stand alone" in str(refused.exception)


def test_a_student_learns_from_its_teacher_on_a_file_of_prompts(tmp_path, tiny_model):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text("".join(f'{{"prompt": "Question {n}?"}}\n' for n in range(2)))
    words = [
        *("train", "on_policy_distillation", prompts, "--model", tiny_model, "--out", out),
        *("--teacher", tiny_model, "--rollouts", 1, "--n", 2, "--batch-size", 2, "--json"),
        *("--max-new-tokens", 4, "--precision", "fp32", "--quiet"),
    ]
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)["summary"]
    # The teacher is the model itself.
    assert summary["last_kl_teacher"] == summary["last_loss"] == 0.0
    assert len((out / "completions.jsonl").read_text().splitlines()) == 4
