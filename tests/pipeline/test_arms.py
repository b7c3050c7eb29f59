"""Arms: one set of pairs, several labellers, and nothing else that differs."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.labelled import GivenPair
from rlaif.engines.model_folders import weights_hash
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.exports import trl_rows
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.reading import load_experiment
from rlaif.pipeline.runs import load_run
from rlaif.preferences.labels import flip_coins, flip_labels, keep_decided
from rlaif.report.arms import label_sentences
from rlaif.report.build import build_report
from rlaif.report.table import summary_table

Writer = Callable[..., Path]
BRIEF = {
    "name": "brief",
    "version": "1",
    "principles": [
        {
            "id": "brief",
            "text": "The answer has at most four words.",
            "check": {"rule": "word_limits", "params": {"min": 1, "max": 4}},
        }
    ],
}
ARMS = {
    "human": {"labels": "human"},
    "ai": {"labels": "ai"},
    "random": {"labels": "random"},
    "flipped": {"labels": "human", "flip": 0.25},
    "control": {"labels": "human", "flip": 0.0},
}
TRAIN = {"method": "dpo", "learning_rate": 1e-3, "batch_size": 4, "precision": "fp32"}
STEPS: list[dict[str, Any]] = [
    {"load": {"id": "people", "type": "pairs"}},
    {"judge": {"id": "brief", "kind": "rules"}},
    {"label": {}},
    {"train": TRAIN},
    {"evaluate": {"resamples": 50, "max_new_tokens": 6}},
]


def transcripts(count: int) -> list[dict[str, str]]:
    """Pairs of which people always prefer the short answer, which the rule prefers too."""
    rows = []
    for number in range(count):
        asked = f"\n\nHuman: What is item {number} called?\n\nAssistant:"
        rows.append(
            {
                "chosen": f"{asked} Item {number}, in short.",
                "rejected": f"{asked} Well, that would be the item with the number {number}.",
            }
        )
    return rows


def write(folder: Path, model: Path | None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in transcripts(16))
    (folder / "pairs.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "brief.yaml").write_text(yaml.safe_dump(BRIEF))
    policy: dict[str, Any] = {"path": "none", "engine": "fake"}
    if model is not None:
        policy = {"path": str(model), "dtype": "float32", "system_prompt": "drop"}
    data = {
        "name": "arms",
        "seed": 3,
        "models": {"policy": policy},
        "constitution": "brief.yaml",
        "data": "pairs.jsonl.gz",
        "prompts": {"holdout": 4},
        "arms": ARMS,
        "steps": STEPS,
    } | changes
    path = folder / "experiment.yaml"
    kept = {key: value for key, value in data.items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False))
    return path


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make_plan(prepare(write(folder, None, **changes), fetch=False))
    return str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    """The experiment file and its run folder."""
    folder = tmp_path_factory.mktemp("arms")
    path = write(folder / "config", tiny_model)
    run_experiment(path, folder / "run")
    return path, folder / "run"


def trained(root: Path) -> dict[str, tuple[str, str]]:
    """Arm to (hash of its train step, hash of its weights)."""
    return {
        arm: (step["hash"], weights_hash(root / "models" / step["hash"]))
        for step in load_run(root).manifest["steps"]
        if step["kind"] == "train"
        for arm in step["arms"]
    }


def test_the_same_labels_make_the_same_weights_byte_for_byte(finished: tuple[Path, Path]) -> None:
    models = trained(finished[1])
    steps = {arm: step for arm, (step, _) in models.items()}
    weights = {arm: digest for arm, (_, digest) in models.items()}
    # Each was trained by a step of its own, so equal weights are a result and no shared file.
    assert len(set(steps.values())) == len(ARMS)
    assert weights["human"] == weights["control"] == weights["ai"]
    assert len({weights[arm] for arm in ("human", "random", "flipped")}) == 3


def test_arms_differ_in_labels_alone(finished: tuple[Path, Path]) -> None:
    rows: dict[str, dict[str, Any]] = {arm: {} for arm in ARMS}
    for row in load_run(finished[1]).rows("preferences"):
        rows[row["run_arms"]][row["preference_id"]] = row
    assert len({tuple(found) for found in rows.values()}) == 1
    human = rows["human"]
    turned = {
        arm: sum(found[name]["chosen"] != human[name]["chosen"] for name in human)
        for arm, found in rows.items()
    }
    assert len(human) == 12
    assert turned["flipped"] == 3
    assert turned["ai"] == turned["control"] == 0
    assert 0 < turned["random"] < 12
    for arm, found in rows.items():
        for name, row in found.items():
            same = [row["chosen"], row["rejected"]]
            assert sorted(map(str, same)) == sorted(
                map(str, [human[name]["chosen"], human[name]["rejected"]])
            ), arm


def test_shared_steps_are_planned_and_run_once(finished: tuple[Path, Path]) -> None:
    run = load_run(finished[1])
    shared = {s["id"] for s in run.manifest["steps"] if s["arms"] == list(ARMS)}
    assert {"people", "brief", "evaluate.people", "evaluate.sample", "evaluate.arms"} <= shared
    ids = [s["id"] for s in run.manifest["steps"]]
    assert ids.count("people") == ids.count("brief") == ids.count("evaluate.people") == 1
    assert ids.count("train") == ids.count("label") == len(ARMS)
    again = run_experiment(*finished)
    assert (again.ran, again.reused) == (0, len(ids))


def test_rounds_and_status_name_the_arms(finished: tuple[Path, Path]) -> None:
    run = load_run(finished[1])
    status = run.status()
    assert [(r["arm"], r["round"]) for r in status["rounds"]] == [
        (arm, number) for arm in ARMS for number in (0, 1)
    ]
    by_arm = {r["arm"]: r for r in status["rounds"] if r["round"] == 1}
    assert by_arm["human"]["metrics"] == by_arm["control"]["metrics"]
    assert by_arm["human"]["metrics"] != by_arm["flipped"]["metrics"]
    assert set(run.rounds.arm) == set(ARMS)
    assert {row["arms"] for row in trl_rows(run)} == set(ARMS)


def test_the_implicit_reward_learnt_whose_labels_it_saw(finished: tuple[Path, Path]) -> None:
    rounds = load_run(finished[1]).status()["rounds"]
    human = next(r for r in rounds if r["arm"] == "human" and r["round"] == 1)
    for annotator in ("human", "brief"):
        accuracy = human["metrics"][f"reward_accuracy/{annotator}"]
        assert accuracy["n"] == 4
        assert accuracy["mean"] == 1.0
    start = next(r for r in rounds if r["arm"] == "human" and r["round"] == 0)
    assert "reward_accuracy/human" not in start["metrics"]


def test_a_judge_is_taught_by_labels_of_prompts_that_no_arm_uses(
    tmp_path: Path, tiny_model: Path
) -> None:
    steps = [
        {"load": {"id": "others", "type": "preferences", "prompts": "other"}},
        {"distill": {"id": "taught", "method": "linear", "layers": 1}},
        {"load": {"id": "people", "type": "pairs"}},
        {"judge": {"id": "opinion", "kind": "reward_model", "by": "taught"}},
        *STEPS[2:],
    ]
    keys: dict[str, Any] = {
        "arms": {"human": {"labels": "human"}, "ai": {"labels": "opinion"}},
        "judges": [{"id": "brief", "kind": "rules"}],
        "steps": steps,
    }
    # A later turn of a conversation that an arm trains on or is evaluated on, or of another one.
    path = write(tmp_path, tiny_model, prompts={"holdout": 4, "limit": 6}, **keys)
    inputs = prepare(path)
    own = [p.messages[0]["content"] for p in inputs.prompts.every()]
    asked = {f"What is item {number} called?" for number in range(16)}
    (free, *_) = sorted(asked - set(own))
    rows = transcripts(16)
    for start in (own[0], own[-1], free):
        more = f"\n\nHuman: {start}\n\nAssistant: Say more.\n\nHuman: More.\n\nAssistant:"
        rows.append({"chosen": f"{more} Yes.", "rejected": f"{more} No, never, no, not at all."})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    others = tmp_path / "others.jsonl.gz"
    others.write_bytes(gzip.compress(text.encode()))
    steps[0]["load"]["path"] = others.name
    path = write(tmp_path, tiny_model, prompts={"holdout": 4, "limit": 6}, **keys)

    run_experiment(path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    loads = [s for s in run.manifest["steps"] if s["id"] == "others"]
    assert len(loads) == 1
    assert loads[0]["arms"] == ["human", "ai"]
    folder = tmp_path / "run" / "steps" / loads[0]["hash"]
    counts = json.loads((folder / "done.json").read_text())["counts"]
    assert counts == {"preferences": 7, "of_own_prompts": 12}
    (kept,) = folder.glob("preferences.jsonl")
    read = [json.loads(line)["prompt"] for line in kept.read_text().splitlines()]
    assert {turns[0]["content"] for turns in read} == asked - set(own)
    assert sum(len(turns) > 1 for turns in read) == 1
    # What an arm is compared on is named, and the judge that labelled is no part of it.
    last = run.status()["rounds"][-1]
    assert "score/brief" in last["metrics"]
    assert "score/opinion" not in last["metrics"]

    def digest(**prompts: int) -> str:
        planned = make_plan(prepare(write(tmp_path, tiny_model, prompts=prompts, **keys)))
        return next(p.hash for p in planned if p.id == "others")

    assert digest(holdout=4, limit=6) == loads[0]["hash"] != digest(holdout=4, limit=7)
    steps[0]["load"].pop("path")
    path = write(tmp_path, tiny_model, **keys)
    with pytest.raises(RlaifError, match="`prompts: other`: all of its 16 pairs are of the exper"):
        run_experiment(path, tmp_path / "none")


RATIOS = ("win_rate/", "length_factor/")


def test_the_comparison_holds_agreement_and_paired_differences(finished: tuple[Path, Path]) -> None:
    (found,) = load_run(finished[1]).status()["arms"]
    assert (found["seed"], found["round"], found["arms"]) == (3, 1, list(ARMS))
    labels = found["labels"]
    assert len(labels) == len(found["deltas"]) == 10
    for name in ("human/ai", "human/control", "ai/control"):
        assert labels[name]["agreement"]["mean"] == labels[name]["kappa"]["mean"] == 1.0
    assert labels["human/flipped"]["agreement"]["mean"] == 0.75
    assert labels["human/flipped"]["agreement"]["low"] < 0.75
    same = found["deltas"]["human/control"]
    assert all(d["mean"] == 0 for name, d in same.items() if not name.startswith(RATIOS))
    assert all(d["mean"] == 1 for name, d in same.items() if name.startswith("length_factor/"))
    other = found["deltas"]["human/flipped"]
    assert any(d["mean"] != 0 for d in other.values())
    assert {"score/brief", "win_rate/brief", "kl/initial", "length/words"} <= set(other)


def test_the_page_and_the_terminal_lay_the_arms_side_by_side(
    tmp_path: Path, finished: tuple[Path, Path]
) -> None:
    view = load_run(finished[1]).view()
    page = build_report(view, tmp_path / "page.html").read_text(encoding="utf-8")
    headings = "".join(f'<th scope="col">{name}</th>' for name in ("M0", *ARMS))
    assert headings in page
    assert "<code>human</code> and <code>flipped</code></th>" in page
    assert '<th scope="col">flipped less human</th>' in page
    assert '<select id="pair-arm">' in page
    models = [model["model"] for model in view.shown.answers[0]["models"]]
    assert models == ["M0", *(f"M1 {arm}" for arm in ARMS)]
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(summary_table(view.rounds, load_run(finished[1]).page()))
    text = console.export_text()
    assert all(arm in text for arm in ARMS)
    assert "reward_accuracy/human" in text


def test_the_labels_agreement_is_said_in_words(finished: tuple[Path, Path]) -> None:
    said = label_sentences(load_run(finished[1]).comparisons())
    assert said[0] == (
        "Labels of human and ai: same choice on 1.000 [0.712, 1.000] of 12 pairs, "
        "kappa 1.000 [no interval]; agree on every pair."
    )
    assert said[2].startswith("Labels of human and flipped: same choice on 0.750 [")


def test_other_arms_in_another_order_change_no_arm(
    tmp_path: Path, finished: tuple[Path, Path]
) -> None:
    path, whole = finished
    changed = {arm: ARMS[arm] for arm in ("flipped", "human")}
    data = yaml.safe_load(path.read_text()) | {"arms": changed}
    fewer = path.with_name("fewer.yaml")
    fewer.write_text(yaml.safe_dump(data))
    run_experiment(fewer, tmp_path / "run")
    assert trained(tmp_path / "run")["flipped"][1] == trained(whole)["flipped"][1]


def test_short_and_long_forms_are_one(tmp_path: Path) -> None:
    forms: list[Any] = [
        ["human", "ai", "random", {"flipped": 0.25}],
        {"human": None, "ai": None, "random": None, "flipped": 0.25},
        {name: ARMS[name] for name in ("human", "ai", "random", "flipped")},
    ]
    found = [load_experiment(write(tmp_path, None, arms=form))[0].arms for form in forms]
    assert found[0] == found[1] == found[2]
    assert list(found[0]) == ["human", "ai", "random", "flipped"]


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (["humen"], "'humen' is no arm that needs no more words; did you mean 'human'?"),
        (
            {"ai": {"labels": "brif"}},
            "'brif' is no judge step before `label`; did you mean 'brief'",
        ),
        ([{"flipped": 1.5}], "less than or equal to 1"),
        ({"noisy": {"labels": "human", "flip": -0.1}}, "greater than or equal to 0"),
        ([{"flipped": "half"}], "'flipped' is no arm that needs no more words"),
        (["human", "human"], "arm 'human' is given twice"),
        ({"a": {"label": "human"}}, "unknown key 'arms.a.label'; did you mean 'labels'?"),
        ("human", "expected a list such as [human, ai]"),
        ({"two words": {"labels": "human"}}, "should match pattern"),
    ],
)
def test_arms_that_mean_nothing_are_refused(tmp_path: Path, arms: Any, words: str) -> None:
    message = refusal(tmp_path, arms=arms)
    assert words in message
    assert message.startswith(f"{tmp_path / 'experiment.yaml'}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": STEPS[1:]}, "no step is `load: {type: pairs}`"),
        (
            {"steps": STEPS[1:], "prompts": {"path": "pairs.jsonl.gz", "holdout": 4}},
            "a `label` step labels loaded pairs, and none are loaded",
        ),
        ({"steps": [*STEPS[:2], *STEPS[3:]]}, "`arms` need one `label` step, and there are 0"),
        ({"steps": [STEPS[2], *STEPS[:2], *STEPS[3:]]}, "label has no pairs"),
        (
            {"steps": [STEPS[0], *STEPS[2:]], "arms": ["ai"]},
            "labels: 'ai' needs a judge step before `label`",
        ),
        (
            {"steps": [*STEPS[:2], {"label": {"labels": "human"}}, *STEPS[3:]]},
            "the arms say who labels",
        ),
        ({"data": None}, "names no file: give it `path`, or the experiment `data`"),
        ({"data": "absent.jsonl"}, "absent.jsonl: not found"),
        (
            {"steps": [STEPS[0], {"judge": {"id": "ai", "kind": "rules"}}, *STEPS[2:]]},
            "`labels: ai` has a meaning of its own",
        ),
        (
            {"steps": [*STEPS[:2], {"label": {"weights": {"brif": 1}}}, *STEPS[3:]]},
            "weights: 'brif' is no judge before this step; did you mean 'brief'?",
        ),
    ],
)
def test_an_experiment_whose_arms_cannot_label_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in refusal(tmp_path, **changes)


def run_labels(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> None:
    """Run up to the labels, with a scripted policy and these rows as data."""
    path = write(folder, None, steps=STEPS[:3], **changes)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "pairs.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    run_experiment(path, folder / "run")


def test_a_row_with_an_answer_on_one_side_only_is_named(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [*transcripts(8), {"chosen": transcripts(9)[8]["chosen"]}]
    with pytest.raises(ConfigError, match=r"pairs\.jsonl\.gz:9: rejected is missing"):
        run_labels(tmp_path, rows)


def test_a_row_that_cannot_be_read_is_skipped_on_demand(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [*transcripts(8), {"chosen": transcripts(9)[8]["chosen"]}]
    path = write(tmp_path, None)
    load = {"load": {"id": "people", "type": "pairs", "on_error": "skip"}}
    data = yaml.safe_load(path.read_text()) | {"steps": [load, *STEPS[1:3]]}
    path.write_text(yaml.safe_dump(data))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    run_experiment(path, tmp_path / "run")
    counts = {s["id"]: s["counts"] for s in load_run(tmp_path / "run").status()["steps"]}
    assert counts["people"] == {"pairs": 4, "completions": 8, "judgements": 4, "skipped": 1}


def test_pairs_that_nobody_labelled_cannot_train_the_human_arm(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q{n}?", "response 1": "a", "response 2": "b", "label": None} for n in range(8)
    ]
    with pytest.raises(RlaifError, match="labels 'human': none of the 4 pairs has a label"):
        run_labels(tmp_path, rows)


def test_labels_of_other_answers_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, None)
    run_experiment(write(tmp_path, None, steps=STEPS[:3], arms=["human", "ai"]), tmp_path / "first")
    folder = next(s for s in load_run(tmp_path / "first").manifest["steps"] if s["id"] == "brief")[
        "hash"
    ]
    rows = (tmp_path / "first" / "steps" / folder / "judgements.jsonl").read_text()
    (tmp_path / "old.jsonl").write_text(rows.replace('"x_', '"y_'))
    load = {"load": {"id": "old", "type": "judgements", "path": "old.jsonl"}}
    data = yaml.safe_load(path.read_text())
    data |= {"steps": [STEPS[0], load, STEPS[2]], "arms": {"past": {"labels": "old"}}}
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(
        RlaifError, match=r"labels 'old': none of its .* judgements gives a verdict"
    ):
        run_experiment(path, tmp_path / "run")


def test_labels_for_other_prompts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "How?"}\n')
    with pytest.raises(ConfigError, match="none of its 8 rows is a pair of answers to one of the"):
        run_labels(tmp_path, transcripts(8), prompts={"path": "prompts.jsonl", "holdout": 1})


PAIRS = [GivenPair(f"l_{n}", f"p_{n}", f"x_{n}a", f"x_{n}b") for n in range(200)]


def test_flips_are_an_exact_nested_share_that_the_seed_draws() -> None:
    labels = {pair.pair_id: 1.0 for pair in PAIRS}
    quarter, few = flip_labels(labels, 0.25, 1)
    _, more = flip_labels(labels, 0.5, 1)
    assert sum(p == 0.0 for p in quarter.values()) == len(few) == 50
    assert few < more and len(more) == 100
    assert flip_labels(labels, 0.25, 2)[1] != few
    assert flip_labels(dict(reversed(labels.items())), 0.25, 1)[1] == few
    assert flip_labels(labels, 0.0, 1) == (labels, frozenset())
    assert set(flip_labels(labels, 1.0, 1)[0].values()) == {0.0}


def test_the_coin_is_fair_and_of_the_seed() -> None:
    heads = sum(flip_coins(PAIRS, 1).values())
    # Beyond four standard deviations of 200 fair coins.
    assert abs(heads - 100) < 29
    assert flip_coins(PAIRS, 1) == flip_coins(PAIRS[::-1], 1) != flip_coins(PAIRS, 2)


def test_unnamed_votes_on_one_pair_are_counted_each(tmp_path: Path) -> None:
    asked = {"prompt": "Why?", "response 1": "So.", "response 2": "Because."}
    votes = [{**asked, "label": label} for label in (0, 0, 1)]
    others = [{**asked, "prompt": f"Why {n}?", "label": 0} for n in range(3)]
    run_labels(tmp_path, [*votes, *others], prompts={"holdout": 1}, arms=["human"])
    found = list(load_run(tmp_path / "run").rows("preferences"))
    shares = {row["prompt"][0]["content"]: row["score_chosen"] for row in found}
    assert shares["Why?"] == pytest.approx(2 / 3)
    assert len(found) == 3


def test_a_pair_counts_when_everybody_decided_it() -> None:
    one = {"l_0": 1.0, "l_1": 0.5, "l_2": 0.2}
    other = {"l_0": 0.1, "l_1": 1.0, "l_3": 0.9}
    assert [p.pair_id for p in keep_decided(PAIRS, [one, other])] == ["l_0"]
    assert [p.pair_id for p in keep_decided(PAIRS, [one])] == ["l_0", "l_2"]
