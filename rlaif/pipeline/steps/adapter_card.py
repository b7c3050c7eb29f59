"""What a model's card says of its weights, and of how an adapter is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlaif.config.distill import DistillStep
from rlaif.config.training import TextStep, TrainStep
from rlaif.engines.local.adapters import adapter_config, rank
from rlaif.engines.merging import ADAPTER

_BF16 = "The weights are bf16; the fp32 masters of the next round lie in `masters/` while kept."
_CODE = """```python
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
    lora = step.lora if isinstance(step, TrainStep) else None
    if lora is None or lora.export == "merged":
        return None
    own = ADAPTER if lora.export == "both" else "."
    name = adapter_config(out / own)["base_model_name_or_path"]
    return Base(name, own, rank(out / own))


def weights(step: TextStep, base: Base | None) -> list[str]:
    """Lines of Markdown: what the weights are and, of an adapter, how it is loaded."""
    if base is None:
        return [_BF16, ""]
    if base.folder == ADAPTER:
        lines = [_BF16, "", f"The adapter in `{ADAPTER}/` is the one that is merged into them.", ""]
    else:
        said = "These files are an adapter alone; `rlaif` merges it where it needs the whole model."
        lines = [said, ""]
    reward = isinstance(step, DistillStep)
    words = {
        "kind": "AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM",
        "labels": ", num_labels=1" if reward else "",
        "base": base.name,
        "folder": base.folder,
        "rank": base.rank,
    }
    lines += [_CODE % words, ""]
    if not reward:
        dora = isinstance(step, TrainStep) and step.lora is not None and step.lora.dora
        lines += [_NO_SERVE if dora else _SERVE % words, ""]
    return lines
