"""How far a change of the constitution reaches into a run: what is judged again, what flips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlaif.changes import changes, stale
from rlaif.compare.bootstrap import show_interval
from rlaif.config import load_experiment
from rlaif.constitution import Constitution
from rlaif.errors import ConfigError
from rlaif.judges.build import build_judge
from rlaif.runs import Run
from rlaif.whatif import Effect, effect, load_pairings, principle_weights, run_constitution


@dataclass(frozen=True, slots=True)
class JudgeReach:
    """One judge of the run. `kept`: its stored judgements are found again by the same experiment;
    otherwise all are asked again, though `unchanged` of them are about principles that stay as they
    are. `fault` says why the judge cannot be built: the new constitution lacks what it asks about,
    or a file that the experiment names is no longer there."""

    judge: str
    kept: bool
    judgements: int
    unchanged: int
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """`effect` is that of new weights and removed principles, by stored judgements: it needs no
    model. The principles in `unknown` are new or changed: what they will say is not in it.
    `same_start`: the run used the constitution that the change starts from."""

    judges: tuple[JudgeReach, ...]
    effect: Effect
    unknown: tuple[str, ...]
    same_start: bool

    def lines(self) -> Iterator[str]:
        """For people, a line each."""
        if not self.same_start:
            yield "the run did not use the first constitution; what follows starts from its own"
        for judge in self.judges:
            if judge.fault is not None:
                yield f"{judge.judge}: cannot be built from here: {judge.fault}"
            elif judge.kept:
                yield f"{judge.judge}: {judge.judgements} judgements kept"
            else:
                yield (
                    f"{judge.judge}: {judge.judgements} judgements asked again "
                    f"({judge.unchanged} of them about principles that did not change)"
                )
        found = self.effect
        rate = "" if found.flip_rate is None else show_interval(found.flip_rate.to_json())
        yield (
            f"of {found.preferences} preferences {found.flipped} flip, {found.tied} become ties, "
            f"{found.missing} lose a score; flip rate {rate}"
        )
        if found.other_pairs is not None:
            shown = show_interval(found.other_pairs.to_json())
            yield f"share of prompts that get other pairs: {shown}"
        if self.unknown:
            yield f"not in these figures, since a judge has to say: {', '.join(self.unknown)}"


def reach(run: Run, before: Constitution, after: Constitution, seed: int = 0) -> Reach:
    """What going from `before` to `after` does to a run. Raises ConfigError when the run has no
    constitution or no finished pairs made from judgements."""
    own = run_constitution(run)
    found = changes(own, after)
    unknown = stale(found)
    known = {p.id for p in own.principles}
    old, new = principle_weights(own), principle_weights(after)
    weights = {name: new.get(name, 0.0) for name in old}
    return Reach(
        tuple(_judges(run, after, (known - unknown) & set(new))),
        effect(load_pairings(run), old, weights, seed),
        tuple(p.id for p in after.principles if p.id in unknown),
        not changes(own, before),
    )


def _judges(run: Run, after: Constitution, unchanged: set[str]) -> Iterator[JudgeReach]:
    experiment, _ = load_experiment(run.root / "config.yaml")
    # Files that the experiment names are looked for beside it; an older run does not say where.
    beside = run.root / run.manifest.get("experiment_path", run.manifest["experiment"])
    rows: dict[str, dict[str, str | None]] = {name: {} for name in run.manifest["judges"]}
    for row in run.rows("judgements"):
        rows.setdefault(row["judge"], {})[row["judgement_id"]] = row["principle"]
    for name, spec in experiment.all_judges().items():
        stored = rows.get(name, {})
        same = sum(p is None or p in unchanged for p in stored.values())
        try:
            judge = build_judge(spec, after, beside)
            kept = judge.judge_hash == run.manifest["judges"][name]
        except ConfigError as error:
            yield JudgeReach(name, False, len(stored), same, str(error))
            continue
        yield JudgeReach(name, kept, len(stored), same)
