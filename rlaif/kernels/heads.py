"""Reward heads: from hidden states to one reward, and to what it is made of.

A head takes the hidden state at the last token of each answer and that at the last token of its
prompt, both (R, H) in fp32, and gives `Scores`. The plain one is a row of weights; the others lie
beside the checkpoint, in `reward_head.json` and `reward_head.safetensors`, with all that they need.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlaif.core.errors import EngineError, explain_library

CONFIG, WEIGHTS = "reward_head.json", "reward_head.safetensors"
Kind = Literal["linear", "ordinal", "gated"]


@dataclass(frozen=True)
class HeadConfig:
    """The shape of a head.

    `objectives` are K names, in order; the one that is `verbosity` is there to be subtracted. Each
    has `quantiles` Q. `risk` in (0, 1] is the share of the lowest quantiles that the reward
    averages: 1 is their mean, less is risk-averse. `levels` are an ordinal head's rating values.
    A gate has `gate_layers` hidden layers of `gate_width`; without one all objectives count alike.
    """

    kind: Kind = "linear"
    width: int = 0
    objectives: tuple[str, ...] = ()
    verbosity: str | None = None
    quantiles: int = 1
    risk: float = 1.0
    levels: tuple[float, ...] = ()
    gate_layers: int = 0
    gate_width: int = 0
    gate_temperature: float = 10.0

    @property
    def outputs(self) -> int:
        """How many linear outputs the head reads from an answer's hidden state."""
        return max(1, len(self.objectives)) * self.quantiles


@dataclass(frozen=True)
class Scores:
    """Rewards (R,), and by name what they are made of, each (R,)."""

    reward: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class LinearHead(nn.Module):
    """One number: the weights' product with the hidden state."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(1, config.width))

    def forward(self, last: Tensor, prompt: Tensor) -> Scores:
        """`last` and `prompt` (R, H); the prompt's is not looked at."""
        return Scores(F.linear(last, self.weight)[:, 0])


