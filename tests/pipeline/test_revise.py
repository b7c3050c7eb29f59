"""revise: critiques and revisions of answers, resumed, counted, and what comes of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.constitution.model import Principle
from rlaif.core.errors import ConfigError, EngineError
from rlaif.core.records import Completion
from rlaif.core.store import Store
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.forecast import forecast
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import Run, load_run
from rlaif.pipeline.steps.revision_turns import draw_principle
from tests.servers.scripted import ScriptedServer, prompt_text

Writer = Callable[..., Path]
BRIEF = {"rule": "word_limits", "params": {"min": 1, "max": 4}}
CONSTITUTION: dict[str, Any] = {
    "name": "revised",
    "principles": [
        {
            "id": "brief",
            "text": "The answer is short.",
            "check": BRIEF,
            "critique": "Which words of the answer could go?",
            "revision": "Write the answer again in one word.",
        },
        {
            "id": "warm",
            "text": "The answer is warm.",
            "critique": "Is the answer cold?",
            "revision": "Write the answer again with warmth.",
        },
    ],
}
LONG = "This is an answer with many more words than anybody wants."
SCRIPT = {
    "rules": [
        {"match": "could go", "replies": ["Nearly all.", "Some of them."]},
        {"match": "cold", "replies": ["It is cold."]},
        {"match": "in one word", "replies": ["Plums."]},
        {"match": "with warmth", "replies": ["Dear friend, it is plums."]},
        {"match": ".", "replies": [LONG]},
    ]
}
DRAFTS = {"sample": {"id": "drafts", "n": 2, "temperature": 1.0}}


def revise(**keys: Any) -> dict[str, Any]:
    return {"revise": {"id": "revisions", **keys}}


def write(folder: Path, write_experiment: Writer, steps: list[Any] | None, **changes: Any) -> Path:
    model = {"path": "none", "engine": "fake", "script": "script.yaml"}
    whole = {"rounds": 1, "models": {"policy": model}, "steps": steps} | changes
    constitution = whole.pop("principles", CONSTITUTION)
    path = write_experiment(folder, None, **whole)
    (folder / "script.yaml").write_text(yaml.safe_dump(SCRIPT))
    (folder / "constitution.yaml").write_text(yaml.safe_dump(constitution, sort_keys=False))
    return path


def ran(path: Path, out: str = "out") -> Run:
    run_experiment(path, path.parent / out)
    return load_run(path.parent / out)


def folder_of(run: Run, name: str) -> Any:
    return run.store.step(next(s["hash"] for s in run.manifest["steps"] if s["id"] == name))


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        make_plan(prepare(path, fetch=False))
    return str(error.value)


def test_every_answer_is_criticised_and_written_again_by_a_drawn_principle(
    tmp_path: Path, write_experiment: Writer
) -> None:
    path = write(tmp_path, write_experiment, [DRAFTS, revise(max_new_tokens=20)])
    run = ran(path)
    drafts = {c.completion_id: c for c in folder_of(run, "drafts").records(Completion)}
    revisions = list(folder_of(run, "revisions").records(Completion))
    critiques = {row["completion_id"]: row for row in folder_of(run, "revisions").rows("critiques")}
    assert len(revisions) == len(drafts) == len(critiques) == 10
    assert {c.parent_id for c in revisions} == drafts.keys()
    said = {"brief": {"Plums."}, "warm": {"Dear friend, it is plums."}}
    for revision in revisions:
        parent = drafts[str(revision.parent_id)]
        assert revision.text in said[str(revision.principle)]
        assert (revision.prompt_id, revision.sample_index) == (
            parent.prompt_id,
            parent.sample_index,
        )
        critique = critiques[revision.completion_id]
        assert critique["principle"] == revision.principle
        assert critique["of"] == critique["parent_id"] == revision.parent_id
        found = {"brief": {"Nearly all.", "Some of them."}, "warm": {"It is cold."}}
        assert critique["text"] in found[str(revision.principle)]
    assert {c.principle for c in revisions} == {"brief", "warm"}
    sizes = {row.id: (row.units, row.calls) for row in forecast(prepare(path), run.store)}
    counts = folder_of(run, "revisions").done()["counts"]
    assert sizes["revisions"] == (counts["completions"], counts["calls"]) == (10, 20)


def test_the_request_is_the_conversation_then_critique_then_revision(
    tmp_path: Path, write_experiment: Writer
) -> None:
    def answer(body: dict[str, Any], choice: int) -> str:
        last = body["messages"][-1]["content"]
        if "could go" in last:
            return f"Critique of <{body['messages'][-2]['content']}>."
        return f"Shorter {len(body['messages'])}" if "in one word" in last else "A draft."

    with ScriptedServer(answer) as server:
        far = {"path": "m", "engine": "openai", "base_url": server.url, "cache": False}
        steps = [
            {"sample": {"id": "drafts", "n": 1}},
            revise(times=2, principles=["brief"], max_new_tokens=20),
        ]
        models = {"policy": far | {"system_prompt": "Be a plum."}}
        run = ran(write(tmp_path, write_experiment, steps, models=models))
        asked = [body["messages"] for body in server.asked]
    assert [c.text for c in folder_of(run, "revisions").records(Completion)] == ["Shorter 6"] * 5
    kinds = Counter(len(messages) for messages in asked)
    assert kinds == {2: 5, 4: 10, 6: 10}
    second = [m for m in asked if len(m) == 6 and m[2]["content"] == "Shorter 6"]
    assert len(second) == 5
    for system, question, answered, request, critique, ending in second:
        assert system == {"role": "system", "content": "Be a plum."}
        assert [m["role"] for m in (question, answered, request)] == ["user", "assistant", "user"]
        assert request["content"].startswith("Which words of the answer could go?\n\nWrite this")
        assert critique["content"] == "Critique of <Shorter 6>."
        assert ending["content"].startswith("Write the answer again in one word.\n\nWrite only")


def test_later_times_revise_the_revision_before_and_all_may_be_kept(
    tmp_path: Path, write_experiment: Writer
) -> None:
    last = ran(write(tmp_path, write_experiment, [DRAFTS, revise(times=3)]), "last")
    path = write(tmp_path, write_experiment, [DRAFTS, revise(times=3, keep="all")])
    every = ran(path, "all")
    assert len(list(folder_of(last, "revisions").records(Completion))) == 10
    kept = list(folder_of(every, "revisions").records(Completion))
    assert len(kept) == 30
    drafts = {c.completion_id: c for c in folder_of(every, "drafts").records(Completion)}
    assert Counter(c.parent_id for c in kept) == dict.fromkeys(drafts, 3)
    assert set(Counter((c.prompt_id, c.sample_index) for c in kept).values()) == {1}
    chain = {r["completion_id"]: r for r in folder_of(every, "revisions").rows("critiques")}
    for row in chain.values():
        before = chain[row["of"]]["time"] if row["time"] > 1 else 0
        assert row["time"] == before + 1 and (row["time"] > 1 or row["of"] in drafts)
    # Each time a principle is drawn anew.
    drawn = {(row["parent_id"], row["time"]): row["principle"] for row in chain.values()}
    assert any(len({drawn[name, time] for time in (1, 2, 3)}) == 2 for name in drafts)
    counts = folder_of(every, "revisions").done()["counts"]
    sizes = {row.id: (row.units, row.calls) for row in forecast(prepare(path), every.store)}
    assert sizes["revisions"] == (counts["completions"], counts["calls"]) == (30, 60)


def test_a_principle_is_drawn_evenly_by_seed_answer_and_time() -> None:
    principles = [Principle(id=name, text="t") for name in ("a", "b", "c", "d")]
    drawn = [draw_principle(principles, "3", f"k_{n}", 1).id for n in range(4000)]
    expected = 1000.0
    chi = sum((count - expected) ** 2 / expected for count in Counter(drawn).values())
    # The 99.9% quantile of chi square with three degrees of freedom.
    assert chi < 16.27
    assert drawn[:50] == [draw_principle(principles, "3", f"k_{n}", 1).id for n in range(50)]
    assert drawn[:50] != [draw_principle(principles, "4", f"k_{n}", 1).id for n in range(50)]
    assert drawn[:50] != [draw_principle(principles, "3", f"k_{n}", 2).id for n in range(50)]


def test_all_principles_that_apply_may_be_asked_together(
    tmp_path: Path, write_experiment: Writer
) -> None:
    run = ran(write(tmp_path, write_experiment, [DRAFTS, revise(draw="all", max_new_tokens=20)]))
    revisions = list(folder_of(run, "revisions").records(Completion))
    assert {c.principle for c in revisions} == {"brief, warm"}
    # The script's first rule that matches: both texts were asked for.
    assert {c.text for c in revisions} == {"Plums."}


def test_a_principle_without_texts_is_refused_with_its_place(
    tmp_path: Path, write_experiment: Writer
) -> None:
    bare = {"id": "bare", "text": "The answer is bare.", "critique": "Is it bare?"}
    principles = CONSTITUTION | {"principles": [*CONSTITUTION["principles"], bare]}
    path = write(tmp_path, write_experiment, [DRAFTS, revise()], principles=principles)
    message = refused(path)
    lines = (tmp_path / "constitution.yaml").read_text().splitlines()
    line = lines.index("- id: bare") + 1
    assert (
        f"principle 'bare' ({tmp_path / 'constitution.yaml'}:{line}) has no `revision`" in message
    )
    assert "experiment.yaml:" in message and "`principles`" in message
    named = revise(principles=["brief", "warm"])
    make_plan(prepare(write(tmp_path, write_experiment, [DRAFTS, named], principles=principles)))
    path = write(tmp_path, write_experiment, [DRAFTS, revise(principles=["brif"])])
    assert "has no principle 'brif'; did you mean 'brief'?" in refused(path)
    path = write(tmp_path, write_experiment, [DRAFTS, revise()], constitution=None)
    assert "needs a constitution" in refused(path)


def test_an_answer_to_which_no_principle_applies_is_refused(
    tmp_path: Path, write_experiment: Writer
) -> None:
    narrow = CONSTITUTION["principles"][0] | {"applies_when": {"tags": ["fruit"]}}
    principles = CONSTITUTION | {"principles": [narrow]}
    path = write(tmp_path, write_experiment, [DRAFTS, revise()], principles=principles)
    assert "no principle applies to prompt p_" in refused(path)
    both = CONSTITUTION | {"principles": [narrow, CONSTITUTION["principles"][1]]}
    run = ran(write(tmp_path, write_experiment, [DRAFTS, revise()], principles=both))
    kept = list(folder_of(run, "revisions").records(Completion))
    assert {c.principle for c in kept} == {"warm"}


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("---user---\n{{ critique }} {{ revision }}\n", "a ---then--- section"),
        ("---user---\n{{ critique }}\n---then---\nAgain.\n", "must use {{ revision }}"),
        ("---user---\n{{ critique }}\n---then---\n{{ revison }}\n", "did you mean 'revision'"),
        ("---user---\n{{ critique }}\n---then---\n{{ revision }}\n---prefill---\nA\n", "no ---pre"),
    ],
)
def test_templates_that_cannot_ask_are_refused(
    tmp_path: Path, write_experiment: Writer, template: str, fault: str
) -> None:
    path = write(tmp_path, write_experiment, [DRAFTS, revise(template="own.j2")])
    (tmp_path / "own.j2").write_text(template)
    message = refused(path)
    assert fault in message and "experiment.yaml:" in message and "own.j2" in message


def test_only_what_decides_a_revision_changes_its_hash(
    tmp_path: Path, write_experiment: Writer
) -> None:
    def hashes(edit: Callable[[dict[str, Any]], None] = lambda c: None, **keys: Any) -> str:
        changed = json.loads(json.dumps(CONSTITUTION))
        edit(changed["principles"][0])
        path = write(tmp_path, write_experiment, [DRAFTS, revise(**keys)], principles=changed)
        return next(p.hash for p in make_plan(prepare(path)) if p.id == "revisions")

    before = hashes()
    assert hashes(lambda p: p.update(critique="What could be shorter?")) != before
    assert hashes(lambda p: p.update(revision="Again.")) != before
    assert hashes(lambda p: p.update(applies_when={"pattern": "x"})) != before
    assert hashes(principles=["brief"]) != before
    assert hashes(lambda p: p.update(weight=3.0, text="Other words.")) == before
    assert hashes(principles=["brief", "warm"], uses=["drafts"]) == before
    (tmp_path / "own.j2").write_text(
        "---user---\n{{ principle }} {{ critique }}\n---then---\n{{ revision }}\n"
    )
    own = hashes(template="own.j2")
    assert own != before
    assert hashes(lambda p: p.update(text="Other words."), template="own.j2") != own


def test_failed_calls_leave_the_answer_out_and_are_counted(
    tmp_path: Path, write_experiment: Writer
) -> None:
    def context(prompts: int, **keys: Any) -> Run:
        # A critique that is long makes the request for the revision longer than the context.
        script = json.loads(json.dumps(SCRIPT))
        script["rules"][0]["replies"] = ["Short.", "long " * 40]
        model = {"path": "none", "engine": "fake", "script": "other.yaml", "max_context": prompts}
        steps = [DRAFTS, revise(principles=["brief"], **keys)]
        path = write(tmp_path, write_experiment, steps, models={"policy": model})
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(script))
        return ran(path, f"out{prompts}")

    run = context(170)
    done = folder_of(run, "revisions").done()
    kept = list(folder_of(run, "revisions").records(Completion))
    critiques = list(folder_of(run, "revisions").rows("critiques"))
    short = {row["parent_id"] for row in critiques if row["text"] == "Short."}
    assert {c.parent_id for c in kept} == short and 0 < len(short) < 10
    assert all(c.messages for c in kept)
    assert done["counts"]["failed"] == 10 - len(short) == sum(done["errors"].values())
    assert done["counts"]["critiques"] == 10 and done["counts"]["calls"] == 20
    with pytest.raises(EngineError, match="none of the 10 revisions of revisions"):
        context(100)


def test_answers_that_failed_are_not_revised(tmp_path: Path, write_experiment: Writer) -> None:
    def answer(body: dict[str, Any], choice: int) -> str:
        return "It is so."

    class Refusing(ScriptedServer):
        def respond(self, path: str, key: str, body: dict[str, Any]) -> tuple[int, Any]:
            if prompt_text(body) == "Name a red fruit.":
                return 400, {"error": {"message": "not today"}}
            return super().respond(path, key, body)

    with Refusing(answer) as server:
        far = {"path": "m", "engine": "openai", "base_url": server.url, "cache": False}
        prompts = {"path": "prompts.jsonl", "holdout": 1}
        steps = [DRAFTS, revise()]
        path = write(tmp_path, write_experiment, steps, models={"policy": far}, prompts=prompts)
        run = ran(path)
    drafts = list(folder_of(run, "drafts").records(Completion))
    lost = sum(not c.messages for c in drafts)
    counts = folder_of(run, "revisions").done()["counts"]
    assert lost and counts["without_answer"] == lost
    assert counts["completions"] == counts["critiques"] == len(drafts) - lost


def test_what_revisions_cost_at_most_is_known_before(
    tmp_path: Path, write_experiment: Writer
) -> None:
    def cost(**keys: Any) -> float:
        far = {"path": "m", "engine": "openai", "base_url": "http://127.0.0.1:9"}
        models = {"policy": far | {"price": {"input": 1.0, "output": 2.0}}}
        steps = [DRAFTS, revise(**keys)]
        inputs = prepare(write(tmp_path, write_experiment, steps, models=models), fetch=False)
        rows = {row.id: row for row in forecast(inputs, Store(tmp_path / "none"))}
        found = rows["revisions"].cost
        # Ten answers: critiques and revisions as long as they may be.
        written = 2 * 10 * keys.get("times", 1) * keys.get("max_new_tokens", 64)
        assert found is not None and found > 2.0 * written / 1e6
        return found

    assert cost(times=2) == pytest.approx(2 * cost(), rel=1e-3)
    longer = cost(max_new_tokens=128)
    # What is read grows too: the critique stands in the second request.
    assert longer - cost() > 2.0 * 20 * 64 / 1e6


def test_two_like_steps_of_a_round_revise_differently(
    tmp_path: Path, write_experiment: Writer
) -> None:
    twice = {"revise": {"id": "again", "uses": ["drafts"]}}
    checks = {"judge": {"id": "checks", "kind": "rules", "uses": ["revisions", "again"]}}
    path = write(tmp_path, write_experiment, [DRAFTS, revise(uses=["drafts"]), twice, checks])
    plan = {p.id: p for p in make_plan(prepare(path))}
    assert plan["again"].hash != plan["revisions"].hash
    assert plan["again"].inputs == plan["revisions"].inputs


def test_later_steps_read_the_revisions(tmp_path: Path, write_experiment: Writer) -> None:
    checks = {"judge": {"id": "checks", "kind": "rules"}}
    path = write(tmp_path, write_experiment, [DRAFTS, revise(), checks, {"pair": {}}])
    plan = {p.id: p for p in make_plan(prepare(path))}
    assert list(plan["checks"].inputs.values()) == [plan["revisions"].hash]
    # What was judged before is not of the revisions.
    path = write(tmp_path, write_experiment, [DRAFTS, checks, revise(), {"pair": {}}])
    assert "pair has no judgements" in refused(path)
    path = write(tmp_path, write_experiment, [DRAFTS, checks, revise(uses=["checks"])])
    assert "'checks' names no earlier sample, revise, filter or load step" in refused(path)
