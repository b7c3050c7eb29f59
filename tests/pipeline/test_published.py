"""Published methods as experiments, run at a tiny size: what each makes, from what, and how often.

The model is random and its answers are noise: what is held is the trace of each method, not that it
helps.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.core.records import Judgement, Preference
from rlaif.core.store import Store
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.forecast import forecast
from rlaif.pipeline.manifest import read_manifest, read_rounds
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.run_rows import held_out_answers
from rlaif.pipeline.runs import Run
from tests.pipeline.test_kills import killed_in, rows, weights
from tests.servers.scripted import ScriptedServer, seeded_words

SAMPLE = {"n": 2, "prompts": 2, "max_new_tokens": 5}
TRAIN = {"learning_rate": 1e-3, "batch_size": 2, "precision": "fp32"}
EVALUATE = {"judges": ["gold"], "max_new_tokens": 5}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, small_model: Path) -> Write:
    """`write(KEY=VALUE)`: an experiment of the tiny model, beside all that the methods read."""
    files = {
        "prompts.jsonl": [{"prompt": f"Question number {n}?"} for n in range(8)],
        "ift.jsonl": [{"prompt": f"How is {n}?", "completion": f"It is {n}."} for n in range(4)],
        "web.jsonl": [{"text": f"Once upon a time there were {n} plums. " * 3} for n in range(4)],
        "people.jsonl": [
            {"prompt": f"Which {n}?", "chosen": f"The {n}th.", "rejected": "No."} for n in range(4)
        ],
    }
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    def write_file(**keys: Any) -> Path:
        whole = {
            "name": "published",
            "models": {"policy": {"path": str(small_model), "dtype": "float32"}},
            "constitution": "constitutions/concise_helper.yaml",
            "prompts": {"path": "prompts.jsonl", "holdout": 2},
            "judges": [{"id": "gold", "kind": "rules"}],
        }
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(whole | keys, sort_keys=False))
        return path

    return write_file


def trained(run: Path) -> list[tuple[str, str, str]]:
    """(id, start, made) of each training, by label, in the order of running."""
    steps = [s for s in read_manifest(run)["steps"] if "start" in s["models"]]
    return [(s["id"], s["models"]["start"][0], s["models"]["made"][0]) for s in steps]


def kinds(run: Path) -> Counter[str]:
    return Counter(step["kind"] for step in read_manifest(run)["steps"])


def evaluated(run: Path) -> list[tuple[str, int, str, int, str, str, list[str]]]:
    return [
        (r.arm, r.seed, r.stage, r.number or 0, r.policy_in, r.policy_out, r.against)
        for r in read_rounds(run)
    ]


def test_self_rewarding_with_an_sft_first(write: Write, tmp_path: Path) -> None:
    path = write(
        judges=[
            {"id": "self", "kind": "yes_no", "by": "policy"},
            {"id": "gold", "kind": "rules"},
        ],
        stages=[
            {
                "id": "seed",
                "steps": [
                    {"load": {"id": "ift", "type": "demonstrations", "path": "ift.jsonl"}},
                    {"train": {"id": "sft", "method": "sft", "uses": ["ift"], **TRAIN}},
                    {"evaluate": EVALUATE},
                ],
            },
            {
                "id": "iterate",
                "rounds": 2,
                "steps": [
                    {"sample": {**SAMPLE, "n": 3}},
                    {"judge": "self"},
                    {"pair": {}},
                    {"train": {"id": "dpo", **TRAIN}},
                    {
                        "evaluate": {
                            **EVALUATE,
                            "judges": ["gold", "self"],
                            "against": ["sft", "previous"],
                            "judged_by": "sft",
                        }
                    },
                ],
            },
        ],
    )
    run_experiment(path, tmp_path / "run")
    run = tmp_path / "run"
    assert trained(run) == [
        ("sft", "M0", "sft"),
        ("dpo", "sft", "dpo@1"),
        ("dpo", "dpo@1", "dpo@2"),
    ]
    assert evaluated(run) == [
        ("main", 0, "seed", 0, "M0", "M0", []),
        ("main", 0, "iterate", 0, "M0", "M0", []),
        ("main", 0, "seed", 1, "M0", "sft", ["initial", "previous"]),
        ("main", 0, "iterate", 1, "sft", "dpo@1", ["initial", "sft", "previous"]),
        ("main", 0, "iterate", 2, "dpo@1", "dpo@2", ["initial", "sft", "previous"]),
    ]
    manifest = read_manifest(run)
    judged = [s for s in manifest["steps"] if s["kind"] == "judge" and "self" in s["id"]]
    by = [s["models"]["by"][0] for s in judged if s["id"] == "self"]
    assert by == ["sft", "dpo@1"]
    # Held-out answers are judged by the frozen one; the moving judge rescores M0's for its drift.
    frozen = {s["models"]["by"][0] for s in judged if s["id"] == "evaluate-iterate.self"}
    drift = [s["models"]["by"][0] for s in judged if s["id"] == "evaluate-iterate.drift.self"]
    assert (frozen, drift) == ({"sft"}, ["dpo@1", "dpo@2"])
    labels = [(row["round"], row["label"]) for row in Run(run).round_rows()]
    assert labels == [(0, "M0"), (1, "sft"), (2, "dpo@1"), (3, "dpo@2")]
    whole = Run(run)
    shown = [row for row, _ in held_out_answers(manifest, whole.store, whole.point_of)]
    # Both evaluations answered with M0, and with the same answers.
    assert len({row["completion_id"] for row in shown}) == len(shown)
    assert {row["model"] for row in shown} == {"M0", "sft", "dpo@1", "dpo@2"}
    said = [w for w in read_rounds(run)[-1].metrics["words"] if "as judge 'self' scored" in w]
    assert said[0].startswith("The frozen model sft as judge 'self' scored the answers")


def test_three_arms_of_rlaif(write: Write, tmp_path: Path, model_folder: Path) -> None:
    reward = {"judge": "reward", "value": "raw", "normalise": "reference"}
    path = write(
        judges=[
            {"id": "ai", "kind": "pairwise", "by": "previous"},
            {"id": "direct", "kind": "direct", "by": "initial"},
            {"id": "reward", "kind": "reward_model", "by": "rm"},
            {"id": "gold", "kind": "rules"},
        ],
        arms={
            "distilled": {},
            "one_order": {"set": {"judges.ai.order": "fixed"}},
            "direct": {"set": {"steps.rl.rewards": [{"judge": "direct"}]}},
        },
        stages=[
            {
                "id": "distil",
                "arms": ["distilled", "one_order"],
                "steps": [
                    {"sample": SAMPLE},
                    {"judge": "ai"},
                    {"pair": {}},
                    {"distill": {"id": "rm", "batch_size": 2, "precision": "fp32"}},
                ],
            },
            {
                "id": "rl",
                "steps": [
                    {
                        "train": {
                            **TRAIN,
                            "id": "rl",
                            "method": "grpo",
                            "n": 2,
                            "rollouts": 1,
                            "max_new_tokens": 5,
                            "rewards": [reward],
                        }
                    },
                    {"evaluate": EVALUATE},
                ],
            },
        ],
    )
    run_experiment(path, tmp_path / "run")
    run = tmp_path / "run"
    steps = read_manifest(run)["steps"]
    made = Counter((s["id"], tuple(s["arms"])) for s in steps if "start" in s["models"])
    assert made == {
        ("rm", ("distilled",)): 1,
        ("rm", ("one_order",)): 1,
        ("rl", ("distilled",)): 1,
        ("rl", ("one_order",)): 1,
        ("rl", ("direct",)): 1,
    }
    judges = {tuple(s["arms"]): s["models"] for s in steps if s["id"] == "rl"}
    assert judges["distilled",]["judge/reward"] != judges["one_order",]["judge/reward"]
    assert "judge/reward" not in judges["direct",] and judges["direct",]["judge/direct"][0] == "M0"
    assert [s["arms"] for s in steps if s["id"] == "sample"] == [["distilled", "one_order"]]
    ends = [(arm, stage, number) for arm, _, stage, number, *_ in evaluated(run)]
    assert ends == [(arm, "rl", n) for arm in ("distilled", "one_order", "direct") for n in (0, 1)]
    (comparison,) = Run(run).comparisons()
    assert comparison["arms"] == ["distilled", "one_order", "direct"]
    assert "score/gold" in comparison["deltas"]["distilled/direct"] and not any(
        comparison["labels"].values()
    )


def test_constitution_a_against_b(write: Write, tmp_path: Path) -> None:
    other = "constitutions/brevity_only.yaml"
    path = write(
        seeds=[1, 2],
        judges=[
            {"id": "by_a", "kind": "rules", "constitution": "constitutions/concise_helper.yaml"},
            {"id": "by_b", "kind": "rules", "constitution": other},
        ],
        arms={"a": {}, "b": {"set": {"constitution": other}}},
        steps=[
            # Long enough that some are brief and some are not.
            {"sample": {**SAMPLE, "n": 4, "max_new_tokens": 20}},
            {"judge": {"id": "labels", "kind": "rules"}},
            {"pair": {"strategy": "all"}},
            {"train": TRAIN},
            {"evaluate": {**EVALUATE, "judges": ["by_a", "by_b"]}},
        ],
    )
    run_experiment(path, tmp_path / "run")
    run = tmp_path / "run"
    found = Counter(s["id"] for s in read_manifest(run)["steps"] if "." not in s["id"])
    # For each seed one sample for both arms, then one of each for both; M0 is evaluated once.
    assert found == {"sample": 2, "labels": 4, "pair": 4, "train": 4, "evaluate": 6}
    judged = Run(run).judgements
    labels = judged[judged.step == "labels"]
    principles = {arm: set(labels[labels.run_arms == arm].principle) for arm in "ab"}
    assert len(principles["b"]) < len(principles["a"]) and principles["a"] != principles["b"]
    assert trained(run) == [("train", "M0", "M1")] * 4
    metrics = read_rounds(run)[-1].metrics["metrics"]
    assert {"score/by_a", "score/by_b"} <= metrics.keys()


def test_instruct_gpt(write: Write, tmp_path: Path) -> None:
    path = write(
        judges=[
            {"id": "reward", "kind": "reward_model", "by": "rm"},
            {"id": "gold", "kind": "rules"},
        ],
        steps=[
            {"load": {"id": "demos", "type": "demonstrations", "path": "ift.jsonl"}},
            {"train": {"id": "sft", "method": "sft", "uses": ["demos"], "epochs": 2, **TRAIN}},
            {"load": {"id": "comparisons", "type": "preferences", "path": "people.jsonl"}},
            {
                "distill": {
                    "id": "rm",
                    "method": "k_wise",
                    "from": "sft",
                    "uses": ["comparisons"],
                    "batch_size": 2,
                    "precision": "fp32",
                }
            },
            {"load": {"id": "web", "type": "text", "path": "web.jsonl"}},
            {
                "train": {
                    **TRAIN,
                    "id": "ppo_ptx",
                    "method": "ppo",
                    "reference": "sft",
                    "rewards": [{"judge": "reward", "value": "raw", "normalise": "reference"}],
                    "beta": 0.02,
                    "ptx_weight": 27.8,
                    "uses": ["web"],
                    "rollouts": 1,
                    "max_new_tokens": 5,
                }
            },
            {"evaluate": {**EVALUATE, "against": ["initial", "sft"]}},
        ],
    )
    run_experiment(path, tmp_path / "run")
    run = tmp_path / "run"
    assert trained(run) == [
        ("sft", "M0", "sft"),
        ("rm", "sft", "rm1"),
        ("ppo_ptx", "sft", "ppo_ptx"),
    ]
    ppo = next(s for s in read_manifest(run)["steps"] if s["id"] == "ppo_ptx")
    models = {role: label for role, (label, _) in ppo["models"].items()}
    assert (models["reference"], models["judge/reward"]) == ("sft", "rm1")
    assert [row[-2:] for row in evaluated(run)] == [
        ("M0", []),
        ("ppo_ptx", ["initial", "sft"]),
    ]
    assert kinds(run)["load"] == 3


def grade(body: dict[str, Any], choice: int) -> str:
    """A judgement that the seed decides."""
    words = seeded_words(body, choice).split()[:12]
    return f"{' '.join(words)}.\nScore: {sum(map(len, words)) % 6}"


@pytest.fixture
def writer() -> Iterator[dict[str, Any]]:
    """A model that writes judgements."""
    with ScriptedServer(grade, context=4000) as server:
        # One request at a time: the answers of several are stored in the order of their arrival.
        yield {
            "path": "m",
            "engine": "openai",
            "base_url": server.url,
            "cache": False,
            "limits": {"concurrency": 1},
        }


def meta_rewarding(writer: dict[str, Any], policy: Path) -> dict[str, Any]:
    """Two rounds of Meta-Rewarding (arXiv 2407.19594), of which the judge learns in the first. A
    random model writes nothing that can be read: `writer` stands for the policy where it judges."""
    return {
        "models": {"policy": {"path": str(policy), "dtype": "float32"}, "writer": writer},
        "judges": [
            {"id": "self", "kind": "additive", "by": "writer", "samples": 3},
            {"id": "meta", "kind": "judgements", "of": "self", "by": "policy"},
            {"id": "gold", "kind": "rules"},
        ],
        "rounds": 2,
        "steps": [
            {"sample": {**SAMPLE, "n": 2}},
            {"judge": "self"},
            {"pair": {"id": "actor", "strategy": "length_tiered", "tier": 0, "uses": ["self"]}},
            {"judge": "meta", "when": 1},
            {
                "pair": {"id": "judging", "of": "self", "better": "meta", "max_chars": 1100},
                "when": 1,
            },
            {"train": {**TRAIN, "id": "dpo", "uses": ["actor", "judging?"], "max_length": 2000}},
            {"evaluate": EVALUATE},
        ],
    }


def test_meta_rewarding(
    write: Write, tmp_path: Path, small_model: Path, writer: dict[str, Any]
) -> None:
    path = write(**meta_rewarding(writer, small_model))
    inputs = prepare(path)
    planned = {row.hash: row for row in forecast(inputs, Store(tmp_path / "run"))}
    run_experiment(path, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert trained(tmp_path / "run") == [("dpo", "M0", "M1"), ("dpo", "M1", "M2")]
    steps = run.manifest["steps"]
    found = Counter((s["id"], s["round"]) for s in steps if "." not in s["id"])
    assert found == {
        **{(i, n): 1 for i in ("sample", "self", "actor", "dpo") for n in (1, 2)},
        **{(i, 1): 1 for i in ("meta", "judging")},
        **{("evaluate", n): 1 for n in (0, 1, 2)},
    }
    by_id = {(s["id"], s["round"]): s for s in steps}
    folders = {key: run.store.step(s["hash"]) for key, s in by_id.items()}
    # 2 prompts, 2 answers, 3 judgements of each, and both orders of every two of these.
    judged = list(folders["self", 1].records(Judgement))
    compared = list(folders["meta", 1].records(Judgement))
    assert len(judged) == 2 * 2 * 3 and all(j.status == "ok" for j in judged)
    assert len(compared) == 2 * 2 * 3 * 2
    for (name, number), step in by_id.items():
        if name in ("sample", "self", "meta"):
            made = sum(1 for _ in folders[name, number].rows("judgements")) or sum(
                1 for _ in folders[name, number].rows("completions")
            )
            assert planned[step["hash"]].calls == made
    ids = {j.judgement_id: j for j in judged}
    assert {j.subject_kind for j in compared} == {"judgement"}
    assert {j.subject_kind for j in judged} == {"completion"}
    for one in compared:
        first, second = (ids[name] for name in one.shown)
        assert first.subject == second.subject and first is not second
    assert by_id["meta", 1]["models"]["by"][0] == "M0"
    pairs = list(folders["judging", 1].records(Preference))
    assert pairs and all(p.margin is not None and p.margin > 0 for p in pairs)
    for pair in pairs:
        assert ids[pair.chosen_id].raw == pair.chosen[0]["content"]
        assert ids[pair.chosen_id].subject == ids[pair.rejected_id].subject
    counts = {n: (folders["dpo", n].done() or {})["counts"]["preferences"] for n in (1, 2)}
    answers = {n: folders["actor", n].count("preferences") for n in (1, 2)}
    assert counts == {1: answers[1] + len(pairs), 2: answers[2]}
    assert run.page().primary


def test_iterative_dpo_against_the_previous_policy(write: Write, tmp_path: Path) -> None:
    path = write(
        rounds=3,
        steps=[
            {"sample": SAMPLE},
            {"judge": {"id": "checks", "kind": "rules"}},
            {"pair": {"strategy": "all"}},
            {"train": {"id": "dpo", "reference": "earlier", "from": "initial", **TRAIN}},
            {
                "evaluate": {**EVALUATE, "against": ["initial", "previous", "dpo@1"]},
                "when": "2-",
            },
        ],
    )
    run_experiment(path, tmp_path / "run")
    run = tmp_path / "run"
    assert trained(run) == [("dpo", "M0", "M1"), ("dpo", "M0", "M2"), ("dpo", "M0", "M3")]
    steps = [s for s in read_manifest(run)["steps"] if s["id"] == "dpo"]
    assert [s["models"]["reference"][0] for s in steps] == ["M0", "M0", "M1"]
    rows_of = evaluated(run)
    assert [row[3:] for row in rows_of] == [
        (0, "M0", "M0", []),
        (2, "M1", "M2", ["initial", "previous", "dpo@1"]),
        (3, "M2", "M3", ["initial", "previous", "dpo@1"]),
    ]
    last = read_rounds(run)[1]
    # In round 2 the previous policy is that of round 1.
    assert last.metrics["deltas"]["previous"] == last.metrics["deltas"]["dpo@1"]


def test_the_same_pairs_of_two_sources_are_learned_under_both_conditions(
    write: Write, tmp_path: Path
) -> None:
    path = write(
        steps=[
            {"sample": {"n": 5, "prompts": 3, "max_new_tokens": 20}},
            {"judge": {"id": "one", "kind": "rules"}},
            {"pair": {"id": "help", "strategy": "all", "uses": ["one"], "source": "helpful"}},
            {"judge": {"id": "two", "kind": "rules"}},
            {"pair": {"id": "harm", "strategy": "all", "uses": ["two"]}},
            {"load": {"id": "hacks", "type": "preferences", "path": "people.jsonl",
                      "source": "hacks"}},
            {
                "distill": {
                    "method": "conditional",
                    "uses": ["help", "harm", "hacks"],
                    "conditions": {"helpful": "Help.", "rlaif": "Be kind.", "hacks": "Look out."},
                    "batch_size": 2,
                    "precision": "fp32",
                }
            },
        ],
    )  # fmt: skip
    run_experiment(path, tmp_path / "run")
    pairs = Run(tmp_path / "run").preferences
    by_step = {step: pairs[pairs.step == step] for step in ("help", "harm", "hacks")}
    sources = {step: set(found.source) for step, found in by_step.items()}
    assert sources == {"help": {"helpful"}, "harm": {"rlaif"}, "hacks": {"hacks"}}
    ids = {step: set(found.preference_id) for step, found in by_step.items()}
    answers = {step: set(found.chosen_id) for step, found in by_step.items()}
    assert answers["help"] == answers["harm"] and not ids["help"] & ids["harm"]
    (done,) = [s for s in Run(tmp_path / "run").status()["steps"] if s["kind"] == "distill"]
    assert done["counts"]["preferences"] == len(pairs)


def kept(out: Path) -> dict[str, Any]:
    """All of a run that time does not change."""
    rounds = (out / "rounds.jsonl").read_bytes()
    # The log of a training has the time of its steps.
    records = {name: found for name, found in rows(out).items() if "/work/" not in name}
    return {"rows": records, "weights": weights(out), "rounds": rounds}


def test_a_run_killed_in_the_second_stage_ends_in_the_same_bytes(
    write: Write, tmp_path: Path
) -> None:
    path = write(
        seeds=[1, 2],
        arms={"a": {}, "b": {"set": {"steps.dpo.beta": 0.5}}},
        stages=[
            {
                "id": "seed",
                "steps": [
                    {"load": {"id": "ift", "type": "demonstrations", "path": "ift.jsonl"}},
                    {"train": {"id": "sft", "method": "sft", "uses": ["ift"], **TRAIN}},
                ],
            },
            {
                "id": "iterate",
                "rounds": 2,
                "steps": [
                    {"sample": {**SAMPLE, "n": 4}},
                    {"judge": "gold"},
                    {"pair": {"strategy": "all"}},
                    {"train": {"id": "dpo", **TRAIN}},
                    {"evaluate": EVALUATE, "when": 2},
                ],
            },
        ],
    )
    # The second seed's second arm is in round 2 of its second stage.
    last = [p for p in make_plan(prepare(path)) if (p.stage, p.number, p.seed) == ("iterate", 2, 2)]
    middle = next(p for p in last if p.id == "sample" and p.arms == ("b",))
    done = killed_in(tmp_path, path, middle.hash)
    assert 0 < done[middle.hash] < len(read_manifest(tmp_path / "0")["steps"])
    assert kept(tmp_path / "1") == kept(tmp_path / "0")
