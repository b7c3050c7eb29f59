"""What the keys of a training on fresh answers say together: each at two values of its own."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError

from rlaif.config.methods import METHODS
from rlaif.config.on_policy import OnPolicyTrain
from rlaif.config.rewards import PromptCondition, RewardTerm, terms_of
from rlaif.core.records import make_prompt

FRESH = [name for name, spec in METHODS.items() if issubclass(spec, OnPolicyTrain)]


def step_of(method: str = "grpo", **keys: Any) -> Any:
    rewards = {"rewards": {"r": 1.0}}
    return METHODS[method].model_validate({"method": method} | rewards | keys)


@pytest.mark.parametrize(("epochs", "sync_every"), list(product((1, 2), (1, 2))))
def test_old_log_probs_are_needed_once_a_rollout_is_learned_from_in_several_steps(
    epochs: int, sync_every: int
) -> None:
    found = step_of("grpo", epochs=epochs, sync_every=sync_every).needs_old_logprobs
    assert found == ((epochs, sync_every) != (1, 1))


@pytest.mark.parametrize("method", FRESH)
def test_a_reference_is_compared_for_the_loss_or_for_a_gate(method: str) -> None:
    assert step_of(method, beta=0.1).compares
    if method in ("grpo", "rloo"):
        assert not step_of(method, beta=0.0).compares
        assert step_of(method, beta=0.0, gates={"kl": {"warn": 1.0}}).compares


def test_weights_of_judges_are_shares_of_their_scores() -> None:
    terms = terms_of({"a": 3.0, "b": 1.0})
    assert [(t.judge, t.weight, t.value, t.normalise, t.clip) for t in terms] == [
        ("a", 0.75, "score", "none", None),
        ("b", 0.25, "score", "none", None),
    ]
    own = [RewardTerm(judge="b", weight=-2.0), RewardTerm(judge="a"), RewardTerm(judge="b")]
    assert terms_of(own) is own
    step = step_of(rewards=[t.model_dump() for t in own])
    assert step.reward_judges == ["b", "a"] and [t.weight for t in step.terms] == [-2.0, 1.0, 1.0]


def test_a_condition_holds_for_its_tags_and_its_sources() -> None:
    prompt = make_prompt([{"role": "user", "content": "Q"}], source="s", tags=["a", "b"])
    for keys, holds in (
        ({"tags": ["b", "c"]}, True),
        ({"tags": ["c"]}, False),
        ({"source": ["t", "s"]}, True),
        ({"source": ["t"]}, False),
        ({"tags": ["a"], "source": ["t"]}, False),
        ({"tags": ["c"], "source": ["s"]}, False),
        ({"tags": ["a"], "source": ["s"]}, True),
    ):
        condition = PromptCondition.model_validate(keys)
        assert condition.holds(prompt) is holds
        assert RewardTerm(judge="j", when=condition).is_for(prompt) is holds
    assert RewardTerm(judge="j").is_for(prompt)
    with pytest.raises(ValidationError, match="give `tags`, `source` or both"):
        PromptCondition()


def test_the_first_name_of_where_still_names_it() -> None:
    condition = {"tags": ["a"]}
    one, other = (
        RewardTerm.model_validate({"judge": "j", name: condition}) for name in ("when", "where")
    )
    assert one == other and one.when == PromptCondition(tags=["a"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rewards": [{"judge": "r", "within": "v"}]}, "judge 'r': `within` .* group or range"),
        (
            {"rewards": [{"judge": "r", "normalise": "range", "within": "v"}], "method": "ppo"},
            "judge 'r': `normalise: range` .* n is 1",
        ),
        ({"rewards": [{"judge": "r", "weight": 0}]}, "every term has weight 0"),
    ],
)
def test_terms_that_cannot_be_name_their_judge(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        step_of(**{"method": "grpo"} | keys)


def test_every_judge_of_a_term_and_a_cost_is_asked_once() -> None:
    terms = [
        {"judge": "a", "only_if": "b"},
        {"judge": "c", "normalise": "group", "within": "b"},
        {"judge": "d", "weight": 0, "normalise": "reference"},
    ]
    step = step_of(
        "ppo", rewards=terms, n=2, costs=[{"judge": "a", "limit": 1}, {"judge": "e", "limit": 0}]
    )
    assert step.reward_judges == ["a", "b", "c", "d", "e"]
    # What is only logged is not learned from.
    assert step.learned_judges == ["a", "b", "c", "e"]
    watched = step_of("ppo", costs=[{"judge": "e", "limit": 0, "start": 0}])
    assert (watched.reward_judges, watched.learned_judges) == (["r", "e"], ["r"])
    assert not any(term.fits_reference for term in step.terms)
    assert step.adds_terms and not step_of().adds_terms
