"""The model card: where the weights come from, what they were trained on, how far to trust them.

A reward model's card says how to score a conversation; an adapter's says how it is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.config.arms import RANDOM
from rlaif.config.distill import DistillStep, FitStep
from rlaif.config.models import ModelSpec
from rlaif.config.training import TextStep
from rlaif.core.records import Preference
from rlaif.engines.base import Model
from rlaif.engines.build import is_reward_model
from rlaif.engines.model_folders import ADAPTER, adapter_config, adapter_rank
from rlaif.judges.base import Judge, roles_of
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.training_data import JUDGED, SAMPLED
from rlaif.preferences.labels import TURNED
from rlaif.train.methods.heads import LinearDistill

CARD = "README.md"
"""The card's file in a model's folder."""
_ARTEFACT = (
    "A research artefact: it was optimised for the labels of one experiment, and was measured on "
    "that experiment's held-out prompts alone (see the run's report)."
)
BY_JUDGES = "rlaif"
"""The source of pairs that a run's judges chose."""
_SAID = {
    RANDOM: "a coin",
    "reference": "the prompts' own answers against samples",
    "file": "of a file that does not say by whom",
}


def model_card(context: StepContext, preferences: Sequence[Preference], texts: int = 0) -> str:
    """The card as Markdown after YAML front matter. `texts` is how many raw texts there were."""
    planned, step = context.planned, context.planned.step
    experiment = context.inputs.experiment
    constitution = context.inputs.constitution
    start, reference = planned.models["start"], planned.models.get("reference")
    teacher = planned.models.get("teacher")
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
        f"{_describe_data(context, preferences, texts)}.",
        "",
        "| | |",
        "|---|---|",
        f"| base model | {start.spec.path} |",
        f"| started from | {start.label} (`{start.key}`) |",
        f"| reference | {reference.label if reference else 'none'} |",
        *([f"| teacher | {teacher.label} (`{teacher.key}`) |"] if teacher else []),
        f"| constitution | {constitution.name if constitution else 'none'} |",
        f"| train step | `{planned.hash}` |",
        "",
        "Options:",
        "",
        "```json",
        step.model_dump_json(indent=1, by_alias=True),
        "```",
        "",
        *(scoring(step, start.spec, base) if step.MAKES_REWARD_MODEL else []),
        *weights(step, base),
        _ARTEFACT,
        "",
    ]
    return "\n".join(lines)


def average_card(context: StepContext, models: Sequence[Model], shares: Sequence[float]) -> str:
    """The card of a model that was averaged from these models with these shares."""
    planned = context.planned
    reward = is_reward_model(context.store.model_path(planned.hash))
    task = "text-classification" if reward else "text-generation"
    chosen = f", chosen by the judge {planned.step.by}" if planned.step.chooses else ""
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            f"pipeline_tag: {task}",
            "tags: [rlaif, average]",
            "---",
            f"# {context.inputs.experiment.name}: {planned.models['made'].label} "
            f"(seed {planned.seed})",
            "",
            f"Averaged by `rlaif` in round {planned.round} ({planned.step.method}{chosen}) from:",
            "",
            "| member | share | weights |",
            "|---|---|---|",
            *(
                f"| {model.label} | {share:.4g} | `{model.key}` |"
                for model, share in zip(models, shares, strict=True)
            ),
            "",
            f"Base model: {planned.models['made'].spec.path}. Step: `{planned.hash}`.",
            "",
            _BF16 if planned.options["masters"] else "No fp32 masters: a member had none.",
            "",
            _ARTEFACT,
            "",
        ]
    )


