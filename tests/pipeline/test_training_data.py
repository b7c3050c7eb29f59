"""What a training learns from: preferences, demonstrations, completions and texts; and that nothing
which is held out is among it, through the whole lineage of what is evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from rlaif.core.errors import RlaifError
from rlaif.core.records import Completion, Message, make_prompt, to_json
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.runs import Run, load_run
from rlaif.pipeline.steps.training_data import lone_answer
from rlaif.train.tokenise import encode
from tests.conftest import QUESTIONS
from tests.pipeline.test_plan import planned, refusal

Steps = list[dict[str, Any]]
Writer = Callable[..., Path]
DEMOS = {"load": {"id": "demos", "type": "demonstrations", "path": "demos.jsonl"}}
WEB = {"load": {"id": "web", "type": "text", "path": "web.jsonl"}}
GIVEN = {"load": {"id": "given", "type": "preferences", "path": "pairs.jsonl"}}
SAMPLE = {"sample": {"id": "answers", "n": 2}}
CHECKS = {"judge": {"id": "checks", "kind": "rules"}}
JUDGED = [SAMPLE, CHECKS, {"pair": {}}]
FILTER = {"filter": {"records": "completions", "filters": [{"kind": "truncated"}]}}
PPO = {"method": "ppo", "rewards": {"checks": 1}, "batch_size": 2, "ptx_weight": 1.0}


def sft(*uses: str, **keys: Any) -> dict[str, Any]:
    return {"train": {"method": "sft", **keys, **({"uses": list(uses)} if uses else {})}}


def plan(folder: Path, steps: Steps, **more: Any) -> list[Planned]:
    return planned(folder, lambda data, _: data.update(steps=steps, **more))


def read_by(folder: Path, steps: Steps, **more: Any) -> list[list[str]]:
    """What each training of round 1 reads, as ROLE:STEP."""
    made = plan(folder, steps, **{"rounds": 1} | more)
    names = {p.hash: p.id for p in made}
    return [
        [f"{name.partition('/')[0]}:{names[digest]}" for name, digest in p.inputs.items()]
        for p in made
        if p.kind in ("train", "distill")
    ]


def said(folder: Path, steps: Steps, **more: Any) -> str:
    return refusal(folder, lambda data, _: data.update(steps=steps, **more))


def test_sft_takes_what_it_names_or_what_the_round_has(tmp_path: Path) -> None:
    named = sft("demos", "answers", "web", "pair", "given")
    (every,) = read_by(tmp_path, [DEMOS, WEB, *JUDGED, GIVEN, named])
    assert every == [
        "demonstrations:demos",
        "answers:answers",
        "texts:web",
        "preferences:pair",
        "preferences:given",
    ]
    assert read_by(tmp_path, [*JUDGED, sft()]) == [["preferences:pair"]]
    assert read_by(tmp_path, [SAMPLE, sft()]) == [["answers:answers"]]
    assert read_by(tmp_path, [SAMPLE, FILTER, sft()]) == [["answers:filter"]]
    assert read_by(tmp_path, [SAMPLE, FILTER, sft("answers")]) == [["answers:answers"]]
    kept = {"load": {"id": "kept", "type": "completions", "path": "kept.jsonl"}}
    assert read_by(tmp_path, [kept, sft()]) == [["answers:kept"]]
    assert read_by(tmp_path, [DEMOS, sft()]) == [["demonstrations:demos"]]
    assert read_by(tmp_path, [WEB, DEMOS, sft()]) == [["texts:web", "demonstrations:demos"]]
    later = read_by(tmp_path, [SAMPLE, sft("answers@*")], rounds=2)
    assert later == [["answers:answers"], ["answers:answers"] * 2]


def test_members_of_a_pool_are_named_by_its_step(tmp_path: Path) -> None:
    pool = {"sample": {"id": "all", "n": 2, "pool": [{"by": "policy"}, {"by": "other"}]}}
    assert read_by(tmp_path, [pool, sft("all")]) == [["answers:all/0", "answers:all/1"]]


def test_what_sft_should_take_of_two_kinds_must_be_said(tmp_path: Path) -> None:
    for before in ([SAMPLE, DEMOS], [DEMOS, *JUDGED], [*JUDGED, WEB]):
        message = said(tmp_path, [*before, sft()])
        assert "say with `uses` which 'train' learns from" in message
        assert "experiment.yaml:" in message
        assert ("demos" in message) == (DEMOS in before)


def test_other_methods_refuse_answers_and_texts_with_the_kinds_that_they_take(
    tmp_path: Path,
) -> None:
    distill = {"distill": {"uses": ["answers"]}}
    for kind, step in (("dpo", {"train": {"uses": ["answers"]}}), ("bradley_terry", distill)):
        message = said(tmp_path, [*JUDGED, step])
        assert "'answers' names no earlier pair, label, filter or load step" in message
        assert f"gives preferences, from which {kind} learns: it is a sample step" in message
        assert "gives completions" in message and "experiment.yaml:" in message
    assert "is a load step and gives text" in said(tmp_path, [WEB, {"train": {"uses": ["web"]}}])
    shown = said(tmp_path, [DEMOS, {"train": {"uses": ["demos@*"]}}])
    assert "gives demonstrations. Method sft learns from these" in shown
    # So it is with a filter of completions, and with loaded pairs.
    message = said(tmp_path, [SAMPLE, FILTER, {"train": {"uses": ["filter"]}}])
    assert "is a filter step and gives completions" in message
    pairs = {"load": {"id": "people", "type": "pairs", "path": "pairs.jsonl"}}
    message = said(tmp_path, [pairs, sft("people")])
    assert "gives pairs. `label` makes preferences of loaded pairs" in message
    message = said(tmp_path, [*JUDGED, sft("checks")])
    assert (
        "the judgements of 'checks' are no texts that can be learned: it asks no model" in message
    )
    message = said(tmp_path, [*JUDGED, sft("nothing")])
    assert (
        "'nothing' names no earlier pair, label, filter, load, sample, revise, judge or questions"
        in message
    )
    kto = {"train": {"method": "kto", "uses": ["pair", "demos"]}}
    assert read_by(tmp_path, [DEMOS, *JUDGED, kto]) == [
        ["preferences:pair", "demonstrations:demos"]
    ]


def test_ptx_takes_texts_and_demonstrations(tmp_path: Path) -> None:
    before = [CHECKS, DEMOS, WEB]
    judges = [{"id": "checks", "kind": "rules"}]
    for name, role in (("web", "texts"), ("demos", "demonstrations")):
        ppo = {"train": PPO | {"uses": [name]}}
        assert read_by(tmp_path, [*before[1:], ppo], judges=judges) == [[f"{role}:{name}"]]
    assert read_by(tmp_path, [WEB, {"train": PPO}], judges=judges) == [["texts:web"]]
    # Its own samples are no data beside them.
    message = said(tmp_path, [SAMPLE, {"train": PPO}], judges=judges)
    assert "ptx_weight needs preferences, or a load of demonstrations or text" in message


def test_without_anything_to_learn_from_a_training_says_what_to_add(tmp_path: Path) -> None:
    assert "nothing to learn from: add a pair, label, load or sample step" in said(
        tmp_path, [sft()]
    )
    pairs = {"load": {"id": "people", "type": "pairs", "path": "pairs.jsonl"}}
    assert "nothing to learn from" in said(tmp_path, [pairs, sft()])


def test_what_is_loaded_for_training_is_one_step_for_all_rounds(tmp_path: Path) -> None:
    made = plan(tmp_path, [DEMOS, WEB, sft("demos", "web")], rounds=3)
    loads = {p.hash for p in made if p.kind == "load"}
    assert len(loads) == 2
    trains = [p for p in made if p.kind == "train"]
    assert [set(p.inputs.values()) for p in trains] == [loads] * 3


def test_a_second_label_takes_the_place_of_the_first(tmp_path: Path) -> None:
    pairs = {"load": {"id": "people", "type": "pairs", "path": "pairs.jsonl"}}
    first, second = {"label": {"id": "first"}}, {"label": {"id": "second", "labels": "random"}}
    message = said(tmp_path, [pairs, first, second, {"train": {}}])
    assert "no step reads the pairs of 'first': step 'second' takes their place" in message
    assert "Name it in `uses` of the step that should read it" in message
    both = {"train": {"uses": ["first", "second"]}}
    assert read_by(tmp_path, [pairs, first, second, both]) == [
        ["preferences:first", "preferences:second"]
    ]


ANSWER: list[Message] = [{"role": "assistant", "content": "yes 0"}]


def test_a_sampled_answer_is_learned_from_as_the_model_wrote_it(tokenizer: Any) -> None:
    prompt = make_prompt([{"role": "user", "content": "Say it."}])
    end = tokenizer.eos_token_id
    ids = tokenizer("yes 0", add_special_tokens=False)["input_ids"]
    made = Completion("k", prompt.prompt_id, 0, ANSWER, "M0", "", {}, "stop", token_ids=[*ids, end])
    told = replace(made, system_prompt="Be brief.")
    keys: dict[str, Any] = {"both": False, "max_length": 99, "overlong": "skip"}

    def learned(one: Completion, cut: bool, known: bool) -> tuple[list[int], list[int]]:
        (example,) = encode(
            [lone_answer(one, prompt, 1)],
            tokenizer,
            {"k": one.token_ids or []} if known else {},
            train_on_eos=True,
            unfinished=frozenset({"k"} if cut else ()),
            **keys,
        ).examples
        return example.prompt_ids, example.completions[0]

    asked, answer = learned(made, cut=False, known=True)
    assert answer == [*ids, end]
    assert tokenizer.decode(asked) == "<|im_start|>user\nSay it.<|im_end|>\n<|im_start|>assistant\n"
    # What was said for sampling alone is no part of the prompt.
    assert learned(told, cut=False, known=True) == (asked, answer)
    # A server does not say which tokens it wrote.
    assert learned(made, cut=False, known=False) == (asked, answer)
    for known in (True, False):
        assert learned(replace(made, token_ids=ids), cut=True, known=known) == (asked, ids)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


FAST = {"learning_rate": 1e-3, "batch_size": 2, "precision": "fp32"}
ROLLED = {"rollouts": 2, "n": 2, "max_new_tokens": 6, "epochs": 1, "rewards": {"checks": 1}}
SHOWN = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in (("What is tea?", "A hot drink."), ("And coffee?", "One more."))
]


def instructgpt(folder: Path, write: Writer, model: Path, shown: Steps = SHOWN) -> Path:
    """Demonstrations, SFT, and PPO with pretraining gradients mixed in (arXiv 2203.02155)."""
    steps = [
        {"load": {"id": "demos", "type": "demonstrations", "path": "demos.jsonl"}},
        sft("demos", id="sft", epochs=2, **FAST),
        {"load": {"id": "web", "type": "text", "path": "web.txt"}},
        {
            "train": FAST
            | ROLLED
            | {"id": "ppo", "method": "ppo", "ptx_weight": 2.0, "uses": ["web"], "reference": "sft"}
        },
        {"evaluate": {"judges": [], "max_new_tokens": 6, "against": ["initial", "sft"]}},
    ]
    judges = [{"id": "checks", "kind": "rules"}]
    path = write(folder, model, steps=steps, rounds=1, judges=judges)
    write_rows(folder / "demos.jsonl", shown)
    (folder / "web.txt").write_text("A river is water.\n\nBees make honey.\nThey fly.\n")
    return path


def done(run: Run, name: str) -> dict[str, Any]:
    (step,) = (s for s in run.manifest["steps"] if s["id"] == name)
    found = run.store.step(step["hash"]).done()
    assert found is not None
    return {**found, "hash": step["hash"]}


def test_demonstrations_then_ppo_with_pretraining_text(
    tmp_path: Path, small_model: Path, write_experiment: Writer
) -> None:
    path = instructgpt(tmp_path, write_experiment, small_model)
    run_experiment(path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert done(run, "demos")["counts"] == {"demonstrations": 2}
    assert done(run, "web")["counts"] == {"texts": 2}
    seed = done(run, "sft")
    assert (seed["counts"]["preferences"], seed["counts"]["demonstrations"]) == (2, 2)
    assert seed["counts"]["steps"] == 2
    last = done(run, "ppo")
    assert last["counts"]["texts"] == 2
    # The tokens of the texts are what is mixed in: their loss is that of no template.
    assert last["summary"]["first_ptx_nll"] > 0
    card = (run.store.model_path(seed["hash"]) / "README.md").read_text()
    assert "with SFT on 2 demonstrations: 2 of a file" in card
    card = (run.store.model_path(last["hash"]) / "README.md").read_text()
    assert "rewarded by checks (rule), and on 2 raw texts." in card
    assert "| reference | sft |" in card
    # Neither is a pair of the run.
    assert not len(run.preferences)


def heldout_question() -> str:
    """One of the held-out questions: those of the smallest ids."""
    prompts = [make_prompt([{"role": "user", "content": text}]) for text in QUESTIONS]
    return min(prompts, key=lambda p: p.prompt_id).question


@pytest.mark.parametrize("system", [False, True])
def test_a_held_out_demonstration_is_found_two_trainings_back(
    tmp_path: Path, small_model: Path, write_experiment: Writer, system: bool
) -> None:
    question = heldout_question()
    asked = [{"role": "user", "content": f"{question}\n" if system else question}]
    before = [{"role": "system", "content": "Be kind."}] if system else []
    leak = {"messages": [*before, *asked, {"role": "assistant", "content": "Yes."}]}
    path = instructgpt(tmp_path, write_experiment, small_model, [*SHOWN, leak])
    with pytest.raises(RlaifError, match="is held out and was trained on") as caught:
        run_experiment(path, tmp_path / "run")
    message = str(caught.value)
    assert repr(question) in message
    assert "'sft' of round 1, which the evaluated model comes from, learned from it" in message
    assert "in what 'demos' gave" in message and "`prompts: other`" in message


def test_sampled_answers_are_learned_from_without_those_that_failed(
    tmp_path: Path, small_model: Path, write_experiment: Writer
) -> None:
    asked = [make_prompt([{"role": "user", "content": text}]) for text in QUESTIONS]
    train = sorted(asked, key=lambda p: p.prompt_id)[3:]
    endings = ["stop", "length", "failed", "stop", "length"]
    rows = [
        to_json(
            Completion(
                f"k_{i}",
                prompt.prompt_id,
                0,
                ANSWER if ending != "failed" else [],
                "elsewhere",
                "",
                {},
                ending,
                error="busy" if ending == "failed" else None,
            )
        )
        for i, (prompt, ending) in enumerate(zip(train, endings, strict=True))
    ]
    steps = [
        {"load": {"id": "kept", "type": "completions", "path": "kept.jsonl"}},
        sft(id="copy", **FAST),
    ]
    path = write_experiment(tmp_path, small_model, steps=steps, rounds=1)
    write_rows(tmp_path / "kept.jsonl", rows)
    run_experiment(path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    found = done(run, "copy")
    counts = {key: found["counts"][key] for key in ("completions", "failed", "cut")}
    assert counts == {"completions": 4, "failed": 1, "cut": 2}
    card = (run.store.model_path(found["hash"]) / "README.md").read_text()
    assert "with SFT on 4 sampled answers: 4 elsewhere." in card
    # The two that were cut are learned without an end: one token less each.
    ended = [
        row | {"finish_reason": row["finish_reason"].replace("length", "stop")} for row in rows
    ]
    write_rows(tmp_path / "kept.jsonl", ended)
    run_experiment(path, tmp_path / "ended")
    assert done(load_run(tmp_path / "ended"), "copy")["tokens"] == found["tokens"] + 2
    write_rows(tmp_path / "kept.jsonl", [r for r in rows if r["finish_reason"] == "failed"])
    with pytest.raises(RlaifError, match="nothing to train on: all 1 answers failed"):
        run_experiment(path, tmp_path / "none")


def lessons(folder: Path, steps: Steps, **more: Any) -> set[tuple[str, str]]:
    """(training, source) of what the last round's evaluation knows its model to be trained on."""
    last = [p for p in plan(folder, [*steps, {"evaluate": {}}], **more) if p.kind == "evaluate"][-1]
    return {(one.training, one.source) for one in last.lessons}


