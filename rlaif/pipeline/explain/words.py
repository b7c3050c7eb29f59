"""What one planned step does, in words, and its other keys as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from rlaif.config.on_policy import RolloutTrain
from rlaif.config.steps import PEOPLES_LABELS
from rlaif.pipeline.plan.base import Planned

# Edges and models say these, or they change nothing in what is made.
_NOT_SAID = {"id", "uses", "from", "reference", "teacher", "by", "kind", "method", "trackers"}
_NOT_SAID |= {"checkpoint_every", "micro_batch_tokens", "against", "pool", "model"}

_STRATEGIES = {
    "best_vs_worst": "each prompt's best answer against its worst",
    "best_vs_random": "each prompt's best answer against another",
    "margin": "every two answers that are far enough apart",
    "all": "every two answers of a prompt with different scores",
    "length_tiered": "the shortest of the best against the longest of the worst",
    "reference": "each prompt's reference answer against every answer",
}

_MATCHES = {
    "parent": "each against what it revises or is revised by",
    "index": "those of the same number",
    "all": "every two to a prompt",
}


def describe_step(planned: Planned) -> list[str]:
    """What a planned step does, without its models: phrases with the numbers that hold for it."""
    say = _WORDS.get(planned.kind)
    return say(planned) if say is not None else []


def list_settings(planned: Planned) -> list[str]:
    """The keys of a planned step that have another value than their default and that neither
    `describe_step` nor its inputs and models say, as "key value"."""
    said = _NOT_SAID | _SAID.get(planned.kind, set())
    keys = planned.step.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    shown = {key: "" if value in ({}, True) else show_value(value) for key, value in keys.items()}
    return [f"{key} {value}".rstrip() for key, value in shown.items() if key not in said]


def show_value(value: Any) -> str:
    """A value as YAML writes it, on one line; texts without marks."""
    if isinstance(value, str):
        return " ".join(value.split())
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def count_words(count: int, one: str, many: str = "") -> str:
    """A count with its noun: "1 prompt", "1,200 prompts"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _prompts(planned: Planned) -> str:
    return count_words(len(planned.prompts), "prompt")


def _describe_sample(planned: Planned) -> list[str]:
    step = planned.step
    drawn = step.prompts if isinstance(step.prompts, str) else getattr(step.prompts, "set", None)
    of = f" of {drawn}" if drawn else ""
    words = [f"{count_words(step.n, 'answer')} to each of {_prompts(planned)}{of}"]
    if step.principles is not None:
        words.append(f"each under one of {len(step.principles.texts)} principles")
    return words


def _describe_revise(planned: Planned) -> list[str]:
    step, count = planned.step, len(planned.options["principles"])
    times = "once" if step.times == 1 else f"{step.times:,} times"
    of = "one" if step.draw == "one" else "all"
    kept = ", every revision kept" if step.keep == "all" and step.times > 1 else ""
    said = f"by {of} of {count_words(count, 'principle')}" if count > 1 else "by 1 principle"
    return [f"criticised and written again {times}{kept}", said]


def _describe_load(planned: Planned) -> list[str]:
    step = planned.step
    source = step.dataset or step.path or "the experiment's data"
    of = f" of {_prompts(planned)}" if step.type == "pairs" else ""
    return [f"{'labelled pairs' if step.type == 'pairs' else step.type}{of} from {source}"]


def _describe_questions(planned: Planned) -> list[str]:
    step = planned.step
    orders = {"both": "in both orders", "random": "in one order", "fixed": "in one order"}
    count = count_words(len(planned.prompts), "question")
    if "slots" not in planned.options:
        return [f"{count} of judge {step.judge} about labelled pairs, {orders[step.orders]}"]
    shown = f", {orders[step.orders]}" if planned.judges[step.judge].comparative else ""
    return [f"at most {count} of judge {step.judge} about answers of the run{shown}"]


def _describe_bench(planned: Planned) -> list[str]:
    step = planned.step
    prompts = count_words(len(planned.prompts), "held-out prompt")
    by = f" by {', '.join(step.by)}" if step.by else ""
    return [f"{', '.join(step.judges)}{by} on labelled pairs of {prompts}"]


def _describe_arena(planned: Planned) -> list[str]:
    step = planned.step
    prompts = count_words(len(planned.prompts), "prompt")
    drawn = "" if step.battles is None else f", at most {count_words(step.battles, 'battle')}"
    return [f"{count_words(len(step.models), 'model')} on {prompts}, judged by {step.judge}{drawn}"]


def _describe_filter(planned: Planned) -> list[str]:
    filters = [_name_filter(one) for one in planned.step.filters]
    return [f"{planned.step.records} that pass: {', '.join(filters)}"]


def _name_filter(wanted: Any) -> str:
    """A filter, and what it goes by."""
    if wanted.kind == "best":
        of = "each prompt" if wanted.per == "prompt" else "all together"
        return f"best {wanted.k} by {wanted.by} of {of}"
    if wanted.kind == "score":
        return f"{wanted.least:g} or more by {wanted.by}"
    if wanted.kind == "agrees":
        return f"agrees with {wanted.with_}{'' if wanted.strict else ' or calls equal'}"
    if wanted.kind == "balance":
        return f"balanced by {wanted.by}"
    return str(wanted.kind).replace("_", " ")


def _describe_judge(planned: Planned) -> list[str]:
    step = planned.step
    principles = getattr(step, "principles", None)
    about = f" on {', '.join(principles)}" if principles else ""
    return [f"{step.kind}{about}"]


