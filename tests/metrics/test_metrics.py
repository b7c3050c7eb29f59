"""Per-prompt values of every metric, against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlaif.config.steps import CheckSpec
from rlaif.core.numbers import rank_correlation
from rlaif.core.records import Completion, Judgement, make_prompt
from rlaif.metrics.metrics import (
    compute_differences,
    compute_intervals,
    judge_values,
    likelihood_values,
    pairwise_values,
    per_prompt,
    sample_values,
    text_values,
    to_shares,
    unfamiliar_values,
)

PROMPT = make_prompt([{"role": "user", "content": "Name a red fruit."}])
OTHER = make_prompt([{"role": "user", "content": "What is a river?"}])
PROMPTS = {p.prompt_id: p for p in (PROMPT, OTHER)}
P, Q = PROMPT.prompt_id, OTHER.prompt_id


def completion(name: str, text: str, prompt: str = P, **keys: Any) -> Completion:
    fields: dict[str, Any] = {"finish_reason": "stop", "token_ids": [1, 2]} | keys
    failed = fields["finish_reason"] == "failed"
    messages: Any = [] if failed else [{"role": "assistant", "content": text}]
    return Completion(name, prompt, 0, messages, "M1", "w", {}, **fields)


def judgement(shown: list[str], prompt: str = P, **keys: Any) -> Judgement:
    fields: dict[str, Any] = {"status": "ok", "principle": None, "annotator_kind": "ai"} | keys
    return Judgement(
        judgement_id="j_" + "".join(shown),
        call_id="c",
        prompt_id=prompt,
        subject_kind="completion",
        shown=shown,
        subject=shown[0],
        judge="self",
        annotator_id="M0",
        **fields,
    )


def test_per_prompt_averages_and_leaves_out_what_is_missing() -> None:
    rows = [("b", 1.0), ("a", 2.0), ("a", 4.0), ("b", None), ("c", None), ("a", math.nan)]
    assert per_prompt(rows) == {"a": 3.0, "b": 1.0}


def test_text_values() -> None:
    made = [
        completion("k1", "A red cherry is a red cherry."),
        completion("k2", "I'm sorry, but I cannot help with that.", token_ids=[1, 2, 3, 4]),
        completion("k3", "", Q, finish_reason="length", token_ids=[]),
        completion("k4", "", Q, finish_reason="failed", token_ids=None),
    ]
    check = CheckSpec(id="long", rule="word_limits", params={"min": 7, "max": 20})
    found = text_values(made, PROMPTS, [check])
    assert found["length/words"] == {P: 7.5, Q: 0.0}
    assert found["length/tokens"] == {P: 3.0, Q: 0.0}
    assert found["truncated_rate"] == {P: (0, 2), Q: (1, 1)}
    assert found["empty_rate"] == {P: (0, 2), Q: (1, 1)}
    assert found["refusal_rate"] == {P: (1, 2), Q: (0, 1)}
    assert to_shares(found["refusal_rate"]) == {P: 0.5, Q: 0.0}
    # Six pairs of words, of which "a red" and "red cherry" come twice; then seven different ones.
    assert found["distinct_2"][P] == pytest.approx((4 / 6 + 1) / 2)
    assert found["check/long"] == {P: 1.0, Q: 0.0}


def test_failed_completions_have_no_text_values() -> None:
    found = text_values([completion("k", "", finish_reason="failed")], PROMPTS, [])
    assert all(values == {} for values in found.values())


def test_likelihood_values() -> None:
    made = [
        completion("k1", "x", logprobs=[-1.0, -2.0]),
        completion("k2", "x", logprobs=[-0.5, -0.5]),
        completion("k3", "x", Q, logprobs=None),
        completion("k4", "x", Q, logprobs=[-1.0]),
    ]
    rows = [
        {"completion_id": "k1", "logprob": -5.0, "tokens": 2},
        {"completion_id": "k2", "logprob": -1.5, "tokens": 2},
        {"completion_id": "k3", "logprob": -1.0, "tokens": 2},
        {"completion_id": "k4", "logprob": None, "tokens": 0},
    ]
    found = likelihood_values(made, rows)
    # log pi - log pi_0: (-3 + 5) and (-1 + 1.5).
    assert found["kl/initial"] == {P: pytest.approx(1.25)}
    assert found["kl_per_token/initial"] == {P: pytest.approx(0.625)}
    assert found["loglik/initial"] == {P: pytest.approx((-2.5 - 0.75) / 2)}
    assert found["entropy"] == {P: pytest.approx((1.5 + 0.5) / 2)}


def test_judge_values() -> None:
    rows = [
        judgement(["k1"], score=1.0, principle="kind", label_mass=0.8),
        judgement(["k1"], score=0.25, principle="brief", label_mass=0.6),
        judgement(["k2"], score=0.5, principle="kind"),
        judgement(["k2"], status="unparsed", principle="brief"),
        judgement(["k3"], Q, status="not_applicable", principle="kind"),
        judgement(["gone"], Q, score=1.0, principle="kind"),
    ]
    found = judge_values("self", rows, {"kind": 3.0, "brief": 1.0}, {"k1", "k2", "k3"})
    # k1: (3 * 1 + 0.25) / 4; k2 has one principle alone.
    assert found["score/self"] == {P: pytest.approx((0.8125 + 0.5) / 2)}
    assert found["score/self/kind"] == {P: 0.75}
    assert found["score/self/brief"] == {P: 0.25}
    assert found["label_mass/self"] == {P: pytest.approx(0.7)}
    assert found["unparsed_rate/self"] == {P: (1, 4)}


def test_a_verdict_that_failed_counts_with_those_that_could_not_be_read() -> None:
    statuses = ["ok", "unparsed", "failed", "failed", "not_applicable"]
    rows = [
        judgement([f"k{n}"], status=status, score=1.0 if status == "ok" else None)
        for n, status in enumerate(statuses)
    ]
    found = judge_values("self", rows, {}, {f"k{n}" for n in range(5)})
    assert found["unparsed_rate/self"] == {P: (3, 4)}


def test_programs_have_no_unparsed_rate() -> None:
    found = judge_values(
        "checks", [judgement(["k1"], score=1.0, annotator_kind="rule")], {}, {"k1"}
    )
    assert set(found) == {"score/checks", "not_applicable_rate/checks"}


def test_the_share_of_judgements_that_do_not_apply() -> None:
    rows = [
        judgement(["k1"], score=1.0),
        judgement(["k1"], status="not_applicable"),
        judgement(["k2"], Q, status="unparsed"),
    ]
    found = judge_values("self", rows, {}, {"k1", "k2"})
    assert found["not_applicable_rate/self"] == {P: (1, 2), Q: (0, 1)}


def test_pairwise_values_in_both_orders() -> None:
    rows = [
        # new k1 against old o1: 0.8 first, and 1 - 0.6 when shown second; the first slot wins both.
        judgement(["k1", "o1"], prob_first=0.8),
        judgement(["o1", "k1"], prob_first=0.6),
        # new k2 against old o2: wins in both orders, from different slots.
        judgement(["k2", "o2"], Q, prob_first=0.9),
        judgement(["o2", "k2"], Q, prob_first=0.3),
        # Two of the same side are no comparison.
        judgement(["k1", "k2"], prob_first=1.0),
    ]
    found = pairwise_values("self", rows, {"k1", "k2"})
    assert found["win_rate_vs_initial/self"] == {
        P: pytest.approx((0.8 + 0.4) / 2),
        Q: pytest.approx((0.9 + 0.7) / 2),
    }
    assert found["position_bias/self"] == {P: (1, 1), Q: (0, 1)}


def test_a_comparison_answered_in_one_order_is_missing() -> None:
    rows = [judgement(["k1", "o1"], prob_first=0.8), judgement(["o1", "k1"], status="unparsed")]
    found = pairwise_values("self", rows, {"k1"})
    assert found["win_rate_vs_initial/self"] == {}
    assert "position_bias/self" not in found
    assert found["unparsed_rate/self"] == {P: (1, 2)}


def test_spread_and_rank_correlation() -> None:
    assert sample_values("self", {"a": [0.0, 1.0], "b": [0.5]}) == {
        "samples/spread/self": {"a": 0.5}
    }
    assert rank_correlation([1, 2, 3], [1, 2, 3]) == 1.0
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == -1.0
    assert rank_correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == 1.0
    assert rank_correlation([1, 1], [1, 2]) is None


def test_intervals_and_paired_differences() -> None:
    old = {"score/self": {str(i): 0.1 * i for i in range(8)}, "gone": {"0": 1.0}}
    new = {"score/self": {str(i): 0.1 * i + 0.2 for i in range(8)}, "empty": {}}
    made = compute_intervals(new)
    assert set(made) == {"score/self"}
    assert made["score/self"]["mean"] == pytest.approx(0.55)
    assert made["score/self"]["n"] == 8
    assert made["score/self"]["low"] < 0.55 < made["score/self"]["high"]
    changes = compute_differences(new, old)
    assert set(changes) == {"score/self", "win_rate/self"}
    # The same difference on every prompt, but for rounding, has no interval and is no claim.
    assert changes["score/self"]["mean"] == pytest.approx(0.2)
    assert changes["score/self"]["low"] is None and "p" not in changes["score/self"]
    assert "no prompt differed from the others" in changes["score/self"]["note"]
    assert changes["win_rate/self"]["mean"] == 1.0
    assert 0.5 < changes["win_rate/self"]["low"] < 1.0


def test_each_metric_has_the_interval_of_its_kind() -> None:
    counted = {str(i): (0, 2) for i in range(32)}
    lengths = {str(i): float(i % 7 + 1) for i in range(32)}
    made = compute_intervals({"empty_rate": counted, "length/words": lengths})
    assert (made["empty_rate"]["count"], made["empty_rate"]["n"]) == (0, 64)
    assert made["empty_rate"]["high"] > 0
    assert made["length/words"]["median"] == 4.0
    longer = {p: 2 * x for p, x in lengths.items()}
    changes = compute_differences({"length/words": longer}, {"length/words": lengths})
    assert changes["length_factor/words"]["mean"] == pytest.approx(2.0)
    # One answer to a prompt: Bonett and Price; several: t.
    once = {str(i): (int(i < 3), 1) for i in range(20)}
    never = {str(i): (0, 1) for i in range(20)}
    assert (
        compute_differences({"list_rate": once}, {"list_rate": never})["list_rate"].get("df")
        is None
    )
    more = {p: (2 * a, 4) for p, (a, _) in once.items()}
    assert compute_differences({"list_rate": more}, {"list_rate": never})["list_rate"]["df"] == 19


def test_what_a_reward_model_says_of_itself_is_a_metric_and_a_label_of_that_name_is_none() -> None:
    parts = {"reward": 1.0, "distance": 2.0, "spread": 0.5}
    said = [
        judgement(["a"], score=0.7, distribution=parts),
        judgement(["b"], score=0.7, distribution={**parts, "distance": 4.0}),
        judgement(["c"], Q, score=0.7, distribution={"reward": 1.0, "distance": 9.0}),
        judgement(["d"], Q, status="failed"),
    ]
    wanted = {"distance/self": {P: 3.0, Q: 9.0}, "disagreement/self": {P: 0.5}}
    assert unfamiliar_values(said) == wanted
    found = judge_values("self", said, {}, {"a", "b", "c", "d"})
    assert {name: found[name] for name in wanted} == wanted
    labels = {"distance": 0.9, "spread": 0.1}
    assert unfamiliar_values([judgement(["a"], score=0.7, distribution=labels)]) == {}
