"""An engine that takes weights in place, for tests where vLLM is not installed."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from rlaif.config.models import ModelSpec
from rlaif.engines.base import ModelWeights
from rlaif.engines.local import hf
from rlaif.engines.local.hf import HfEngine
from rlaif.engines.local.weights import Weights

events: list[str] = []
"""What happened to the engines, in order."""


def load(spec: ModelSpec, folder: Path, name: str) -> Reloadable:
    """Stands in for `rlaif.engines.vllm.vllm.load`."""
    events.append("start")
    engine = hf.load(spec, folder, name)
    return Reloadable(engine.weights, engine.encoding, spec)


class Reloadable(HfEngine):
    """The in-process engine, with weights from a file."""

    def load_weights(self, weights: ModelWeights, digest: str) -> None:
        lacking, unknown = self.model.load_state_dict(
            load_file(weights.write() / "model.safetensors"), strict=False
        )
        assert not unknown and set(lacking) <= {"lm_head.weight"}
        self.weights = Weights(self.model, digest)
        self.weights_hash = digest
        events.append(f"weights {digest}")

    def rest(self, processes: int = 1) -> bool:
        events.append("rest")
        return True

    def close(self) -> None:
        events.append("close")
        super().close()
