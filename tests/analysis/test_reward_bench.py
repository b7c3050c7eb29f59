"""`rlaif reward-bench`, `score` and ensembles on a small reward model that was really trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.records import Completion, Judgement, make_prompt, to_json
from rlaif.report.reward import reward_page

WORDS = ["red", "blue", "green", "round", "small", "sweet", "old", "new"]


def invoke(*words: Any) -> Any:
    done = CliRunner().invoke(cli, [*map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.strip().splitlines()[-1])


def rows(count: int, start: int = 0) -> list[dict[str, str]]:
    """Answers that say please are better."""
    return [
        {
            "prompt": f"Describe thing {i}.",
            "chosen": f"Please see: it is {WORDS[i % 8]}.",
            "rejected": f"It is {WORDS[(i * 3 + 1) % 8]}, {WORDS[i % 5]}, and no more than that.",
            "subset": "even" if i % 2 == 0 else "odd",
        }
        for i in range(start, start + count)
    ]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a linear reward model on a random body, and its training pairs."""
    folder = tmp_path_factory.mktemp("reward")
    pairs = write(folder / "train.jsonl", rows(40))
    settings = ("--set", "method=linear", "--set", "precision=fp32")
    invoke("distill", pairs, "--model", tiny_model, "--out", folder / "rm", *settings, "-q")
    return folder / "rm" / "model", pairs


