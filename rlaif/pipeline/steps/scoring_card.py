"""What a reward model's card says of how to score a conversation."""

from __future__ import annotations

from rlaif.config.distill import DistillStep, FitStep, LinearDistill
from rlaif.config.models import ModelSpec
from rlaif.engines.merging import ADAPTER
from rlaif.pipeline.steps.adapter_card import Base

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
    return [*lines, "", *_told(step, start)]


def _told(step: DistillStep | FitStep, start: ModelSpec) -> list[str]:
    """How the conversations of the training differed from what the template makes of them."""
    lines = []
    if start.system_prompt == "drop":
        lines += ["The template's own system turn was left out (`system_prompt: drop`).", ""]
    elif start.system_prompt != "keep":
        lines += [f"Conversations began with the system turn {start.system_prompt!r}.", ""]
    if step.reasoning == "strip":
        lines += ["Answers were scored without their thinking (`reasoning: strip`).", ""]
    return lines
