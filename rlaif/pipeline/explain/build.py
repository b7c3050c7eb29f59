"""From the steps of a plan or a run to a `Flow`: steps of the file, grouped over rounds, seeds and
the arms that do the same in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rlaif.pipeline.explain.groups import (
    Group,
    Key,
    by_round,
    describe_counts,
    describe_models,
    in_parentheses,
    name_models,
    name_role,
)
from rlaif.pipeline.explain.rows import Row
from rlaif.pipeline.steps.choose import ROUND
from rlaif.report.flow import Edge, Flow, Node, Stage, rounds_in_words

EARLIER = " of earlier rounds too"
"""Said of records that a step reads of rounds before its own besides those of its own."""


def make_flow(
    name: str,
    rows: Sequence[Row],
    facts: Mapping[str, tuple[str, ...]],
    unused: Sequence[str] = (),
    kept: Collection[str] = (),
    planned: bool = False,
) -> Flow:
    """The graph of `rows`. `facts` and `unused` are lines of what stands outside the steps, and
    `kept` names the kinds or ids of steps whose records are wanted for themselves; `planned`: the
    counts are the most that there may be, not what was made."""
    return _Builder(rows, kept, planned).make(name, dict(facts), tuple(unused))


class _Builder:
    """The rows by hash, and the groups that they belong to."""

    def __init__(self, rows: Sequence[Row], kept: Collection[str], planned: bool):
        self.kept, self.planned = frozenset(kept), planned
        self.rows = {row.hash: row for row in rows}
        self.arms = tuple(dict.fromkeys(arm for row in rows for arm in row.arms))
        owners = {row.owner: row for row in reversed(rows) if not row.helps}
        self.keys = {row.hash: _key_of(row, owners) for row in rows if row.owner in owners}
        policies = {
            (row.seed, arm): row.hash
            for row in rows
            for arm in row.arms
            if row.kind in ("train", "choose", "average")
        }
        self.last = set(policies.values())
        self.order = _find_order(rows, self.keys, self.arms)
        self.groups = self._find_groups()
        self.of: dict[str, list[Group]] = defaultdict(list)
        for group in self.groups:
            for row in group.rows:
                self.of[row.hash].append(group)

    def make(self, name: str, facts: dict[str, tuple[str, ...]], unused: tuple[str, ...]) -> Flow:
        """See `make_flow`."""
        edges = self._find_edges()
        read = self._find_read()
        stages = []
        for stage in dict.fromkeys(group.key[0] for group in self.groups):
            own = [group for group in self.groups if group.key[0] == stage]
            numbers = {row.number for group in own for row in group.rows if row.number > 0}
            nodes = tuple(self._make_node(group, numbers, edges, read) for group in own)
            stages.append(Stage(stage, len(numbers) or 1, nodes))
        thrown = [
            f"{node.title}{in_parentheses(node.arm_words)}: {node.unused}"
            for stage in stages
            for node in stage.nodes
            if node.unused
        ]
        shared = self._describe_arms([node for stage in stages for node in stage.nodes])
        if shared:
            facts["Arms"] = (*facts.pop("Arms", ()), *shared)
        return Flow(name, tuple(stages), tuple(edges), facts, (*unused, *thrown))

    def _describe_arms(self, nodes: Sequence[Node]) -> list[str]:
        """What the arms share, and what each has for itself."""
        if len(self.arms) < 2:
            return []
        alone: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for arm in self.arms:
            titles = tuple(node.title for node in nodes if node.some_arms and arm in node.arms)
            alone[titles].append(arm)
        shared = [node.title for node in nodes if not node.some_arms and not node.apart]
        apart = [node.title for node in nodes if not node.some_arms and node.apart]
        lines = [
            f"{', '.join(own)}: {', '.join(titles)} of {who} own"
            for titles, own in alone.items()
            if titles
            for who in ["its" if len(own) == 1 else "their"]
        ]
        lines += [f"once for all: {', '.join(shared)}"] if shared else []
        lines += [f"alike, once in each: {', '.join(apart)}"] if apart else []
        return lines

    def _find_groups(self) -> list[Group]:
        """One group for each step of the file and the arms that do the same in it."""
        own = [row for row in self.rows.values() if row.hash in self.keys and not row.helps]
        found: dict[tuple[Key, Any], Group] = {}
        for key in sorted(dict.fromkeys(self.keys[row.hash] for row in own), key=self.order.get):  # type: ignore[arg-type]
            mine = [row for row in own if self.keys[row.hash] == key]
            alike: dict[Any, list[str]] = defaultdict(list)
            for arm in self.arms:
                if does := self._what_it_does([row for row in mine if arm in row.arms]):
                    alike[does].append(arm)
            for does, arms in alike.items():
                rows = [row for row in mine if set(arms) & set(row.arms)]
                found[key, does] = Group(key, tuple(arms), rows)
        for row in self.rows.values():
            if row.helps and row.hash in self.keys:
                for group in found.values():
                    if group.key == self.keys[row.hash] and set(group.arms) & set(row.arms):
                        group.helpers.append(row)
        groups = list(found.values())
        for number, group in enumerate(groups, 1):
            group.name = f"n{number}"
        return groups

    def _what_it_does(self, rows: Sequence[Row]) -> Any:
        """What tells an arm's rows of a step from those of another arm: what they do in each round,
        and the names of the steps and models that they use. The same for all seeds."""
        return tuple(
            dict.fromkeys(
                (
                    row.number,
                    row.id,
                    row.does,
                    row.settings,
                    tuple(sorted((name, self._name_of(h)) for name, h in row.inputs.items())),
                    tuple(sorted((role, self._model_of(row, role)) for role in row.models)),
                )
                for row in sorted(rows, key=lambda row: (row.seed, row.round))
            )
        )

    def _name_of(self, digest: str | None) -> str:
        row = self.rows.get(digest or "")
        return f"{row.stage}/{row.id}@{row.number}" if row is not None else ""

    def _model_of(self, row: Row, role: str) -> str:
        return self._name_of(row.maker(role)) or row.models[role][0]

    def _find_edges(self) -> list[Edge]:
        found: dict[tuple[str, str, bool, bool], dict[str, None]] = defaultdict(dict)
        for group in self.groups:
            for row in (*group.rows, *group.helpers):
                for digest, what, model in self._sources(row):
                    for source in self.of.get(digest, ()):
                        # Of its own the group reads what it made in a round before.
                        if set(source.arms) & set(group.arms) and digest != row.hash:
                            back = self.order[source.key] >= self.order[group.key]
                            early = source.key[0] == group.key[0] and not (model or back)
                            early = early and self.rows[digest].round < row.round
                            said = f"{what}{EARLIER * early}"
                            found[source.name, group.name, model, back][said] = None
        return [
            Edge(source, target, _join_whats(whats), model, back)
            for (source, target, model, back), whats in found.items()
        ]

    def _sources(self, row: Row) -> Iterable[tuple[str, str, bool]]:
        """Hash, kind and whether it is a model, of what a row reads of other steps of the file."""
        kinds = {name.partition("/")[0] for name in row.inputs}
        # The kinds that a filter only carries on.
        below = {"preferences": {"completions", "judgements"}, "judgements": {"completions"}}
        filtered = next((kind for kind in below if kind in kinds), "")
        for name, digest in row.inputs.items():
            head = name.partition("/")[0]
            source = self.rows.get(digest)
            # An evaluation also looks at its round's records, and a filter carries on what they
            # were made of: nothing of these is changed or learned from.
            carried = row.kind == "filter" and head in below.get(filtered, ())
            if source is None or source.helps or row.kind in ("evaluate", "compare") or carried:
                continue
            yield digest, _NAMES.get(head, head), False
        for role in row.models:
            maker = row.maker(role)
            if maker is None or role == "made" or ".drift." in row.id:
                continue
            if row.helps:
                what = "evaluated" if row.kind == "sample" else "judge"
                # What a soup is made of, the average itself is made of too.
                if row.kind in ("logprobs", "average"):
                    continue
            else:
                what = {"policy": "evaluated"}.get(role, name_role(role))
                what = "to choose from" if role.startswith(ROUND) else what
            yield maker, what, True

    def _find_read(self) -> set[str]:
        """The hashes of what some step learns from, judges, or is measured on."""
        return {digest for row in self.rows.values() for digest, _, _ in self._sources(row)}

    def _make_node(
        self, group: Group, numbers: set[int], edges: Sequence[Edge], read: set[str]
    ) -> Node:
        stage, kind, name = group.key
        own = {row.number for row in group.rows if row.number > 0}
        some = set(group.arms) < set(self.arms)
        shared = all(set(group.arms) <= set(row.arms) for row in group.rows)
        titles = {g.name: g.key[2] for g in self.groups}
        settings = list(by_round(group, own, lambda row: row.settings))
        # What tells arms apart is said with what they do.
        others = [g for g in self.groups if g.key == group.key]
        alike = set.intersection(*({s for r in g.rows for s in r.settings} for g in others))
        apart = [text for text in settings if len(others) > 1 and text not in alike]
        reads = [
            f"{titles[e.source]}{' of the round before' if e.back else ''} ({e.what})"
            for e in edges
            if e.target == group.name and not e.model
        ]
        return Node(
            name=group.name,
            stage=stage,
            kind=kind,
            id=name,
            lines=(*self._describe(group, own), *apart),
            models=tuple(self._describe_models(group)),
            settings=tuple(text for text in settings if text not in apart),
            reads=tuple(dict.fromkeys(reads)),
            rounds=rounds_in_words(own) if own and own != numbers else "",
            arms=group.arms,
            some_arms=some,
            apart=len(group.arms) > 1 and not shared,
            makes_model=any("made" in row.models for row in group.rows),
            unused=self._find_unused(group, own, read),
        )

    def _describe(self, group: Group, own: set[int]) -> Iterable[str]:
        """What the node says of itself."""
        pool = {row.id for row in group.rows if "/" in row.id}
        if pool:
            yield f"a pool of {len(pool)} generators"
        else:
            yield from by_round(group, own, lambda row: row.does)
        yield from describe_counts(group, self.planned)
        if any(row.kind == "compare" for row in group.helpers):
            yield "the arms beside one another"

    def _describe_models(self, group: Group) -> Iterable[str]:
        kind = group.key[1]
        if kind == "evaluate":
            yield from self._describe_evaluation(group)
            return
        yield from describe_models(group)

    def _describe_evaluation(self, group: Group) -> Iterable[str]:
        """Which models are measured, against which others, and by which judges."""
        against: dict[str, list[str]] = {}
        for row in sorted(group.rows, key=lambda row: row.round):
            others = against.setdefault(row.models["policy"][0], [])
            for name, digest in row.inputs.items():
                # Such as initial/completions, against/sft/completions and initial/SET:completions.
                is_answers = name.rpartition("/")[2].rpartition(":")[2] == "completions"
                if is_answers and not name.startswith("train/") and digest in self.rows:
                    others.append(self.rows[digest].models["by"][0])
        for model, others in against.items():
            rest = [label for label in dict.fromkeys(others) if label != model]
            together = " and ".join(filter(None, [", ".join(rest[:-1]), *rest[-1:]]))
            yield f"measures {model}" + (f" against {together}" if rest else "")
        judges: dict[str, list[str]] = {}
        for row in group.helpers:
            name = row.id.split(".")[1]
            if row.kind == "judge" and name not in ("drift", "pairs"):
                judges.setdefault(name, []).extend(label for label, _ in row.models.values())
        if judges:
            named = [f"{n}{in_parentheses(name_models(by, 'and'))}" for n, by in judges.items()]
            yield f"judged by {', '.join(named)}"

    def _find_unused(self, group: Group, own: set[int], read: set[str]) -> str:
        """What of the node no other step uses. An evaluation is there for itself, and so is the
        last policy."""
        if {"evaluate", "bench", "arena", *self.kept} & set(group.key[1:]):
            return ""
        wanted = read | self.last
        used = {row.round for row in group.rows if row.hash in wanted}
        idle = {row.number for row in group.rows if row.round not in used and row.number > 0}
        if not idle:
            return ""
        where = "" if idle == own else f" in {rounds_in_words(idle)}"
        return f"no step uses it{where}"


_NAMES = {"initial": "judgements", "scores": "judgements"}
"""What an edge is called that goes by another name among a step's inputs."""


