"""From pairs to the answer: people vote over HTTP, and `ai_vs_human` trains on what they said."""

from __future__ import annotations

import json
from pathlib import Path

from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import load_run
from rlaif.web.annotate.study import Study, make_study
from tests.support.annotating import Client, create_votes, sent_vote, serve

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "ai_vs_human.yaml"
COUNT = 12


def write_pairs(path: Path) -> Path:
    """Pairs of a long and a short answer, the short one second in every other row."""
    rows = []
    for number in range(COUNT):
        sides = [f"Plum {number}.", f"Well, the name of fruit {number} would be plum, I say."]
        first, second = sides if number % 2 else sides[::-1]
        rows.append({"prompt": f"Name fruit {number}.", "chosen": first, "rejected": second})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def vote_for_the_shorter(link: str, person: int) -> int:
    """Vote as a page does, on slots; how many votes were given."""
    client, count = Client(link), 0
    client.open()
    while (item := client.next()) is not None:
        first, second = map(len, item["answers"])
        verdict = "first" if first < second else "second"
        client.insist("/api/vote", sent_vote(item["item_id"], person, verdict))
        count += 1
    client.close()
    return count


def test_votes_train_an_arm_and_give_an_answer(tiny_model: Path, tmp_path: Path) -> None:
    db = tmp_path / "votes.db"
    create_votes(db, *make_study(Study(source=str(write_pairs(tmp_path / "p.jsonl")), overlap=2)))
    with serve(db) as server:
        links = server.links()
        counts = [vote_for_the_shorter(links[name], n) for n, name in enumerate(("ada", "ben"))]
    assert counts == [COUNT, COUNT]
    overrides = [f"data={db}", f"models.policy.path={tiny_model}", "arms=[human, ai]"]
    overrides += ["prompts.holdout=3", "prompts.limit=4", "steps.evaluate.max_new_tokens=4"]
    run_experiment(EXPERIMENT, tmp_path / "run", overrides)
    run = load_run(tmp_path / "run")
    human = [row for row in run.rows("preferences") if "human" in row["run_arms"].split()]
    labelled = [row for row in human if row["source"] == "human"]
    assert labelled and all(row["chosen"][0]["content"].startswith("Plum") for row in labelled)
    votes = [row for row in run.rows("judgements") if row["annotator_kind"] == "human"]
    assert {row["annotator_id"] for row in votes} == {"ada", "ben"}
    assert any("human" in said and "ai" in said for said in run.answers(run.page()))
