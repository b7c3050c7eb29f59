"""What a plan makes of prompts that are the starts of episodes: who can play them, for how many
turns, and which steps take only answers of one turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlaif.config.models import ENGINES
from rlaif.config.on_policy import OnPolicyTrain, RolloutTrain
from rlaif.judges.common import JudgeBase
from rlaif.pipeline.plan.base import PlanInputs, Planned, Walk

ONE_TURN = frozenset({"pair", "label", "revise", "questions", "train", "distill"})
"""Kinds of steps that learn from, or rewrite, answers of one turn. A train step that samples plays
episodes itself."""
BY_TOKENS = frozenset({"implicit_reward", "perplexity"})
"""Kinds of judges that go by an answer's tokens."""
PLAYS = "token_ids"
"""The capability of an engine that can play."""


def most_turns(inputs: PlanInputs, ids: Iterable[str]) -> int:
    """How many turns an answer to one of the prompts may have."""
    if not inputs.starts:
        return 1
    found = (inputs.starts[name].environment for name in ids if name in inputs.starts)
    return max((int(keys["max_turns"]) for keys in found if keys is not None), default=1)


def refuse_episodes(walk: Walk, index: int, planned: Sequence[Planned]) -> None:
    """Raise ConfigError where one of the steps that an entry has planned cannot take the episodes
    that it is given."""
    if not walk.inputs.starts:
        return
    steps = {step.hash: step for step in walk.done}
    judges = walk.experiment.all_judges()
    for one in planned:
        above = [steps[digest] for digest in one.inputs.values() if digest in steps]
        ids = {*one.prompts, *(name for step in above for name in step.prompts)}
        if not ids & walk.inputs.starts.keys():
            continue
        fault = _fault_of(one) or _fault_of_judges([judges[name] for name in one.judges])
        if fault is not None:
            key, message = fault
            raise walk.inputs.fail(index, message, key)


def _fault_of(planned: Planned) -> tuple[str | None, str] | None:
    """The key and what is wrong with it where a step cannot take episodes."""
    if planned.kind == "sample":
        model = planned.models["by"]
        kind = ENGINES.get(model.spec.engine)
        if kind is None or PLAYS not in kind.capabilities:
            plays = [name for name, known in ENGINES.items() if PLAYS in known.capabilities]
            return None, (
                f"{planned.id}: episodes go on from token ids, which engine "
                f"{model.spec.engine!r} of {model.label} does not take: use {' or '.join(plays)}"
            )
        return None
    if isinstance(planned.step, RolloutTrain):
        return _fault_of_rollouts(planned.step)
    if planned.kind not in ONE_TURN:
        return None
    return None, (
        f"{planned.kind} {planned.id!r}: it takes answers of one turn, and the prompts are starts "
        "of episodes, from which only methods learn that sample and go by advantages (grpo, rloo, "
        "reinforce, ppo and their relatives)"
    )


def _fault_of_judges(judges: Iterable[JudgeBase]) -> tuple[None, str] | None:
    """What is wrong with judges, or those within them, where they cannot judge episodes."""
    for judge in judges:
        if judge.kind in BY_TOKENS:
            return None, (
                f"judge {judge.id!r} of kind {judge.kind} goes by the probability of all of an "
                "answer's tokens, and of an episode some are the environment's: take another kind"
            )
        fault = _fault_of_judges(judge.judges_within().values())
        if fault is not None:
            return fault
    return None


def _fault_of_rollouts(step: RolloutTrain) -> tuple[str, str] | None:
    by_text = not isinstance(step, OnPolicyTrain) or step.pair_loss or step.quantile_tokens
    if by_text:
        return "method", (
            f"{step.method} learns from whole texts, and of an episode only the policy's own turns "
            "are learned from: take a method that goes by advantages (grpo, rloo, reinforce, ppo "
            "and their relatives)"
        )
    if step.soft_limit:
        return "overlong_buffer", (
            "overlong_buffer goes by max_new_tokens, which is the limit of one turn: leave it out, "
            "or lower max_length, which is that of an episode"
        )
    return None