def _describe_pair(planned: Planned) -> list[str]:
    step = planned.step
    if step.form == "judgements":
        by = "people's labels" if step.better == PEOPLES_LABELS else step.better
        which = "the most disputed answer of each prompt" if step.pick != "all" else "every answer"
        how = (
            "what agrees against what does not"
            if step.better == PEOPLES_LABELS
            else ("the best against the worst")
        )
        return [f"{how} of {step.of}'s judgements of {which}, by {by}"]
    if step.form == "origin":
        matched = _MATCHES[planned.options["match"]]
        only = ", where it scores more" if step.asks_scores else ""
        return [f"answers of {step.chosen} against those of {step.rejected}, {matched}{only}"]
    return [_STRATEGIES.get(step.strategy, step.strategy)]


def _describe_label(planned: Planned) -> list[str]:
    labels, flip = planned.options["labels"], planned.options["flip"]
    shares: list[Any] = [[labels, 1.0]] if isinstance(labels, str) else labels
    alone = len(shares) == 1
    who = ", ".join(
        _name_labeller(name) + ("" if alone else f" ({share:.0%})") for name, share in shares
    )
    turned = f", {flip:.0%} turned round" if flip else ""
    used = planned.options.get("labels_used")
    some = f", {count_words(used, 'pair')} of them used" if used else ""
    return [f"{_prompts(planned)}: labels of {who}{turned}{some}"]


def _name_labeller(name: str) -> str:
    return {"human": "people", "ai": "the judges", "random": "a coin"}.get(name, f"judge {name}")


def _describe_distill(planned: Planned) -> list[str]:
    return [f"a reward model ({planned.step.method})"]


def _describe_train(planned: Planned) -> list[str]:
    step = planned.step
    if not isinstance(step, RolloutTrain):
        return [step.method]
    prompts = count_words(step.batch_size * step.sync_every, "prompt")
    terms = [f"{t.weight:g} x {t.judge}" if len(step.terms) > 1 else t.judge for t in step.terms]
    rewarded = f", rewarded by {', '.join(terms)}" if terms else ""
    held = [f"{cost.judge} at most {cost.limit:g}" for cost in step.constraints]
    costs = f", with the mean cost by {' and by '.join(held)}" if held else ""
    words = [f"{step.method}{rewarded}{costs}"]
    given = step.rollouts - step.sampled_rollouts
    if given:
        words.append(f"{count_words(given, 'rollout')} of given answers")
    sampled, answers = count_words(step.sampled_rollouts, "rollout"), count_words(step.n, "answer")
    words.append(f"{sampled} of {prompts}, {answers} to each")
    if step.lag:
        words.append(f"sampled {count_words(step.lag, 'rollout')} before they are learned from")
    if step.redraws:
        times = count_words(step.redraws, "time")
        words.append(
            f"prompts whose answers all have the same reward are replaced, {times} at most"
        )
    if step.quantile_tokens:
        words.append(
            f"all answers so far are learned from in {step.quantile_tokens} quantiles, and sampled "
            "after the best one's token"
        )
    if step.critic_steps:
        words.append(f"the critic alone learns in {count_words(step.critic_steps, 'step')}")
    return words


def _describe_evaluate(planned: Planned) -> list[str]:
    prompts = count_words(len(planned.prompts), "held-out prompt")
    answers = f"{prompts}, {count_words(planned.step.n, 'answer')} to each"
    variables = planned.step.chat_template_kwargs.items()
    given = ", ".join(f"{name} {value}" for name, value in sorted(variables))
    return [f"{answers}, with {given} in the chat template" if given else answers]


def _describe_choice(planned: Planned) -> list[str]:
    step, rounds = planned.step, len(planned.inputs)
    return [
        f"the best of {count_words(rounds, 'round')} by {step.by}'s mean on validation prompts",
        f"no further round once it has not risen for {count_words(step.stops_rising, 'round')}",
    ]


_METHODS = {
    "uniform": "the mean of {}, by their weights",
    "slerp": "halfway between {} on the sphere, by their weights",
    "greedy": "the greedy soup of {} by {}'s mean on validation prompts",
    "best": "the best of {} by {}'s mean on validation prompts",
}


def _describe_average(planned: Planned) -> list[str]:
    step = planned.step
    return [_METHODS[step.method].format(count_words(len(step.models), "model"), step.by)]


_WORDS: dict[str, Callable[[Planned], list[str]]] = {
    "sample": _describe_sample,
    "revise": _describe_revise,
    "load": _describe_load,
    "questions": _describe_questions,
    "bench": _describe_bench,
    "arena": _describe_arena,
    "filter": _describe_filter,
    "judge": _describe_judge,
    "pair": _describe_pair,
    "label": _describe_label,
    "distill": _describe_distill,
    "train": _describe_train,
    "evaluate": _describe_evaluate,
    "choose": _describe_choice,
    "average": _describe_average,
}
_SAID: dict[str, set[str]] = {
    "sample": {"n", "prompts"},
    "revise": {"times", "draw", "keep", "principles"},
    "load": {"type", "dataset", "path"},
    "questions": {"judge", "orders"},
    "bench": {"judges", "pairs"},
    "arena": {"models", "judge", "battles"},
    "filter": {"records"},
    "judge": {"principles"},
    "pair": {"strategy", "of", "better", "pick", "chosen", "rejected", "match", "candidates"},
    "choose": {"stops_rising"},
    "average": {"models"},
    "label": {"labels", "flip", "labels_used"},
    "train": {"rollouts", "n"},
    "evaluate": {"n", "judges"},
}
"""By kind, the keys that its words say."""