class OrdinalHead(nn.Module):
    """A number and increasing thresholds on it: P(rating > k) = sigmoid(reward - threshold k)."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(1, config.width))
        self.first = nn.Parameter(torch.zeros(1))
        # L levels have L - 1 thresholds: the first one and L - 2 steps up.
        self.steps = nn.Parameter(torch.zeros(len(config.levels) - 2))

    def thresholds(self) -> Tensor:
        """(L - 1,) increasing."""
        return torch.cat([self.first, self.first + F.softplus(self.steps).cumsum(0)])

    def forward(self, last: Tensor, prompt: Tensor) -> Scores:
        """`last` and `prompt` (R, H). The parts are each level's probability and the expected
        rating."""
        reward = F.linear(last, self.weight)[:, 0]
        above = torch.sigmoid(reward[:, None] - self.thresholds())  # [rewards, levels - 1]
        # P(level k) = P(rating > k - 1) - P(rating > k), which are 1 and 0 at the ends.
        ends = reward.new_ones(len(reward), 1), reward.new_zeros(len(reward), 1)
        probs = torch.cat([ends[0], above], 1) - torch.cat([above, ends[1]], 1)  # [rewards, levels]
        values = torch.tensor(self.config.levels, dtype=reward.dtype, device=reward.device)
        named = {f"rating/{v:g}": probs[:, k] for k, v in enumerate(self.config.levels)}
        return Scores(reward, {"rating": probs @ values, **named})


class GatedHead(nn.Module):
    """Several objectives, each a number or Q quantiles, mixed by a gate that sees the prompt
    (ArmoRM, arXiv 2406.12845; quantiles as in QRM, arXiv 2409.10164).

    The verbosity objective is subtracted from the others, `penalty` times, before the gate weighs
    them: the reward that is trained, evaluated and served is the debiased one.
    """

    penalty: Tensor

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        count = len(config.objectives)
        self.weight = nn.Parameter(torch.zeros(config.outputs, config.width))
        self.offset = nn.Parameter(torch.zeros(count, config.quantiles))  # [objectives, quantiles]
        # A buffer: it is fitted to data and not learned, and yet belongs to the state dict.
        self.register_buffer("penalty", torch.zeros(count))
        self.log_scale = nn.Parameter(torch.zeros(()))
        sizes = [config.width, *[config.gate_width] * config.gate_layers, count]
        self.gate = nn.ModuleList(
            [nn.Linear(a, b) for a, b in pairwise(sizes)] if config.gate_layers else []
        )

    def quantiles(self, last: Tensor) -> Tensor:
        """(R, K, Q) from `last` (R, H): never crossing, as each is the one before it and a step
        of 0 or more."""
        # [rewards, objectives, quantiles]
        raw = F.linear(last, self.weight).view(len(last), *self.offset.shape) + self.offset
        return torch.cat([raw[..., :1], F.softplus(raw[..., 1:])], -1).cumsum(-1)

    def debiased(self, last: Tensor) -> Tensor:
        """(R, K, Q): `quantiles` less the penalty times verbosity, whose own are 0."""
        values = self.quantiles(last)
        if self.config.verbosity is None:
            return values
        place = self.config.objectives.index(self.config.verbosity)
        # Penalties [k, 1] times the mean verbosity of each answer [r, 1, 1].
        taken = values - self.penalty[:, None] * values[:, place].mean(-1)[:, None, None]
        kept = torch.ones_like(self.penalty)
        kept[place] = 0.0
        debiased: Tensor = taken * kept[:, None]
        return debiased

    def objectives(self, last: Tensor) -> Tensor:
        """(R, K): each debiased objective as one number."""
        return self.averaged(self.debiased(last))

    def averaged(self, quantiles: Tensor) -> Tensor:
        """(R, K): the mean of the lowest of the quantiles (R, K, Q), as `risk` says."""
        lowest = max(1, round(self.config.risk * self.config.quantiles))
        return quantiles[..., :lowest].mean(-1)

    def weights(self, prompt: Tensor, dropout: float = 0.0) -> Tensor:
        """(R, K) of 0 or more that sum to the scale, from `prompt` (R, H) alone."""
        hidden = prompt
        for layer in self.gate[:-1]:
            # By the rate and not by the module's mode: a head is used in evaluation mode as well.
            hidden = F.dropout(F.relu(layer(hidden)), dropout, training=dropout > 0)
        if self.config.gate_layers:
            logits = self.gate[-1](hidden) / self.config.gate_temperature
        else:
            logits = prompt.new_zeros(len(prompt), len(self.config.objectives))
        if self.config.verbosity is not None:
            # Its debiased column is 0: weight on it would be lost.
            place = self.config.objectives.index(self.config.verbosity)
            logits = logits.index_fill(1, torch.tensor([place], device=logits.device), -torch.inf)
        return torch.softmax(logits, -1) * self.log_scale.exp()

    def forward(self, last: Tensor, prompt: Tensor) -> Scores:
        """`last` and `prompt` (R, H). The parts are what each objective adds to the reward, its
        weight, and with several quantiles those of the reward.

        The reward's quantiles are the weighted sums of the objectives': exact only if the
        objectives rise and fall together.
        """
        weights, values = self.weights(prompt), self.objectives(last)
        added = weights * values
        parts: dict[str, Tensor] = {}
        for k, name in enumerate(self.config.objectives):
            if name != self.config.verbosity:
                parts |= {f"objective/{name}": added[:, k], f"gate/{name}": weights[:, k]}
        count = self.config.quantiles
        if count > 1:
            mixed = (weights[..., None] * self.debiased(last)).sum(1)  # [rewards, quantiles]
            for q in range(count):
                parts[f"quantile/{(q + 1) / (count + 1):.3g}"] = mixed[:, q]
        return Scores(added.sum(1), parts)


Head = LinearHead | OrdinalHead | GatedHead
KINDS: dict[str, type[LinearHead] | type[OrdinalHead] | type[GatedHead]] = {
    "linear": LinearHead,
    "ordinal": OrdinalHead,
    "gated": GatedHead,
}


def make_head(config: HeadConfig) -> Head:
    """A head of this shape, its weights 0 but for the gate's."""
    return KINDS[config.kind](config)


def save_head(head: Head, folder: Path) -> None:
    """Write the head beside a checkpoint."""
    (folder / CONFIG).write_text(json.dumps(asdict(head.config), indent=1))
    # safetensors refuses tensors that are not contiguous.
    tensors = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)


def load_head(folder: Path) -> Head | None:
    """The head that lies beside a checkpoint, in fp32; None where it is one plain row of weights.

    Raises EngineError when its files are damaged or of another version.
    """
    path = folder / CONFIG
    if not path.exists():
        return None
    with explain_library(f"{path}: this reward head cannot be read", EngineError):
        row = json.loads(path.read_text())
        # JSON has lists where the config has tuples.
        lists = {key: tuple(row[key]) for key in ("objectives", "levels")}
        head = make_head(HeadConfig(**{**row, **lists}))
        head.load_state_dict(load_file(folder / WEIGHTS))
    return head.eval()
