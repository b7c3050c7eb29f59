"""Principle weights fitted to people's labels: on a run's own answers, or on any labelled pairs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from rlaif.analysis.whatif import Pairing, find_labelled
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.groups import group_by
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Judgement
from rlaif.core.store import Store
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Model
from rlaif.judges.base import Judge
from rlaif.judges.build import build_judge
from rlaif.judges.common import JudgeBase
from rlaif.judges.pairwise import PairwiseJudge
from rlaif.judges.rating import RatingJudge
from rlaif.judges.rules import RulesJudge
from rlaif.judges.yes_no import YesNoJudge
from rlaif.metrics.votes import VotedPair, WeightFit, fit_weights, principle_votes
from rlaif.pipeline.constitutions import judges_constitutions, run_constitution
from rlaif.pipeline.runs import Run
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import Engines, Progress
from rlaif.pipeline.steps.judge import judge_labelled

TEXT_JUDGES: dict[str, type[YesNoJudge | PairwiseJudge | RatingJudge]] = {
    "yes_no": YesNoJudge,
    "pairwise": PairwiseJudge,
    "rating": RatingJudge,
}


def fitted_constitution(
    run: Run, judges: Sequence[str] = (), arm: str | None = None
) -> Constitution:
    """The constitution whose weights the votes of `judges` fit; where none are named, the run's, or
    the arm's. Raises ConfigError for judges of several constitutions."""
    apart = judges_constitutions(run, arm)
    if not judges:
        return run_constitution(run, arm)
    named = [apart[name] if name in apart else run_constitution(run, arm) for name in judges]
    if any(own != named[0] for own in named):
        raise ConfigError(
            f"the judges {', '.join(judges)} judge by several constitutions, and the weights of "
            "one are fitted; name judges of one of them",
            run.root,
        )
    return named[0]


def run_votes(
    pairings: Sequence[Pairing],
    labels: Iterable[LabelledPair],
    judges: Sequence[str] = (),
    apart: Collection[str] = (),
) -> tuple[list[VotedPair], int]:
    """The votes of a run's principles on the labelled pairs among its answers, from stored
    judgements, and how many labelled pairs are about other answers. `judges` are those that count,
    all that the pairs were made by when it is empty, but those in `apart`, which judge by another
    constitution."""
    voted = []
    labelled, strange = find_labelled(pairings, labels)
    for found in labelled:
        pairing = pairings[found.pairing]
        counted = list(judges) or [name for name in pairing.counted() if name not in apart]
        rows = {name: pairing.judgements[name] for name in _check_names(counted, pairing)}
        votes = one_vote_each(
            {
                judge: principle_votes(groups.get(found.prompt_id, []), found.first, found.second)
                for judge, groups in rows.items()
            }
        )
        voted.append(VotedPair(found.prompt_id, votes, found.label))
    return voted, strange


def _check_names(names: Sequence[str], pairing: Pairing) -> Sequence[str]:
    for name in names:
        if name not in pairing.judgements:
            hint = suggest(name, list(pairing.judgements))
            raise ConfigError(f"the pairs of this run were made by no judge {name!r}{hint}")
    return names


def one_vote_each(by_judge: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """The judges' votes together. Raises ConfigError where two judged the same principle."""
    votes: dict[str, float | None] = {}
    whose: dict[str, str] = {}
    for judge, row in by_judge.items():
        for principle, value in row.items():
            if principle in whose:
                raise ConfigError(
                    f"principle {principle!r} is judged by {whose[principle]!r} and by {judge!r}, "
                    "and has one weight; name the judge that counts with --judge"
                )
            votes[principle], whose[principle] = value, judge
    return votes


def judges_of(constitution: Constitution, kind: str) -> list[Judge]:
    """The judges that can say something about a constitution: its checks' programs, and one of
    `kind` (a key of `TEXT_JUDGES`) for the texts that no program checks."""
    specs: list[JudgeBase] = []
    if any(p.check for p in constitution.principles):
        specs.append(RulesJudge(kind="rules", id="checks"))
    if any(p.text and p.check is None for p in constitution.principles):
        specs.append(TEXT_JUDGES[kind].model_validate({"kind": kind, "id": "model"}))
    return [build_judge(spec, constitution) for spec in specs]


def pair_votes(
    pairs: Sequence[LabelledPair],
    judges: Sequence[Judge],
    model: Model | None,
    engines: Engines,
    store: Store,
    progress: Progress,
    seed: int,
) -> list[VotedPair]:
    """The votes on labelled pairs, which are judged now; what is stored is not asked again."""
    ids = sorted({pair.pair_id for pair in pairs})
    groups: dict[str, dict[str, list[Judgement]]] = {}
    for judge in judges:
        identity = model.identity() if model is not None and judge.needs else None
        folder = store.step(step_hash("judge", "judged", judge.judge_hash, identity, ids, seed))
        rows = judge_labelled(judge, model, engines, pairs, folder, progress, seed)
        groups[judge.id] = group_by(rows, lambda j: j.prompt_id)
    voted = []
    for pair in (p for p in pairs if p.label is not None):
        prompt_id, first, second = pair.prompt.prompt_id, pair.first, pair.second
        votes = {
            judge: principle_votes(
                rows.get(prompt_id, []), first.completion_id, second.completion_id
            )
            for judge, rows in groups.items()
        }
        voted.append(VotedPair(prompt_id, one_vote_each(votes), pair.label or 0.0))
    return voted


def fitted(
    pairs: Sequence[VotedPair], constitution: Constitution, folds: int = 5, seed: int = 0
) -> WeightFit:
    """`compare.votes.fit_weights` for a constitution; what it cannot fit is a ConfigError."""
    current = {p.id: p.weight for p in constitution.principles}
    whole = [p for p in pairs if None not in p.votes.values()]
    prompts = {p.prompt_id for p in whole}
    if len(prompts) < folds:
        raise ConfigError(
            f"labelled pairs of {len(prompts)} prompts have every vote, and --folds {folds} needs "
            f"at least {folds}; label more pairs"
        )
    if not any(vote for pair in whole for name, vote in pair.votes.items() if name in current):
        raise ConfigError(
            f"no principle tells any of the {len(whole)} labelled pairs apart that have every vote "
            f"({len(pairs) - len(whole)} lack one); nothing to fit"
        )
    return fit_weights(pairs, current, folds, seed)
