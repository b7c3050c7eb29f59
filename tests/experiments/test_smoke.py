"""Every experiment that is a published system, run at a tiny size from its own file: what it makes,
from what, and the numbers that only its own method has.

The model is random: nothing here says that a method helps.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.errors import RlaifError
from rlaif.core.store import Store
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.manifest import read_manifest
from tests.experiments.shrinking import shrink

Run = Callable[..., "Trace"]
VARYING = "judges.ratings={kind: rules, principles: [brief, plain_words]}"


class Trace:
    """What a finished run says of its steps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps = [s for s in read_manifest(root)["steps"] if "." not in s["id"]]

    def trained(self) -> list[tuple[str, str, str]]:
        """(arms, start, made) of every training, in the order of running."""
        return [
            (" ".join(s["arms"]), s["models"]["start"][0], s["models"]["made"][0])
            for s in self.steps
            if "start" in s["models"]
        ]

    def models(self, name: str, place: int = 0) -> dict[str, str]:
        """The labels of a step's models by role."""
        return {role: label for role, (label, _) in self._step(name, place)["models"].items()}

    def done(self, name: str, place: int = 0) -> dict[str, Any]:
        """What a step's `done.json` says."""
        return Store(self.root).step(self._step(name, place)["hash"]).done() or {}

    def counts(self, name: str) -> list[dict[str, int]]:
        """The counts of each run of a step."""
        places = range(sum(s["id"] == name for s in self.steps))
        return [self.done(name, place)["counts"] for place in places]

    def log(self, name: str, place: int = 0) -> list[dict[str, Any]]:
        """The rows of a training's log."""
        path = Store(self.root).step(self._step(name, place)["hash"]).path
        return [json.loads(row) for row in (path / "work" / "metrics.jsonl").open()]

    def rows(self, name: str, kind: str, place: int = 0) -> list[dict[str, Any]]:
        """The records of a step."""
        return self.rows_of(self._step(name, place), kind)

    def rows_of(self, step: dict[str, Any], kind: str) -> list[dict[str, Any]]:
        """The records of a step of the manifest."""
        return list(Store(self.root).step(step["hash"]).rows(kind))

    def _step(self, name: str, place: int) -> dict[str, Any]:
        found: dict[str, Any] = [s for s in self.steps if s["id"] == name][place]
        return found


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Run:
    """`run(NAME, SETTING...)`: a shipped experiment at a tiny size."""

    def run_shrunk(name: str, *settings: str) -> Trace:
        path, tiny = shrink(name, tiny_model, tmp_path)
        run_experiment(path, tmp_path / "run", [*tiny, *settings])
        return Trace(tmp_path / "run")

    return run_shrunk


def test_instructgpt(run: Run) -> None:
    found = run("instructgpt")
    assert [row[1:] for row in found.trained()] == [
        ("M0", "sft"),
        ("sft", "rm1"),
        ("sft", "ppo_ptx"),
    ]
    ppo = found.models("ppo_ptx")
    assert (ppo["reference"], ppo["judge/reward"]) == ("sft", "rm1")
    # Raw text is learned beside the reward.
    assert found.done("ppo_ptx")["counts"]["texts"] > 0


def test_gpt4_rbrm(run: Run) -> None:
    found = run("gpt4_rbrm")
    assert [row[2] for row in found.trained()] == ["rm1", "M1"]
    # Tagged prompts alone have the rubric's reward.
    assert all("counts/refusals" in row for row in found.log("train"))
    assert all(row["counts/reward"] == 1 for row in found.log("train"))


def test_gemini_refresh(run: Run) -> None:
    found = run("gemini_refresh")
    rms = [row for row in found.trained() if row[2].startswith("rm")]
    assert {made for _, _, made in rms} == {"rm1", "rm2"}
    assert {arms for arms, _, made in rms if made == "rm2"} == {"refreshed", "stale"}


def test_internlm2_cool(run: Run) -> None:
    found = run("internlm2_cool", "steps.ppo.critic_warmup=1")
    assert [row[1:] for row in found.trained()] == [
        ("M0", "rm@1"),
        ("M0", "ppo@1"),
        ("M0", "rm@2"),
        ("ppo@1", "ppo@2"),
    ]
    # The fast path joins in round 2.
    assert [len(s["inputs"]) for s in found.steps if s["id"] == "rm"] == [2, 5]
    (bench,) = [s for s in found.steps if s["id"] == "bench"]
    assert {label for label, _ in bench["models"].values()} == {"rm@2"}


def test_qwen2(run: Run) -> None:
    found = run("qwen2")
    assert [row[1:] for row in found.trained()] == [
        ("M0", "rm"),
        ("M0", "offline"),
        ("offline", "online@1"),
        ("merged@1", "online@2"),
    ]
    merged = found.models("merged", 1)
    assert (merged["member/1"], merged["member/2"]) == ("online@2", "merged@1")


