"""Each figure's rule for its interval, its heading and what it means: one table, by the figure's
name or what it begins with.

`share` (K1): the mean of values on [0, 1]. `rare` (K2): a share of what is counted 0 or 1 and is
rare or nearly universal. `mean` (K3): t. `skewed` (K5): Hall's transformed t. `jackknife` (K6):
prompts left out one at a time, on the figure's own scale, on Fisher's z (`fisher`) or on log scale
(`log`). `none`: a figure that has no honest interval.

A paired difference is by t (K3), and of values that are all 0 or 1 by Bonett and Price (K4), where
the table says `rate`: one answer to a prompt makes such values, several make means.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

Rule = Literal["share", "rare", "mean", "skewed", "jackknife", "fisher", "log", "none"]


@dataclass(frozen=True, slots=True)
class FigureRule:
    """The rules of one figure: `of` for its value, `change` for paired differences of it. `null` is
    the value under the null hypothesis that p tests, if there is one. `few`: with fewer prompts a
    jackknife interval may be too narrow, and says so."""

    of: Rule
    heading: str = ""
    about: str = ""
    change: Literal["mean", "rate"] = "mean"
    null: float | None = None
    few: int = 10


_rare = partial(FigureRule, "rare", change="rate")
_par = partial(FigureRule, "share", null=0.5)
_coefficient = partial(FigureRule, "jackknife", null=0.0)
_SHARE, _SKEWED = FigureRule("share"), FigureRule("skewed")
_DIFFERENCE = FigureRule("mean", null=0.0)

RULES: dict[str, FigureRule] = {
    # Held-out answers, values by prompt (`metrics`).
    "score/": _SHARE,
    "win_rate/": _par(),
    "win_rate_vs_initial/": _par(),
    "reward_accuracy/": _par(),
    "check/": _SHARE,
    "length/": _SKEWED,
    "distinct_2": _SHARE,
    "repetition_4": _SHARE,
    "refusal_rate": _rare(),
    "stock_phrase_rate": _rare(),
    "list_rate": _rare(),
    "empty_rate": _rare(),
    "truncated_rate": _rare(),
    "kl/": _SKEWED,
    "kl_per_token/": _SKEWED,
    "loglik/": FigureRule("mean"),
    "entropy": FigureRule("mean"),
    "drift/": _DIFFERENCE,
    "label_mass/": _SHARE,
    "distance/": _SKEWED,
    "disagreement/": _SKEWED,
    "unparsed_rate/": _rare(),
    "not_applicable_rate/": _rare(),
    "position_bias/": _rare(),
    "judge_corr/": _DIFFERENCE,
    "pairs/margin": FigureRule("mean"),
    "pairs/length_gap": _DIFFERENCE,
    "pairs/unpaired_prompts": _rare(),
    "samples/zero_variance": _rare(),
    "samples/spread/": _SHARE,
    "samples/score/": _SHARE,
    "samples/distance/": _SKEWED,
    "samples/disagreement/": _SKEWED,
    # A judge on labelled pairs (`judge_figures`).
    "agreement": _par("ties excluded", "share of pairs that both decided"),
    "agreement_half": _par("ties half", "a tie on either side counts one half"),
    "agreement_three_way": FigureRule("share", "three-way", "first, second or tie"),
    "tie_rate": _rare("ties", "verdicts that are ties"),
    "kappa": _coefficient("kappa", "Cohen's, ties excluded"),
    "kappa_three_way": _coefficient(),
    "alpha": _coefficient("alpha", "Krippendorff's, three verdicts"),
    "spearman": FigureRule("fisher", "Spearman", "of P(first) with the label", null=0.0),
    "kendall": FigureRule("fisher", "Kendall", "tau-b of P(first) with the label", null=0.0),
    "same_slot": _rare("same slot", "the same slot wins in both orders; 0 is best"),
    "same_slot_first": _rare("of which first", "slot 1 wins twice"),
    "same_slot_second": _rare("second", "slot 2 wins twice"),
    "order_consistency": _rare("consistent", "the same answer wins twice"),
    "slot_one_rate": _par("slot 1 rate", "verdicts for what was shown first"),
    "prefers_longer": _par("P(longer)", "verdicts for the longer answer"),
    "people_prefer_longer": _par("people's P(longer)", "labels for the longer answer"),
    "length_coefficient": _coefficient("length coefficient", "log-odds; 0 without bias"),
    "self_preference": _coefficient("self-preference", "own answers against others'; 0 is fair"),
    "ece": FigureRule("none", "ECE", "ten bins of equal width; no interval would hold"),
    "calibration_error": FigureRule("none", "calibration error", "root mean square over bins"),
    "ece_if_calibrated": FigureRule("none", "ECE if calibrated", "mean and 95% range, by chance"),
    "ece_equal_mass": FigureRule("none", "equal mass", "ECE, ten bins of equal mass"),
    "ece_scaled": FigureRule("none", "ECE, scaled", "held out"),
    "brier": FigureRule("share", "Brier", "mean squared error of the probability"),
    "brier_scaled": FigureRule("jackknife", "Brier, scaled", "held out"),
    "calibration_intercept": _coefficient("intercept", "log-odds; 0 is calibrated"),
    "calibration_slope": FigureRule(
        "jackknife", "slope", "1 is calibrated, below 1 too sure", null=1.0
    ),
    "temperature": FigureRule("log", "temperature", "1 is calibrated, above 1 too sure", null=1.0),
    "coverage": _rare("coverage", "pairs with a verdict"),
    "abstain_rate": _rare("abstained", "of its judgements"),
    "unread_rate": _rare("unread", "unparsed or failed, of its judgements"),
    "label_mass": FigureRule("share", "label mass", "probability on the labels"),
    "self_consistency": FigureRule("share", "self-consistency", "same verdict when asked again"),
    "calls_per_pair": FigureRule("skewed", "calls", "questions to a model, per pair"),
    "seconds_per_pair": FigureRule("skewed", "latency", "seconds of all calls together, per pair"),
    "prompt_tokens_per_pair": FigureRule("skewed", "tokens read", "per pair"),
    "new_tokens_per_pair": FigureRule("skewed", "tokens written", "per pair"),
    "money_per_pair": FigureRule("skewed", "money", "per pair"),
    "rewardbench": FigureRule("jackknife", "score", "mean of the four"),
    "rewardbench/": FigureRule("jackknife"),
    "reliability/": _SHARE,
    "difference": _coefficient(),
    "error_correlation": FigureRule("fisher", null=0.0),
    # Attacks on a judge (`attacked`).
    "attack/": _rare(),
    # A reward model on labelled pairs (`reward_figures`).
    "accuracy": _par(about="pairs in the right order; a tie is one half"),
    "accuracy_where_longer_wins": _par(about="where the better answer is the longer one"),
    "accuracy_where_shorter_wins": _par(about="where the better answer is the shorter one"),
    "log_loss": FigureRule("skewed", about="nats per pair; always 0.5 gives 0.693"),
    "length_spearman": FigureRule(
        "fisher", about="rank correlation of the gaps in reward and in length", null=0.0
    ),
    "reward_mean": FigureRule(
        "mean", about="of all answers, as reward_ensemble's standardise takes it"
    ),
    "reward_spread": FigureRule("log", about="standard deviation of all answers' rewards", few=64),
    "best_of_n/proxy": FigureRule("mean"),
    "best_of_n/gold": FigureRule("mean"),
    # Principles and their weights (`votes`, `ablate`, `whatif`, `infer`).
    "vote_accuracy": _par(),
    "flip_rate": _rare(),
    "other_pairs": _rare(),
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