@pytest.mark.parametrize(
    ("keys", "known"),
    [
        ({}, True),
        ({"from": "initial", "reference": "current"}, True),
        ({"from": "initial", "reference": "initial"}, False),
    ],
)
def test_the_lineage_goes_through_starts_and_references(
    tmp_path: Path, keys: dict[str, str], known: bool
) -> None:
    first = [DEMOS | {"when": 1}, sft("demos", id="sft") | {"when": 1}]
    second = [GIVEN | {"when": 2}, {"train": {"id": "dpo", "beta": 0.1, **keys}, "when": 2}]
    found = lessons(tmp_path, [*first, *second], rounds=2)
    assert found == {("dpo", "given")} | ({("sft", "demos")} if known else set())


def test_demonstrations_of_an_earlier_stage_are_its_last_and_stay_in_the_lineage(
    tmp_path: Path,
) -> None:
    last = [SAMPLE, sft("answers", "demos", id="more"), {"evaluate": {}}]
    stages = [
        {"id": "seed", "steps": [DEMOS, sft("demos", id="sft")]},
        {"id": "align", "rounds": 2, "steps": last},
    ]

    def staged(data: dict[str, Any], _: Any) -> None:
        del data["steps"], data["rounds"]
        data["stages"] = stages

    made = planned(tmp_path, staged)
    more = [p for p in made if p.id == "more"]
    assert [sorted(p.inputs) for p in more] == [["answers/0", "demonstrations/1"]] * 2
    found = [p for p in made if p.kind == "evaluate"][-1].lessons
    assert {(one.training, one.source, one.round) for one in found} == {
        ("sft", "demos", 1),
        *(("more", source, number) for source in ("answers", "demos") for number in (2, 3)),
    }
    # Without `uses` a stage has only what it has made itself.
    del last[1]["train"]["uses"]
    more = [p for p in planned(tmp_path, staged) if p.id == "more"]
    assert [list(p.inputs) for p in more] == [["answers/0"]] * 2


