"""Labels in shares and in numbers: who labels a pair, which pairs are used, what labels cost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rlaif.cli import cli
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.labelled import GivenPair
from rlaif.core.store import Store
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.labelling import _unit_of_judge, name_line
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import Run, load_run
from rlaif.preferences.labels import choose_nested, share_out
from rlaif.report.arms import answer_sentences
from rlaif.report.build import build_report
from tests.pipeline.test_arms import BRIEF, TRAIN
from tests.servers.scripted import ScriptedServer, prompt_text

LOAD: dict[str, Any] = {"load": {"id": "people", "type": "pairs"}}
BY_RULE: dict[str, Any] = {"judge": {"id": "brief", "kind": "rules"}}
TRAINED: dict[str, Any] = {"train": TRAIN}
LABEL: dict[str, Any] = {"label": {}}
PAIRS = [GivenPair(f"l_{n}", f"p_{n}", f"x_{n}a", f"x_{n}b") for n in range(400)]


def rows(count: int) -> list[dict[str, str]]:
    """Pairs of a short and a long answer. People prefer the short one of every other pair, the rule
    always."""
    made = []
    for number in range(count):
        asked = f"\n\nHuman: What is item {number} called?\n\nAssistant:"
        texts = [
            f"{asked} Item {number}, in short.",
            f"{asked} Well, that is item {number}, I say.",
        ]
        chosen, rejected = texts if number % 2 else texts[::-1]
        made.append({"chosen": chosen, "rejected": rejected})
    return made


def write(folder: Path, arms: Any, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows(changes.pop("count", 44)))
    (folder / "pairs.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "brief.yaml").write_text(yaml.safe_dump(BRIEF))
    data = {
        "name": "shares",
        "seed": 3,
        "models": {"policy": {"path": "none", "engine": "fake"}},
        "constitution": "brief.yaml",
        "data": "pairs.jsonl.gz",
        "prompts": {"holdout": 4},
        "arms": arms,
        "steps": [LOAD, BY_RULE, LABEL],
    } | changes
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def labels(run: Run) -> dict[str, dict[str, tuple[str, str]]]:
    """By arm, each pair's id to who labelled it and the chosen answer."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for row in run.rows("preferences"):
        for arm in row["run_arms"].split():
            found.setdefault(arm, {})[row["preference_id"]] = (row["source"], row["chosen_id"])
    return found


def ran(folder: Path, arms: Any, **changes: Any) -> Run:
    run_experiment(write(folder, arms, **changes), folder / "run")
    return load_run(folder / "run")


