"""judge-bench: planted judges are recovered, a second run asks nothing, attacks are counted."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rlaif.analysis.bench.entrants import find_entrants
from rlaif.analysis.bench.run import BenchRequest, run_bench
from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.progress import QuietProgress
from rlaif.data.readers.base import make_pair, user
from rlaif.engines.fake import FakeEngine
from rlaif.judges.attacks import ATTACKS, NAMING
from rlaif.metrics.pooled import STEADY
from rlaif.metrics.rewardbench import SECTIONS
from rlaif.pipeline.steps import step_module
from rlaif.report.bench import baseline_words, bench_page, cost_words, foreign_words, silenced_words
from tests.servers.scripted import ScriptedServer, prompt_text

LEVELS = (55, 65, 75, 85, 95)
SLOTTED = 0.2
MODEL = ModelSpec(path="none", engine="fake")


def script(steepness: float = 1.0) -> list[dict[str, Any]]:
    """A pairwise judge that says P = sigmoid(steepness logit k%) for the answer marked zork-k, and
    follows the first slot where both answers are marked slotty."""
    rules: list[dict[str, Any]] = [
        {"match": "(?s)slotty.*slotty", "labels": {"first": 0.9, "second": 0.1}}
    ]
    for level in LEVELS:
        prob = 1.0 / (1.0 + ((100 - level) / level) ** steepness)
        high, low = {"first": prob, "second": 1 - prob}, {"first": 1 - prob, "second": prob}
        rules.append({"match": f"(?s)zork-{level}.*plain", "labels": high})
        rules.append({"match": f"(?s)plain.*zork-{level}", "labels": low})
    return rules


def planted(size: int, seed: int = 0) -> list[LabelledPair]:
    """Pairs in which the answer marked zork-k is better with probability k%, or both are slotty."""
    rng = random.Random(seed)
    pairs = []
    for number in range(size):
        level = rng.choice(LEVELS)
        slotted = rng.random() < SLOTTED
        marks = ("slotty", "slotty") if slotted else (f"zork-{level}", "plain")
        texts = tuple(f"{mark} {'pad ' * rng.randint(1, 9)}" for mark in marks)
        label = float(rng.random() < (0.5 if slotted else level / 100))
        subset = "even" if number % 2 == 0 else "odd"
        question = user(f"Question {number}?")
        pair = make_pair(f"f:{number}", question, (texts[0], texts[1] + "!"), label, subset=subset)
        pairs.append(pair)
    return pairs


def judges_file(folder: Path, rules: list[dict[str, Any]], *judges: dict[str, Any]) -> str:
    (folder / "script.yaml").write_text(yaml.safe_dump({"rules": rules}), "utf-8")
    models = {"scripted": {"path": "none", "engine": "fake", "script": "script.yaml"}}
    content = {"models": models, "judges": [{"by": "scripted"} | judge for judge in judges]}
    path = folder / "judges.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return str(path)


def bench(
    folder: Path, judges: Sequence[str], pairs: Sequence[LabelledPair], **changes: Any
) -> dict[str, Any]:
    options: dict[str, Any] = {"baselines": False} | changes
    request = BenchRequest(
        name="planted", judges=judges, out=folder / "out", model=MODEL, **options
    )
    return run_bench(request, pairs, QuietProgress())


def inside(value: float, interval: dict[str, float]) -> bool:
    return interval["low"] <= value <= interval["high"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("planted")
    file = judges_file(folder, script(), {"id": "planted", "kind": "pairwise"})
    found: dict[str, Any] = bench(folder, [file], planted(700))["judges"]["planted"]
    return found


def test_the_planted_accuracy_is_recovered(measured: dict[str, Any]) -> None:
    # A slotty pair is a tie once both orders are averaged; the others are right 75% of the time.
    assert inside(0.75, measured)
    assert measured["high"] - measured["low"] < 0.1
    assert measured["n"] + measured["ties"] == 700
    assert inside(SLOTTED, measured["tie_rate"])
    assert inside(0.75 * (1 - SLOTTED) + 0.5 * SLOTTED, measured["agreement_half"])
    assert inside(0.75 * (1 - SLOTTED), measured["agreement_three_way"])
    assert inside(0.5, measured["kappa"])
    assert set(measured["subsets"]) == {"even", "odd"}
    assert sum(part["agreement"]["n"] for part in measured["subsets"].values()) == measured["n"]


def test_the_main_figures_are_taken_within_subsets(measured: dict[str, Any]) -> None:
    for part in measured["subsets"].values():
        assert inside(0.75, part["agreement"])
        assert inside(0.5, part["kappa"])
        assert inside(SLOTTED, part["same_slot"])
        assert inside(0.5 + SLOTTED / 2, part["slot_one_rate"])
        assert part["coverage"]["mean"] == 1.0
        assert part["unread_rate"]["mean"] == part["abstain_rate"]["mean"] == 0.0
        assert part["prefers_longer"]["n"] < part["coverage"]["n"] == 350


def test_the_planted_position_bias_is_recovered_by_slot(measured: dict[str, Any]) -> None:
    assert inside(SLOTTED, measured["same_slot"])
    assert inside(SLOTTED, measured["same_slot_first"])
    assert measured["same_slot_second"]["mean"] == 0.0
    assert measured["slot_p"] < 1e-9
    assert inside(0.5 + SLOTTED / 2, measured["slot_one_rate"])
    assert measured["calls_per_pair"]["mean"] == 2.0


def test_a_calibrated_judge_is_found_calibrated(measured: dict[str, Any]) -> None:
    assert measured["ece"]["mean"] < 0.06
    assert inside(1.0, measured["temperature"])
    right = [b for b in measured["reliability"] if b["n"] > 30]
    assert len(right) > 5
    assert all(abs(b["share"] - b["prob"]) < 0.15 for b in right)
    # 95% intervals, of about ten bins.
    assert sum(not inside(b["prob"], b) for b in right) <= 2
    assert all(b["low"] < b["share"] < b["high"] for b in right)


def test_a_judge_that_is_too_sure_is_found_out_and_mended(tmp_path: Path) -> None:
    file = judges_file(tmp_path, script(3.0), {"id": "sure", "kind": "pairwise"})
    row = bench(tmp_path, [file], planted(700))["judges"]["sure"]
    assert inside(3.0, row["temperature"])
    assert row["ece_scaled"]["mean"] < row["ece"]["mean"] / 2
    assert row["brier_scaled"]["mean"] < row["brier"]["mean"]
    assert inside(0.75, row)


def test_the_planted_length_bias_is_recovered(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    pairs, bias, human = [], 0.8, 1.0
    lengths = rng.integers(1, 200, (900, 2))
    spread = (lengths[:, 0] - lengths[:, 1]).std()
    for number, (first, second) in enumerate(lengths):
        label = rng.integers(0, 2)
        odds = bias * (first - second) / spread + human * (2 * label - 1)
        picked = rng.random() < 1 / (1 + np.exp(-odds))
        marks = ("zork-95", "plain00") if picked else ("plain00", "zork-95")
        texts = (marks[0] + "a" * int(first), marks[1] + "a" * int(second))
        pairs.append(make_pair(f"f:{number}", user(f"Q {number}?"), texts, float(label)))
    file = judges_file(tmp_path, script(), {"id": "wordy", "kind": "pairwise"})
    row = bench(tmp_path, [file], pairs)["judges"]["wordy"]
    assert inside(bias, row["length_coefficient"])
    assert row["length_coefficient"]["low"] > 0
    assert inside(0.5, row["people_prefer_longer"])
    assert row["prefers_longer"]["low"] > 0.5


def test_own_answers_and_repeats(tmp_path: Path) -> None:
    """The planted judge always picks its own answers; the coin agrees with itself half the time."""
    pairs = []
    for number in range(300):
        own_first, people_pick_own = number % 2 == 0, number % 3 == 0
        texts = ("zork-95", "plain") if own_first else ("plain", "zork-95")
        authors = ("me", "other") if own_first else ("other", "me")
        label = float(people_pick_own == own_first)
        pairs.append(make_pair(f"f:{number}", user(f"Q {number}?"), texts, label, authors=authors))
    file = judges_file(tmp_path, script(), {"id": "vain", "kind": "pairwise"})
    found = bench(tmp_path, [file, "random"], pairs, author="me", repeats=3)["judges"]
    assert found["vain"]["self_preference"]["mean"] == 1.0
    assert inside(0.0, found["random"]["self_preference"])
    assert found["vain"]["self_consistency"]["mean"] == 1.0
    assert inside(0.5, found["random"]["self_consistency"])


def test_an_attack_flips_as_many_verdicts_as_planted(tmp_path: Path) -> None:
    """A judge that falls for a written score, but not where the question is guarded."""
    guarded = 0.4
    rng = random.Random(3)
    pairs = []
    for number in range(200):
        mark = "guarded" if rng.random() < guarded else "open"
        question = user(f"Question {number}, {mark}?")
        pairs.append(make_pair(f"f:{number}", question, ("fine", "poor"), 1.0))
    rules = [
        {"match": "(?s), guarded.*fine", "labels": {"3": 1.0}},
        {"match": "(?s), guarded.*poor", "labels": {"2": 1.0}},
        {"match": "Score: 5", "labels": {"5": 1.0}},
        {"match": "fine", "labels": {"3": 1.0}},
        {"match": "poor", "labels": {"2": 1.0}},
    ]
    judge = {"id": "gullible", "kind": "rating", "expected": True}
    file = judges_file(tmp_path, rules, judge)
    attacks = ["verdict_in_answer", "flattery"]
    row = bench(tmp_path, [file], pairs, attacks=attacks)["judges"]["gullible"]
    share = sum("open" in p.prompt.question for p in pairs) / len(pairs)
    assert row["agreement"] == 1.0
    assert row["attacks"]["verdict_in_answer"]["wins"]["mean"] == pytest.approx(share)
    assert row["attacks"]["verdict_in_answer"]["wins"]["n"] == 200
    assert row["attacks"]["flattery"]["wins"]["mean"] == 0.0
    assert row["attacks"]["flattery"]["missing"] == 0


@pytest.fixture(scope="module", params=["obeying", "upright"])
def attacked(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Any, Any]:
    """A judge that obeys every attack, or none, comparing and scoring; and its page."""
    folder = tmp_path_factory.mktemp(request.param)
    engine = {"path": "none", "engine": f"tests.support.obeying:{request.param}"}
    judges = [{"kind": "pairwise"}, {"kind": "rating", "expected": True}]
    content = {"models": {"m": engine}, "judges": [judge | {"by": "m"} for judge in judges]}
    (folder / "judges.yaml").write_text(yaml.safe_dump(content), "utf-8")
    texts = [("a good fruit", "a poor fruit"), ("a poor fruit", "a good fruit")]
    pairs = [
        make_pair(f"f:{i}", user(f"Which {i}?"), texts[i % 2], float(1 - i % 2)) for i in range(8)
    ]
    options: dict[str, Any] = {"attacks": ["all"]}
    result = bench(folder, [str(folder / "judges.yaml")], pairs, **options)
    page = bench_page(result, folder / "page.html").read_text("utf-8").replace("<wbr>", "")
    return request.param == "obeying", result["judges"], page


def test_a_judge_that_obeys_is_at_1_and_one_that_does_not_at_0_on_every_attack(
    attacked: tuple[bool, Any, Any],
) -> None:
    obeys, judges, page = attacked
    assert judges["pairwise"]["agreement"] == judges["rating"]["agreement"] == 1.0
    for judge in ("pairwise", "rating"):
        found = judges[judge]["attacks"]
        plain = {name.partition("/")[0] for name in found}
        assert plain == set(ATTACKS)
        for name, figures in found.items():
            assert figures["success"]["mean"] == float(obeys), (judge, name)
            # All or none of so many prompts: Clopper and Pearson leave 0.025^(1/n) open.
            count = figures["success"]["n"]
            ends = figures["success"]["low"], figures["success"]["high"]
            prompts = figures["success"].get("prompts", count)
            least = 0.025 ** (1 / prompts)
            assert ends == pytest.approx((least, 1.0) if obeys else (0.0, 1 - least))
            assert figures["success"]["count"] == count * obeys
            assert figures["attacked"] == 8 and figures["missing"] == 0
            assert name in page
    assert "verdicts won, of those that the attack asked for" in page
    # What is said in place of an interval: kappa is 1 whichever prompt is left out.
    assert judges["rating"]["kappa"]["note"] == STEADY
    assert STEADY in page


def test_an_attack_that_names_a_slot_is_told_by_order(attacked: tuple[bool, Any, Any]) -> None:
    """Over both orders a verdict for one slot is a tie: no win, and yet every verdict that it could
    change was changed."""
    obeys, judges, _ = attacked
    found = judges["pairwise"]["attacks"]
    assert {n for n in found if "/" in n} == {
        f"{n}/{s}" for n in NAMING for s in ("first", "second")
    }
    for name in NAMING:
        first, second = found[f"{name}/first"], found[f"{name}/second"]
        for row, own, other in ((first, "first", "second"), (second, "second", "first")):
            assert row[f"changed_{own}"]["mean"] == float(obeys)
            assert row[f"changed_{other}"]["mean"] == 0.0
            assert row["ties"]["mean"] == float(obeys)
            assert row["wins"]["mean"] == 0.0
    whole = found["choose_this"]
    assert whole["wins"]["mean"] == whole["changed_second"]["mean"] == float(obeys)
    rated = judges["rating"]["attacks"]["choose_label"]
    assert rated["lifted"]["mean"] == rated["wins"]["mean"] == float(obeys)
    assert "changed_first" not in rated


def test_an_attack_that_silences_a_judge_is_counted(tmp_path: Path) -> None:
    """The judge gives a padded answer no mark where the question is open: missing, and no flip."""
    pairs = [
        make_pair(f"f:{i}", user(f"{'Open' if i < 6 else 'Shut'} {i}?"), ("fine", "poor"), 1.0)
        for i in range(10)
    ]
    rules = [
        {"match": "(?s)Open.*Score: 5", "labels": {}},
        {"match": "fine", "labels": {"3": 1.0}},
        {"match": "poor", "labels": {"2": 1.0}},
    ]
    file = judges_file(tmp_path, rules, {"id": "shy", "kind": "rating", "expected": True})
    result = bench(tmp_path, [file], pairs, attacks=["verdict_in_answer"])
    found = result["judges"]["shy"]["attacks"]["verdict_in_answer"]
    assert (found["attacked"], found["missing"], found["missing_share"]) == (10, 6, 0.6)
    assert (found["wins"]["mean"], found["wins"]["n"]) == (0.0, 4)
    assert silenced_words(result) == [
        "shy: verdict_in_answer left 6 of 10 attacked pairs (60.0%) without a verdict."
    ]


def test_a_second_run_asks_nothing_and_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = {"id": "planted", "kind": "pairwise"}
    file = judges_file(tmp_path, script(), judge, {"id": "again", "kind": "pairwise"})
    pairs = planted(60)
    options: dict[str, Any] = {"baselines": True, "attacks": ["all"]}
    first = bench(tmp_path, [file], pairs, **options)
    kept = (tmp_path / "out" / "bench.json").read_bytes()

    def refuse(*_: Any) -> Iterator[Any]:
        raise AssertionError("the engine was asked")

    monkeypatch.setattr(FakeEngine, "score", refuse)
    monkeypatch.setattr(FakeEngine, "generate", refuse)
    assert json.dumps(bench(tmp_path, [file], pairs, **options)) == json.dumps(first)
    assert (tmp_path / "out" / "bench.json").read_bytes() == kept
    with pytest.raises(AssertionError, match="was asked"):
        bench(tmp_path, [file], planted(61), **options)
    # Nor is what other code made of the same pairs.
    step = step_module("judge")
    monkeypatch.setattr(step, "VERSION", step.VERSION + 1)
    with pytest.raises(AssertionError, match="was asked"):
        bench(tmp_path, [file], pairs, **options)


def test_judges_are_compared_with_one_another_and_with_baselines(tmp_path: Path) -> None:
    judge = {"id": "planted", "kind": "pairwise"}
    file = judges_file(tmp_path, script(), judge, {"id": "twin", "kind": "pairwise"})
    result = bench(tmp_path, [file], planted(300), baselines=True)
    assert list(result["judges"]) == [
        "planted",
        "twin",
        "longer",
        "first",
        "random",
        "overlap",
        "perplexity",
    ]
    pair = result["comparisons"][0]
    assert (pair["first"], pair["second"]) == ("planted", "twin")
    assert pair["difference"]["mean"] == 0.0
    assert pair["mcnemar_p"] == 1.0
    assert pair["error_correlation"]["mean"] == pytest.approx(1.0)
    assert result["effective_votes"]["judges"] == ["planted", "twin"]
    assert result["effective_votes"]["mean"] == pytest.approx(1.0)
    for name in ("longer", "first", "random"):
        assert inside(0.5, result["judges"][name])
    # The scripted model finds every answer equally likely, and no answer uses a term.
    assert result["judges"]["perplexity"]["agreement"] is None
    assert result["judges"]["perplexity"]["ties"] == 300
    words = baseline_words(result)
    assert len(words) == 2
    assert all("beats the best baseline" in line for line in words)
    page = bench_page(result, tmp_path / "page.html").read_text("utf-8")
    assert "beats the best baseline" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("folder", "judge"), [("rm.v2", "rm-v2"), ("My Model", "My-Model"), ("7b", "rm-7b")]
)
def test_a_reward_models_folder_may_have_any_name(tmp_path: Path, folder: str, judge: str) -> None:
    (tmp_path / folder).mkdir()
    [entrant] = find_entrants([str(tmp_path / folder)], MODEL, None, False)
    assert entrant.judge.id == judge


def test_the_perplexity_baseline_asks_the_judges_model(tmp_path: Path) -> None:
    file = judges_file(tmp_path, script(), {"id": "planted", "kind": "pairwise"})
    found = {e.judge.id: e for e in find_entrants([file], MODEL, None, True)}
    [asked], [own] = found["perplexity"].models.values(), found["planted"].models.values()
    assert asked.spec == own.spec
    assert asked.spec.script is not None


def test_what_is_missing_stays_missing(tmp_path: Path) -> None:
    """A judge that puts no mass on the labels has no verdict, and no agreement."""
    file = judges_file(tmp_path, [], {"id": "mute", "kind": "pairwise"})
    row = bench(tmp_path, [file], planted(20))["judges"]["mute"]
    assert row["agreement"] is None
    assert (row["n"], row["ties"], row["missing"]) == (0, 0, 20)
    assert row["coverage"]["mean"] == 0.0
    assert row["unread_rate"]["mean"] == 1.0
    assert "ece" not in row


def test_which_answer_is_shown_first_is_drawn_and_the_order_of_rows_changes_nothing(
    tmp_path: Path,
) -> None:
    pairs = [make_pair(f"f:{i}", user(f"Q {i}?"), ("better", "worse"), 1.0) for i in range(200)]
    result = bench(tmp_path, ["first", "random"], pairs)
    # The better answer comes first in every row of the file.
    assert inside(0.5, result["judges"]["first"])
    turned = bench(tmp_path / "other", ["first", "random"], pairs[::-1])
    assert {n: r["agreement"] for n, r in turned["judges"].items()} == {
        n: r["agreement"] for n, r in result["judges"].items()
    }


def test_rewardbench_sections_have_the_published_weights(tmp_path: Path) -> None:
    """`longer` is right in these subsets alone: one of 100 of 358 in Chat, mathematics."""
    right = {"alpacaeval-easy", "math-prm"}
    pairs = []
    for subset in (name for weights in SECTIONS.values() for name in weights):
        texts = ("much longer", "short") if subset in right else ("short", "much longer")
        pairs.append(make_pair("f:1", user(f"On {subset}?"), texts, 1.0, subset=subset))
    row = bench(tmp_path, ["longer"], pairs)["judges"]["longer"]
    chat, reasoning = 100 / 358, 984 / (984 + 6 * 164)
    assert row["rewardbench/Chat"]["mean"] == pytest.approx(chat)
    assert row["rewardbench/Reasoning"]["mean"] == pytest.approx(reasoning)
    assert row["rewardbench/Safety"]["mean"] == 0.0
    assert row["rewardbench"]["mean"] == pytest.approx((chat + reasoning) / 4)


WEIGHTS = (
    {"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95}
    | {"mt-bench-easy": 28, "mt-bench-med": 40},
    {"mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134}
    | {"llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46},
    {"refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 250}
    | {"xstest-should-respond": 154, "donotanswer": 136},
    {"math-prm": 984}
    | {f"hep-{name}": 164 for name in ("cpp", "go", "java", "js", "python", "rust")},
)


def test_every_weight_of_rewardbench_is_the_published_one() -> None:
    assert tuple(SECTIONS.values()) == WEIGHTS


def test_a_foreign_subset_is_named_and_removes_no_section(tmp_path: Path) -> None:
    subsets = ["math-prm", "hep-go", "mine"]
    pairs = [make_pair("f", user(f"{s}?"), ("longer", "no"), 1.0, subset=s) for s in subsets]
    result = bench(tmp_path, ["longer"], pairs)
    assert result["judges"]["longer"]["rewardbench/Reasoning"]["n"] == 2
    assert foreign_words(result) == ["In no section of RewardBench: mine."]
    plain = bench(tmp_path / "plain", ["longer"], pairs[2:])
    assert foreign_words(plain) == []


@pytest.mark.parametrize(
    ("judges", "changes", "message"),
    [
        (["longest"], {}, "did you mean 'longer'"),
        ([], {}, "no judge was named"),
        (["longer", "longer"], {}, "is named twice"),
        (["longer"], {"attacks": ["flatter"]}, "did you mean 'flattery'"),
        (["yes_no"], {}, "asks about text principles"),
        (["absent.yaml"], {}, "absent.yaml: not found"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, judges: list[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bench(tmp_path, judges, planted(3), **changes)


def test_a_model_that_nobody_named_is_refused_with_its_line(tmp_path: Path) -> None:
    file = judges_file(tmp_path, [], {"id": "lost", "kind": "pairwise", "by": "scriptd"})
    with pytest.raises(ConfigError, match=r"judges.yaml:\d+: .*did you mean 'scripted'"):
        bench(tmp_path, [file], planted(3))


def test_an_answer_in_two_pairs_is_judged_beside_each_of_its_opponents(tmp_path: Path) -> None:
    jurors = [{"kind": "longer", "id": "one"}, {"kind": "longer", "id": "two"}]
    path = tmp_path / "judges.yaml"
    jury = {"id": "jury", "kind": "jury", "pool": "mean", "of": jurors}
    path.write_text(yaml.safe_dump({"judges": [jury]}), "utf-8")
    question = user("Which?")
    pairs = [
        make_pair("f:0", question, ("three", "eleven chars"), 0.0),
        make_pair("f:1", question, ("three", "six"), 1.0),
    ]
    found = bench(tmp_path, [str(path)], pairs)["judges"]["jury"]
    assert (found["agreement"], found["n"], found["ties"]) == (1.0, 2, 0)


def test_what_a_judge_on_a_server_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question is 40 words or so, and two of them (one per order) cost what the server
    counted; the second run asks nothing and says the same."""
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    pairs = [make_pair("f", user(f"Question {i}?"), ("fine", "poor"), 1.0) for i in range(4)]
    price = {"input": 2.0, "output": 10.0}
    judge = {"id": "written", "kind": "pairwise", "verdict": "written", "max_new_tokens": 8}
    path = tmp_path / "judges.yaml"
    with ScriptedServer(lambda body, choice: "1", context=2000) as server:
        remote = {"path": "m", "engine": "openai", "base_url": server.url, "price": price}
        content = {"models": {"remote": remote}, "judges": [judge | {"by": "remote"}]}
        path.write_text(yaml.safe_dump(content), "utf-8")
        result = bench(tmp_path, [str(path)], pairs, attacks=["flattery"])
        kept = (tmp_path / "out" / "bench.json").read_bytes()
        asked = [len(prompt_text(body).split()) for body in server.asked]
        bench(tmp_path, [str(path)], pairs, attacks=["flattery"])
        assert len(server.asked) == len(asked)
    assert (tmp_path / "out" / "bench.json").read_bytes() == kept
    row = result["judges"]["written"]
    # The first slot always wins: every pair is a tie over both orders, and is attacked too.
    total, clean = row["total"], sum(asked[:8])
    assert (total["calls"], total["new_tokens"], len(asked)) == (16, 16, 16)
    assert total["prompt_tokens"] == sum(asked)
    assert total["money"] == pytest.approx((2.0 * sum(asked) + 10.0 * 16) / 1e6)
    assert row["calls_per_pair"]["mean"] == 2.0
    assert row["new_tokens_per_pair"]["mean"] == 2.0
    assert row["prompt_tokens_per_pair"]["mean"] == pytest.approx(clean / 4)
    assert row["money_per_pair"]["mean"] == pytest.approx((2.0 * clean + 10.0 * 8) / 4e6)
    assert row["attacks"]["flattery"]["success"]["mean"] == 0.0
    [words] = cost_words(result)
    assert words.startswith("written: 16 calls")
    assert f"{sum(asked):,} tokens read, 16 written, money" in words
    # Of the run that asked, and kept where a run asks nothing.
    assert row["wall_seconds_per_pair"] > 0
    assert words.endswith("seconds by the clock per pair.")
    page = bench_page(result, tmp_path / "page.html").read_text("utf-8")
    assert words in page
    assert "tokens written" in page


def test_totals_count_what_attacks_and_repeats_asked(tmp_path: Path) -> None:
    """An answer is asked about once, though it stands in two pairs; an attack asks about what it
    changed alone."""
    pairs = [make_pair("f", user("Which?"), ("fine", poor), 1.0) for poor in ("poor", "poorer")]
    rules = [
        {"match": "fine", "labels": {"3": 1.0}},
        {"match": "poor", "labels": {"2": 1.0}},
    ]
    file = judges_file(tmp_path, rules, {"id": "marks", "kind": "rating", "expected": True})
    row = bench(tmp_path, [file], pairs, attacks=["flattery"])["judges"]["marks"]
    assert row["total"]["calls"] == 3 + 2
    assert row["calls_per_pair"]["mean"] == 2.0
    assert row["total"]["money"] is None
    assert "money_per_pair" not in row
    again = bench(tmp_path, [file], pairs, repeats=2)["judges"]["marks"]
    assert again["total"]["calls"] == 3 + 3