def test_the_lineage_goes_through_reward_models(tmp_path: Path) -> None:
    judges = [{"id": "reward", "kind": "reward_model", "by": "distill"}]
    rloo = {"method": "rloo", "rewards": {"reward": 1}, "batch_size": 2}
    steps: Steps = [GIVEN, {"distill": {}}, {"train": rloo}]
    assert lessons(tmp_path, steps, judges=judges, rounds=1) == {("distill", "given")}


def test_loaded_answers_to_held_out_prompts_are_found(
    tmp_path: Path, small_model: Path, write_experiment: Writer
) -> None:
    held = make_prompt([{"role": "user", "content": heldout_question()}])
    row = to_json(Completion("k", held.prompt_id, 0, ANSWER, "elsewhere", "", {}, "stop"))
    steps = [
        {"load": {"id": "kept", "type": "completions", "path": "kept.jsonl"}},
        sft(id="copy", **FAST),
        {"evaluate": {"judges": [], "max_new_tokens": 4}},
    ]
    path = write_experiment(tmp_path, small_model, steps=steps, rounds=1)
    write_rows(tmp_path / "kept.jsonl", [row])
    with pytest.raises(RlaifError, match=r"is held out and was trained on: 'copy'.*'kept' gave"):
        run_experiment(path, tmp_path / "run")
