"""Models head to head: by judges and by people, directly where the two met, else against the same
third; and the arms of runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations, product
from statistics import fmean
from typing import Any

import numpy as np

from rlaif.analysis.comparison.gather import Gathered, SourceKey
from rlaif.analysis.comparison.pairs import name_sources
from rlaif.config.arms import HUMAN, MAIN
from rlaif.core.groups import group_by
from rlaif.core.records import Judgement
from rlaif.metrics.claims import find_claims
from rlaif.metrics.intervals import IntervalJson, paired_interval, share_interval
from rlaif.metrics.length_control import length_controlled
from rlaif.metrics.metrics import Values, per_prompt
from rlaif.metrics.pooled import seeds_interval
from rlaif.metrics.winrate import Battle
from rlaif.pipeline.labelling import labelling_rows
from rlaif.pipeline.runs import Run
from rlaif.pipeline.steps.evaluate import OF_SET
from rlaif.preferences.aggregate import candidate_scores, pair_probability, weights_of
from rlaif.report.arms import difference_tables, mark_judges
from rlaif.report.labels import curves_json, find_curves
from rlaif.report.view import ArmRow

FEW_MODELS = 4
"""Of no more models than these, length is controlled in every head to head."""
OPPOSITE = {"longer": "shorter", "shorter": "longer"}
"""What a note says of the lengths where the models stand in the other order."""
NOT_CONTROLLED = {"equal": None, "equal_note": "not asked about"}

Between = Sequence[tuple[str, str]]
Wins = dict[tuple[str, str], Values]
"""By two models, the first's name before the second's, how far the second won each prompt."""


def contest_rows(gathered: Gathered, between: Between) -> list[dict[str, Any]]:
    """A row for every two models that a source compares.

    `difference` is how far the second is ahead: of win rates against `opponent` where both met it,
    of its win rate over one half where they met each other (`opponent` is None). `won` is the share
    of prompts that the second won, and `equal` the same at equal length. `between` are the pairs
    that were asked about; of the others `standing` says which stand out.
    """
    names = name_sources(gathered)
    asked = {frozenset(two) for two in between}
    rows = [
        {"by": names[key], "role": "people" if key.kind == "human" else "judge", **row}
        for key, battles in _collect_battles(gathered).items()
        for row in _rows_of_source(battles, asked)
    ]
    for row in rows:
        order = next((two for two in between if set(two) == {row["first"], row["second"]}), None)
        if order is not None and order[0] == row["second"]:
            _turn_round(row)
    return _mark_standing(rows)


def _collect_battles(gathered: Gathered) -> dict[SourceKey, list[Battle]]:
    found: dict[SourceKey, list[Battle]] = defaultdict(list)
    for key, battles in gathered.battles.items():
        found[key] += battles
    authored = {name: text for name, text in gathered.texts.items() if text.author is not None}
    for key, judgements in gathered.judgements.items():
        own = [j for j in judgements if all(name in authored for name in j.shown)]
        for prompt_id, rows in group_by(own, lambda j: j.prompt_id).items():
            found[key] += _battles_of_prompt(gathered, key, prompt_id, rows)
    return {key: battles for key, battles in found.items() if battles}


def _battles_of_prompt(
    gathered: Gathered, key: SourceKey, prompt_id: str, rows: Sequence[Judgement]
) -> Iterator[Battle]:
    """Each two answers of different models: by the comparison of both where there is one, else by
    which has the higher score."""
    weights = weights_of(key.name, gathered.weights.get(key, {}))
    alone = [j for j in rows if len(j.shown) == 1]
    scores = candidate_scores(alone, weights, renormalise=True)
    together = group_by((j for j in rows if len(j.shown) == 2), lambda j: frozenset(j.shown))
    seen = sorted({name for j in rows for name in j.shown}, key=lambda n: (_author(gathered, n), n))
    for first, second in combinations(seen, 2):
        if _author(gathered, first) == _author(gathered, second):
            continue
        met = together.get(frozenset((first, second)))
        one, other = scores.get(first), scores.get(second)
        if met is not None:
            prob = pair_probability(met, second)
        elif one is not None and other is not None:
            prob = (1 + (other > one) - (other < one)) / 2
        else:
            continue
        sides = [gathered.texts[name] for name in (first, second)]
        yield Battle(
            prompt_id,
            _author(gathered, first),
            _author(gathered, second),
            prob,
            (len(sides[0].text), len(sides[1].text)),
            (first, second),
        )


def _author(gathered: Gathered, name: str) -> str:
    return gathered.texts[name].author or ""


def _rows_of_source(
    battles: Sequence[Battle], asked: Collection[frozenset[str]]
) -> Iterator[dict[str, Any]]:
    wins, lengths = _win_values(battles), _mean_lengths(battles)
    models = sorted({name for two in wins for name in two})
    for first, second in combinations(models, 2):
        met = _met_directly(wins, first, second) or _met_third(wins, models, first, second)
        if met is not None:
            row, shares = met
            is_asked = frozenset((first, second)) in asked
            about = _length_row(first, second, shares, lengths)
            # The control of length takes a second or so, and dozens of pairs were not asked about.
            control = is_asked or len(models) <= FEW_MODELS
            equal = _control_length(shares, lengths, first, second) if control else NOT_CONTROLLED
            yield about | row | equal | {"asked": is_asked}


def _met_directly(wins: Wins, first: str, second: str) -> tuple[dict[str, Any], Values] | None:
    """The win rate of the second over the first, and its share of each prompt."""
    shares = wins.get((first, second), {})
    won = share_interval(shares, 0.5)
    if won is None:
        return None
    return {"opponent": None, "difference": less_half(won.to_json()), "won": won.to_json()}, shares


def _met_third(
    wins: Wins, models: Sequence[str], first: str, second: str
) -> tuple[dict[str, Any], Values] | None:
    """The two against the same third on the same prompts: the difference of their win rates."""
    for opponent in models:
        one, other = (_wins_over(wins, name, opponent) for name in (first, second))
        difference = paired_interval(other, one)
        shares = {p: (1 + (other[p] > one[p]) - (other[p] < one[p])) / 2 for p in one if p in other}
        won = share_interval(shares, 0.5)
        if difference is not None and won is not None:
            row = {"opponent": opponent, "difference": difference.to_json(), "won": won.to_json()}
            return row, shares
    return None


def _win_values(battles: Sequence[Battle]) -> Wins:
    found: dict[tuple[str, str], list[tuple[str, float | None]]] = defaultdict(list)
    for battle in battles:
        if battle.first != battle.second and battle.prob_second is not None:
            ahead = battle.first < battle.second
            two = (battle.first, battle.second) if ahead else (battle.second, battle.first)
            prob = battle.prob_second if ahead else 1 - battle.prob_second
            found[two].append((battle.prompt_id, prob))
    return {two: per_prompt(rows) for two, rows in found.items()}


def _mean_lengths(battles: Sequence[Battle]) -> dict[tuple[str, str], float]:
    """By model and prompt, the mean length of its answers in characters."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for battle in battles:
        for name, length in zip((battle.first, battle.second), battle.lengths, strict=True):
            if length is not None:
                found[name, battle.prompt_id].append(length)
    return {key: fmean(own) for key, own in found.items()}


