"""What a plan does as a graph: its steps, grouped over rounds, seeds and arms, and what passes
between them. Text, Mermaid and the picture are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Node:
    """A step of the file. `lines` say what it does in few words, `models` which models it uses and
    makes, `settings` its other keys, each as text, and `reads` what it reads. `arms` are those that
    have it, `some_arms` whether they are not all, `apart` whether each of them runs it for itself.
    `rounds` are those of its stage in which it runs, empty where it runs in all, and `unused` says
    what of it nothing uses."""

    name: str
    stage: str
    kind: str
    id: str
    lines: tuple[str, ...]
    models: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    rounds: str = ""
    arms: tuple[str, ...] = ()
    some_arms: bool = False
    apart: bool = False
    makes_model: bool = False
    unused: str = ""

    @property
    def title(self) -> str:
        """Its kind and id, which are often the same word."""
        return self.id if self.id == self.kind else f"{self.kind} {self.id}"

    @property
    def arm_words(self) -> str:
        """The arms that have it, where that is not one run for all."""
        if self.some_arms:
            return ("arm " if len(self.arms) == 1 else "arms ") + ", ".join(self.arms)
        return "once in each arm" if self.apart else ""


@dataclass(frozen=True, slots=True)
class Edge:
    """Something that passes from one node to another, by their names: `what` are records, or the
    roles of a model (`model`). `back`: it is of an earlier round than its reader."""

    source: str
    target: str
    what: str
    model: bool = False
    back: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage, its number of rounds, and its nodes in the order of the steps."""

    id: str
    rounds: int
    nodes: tuple[Node, ...]

    @property
    def heading(self) -> str:
        """Its id, but for the one stage of a file without `stages`, and its rounds."""
        rounds = "one round" if self.rounds == 1 else f"{self.rounds} rounds"
        return rounds if self.id == "main" else f"{self.id}: {rounds}"


@dataclass(frozen=True, slots=True)
class Flow:
    """The graph of a plan or a run. `facts` are what it works with, lines under a heading each
    (prompts, models, judges, arms, seeds); `unused` says what is made or given and thrown away."""

    name: str
    stages: tuple[Stage, ...]
    edges: tuple[Edge, ...]
    facts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Those of all stages."""
        return tuple(node for stage in self.stages for node in stage.nodes)

    @property
    def forward(self) -> list[Edge]:
        """The edges within a round, and from stage to stage."""
        return [edge for edge in self.edges if not edge.back]

    @property
    def returning(self) -> list[Edge]:
        """One edge for all that a node gives to the next round, to the first node that uses it."""
        order = {node.name: place for place, node in enumerate(self.nodes)}
        found: dict[str, list[Edge]] = {}
        for edge in self.edges:
            if edge.back:
                found.setdefault(edge.source, []).append(edge)
        joined = []
        for source, edges in found.items():
            first = min(edges, key=lambda edge: order[edge.target])
            whats = ["the model" for edge in edges if edge.model][:1]
            whats += [what for edge in edges if not edge.model for what in edge.what.split(", ")]
            model = any(edge.model for edge in edges)
            what = f"{', '.join(dict.fromkeys(whats))}, in the next round"
            joined.append(Edge(source, first.target, what, model, True))
        return joined


def rounds_in_words(numbers: set[int]) -> str:
    """Rounds as ranges: "round 2", "rounds 1-3, 5"."""
    ordered = sorted(numbers)
    starts = [n for n in ordered if n - 1 not in numbers]
    ends = [n for n in ordered if n + 1 not in numbers]
    parts = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return ("round " if len(numbers) == 1 else "rounds ") + ", ".join(parts)
