"""Which rule each figure's interval has: one table, by the figure's name or what it begins with.

`share` (K1): the mean of values on [0, 1]. `rare` (K2): a share of what is counted 0 or 1 and is
rare or nearly universal. `mean` (K3): t. `skewed` (K5): Hall's transformed t. `jackknife` (K6):
prompts left out one at a time, on the figure's own scale, on Fisher's z (`fisher`) or on log scale
(`log`). `none`: a figure that has no honest interval.

A paired difference is by t (K3), and of values that are all 0 or 1 by Bonett and Price (K4), where
the table says `rate`: one answer to a prompt makes such values, several make means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["share", "rare", "mean", "skewed", "jackknife", "fisher", "log", "none"]


@dataclass(frozen=True, slots=True)
class FigureRule:
    """The rules of one figure: `of` for its value, `change` for paired differences of it. `null` is
    the value under the null hypothesis that p tests, if there is one. `few`: with fewer prompts a
    jackknife interval may be too narrow, and says so."""

    of: Rule
    change: Literal["mean", "rate"] = "mean"
    null: float | None = None
    few: int = 10


_SHARE, _PAR, _RARE = FigureRule("share"), FigureRule("share", null=0.5), FigureRule("rare", "rate")
_SKEWED = FigureRule("skewed")
_DIFFERENCE = FigureRule("mean", null=0.0)

RULES: dict[str, FigureRule] = {
    # Held-out answers, values by prompt (`metrics`).
    "score/": _SHARE,
    "win_rate/": _PAR,
    "win_rate_vs_initial/": _PAR,
    "reward_accuracy/": _PAR,
    "check/": _SHARE,
    "length/": _SKEWED,
    "distinct_2": _SHARE,
    "repetition_4": _SHARE,
    "refusal_rate": _RARE,
    "stock_phrase_rate": _RARE,
    "list_rate": _RARE,
    "empty_rate": _RARE,
    "truncated_rate": _RARE,
    "kl/": _SKEWED,
    "kl_per_token/": _SKEWED,
    "loglik/": FigureRule("mean"),
    "entropy": FigureRule("mean"),
    "drift/": _DIFFERENCE,
    "label_mass/": _SHARE,
    "distance/": _SKEWED,
    "disagreement/": _SKEWED,
    "unparsed_rate/": _RARE,
    "not_applicable_rate/": _RARE,
    "position_bias/": _RARE,
    "judge_corr/": _DIFFERENCE,
    "pairs/margin": FigureRule("mean"),
    "pairs/length_gap": _DIFFERENCE,
    "pairs/unpaired_prompts": _RARE,
    "samples/zero_variance": _RARE,
    "samples/spread/": _SHARE,
    "samples/score/": _SHARE,
    "samples/distance/": _SKEWED,
    "samples/disagreement/": _SKEWED,
    # A judge on labelled pairs (`judge_figures`).
    "agreement": _PAR,
    "agreement_half": _PAR,
    "agreement_three_way": _SHARE,
    "tie_rate": _RARE,
    "kappa": FigureRule("jackknife", null=0.0),
    "kappa_three_way": FigureRule("jackknife", null=0.0),
    "alpha": FigureRule("jackknife", null=0.0),
    "spearman": FigureRule("fisher", null=0.0),
    "kendall": FigureRule("fisher", null=0.0),
    "same_slot": _RARE,
    "same_slot_first": _RARE,
    "same_slot_second": _RARE,
    "order_consistency": _RARE,
    "slot_one_rate": _PAR,
    "prefers_longer": _PAR,
    "people_prefer_longer": _PAR,
    "length_coefficient": FigureRule("jackknife", null=0.0),
    "self_preference": FigureRule("jackknife", null=0.0),
    "ece": FigureRule("none"),
    "ece_equal_mass": FigureRule("none"),
    "ece_scaled": FigureRule("none"),
    "brier": _SHARE,
    "brier_scaled": FigureRule("jackknife"),
    "calibration_intercept": FigureRule("jackknife", null=0.0),
    "calibration_slope": FigureRule("jackknife", null=1.0),
    "temperature": FigureRule("log", null=1.0),
    "coverage": _RARE,
    "abstain_rate": _RARE,
    "unread_rate": _RARE,
    "label_mass": _SHARE,
    "self_consistency": _SHARE,
    "calls_per_pair": _SKEWED,
    "seconds_per_pair": _SKEWED,
    "prompt_tokens_per_pair": _SKEWED,
    "new_tokens_per_pair": _SKEWED,
    "money_per_pair": _SKEWED,
    "rewardbench": FigureRule("jackknife"),
    "rewardbench/": FigureRule("jackknife"),
    "reliability/": _SHARE,
    "difference": FigureRule("jackknife", null=0.0),
    "error_correlation": FigureRule("fisher", null=0.0),
    # Attacks on a judge (`attacked`).
    "attack/": _RARE,
    # A reward model on labelled pairs (`reward_figures`).
    "accuracy": _PAR,
    "accuracy_where_longer_wins": _PAR,
    "accuracy_where_shorter_wins": _PAR,
    "log_loss": _SKEWED,
    "length_spearman": FigureRule("fisher", null=0.0),
    "reward_mean": FigureRule("mean"),
    "reward_spread": FigureRule("log", few=64),
    "best_of_n/proxy": FigureRule("mean"),
    "best_of_n/gold": FigureRule("mean"),
    # Principles and their weights (`votes`, `ablate`, `whatif`, `infer`).
    "vote_accuracy": _PAR,
    "flip_rate": _RARE,
    "other_pairs": _RARE,
    "weight/": FigureRule("jackknife", null=0.0),
}


def rule_of(name: str) -> FigureRule:
    """The rule of the figure called `name`: its own, or that of the longest beginning that ends in
    a slash. Raises KeyError for a figure that the table lacks."""
    if name in RULES:
        return RULES[name]
    head = name
    while "/" in head:
        head = head.rpartition("/")[0]
        if f"{head}/" in RULES:
            return RULES[f"{head}/"]
    raise KeyError(f"no rule for the interval of {name!r} in figure_rules.RULES")