@given(st.integers(0, 2**40), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_larger_first_share_has_all_the_pairs_of_a_smaller_one(
    seed: int, one: float, other: float
) -> None:
    small, large = sorted((one, other))

    def first(share: float) -> set[str]:
        shares = [("human", share), ("ai", 1.0 - share)]
        return {name for name, who in share_out(PAIRS[:60], shares, seed).items() if who == "human"}

    assert first(small) <= first(large)
    assert first(0.0) == set() and len(first(1.0)) == 60


def test_shares_are_of_the_seed_and_the_pair_alone() -> None:
    shares = [("human", 0.3), ("one", 0.3), ("other", 0.4)]
    drawn = share_out(PAIRS, shares, 1)
    assert share_out(PAIRS[::-1], shares, 1) == drawn != share_out(PAIRS, shares, 2)
    assert share_out(PAIRS[:9], shares, 1) == {p.pair_id: drawn[p.pair_id] for p in PAIRS[:9]}
    counts = [list(drawn.values()).count(name) for name, _ in shares]
    # Beyond four standard deviations of 400 draws.
    assert all(abs(n - 400 * share) < 40 for n, (_, share) in zip(counts, shares, strict=True))


@given(st.integers(0, 2**40), st.integers(1, 60), st.integers(1, 60))
def test_more_labels_hold_all_of_fewer(seed: int, one: int, other: int) -> None:
    small, large = sorted((one, other))
    few, many = (choose_nested(PAIRS[:60], count, seed) for count in (small, large))
    assert {p.pair_id for p in few} <= {p.pair_id for p in many}
    assert len(few) == small and many == [p for p in PAIRS[:60] if p in many]


ARMS: dict[str, Any] = {
    "human": {"labels": "human"},
    "ai": {"labels": "ai"},
    "half": {"labels": {"human": 0.5, "ai": 0.5}},
    "most": {"labels": {"human": 0.8, "ai": 0.2}},
    "other": {"labels": {"ai": 0.5, "human": 0.5}},
    "turned": {"labels": {"human": 0.5, "brief": 0.5}, "flip": 0.25},
    "whole": {"labels": {"ai": 1}},
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return ran(tmp_path_factory.mktemp("mixed"), ARMS)


def test_each_record_says_who_labelled_it_and_has_its_label(mixed: Run) -> None:
    found = labels(mixed)
    assert {len(pairs) for pairs in found.values()} == {40}
    for name in ("half", "most", "other"):
        sources = {who for who, _ in found[name].values()}
        assert sources == {"human", "ai"}
        for pair, label in found[name].items():
            assert label == found[label[0]][pair]
    half, most, other = (
        {pair for pair, (who, _) in found[name].items() if who == "human"}
        for name in ("half", "most", "other")
    )
    assert half < most
    # The order of the shares says which end of the draw is whose.
    assert other == found["other"].keys() - half
    turned = {who for who, _ in found["turned"].values() if who.endswith(", turned round")}
    assert turned == {"human, turned round", "brief, turned round"}
    assert found["whole"] == found["ai"]


def test_the_arms_say_their_shares_in_words(mixed: Run) -> None:
    arms = mixed.arms()
    assert arms["half"]["labels"] == "human 50%, ai 50%"
    assert arms["half"]["judges"] == ["brief"] == arms["turned"]["judges"]
    assert arms["whole"]["labels"] == "ai" and arms["human"]["judges"] == []
    said = [
        s["does"] for s in mixed.manifest["steps"] if "half" in s["arms"] and s["id"] == "label"
    ]
    assert "labels of people (50%), the judges (50%)" in said[0][0]
    assert mixed.manifest["arms"]["most"]["labels"] == {"human": 0.8, "ai": 0.2}
    config = yaml.safe_load((mixed.root / "config.yaml").read_text())
    assert list(config["arms"]["other"]["labels"]) == ["ai", "human"]


def test_an_arm_of_both_is_neither_in_the_answer(mixed: Run) -> None:
    interval = {"mean": 0.2, "low": 0.16, "high": 0.24, "n": 64, "se": 0.02, "df": 63}
    twos = ["human/ai", "human/half", "half/ai", "human/whole"]
    deltas = {two: {"score/other": interval} for two in twos}
    rows = [{"arms": list(ARMS), "labels": {}, "deltas": deltas}]
    found = answer_sentences(rows, mixed.arms(), 0.05)
    assert [line.partition(" is ")[0] for line in found] == [
        "Arm ai",
        "Arm whole",
        *(f"Arm {n} ({mixed.arms()[n]['labels']})" for n in ("half", "most", "other", "turned")),
    ]
    assert "neither an arm of people's labels nor one of AI's" in found[2]
    fewer = {**mixed.arms(), "ai": {**mixed.arms()["ai"], "labels_used": 9}}
    assert not any(line.startswith("Arm ai is") for line in answer_sentences(rows, fewer, 0.05))


def plan(folder: Path, arms: Any, **changes: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    steps = make_plan(prepare(write(folder, arms, **changes)))
    return {arm: (p.hash, p.options) for p in steps if p.kind == "label" for arm in p.arms}


def test_the_hash_has_the_shares_in_their_order_and_the_number(tmp_path: Path) -> None:
    arms = {
        "one": {"labels": {"human": 0.5, "ai": 0.5}},
        "other": {"labels": {"ai": 0.5, "human": 0.5}},
        "few": {"labels": {"human": 0.5, "ai": 0.5}, "labels_used": [3, 4]},
        "same": {"labels": {"human": 0.5, "ai": 0.5}, "labels_used": 3},
        "whole": {"labels": {"human": 1.0}},
        "human": {"labels": "human"},
    }
    found = plan(tmp_path, arms)
    assert set(found) == {"one", "other", "few-3", "few-4", "same", "whole", "human"}
    hashes = {arm: digest for arm, (digest, _) in found.items()}
    assert hashes["few-3"] == hashes["same"] and hashes["whole"] == hashes["human"]
    assert len(set(hashes.values())) == 5
    # A single labeller's options are those of older files.
    assert found["human"][1]["labels"] == "human" and "labels_used" not in found["human"][1]
    price = [LOAD, BY_RULE, {"label": {"human_price": 0.67}}]
    assert {a: d for a, (d, _) in plan(tmp_path, arms, steps=price).items()} == hashes


def test_arms_that_leave_the_labels_to_the_step_use_the_same_pairs(tmp_path: Path) -> None:
    arms = {"own": {"labels_used": 5}, "ai": {"labels": "ai", "labels_used": 5}}
    arms["path"] = {"set": {"steps.label.labels": "brief", "steps.label.labels_used": 5}}
    found = plan(tmp_path, arms)
    assert {tuple(options["labellers"]) for _, options in found.values()} == {
        ("ai", "brief", "human")
    }
    assert [options["labels_used"] for _, options in found.values()] == [5, 5, 5]


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"human": 0.5, "ai": 0.6}, "the shares must sum to 1 (their sum is 1.1)"),
        ({}, "the shares must sum to 1 (their sum is 0)"),
        ({"human": 0.5, "brif": 0.5}, "'brif' is no judge step before `label`; did you mean"),
        ({"human": -0.5, "ai": 1.0}, "arms.mixed.labels.human: Input should be greater"),
        ({"human": "half", "ai": 0.5}, "arms.mixed.labels.human: Input should be a valid number"),
        ([0.5, 0.5], "arms.mixed.labels: Input should be a valid string"),
    ],
)
def test_shares_that_mean_nothing_are_refused(tmp_path: Path, shares: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(prepare(write(tmp_path, {"mixed": {"labels": shares}})))
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'experiment.yaml'}:")
    assert str(caught.value).count("\n") == 0


