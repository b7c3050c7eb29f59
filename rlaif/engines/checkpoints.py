"""A model's folder: what lies beside its weights, and how it is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlaif.core.errors import EngineError
from rlaif.engines.local.reward import POSITION

MASTERS = "masters/model.safetensors"
WEIGHTS = "model.safetensors"


def list_weight_files(folder: Path) -> list[Path]:
    """The safetensors of the model in `folder`, of which its index names several."""
    index = folder / f"{WEIGHTS}.index.json"
    if not index.exists():
        return [folder / WEIGHTS]
    return [folder / name for name in sorted(set(_read_row(index)["weight_map"].values()))]


@dataclass(frozen=True)
class FolderWeights:
    """The weights in a model's folder. See `rlaif.engines.base.ModelWeights`."""

    folder: Path

    def list_tensors(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """See `ModelWeights.list_tensors`."""
        # Reading maps the files into memory, and touches no page of them before it is used.
        return [(name, t.dtype, tuple(t.shape)) for name, t in self.read_tensors()]

    def read_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See `ModelWeights.read_tensors`; they are in main memory."""
        for path in list_weight_files(self.folder):
            with safe_open(path, framework="pt") as file:
                for name in sorted(file.keys()):
                    yield name, file.get_tensor(name)

    def write(self) -> Path:
        """The folder itself."""
        return self.folder


def is_reward(module: Any) -> bool:
    """Whether the module has a reward head in place of a language head."""
    return module.get_output_embeddings() is None and hasattr(module, "score")


@torch.no_grad()
def write_checkpoint(module: Any, masters: Mapping[str, Tensor], start: Path, folder: Path) -> None:
    """Write in `folder`, which may exist, the module in bf16 with the tokenizer of `start`, and
    those of its fp32 `masters` that are weights of its own. The module's weights are then bf16."""
    (folder / MASTERS).parent.mkdir(parents=True)
    own = dict(module.named_parameters())
    # A value head or a critic is trained beside the model, and is no part of it; what of the model
    # is never trained has no master.
    cpu = {
        name: masters.get(name, param).detach().float().cpu().contiguous()
        for name, param in own.items()
    }
    save_file(cpu, folder / MASTERS)
    for name, param in own.items():
        param.grad = None
        param.data = cpu[name].to(torch.bfloat16)
    module.config.dtype = torch.bfloat16
    copy_text_files(start, folder)
    if is_reward(module):
        pad_apart_from_end(module, folder)
        read_at_last(module)
    save_module(module, folder)


def save_module(module: Any, folder: Path) -> None:
    """Write config and weights in `folder`, which has the tokenizer."""
    module.save_pretrained(folder)
    write_older_names(folder)


def write_older_names(folder: Path) -> None:
    """Repeat keys of the model's and the tokenizer's config under their names in transformers 4,
    which other software still reads: it would otherwise compute with its default `rope_theta` and
    refuse the tokenizer."""
    config = _read_row(folder / "config.json")
    rope = config.get("rope_parameters")
    older: dict[str, Any] = {"torch_dtype": config["dtype"]} if "dtype" in config else {}
    # Where layers differ, each has parameters of its own, and so had they in transformers 4.
    if isinstance(rope, dict) and "rope_theta" in rope:
        plain = ("rope_theta", "partial_rotary_factor")
        older |= {key: rope[key] for key in plain if key in rope}
        if rope.get("rope_type", "default") != "default":
            older["rope_scaling"] = {k: v for k, v in rope.items() if k not in plain}
    if config:
        _write_row(folder / "config.json", config | older)
    tokenizer = _read_row(folder / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        # There that class gives `token_type_ids` as well, which few models take.
        tokenizer.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    if tokenizer:
        _write_row(folder / "tokenizer_config.json", tokenizer)


def _read_row(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _write_row(path: Path, row: dict[str, Any]) -> None:
    path.write_text(
        json.dumps(row, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_at_last(module: Any) -> None:
    """Say in the config that the reward is read at the last token of the rendered conversation,
    where a sequence classifier reads."""
    setattr(module.config, POSITION, "last")


def pad_apart_from_end(module: Any, folder: Path) -> None:
    """Sequence classifiers read the last token that is not padding: with the end of turn as
    padding token, they would read the one before it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = {tokenizer.eos_token_id, getattr(module.config, "eos_token_id", None)}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        special = sorted(set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder))
        # The last one is the least likely to stand in any text.
        free = [i for i in special if i not in ends and i != tokenizer.bos_token_id]
        if not free:
            raise EngineError(
                f"{folder}: its tokenizer has no special token to pad with besides its end token"
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(free[-1])
        tokenizer.save_pretrained(folder)
    module.config.pad_token_id = tokenizer.pad_token_id


def copy_text_files(start: Path, target: Path) -> None:
    """Write the tokenizer of `start` in `target`, and what it says of how it is sampled."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(start).save_pretrained(target)
    # The starting model's file as it is: saving it anew would add defaults it never had.
    generation = start / "generation_config.json"
    if generation.exists():
        shutil.copyfile(generation, target / generation.name)


def load_classifier(folder: Path, outputs: int, options: dict[str, Any]) -> tuple[Any, Any]:
    """The body of the model in `folder` with a head of so many outputs, and transformers' report of
    what it loaded. A head of another size is not kept. Raises EngineError where transformers has no
    such class."""
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    from transformers.utils import logging as transformers_logging

    config = AutoConfig.from_pretrained(folder)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise EngineError(
            f"{folder}: transformers has no sequence classifier of {config.model_type}, "
            "and that is what a reward model is to others. Start from another architecture."
        )
    level = transformers_logging.get_verbosity()
    # It would warn that the head is new, which is what is wanted.
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        module, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=outputs,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    finally:
        transformers_logging.set_verbosity(level)
    return module, report
