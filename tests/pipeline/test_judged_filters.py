"""Filters by judges, by people's labels and by counts, in experiments that run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.forecast import forecast
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import Run, load_run
from rlaif.preferences.aggregate import candidate_scores

Writer = Callable[..., Path]
Steps = list[dict[str, Any]]
REPLIES = ["One two three four.", "No.", "It is what it is, and more than that it is not.", "Yes."]
SAMPLE = {"sample": {"id": "answers", "n": 4, "temperature": 1.0}}
GRADE = {
    "judge": {
        "id": "grade",
        "kind": "additive",
        "by": "policy",
        "template": "grade.j2",
        "temperature": 0.8,
        "samples": 2,
    }
}
RANKED = {"load": {"id": "ranked", "type": "pairs", "path": "pairs.jsonl", "prompts": "own"}}


def filtered(*filters: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"filter": {"id": "kept", "filters": list(filters), **keys}}


def of_answers(*filters: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return filtered(*filters, records="completions", **keys)


@pytest.fixture
def write(tmp_path: Path, write_experiment: Writer) -> Callable[..., Path]:
    """An experiment of some steps with a scripted policy, which grades answers too."""
    graded = [
        # A grade that cannot be read, and one that depends on the seed.
        {"match": r"\nNo\.\n", "replies": ["I cannot say."]},
        {"match": r"\nYes\.\n", "replies": ["Score: 1", "Score: 5"]},
        {"match": r"One two", "replies": ["Score: 4"]},
        {"match": r"GRADE", "replies": ["Score: 2"]},
    ]
    script = {"rules": [*graded, {"match": ".", "replies": REPLIES}]}

    def build(steps: Steps, **changes: Any) -> Path:
        path = write_experiment(
            tmp_path,
            None,
            rounds=1,
            models={"policy": {"path": "none", "engine": "fake", "script": "script.yaml"}},
            steps=steps,
            **changes,
        )
        (tmp_path / "script.yaml").write_text(yaml.safe_dump(script))
        (tmp_path / "grade.j2").write_text(
            "---user---\nGRADE {{ fence }} from {{ low }} to {{ high }}\n{{ response }}\n"
            "end\n---form---\nScore: VALUE\n"
        )
        return path

    return build


def ran(path: Path) -> Run:
    run_experiment(path, path.parent / "out")
    return load_run(path.parent / "out")


def prompts_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.store.root / "prompts.jsonl").open()]


def folder_of(run: Run, name: str) -> Any:
    return run.store.step(next(s["hash"] for s in run.manifest["steps"] if s["id"] == name))


def refused(write: Callable[..., Path], *steps: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        make_plan(prepare(write(list(steps)), fetch=False))
    return str(error.value)


def scores_of(run: Run) -> dict[str, float]:
    """The mean grade of every answer that has one."""
    groups: dict[str, list[Judgement]] = {}
    for judgement in folder_of(run, "grade").records(Judgement):
        groups.setdefault(judgement.prompt_id, []).append(judgement)
    found: dict[str, float] = {}
    for rows in groups.values():
        found |= {k: v for k, v in candidate_scores(rows).items() if v is not None}
    return found


def test_the_best_answers_of_each_prompt_are_kept_and_what_has_no_score_is_none(
    write: Callable[..., Path],
) -> None:
    path = write([SAMPLE, GRADE, of_answers({"kind": "best", "by": "grade", "k": 2})])
    run = ran(path)
    scores = scores_of(run)
    kept = [c.completion_id for c in folder_of(run, "kept").records(Completion)]
    every = list(folder_of(run, "answers").records(Completion))
    assert {scores.get(c.completion_id) for c in every if c.text == "No."} == {None}
    wanted = []
    for prompt_id in {c.prompt_id for c in every}:
        own = [c.completion_id for c in every if c.prompt_id == prompt_id]
        known = sorted((n for n in own if n in scores), key=lambda n: (-scores[n], n))
        wanted += known[:2]
    assert sorted(kept) == sorted(wanted)
    sizes = {row.id: row.units for row in forecast(prepare(path), run.store)}
    assert sizes["kept"] == 2 * len({c.prompt_id for c in every}) >= len(kept)
    (stage,) = folder_of(run, "kept").done()["funnel"]
    missing = sum(c.completion_id not in scores for c in every)
    assert missing and stage["why"]["no score by grade"] == missing
    assert stage["filter"] == "best by grade" and stage["left"] == len(wanted)


def test_the_best_of_all_prompts_and_those_of_a_score_or_more(write: Callable[..., Path]) -> None:
    steps = [SAMPLE, GRADE, of_answers({"kind": "best", "by": "grade", "k": 3, "per": "all"})]
    run = ran(write(steps))
    scores = scores_of(run)
    best = sorted(scores, key=lambda name: (-scores[name], name))[:3]
    assert {c.completion_id for c in folder_of(run, "kept").records(Completion)} == set(best)
    run = ran(write([SAMPLE, GRADE, of_answers({"kind": "score", "by": "grade", "least": 0.6})]))
    kept = {c.completion_id for c in folder_of(run, "kept").records(Completion)}
    assert kept == {name for name, score in scores.items() if score >= 0.6}
    why = folder_of(run, "kept").done()["funnel"][0]["why"]
    assert why["no score by grade"] and why["below 0.6"] == len(scores) - len(kept)


def test_scores_are_weighted_by_the_principles_and_weights_are_in_the_hash(
    write: Callable[..., Path],
) -> None:
    checks = {"judge": {"id": "checks", "kind": "rules"}}
    steps = [SAMPLE, checks, of_answers({"kind": "score", "by": "checks", "least": 1})]
    path = write(steps)
    before = {p.id: p.hash for p in make_plan(prepare(path))}
    text = (path.parent / "constitution.yaml").read_text()
    (path.parent / "constitution.yaml").write_text(text.replace("weight: 2", "weight: 3"))
    after = {p.id: p.hash for p in make_plan(prepare(path))}
    assert before["kept"] != after["kept"] and before["checks"] == after["checks"]
    kept = list(folder_of(ran(path), "kept").records(Completion))
    assert kept and {c.text for c in kept} == {"One two three four."}


def test_a_judge_must_have_been_asked_about_every_answer(write: Callable[..., Path]) -> None:
    best = {"kind": "best", "by": "grade"}
    again = {"sample": {"id": "again", "n": 1}}
    message = refused(write, SAMPLE, GRADE, again, of_answers(best, uses=["answers", "again"]))
    assert "judge 'grade' has not been asked about the answers of 'again'" in message
    assert "experiment.yaml:" in message
    two = {"judge": {"id": "two", "kind": "pairwise", "by": "policy"}}
    message = refused(write, SAMPLE, two, of_answers({"kind": "best", "by": "two"}))
    assert "compares two answers" in message
    message = refused(write, SAMPLE, GRADE, of_answers({"kind": "best", "by": "grad"}))
    assert "'grad' is no judge; did you mean 'grade'?" in message
    message = refused(write, SAMPLE, GRADE, filtered(best, records="judgements"))
    assert "judges score answers" in message
    # What a filter left was judged before it.
    first = {
        "filter": {"id": "first", "records": "completions", "filters": [{"kind": "truncated"}]}
    }
    make_plan(prepare(write([SAMPLE, GRADE, first, of_answers(best)]), fetch=False))


def test_uses_names_what_is_filtered(write: Callable[..., Path]) -> None:
    again = {"sample": {"id": "again", "n": 1, "temperature": 0.5}}
    short = {"kind": "rule", "rule": "word_limits", "params": {"min": 1, "max": 3}}
    path = write([SAMPLE, again, of_answers(short, uses=["answers"]), GRADE])
    with pytest.raises(ConfigError, match="no step reads the answers of 'again'"):
        make_plan(prepare(path))
    path = write([SAMPLE, again, of_answers(short, uses=["answers", "again"]), GRADE])
    plan = {p.id: p for p in make_plan(prepare(path))}
    assert list(plan["grade"].inputs.values()) == [plan["kept"].hash]
    assert list(plan["kept"].inputs.values()) == [plan["answers"].hash, plan["again"].hash]
    message = refused(write, SAMPLE, GRADE, of_answers(short, uses=["grade"]))
    assert "'grade' names no earlier sample, revise, filter or load step" in message
    other = {"filter": {"id": "other", "records": "completions", "filters": [short]}}
    message = refused(write, SAMPLE, GRADE, other, filtered(short, uses=["other"]))
    assert "'other' gives completions, and this filter is of preferences" in message


def pairs(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def labelled(folder: Path) -> None:
    """People's pairs: the first two orders agree with the grades, the third does not, and the
    fourth has an answer whose grade cannot be read."""
    texts = [
        ("One two three four.", "Grey."),
        ("One two five.", "Blue."),
        ("Grey.", "One two."),
        ("One two.", "No."),
    ]
    rows = [{"prompt": f"Which {i}?", "chosen": a, "rejected": b} for i, (a, b) in enumerate(texts)]
    pairs(folder, rows)


AGREES = {"kind": "agrees", "with": "ranked"}


def test_exactly_the_judgements_that_agree_with_people_are_kept(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    labelled(tmp_path)
    steps = [RANKED, GRADE, filtered(AGREES, records="judgements", uses=["grade"])]
    path = write(steps)
    run = ran(path)
    texts = {c.completion_id: c.text for c in folder_of(run, "ranked").records(Completion)}
    prompts = {p["prompt_id"]: p["messages"][0]["content"] for p in prompts_of(run)}
    every = list(folder_of(run, "grade").records(Judgement))
    kept = list(folder_of(run, "kept").records(Judgement))
    assert len(every) == 4 * 2 * 2
    assert Counter((prompts[j.prompt_id], texts[j.subject]) for j in kept) == {
        ("Which 0?", "One two three four."): 2,
        ("Which 0?", "Grey."): 2,
        ("Which 1?", "One two five."): 2,
        ("Which 1?", "Blue."): 2,
    }
    marker = folder_of(run, "kept").done()
    assert marker["counts"] == {"judgements": 8, "refused": 8}
    assert marker["funnel"][0]["filter"] == "agrees with ranked"
    assert marker["funnel"][0]["why"] == {"against people's order": 4, "no verdict": 4}
    assert {j.judgement_id for j in kept} < {j.judgement_id for j in every}


def test_what_agrees_is_balanced_by_score_and_paired(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    labelled(tmp_path)
    balance = {"kind": "balance", "by": "score"}
    eft = filtered({**AGREES, "strict": False}, balance, records="judgements", uses=["grade"])
    path = write([RANKED, GRADE, eft, {"pair": {"strategy": "all"}}])
    run = ran(path)
    kept = list(folder_of(run, "kept").records(Judgement))
    assert set(Counter(j.score for j in kept).values()) == {4}
    paired = {p["prompt_id"] for p in run.rows("preferences")}
    assert paired == {j.prompt_id for j in kept}
    assert [name for name in run_inputs(run, "pair") if name.startswith("judgements/")] == [
        "judgements/kept"
    ]
    sizes = {row.id: row.units for row in forecast(prepare(path), run.store)}
    assert sizes["kept"] == sizes["grade"] == 16


def test_a_filter_of_one_judges_judgements_leaves_those_of_the_others(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    labelled(tmp_path)
    other = {"judge": {"id": "brief", "kind": "rules", "principles": ["brief"]}}
    thinned = filtered(AGREES, records="judgements", uses=["grade"])
    plan = make_plan(prepare(write([RANKED, GRADE, other, thinned, {"pair": {}}]), fetch=False))
    (pair,) = [p for p in plan if p.kind == "pair"]
    made = {p.hash: p.id for p in plan}
    read = {made[h] for name, h in pair.inputs.items() if name.startswith("judgements/")}
    assert read == {"kept", "brief"}


def run_inputs(run: Run, name: str) -> dict[str, str]:
    return dict(folder_of(run, name).done()["inputs"])


def test_labels_that_are_compared_must_be_those_of_the_judged_pairs(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    labelled(tmp_path)
    agrees = filtered(AGREES, records="judgements")
    assert "'ranked' is no load of labelled pairs" in refused(write, SAMPLE, GRADE, agrees)
    message = refused(write, RANKED, SAMPLE, GRADE, agrees)
    assert "'grade' has not judged the pairs of 'ranked'" in message
    two = {"judge": {"id": "two", "kind": "rules"}}
    message = refused(write, RANKED, GRADE, two, agrees)
    assert "judgements of grade and two" in message
    message = refused(write, RANKED, GRADE, filtered(AGREES, records="completions"))
    assert "filter `records: judgements`" in message


def test_counts_are_made_equal_by_reference_and_drawn_by_the_seed(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    def kept(seed: int) -> set[str]:
        steps = [SAMPLE, of_answers({"kind": "balance", "by": "reference"})]
        path = write(steps, seed=seed, prompts={"path": "asked.jsonl", "holdout": 1})
        marks = [*"112222", *[None] * 3]
        rows = [{"prompt": f"Q{i}?", "reference": mark} for i, mark in enumerate(marks)]
        (tmp_path / "asked.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        run = ran(path)
        references = {p["prompt_id"]: p["reference"] for p in prompts_of(run)}
        found = list(folder_of(run, "kept").records(Completion))
        why = folder_of(run, "kept").done()["funnel"][0]["why"]
        answers = list(folder_of(run, "answers").records(Completion))
        came = Counter(references[c.prompt_id] for c in answers)
        counts = Counter(references[c.prompt_id] for c in found)
        assert counts == dict.fromkeys("12", min(came["1"], came["2"]))
        surplus = abs(came["1"] - came["2"])
        assert why == {"more than of others": surplus, "no reference": came[None]}
        return {f"{c.prompt_id}/{c.sample_index}" for c in found}

    drawn = kept(1)
    assert kept(1) == drawn != kept(2)


@pytest.mark.parametrize(("by", "records"), [("score", "completions"), ("colour", "judgements")])
def test_records_are_balanced_by_what_they_have(
    write: Callable[..., Path], by: str, records: str
) -> None:
    step = filtered({"kind": "balance", "by": by}, records=records)
    assert f"{records} have no {by!r} to balance by" in refused(write, SAMPLE, GRADE, step)