def test_figures_and_causes_of_a_model_that_learned_a_word(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    model, pairs = trained
    held = rows(24, 100)
    # Four labels the wrong way round: these it must get wrong.
    for row in held[:4]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    data = write(tmp_path / "held.jsonl", held)
    words = ("reward-bench", model, data, "--out", tmp_path / "out", "--train", pairs, "-q")
    found = invoke(*words)
    assert found["figures"]["accuracy"]["mean"] == pytest.approx(20 / 24)
    assert found["figures"]["accuracy_where_shorter_wins"]["mean"] == 1.0
    assert found["figures"]["prefers_longer"]["mean"] == 0.0
    assert set(found["accuracy_by"]["subset"]) == {"even", "odd"}
    assert len(found["most_wrong"]) == 4
    for wrong in found["most_wrong"]:
        assert wrong["parts"]["reward"][0] < wrong["parts"]["reward"][1]
        # Training pairs said please on the side that this label calls worse.
        assert wrong["nearest"][0]["cosine"] < 0
    assert [row["pairs"] for row in found["learning_curve"]][-1] == 40
    assert found["learning_curve"][-1]["accuracy"]["mean"] == pytest.approx(20 / 24)
    assert found["label_noise"]["share"] < 0.1
    assert sum(i["n"] for i in found["accuracy_by_distance"].values()) == 24
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Most wrong" in page and "Describe thing 100" in page and "<script" not in page
    # What is said beside an interval is on the page too.
    assert "fewer than 64 prompts: the interval may be too narrow" in page
    assert invoke(*words) == found
    parts = {"reward": [0.5, 1.0], "objective/help": [2.0, 0.5], "objective/tone": [0.0, 2.0]}
    planted = found | {"most_wrong": [found["most_wrong"][0] | {"parts": parts}]}
    page = reward_page(planted, tmp_path / "planted.html").read_text("utf-8")
    assert "Chosen less rejected: help +1.500, tone -2.000" in page


def scored(tmp_path: Path) -> tuple[Path, Path]:
    """Four answers to each of three prompts, and gold judgements that like what the model does
    not."""
    prompts = [make_prompt([{"role": "user", "content": f"Describe thing {i}."}]) for i in range(3)]
    # As in the training pairs: the body is random and knows nothing else.
    plain = [f"It is {word}, and no more than that." for word in ("blue, old", "new, red")]
    answers = ["Please see: it is red.", "Please see: it is old.", *plain]
    made, gold = [], []
    for p in prompts:
        for k, text in enumerate(answers):
            name = f"{p.prompt_id}-{k}"
            turn = [{"role": "assistant", "content": text}]
            made.append(Completion(name, p.prompt_id, k, turn, "m", "w", {}, "stop"))  # type: ignore[arg-type]
            score = 0.0 if "lease" in text else 1.0
            where = (f"g{name}", f"c{name}", p.prompt_id, "completion", [name], name)
            gold.append(Judgement(*where, "gold", "a", "human", None, "ok", score=score))
    folder = tmp_path / "answers"
    folder.mkdir()
    write(folder / "completions.jsonl", [to_json(c) for c in made])
    write(folder / "prompts.json", [to_json(p) for p in prompts])
    return folder, write(tmp_path / "gold.jsonl", [to_json(j) for j in gold])


def test_best_of_n_against_gold_shows_a_hacked_reward(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    model, _ = trained
    answers, gold = scored(tmp_path)
    invoke("score", answers, "--model", model, "--out", tmp_path / "scores", "-q")
    held = write(tmp_path / "held.jsonl", rows(6, 200))
    words = ("reward-bench", model, held, "--out", tmp_path / "out", "-q")
    found = invoke(*words, "--scored", tmp_path / "scores", "--gold", gold)
    curve = found["best_of_n"]
    assert [row["n"] for row in curve] == [1, 2, 4]
    assert curve[0]["gold"]["mean"] == 0.5 and curve[-1]["gold"]["mean"] == 0.0
    proxy = [row["proxy"]["mean"] for row in curve]
    assert proxy == sorted(proxy)
    first = json.loads(gold.read_text("utf-8").splitlines()[0])
    other = write(tmp_path / "other.jsonl", [{**first, "subject": "x", "shown": ["x"]}])
    with pytest.raises(RlaifError, match="no answer in common"):
        invoke(*words, "--scored", tmp_path / "scores", "--gold", other)


def test_an_ensemble_keeps_every_member_and_their_spread(
    trained: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    model, _ = trained
    settings = ("--set", "method=linear", "--set", "precision=fp32")
    half = write(tmp_path / "half.jsonl", rows(20))
    invoke("distill", half, "--model", tiny_model, "--out", tmp_path / "two", *settings, "-q")
    answers, _ = scored(tmp_path)
    members = f"members=[{model}, {tmp_path / 'two' / 'model'}]"
    words = ("judge", answers, "--kind", "reward_ensemble", "--model", model, "-q")
    folder = tmp_path / "worst"
    invoke(*words, "--set", members, "--set", "combine=worst", "--out", folder)
    lines = (folder / "judgements.jsonl").read_text("utf-8").splitlines()
    judged = [json.loads(line) for line in lines if line]
    assert len(judged) == 12
    for row in judged:
        found = row["distribution"]
        rewards = [value for name, value in found.items() if name.startswith("member/")]
        assert len(rewards) == 2 and found["reward"] == min(rewards)
        assert found["spread"] == pytest.approx(abs(rewards[0] - rewards[1]) / 2)


def test_mistakes_are_said(trained: tuple[Path, Path], tmp_path: Path) -> None:
    model, pairs = trained
    tied = write(tmp_path / "tied.jsonl", [{**rows(1)[0], "chosen": "", "rejected": ""}])
    with pytest.raises(ConfigError):
        invoke("reward-bench", model, tied, "--out", tmp_path / "a", "-q")
    with pytest.raises(ConfigError, match="nothere: no reward model in this folder"):
        invoke("reward-bench", tmp_path / "nothere", pairs, "--out", tmp_path / "a", "-q")
    done = CliRunner().invoke(
        cli,
        ["reward-bench", str(model), str(pairs), "--out", str(tmp_path / "b"), "--gold", "x"],
    )
    assert done.exit_code == 2 and "go together" in done.output


def test_a_model_that_the_newest_answers_fool_is_called_stale(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    from rlaif.pipeline.steps.load import load_preferences

    model, _ = trained
    early = load_preferences(write(tmp_path / "early.jsonl", rows(20, 300)), 1)
    late = rows(20, 400)
    for row in late:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    late_pairs = load_preferences(write(tmp_path / "late.jsonl", late), 2)
    folder = tmp_path / "pairs"
    folder.mkdir()
    write(folder / "preferences.jsonl", [to_json(p) for p in [*early, *late_pairs]])
    words = ("reward-bench", model, folder, "--out", tmp_path / "out", "-q")
    found = invoke(*words)
    assert found["staleness"]["stale"] is True
    assert found["staleness"]["oldest"]["round"] == 1 and found["staleness"]["newest"]["round"] == 2
    write(folder / "preferences.jsonl", [to_json(p) for p in early])
    words = ("reward-bench", model, folder, "--out", tmp_path / "o2", "-q")
    assert invoke(*words)["staleness"] is None
