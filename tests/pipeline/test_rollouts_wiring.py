"""What a rollout and an asked judge are handed: rounds, seeds, terms, weights, models and calls
that all differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlaif.config.rewards import RewardTerm
from rlaif.core.records import Completion, Judgement, content_hash, make_prompt
from rlaif.core.store import StepFolder
from rlaif.engines.base import GenerateRequest, GenerateResult, Sampling
from rlaif.judges.base import Answered, Call
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.steps.asking import Carried, Kept, answers_of
from rlaif.pipeline.steps.on_policy import Rollouts
from rlaif.pipeline.steps.valued import Valued
from rlaif.train.rollout import Answer

PROMPTS = [
    make_prompt([{"role": "user", "content": f"Q{n}?"}], tags=["odd"] if n % 2 else [])
    for n in range(7)
]


def rollouts(**about: Any) -> Any:
    """The part of `Rollouts` that chooses, seeds and values, without a model."""
    keys: dict[str, Any] = {
        "batch_size": 2,
        "sync_every": 1,
        "rollouts": 3,
        "n": 2,
        "max_new_tokens": 5,
        "lag": 0,
    }
    keys |= {"temperature": 0.7, "stop": ["!"], **about}
    step = SimpleNamespace(**keys)
    planned = SimpleNamespace(
        round=about.get("round", 1),
        seed=about.get("seed", 4),
        hash="h",
        step=step,
        options={"principle_weights": {"a": 3.0, "b": 1.0}},
        models=about.get("models", {"made": SimpleNamespace(label="made here")}),
    )
    found: Any = object.__new__(Rollouts)
    planned.judges = about.get("judges", {})
    found.context = SimpleNamespace(planned=planned, prompts={p.prompt_id: p for p in PROMPTS})
    found.step, found.prompts, found.terms = step, PROMPTS, about.get("terms", [])
    chat = SimpleNamespace(system_prompt="Be kind.")
    found.encoding = SimpleNamespace(chat=chat)
    return found


def chosen(number: int, places: Sequence[int] = (), **about: Any) -> list[str]:
    return [p.question for p in rollouts(**about)._choose_prompts(number, places)]


def test_rounds_go_on_with_the_prompts_where_the_one_before_has_stopped() -> None:
    """Three rollouts of two prompts a round: six different prompts in a round, and of the seven the
    next round begins with the one that is left."""
    rows = [(r, n, chosen(n, round=r)) for r in (1, 2) for n in range(3)]
    order = [q for _, _, prompts in rows for q in prompts]
    assert len(set(order[:6])) == 6 and len(set(order[6:])) == 6
    [left] = {p.question for p in PROMPTS} - set(order[:6])
    assert left in order[6:8]
    assert all(len(prompts) == 2 for _, _, prompts in rows)
    # A rollout of twice as many steps takes twice as many, and another seed another order.
    assert len(chosen(0, sync_every=2)) == 4
    assert set(chosen(0, sync_every=2)) == set(order[:4])
    assert [chosen(n) for n in range(3)] != [chosen(n, seed=5) for n in range(3)]
    # Single steps count as round 0 and begin as round 1 does.
    assert chosen(0, round=0) == chosen(0, round=1)


def test_reference_answers_are_drawn_among_the_prompts_that_their_terms_are_for() -> None:
    when = {"tags": ["odd"]}
    terms = [
        RewardTerm.model_validate({"judge": "j", "when": when}),
        RewardTerm.model_validate({"judge": "k"}),
    ]
    assert set(chosen(-1, [0], terms=terms)) == {"Q1?", "Q3?", "Q5?"}
    assert len(chosen(-1, [0, 1], terms=terms)) == 7
    one, two = (chosen(-n, [1], terms=terms, n=32) for n in (1, 2))
    assert 0 < len(one) < 7 and len(two) == len(one) and one != two


def test_the_seed_of_an_answer_is_its_own() -> None:
    def seed(number: int, prompt: Any, index: int, **about: Any) -> int:
        made = rollouts(**about)._make_sampling((number,), prompt, index)
        assert (made.max_new_tokens, made.temperature, made.stop) == (5, 0.7, ("!",))
        return int(made.seed)

    first = seed(0, PROMPTS[0], 0)
    others = [
        seed(1, PROMPTS[0], 0),
        seed(0, PROMPTS[1], 0),
        seed(0, PROMPTS[0], 1),
        seed(0, PROMPTS[0], 0, round=2),
        seed(0, PROMPTS[0], 0, seed=5),
    ]
    assert first == seed(0, PROMPTS[0], 0) and len({first, *others}) == 6
    assert all(0 <= value < 2**31 for value in (first, *others))


def answer(name: str, prompt: Any, text: str = "says", **about: Any) -> Completion:
    turns: Any = [{"role": "assistant", "content": text}]
    given: dict[str, Any] = {"token_ids": [1, 2], "logprobs": [-0.5, -0.25]} | about
    reason = given.pop("finish", "stop")
    return Completion(name, prompt.prompt_id, 0, turns, "m", "w", {}, reason, **given)


def test_an_answer_is_learned_from_with_its_own_values_and_end() -> None:
    prompt = PROMPTS[0]
    own = rollouts()
    values = {
        "c": Valued((1.0, 2.0), frozenset({1}), {0: 0.5}, (3.0,)),
        "d": Valued((None, None), frozenset(), {}, (None,)),
    }
    watched = {"c": {"distance/j": 3.0}}

    def made(completion: Completion) -> Answer | None:
        found: Answer | None = own._make_answer(completion, values, watched)
        return found

    assert made(answer("c", prompt)) == Answer(
        [1, 2],
        [-0.5, -0.25],
        (1.0, 2.0),
        True,
        {"distance/j": 3.0},
        idle=frozenset({1}),
        strata={0: 0.5},
        costs=(3.0,),
    )
    cut = made(answer("d", prompt, finish="length"))
    assert cut == Answer([1, 2], [-0.5, -0.25], (None, None), False, {}, costs=(None,))
    assert made(answer("c", prompt, finish="failed")) is None
    assert made(answer("c", prompt, token_ids=[])) is None


def test_a_sampled_answer_says_where_it_is_from() -> None:
    own = rollouts()
    engine: Any = SimpleNamespace(weights_hash="moment")
    result = GenerateResult("k1", "Hello", [3, 4], "length", 9, logprobs=[-1.0, -2.0])
    made = own._make_completion(result, PROMPTS[1], 1, (2,), engine)
    assert (made.completion_id, made.prompt_id, made.sample_index) == (
        "k1",
        PROMPTS[1].prompt_id,
        1,
    )
    assert (made.model, made.weights_hash) == ("made here, rollout 3", "moment")
    assert (made.token_ids, made.logprobs, made.finish_reason) == ([3, 4], [-1.0, -2.0], "length")
    assert (made.text, made.digest, made.system_prompt) == (
        "Hello",
        content_hash("Hello"),
        "Be kind.",
    )
    assert made.sampling["seed"] == own._make_sampling((2,), PROMPTS[1], 1).seed
    failed = GenerateResult("k2", "", [], "failed", 9, "no")
    assert own._make_completion(failed, PROMPTS[1], 0, (-1,), engine).error == "no"
    assert "start, draw 1" in own._make_completion(failed, PROMPTS[1], 0, (-1,), engine).model


def test_a_judge_of_several_models_gets_each_under_its_role() -> None:
    models = {"judge/j": "one", "judge/k/by": "two", "judge/k/reference": "three", "start": "s"}
    own = rollouts(models=models)
    j: Any = SimpleNamespace(id="j", needs=frozenset({"generate"}), comparative=False)
    roles: Any = {"by": frozenset(), "reference": frozenset()}
    k: Any = SimpleNamespace(id="k", roles=roles, conclude=None)
    assert own._models_of_judge(j) == {"by": "one"}
    assert own._models_of_judge(k) == {"by": "two", "reference": "three"}


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    write_experiment: Callable[..., Path],
) -> Path:
    folder = tmp_path_factory.mktemp("rollouts")
    train = {"method": "grpo", "rewards": {"checks": 1.0}, "rollouts": 2, "n": 2}
    train |= {"batch_size": 1, "max_new_tokens": 2, "precision": "fp32"}
    path = write_experiment(
        folder / "files",
        tiny_model,
        judges=[{"id": "checks", "kind": "rules"}],
        steps=[{"train": train}],
    )
    run_experiment(path, folder / "run")
    return folder / "run"


def test_two_rounds_sample_as_many_different_prompts_as_they_have_rollouts(trained: Path) -> None:
    rows = [
        json.loads(line)
        for file in trained.glob("steps/*/completions.jsonl")
        for line in file.read_text("utf-8").splitlines()
    ]
    # Two rounds of two rollouts of one prompt, of the five that are trained on.
    assert len(rows) == 8 and len({row["prompt_id"] for row in rows}) == 4


# What earlier wordings of a judge have answered.
def call(name: str, asked: bool = True) -> Call:
    request = GenerateRequest(name, [{"role": "user", "content": name}], Sampling(1))
    return Call(name, PROMPTS[0], (), "a", request=request if asked else None)


def judged(name: str, score: float, judge_hash: str) -> Judgement:
    return Judgement(
        f"{name}{judge_hash}", name, PROMPTS[0].prompt_id, "completion", [name], name, "j",
        "a", "ai", "a", "ok", score, judge_hash=judge_hash,
    )  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> tuple[StepFolder, list[StepFolder]]:
    now, one, two = (StepFolder(tmp_path / name) for name in ("now", "one", "two"))
    one.append("judgements", [judged("a", 0.1, "old"), judged("b", 0.2, "old")])
    two.append("judgements", [judged("b", 0.3, "older"), judged("c", 0.4, "older")])
    return now, [one, two]


def test_what_earlier_steps_have_is_taken_once_and_from_the_first_that_has_it(
    folders: tuple[StepFolder, list[StepFolder]],
) -> None:
    now, earlier = folders
    kept = Kept(now)
    now.append("judgements", [judged("x", 0.9, "new")])
    kept.judged([])
    rows = kept.judgements
    carried = Carried(now, "judgements", earlier, "new", rows.append, rows)
    calls = [call("c"), call("x"), call("b"), call("silent", False), call("d"), call("b")]
    carried.take(calls)
    found = {j.call_id: (j.score, j.judge_hash) for j in now.records(Judgement)}
    assert found == {"x": (0.9, "new"), "b": (0.2, "new"), "c": (0.4, "new")}
    assert [c.call_id for c in carried.left(calls)] == ["x", "silent", "d"]
    assert {row["call_id"] for row in now.rows("carried")} == {"b", "c"} == carried.calls
    # Once more, in another process: nothing is copied twice.
    again = Kept(now)
    more = Carried(now, "judgements", earlier, "new", again.judgements.append, again.judgements)
    assert more.calls == {"b", "c"}
    more.take(calls)
    assert now.count("judgements") == 3 and now.count("carried") == 2


def test_a_mark_without_rows_is_of_a_kill_and_its_rows_are_copied(
    folders: tuple[StepFolder, list[StepFolder]],
) -> None:
    now, earlier = folders
    now.append("carried", [{"call_id": "a"}])
    kept = Kept(now)
    rows = kept.judgements
    carried = Carried(now, "judgements", earlier, "new", rows.append, rows)
    assert carried.calls == set()
    carried.take([call("a"), call("c")])
    assert carried.calls == {"a", "c"}
    assert [row["call_id"] for row in now.rows("carried")] == ["a", "c"]
    assert [j.call_id for j in now.records(Judgement)] == ["a", "c"]


def test_copied_answers_keep_the_row_that_they_had(tmp_path: Path) -> None:
    now, one = StepFolder(tmp_path / "now"), StepFolder(tmp_path / "one")
    result = GenerateResult("a", "Yes.", [], "stop", 5, new_tokens=2)
    old = Kept(one)
    old.answered("answers", [(call("a"), Answered(result, "m:w", "since", 0.5, 0.25))])
    kept = Kept(now)
    staged: Any = SimpleNamespace(judge_hash="new", conclude=None)
    kept.carry(now, staged, [one])
    assert kept.unasked([call("a"), call("b")]) == [call("b")]
    assert kept.answers["a"] == Answered(result, "m:w", "since", 0.5, 0.25)
    assert now.read("answers")[0] == one.read("answers")[0]
    assert now.count("judgements") == 0


def test_an_answer_has_its_own_cost_and_the_seconds_of_its_server_or_its_share() -> None:
    results = [GenerateResult(n, n, [], "stop", 1, seconds=s, cost=s / 4) for n, s in
               (("a", 2.0), ("b", 6.0))]  # fmt: skip

    class Engine:
        concurrent = True

        def generate(self, requests: Any, done: Any) -> Any:
            assert [r.request_id for r in requests] == ["a", "b", "c"] and done == {"c"}
            yield results

    engine: Any = Engine()
    wanted: list[Any] = [call(n).request for n in "abc"]
    [batch] = answers_of(engine, "m:w", wanted, {"c"})
    assert {n: (a.latency, a.cost, a.annotator_id) for n, a in batch.items()} == {
        "a": (2.0, 0.5, "m:w"),
        "b": (6.0, 1.5, "m:w"),
    }
    engine.concurrent = False
    [batch] = answers_of(engine, "m:w", wanted, {"c"})
    assert batch["a"].latency == batch["b"].latency != 2.0
