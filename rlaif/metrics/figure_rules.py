"""Each figure's rule for its interval, its heading, what it means and how a report shows it: one
table, by the figure's name or what it begins with.

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
    jackknife interval may be too narrow, and says so.

    Of a round's metrics, `group` is the part of the report's table that they stand in, `better` is
    +1, -1 or 0 for neither, and `primary` says whether an experiment may be about them.
    """

    of: Rule
    heading: str = ""
    about: str = ""
    change: Literal["mean", "rate"] = "mean"
    null: float | None = None
    few: int = 10
    group: str = "Other"
    better: int = 0
    primary: bool = False


_heldout = partial(FigureRule, primary=True)
_text = partial(_heldout, group="Text")
_text_rate = partial(_text, "rare", change="rate")
_score = partial(_heldout, "share", group="Judged scores", better=1)
_distance = partial(_heldout, group="Distance from M0")
_health = partial(FigureRule, group="Judge health")
_pairs = partial(FigureRule, group="Pairs and samples", about="the pairs this round trained on")
_samples = partial(FigureRule, group="Pairs and samples", about="the samples this round drew")
_rare = partial(FigureRule, "rare", change="rate")
_par = partial(FigureRule, "share", null=0.5)
_coefficient = partial(FigureRule, "jackknife", null=0.0)

RULES: dict[str, FigureRule] = {
    # Held-out answers, values by prompt (`metrics`).
    "score/": _score(about="mean judge score of held-out answers"),
    "win_rate/": _score(null=0.5, about="share of prompts with the higher score; 0.5 is par"),
    "win_rate_vs_initial/": _score(null=0.5, about="share of prompts won against M0; 0.5 is par"),
    "reward_accuracy/": _heldout(
        "share",
        null=0.5,
        group="Given pairs, held out",
        better=1,
        about="share of pairs whose better answer, by this annotator, gained more likelihood; "
        "0.5 is par",
    ),
    "check/": _heldout(
        "share",
        group="Checks never trained on",
        better=1,
        about="independent check of held-out answers",
    ),
    "length/": _text("skewed", about="length of an answer"),
    "distinct_2": _text("share", about="share of word bigrams that are distinct"),
    "repetition_4": _text("share", better=-1, about="share of word 4-grams that repeat"),
    "refusal_rate": _text_rate(about="share of answers that refuse"),
    "stock_phrase_rate": _text_rate(about="share of answers with a stock phrase"),
    "list_rate": _text_rate(about="share of answers with a list"),
    "empty_rate": _text_rate(better=-1, about="share of empty answers"),
    "truncated_rate": _text_rate(better=-1, about="share of answers cut at the token limit"),
    "kl/": _distance("skewed", about="divergence, nats per answer"),
    "kl_per_token/": _distance("skewed", about="divergence, nats per token"),
    "loglik/": _distance("mean", about="mean token log-probability of the answers under M0"),
    "entropy": _distance("mean", about="entropy of the policy's next token"),
    "judge_corr/": _health(
        "mean",
        null=0.0,
        better=1,
        primary=True,
        about="rank correlation with the checks within a prompt",
    ),
    "drift/": _health(
        "mean", null=0.0, primary=True, about="trained judge minus frozen judge, same texts"
    ),
    "label_mass/": _health(
        "share", better=1, about="probability that the judge puts on the labels"
    ),
    "distance/": _health(
        "skewed", better=-1, about="distance of answers from a reward model's training"
    ),
    "disagreement/": _health(
        "skewed", better=-1, about="how far the members of a reward ensemble disagree"
    ),
    "not_applicable_rate/": _health(
        "rare", change="rate", better=-1, about="share of judgements that did not apply"
    ),
    "unparsed_rate/": _health(
        "rare", change="rate", better=-1, about="share of verdicts that could not be read"
    ),
    "position_bias/": _health(
        "rare",
        change="rate",
        about="share of pairs in which the same slot wins in both orders; 0 is best",
    ),
    "pairs/length_gap": _pairs("mean", null=0.0),
    "pairs/margin": _pairs("mean"),
    "pairs/unpaired_prompts": _pairs("rare", change="rate"),
    "samples/disagreement/": _samples("skewed"),
    "samples/distance/": _samples("skewed"),
    "samples/score/": _samples("share"),
    "samples/spread/": _samples("share"),
    "samples/zero_variance": _samples("rare", change="rate"),
    # A difference alone: its interval is by `factor_interval`.
    "length_factor/": _heldout("none"),
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
    "right_in_both_orders": FigureRule(
        "share", "right in both", "the better answer wins twice; a tie is wrong"
    ),
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
    "reliability/": FigureRule("share"),
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
    # A judge beside people (`disagreement`, `analysis/comparison`).
    "votes/loss/": FigureRule("skewed", about="log-loss of people's votes, nats"),
    "votes/ceiling": FigureRule("jackknife", about="entropy of people's votes, nats"),
    "votes/gap": FigureRule(
        "jackknife", about="log-loss of the judge alone less the ceiling, nats"
    ),
    "votes/part/": FigureRule("mean", null=0.0, about="what a group of features takes off, nats"),
    # People's votes (`people`, `active_choice`).
    "people_agreement": FigureRule("share", "same verdict", "of two people on one item"),
    "fleiss_kappa": _coefficient("Fleiss' kappa", "agreement beyond chance"),
    "judge_agreement": FigureRule("share", "judge with a person", "on the same items"),
    "ceiling_gap": FigureRule("skewed", "judge less people", "paired by item", null=0.0),
    "annotator_accuracy": FigureRule("share", "accuracy", "by the Dawid-Skene model"),
    "left_rate": _par("first slot", "choices of what was shown first"),
    "gold_accuracy": FigureRule("share", "gold questions", "answered right"),
    "hajek": FigureRule("jackknife"),
    # Principles and their weights (`votes`, `ablate`, `whatif`, `infer`).
    "vote_accuracy": _par(),
    "flip_rate": _rare(),
    "other_pairs": _rare(),
    "weight/": FigureRule("jackknife", null=0.0),
}


def without_set(name: str) -> str:
    """A figure's name without the set of prompts that it is of: SET:FIGURE, where not main."""
    return name.rpartition(":")[2]


def find_key(name: str) -> str | None:
    """The key of the figure called `name` in the table: its own name, or the longest beginning that
    ends in a slash. None for a figure that the table lacks."""
    name = without_set(name)
    heads = [name[: end + 1] for end in range(len(name) - 1, -1, -1) if name[end] == "/"]
    return next((key for key in [name, *heads] if key in RULES), None)


def rule_of(name: str) -> FigureRule:
    """The rule of the figure called `name`. Raises KeyError for a figure that the table lacks."""
    key = find_key(name)
    if key is None:
        raise KeyError(f"no rule for the interval of {name!r} in figure_rules.RULES")
    return RULES[key]
