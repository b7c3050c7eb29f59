"""Averaging the weights of reward models that began as one (WARM, arXiv 2401.12187)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlaif.core.errors import ConfigError, EngineError
from rlaif.core.integrity import CHECKSUMS_NAME, publish_folder
from rlaif.engines.build import is_reward_model, whole
from rlaif.engines.checkpoints import MASTERS
from rlaif.engines.local.reward import POSITION, reward_position
from rlaif.engines.model_folders import ADAPTER, check_weights, member_folders
from rlaif.kernels.heads import WEIGHTS, load_head, save_head
from rlaif.train.reward_model import RECORD
from rlaif.train.tokenise import refuse_other_tokens

WHOLE = "model.safetensors"
COMPARED = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "num_labels")


def average(members: Sequence[str | Path], out: str | Path) -> dict[str, int]:
    """Write to `out` the model whose every weight is the mean of the members'; how many members and
    tensors that were. `out` is complete or absent.

    Costs one model to serve, and shows no disagreement: keep the members for that. Raises
    ConfigError or EngineError where they are no reward models, or differ in architecture,
    tokenizer or head: the mean of unrelated weights is noise.
    """
    if len(members) < 2:
        raise ConfigError("an average needs two models or more")
    out = Path(out)
    if out.exists():
        raise ConfigError("this folder exists; choose another --out, or delete it", out)
    return _average_members([whole(Path(member)) for member in members], out)


def _average_members(members: Sequence[Path], out: Path) -> dict[str, int]:
    for member in members:
        _refuse_unlike(member, members[0])
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    own = shutil.ignore_patterns(
        "masters", ADAPTER, "README.md", RECORD, CHECKSUMS_NAME, "*.safetensors"
    )
    shutil.copytree(members[0], temporary, ignore=own)
    config = temporary / "config.json"
    read_at = {POSITION: reward_position(members[0])}
    config.write_text(json.dumps(json.loads(config.read_text()) | read_at, indent=2))
    tensors = dict(_mean_tensors([m / WHOLE for m in members]))
    save_file(tensors, temporary / WHOLE, metadata={"format": "pt"})
    if all((m / MASTERS).exists() for m in members):
        (temporary / MASTERS).parent.mkdir()
        save_file(dict(_mean_tensors([m / MASTERS for m in members])), temporary / MASTERS)
    head = load_head(members[0])
    if head is not None:
        head.load_state_dict(dict(_mean_tensors([m / WEIGHTS for m in members])))
        save_head(head, temporary)
    publish_folder(temporary, out)
    return {"models": len(members), "tensors": len(tensors)}


def _refuse_unlike(member: Path, first: Path) -> None:
    if not is_reward_model(member) or not (member / WHOLE).exists():
        raise ConfigError(f"no reward model with its weights in one {WHOLE}", member)
    check_weights(member)
    if member_folders(member):
        raise ConfigError(
            "an ensemble of adapters has no one set of weights to average. Use it as a judge of "
            "kind reward_ensemble",
            member,
        )
    configs = [json.loads((folder / "config.json").read_text()) for folder in (first, member)]
    differing = [key for key in COMPARED if configs[0].get(key) != configs[1].get(key)]
    if differing:
        raise EngineError(
            f"{member} and {first} differ in {', '.join(differing)}: only models that began as one "
            "can be averaged"
        )
    places = [reward_position(folder) for folder in (first, member)]
    if places[0] != places[1]:
        raise EngineError(
            f"{member} is read at {places[1]} and {first} at {places[0]} (`{POSITION}`); they "
            "cannot be averaged"
        )
    refuse_other_tokens(first, member)
    heads = [load_head(folder) for folder in (first, member)]
    shapes = [None if head is None else head.config for head in heads]
    if shapes[0] != shapes[1]:
        raise EngineError(f"{member} and {first} have different heads; they cannot be averaged")
    if shapes[0] is not None and shapes[0].kind == "gated":
        raise EngineError(
            f"{member}: gates begin at different random weights, and their mean is no gate. Use "
            "them together, as a judge of kind reward_ensemble"
        )


def _mean_tensors(paths: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Name and mean of each tensor, one at a time in fp32, in the dtype that it had. Raises
    EngineError where names or shapes differ."""
    files: list[Any] = [safe_open(path, "pt") for path in paths]
    names = [sorted(file.keys()) for file in files]
    for path, own in zip(paths, names, strict=True):
        if own != names[0]:
            raise EngineError(f"{path} has other weights than {paths[0]}; they cannot be averaged")
    for name in names[0]:
        tensors = [file.get_tensor(name) for file in files]
        if len({tuple(t.shape) for t in tensors}) > 1:
            raise EngineError(f"{name} has different shapes in these models")
        mean = torch.stack([t.float() for t in tensors]).mean(0)
        yield name, mean.to(tensors[0].dtype)