def _wins_over(wins: Wins, model: str, opponent: str) -> Values:
    if (opponent, model) in wins:
        return wins[opponent, model]
    return {prompt: 1 - share for prompt, share in wins.get((model, opponent), {}).items()}


def less_half(share: IntervalJson) -> IntervalJson:
    """A win rate as how far it is above one half."""
    ends = {name: None if (end := share[name]) is None else end - 0.5 for name in ("low", "high")}
    return {**share, "mean": share["mean"] - 0.5, **ends}  # type: ignore[typeddict-item]


def _length_row(
    first: str, second: str, shares: Values, lengths: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
    """The two models and their mean lengths, None where they are not known."""
    sides = [[lengths[name, p] for p in shares if (name, p) in lengths] for name in (first, second)]
    means = [fmean(side) if side else None for side in sides]
    return {"first": first, "second": second, "prompts": len(shares), "lengths": means}


def _control_length(
    shares: Values, lengths: Mapping[tuple[str, str], float], first: str, second: str
) -> dict[str, Any]:
    """The share of prompts that the second wins at equal length, or why there is none."""
    prompts = sorted(shares)
    known = all((name, p) in lengths for name in (first, second) for p in prompts)
    gaps = None
    if known:
        gaps = np.asarray([lengths[first, p] - lengths[second, p] for p in prompts])
    probs = np.asarray([shares[p] for p in prompts], dtype=np.float64)
    found = length_controlled(probs, gaps, np.arange(len(prompts)), np.ones(len(prompts)))
    rate = found.minimal if found.minimal is not None else found.small_n
    if rate is None or found.low is None or found.high is None:
        return {"equal": None, "equal_note": found.note}
    ends = {"low": found.low / 100, "high": found.high / 100}
    return {"equal": {"mean": rate / 100, **ends, "n": len(prompts)}, "equal_note": None}


def _turn_round(row: dict[str, Any]) -> None:
    """The same row with the models in the other order."""
    row["first"], row["second"] = row["second"], row["first"]
    row["lengths"] = row["lengths"][::-1]
    if row["equal_note"] is not None:
        words = row["equal_note"].split(" ")
        row["equal_note"] = " ".join(OPPOSITE.get(word, word) for word in words)
    for name, whole in (("difference", 0.0), ("won", 1.0), ("equal", 1.0)):
        if row[name] is not None:
            row[name] = _mirror(row[name], whole)


def _mirror(interval: IntervalJson, whole: float) -> IntervalJson:
    """`whole` less the figure, with its interval."""
    low, high = interval["low"], interval["high"]
    return {
        **interval,
        "mean": whole - interval["mean"],
        "low": None if high is None else whole - high,
        "high": None if low is None else whole - low,
    }


def _mark_standing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What may be claimed: Holm over the pairs that were asked about, Benjamini and Hochberg over
    the others."""
    keys = {f"{row['by']}|{row['first']}|{row['second']}": row for row in rows}
    asked = {k: row["difference"] for k, row in keys.items() if row["asked"]}
    others = {k: row["difference"] for k, row in keys.items() if not row["asked"]}
    claims = find_claims(asked, others)
    for key, row in keys.items():
        row["standing"] = claims.standing[key]
    return sorted(rows, key=lambda row: (not row["asked"], row["by"], row["first"], row["second"]))


def run_row(name: str, run: Run) -> dict[str, Any]:
    """A run's arms: who judged them and took which side, their differences, the answers, and what
    labels cost and achieve, as JSON."""
    page = run.page()
    labelling = labelling_rows(run)
    tables = [
        {
            "title": table.title,
            "columns": list(table.headings),
            "rows": [[row.name, *[cell.value for cell in row.cells]] for row in table.rows],
        }
        for table in difference_tables(page.comparisons)
    ]
    return {
        "name": name,
        "arms": run.arms(),
        "roles": judge_roles(run.manifest["steps"], run.arms()),
        "answers": run.answers(page),
        "tables": tables,
        "labels": labelling,
        "curves": curves_json(find_curves(page.latest, labelling)),
        "margin": run.experiment().margin,
    }


def across_runs(gathered: Gathered) -> list[dict[str, Any]]:
    """A row for every two policies of different runs and each figure that both runs measured alike:
    the second's less the first's on the prompts that both answered, after each one's last round.

    A judge's figures are compared where it has the same settings and model in both runs.
    """
    rows = []
    for (name, run), (other_name, other) in combinations(sorted(gathered.runs.items()), 2):
        figures = _alike_figures(gathered, run, other)
        for arm, others_arm in product(_arm_names(run), _arm_names(other)):
            one, two = _last_values(run, arm), _last_values(other, others_arm)
            for figure in figures:
                seeds = sorted(one.keys() & two.keys())
                both = [(two[s].get(figure, {}), one[s].get(figure, {})) for s in seeds]
                difference = _difference_of_seeds(both)
                if difference is not None:
                    first = _policy_name(name, run, arm)
                    second = _policy_name(other_name, other, others_arm)
                    both_named = {"first": first, "second": second}
                    rows.append({"figure": figure, **both_named, "difference": difference})
    return rows


def _arm_names(run: Run) -> list[str]:
    return list(run.manifest["arms"]) or [MAIN]


def _policy_name(name: str, run: Run, arm: str) -> str:
    return name if arm == MAIN else f"{name}/{arm}"


def _last_values(run: Run, arm: str) -> dict[int, Mapping[str, Mapping[str, float]]]:
    """By seed, the values by metric and prompt of the arm's last evaluation."""
    last: dict[int, int] = {}
    for row in run.round_rows():
        if row["arm"] == arm and row["round"] > 0:
            last[row["seed"]] = max(row["round"], last.get(row["seed"], 0))
    return {seed: run.values(arm, seed, point) for seed, point in last.items()}


def _alike_figures(gathered: Gathered, first: Run, second: Run) -> list[str]:
    """The figures that both runs measured in the same way, of judges and of checks by people."""
    models = [_judge_models(run) for run in (first, second)]
    settings: dict[str, set[str]] = defaultdict(set)
    for key in gathered.judgements:
        settings[key.name].add(key.settings)
    alike = [
        judge
        for judge in sorted(models[0].keys() & models[1].keys())
        if models[0][judge] == models[1][judge] and len(settings[judge]) == 1
    ]
    scores = [f"{kind}/{judge}" for judge in alike for kind in ("score", "win_rate_vs_initial")]
    return [*scores, f"reward_accuracy/{HUMAN}"]


def _judge_models(run: Run) -> dict[str, Any]:
    """By judge of the evaluations, the model that it asked."""
    found = _find_evaluating(run.manifest["steps"])
    return {judge: step["models"].get("by", (None, None))[1] for judge, step in found.items()}


def _find_evaluating(steps: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """By judge, the step of its verdicts on the held-out answers of an evaluated model, to any set
    of prompts: not those by a later model on M0's answers (drift), nor those on labelled pairs."""
    by_hash = {step["hash"]: step for step in steps}
    return {
        name.rpartition("/")[2]: by_hash[digest]
        for step in steps
        if step["kind"] == "evaluate"
        for name, digest in step["inputs"].items()
        if name.rpartition(OF_SET)[2].startswith("judgements/") and name.count("/") == 1
    }


def _difference_of_seeds(
    both: Sequence[tuple[Mapping[str, float], Mapping[str, float]]],
) -> IntervalJson | None:
    """The paired difference over seeds that both runs have; of one seed, over prompts."""
    if len(both) == 1:
        found = paired_interval(*both[0])
    else:
        away = [{p: new[p] - old[p] for p in new.keys() & old.keys()} for new, old in both]
        found = seeds_interval(away, 0.0)
    return None if found is None else found.to_json()


def judge_roles(steps: Sequence[Mapping[str, Any]], arms: Mapping[str, ArmRow]) -> dict[str, str]:
    """By judge of a run's evaluations, in words: whether it labelled an arm, is a reward model that
    was trained on people's labels, or is neutral. `steps` are the manifest's."""
    labelled = mark_judges(arms)
    roles = {}
    for judge, step in _find_evaluating(steps).items():
        role = labelled.get(judge, "neutral")
        if _learned_from_people(steps, arms, step["models"].get("by", (None, None))[1]):
            role = f"reward model trained on people's labels ({role})"
        roles[judge] = role
    return roles


def _learned_from_people(
    steps: Sequence[Mapping[str, Any]], arms: Mapping[str, ArmRow], model: str | None
) -> bool:
    """Whether a model was trained by the run on loaded labels or on those of an arm of people."""
    by_hash = {step["hash"]: step for step in steps}
    made = next((s for s in steps if s["models"].get("made", ("", ""))[1] == model), None)
    if model is None or made is None:
        return False
    sources = [by_hash[digest] for digest in made["inputs"].values() if digest in by_hash]
    return any(
        source["kind"] == "load"
        or (
            source["kind"] == "label"
            and all(arms[arm]["labels"] == HUMAN for arm in source["arms"] if arm in arms)
        )
        for source in sources
    )
