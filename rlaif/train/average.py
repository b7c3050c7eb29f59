"""One model from the weights of several that began as one.

The mean of reward models is WARM (arXiv 2401.12187), that of policies a model soup (arXiv
2203.05482). It costs one model to serve, and shows no disagreement.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlaif.core.errors import ConfigError, EngineError, explain_library
from rlaif.core.integrity import CHECKSUMS_NAME, publish_folder
from rlaif.engines.build import is_reward_model, whole
from rlaif.engines.checkpoints import MASTERS
from rlaif.engines.local.reward import POSITION, reward_position
from rlaif.engines.model_folders import check_weights, member_folders
from rlaif.kernels.heads import WEIGHTS, load_head, save_head
from rlaif.train.reward_model import RECORD
from rlaif.train.tokenise import read_tokens

WHOLE = "model.safetensors"
COMPARED = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "vocab_size", "num_labels"),
)
NEARLY_PARALLEL = 0.9995
"""Above this cosine an arc is a line to rounding error, and its formula divides by about 0."""
_COPIED = (".json", ".jinja", ".model", ".txt")
_OWN = {RECORD, CHECKSUMS_NAME, "ready.json"}

Members = Mapping[str, Path]
"""The folders of whole models by the names that messages call them."""
Combine = Callable[[Sequence[Tensor]], Tensor]
"""One tensor (fp64) from those of the members (fp64), which have its shape."""


def average(members: Sequence[str | Path], out: str | Path) -> dict[str, int]:
    """Write to `out` the model whose every weight is the mean of the members'; how many members and
    tensors that were. `out` is complete or absent.

    Raises ConfigError or EngineError where they differ in kind, architecture, tokenizer or head:
    the mean of unrelated weights is noise.
    """
    if len(members) < 2:
        raise ConfigError("an average needs two models or more")
    out = Path(out)
    if out.exists():
        raise ConfigError("this folder exists; choose another --out, or delete it", out)
    shares = [1 / len(members)] * len(members)
    # A folder may be given twice, and counts twice.
    named = {f"{path}{' ' * n}": whole(Path(path)) for n, path in enumerate(members)}
    return write_combined(named, out, weighted_mean(shares))


def weighted_mean(shares: Sequence[float]) -> Combine:
    """The mean with these weights, whose sum is 1."""

    def combine(tensors: Sequence[Tensor]) -> Tensor:
        """See `Combine`."""
        total = torch.zeros_like(tensors[0])
        for tensor, share in zip(tensors, shares, strict=True):
            total += share * tensor
        return total

    return combine


def interpolate_spherically(tensors: Sequence[Tensor]) -> Tensor:
    """Halfway on the arc from the first to the second tensor, each taken as one vector
    (Shoemake 1985): (a + b) / (2 cos(angle / 2)). Where they are nearly parallel or opposite, or
    one is 0, halfway on the line."""
    first, second = tensors
    norms = float(first.norm()) * float(second.norm())
    cosine = float((first * second).sum()) / norms if norms > 0 else 1.0
    middle = (first + second) / 2
    if abs(cosine) > NEARLY_PARALLEL:
        return middle
    return middle / math.cos(math.acos(cosine) / 2)


def write_combined(
    members: Members, out: Path, combine: Combine, masters: bool = True
) -> dict[str, int]:
    """Write to `out`, complete or not at all, the model whose weights `combine` makes of the
    members': of their fp32 masters where they have them, rounded to the dtype of the first member's
    weights. It has masters where all members have, unless `masters` is false. Weights that are tied
    are in a checkpoint once.

    Returns how many members and tensors there were. Raises ConfigError or EngineError where the
    members are not alike.
    """
    names, folders = list(members), list(members.values())
    for name, folder in members.items():
        _refuse_unlike(name, folder, names[0], folders[0])
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for path in sorted(folders[0].iterdir()):
        text = path.is_file() and path.suffix in _COPIED and path.name not in _OWN
        # Of several files of weights one is made.
        if text and not path.name.endswith(".index.json"):
            shutil.copyfile(path, temporary / path.name)
    weights = [
        _Tensors(sorted(folder.glob("model*.safetensors")), _list_tied(folder))
        for folder in folders
    ]
    precise = [_Tensors([f / MASTERS] if (f / MASTERS).exists() else []) for f in folders]
    _refuse_other_names(names, weights)
    exact: dict[str, Tensor] = {}
    if masters and all(own.names for own in precise):
        _refuse_other_names(names, precise)
        exact = {name: _combine(name, names, precise, combine) for name in precise[0].names}
        (temporary / MASTERS).parent.mkdir()
        save_file(exact, temporary / MASTERS)
    written = {}
    for name in weights[0].names:
        first = weights[0].read(name)
        if not first.is_floating_point():
            written[name] = first
            continue
        best = [m if name in m.names else w for m, w in zip(precise, weights, strict=True)]
        made = exact[name] if name in exact else _combine(name, names, best, combine)
        written[name] = made.to(first.dtype)
    save_file(written, temporary / WHOLE, metadata={"format": "pt"})
    if is_reward_model(folders[0]):
        _write_head(folders, temporary, combine)
    publish_folder(temporary, out)
    return {"models": len(members), "tensors": len(written)}


def _write_head(folders: Sequence[Path], target: Path, combine: Combine) -> None:
    """The reward head that lies beside the weights, where there is one, and where it is read."""
    config = target / "config.json"
    read_at = {POSITION: reward_position(folders[0])}
    config.write_text(json.dumps(json.loads(config.read_text()) | read_at, indent=2))
    head = load_head(folders[0])
    if head is not None:
        files = [_Tensors([folder / WEIGHTS]) for folder in folders]
        names = [str(folder) for folder in folders]
        head.load_state_dict({n: _combine(n, names, files, combine) for n in files[0].names})
        save_head(head, target)


def _list_tied(folder: Path) -> set[str]:
    """Names that a checkpoint may have although the weights are those of the embedding."""
    from transformers import AutoConfig

    with explain_library(f"{folder}: this model cannot be loaded", EngineError):
        config = AutoConfig.from_pretrained(folder).get_text_config()
    return {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()


class _Tensors:
    """The tensors of some files but for those `left_out`, which are read one by one."""

    def __init__(self, paths: Sequence[Path], left_out: Set[str] = frozenset()):
        files: list[Any] = [safe_open(path, "pt") for path in paths]
        self._file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        self.names = sorted(self._file_of.keys() - left_out)

    def read(self, name: str) -> Tensor:
        """The tensor of that name."""
        found: Tensor = self._file_of[name].get_tensor(name)
        return found


def _combine(
    tensor: str, names: Sequence[str], sources: Sequence[_Tensors], combine: Combine
) -> Tensor:
    """What `combine` makes of one tensor of all members, in fp32. Raises EngineError where their
    shapes differ."""
    found = [source.read(tensor) for source in sources]
    for name, own in zip(names, found, strict=True):
        if own.shape != found[0].shape:
            raise EngineError(
                f"{tensor} has the shape {tuple(own.shape)} in {name} and {tuple(found[0].shape)} "
                f"in {names[0]}; they cannot be averaged"
            )
    # In fp64, so that equal members give themselves.
    return combine([own.double() for own in found]).float().contiguous()


def _refuse_other_names(names: Sequence[str], sources: Sequence[_Tensors]) -> None:
    for name, source in zip(names, sources, strict=True):
        if source.names != sources[0].names:
            raise EngineError(f"{name} has other weights than {names[0]}; they cannot be averaged")


def _refuse_unlike(name: str, member: Path, other: str, first: Path) -> None:
    """Raise ConfigError or EngineError where two members are no models of one kind, shape and
    vocabulary."""
    check_weights(member)
    if member_folders(member):
        raise ConfigError(
            f"{name} is an ensemble of adapters and has no one set of weights to average. Use it "
            "as a judge of kind reward_ensemble",
            member,
        )
    kinds = [
        "a reward model" if is_reward_model(folder) else "no reward model"
        for folder in (member, first)
    ]
    if kinds[0] != kinds[1]:
        raise ConfigError(f"{name} is {kinds[0]} and {other} is {kinds[1]}", member)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (first, member)]
    differing = [key for key in COMPARED if configs[0].get(key) != configs[1].get(key)]
    if differing:
        raise EngineError(
            f"{name} and {other} differ in {', '.join(differing)}: only models that began as one "
            "can be averaged"
        )
    own, given = read_tokens(member), read_tokens(first)
    tokens = sorted(i for i in own.keys() | given.keys() if own.get(i) != given.get(i))
    if tokens:
        raise EngineError(
            f"{name} has another vocabulary than {other}: {len(tokens)} token ids differ, "
            f"{tokens[0]} being {own.get(tokens[0])!r} in the one and {given.get(tokens[0])!r} in "
            "the other. Only models with the same tokenizer can be averaged"
        )
    if kinds[0] == "a reward model":
        _refuse_other_head(name, member, other, first)


def _refuse_other_head(name: str, member: Path, other: str, first: Path) -> None:
    places = [reward_position(folder) for folder in (first, member)]
    if places[0] != places[1]:
        raise EngineError(
            f"{name} is read at {places[1]} and {other} at {places[0]} (`{POSITION}`); they "
            "cannot be averaged"
        )
    heads = [load_head(folder) for folder in (first, member)]
    shapes = [None if head is None else head.config for head in heads]
    if shapes[0] != shapes[1]:
        raise EngineError(f"{name} and {other} have different heads; they cannot be averaged")
    if shapes[0] is not None and shapes[0].kind == "gated":
        raise EngineError(
            f"{name}: gates begin at different random weights, and their mean is no gate. Use "
            "them together, as a judge of kind reward_ensemble"
        )