def _key_of(row: Row, owners: Mapping[str, Row]) -> Key:
    """The step of the file that a row belongs to: what an evaluation has planned is of its kind."""
    of = owners[row.owner] if row.helps else row
    return of.stage, of.kind, of.owner


def _find_order(
    rows: Sequence[Row], keys: Mapping[str, Key], arms: Sequence[str]
) -> dict[Key, tuple[int, int]]:
    """The places of the file's steps: the first round of their stage, then where they come among an
    arm's own steps. What arms have alone stands beside one another."""
    stages: dict[str, int] = {}
    for row in rows:
        if row.number > 0:
            stages[row.stage] = min(stages.get(row.stage, row.round), row.round)
    found: dict[Key, tuple[int, int]] = {}
    for arm in arms:
        # M0 is evaluated before the first round.
        mine = [r for r in rows if arm in r.arms and not r.helps and r.hash in keys]
        mine.sort(key=lambda row: row.number == 0)
        for place, key in enumerate(dict.fromkeys(keys[row.hash] for row in mine)):
            here = (stages.get(key[0], 0), place)
            found[key] = max(found.get(key, here), here)
    return found


def _join_whats(whats: Iterable[str]) -> str:
    """Each kind once, in its longer form."""
    names = list(dict.fromkeys(whats))
    return ", ".join(name for name in names if name + EARLIER not in names)
