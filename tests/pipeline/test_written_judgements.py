"""Training on what a judge wrote: the question is the one that its model was asked, the answer the
text that it gave; and what system prompts stay in what is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.errors import RlaifError
from rlaif.core.records import Completion, Preference, make_prompt, to_json
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import load_run
from rlaif.pipeline.steps import train as train_step
from rlaif.pipeline.steps.training_data import TrainingData, read_data
from tests.conftest import QUESTIONS
from tests.pipeline.test_training_data import (
    FAST,
    SAMPLE,
    heldout_question,
    lessons,
    plan,
    read_by,
    said,
    sft,
    write_rows,
)
from tests.servers.scripted import ScriptedServer, prompt_text, seeded_words

Writer = Callable[..., Path]
WRITES = {"judge": {"id": "self", "kind": "additive", "by": "policy", "samples": 2}}
PEOPLE = {"load": {"id": "people", "type": "pairs", "path": "pairs.jsonl"}}
COMPARES = {
    "judge": {
        "id": "compare",
        "kind": "pairwise",
        "by": "policy",
        "verdict": "written",
        "samples": 2,
        "temperature": 0.7,
    }
}
META = {"judge": {"id": "meta", "kind": "judgements", "of": "self", "by": "policy"}}


def reply(body: dict[str, Any], choice: int) -> str:
    """A verdict that the seed decides; words to whoever is no judge."""
    text = prompt_text(body)
    words = seeded_words(body, choice).split()[:3]
    number = sum(map(len, words)) % 5
    if "Answer 1 or 2" in text or "answer 1" in text.lower():
        return f"{' '.join(words)} so it is.\nVerdict: {1 + number % 2}"
    if "Score:" in text:
        return "No idea." if number == 4 else f"{' '.join(words)}.\nScore: {number}"
    return " ".join(words)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(reply, context=4000) as running:
        yield running


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[TrainingData]:
    """What every training of a run learns from."""
    found: list[TrainingData] = []

    def read(context: Any) -> TrainingData:
        found.append(read_data(context))
        return found[-1]

    monkeypatch.setattr(train_step, "read_data", read)
    return found


def served(server: ScriptedServer, model: Path) -> dict[str, Any]:
    far = {"path": "m", "engine": "openai", "base_url": server.url, "cache": False}
    return {"policy": {"path": str(model), "dtype": "float32"}, "far": far}


def exchanges(server: ScriptedServer) -> set[tuple[str, str]]:
    """Every question that the server was asked, as it came over the wire, with each answer."""
    return {
        (str(body["messages"]), reply(body, choice))
        for body in server.asked
        for choice in range(body.get("n", 1))
    }


def taught(data: TrainingData) -> list[tuple[str, str]]:
    return [(str(p.prompt), p.chosen[0]["content"]) for p in data.preferences]


def test_sft_learns_the_judges_own_questions_and_answers(
    tmp_path: Path,
    small_model: Path,
    write_experiment: Writer,
    server: ScriptedServer,
    learned: list[TrainingData],
) -> None:
    judge = WRITES["judge"] | {"by": "far", "samples": 4}
    steps = [
        {"sample": {"n": 2, "by": "far", "max_new_tokens": 8}},
        {"judge": judge},
        sft("self", max_length=2000, **FAST),
    ]
    path = write_experiment(
        tmp_path, small_model, models=served(server, small_model), steps=steps, rounds=1
    )
    run_experiment(path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    (data,) = learned
    said = exchanges(server)
    assert len(taught(data)) > 4 and set(taught(data)) <= said
    (judged,) = [s for s in run.manifest["steps"] if s["id"] == "self"]
    rows = list(run.store.step(judged["hash"]).rows("judgements"))
    readable = [row for row in rows if row["status"] == "ok"]
    assert len(readable) < len(rows)
    # Every one that could be read, and only these.
    assert sorted(answer for _, answer in taught(data)) == sorted(row["raw"] for row in readable)
    assert data.counts == {
        "judgements": len(readable),
        "without_verdict": len(rows) - len(readable),
    }
    (made,) = [s for s in run.manifest["steps"] if s["id"] == "train"]
    card = (run.store.model_path(made["hash"]) / "README.md").read_text()
    assert f"with SFT on {len(readable)} judgements" in card


def test_pairs_of_comparisons_by_what_people_say(
    tmp_path: Path,
    small_model: Path,
    write_experiment: Writer,
    server: ScriptedServer,
    learned: list[TrainingData],
) -> None:
    judge = COMPARES["judge"] | {"by": "far", "samples": 4}
    steps = [
        PEOPLE,
        {"judge": judge},
        {"pair": {"of": "compare", "better": "labels"}},
        {"train": {"max_length": 2000, **FAST}},
    ]
    keys: dict[str, Any] = {"models": served(server, small_model), "prompts": {"holdout": 1}}
    path = write_experiment(
        tmp_path, small_model, steps=steps, rounds=1, data="pairs.jsonl", **keys
    )
    rows = [
        {"prompt": f"Which is {n}?", "chosen": f"It is {n}.", "rejected": f"Not {n}, no."}
        for n in range(5)
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    run_experiment(path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    (step,) = [s for s in run.manifest["steps"] if s["kind"] == "pair"]
    pairs = list(run.store.step(step["hash"]).records(Preference))
    assert pairs
    asked = exchanges(server)
    for pair in pairs:
        question = str(pair.prompt)
        texts = (pair.chosen[0]["content"], pair.rejected[0]["content"])
        assert {(question, text) for text in texts} <= asked
        body = pair.prompt[-1]["content"]
        # The better answer of every pair begins with "It is".
        better = "1" if body.index("It is ") < body.index("Not ") else "2"
        assert [text[-1] == better for text in texts] == [True, False]
    (data,) = learned
    assert len(data.preferences) == len(pairs)


def test_a_held_out_prompt_is_found_in_judgements(
    tmp_path: Path, small_model: Path, write_experiment: Writer
) -> None:
    asked = {
        p.question: p for p in (make_prompt([{"role": "user", "content": q}]) for q in QUESTIONS)
    }
    prompt = asked[heldout_question()]
    row = Completion(
        "k", prompt.prompt_id, 0, [{"role": "assistant", "content": "Yes."}], "M0", "", {}, "stop",
        digest="d",
    )  # fmt: skip
    script = {"rules": [{"match": ".", "replies": ["Fine. Score: 3", "Good. Score: 4"]}]}
    steps = [
        {"load": {"id": "kept", "type": "completions", "path": "kept.jsonl"}},
        {"judge": WRITES["judge"] | {"by": "writer"}},
        sft("self", max_length=2000, **FAST),
        {"evaluate": {"judges": [], "max_new_tokens": 4}},
    ]
    models = {
        "policy": {"path": str(small_model), "dtype": "float32"},
        "writer": {"path": "none", "engine": "fake", "script": "script.yaml"},
    }
    path = write_experiment(tmp_path, small_model, steps=steps, rounds=1, models=models)
    write_rows(tmp_path / "kept.jsonl", [to_json(row)])
    write_rows(tmp_path / "script.yaml", [script])
    with pytest.raises(RlaifError, match="is held out and was trained on") as caught:
        run_experiment(path, tmp_path / "run")
    assert "learned from it in what 'self' gave" in str(caught.value)


def test_judgements_are_in_the_lineage_of_what_is_evaluated(tmp_path: Path) -> None:
    assert lessons(tmp_path, [SAMPLE, WRITES, sft("self")]) >= {("train", "self")}
    pair = {"pair": {"of": "self", "better": "meta"}}
    assert lessons(tmp_path, [SAMPLE, WRITES, META, pair, {"train": {}}]) >= {("train", "pair")}


def test_judgements_are_learned_where_uses_names_them(tmp_path: Path) -> None:
    assert read_by(tmp_path, [SAMPLE, WRITES, sft("self")]) == [["judgements:self"]]
    assert read_by(tmp_path, [SAMPLE, WRITES, sft("self", "answers")]) == [
        ["judgements:self", "answers:answers"]
    ]
    # Without `uses` it is the answers.
    assert read_by(tmp_path, [SAMPLE, WRITES, sft()]) == [["answers:answers"]]
    message = said(tmp_path, [SAMPLE, WRITES, {"train": {"uses": ["self"]}}])
    assert "gives judgements. `pair` makes preferences of these; method sft learns" in message


JURY = {"kind": "jury", "of": [{"kind": "yes_no", "by": "policy"}]}


@pytest.mark.parametrize(
    ("judge", "advice"),
    [
        ({"kind": "pairwise", "by": "policy"}, "set `verdict: written`"),
        ({"kind": "pairwise", "by": "policy", "cot": True}, "`verdict: written` and `cot: false`"),
        ({"kind": "direct", "by": "policy"}, "set `expected: false`"),
        ({"kind": "critique", "by": "policy"}, "set `expected: false` and `cot: false`"),
        ({"kind": "rules"}, "it asks no model"),
        (JURY, "rest on several answers, of which none is the verdict: take yes_no as a judge of"),
        ({"kind": "meta", "by": "policy", "judge": WRITES["judge"]}, "take self as a judge of its"),
    ],
)  # fmt: skip
def test_judges_that_write_no_verdict_are_refused_with_what_to_set(
    tmp_path: Path, judge: dict[str, Any], advice: str
) -> None:
    own = {"judge": judge | {"id": "j"}}
    message = said(tmp_path, [SAMPLE, own, sft("j")])
    assert "uses: the judgements of 'j' are no texts that can be learned" in message
    assert advice in message and "experiment.yaml:" in message
    pair = {"pair": {"of": "j", "better": "labels"}}
    assert advice in said(tmp_path, [SAMPLE, own, pair, {"train": {}}])


def test_yes_or_no_is_learned_after_reasons_alone(tmp_path: Path) -> None:
    own = {"judge": {"id": "j", "kind": "yes_no", "by": "policy"}}
    assert "set `cot: true`" in said(tmp_path, [SAMPLE, own, sft("j")])
    for judge in (own["judge"], own["judge"] | {"cot": True}):
        pair = {"pair": {"of": "j", "better": "labels"}}
        message = said(tmp_path, [SAMPLE, {"judge": judge}, pair, {"train": {}}])
        assert "take a kind that writes its verdict" in message


def test_loaded_judgements_do_not_say_what_was_asked(tmp_path: Path) -> None:
    loaded = {"load": {"id": "old", "type": "judgements", "path": "kept.jsonl"}}
    assert "do not say what was asked" in said(tmp_path, [SAMPLE, loaded, sft("old")])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([SAMPLE, META], "of: 'self' is no judge"),
        ([WRITES | {"when": 2}, SAMPLE, META], "has judged nothing in this round before 'meta'"),
        ([SAMPLE, {"judge": WRITES["judge"] | {"samples": 1}}, META], "set `samples` of 2 or more"),
        (
            [SAMPLE, COMPARES, {"judge": META["judge"] | {"of": "compare"}}],
            "it compares answers, and judgements of one answer are compared",
        ),
        ([SAMPLE, WRITES, {"judge": {"id": "direct", "kind": "direct", "by": "policy"}},
          {"judge": META["judge"] | {"of": "direct"}}], "reads the probabilities of levels"),
        ([SAMPLE, WRITES, COMPARES, {"judge": META["judge"] | {"uses": ["compare"]}}],
         "compares judgements of 'self', and not of judge 'compare'"),
        ([SAMPLE, WRITES, META, {"pair": {"uses": ["meta"]}}], "scores no answer: name it in"),
        ([SAMPLE, WRITES, META, {"pair": {"of": "meta", "better": "labels"}}],
         "it compares judgements"),
        ([SAMPLE, WRITES, META, {"pair": {"of": "self", "better": "self"}}],
         "name a judge step of kind `judgements`"),
        ([SAMPLE, WRITES, META, {"pair": {"of": "self", "better": "labels"}}],
         "judged no answers that people have labelled"),
        ([SAMPLE, WRITES, META, {"pair": {"of": "answers", "better": "meta"}}],
         "of: 'answers' names no earlier judge or filter step"),
        ([SAMPLE, WRITES, META, {"evaluate": {"judges": ["meta"]}}], "and answers are evaluated"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_or_paired_is_refused(
    tmp_path: Path, steps: list[dict[str, Any]], message: str
) -> None:
    assert message in said(tmp_path, [*steps, {"train": {"method": "sft", "uses": ["answers"]}}])


def test_a_jury_takes_no_judge_of_judgements(tmp_path: Path) -> None:
    jury = {"judge": {"kind": "jury", "of": [META["judge"]]}}
    message = said(tmp_path, [SAMPLE, WRITES, jury, {"pair": {"uses": ["self"]}}, {"train": {}}])
    assert "juror 'meta' compares judgements, and a jury judges answers" in message


MORE = {"sample": {"id": "more", "n": 2}}


def test_candidates_are_those_that_every_judge_was_asked_about(tmp_path: Path) -> None:
    both = {"judge": {"id": "checks", "kind": "rules", "uses": ["answers", "more"]}}
    one = {"judge": {"id": "checks", "kind": "rules", "uses": ["more"]}}
    pair = {"pair": {"candidates": ["answers", "more"]}}
    made = plan(tmp_path, [SAMPLE, MORE, both, pair, {"train": {}}], rounds=1)
    (pairs,) = [p for p in made if p.kind == "pair"]
    assert {n.partition("/")[2] for n in pairs.inputs if n.startswith("completions/")} == {
        "answers",
        "more",
    }
    message = said(tmp_path, [SAMPLE, MORE, one, pair, {"train": {}}])
    assert "judge 'checks' was not asked about the answers of 'answers'" in message
    # What a filter lets pass was judged where all of it was.
    few = {"filter": {"id": "few", "records": "completions", "filters": [{"kind": "truncated"}]}}
    some = {"pair": {"candidates": ["few", "answers"]}}
    assert plan(tmp_path, [SAMPLE, MORE, both, few, some, {"train": {}}], rounds=1)


def test_context_is_kept_as_the_model_was_told(
    tmp_path: Path,
    small_model: Path,
    write_experiment: Writer,
    server: ScriptedServer,
    learned: list[TrainingData],
) -> None:
    sample = {"n": 2, "by": "far", "max_new_tokens": 8}
    told = {"system_prompt": "Be curious.", "principles": {"texts": {"kind": ["Be kind."]}}}
    steps = [
        {"sample": {**sample, "id": "plain"}},
        {"sample": {**sample, **told, "id": "told"}},
        sft("told", "plain", id="kept", context="keep", **FAST),
        sft("told", "plain", id="dropped", **FAST),
    ]
    path = write_experiment(
        tmp_path, small_model, models=served(server, small_model), steps=steps, rounds=1
    )
    run_experiment(path, tmp_path / "run")
    kept, dropped = learned
    assert set(taught(kept)) == exchanges(server)
    systems = [p.prompt[0]["content"] for p in kept.preferences if p.prompt[0]["role"] == "system"]
    assert set(systems) == {"Be curious.\n\nBe kind."} and len(systems) * 2 == len(kept.preferences)
    assert all(p.prompt[0]["role"] == "user" for p in dropped.preferences)


def test_context_that_nobody_added_is_refused(tmp_path: Path) -> None:
    message = said(tmp_path, [SAMPLE, sft("answers", context="keep")])
    assert "context: keep has no effect" in message and "experiment.yaml:" in message