def test_numbers_of_labels_are_nested_and_of_the_same_pairs_in_every_arm(tmp_path: Path) -> None:
    counts = [5, 12, 30]
    arms = {
        name: {"labels": own, "labels_used": counts}
        for name, own in [
            ("human", "human"),
            ("ai", "ai"),
            ("both", {"human": 0.5, "ai": 0.5}),
            ("coin", "random"),
        ]
    }
    run = ran(tmp_path, arms)
    found = labels(run)
    assert list(found) == [f"{name}-{count}" for name in arms for count in counts]
    for count in counts:
        pairs = {tuple(found[f"{name}-{count}"]) for name in arms}
        assert len(pairs) == 1 and len(pairs.pop()) == count
    for name in arms:
        few, more, many = (found[f"{name}-{count}"] for count in counts)
        # A pair has the same label of the same labeller, however many are used.
        assert few.items() < more.items() < many.items()
    counted = {s["arms"][0]: s["counts"] for s in run.status()["steps"] if s["kind"] == "label"}
    assert counted["ai-12"] == {"preferences": 12, "undecided": 0, "turned": 0, "unused": 28}


def test_another_seed_uses_other_pairs(tmp_path: Path) -> None:
    arms = {"human": {"labels": "human", "labels_used": 10}}
    used = [set(labels(ran(tmp_path / str(seed), arms, seed=seed))["human"]) for seed in (3, 4)]
    assert len(used[0]) == len(used[1]) == 10 and used[0] != used[1]


def test_more_labels_than_decided_pairs_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"human": {"labels": "human", "labels_used": [10, 41]}})
    with pytest.raises(RlaifError, match="labels_used: 41 pairs are wanted, and 40 are decided"):
        run_experiment(path, tmp_path / "run")
    with pytest.raises(ConfigError, match="`labels_used` is an empty list"):
        prepare(write(tmp_path, {"human": {"labels": "human", "labels_used": []}}))


@pytest.mark.parametrize(
    ("arm", "count", "line"),
    [
        ("ai-50", 50, "ai"),
        ("ai-50-beta=0.1", 50, "ai-beta=0.1"),
        ("ai-labels_used=50", 50, "ai"),
        ("labels_used=50,beta=50", 50, "beta=50"),
        ("labels_used=50", 50, "labels"),
        ("few", 50, "few"),
    ],
)
def test_arms_that_differ_in_their_number_are_one_line(arm: str, count: int, line: str) -> None:
    assert name_line(arm, count) == line


TEMPLATE = "Score the answer between the marks from 0 to 1, as JSON.\n{{ response }}\n"
SCORE = {
    "type": "object",
    "properties": {"score": {"type": "number"}},
    "required": ["score"],
    "additionalProperties": False,
}


def scored(body: dict[str, Any], choice: int) -> str:
    return '{"score": %s}' % (0.9 if "in short" in prompt_text(body) else 0.2)


