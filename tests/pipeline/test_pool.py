"""A pool of generators: who answers which prompt, what each is told, and what the judges see."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rlaif.config.steps import SamplePrinciples, SampleStep
from rlaif.core.errors import ConfigError
from rlaif.core.records import make_prompt
from rlaif.data.sources import chosen_members, drawn, with_system
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import load_run
from rlaif.pipeline.steps.sample import told_messages

PRINCIPLES = {
    "texts": {"brief": ["Be brief.", "Say little."], "honest": ["Say what you do not know."]},
    "default": {"brief": 3, "honest": 1},
    "shares": {"facts": {"honest": 1}},
}
POOL: list[dict[str, Any]] = [
    {"by": "policy", "temperature": 0.5},
    {"by": "other"},
    {"by": "policy", "system_prompt": "You are a poet."},
    {"by": "other", "max_new_tokens": 3},
]
STEPS: list[dict[str, Any]] = [
    {"sample": {"n": 3, "max_new_tokens": 8, "pool": POOL, "principles": PRINCIPLES}},
    {"judge": {"id": "checks", "kind": "rules", "principles": ["brief"], "uses": ["sample"]}},
    {"pair": {"strategy": "all"}},
]


def question(text: str, source: str = "", tags: list[str] | None = None) -> Any:
    return make_prompt([{"role": "user", "content": text}], source, tags)


def write(folder: Path, write_experiment: Callable[..., Path], steps: list[Any]) -> Path:
    models = {
        name: {"path": name, "engine": "fake", "script": f"{name}.yaml"}
        for name in ("policy", "other")
    }
    prompts = {"path": "prompts.jsonl", "holdout": 1}
    path = write_experiment(folder, None, rounds=1, models=models, prompts=prompts, steps=steps)
    for name, reply in (("policy", "One two three four."), ("other", "Yes.")):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"default": reply}))
    return path


def test_each_prompt_is_answered_by_different_members(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write(tmp_path, write_experiment, STEPS)
    run_experiment(path, tmp_path / "run")
    assert run_experiment(path, tmp_path / "run").ran == 0
    run = load_run(tmp_path / "run")
    by_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in run.rows("completions"):
        by_prompt[row["prompt_id"]].append(row)
    assert len(by_prompt) == 7
    steps = {row["step"] for rows in by_prompt.values() for row in rows}
    assert steps == {f"sample/{number}" for number in range(4)}
    for rows in by_prompt.values():
        assert len({row["step"] for row in rows}) == len(rows) == 3
        assert len({row["completion_id"] for row in rows}) == 3
        for row in rows:
            poet = row["step"] == "sample/2"
            assert row["system_prompt"].startswith("You are a poet.\n\n") == poet
            assert row["principle"] in ("brief", "honest")
            assert row["model"] == ("other" if row["step"] in ("sample/1", "sample/3") else "M0")
            assert row["sampling"]["temperature"] == (0.5 if row["step"] == "sample/0" else 0.8)
    judged = {row["subject"] for row in run.rows("judgements")}
    assert judged == {row["completion_id"] for rows in by_prompt.values() for row in rows}
    assert all(len(row["prompt"]) == 1 for row in run.rows("preferences")), "no system turn"


def test_each_answer_to_a_prompt_has_a_principle_of_its_own(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    steps = [{"sample": {"n": 6, "max_new_tokens": 8, "principles": PRINCIPLES}}]
    run_experiment(write(tmp_path, write_experiment, steps), tmp_path / "run")
    by_prompt: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in load_run(tmp_path / "run").rows("completions"):
        by_prompt[row["prompt_id"]].add((row["principle"], row["system_prompt"]))
    assert len(by_prompt) == 7
    assert all(len({text for _, text in told}) > 1 for told in by_prompt.values())
    assert any(len({name for name, _ in told}) > 1 for told in by_prompt.values())


def test_a_new_member_leaves_the_others_answers_where_they_are_drawn_alike(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write(tmp_path, write_experiment, [{"sample": {"n": 2, "pool": POOL[:2]}}])
    assert run_experiment(path, tmp_path / "run").ran == 2
    changed = [POOL[0], POOL[1] | {"temperature": 0.1}]
    path = write(tmp_path, write_experiment, [{"sample": {"n": 2, "pool": changed}}])
    assert run_experiment(path, tmp_path / "run").ran == 1


def test_members_are_drawn_evenly_and_by_the_seed() -> None:
    drawn_ = [chosen_members(5, 2, f"p{n}", 7) for n in range(1000)]
    assert drawn_ == [chosen_members(5, 2, f"p{n}", 7) for n in range(1000)]
    assert drawn_ != [chosen_members(5, 2, f"p{n}", 8) for n in range(1000)]
    counts = Counter(member for members in drawn_ for member in members)
    # Binomial with p = 2/5: 400 of 1000, standard deviation 15.5.
    assert all(abs(counts[member] - 400) < 4 * 15.5 for member in range(5))


def test_the_shares_of_principles_depend_on_the_source() -> None:
    wanted = SamplePrinciples.model_validate(PRINCIPLES)
    count = 2000
    found = Counter(drawn(wanted, question(f"q{n}"), 1, 0).principle for n in range(count))
    # p = 3/4: standard deviation 19.4 of 2000.
    assert abs(found["brief"] - 0.75 * count) < 4 * 19.4
    assert drawn(wanted, question("q", "facts"), 1, 0).principle == "honest"
    assert drawn(wanted, question("q", "web", ["hard", "facts"]), 1, 0).principle == "honest"
    texts = {drawn(wanted, question(f"q{n}"), 1, 0).text for n in range(100)}
    assert texts == {text for given in PRINCIPLES["texts"].values() for text in given}


def test_the_shares_of_a_source_go_before_those_of_tags() -> None:
    shares = {"web": {"brief": 1.0}, "hard": {"honest": 1.0}}
    wanted = SamplePrinciples.model_validate(PRINCIPLES | {"shares": shares})
    prompts = [question(f"q{n}", "web", ["hard"]) for n in range(20)]
    assert {drawn(wanted, prompt, 1, 0).principle for prompt in prompts} == {"brief"}


def test_what_a_model_is_told_comes_after_a_prompts_own_system_turn() -> None:
    turns = make_prompt([{"role": "system", "content": "Own."}, {"role": "user", "content": "q"}])
    step = SampleStep(system_prompt="Step.", principles=SamplePrinciples.model_validate(PRINCIPLES))
    assert step.principles is not None
    told = drawn(step.principles, turns, 1)
    messages = told_messages(step, turns, told)
    assert messages[0]["content"] == f"Own.\n\nStep.\n\n{told.text}"
    assert messages[1:] == turns.messages[1:] and turns.messages[0]["content"] == "Own."
    assert with_system(question("q").messages, "x")[0] == {"role": "system", "content": "x"}
    assert told_messages(SampleStep(), turns, None) == turns.messages


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"n": 3, "pool": POOL[:2]}, "3 answers of a pool of 2"),
        ({"n": 2, "by": "initial", "pool": POOL}, "its own `by`"),
        ({"principles": {"texts": {}}}, "at least one principle"),
        ({"principles": {"texts": {"a": ["b"]}, "default": {"c": 1}}}, "'c', which has no texts"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SampleStep.model_validate(keys)


def test_an_unknown_member_is_named(tmp_path: Path, write_experiment: Callable[..., Path]) -> None:
    pool = [{"by": "policy"}, {"by": "othr"}]
    path = write(tmp_path, write_experiment, [{"sample": {"n": 2, "pool": pool}}])
    with pytest.raises(ConfigError, match="pool: 'othr' is no model"):
        run_experiment(path, tmp_path / "run")


def test_a_changed_source_draws_principles_again(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write(tmp_path, write_experiment, [{"sample": {"principles": PRINCIPLES}}])
    run_experiment(path, tmp_path / "run")
    file = tmp_path / "prompts.jsonl"
    rows = [json.loads(line) | {"source": "facts"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_experiment(path, tmp_path / "run").ran == 1
    run = load_run(tmp_path / "run")
    assert {row["principle"] for row in run.rows("completions")} == {"honest"}
