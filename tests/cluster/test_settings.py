"""How many actors a model gets, and what each holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlaif.cluster.settings import Actors, ClusterSettings, Node, plan_actors
from rlaif.config.models import ModelSpec

HF = ModelSpec(path="m")
CPU = ModelSpec(path="m", device="cpu")
FAKE = ModelSpec(path="none", engine="fake")
WIDE = ModelSpec(path="m", engine="vllm", engine_args={"tensor_parallel_size": 4})
PLAIN = ClusterSettings()
HEAD, SMALL, LARGE, GPUS = Node(0, 0), Node(2, 0), Node(8, 0), Node(16, 8)


@pytest.mark.parametrize(
    ("spec", "nodes", "settings", "actors"),
    [
        # Without GPUs: one on each node that has CPUs, as large as the smallest of them.
        (HF, [HEAD, SMALL, LARGE], PLAIN, Actors(2, 2, 0)),
        (HF, [HEAD], PLAIN, Actors(1, 1, 0)),
        # A GPU each, on every node that has some.
        (HF, [HEAD, GPUS, GPUS], PLAIN, Actors(16, 1, 1)),
        (WIDE, [SMALL, GPUS, GPUS], PLAIN, Actors(4, 1, 4)),
        # An actor is on one node: what is left of two of them makes none.
        (WIDE, [Node(16, 6), Node(16, 6)], PLAIN, Actors(2, 1, 4)),
        (HF, [Node(1, 0), LARGE], PLAIN, Actors(2, 1, 0)),
        (CPU, [GPUS], PLAIN, Actors(1, 16, 0)),
        (FAKE, [GPUS], PLAIN, Actors(1, 16, 0)),
        # What is stated stands, and the rest follows from it.
        (HF, [GPUS], ClusterSettings(gpus=0.5), Actors(16, 1, 0.5)),
        (HF, [GPUS], ClusterSettings(gpus=0, cpus=4), Actors(1, 4, 0)),
        (HF, [GPUS, GPUS], ClusterSettings(actors=3), Actors(3, 1, 1)),
        # More than any node has: one that waits for such a node.
        (WIDE, [Node(16, 2)], PLAIN, Actors(1, 1, 4)),
    ],
)
def test_actors_by_nodes(
    spec: ModelSpec, nodes: list[Node], settings: ClusterSettings, actors: Actors
) -> None:
    assert plan_actors(spec, nodes, settings) == actors
    assert plan_actors(spec, nodes, replace(settings, in_flight=9)) == actors
