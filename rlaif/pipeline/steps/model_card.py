"""The model card: where the weights come from, what they were trained on, how far to trust them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rlaif.config.arms import RANDOM
from rlaif.config.distill import DistillStep, FitStep
from rlaif.config.on_policy import OnPolicyTrain
from rlaif.core.records import Preference
from rlaif.judges.base import Judge, roles_of
from rlaif.pipeline.steps.adapter_card import base_of, weights
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.scoring_card import scoring
from rlaif.preferences.labels import TURNED

BY_JUDGES = "rlaif"
"""The source of pairs that a run's judges chose."""
_SAID = {
    RANDOM: "a coin",
    "reference": "the prompts' own answers against samples",
    "file": "of a file that does not say by whom",
}


def model_card(context: StepContext, preferences: Sequence[Preference]) -> str:
    """The card as Markdown after YAML front matter."""
    planned, step = context.planned, context.planned.step
    experiment = context.inputs.experiment
    constitution = context.inputs.constitution
    start, reference = planned.models["start"], planned.models.get("reference")
    task = "text-classification" if planned.kind == "distill" else "text-generation"
    base = base_of(step, context.store.model_path(planned.hash))
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "tags: [rlaif, " + step.method + "]",
        "---",
        f"# {experiment.name}: {planned.models['made'].label} (seed {planned.seed})",
        "",
        f"Trained by `rlaif` in round {planned.round} with {step.method.upper()} on "
        f"{_data(context, preferences)}.",
        "",
        "| | |",
        "|---|---|",
        f"| base model | {start.spec.path} |",
        f"| started from | {start.label} (`{start.key}`) |",
        f"| reference | {reference.label if reference else 'none'} |",
        f"| constitution | {constitution.name if constitution else 'none'} |",
        f"| train step | `{planned.hash}` |",
        "",
        "Options:",
        "",
        "```json",
        step.model_dump_json(indent=1, by_alias=True),
        "```",
        "",
        *(scoring(step, start.spec, base) if isinstance(step, DistillStep | FitStep) else []),
        *weights(step, base),
        "A research artefact: it was optimised for the labels of one experiment, and was"
        " measured on that experiment's held-out prompts alone (see the run's report).",
        "",
    ]
    return "\n".join(lines)


def _data(context: StepContext, preferences: Sequence[Preference]) -> str:
    step = context.planned.step
    judges = _judge_kinds(context)
    given = trained_on(preferences, judges, step.method == "sft") if preferences else ""
    if not isinstance(step, OnPolicyTrain):
        return given
    by = ", ".join(f"{name} ({judges.get(name, 'ai')})" for name in step.reward_judges)
    return f"answers of its own, rewarded by {by}" + (f", and on {given}" if given else "")


def trained_on(
    preferences: Iterable[Preference], judges: Mapping[str, str], chosen_only: bool = False
) -> str:
    """What was trained on, by source: "13 preferences: 5 human, 8 ai", "4 demonstrations: 4 human".

    `judges` says what each judge's labels are (ai, rule, model), and under `BY_JUDGES` what those
    of all are that chose pairs. `chosen_only`: the rejected answers were not looked at.
    """
    paired: Counter[str] = Counter()
    good: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    turned = 0
    for preference in preferences:
        source = preference.source.removesuffix(TURNED)
        turned += source != preference.source
        single = bad if preference.rejected else good
        kept = paired if preference.paired else single
        kept[_SAID.get(source) or judges.get(source, source)] += 1
    # A good answer beside bad ones is one label of two; without any it is to be imitated.
    alone = ("answer", " labelled good") if bad else ("demonstration", "")
    groups = (
        ("the chosen answers of " if chosen_only else "", "preference", "", paired),
        ("", *alone, good),
        ("", "answer", " labelled bad", bad),
    )
    parts = [
        f"{before}{_number(counts.total(), what)}{after}: {_listed(counts)}"
        for before, what, after, counts in groups
        if counts
    ]
    return "; ".join(parts) + (f" ({_number(turned, 'label')} turned round)" if turned else "")


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _kind(judge: Judge) -> str:
    needs = frozenset[str]().union(*roles_of(judge).values())
    if not needs:
        return "rule"
    return "model" if needs <= {"reward", "token_logprobs"} else "ai"


def _judge_kinds(context: StepContext) -> dict[str, str]:
    """The kind of each judge's labels by its id, and of those together that chose pairs."""
    kinds = {name: _kind(judge) for name, judge in context.inputs.judges.items()}
    used = {
        row["annotator_kind"]
        for digest in context.planned.options.get("judgements", ())
        for row in context.store.step(digest).rows("judgements")
    }
    return kinds | {BY_JUDGES: " and ".join(sorted(used)) or "ai"}
