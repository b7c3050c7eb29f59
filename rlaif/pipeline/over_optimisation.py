"""The proxy against gold in a run folder: over the rounds, and in the best of n answers of a sample
that judges of both kinds have scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rlaif.config.arms import MAIN
from rlaif.config.on_policy import RolloutTrain
from rlaif.core.records import Judgement, from_json
from rlaif.core.store import Store
from rlaif.metrics.metrics import value_interval
from rlaif.metrics.over_optimisation import Point, find_peak
from rlaif.metrics.reward_figures import best_of_n, best_of_n_kl, best_of_n_sizes
from rlaif.metrics.weighted import Floats
from rlaif.pipeline.constitutions import run_weights
from rlaif.pipeline.experiment_file import Experiment
from rlaif.preferences.aggregate import candidate_raw_values, candidate_scores, weights_of
from rlaif.report.view import ArmRow, ProxyPoint, ProxyRow, RoundRow, Values

OF_JUDGE = ("score/", "win_rate_vs_initial/")
"""What an evaluation's figures of a judge are called: of answers, and of comparisons with M0's."""
CHECK = "check/"
PAR = 0.5
"""A model's win rate against itself."""


class HasRounds(Protocol):
    """A run folder's records, manifest and evaluations."""

    root: Any
    manifest: dict[str, Any]
    store: Store

    def experiment(self, arm: str | None = None) -> Experiment:
        """The experiment as one arm has it."""

    def arms(self) -> dict[str, ArmRow]:
        """Who labels in each arm, of those that differ in that."""

    def round_rows(self) -> list[RoundRow]:
        """The evaluations."""

    def values(self, arm: str, seed: int, point: int) -> Values:
        """An evaluation's values by metric and prompt."""


def proxy_rows(run: HasRounds) -> list[ProxyRow]:
    """Every proxy against every gold judge or check: over the rounds of each arm and seed, then in
    the best of n of each sample."""
    return [*_round_tracks(run), *_best_of_n_tracks(run)]


def optimised_judges(run: HasRounds, arm: str) -> list[str]:
    """The judges whose values an arm's policy is optimised for: those of its rewards, or where no
    policy is trained on rewards those that choose its pairs."""
    labels = run.arms().get(arm)
    if labels is not None:
        return labels["judges"]
    experiment = run.experiment(arm if run.manifest["arms"] else None)
    entries = experiment.entries
    rewards = [
        term.judge
        for entry in entries
        if isinstance(entry.train, RolloutTrain)
        for term in entry.train.terms
        if term.weight > 0
    ]
    asked = [entry.judge.id for entry in entries if entry.judge is not None]
    chosen = []
    for pair in (entry.pair for entry in entries if entry.pair is not None):
        used = [name.split("@")[0].removesuffix("?") for name in pair.uses or ()]
        counted = [j for j in asked if pair.weights is None or pair.weights.get(j, 0.0) > 0]
        chosen += [j for j in counted if not set(used) & set(asked) or j in used]
    return list(dict.fromkeys(rewards or chosen))


def _round_tracks(run: HasRounds) -> Iterator[ProxyRow]:
    chains: dict[tuple[str, int], list[RoundRow]] = defaultdict(list)
    for row in sorted(run.round_rows(), key=lambda row: row["round"]):
        chains[row["arm"], row["seed"]].append(row)
    for (arm, seed), rows in chains.items():
        if len(rows) < 2:
            continue
        proxies, golds = _pick_metrics(rows[-1], optimised_judges(run, arm))
        values = [run.values(arm, seed, row["round"]) for row in rows] if proxies and golds else []
        for proxy in proxies:
            for gold in golds:
                points = [
                    Point(
                        row.get("label", f"M{row['round']}"),
                        _kl_of(row),
                        _values_at(own, proxy, values[-1]),
                        _values_at(own, gold, values[-1]),
                    )
                    for row, own in zip(rows, values, strict=True)
                ]
                kept = [point for point in points if point.proxy and point.gold]
                # What is the same at every point says nothing.
                if len(kept) > 1 and any(point.gold != kept[0].gold for point in kept):
                    yield _make_row("rounds", "", [arm], seed, (proxy, gold), kept)


def _pick_metrics(row: RoundRow, optimised: Sequence[str]) -> tuple[list[str], list[str]]:
    """The metrics of an evaluation's proxies, and those of its gold judges and checks."""
    proxies: list[str] = []
    golds: list[str] = []
    for name in row["metrics"]["metrics"]:
        head, _, judge = name.partition("/")
        if f"{head}/" in OF_JUDGE and "/" not in judge:
            (proxies if judge in optimised else golds).append(name)
        elif name.startswith(CHECK):
            golds.append(name)
    return sorted(proxies), sorted(golds)


def _kl_of(row: RoundRow) -> float | None:
    found = row["metrics"]["metrics"].get("kl/initial")
    if found is not None:
        return found["mean"]
    return 0.0 if row["round"] == 0 else None