@pytest.fixture(scope="module")
def curved(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """Two labellers, one of them a judge on a server, and two numbers of labels each."""
    folder = tmp_path_factory.mktemp("curved")
    (folder / "score.j2").write_text(TEMPLATE)
    judge = {
        "id": "far",
        "kind": "template",
        "by": "remote",
        "template": "score.j2",
        "parse": {"json_schema": SCORE},
        "max_new_tokens": 8,
    }
    arms = {
        name: {"labels": own, "labels_used": counts}
        for name, own, counts in [
            ("human", "human", [16, 4]),
            ("ai", "far", [4, 16]),
            ("both", {"human": 0.5, "far": 0.5}, [16]),
        ]
    }
    evaluate = {"evaluate": {"resamples": 20, "max_new_tokens": 6, "judges": ["brief"]}}
    with ScriptedServer(scored) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLAIF_CACHE", str(folder / "cache"))
        remote = {"path": "m", "engine": "openai", "base_url": server.url}
        remote |= {"price": {"input": 1.0, "output": 4.0}}  # type: ignore[dict-item]
        policy = {"path": str(tiny_model), "dtype": "float32", "system_prompt": "drop"}
        return ran(
            folder,
            arms,
            count=24,
            models={"policy": policy, "remote": remote},
            judges=[{"id": "brief", "kind": "rules"}],
            steps=[LOAD, {"judge": judge}, {"label": {"human_price": 0.67}}, TRAINED, evaluate],
        )


def test_a_label_costs_what_its_judge_was_asked_for_it(curved: Run) -> None:
    costs = {row["arm"]: row for row in curved.status()["labels"]}
    assert list(costs) == ["human-16", "human-4", "ai-4", "ai-16", "both-16"]
    judge = next(s for s in curved.status()["steps"] if s["id"] == "far")
    (asked,) = curved.remote().values()
    few, many = costs["ai-4"], costs["ai-16"]
    # All 20 pairs were judged, both answers of each.
    assert few["calls"] == many["calls"] == asked["calls"] / 20 == 2
    assert few["price"] == many["price"] == pytest.approx(judge["cost"] / 20)
    assert few["tokens"] == (asked["input_tokens"] + asked["output_tokens"]) / 20
    assert (few["cost"], many["cost"]) == pytest.approx((4 * few["price"], 16 * few["price"]))
    assert costs["human-16"]["price"] == 0.67 and costs["human-16"]["calls"] == 0
    both = costs["both-16"]
    assert sum(both["by"].values()) == 16 and set(both["by"]) == {"human", "far"}
    spent = both["by"]["human"] * 0.67 + both["by"]["far"] * few["price"]
    assert both["cost"] == pytest.approx(spent)


def test_curves_are_by_labeller_over_the_number_of_labels(curved: Run) -> None:
    status = curved.status()
    lines = status["curves"]["score/brief"]
    assert list(lines) == ["human", "ai", "both"]
    last = {r["arm"]: r["metrics"]["score/brief"] for r in status["rounds"] if r["round"] == 1}
    for name, points in lines.items():
        counts = [point["labels"] for point in points]
        assert counts == ([16] if name == "both" else [4, 16])
        assert [p["mean"] for p in points] == [last[f"{name}-{n:g}"]["mean"] for n in counts]
        assert all({"low", "high", "n"} <= point.keys() for point in points)


def test_the_page_has_the_curves_and_the_score_by_cost(curved: Run, tmp_path: Path) -> None:
    page = build_report(curved.view(), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h3>Labels and their cost</h3>" in page
    assert "<h3>Results by number of labels</h3>" in page
    assert 'aria-label="score/brief by labels: human 4 ' in page
    assert "they differ only in the labels" in page
    done = CliRunner().invoke(cli, ["status", str(curved.root)], catch_exceptions=False)
    assert "Labels of arm human-4: 4 at 0.670 each, 2.680 in all." in done.stdout


def test_without_numbers_there_is_no_curve_and_unknown_costs_are_said(mixed: Run) -> None:
    status = mixed.status()
    assert status["curves"] == {}
    costs = {row["arm"]: row for row in status["labels"]}
    # A program costs nothing; what people cost nobody said.
    assert costs["ai"]["price"] == 0 and costs["ai"]["notes"] == []
    assert costs["half"]["price"] is None and costs["human"]["cost"] is None
    assert "give `human_price` in `label`" in costs["human"]["notes"][0]


def test_a_judge_costs_as_much_for_pairs_that_it_left_undecided_or_that_are_not_used(
    tmp_path: Path,
) -> None:
    run: Any = SimpleNamespace(store=Store(tmp_path))
    run.manifest = {"steps": [{"hash": "asked", "kind": "judge", "models": {"by": ["M0", "key"]}}]}
    store = run.store
    store.step("asked").finish({"kind": "judge", "counts": {"calls": 24}})
    counts = {"preferences": 6, "undecided": 2, "unused": 4}
    store.step("labelled").finish({"kind": "label", "counts": counts})
    label = {"hash": "labelled", "inputs": {"judgements/grader": "asked"}}
    unit = _unit_of_judge(run, SimpleNamespace(), "grader", [label])  # type: ignore[arg-type]
    assert unit.calls == 2.0 and unit.tokens is None
    assert unit.notes == ("What the labels of grader cost is not known: no server counted it.",)