def test_zephyr_and_orpo(run: Run) -> None:
    found = run("zephyr_orpo")
    assert [(arms, start) for arms, start, _ in found.trained()] == [
        ("zephyr", "M0"),
        ("zephyr", "sft"),
        ("orpo", "M0"),
    ]
    # The pairs are shared, and only DPO has a reference.
    assert sum(s["id"] == "pair" for s in found.steps) == 1
    assert found.models("align", 0)["reference"] == "sft"
    assert "reference" not in found.models("align", 1)


def test_deepseek_grpo(run: Run) -> None:
    found = run("deepseek_grpo")
    log = found.log("train")
    assert all(0 <= row["flat_groups"] <= 1 for row in log)
    assert all({"value/right", "value/brief"} <= row.keys() for row in log)


def test_ppo_with_and_without_a_critic(run: Run) -> None:
    found = run("ppo_actor_critic")
    assert [arms for arms, _, _ in found.trained()] == ["head", "separate", "no_critic"]
    explained = ["explained_variance" in found.log("train", place)[-1] for place in range(3)]
    assert explained == [True, True, False]


def test_three_arms_of_rlaif(run: Run) -> None:
    found = run("rlaif_three_arms")
    assert sorted(arms for arms, _, _ in found.trained()) == [
        "direct",
        "distilled",
        "distilled",
        "dpo",
    ]
    # Two arms share answers and labels; the third sees only fresh ones.
    assert [s["arms"] for s in found.steps if s["id"] == "pair"] == [["distilled", "dpo"]]
    rewards = [
        {role for role in s["models"] if role.startswith("judge/")}
        for s in found.steps
        if s["id"] == "rl"
    ]
    assert rewards.count({"judge/reward"}) == 1


def test_magpie(run: Run) -> None:
    found = run("magpie")
    # Each arm's answers are to prompts of its own set.
    written = (found.root / "generated" / "own" / "prompts.jsonl").read_text("utf-8").splitlines()
    own = {json.loads(line)["prompt_id"] for line in written}
    magpie, people = (
        {row["prompt_id"] for row in found.rows("answers", "completions", place)}
        for place in (0, 1)
    )
    assert magpie and magpie <= own and not people & own
    # One answer of each prompt is learned from, the best by the programs.
    assert found.counts("good")[0]["completions"] == len(magpie)


def test_self_rewarding(run: Run) -> None:
    found = run("self_rewarding")
    assert [row[1:] for row in found.trained()] == [
        ("M0", "sft"),
        ("sft", "dpo@1"),
        ("dpo@1", "dpo@2"),
    ]
    assert [found.models("self", place)["by"] for place in (0, 1)] == ["sft", "dpo@1"]


def test_meta_rewarding(run: Run) -> None:
    found = run("meta_rewarding")
    assert [row[1:] for row in found.trained()] == [
        ("M0", "sft"),
        ("sft", "dpo@1"),
        ("dpo@1", "dpo@2"),
    ]
    scores = {row["subject"]: row["score"] for row in found.rows("self", "judgements")}
    answers = {row["completion_id"]: row for row in found.rows("sample", "completions")}
    lengths = {name: len(row["messages"][-1]["content"]) for name, row in answers.items()}
    pairs = found.rows("actor", "preferences")
    assert pairs
    for pair in pairs:
        mine = [name for name, row in answers.items() if row["prompt_id"] == pair["prompt_id"]]
        low, high = min(map(scores.__getitem__, mine)), max(map(scores.__getitem__, mine))
        # 0.32 of the range from either end; among these the shortest, and the longest.
        good = [lengths[n] for n in mine if scores[n] >= high - 0.32 * (high - low)]
        bad = [lengths[n] for n in mine if scores[n] <= low + 0.32 * (high - low)]
        assert lengths[pair["chosen_id"]] == min(good)
        assert lengths[pair["rejected_id"]] == max(bad)


def test_cream(run: Run) -> None:
    # With the rate of the file the judge of a random model would rank every answer as before.
    found = run("cream", "steps.train.learning_rate=0.01")
    last = [s for s in found.steps if s["id"] == "pair" and s["round"] == 3]
    probs = {
        " ".join(s["arms"]): {row["prob"] for row in found.rows_of(s, "preferences")} for s in last
    }
    assert probs["plain"] == {1.0} and probs["cream"] != {1.0}
    assert {s["round"] for s in found.steps if s["id"] == "before"} == {1, 2, 3}


def test_armorm(run: Run) -> None:
    # What a random model writes never ends, so not every rule would have something to teach.
    found = run("armorm", "steps.rated.prompts=12", VARYING)
    assert [row[1:] for row in found.trained()] == [
        ("M0", "body1"),
        ("body1", "armo1"),
        ("M0", "M1"),
    ]
    parts = found.rows("reward", "judgements")[0]["distribution"]
    assert len(parts) > 2


