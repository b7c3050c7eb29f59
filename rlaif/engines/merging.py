"""Trained adapters as checkpoints: what they are for, and the whole model that they are part of.

A folder with an adapter alone has no weights of its own. Whoever needs the whole model gets a
merged copy, which has the bits that training would have exported as `merged`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlaif.config.training import LoraOptions
from rlaif.core.errors import EngineError, explain_library
from rlaif.core.integrity import publish_folder
from rlaif.core.records import content_hash
from rlaif.core.store import read_json
from rlaif.engines.checkpoints import load_classifier, write_checkpoint
from rlaif.engines.local.distance import REGION
from rlaif.engines.model_folders import (
    ADAPTER,
    ADAPTER_BASE,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    COPIES,
    DORA,
    adapter_config,
    cache_folder,
    files_hash,
    resolve,
    weights_hash,
)


def save_adapter(wrapped: Any, folder: Path) -> None:
    """Write peft's two files of the module's adapter and of what it learned whole, in fp32."""
    # Where the base lies is for its caller to say; with a name here, peft would look it up.
    wrapped.peft_config["default"].base_model_name_or_path = None
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def name_base(folder: Path, base: Path) -> None:
    """Say in the adapter's config what it was trained on: a hub id where `base` is a snapshot of
    the hub, else the folder. The hash of its weights is kept beside."""
    config = adapter_config(folder)
    *_, repository, snapshots, revision = ("", "", *base.absolute().parts)
    if snapshots == "snapshots" and repository.startswith("models--"):
        name = repository.removeprefix("models--").replace("--", "/")
        config |= {"base_model_name_or_path": name, "revision": revision}
    else:
        config["base_model_name_or_path"] = str(base.absolute())
    _write_row(folder / ADAPTER_CONFIG, config)
    _write_row(folder / ADAPTER_BASE, {"weights_hash": weights_hash(base)})


def earlier_adapter(start: Path, lora: LoraOptions) -> Path | None:
    """The adapter that was merged into `start`, where one that is trained on it with `lora` can be
    written as one adapter with it; None where there is none. DoRA's scales do not add. Raises
    EngineError where that would leave an adapter whose base is a merged copy."""
    folder = start / ADAPTER
    if not (folder / ADAPTER_BASE).exists():
        return None
    if not lora.dora and not adapter_config(folder).get("use_dora"):
        return folder
    if start.absolute().parent.name == COPIES:
        raise EngineError(DORA)
    return None


def write_on_base(folder: Path, start: Path, lora: LoraOptions) -> None:
    """Finish the adapter in `folder`, which was trained on `start`: it becomes one with the adapter
    that is already in `start`, so that it is for a model that lies somewhere whole."""
    earlier = earlier_adapter(start, lora)
    if earlier is None:
        name_base(folder, start)
        return
    tensors, config = stack(earlier, folder)
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    known = adapter_config(earlier)
    config |= {key: known.get(key) for key in ("base_model_name_or_path", "revision")}
    _write_row(folder / ADAPTER_CONFIG, config)
    shutil.copyfile(earlier / ADAPTER_BASE, folder / ADAPTER_BASE)


def stack(first: Path, second: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The sum of two LoRA adapters as one, whose rank is the sum of theirs: with A (r, in) and
    B (out, r), `s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2]`. Where only one has a matrix,
    the other's part is zero. Its weights and config."""
    files = [load_file(folder / ADAPTER_WEIGHTS) for folder in (first, second)]
    configs = [adapter_config(folder) for folder in (first, second)]
    ranks = [config["r"] for config in configs]
    merged = {n: t for file in files for n, t in file.items() if _factor_of(n) is None}
    names = sorted(n for n in files[0].keys() | files[1].keys() if _factor_of(n) is not None)
    for name in names:
        dim = 0 if _factor_of(name) == "A" else 1
        like = next(file[name] for file in files if name in file)
        parts = []
        for file, config, rank in zip(files, configs, ranks, strict=True):
            shape = list(like.shape)
            shape[dim] = rank
            part = file.get(name, torch.zeros(shape))
            parts.append(part * (config["lora_alpha"] / rank if dim else 1.0))
        merged[name] = torch.cat(parts, dim).contiguous()
    targets = {n.partition(".lora_")[0].removeprefix("base_model.model.") for n in names}
    rank = sum(ranks)
    changed = {"r": rank, "lora_alpha": rank, "target_modules": sorted(targets)}
    return merged, configs[1] | changed


def _factor_of(name: str) -> str | None:
    """Which factor of a low-rank product a tensor is, "A" or "B"; None for any other."""
    for factor in ("A", "B"):
        if f".lora_{factor}." in name or f".lora_embedding_{factor}" in name:
            return factor
    return None


def merged_copy(folder: Path, copies: Path | None = None) -> Path:
    """The whole model of the adapter in `folder`, in `copies` (None: in the user's cache), made
    where it is not there. Raises EngineError where the adapter's base is not to be found or is
    another than it was."""
    base = _find_base(folder)
    adapter = files_hash([folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS])
    digest = content_hash(weights_hash(base), adapter)
    out = (copies or cache_folder() / COPIES) / digest
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(out) + ".lock"):
        if not out.exists():
            _merge_adapter(folder, base, out)
    return out


def _find_base(folder: Path) -> Path:
    """The folder of the model that the adapter is for. One in a run folder is also found where the
    run folder has been moved."""
    name = adapter_config(folder).get("base_model_name_or_path") or ""
    run = folder.absolute().parents
    places = (Path(name), run[0] / Path(name).name, run[1] / Path(name).name)
    here = next((place for place in places if (place / "config.json").exists()), None)
    advice = (
        f"the adapter in {folder} is for the model {name!r} (base_model_name_or_path in its "
        f"{ADAPTER_CONFIG})"
    )
    try:
        base = here or resolve(name)
    except EngineError as error:
        raise EngineError(f"{advice}, which is not there: {error}") from None
    known = (read_json(folder / ADAPTER_BASE) or {}).get("weights_hash")
    if known != weights_hash(base):
        raise EngineError(f"{advice}, and the model in {base} is another than it was trained on")
    return base


@torch.no_grad()
def _merge_adapter(folder: Path, base: Path, out: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    reward = adapter_config(folder).get("task_type") == "SEQ_CLS"
    with explain_library(f"the adapter in {folder} does not fit {base}", EngineError):
        if reward:
            module, _ = load_classifier(base, 1, {"dtype": torch.float32})
        else:
            module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        module = PeftModel.from_pretrained(module, str(folder)).merge_and_unload()
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    write_checkpoint(module, dict(module.named_parameters()), folder, temporary)
    (temporary / ADAPTER).mkdir()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_BASE):
        shutil.copyfile(folder / name, temporary / ADAPTER / name)
    if (folder / REGION).exists():
        shutil.copyfile(folder / REGION, temporary / REGION)
    publish_folder(temporary, out)


def _write_row(path: Path, row: dict[str, Any]) -> None:
    path.write_text(json.dumps(row, indent=2, sort_keys=True) + "\n", encoding="utf-8")
