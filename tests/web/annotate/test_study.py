"""From pairs, answers and runs to a votes database."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from msgspec import structs

from rlaif.cli import cli
from rlaif.core.errors import ConfigError, StoreError
from rlaif.core.records import Judgement, from_json
from rlaif.data.vote_store import slot_of_a
from rlaif.data.votes import Vote, VoteSettings, read_items, read_settings, read_votes
from rlaif.pipeline.runs import load_run
from rlaif.web.annotate.items import draw_items, file_items
from rlaif.web.annotate.run_items import run_items
from rlaif.web.annotate.server import AnnotationServer
from rlaif.web.annotate.study import SCALE, Study, make_study, open_study
from rlaif.web.annotate.voting import say_prelabels
from tests.support.annotating import make_database, make_items

OLD = Path(__file__).resolve().parents[2] / "old_run" / "run"
FIRST = Path(__file__).resolve().parents[2] / "first_version" / "run"
RULES = {
    "name": "two",
    "principles": [
        {"id": "brief", "text": "Choose the shorter one.", "scale": {0: "no", 1: "yes"}},
        {"id": "steps", "text": "Choose the one in steps.", "applies_when": {"pattern": "how"}},
        {"id": "length", "check": {"rule": "word_limits", "params": {"min": 1, "max": 9}}},
    ],
}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Twenty pairs that people labelled, of which every second asks how."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"{('How', 'Why')[n % 2]} {n}?", "chosen": f"Yes {n}.", "rejected": f"No {n}."}
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_yaml(path: Path, value: Any) -> Path:
    path.write_text(yaml.safe_dump(value), "utf-8")
    return path


def test_the_pairs_of_a_file(pairs: Path) -> None:
    items = file_items(pairs, rate=False)
    assert len(items) == 20 and {item.kind for item in items} == {"pair"}
    one = items[0]
    assert (one.prompt[0]["content"], one.a[0]["content"]) == ("How 0?", "Yes 0.")
    assert one.b is not None and one.b[0]["content"] == "No 0."
    # People's label is known, and makes nobody uncertain.
    assert one.judges[0].annotator_kind == "human" and one.uncertainty is None
    rated = file_items(pairs, rate=True)
    assert len(rated) == 40 and rated[0].b is None and rated[0].item_id == one.a_id


def test_the_same_pair_is_one_item(pairs: Path) -> None:
    pairs.write_text(pairs.read_text("utf-8") * 2, "utf-8")
    assert len(file_items(pairs, rate=False)) == 20


def test_preferences_keep_their_ids_and_say_who_judged(tmp_path: Path) -> None:
    row = {
        "preference_id": "f_1", "prompt_id": "p", "round": 1, "score_chosen": 0.9,
        "prompt": [{"role": "user", "content": "Why?"}], "score_rejected": 0.1, "margin": 0.8,
        "chosen": [{"role": "assistant", "content": "So."}], "prob": 0.9, "weight": 1.0,
        "rejected": [{"role": "assistant", "content": "No."}], "reason": "", "source": "jury",
        "judgement_ids": [], "chosen_id": "k_1", "rejected_id": "k_2",
    }  # fmt: skip
    path = tmp_path / "preferences.jsonl"
    path.write_text(json.dumps(row) + "\n", "utf-8")
    [item] = file_items(path, rate=False)
    assert (item.item_id, item.a_id, item.b_id, item.prompt_id) == ("f_1", "k_1", "k_2", "p")
    assert item.judges[0].judge == "jury" and item.uncertainty == pytest.approx(0.2)


def test_the_pairs_of_a_run_with_its_judges(tmp_path: Path) -> None:
    run = load_run(OLD)
    items = run_items(run, rate=False)
    rows = {row["preference_id"]: row for row in run.rows("preferences")}
    assert {item.item_id for item in items} == set(rows)
    for item in items:
        assert item.a == rows[item.item_id]["chosen"]
        assert {judge.judge for judge in item.judges} == {"checks", "self"}
        kinds = {judge.judge: judge.annotator_kind for judge in item.judges}
        assert kinds == {"checks": "rule", "self": "ai"}
        assert all(judge.prob_a is not None and 0 <= judge.prob_a <= 1 for judge in item.judges)
        assert item.uncertainty is not None
    answers = run_items(run, rate=True)
    assert all(0 <= judge.score <= 1 for item in answers for judge in item.judges if judge.score)
    settings, _ = make_study(Study(source=str(OLD)))
    assert [p.id for p in settings.principles]


def test_held_out_answers_are_of_models_that_were_evaluated() -> None:
    run = load_run(FIRST)
    with pytest.raises(ConfigError, match=r"evaluated no model 'M9'"):
        run_items(run, rate=False, models=["M0", "M9"])
    with pytest.raises(ConfigError, match="takes two models"):
        run_items(run, rate=False, models=["M0"])
    rated = run_items(run, rate=True, models=["M0"])
    assert rated and all(item.kind == "rating" for item in rated)


def test_a_database_is_made_once_and_gone_on_with(tmp_path: Path, pairs: Path) -> None:
    db = tmp_path / "v.db"
    with pytest.raises(ConfigError, match="does not exist yet: name the run or the file of pairs"):
        open_study(db, Study())
    open_study(db, Study(source=str(pairs), seed=3, overlap=2)).close()
    first = read_items(db)
    open_study(db, Study()).close()
    open_study(db, Study(source=str(pairs), seed=3, prelabels="after", lease=60.0)).close()
    assert read_items(db) == first
    settings = read_settings(db)
    assert (settings.overlap, settings.prelabels, settings.lease) == (2, "after", 60.0)
    for study, said in (
        (Study(source=str(pairs), seed=4), "its seed is 3, and 4 is asked for"),
        (Study(source="others.jsonl"), "its source is"),
        (Study(source=str(pairs), rate=True), "its kind is pair, and rating"),
        (Study(budget=5), "its budget is None, and 5"),
        (Study(gold_share=0.5), "its gold share is 0.0, and 0.5"),
    ):
        with pytest.raises(ConfigError, match=said):
            open_study(db, study)


def test_principles_are_those_that_apply(tmp_path: Path, pairs: Path) -> None:
    rules = str(write_yaml(tmp_path / "rules.yaml", RULES))
    settings, items = make_study(Study(source=str(pairs), constitution=rules))
    # A principle without a text is a program's.
    assert [p.id for p in settings.principles] == ["brief", "steps"]
    assert settings.principles[0].scale == {0: "no", 1: "yes"}
    for item in items:
        asks_how = item.prompt[0]["content"].startswith("How")
        assert item.principles == (["brief", "steps"] if asks_how else ["brief"])
    one = make_study(Study(source=str(pairs), constitution=rules, principles=["steps"]))[0]
    assert [p.id for p in one.principles] == ["steps"]
    none = make_study(Study(source=str(pairs), constitution=rules, principles=[]))
    assert none[0].principles == [] and none[1][0].principles == []
    with pytest.raises(ConfigError, match="has no principle 'stepz'"):
        make_study(Study(source=str(pairs), constitution=rules, principles=["stepz"]))
    with pytest.raises(ConfigError, match="there is no constitution"):
        make_study(Study(source=str(pairs), principles=["steps"]))


def test_scales(tmp_path: Path, pairs: Path) -> None:
    assert make_study(Study(source=str(pairs), rate=True))[0].scale == SCALE
    scale = write_yaml(tmp_path / "s.yaml", {3: "good", 1: "bad"})
    made = make_study(Study(source=str(pairs), rate=True, scale=scale))[0]
    assert list(made.scale.items()) == [(1, "bad"), (3, "good")]
    with pytest.raises(ConfigError, match="which --rate asks for"):
        make_study(Study(source=str(pairs), scale=scale))
    for wrong in ({1: "bad"}, ["bad", "good"], {"x": "bad", "y": "good"}, {1: "", 2: "good"}):
        path = write_yaml(tmp_path / "wrong.yaml", wrong)
        with pytest.raises(ConfigError, match=r"what they mean|expected a mapping"):
            make_study(Study(source=str(pairs), rate=True, scale=path))


def test_gold_questions_of_a_file_and_of_people_s_labels(tmp_path: Path, pairs: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    rows = [{"prompt": "Gold?", "chosen": "Good.", "rejected": "Bad."}]
    gold.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings, items = make_study(Study(source=str(pairs), gold=gold))
    known = [item for item in items if item.gold is not None]
    assert [(item.gold, item.a[0]["content"], item.judges) for item in known] == [
        ("a", "Good.", [])
    ]
    assert settings.gold_share == 0.1 and len(items) == 21
    # One that is also among the pairs is asked once, as a question with a known answer.
    gold.write_text(pairs.read_text("utf-8").split("\n")[0] + "\n", "utf-8")
    _, items = make_study(Study(source=str(pairs), gold=gold))
    assert len(items) == 20 and [item.judges for item in items if item.gold is not None] == [[]]
    _, items = make_study(Study(source=str(pairs), gold_share=0.4, seed=2))
    marked = [item for item in items if item.gold == "a"]
    assert 3 <= len(marked) <= 13 and len(items) == 20
    assert all(item.judges for item in items if item.gold is None)
    # The label that is the known answer is no judge's verdict any more.
    assert not any(j.annotator_kind == "human" for item in marked for j in item.judges)
    with pytest.raises(ConfigError, match="no pair with a label by people"):
        make_study(Study(source=str(OLD), gold_share=0.5))
    with pytest.raises(ConfigError, match="--gold takes pairs"):
        make_study(Study(source=str(pairs), gold=gold, rate=True))


def test_a_budget_draws_items_with_their_probability(tmp_path: Path, pairs: Path) -> None:
    settings, items = make_study(Study(source=str(pairs), budget=8, seed=1))
    assert (settings.budget, settings.population) == (8, 20)
    # Nobody judged them, so all are as uncertain: 8 of 20.
    assert [item.probability for item in items] == pytest.approx([0.4] * len(items))
    assert 2 < len(items) < 14
    again = make_study(Study(source=str(pairs), budget=8, seed=1))[1]
    assert again == items != make_study(Study(source=str(pairs), budget=8, seed=2))[1]
    _, drawn = make_study(Study(source=str(OLD), budget=3))
    doubts = sorted((item.uncertainty, item.probability) for item in drawn)
    assert doubts == sorted(doubts, key=lambda pair: pair[1])


def test_what_no_judge_has_judged_is_as_likely_to_be_drawn_as_the_most_doubtful() -> None:
    items = make_items(60)
    doubts = [None, 1.0, 0.1]
    items = [structs.replace(item, uncertainty=doubts[n % 3]) for n, item in enumerate(items)]
    drawn = draw_items(items, 30, 3)
    (unknown,), (most,), (least,) = (
        {item.probability for item in drawn if item.uncertainty == doubt} for doubt in doubts
    )
    assert unknown == most > 2 * least


def test_what_cannot_be_voted_on_is_refused(tmp_path: Path, pairs: Path) -> None:
    alone = tmp_path / "alone.jsonl"
    alone.write_text(json.dumps({"prompt": "Why?", "completion": "So.", "label": True}) + "\n")
    with pytest.raises(ConfigError, match=r"--rate asks people for ratings"):
        make_study(Study(source=str(alone)))
    assert len(make_study(Study(source=str(alone), rate=True))[1]) == 1
    with pytest.raises(ConfigError, match="takes a run folder, and this is none"):
        make_study(Study(source=str(pairs), models=["M0", "M1"]))
    with pytest.raises(ConfigError, match="this is a run"):
        make_study(Study(source=str(OLD), from_="trl"))


def test_the_command_prints_everybody_s_link(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(server: AnnotationServer) -> None:
        server.socket.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(AnnotationServer, "serve_forever", stop)
    words = ["annotate", str(pairs), "--db", str(tmp_path / "v.db"), "--people", "ada, ben"]
    done = CliRunner().invoke(cli, [*words, "--port", "0"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith(f"20 pairs of {pairs} at http://127.0.0.1:")
    names = [line.partition(": ")[0].strip() for line in lines]
    assert names[1:4] == ["ada", "ben", "the owner"]
    assert lines[4] == f"stopped; the votes are in {tmp_path / 'v.db'}"
    links = [line.partition("/open/")[2] for line in lines[1:4]]
    assert len(set(links)) == 3 and all(len(token) == 64 for token in links)
    # Others on the network are let in only where it is asked for, and told what it means.
    assert "note:" not in done.output
    public = ["--host", "0.0.0.0", "--address", "http://lab.example.org:8300", "--port", "0"]
    done = CliRunner().invoke(cli, [*words, *public])
    assert "lets others on the network reach these pages" in done.output
    assert "travel unencrypted" in done.output
    assert "ada: http://lab.example.org:8300/open/" + links[0] in done.output
    done = CliRunner().invoke(cli, [*words, "--host", "0.0.0.0"])
    assert isinstance(done.exception, ConfigError) and "--address" in str(done.exception)


def test_the_command_writes_votes(tmp_path: Path) -> None:
    from rlaif.data.vote_store import VoteStore

    path = make_database(tmp_path / "v.db", make_items(2))
    store = VoteStore(path)
    for number, comment in enumerate(("=1+1", "plain, with a comma")):
        item = store.hand_out("ada", 0.0).item
        assert item is not None
        vote = Vote(
            vote_id=f"v{number}", item_id=item.item_id, kind="pair", annotator="ada", verdict="b",
            comment=comment, principles={"brief": "tie"},
        )  # fmt: skip
        store.record(vote, str(number))
    store.close()
    for name in ("votes.jsonl", "votes.csv"):
        done = CliRunner().invoke(cli, ["votes", str(path), "--out", str(tmp_path / name)])
        assert done.output == f"2 votes in {tmp_path / name}\n"
    lines = (tmp_path / "votes.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["comment"] for line in lines] == ["=1+1", "plain, with a comma"]
    with (tmp_path / "votes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # A spreadsheet would compute the first.
    assert [row["comment"] for row in rows] == ["'=1+1", "plain, with a comma"]
    assert rows[0]["verdict"] == "b" and json.loads(rows[0]["principles"]) == {"brief": "tie"}
    judged = tmp_path / "judgements.jsonl"
    words = ["votes", str(path), "--records", "judgements", "--out"]
    done = CliRunner().invoke(cli, [*words, str(judged)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in judged.read_text("utf-8").splitlines()]
    assert [from_json(Judgement, row).annotator_kind for row in rows] == ["human", "human"]
    # The vote is for b, and a has the smaller id.
    assert [(row["prob_first"], row["shown"][0][0]) for row in rows] == [(0.0, "a")] * 2
    done = CliRunner().invoke(cli, [*words, str(tmp_path / "v.csv")])
    assert isinstance(done.exception, ConfigError) and "judgements must end" in str(done.exception)
    done = CliRunner().invoke(cli, ["votes", str(path), "--out", str(tmp_path / "v.txt")])
    assert isinstance(done.exception, ConfigError) and "must end in .jsonl" in str(done.exception)
    done = CliRunner().invoke(cli, ["votes", str(tmp_path / "no.db"), "--out", "x.csv"])
    assert isinstance(done.exception, StoreError)
    assert len(read_votes(path)) == 2


def test_prelabels_name_the_slot_that_a_person_sees() -> None:
    settings = VoteSettings(source="s", kind="pair")
    (item,) = make_items(1)
    slots = {name: slot_of_a(settings.seed, name, item.item_id) for name in "abcdefgh"}
    assert set(slots.values()) == {0, 1}
    for name, slot in slots.items():
        place = ("first", "second")[slot]
        assert say_prelabels(item, settings, name) == [f"j: the {place} answer is better (80%)"]
