"""What the keys of a training on fresh answers say together: each at two values of its own."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError

from rlaif.config.gates import Gate
from rlaif.config.methods import METHODS
from rlaif.config.on_policy import OnPolicyTrain
from rlaif.config.rewards import CostTerm, PromptCondition, RewardTerm, terms_of
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


COSTS = [{"judge": "c", "limit": 0.0}]


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ({"lora": {"dropout": 0.1}}, {"lora": {"dropout": 0.0}}, "set lora.dropout to 0"),
        ({"overlong": "truncate_left"}, {"overlong": "refuse"}, "cannot be cut"),
        (
            {"max_length": 64, "max_new_tokens": 64},
            {"max_length": 65, "max_new_tokens": 64},
            "leaves no room for a prompt",
        ),
        ({"train_on_eos": False}, {"method": "ppo", "train_on_eos": False}, "train_on_eos: answ"),
        ({"reasoning": "strip"}, {"method": "ppo", "reasoning": "strip"}, "reasoning: answers"),
        ({"uses": ["x"]}, {"method": "ppo", "uses": ["x"]}, "uses names given answers"),
        ({"importance_floor": 3.0}, {"importance_floor": 2.9}, "must be below importance_cap"),
        ({"temperature": 0.7}, {"temperature": 0.7, "importance": "none"}, "are at temperature 1"),
        ({"resample": 2, "costs": COSTS}, {"resample": 2}, "leave out `resample` or `costs`"),
        (
            {"method": "ppo", "gates": {"flat_groups": {"warn": 0.5}}},
            {"method": "ppo", "gates": {"flat_groups": {"warn": 0.5}}, "n": 2},
            "flat_groups has no effect",
        ),
    ],
)
def test_keys_that_exclude_each_other_are_refused_together_alone(
    wrong: dict[str, Any], right: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        step_of(**{"method": "grpo"} | wrong)
    mixed = {"ptx_weight": 1.0} if right.keys() & {"train_on_eos", "reasoning", "uses"} else {}
    step_of(**{"method": "grpo"} | right | mixed)


def test_what_a_rollback_goes_back_to_is_decided_by_its_checkpoints_too() -> None:
    gates = {"length": {"rollback": 9.0, "warn": 5.0}, "kl": {"stop": 3.0}}
    step = step_of(gates=gates, checkpoint_every=7)
    assert step.rollback_keys == {"rollback": {"length": 9.0}, "checkpoint_every": 7}
    assert step_of(gates={"kl": {"stop": 3.0}}, checkpoint_every=7).rollback_keys == {}
    at_nothing = step_of(gates={"reward_spread": {"rollback": 0.0}})
    assert at_nothing.rollback_keys["rollback"] == {"reward_spread": 0.0}
    with pytest.raises(ValidationError, match="needs low < high"):
        Gate(warn=(1.0, 1.0))


def test_a_penalty_is_learned_from_and_a_term_that_is_logged_needs_no_reference() -> None:
    terms = [{"judge": "a"}, {"judge": "b", "weight": -1.0, "normalise": "reference"}]
    step = step_of(rewards=[*terms, {"judge": "c", "weight": 0, "normalise": "reference"}])
    assert step.learned_judges == ["a", "b"]
    assert [term.fits_reference for term in step.terms] == [False, True, False]


def test_a_multiplier_may_start_at_its_largest_and_stay_there() -> None:
    assert CostTerm(judge="c", limit=0.0, start=5.0, max=5.0, rate=0.0).acts
    with pytest.raises(ValidationError, match=r"`start` \(5.1\) is above `max` \(5\)"):
        CostTerm(judge="c", limit=0.0, start=5.1, max=5.0)


def test_the_keys_of_a_group_are_what_the_loop_reads() -> None:
    step = step_of(beta=0.3, missing_eos_penalty=2.0, overlong_buffer=9, mask_truncated=True)
    assert (step.kl_weight, step.eos_penalty, step.soft_limit) == (0.3, 2.0, 9)
    assert not step.learns_unfinished and step_of().learns_unfinished


@pytest.mark.parametrize(
    ("lora", "kept", "masters"),
    [
        (None, False, True),
        ({}, False, True),
        ({"export": "both"}, True, True),
        ({"export": "adapter"}, True, False),
    ],
)
def test_an_adapter_is_kept_where_it_is_written_and_alone_has_no_masters(
    lora: dict[str, Any] | None, kept: bool, masters: bool
) -> None:
    step = METHODS["dpo"].model_validate({"method": "dpo", "beta": 0.3, "lora": lora})
    assert step.makes_masters is masters
    assert step.kept_adapter == (step.lora if kept else None)
    assert step.reward_scale == 0.3


def test_memory_is_saved_by_what_is_not_done_yet() -> None:
    least = "lower `n` (4), `max_new_tokens` (9) or `micro_batch_tokens` (auto)"
    keys = {"n": 4, "max_new_tokens": 9}
    checkpoints = ", or set `gradient_checkpointing: true`"
    alone = ", or train adapters alone with `lora`"
    assert step_of(**keys).memory_advice == least + checkpoints + alone
    assert step_of(**keys, lora={}).memory_advice == least + checkpoints
    assert step_of(**keys, gradient_checkpointing=True).memory_advice == least + alone


def test_one_process_shards_nothing() -> None:
    with pytest.raises(ValidationError, match="set `processes` above 1"):
        step_of(sharding="full", processes=1)
    assert step_of(sharding="full", processes=2).sharding == "full"
