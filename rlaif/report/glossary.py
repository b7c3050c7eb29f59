"""The glossary of the report pages. `docs/glossary.md` has the same text."""

from __future__ import annotations

GLOSSARY: dict[str, str] = {
    "M0": "The initial model, before any training. M1 is the policy after round 1, and so on.",
    "policy": "The model being trained.",
    "held out": "Prompts reserved for evaluation and never trained on. All models answer the same "
    "ones.",
    "arm": "One of several policies of an experiment, by what differs between them: who labels the "
    "same pairs, or any other keys. All are measured alike.",
    "judge": "Whatever decides which answer is better, or how good one is: a language model, a "
    "program, a reward model or a person.",
    "checks": "Rules that a program evaluates. Nothing is trained on the checks listed under "
    "evaluate.checks.",
    "margin": "By how much the chosen answer of a pair scores above the rejected one, on the score "
    "scale (0 to 1). When two models are tested for equality: the largest difference that still "
    "counts as negligible.",
    "label mass": "The probability that a judge puts on the allowed labels, such as Yes and No. If "
    "it is low, the judge mostly does not answer the question, and its scores are based on a small "
    "part of its distribution.",
    "par": "The value at which neither side is better: 0.5 for a win rate, 0 for a difference.",
    "win rate": "The share of prompts on which one side's answer is better; a tie counts as one "
    "half.",
    "drift": "For a judge that is the policy itself: its score on a fixed set of texts minus the "
    "score that the frozen M0 gives them. The texts do not change, so any difference is a change "
    "in the judge.",
    "nats": "The unit of divergences and log-probabilities with the natural logarithm: 1 nat is a "
    "factor of 2.72 in probability.",
    "KL": "How far the policy has moved from M0, in nats: the mean log-probability of the policy's "
    "answers under the policy minus that under M0.",
    "interval": "The numbers in brackets: the range of values that are consistent with the data, "
    "given how much prompts differ. A 95% interval contains the true value in 95 of 100 "
    "experiments.",
    "cannot move": "A metric that was already at the end of its scale, so that no improvement "
    "could have been observed.",
    "label": "In judge-bench: the preference recorded in the file for a pair. In an experiment: "
    "which answer of a pair is the chosen one.",
    "truncated": "Cut off because the limit of new tokens was reached.",
}
