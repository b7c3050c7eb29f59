"""LoRA adapters (arXiv 2106.09685) in peft's format: one given beside a model (`adapter`), or those
of a reward ensemble, which lie in its checkpoint and share its body."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError, explain_library
from rlaif.core.records import content_hash
from rlaif.core.store import read_json
from rlaif.engines.builtin import ADAPTER_BASE, files_hash, weights_hash

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MEMBERS = "members"
"""The folder in a checkpoint that holds the adapters of an ensemble, by number."""
DORA = (
    "lora.export: an adapter on what is itself an adapter alone is written as one with it, and "
    "DoRA's cannot be: set `export: both` where the start is made, or leave `dora` out of both"
)
"""Why an adapter cannot be kept."""
COPIES = "merged"
"""The folder of merged copies: in a run folder while the run lasts, else in the user's cache."""


def adapter_folder(spec: ModelSpec) -> Path | None:
    """The folder of the model's adapter, None where it has none. Raises EngineError when there is
    no LoRA adapter in it."""
    if spec.adapter is None:
        return None
    folder = Path(spec.adapter).expanduser()
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).exists()]
    if missing:
        raise EngineError(
            f"adapter {spec.adapter}: there is no {' and no '.join(missing)} in this folder. Name "
            "the folder that peft's `save_pretrained` wrote."
        )
    kind = adapter_config(folder).get("peft_type")
    if kind != "LORA":
        raise EngineError(f"adapter {spec.adapter}: its type is {kind}, and only LORA is served")
    return folder


def is_adapter(folder: Path) -> bool:
    """Whether the folder has an adapter alone, which training exported."""
    return (folder / ADAPTER_BASE).exists() and not (folder / "config.json").exists()


def model_hash(folder: Path, spec: ModelSpec) -> str:
    """A hash of the weights in `folder` with the model's adapter, where it has one."""
    adapter = adapter_folder(spec)
    if adapter is None:
        return weights_hash(folder)
    return content_hash(weights_hash(folder), files_hash([adapter / CONFIG, adapter / WEIGHTS]))


def rank(adapter: Path) -> int:
    """The highest rank of the adapter's matrices."""
    config = adapter_config(adapter)
    ranks: list[int] = [config["r"], *(config.get("rank_pattern") or {}).values()]
    return max(ranks)


def merged(model: Any, adapter: Path, name: str) -> Any:
    """The transformers model with the adapter added to its weights. Raises EngineError where the
    two do not fit."""
    from peft import PeftModel

    with explain_library(_describe_misfit(name, adapter), EngineError):
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


def member_folders(checkpoint: Path) -> list[Path]:
    """The adapters of an ensemble in their order; none where the checkpoint is one model."""
    folders = (path.parent for path in checkpoint.glob(f"{MEMBERS}/*/{CONFIG}"))
    return sorted(folders, key=lambda folder: int(folder.name))


def with_members(model: Any, folders: Iterable[Path], name: str) -> Any:
    """The transformers classifier with all the adapters on it, each by its folder's name and none
    merged. Raises EngineError where one does not fit."""
    from peft import PeftModel

    first, *others = folders
    with explain_library(_describe_misfit(name, first.parent), EngineError):
        wrapped = PeftModel.from_pretrained(model, str(first), adapter_name=first.name)
        for folder in others:
            wrapped.load_adapter(str(folder), adapter_name=folder.name)
    return wrapped


def _describe_misfit(name: str, adapter: Path) -> str:
    return f"model {name!r}: the adapter in {adapter} does not fit"


def adapter_config(folder: Path) -> dict[str, Any]:
    """peft's config of the adapter in `folder`. Raises StoreError where it is damaged."""
    return read_json(folder / CONFIG, "Mend this file, or name another adapter.") or {}
