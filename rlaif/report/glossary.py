"""The words of the pages, explained. `docs/glossary.md` has the same."""

from __future__ import annotations

GLOSSARY: dict[str, str] = {
    "M0": "The initial model, before any training. M1 is the policy after round 1, and so on.",
    "policy": "The model that is trained.",
    "held out": "Prompts that nothing was trained on. All models answer the same ones.",
    "arm": "One of several ways to label the same pairs (people, an AI judge, chance, flipped "
    "labels). Arms differ in their labels and in nothing else.",
    "judge": "Whoever says which answer is better or how good one is: a model that is asked, a "
    "program, a reward model or a person.",
    "checks": "Principles that a program decides. Those that an experiment lists under "
    "evaluate.checks are trained on by nobody.",
    "margin": "By how much the chosen answer of a pair scores above the rejected one, on the scale "
    "of scores (0 to 1). In a question whether two models are the same: the largest difference "
    "that does not matter.",
    "label mass": "The probability that a judge puts on the allowed labels, such as Yes and No. "
    "Where it is low the judge hardly answers the question, and its scores rest on the little that "
    "is left.",
    "par": "The value that says no better and no worse: 0.5 of a win rate, 0 of a difference.",
    "win rate": "The share of prompts on which one side's answer is better; a tie counts one half.",
    "drift": "What a judge that is the policy itself gives a fixed set of texts, less what the "
    "frozen M0 gives them: the judge has changed, and the texts have not.",
    "nats": "The unit of a divergence or a log-probability with the natural logarithm: 1 nat is a "
    "factor of 2.72 in probability.",
    "KL": "How far the policy's answers are from what M0 would write, in nats: the mean of log "
    "probability under the policy less that under M0.",
    "interval": "The numbers in brackets: what a figure could also be, given how much prompts "
    "differ. A 95% interval holds the true value in 95 of 100 experiments.",
    "cannot move": "A figure that already was at the end of its scale, so that nothing better "
    "could have been seen.",
    "label": "In judge-bench: what the file says of a pair. In an experiment: which answer of a "
    "pair is the chosen one.",
    "truncated": "Cut off because the limit of new tokens was reached.",
}