def _values_at(values: Values, metric: str, last: Values) -> Mapping[str, float]:
    """A metric's values by prompt at one evaluation. M0 is not compared with itself: there it wins
    half of the time."""
    if metric not in values and metric.startswith("win_rate_vs_initial/"):
        return dict.fromkeys(last.get(metric, {}), PAR)
    return values.get(metric, {})


def _best_of_n_tracks(run: HasRounds) -> Iterator[ProxyRow]:
    steps = {step["hash"]: step for step in run.manifest["steps"]}
    names = _name_judges(run.manifest["steps"])
    judging: dict[str, dict[str, str]] = defaultdict(dict)
    for step in steps.values():
        sources = [h for n, h in step["inputs"].items() if n.startswith("completions")]
        if step["kind"] == "judge" and len(sources) == 1:
            judging[sources[0]].setdefault(names[step["hash"]], step["hash"])
    for digest, by_judge in judging.items():
        sample = steps.get(digest)
        if sample is None or sample["kind"] != "sample":
            continue
        arms = sample["arms"] or [MAIN]
        optimised = optimised_judges(run, arms[0])
        proxies = [judge for judge in by_judge if judge in optimised]
        golds = [judge for judge in by_judge if judge not in optimised]
        scores = {
            judge: _read_scores(run, by_judge[judge], judge, arms[0])
            for judge in ([*proxies, *golds] if proxies and golds else ())
        }
        about = f"{sample['id']}, round {sample['round']}"
        for proxy in proxies:
            for gold in golds:
                points = best_of_n_points(scores[proxy], scores[gold])
                if len(points) > 1:
                    yield _make_row("best of n", about, arms, sample["seed"], (proxy, gold), points)


def _name_judges(steps: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By hash the judge of each judge step: the id of one that an evaluation has planned begins
    with the evaluation's and may end with that of a set of prompts."""
    found = {s["hash"]: s["id"].rpartition(".")[2] for s in steps if s["kind"] == "judge"}
    for step in steps:
        if step["kind"] == "evaluate":
            inputs = step["inputs"].items()
            found |= {h: n.rpartition("/")[2] for n, h in inputs if "judgements/" in n}
    return found


Scored = Mapping[str, Mapping[str, float]]
"""Prompt id to completion id to what a judge makes of the answer."""


def _read_scores(run: HasRounds, digest: str, judge: str, arm: str) -> Scored:
    """What a finished judge step says of each answer: its raw values if all verdicts have one, else
    the scores. Answers without a value are absent."""
    folder = run.store.step(digest)
    if folder.done() is None:
        return {}
    rows: dict[str, list[Judgement]] = defaultdict(list)
    for row in folder.read("judgements"):
        rows[row["prompt_id"]].append(from_json(Judgement, row))
    valued = [j for own in rows.values() for j in own if j.score is not None]
    raw = bool(valued) and all(j.raw_value is not None for j in valued)
    score = candidate_raw_values if raw else candidate_scores
    weights = weights_of(judge, run_weights(run, arm if run.manifest["arms"] else None))
    found = {prompt: score(own, weights) for prompt, own in rows.items()}
    return {p: {c: v for c, v in own.items() if v is not None} for p, own in found.items()}


def best_of_n_points(proxy: Scored, gold: Scored) -> list[Point]:
    """The best of n by the proxy for n = 1, 2, 4 ... and N, over the prompts of which both judges
    have scored the most answers, N; with the KL that Gao et al. (arXiv 2210.10760) give it."""
    columns: dict[str, tuple[Floats, Floats]] = {}
    for prompt, own in sorted(proxy.items()):
        both = sorted(own.keys() & gold.get(prompt, {}).keys())
        columns[prompt] = (
            np.asarray([own[c] for c in both]),
            np.asarray([gold[prompt][c] for c in both]) if both else np.zeros(0),
        )
    most = max((pair[0].size for pair in columns.values()), default=0)
    whole = {prompt: pair for prompt, pair in columns.items() if pair[0].size == most}
    one, other = ({p: pair[side] for p, pair in whole.items()} for side in (0, 1))
    points = []
    for n in best_of_n_sizes(most):
        found = best_of_n(one, other, n)
        points.append(Point(f"best of {n}", best_of_n_kl(n), found["proxy"], found["gold"]))
    return points


def _make_row(
    kind: str,
    about: str,
    arms: Sequence[str],
    seed: int,
    names: tuple[str, str],
    points: Sequence[Point],
) -> ProxyRow:
    metrics = names if kind == "rounds" else ("best_of_n/proxy", "best_of_n/gold")
    return {
        "kind": kind,
        "about": about,
        "arms": list(arms),
        "seed": seed,
        "proxy": names[0],
        "gold": names[1],
        "points": [_make_point(point, metrics) for point in points],
        "peak": find_peak(points),
    }


def _make_point(point: Point, metrics: tuple[str, str]) -> ProxyPoint:
    proxy, gold = (
        value_interval(metric, dict(values))
        for metric, values in zip(metrics, (point.proxy, point.gold), strict=True)
    )
    # Points without a prompt are left out.
    assert proxy is not None
    assert gold is not None
    return {
        "name": point.name,
        "kl": point.kl,
        "proxy": proxy.to_json(),
        "gold": gold.to_json(),
    }