def _describe_data(context: StepContext, preferences: Sequence[Preference], texts: int) -> str:
    step = context.planned.step
    judges = _judge_kinds(context, {p.source.removesuffix(TURNED) for p in preferences})
    found = [trained_on(preferences, judges, step.method == "sft")] if preferences else []
    given = "; ".join(found + ([_say_count(texts, "raw text")] if texts else []))
    if not step.SAMPLES:
        return given
    known = {name: f"{name} ({judges.get(name, 'ai')})" for name in step.learned_judges}
    rewarding = {judge for term in step.terms for judge in term.judges}
    by = ", ".join(said for name, said in known.items() if name in rewarding)
    how = f"rewarded by {by}" if by else "compared with its teacher's probabilities"
    for cost in step.constraints:
        if cost.acts:
            how += f", with the mean cost by {known[cost.judge]} to be at most {cost.limit:g}"
    return f"answers of its own, {how}" + (f", and on {given}" if given else "")


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
    drawn: Counter[str] = Counter()
    written: Counter[str] = Counter()
    turned = 0
    for preference in preferences:
        source = preference.source.removesuffix(TURNED)
        turned += source != preference.source
        lone = {SAMPLED: drawn, JUDGED: written}.get(preference.reason, good)
        single = bad if preference.rejected else lone
        kept = paired if preference.paired else single
        kept[_SAID.get(source) or judges.get(source, source)] += 1
    # A good answer beside bad ones is one label of two; without any it is to be imitated.
    alone = ("answer", " labelled good") if bad else ("demonstration", "")
    groups = (
        ("the chosen answers of " if chosen_only else "", "preference", "", paired),
        ("", *alone, good),
        ("", "answer", " labelled bad", bad),
        ("", "sampled answer", "", drawn),
        ("", "judgement", "", written),
    )
    parts = [
        f"{before}{_say_count(counts.total(), what)}{after}: {_list_counts(counts)}"
        for before, what, after, counts in groups
        if counts
    ]
    return "; ".join(parts) + (f" ({_say_count(turned, 'label')} turned round)" if turned else "")


def _say_count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _list_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _judge_kind(judge: Judge) -> str:
    needs = frozenset[str]().union(*roles_of(judge).values())
    if not needs:
        return "rule"
    return "model" if needs <= {"reward", "token_logprobs"} else "ai"


def _judge_kinds(context: StepContext, sources: set[str]) -> dict[str, str]:
    """The kind of the labels of each judge that is a source of pairs or rewards, by its id, and of
    those together that chose pairs."""
    step = context.planned.step
    named = sources.union(step.reward_judges if step.SAMPLES else ())
    kinds = {n: _judge_kind(judge) for n, judge in context.inputs.judges.items() if n in named}
    used = {
        row["annotator_kind"]
        for digest in context.planned.options.get("judgements", ())
        for row in context.store.step(digest).rows("judgements")
    }
    return kinds | {BY_JUDGES: " and ".join(sorted(used)) or "ai"}


_LOAD = """```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # where this model lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
"""
_LOAD_ADAPTER = """```python
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # where this adapter lies
tokenizer = AutoTokenizer.from_pretrained(folder)
base = AutoModelForSequenceClassification.from_pretrained("%s", num_labels=1, dtype=torch.float32)
model = PeftModel.from_pretrained(base, folder).eval()
"""
_CODE = """conversation = [
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "A plum."},
]
text = tokenizer.apply_chat_template(conversation, tokenize=False%s)
with torch.no_grad():
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    reward = model(**inputs).logits[0, 0].item()
```"""
_PIPELINE = """
Or with a pipeline:

```python
from transformers import pipeline

classify = pipeline("text-classification", model=folder, dtype=torch.float32)
(found,) = classify(text, add_special_tokens=False, function_to_apply="none")
reward = found["score"]
```"""
_HEAD = "This model's head is no single row of weights, and"
_ENSEMBLE = "This is an ensemble of adapters, whose own head is zero, and"
_RLAIF = (
    "{what} `transformers` alone does not give its reward: use "
    "`rlaif score COMPLETIONS --model FOLDER --out SCORES`, a judge of kind `reward_model`, or "
    "`rlaif serve`."
)


