"""Experiment files to start from: one template for each method, and what is asked for it.

A template is a text file here (Jinja2); `asking` finds its values, and `render` puts them in as
YAML. To add a method: a template, and its row in `RECIPES`.
"""

from __future__ import annotations

from dataclasses import dataclass

LABELLING = ("judge", "judge_model")
SAMPLING = ("prompts", "rounds", "seeds")


@dataclass(frozen=True)
class Recipe:
    """A method: what it is in one line, its template, and the answers that it takes besides name,
    model and constitution. `by_principles`: a model that judges is asked about the constitution's
    principles. `command` is the one that runs it."""

    summary: str
    template: str
    takes: tuple[str, ...]
    by_principles: bool = True
    command: str = "run"


RECIPES = {
    "dpo": Recipe("sample, judge, pair, DPO, in rounds", "dpo.yaml.j2", (*LABELLING, *SAMPLING)),
    "self-rewarding": Recipe(
        "the policy judges itself; with demonstrations SFT comes first",
        "self_rewarding.yaml.j2",
        ("demonstrations", *SAMPLING),
    ),
    "reward-model": Recipe(
        "a reward model distilled from a judge, then PPO on it",
        "reward_model.yaml.j2",
        (*LABELLING, *SAMPLING),
    ),
    "on-policy": Recipe(
        "GRPO on the judge's own scores", "on_policy.yaml.j2", (*LABELLING, *SAMPLING)
    ),
    "constitutions": Recipe(
        "two arms, constitution A against B, each judged by both",
        "constitutions.yaml.j2",
        ("against", *LABELLING, *SAMPLING),
    ),
    "human-vs-ai": Recipe(
        "labels of people, of a judge and of a coin for the same pairs",
        "human_vs_ai.yaml.j2",
        ("data", *LABELLING, "seeds"),
    ),
    "dataset": Recipe(
        "a preference dataset as UltraFeedback's; nothing is trained",
        "dataset.yaml.j2",
        (*LABELLING, "prompts"),
        by_principles=False,
        command="build",
    ),
}