def test_qrm(run: Run) -> None:
    # Of so few answers the quantiles are the same for all of a prompt, and nothing is left to pair.
    untrained = ("steps.chosen=null", "steps.train=null")
    found = run("qrm", "steps.rated.prompts=12", VARYING, *untrained)
    assert sum(s["id"] == "body" for s in found.steps) == 1
    assert sum(s["id"] == "quantiles" for s in found.steps) == 2
    # Averse to risk, an answer is worth the mean of its lowest quantiles.
    by_arm = [
        {row["subject"]: row["raw_value"] for row in found.rows("reward", "judgements", place)}
        for place in (0, 1)
    ]
    assert by_arm[0].keys() == by_arm[1].keys() and by_arm[0] != by_arm[1]
    assert all(by_arm[1][name] <= value + 1e-6 for name, value in by_arm[0].items())


def test_reward_ensembles(run: Run) -> None:
    found = run("reward_ensembles", "steps.rated.prompts=12")
    rewards = [found.models("reward", place) for place in range(3)]
    asked = [{label for role, label in models.items()} for models in rewards]
    assert asked == [{"rm_a1"}, {"rm_a1", "rm_b1", "rm_c1"}, {"warm"}]
    # Each member begins from one probe, and the worst of them is no better than any.
    starts = {made: start for _, start, made in found.trained() if made.startswith("rm_")}
    assert starts == dict.fromkeys(("rm_a1", "rm_b1", "rm_c1"), "probe1")
    single, worst = (
        {row["subject"]: row["raw_value"] for row in found.rows("reward", "judgements", place)}
        for place in (0, 1)
    )
    assert single and all(worst[name] <= value + 1e-6 for name, value in single.items())


def test_judge_training(run: Run) -> None:
    found = run("judge_training", "prompts.holdout=8", "steps.j1.rollouts=2")
    assert [row[1:] for row in found.trained()] == [("M0", "cold"), ("cold", "j1")]
    # Both orders of every pair are asked, and rewarded together.
    answers = found.rows("j1", "completions")
    assert len({row["prompt_id"] for row in answers}) % 2 == 0
    (bench,) = [s for s in found.steps if s["id"] == "bench"]
    assert {label for label, _ in bench["models"].values()} == {"M0", "cold", "j1"}


def test_character_training(run: Run) -> None:
    found = run("character_training", "steps.in_character.prompts=4", "steps.plain.prompts=4")
    assert [row[1:] for row in found.trained()] == [("M0", "dpo"), ("dpo", "final")]
    chosen = {row["completion_id"] for row in found.rows("in_character", "completions")}
    pairs = found.rows("pair", "preferences")
    assert pairs and {row["chosen_id"] for row in pairs} <= chosen
    # What the teacher was told is in no prompt that is trained on.
    assert not any("curious about people" in json.dumps(row["prompt"]) for row in pairs)


def test_deliberative_alignment(run: Run) -> None:
    found = run("deliberative_alignment", "steps.good.filters=[{kind: best, by: follows, k: 2}]")
    assert [row[1:] for row in found.trained()] == [("M0", "sft"), ("sft", "rl")]
    assert found.counts("good")[0]["completions"] == 8
    assert found.models("rl")["reference"] == "sft"


LISTS = """\
rules:
  - match: "Checklist:"
    replies: ["- [essential] The answer is short.\\n- [pitfall] The answer does not ramble."]
  - match: "."
    labels: {"yes": 0.6, "no": 0.3}
"""


def test_rubrics_as_rewards(run: Run, tmp_path: Path) -> None:
    (tmp_path / "lists.yaml").write_text(LISTS)
    writer = f"{{path: none, engine: fake, script: {tmp_path / 'lists.yaml'}}}"
    found = run("rubrics_as_rewards", f"models.writer={writer}", "judges.rubric.by=writer")
    judged = [row for row in found.rows("train", "judgements") if row["judge"] == "rubric"]
    # One list for each prompt, each item decided alone, and the weighted share is the reward.
    assert judged and [row["score"] for row in judged] == pytest.approx([2 / 3] * len(judged))
    assert {tuple(row["distribution"]) for row in judged} == {
        ("The answer is short.", "The answer does not ramble.")
    }
    assert found.log("train")[0]["value/rubric"] == pytest.approx(2 / 3)


def test_a_checklist_that_cannot_be_read_is_no_reward(run: Run, tmp_path: Path) -> None:
    # A random model writes no list that could be read: every reward is missing, and none is zero.
    with pytest.raises(RlaifError, match="rollout 1: no answer has a reward"):
        run("rubrics_as_rewards")
    rows = [row for f in (tmp_path / "run").rglob("judgements*.jsonl") for row in f.open()]
    asked = [json.loads(row) for row in rows]
    assert {row["score"] for row in asked if row["judge"] == "rubric"} == {None}