def scoring(step: DistillStep | FitStep, start: ModelSpec, base: Base | None) -> list[str]:
    """Lines of Markdown: where the reward is read, and the code that reads it there. `base` is that
    of an adapter that was kept."""
    alone = base is not None and base.folder != ADAPTER
    said = "" if alone else " (`reward_position: last` in `config.json`)"
    lines = [
        "## Scoring a conversation",
        "",
        "The reward is read at the last token of the conversation as the chat template renders "
        f"it{said}, without a generation prompt. The chat template writes its own special tokens, "
        "so none are added to its text.",
        "",
    ]
    if isinstance(step, FitStep) and not isinstance(step, LinearDistill):
        lines.append(_RLAIF.format(what=_HEAD))
    elif isinstance(step, DistillStep) and step.members > 1:
        lines.append(_RLAIF.format(what=_ENSEMBLE))
    else:
        given = "".join(f", {k}={v!r}" for k, v in sorted(start.chat_template_kwargs.items()))
        load = _LOAD_ADAPTER % base.name if alone and base is not None else _LOAD
        lines.append(load + _CODE % given)
        lines += [] if alone else [_PIPELINE]
    return [*lines, "", *_describe_rendering(step, start)]


def _describe_rendering(step: DistillStep | FitStep, start: ModelSpec) -> list[str]:
    """How the conversations of the training differed from what the template makes of them."""
    lines = []
    if start.system_prompt == "drop":
        lines += ["The template's own system turn was left out (`system_prompt: drop`).", ""]
    elif start.system_prompt != "keep":
        lines += [f"Conversations began with the system turn {start.system_prompt!r}.", ""]
    if step.reasoning == "strip":
        lines += ["Answers were scored without their thinking (`reasoning: strip`).", ""]
    return lines


_BF16 = "The weights are bf16; the fp32 masters of the next round lie in `masters/` while kept."
_ADAPTER_CODE = """```python
from peft import PeftModel
from transformers import %(kind)s

base = %(kind)s.from_pretrained("%(base)s"%(labels)s)
model = PeftModel.from_pretrained(base, "%(folder)s")  # where the adapter lies
```"""
_SERVE = (
    "For vLLM: `vllm serve %(base)s --enable-lora --max-lora-rank %(rank)d --lora-modules "
    "NAME=%(folder)s`."
)
_NO_SERVE = "vLLM serves no DoRA adapters; there the merged weights are needed (`export: both`)."


@dataclass(frozen=True)
class Base:
    """What an adapter is for: a folder or hub id. `folder` is where the adapter lies in the model's
    own, `rank` the highest of its matrices."""

    name: str
    folder: str
    rank: int


def base_of(step: TextStep, out: Path) -> Base | None:
    """The base of the adapter that training kept in `out`; None where it kept none."""
    lora = step.kept_adapter
    if lora is None:
        return None
    own = ADAPTER if lora.export == "both" else "."
    name = adapter_config(out / own)["base_model_name_or_path"]
    return Base(name, own, adapter_rank(out / own))


def weights(step: TextStep, base: Base | None) -> list[str]:
    """Lines of Markdown: what the weights are and, of an adapter, how it is loaded."""
    if base is None:
        return [_BF16, ""]
    if base.folder == ADAPTER:
        lines = [_BF16, "", f"The adapter in `{ADAPTER}/` is the one that is merged into them.", ""]
    else:
        said = "These files are an adapter alone; `rlaif` merges it where it needs the whole model."
        lines = [said, ""]
    reward = step.MAKES_REWARD_MODEL
    words = {
        "kind": "AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM",
        "labels": ", num_labels=1" if reward else "",
        "base": base.name,
        "folder": base.folder,
        "rank": base.rank,
    }
    lines += [_ADAPTER_CODE % words, ""]
    if not reward:
        dora = step.kept_adapter is not None and step.kept_adapter.dora
        lines += [_NO_SERVE if dora else _SERVE % words, ""]
    return lines
