"""What makes a benchmark of judges ask again, and which of two answers each question shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlaif.analysis.bench.entrants import find_entrants
from rlaif.analysis.bench.judging import _hash_step
from rlaif.analysis.bench.run import BenchRequest, run_bench
from rlaif.analysis.fit_weights import judges_of
from rlaif.analysis.inverse_constitution.propose import proposal_request
from rlaif.analysis.reach import JudgeReach
from rlaif.config.models import ModelSpec
from rlaif.constitution.model import Constitution
from rlaif.core.labelled import LabelledPair
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Prompt, make_prompt
from rlaif.data.readers.base import make_pair, user
from rlaif.judges.templates import load_template

MODEL = ModelSpec(path="none", engine="fake")


def pair_of(label: float | None = 1.0, **about: Any) -> LabelledPair:
    pair = make_pair("f:0", user("Name a fruit."), ("A plum.", "A very ripe fig."), label)
    prompt = make_prompt(user("Name a fruit."), **about)
    return replace(pair, prompt=prompt)


def test_a_judge_is_asked_again_where_anything_that_it_reads_is_another() -> None:
    [entrant] = find_entrants(["longer"], MODEL, None, False)
    [other] = find_entrants(["first"], MODEL, None, False)
    asker, second = (
        find_entrants(["rating"], spec, None, False)[0]
        for spec in (MODEL, MODEL.model_copy(update={"script": None, "max_context": 99}))
    )

    def hashed(pair: LabelledPair, who: Any = entrant, seed: int = 0) -> str:
        return _hash_step(who, [(pair.prompt, [pair.first, pair.second])], seed)

    plain = hashed(pair_of())
    assert plain == hashed(pair_of(label=0.0)) == hashed(pair_of(source="elsewhere"))
    found = [
        plain,
        hashed(pair_of(tags=["a"])),
        hashed(pair_of(reference="A fig.")),
        hashed(pair_of(reference="A pear.")),
        hashed(pair_of().swap()),
        hashed(pair_of(), seed=1),
        hashed(pair_of(), other),
        hashed(pair_of(), asker),
        hashed(pair_of(), second),
        _hash_step(entrant, [(pair_of().prompt, [pair_of().first])], 0),
    ]
    assert len(set(found)) == len(found)


def test_a_rerun_on_the_same_pairs_adds_no_step_and_on_others_one(tmp_path: Path) -> None:
    def steps(pair: LabelledPair) -> int:
        run_bench(
            BenchRequest(
                name="some", judges=["longer"], out=tmp_path, model=MODEL, baselines=False
            ),
            [pair],
            QuietProgress(),
        )
        return len(list(tmp_path.rglob("done.json")))

    assert [steps(pair_of()), steps(pair_of()), steps(pair_of(reference="A fig."))] == [1, 1, 2]


@pytest.mark.parametrize(("label", "first"), [(1.0, "A plum."), (0.25, "A very ripe fig.")])
def test_a_principle_is_asked_for_with_the_preferred_answer_first(
    label: float, first: str, tmp_path: Path
) -> None:
    (tmp_path / "own.j2").write_text("{{ response_1 }}|{{ response_2 }}", "utf-8")
    variables = frozenset({"response_1", "response_2"})
    template = load_template(str(tmp_path / "own.j2"), variables, frozenset(), None)
    asked = [proposal_request(pair_of(label), template, seed) for seed in (3, 3, 4)]
    [message] = asked[0].messages
    assert message["content"].startswith(first + "|")
    assert asked[0] == asked[1] and asked[0].sampling.seed != asked[2].sampling.seed
    assert (asked[0].sampling.max_new_tokens, asked[0].sampling.temperature) == (160, 0.7)
    for strange in (None, 0.5):
        with pytest.raises(ValueError, match="no preferred answer"):
            proposal_request(pair_of(strange), template, 3)


def test_programs_and_texts_each_have_a_judge_where_there_are_some() -> None:
    check = {"rule": "word_limits", "params": {"min": 1, "max": 2}}
    rows: dict[str, dict[str, Any]] = {
        "checked": {"id": "c", "text": "Be brief.", "check": check},
        "text": {"id": "t", "text": "Be kind."},
    }

    def ids(*names: str, kind: str = "yes_no") -> list[tuple[str, str]]:
        rules = {"name": "r", "principles": [rows[name] for name in names]}
        made = judges_of(Constitution.model_validate(rules), kind)
        return [(judge.id, type(judge).__name__) for judge in made]

    assert ids("checked") == [("checks", "Rules")]
    assert ids("text") == [("model", "YesNo")]
    assert ids("checked", "text", kind="pairwise") == [("checks", "Rules"), ("model", "Pairwise")]


def test_reach_says_what_is_asked_made_and_kept() -> None:
    made = JudgeReach("j", False, 9, unchanged=4, asked=3, made=2)
    assert str(made) == (
        "j: 3 questions asked again, 2 answers of a program made again, 4 answers kept"
    )
    assert str(replace(made, made=0)) == "j: 3 questions asked again, 4 answers kept"
    assert str(replace(made, asked=0)) == "j: 2 answers of a program made again, 4 answers kept"
    assert str(replace(made, kept=True)) == "j: 9 judgements kept"
    assert "cannot be built from here: why" in str(replace(made, fault="why"))


def test_prompts_with_other_facts_are_one_prompt() -> None:
    one, two = pair_of(tags=["a"]).prompt, pair_of(reference="x").prompt
    assert isinstance(one, Prompt) and one.prompt_id == two.prompt_id
