"""One reward model measured: on labelled pairs, against its training pairs, and under best-of-n."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlaif.analysis.bench.entrants import find_entrants
from rlaif.analysis.bench.judging import Workplace, judge_pairs
from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Completion, Judgement, Preference, content_hash, make_prompt
from rlaif.core.store import Store, write_atomic
from rlaif.engines.build import EnginePool, refuse_no_reward_model, whole
from rlaif.engines.local.distance import fit_region, nearest
from rlaif.engines.local.reward import reward_position
from rlaif.engines.model_folders import member_folders
from rlaif.kernels.device import pick_device
from rlaif.kernels.heads import HeadConfig, LinearHead
from rlaif.metrics.reward_figures import (
    RewardTable,
    accuracy_by,
    best_of_n_curve,
    label_noise,
    margin_bins,
    measure_staleness,
    reliability_of,
    reward_intervals,
)
from rlaif.metrics.ridge import cross_validate
from rlaif.pipeline.experiment import StepProgress
from rlaif.pipeline.steps.load import labelled_preference
from rlaif.train.fits import Comparisons, Features, fit_linear, spread
from rlaif.train.methods.heads import LinearDistill
from rlaif.train.model import compute_dtype
from rlaif.train.probe import comparisons, read_features
from rlaif.train.tokenise import encode, load_tokenizer, model_limits

Floats = NDArray[np.float64]
SHARES = (0.125, 0.25, 0.5, 1.0)
SHOWN = 5
"""How many of the most wrong pairs are explained, and how many training pairs stand beside each."""
REWARD = "reward"
ROUND = "round "
"""How the subset of a pair begins that a round of an experiment made."""


@dataclass(frozen=True, kw_only=True)
class RewardRequest:
    """What is measured. `train` are the pairs that the model was trained on, where they are known;
    `scored` and `gold` are judgements of one set of answers by this model and by a judge that is
    trusted."""

    name: str
    model: Path
    out: Path
    train: Sequence[Preference] = ()
    scored: Sequence[Judgement] = ()
    gold: Sequence[Judgement] = ()
    seed: int = 0


def run_reward_bench(
    request: RewardRequest, pairs: Sequence[LabelledPair], progress: StepProgress
) -> dict[str, Any]:
    """Everything that was measured, JSON-ready; also kept in `out` as reward.json. Rewards and
    hidden states are kept there too, and a run that was stopped goes on. Raises RlaifError."""
    named = str(request.model)
    request = replace(request, model=whole(request.model))
    refuse_no_reward_model(request.model)
    decided = [p for p in pairs if p.label is not None and p.label != 0.5]
    if not decided:
        raise ConfigError(f"{request.name}: no pair in it whose label prefers an answer")
    if request.train and member_folders(request.model):
        raise ConfigError(
            f"{request.model} is an ensemble of adapters, and `--train` reads the hidden states of "
            "one model: leave it out"
        )
    store = Store(request.out)
    store.prepare()
    with store.locked():
        judged = _ask_rewards(request, decided, store, progress)
        table, kept = reward_table(decided, judged)
        result = {
            "name": request.name,
            "model": named,
            "pairs": {"n": len(kept), "left_out": len(pairs) - len(kept)},
            "settings": {"seed": request.seed},
            **_measure_table(table),
            **_compare_with_training(request, kept, table, judged),
            "best_of_n": _best_of_n(request),
        }
        write_atomic(request.out / "reward.json", json.dumps(result, indent=1, ensure_ascii=False))
    return result


def _ask_rewards(
    request: RewardRequest, pairs: Sequence[LabelledPair], store: Store, progress: StepProgress
) -> dict[str, Judgement]:
    """The judgement of every answer that has one."""
    path = str(request.model)
    (entrant,) = find_entrants([path], ModelSpec(path=path), None, False)
    engines = EnginePool(store)
    try:
        work = Workplace(store, engines, progress)
        found = judge_pairs(work, entrant, pairs, request.seed).judgements
    finally:
        progress.finish()
        engines.close()
    return {j.subject: j for j in found if j.distribution and REWARD in j.distribution}


def labelled(preference: Preference) -> LabelledPair:
    """A pair of an experiment, its chosen answer first, its round as subset."""
    p, prompt = preference, make_prompt(preference.prompt)
    first, second = (
        Completion(name, prompt.prompt_id, i, turns, "", "", {}, "stop", digest=content_hash(turns))
        for i, (name, turns) in enumerate([(p.chosen_id, p.chosen), (p.rejected_id, p.rejected)])
    )
    return LabelledPair(
        p.preference_id,
        prompt,
        first,
        second,
        p.prob,
        f"{ROUND}{p.round}",
        annotator=p.source,
        annotator_kind="human" if p.source == "human" else "ai",
    )


def reward_table(
    pairs: Sequence[LabelledPair], judged: Mapping[str, Judgement]
) -> tuple[RewardTable, list[LabelledPair]]:
    """The pairs whose answers both have a reward, by column, and these pairs, the better answer
    first."""
    kept, rows = [], []
    for pair in pairs:
        better = pair if (pair.label or 0.0) > 0.5 else pair.swap()
        sides = (better.first, better.second)
        if not all(side.completion_id in judged for side in sides):
            continue
        rewards = [(judged[s.completion_id].distribution or {})[REWARD] for s in sides]
        sure = 2.0 * (better.label or 0.0) - 1.0
        kept.append(better)
        rows.append((*rewards, *(float(len(s.text)) for s in sides), sure))
    if not rows:
        raise RlaifError("the model gave no reward to both answers of any pair: are they too long?")
    columns = np.asarray(rows, dtype=np.float64).T
    names = (
        [p.prompt.prompt_id for p in kept],
        [p.subset or "" for p in kept],
        [p.annotator_kind for p in kept],
    )
    return RewardTable(*(np.asarray(n) for n in names), *columns), kept


def _measure_table(table: RewardTable) -> dict[str, Any]:
    groups = {
        "subset": table.subset.tolist(),
        "labelled by": table.source.tolist(),
        "sureness of the label": margin_bins(table.sure),
        "gap of the rewards": margin_bins(np.abs(table.gap)),
    }
    by = {name: accuracy_by(table, labels) for name, labels in groups.items()}
    rounds = {
        int(name.removeprefix(ROUND)): interval
        for name, interval in by["subset"].items()
        if name.startswith(ROUND)
    }
    return {
        "staleness": measure_staleness(rounds),
        "figures": {n: i.to_json() for n, i in reward_intervals(table).items()},
        "accuracy_by": {
            name: {label: i.to_json() for label, i in found.items()}
            for name, found in by.items()
            if len(found) > 1
        },
        "reliability": reliability_of(table),
    }


def _best_of_n(request: RewardRequest) -> list[dict[str, Any]]:
    """The curve over the answers that both have scored."""
    gold = {j.subject: j.score for j in request.gold if j.score is not None}
    both: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for j in sorted(request.scored, key=lambda j: j.subject):
        reward = (j.distribution or {}).get(REWARD, j.score)
        if reward is not None and j.subject in gold:
            both[j.prompt_id].append((reward, gold[j.subject]))
    if (request.scored or request.gold) and not both:
        raise RlaifError("--scored and --gold have no answer in common: they must be of one sample")
    proxy, trusted = (
        {name: np.asarray([row[side] for row in rows]) for name, rows in both.items()}
        for side in (0, 1)
    )
    return best_of_n_curve(proxy, trusted)


@dataclass(frozen=True)
class _Seen:
    """Pairs and the model's features of them: (P, H) of either answer."""

    pairs: Sequence[Preference]
    features: Features
    compared: Comparisons

    @property
    def gaps(self) -> Floats:
        """(P, H) chosen less rejected, each feature in units of its size."""
        last = (self.features.last.double() / spread(self.features.last)).numpy()
        found: Floats = last[self.compared.chosen] - last[self.compared.rejected]
        return found


def _compare_with_training(
    request: RewardRequest,
    pairs: Sequence[LabelledPair],
    table: RewardTable,
    judged: Mapping[str, Judgement],
) -> dict[str, Any]:
    """The most wrong pairs with what made them so; and with the training pairs at hand the learning
    curve, suspect labels, and accuracy by distance from the training."""
    wrong = [int(i) for i in np.argsort(table.gap, kind="stable")[:SHOWN] if table.gap[i] < 0]
    explained = [_explain_pair(pairs[i], judged) for i in wrong]
    if not request.train:
        return {"most_wrong": explained}
    known = _read_seen(request, request.train)
    tested = _read_seen(request, [labelled_preference(p) for p in pairs])
    ids = [labelled_preference(p).preference_id for p in pairs]
    gaps = dict(zip(ids, table.gap.tolist(), strict=True))
    place = {p.preference_id: i for i, p in enumerate(tested.pairs)}
    for i, row in zip(wrong, explained, strict=True):
        if ids[i] in place:
            row["nearest"] = _find_nearest(tested.gaps[place[ids[i]]], known)
    return {
        "most_wrong": explained,
        "learning_curve": _learning_curve(known, tested, request),
        "label_noise": _label_noise(known, request.seed),
        "accuracy_by_distance": _by_distance(known, tested, gaps, request),
    }


def _explain_pair(pair: LabelledPair, judged: Mapping[str, Judgement]) -> dict[str, Any]:
    chosen, rejected = (
        dict(judged[side.completion_id].distribution or {}) for side in (pair.first, pair.second)
    )
    return {
        "prompt": pair.prompt.question,
        "chosen": pair.first.text,
        "rejected": pair.second.text,
        "parts": {name: [value, rejected[name]] for name, value in chosen.items()},
    }


def _read_seen(request: RewardRequest, preferences: Sequence[Preference]) -> _Seen:
    options = LinearDistill(method="linear")
    device = torch.device(pick_device("auto"))
    once = list({p.preference_id: p for p in preferences if p.paired}.values())
    encoded = encode(
        once,
        load_tokenizer(request.model),
        {},
        both=True,
        max_length=options.max_length,
        overlong=options.overlong,
        train_on_eos=True,
        always_end=reward_position(request.model) == "last",
        limits=model_limits(request.model),
    )
    # One pair to an example, so that pairs and their features keep one order.
    examples = encoded.examples
    if not examples:
        raise RlaifError(f"none of the {len(once)} pairs fits {options.max_length} tokens")
    dtype = compute_dtype(options.precision, device)
    work = request.out / "features"
    features = read_features(examples, request.model, options, work, device, dtype)
    fitting = {e.example_id for e in examples}
    kept = [p for p in once if p.preference_id in fitting]
    return _Seen(kept, features, comparisons(examples))


def _find_nearest(gap: Floats, known: _Seen) -> list[dict[str, Any]]:
    found = nearest(gap, known.gaps, SHOWN)
    return [{"cosine": cosine, **_texts_of(known.pairs[i])} for i, cosine in found]


def _texts_of(pair: Preference) -> dict[str, str]:
    """The last question of a pair and its answers."""
    return {
        "prompt": pair.prompt[-1]["content"],
        "chosen": pair.chosen[0]["content"],
        "rejected": pair.rejected[0]["content"],
    }


def _learning_curve(known: _Seen, tested: _Seen, request: RewardRequest) -> list[dict[str, Any]]:
    """Accuracy of linear heads on this model's features, fitted on growing shares of the training
    prompts in an order drawn by the seed."""
    prompts = sorted(set(known.features.names))
    order = np.random.default_rng(request.seed).permutation(len(prompts))
    rank = {prompts[i]: place for place, i in enumerate(order.tolist())}
    places = np.array([rank[n] for n in known.features.groups(known.compared.chosen)])
    rows = []
    for share in SHARES:
        used = torch.from_numpy(np.flatnonzero(places < share * len(prompts)))
        c = known.compared
        part = Comparisons(c.chosen[used], c.rejected[used], c.prob[used], c.weight[used])
        head = LinearHead(HeadConfig("linear", known.features.last.shape[1]))
        try:
            fit_linear(head, known.features, part, request.seed)
        except RlaifError:
            # So few prompts that none can be held out.
            continue
        with torch.no_grad():
            rewards = head(tested.features.last, tested.features.last).reward.numpy()
        gap = rewards[tested.compared.chosen] - rewards[tested.compared.rejected]
        found = reward_intervals(_plain_table(tested, gap))["accuracy"]
        rows.append({"pairs": len(used), "accuracy": found.to_json()})
    return rows


def _plain_table(seen: _Seen, gap: Floats) -> RewardTable:
    """A table that knows of pairs no more than prompts, lengths and gaps."""
    empty = np.asarray([""] * len(gap))
    chosen = np.asarray([float(len(p.chosen[0]["content"])) for p in seen.pairs])
    rejected = np.asarray([float(len(p.rejected[0]["content"])) for p in seen.pairs])
    zero = np.zeros(len(gap))
    prompts = np.asarray([p.prompt_id for p in seen.pairs])
    return RewardTable(prompts, empty, empty, gap.astype(np.float64), zero, chosen, rejected, zero)


def _label_noise(known: _Seen, seed: int) -> dict[str, Any]:
    groups = known.features.groups(known.compared.chosen)
    folds = min(5, len(set(groups)))
    if folds < 2:
        return {"share": None, "suspects": []}
    x, ones = known.gaps, np.ones(len(known.pairs))
    found = cross_validate(x, ones, groups, folds, seed, penalties=(float(x.shape[1]),))
    share, suspect = label_noise(found.predictions)
    worst = np.argsort(found.predictions, kind="stable")[:SHOWN]
    suspects = [
        {**_texts_of(known.pairs[i]), "prob": float(found.predictions[i])}
        for i in worst
        if suspect[i]
    ]
    return {"share": share, "suspects": suspects}


def _by_distance(
    known: _Seen, tested: _Seen, gaps: Mapping[str, float], request: RewardRequest
) -> dict[str, Any]:
    """The accuracy by how far the farther answer lies from the training answers."""
    region = fit_region(known.features.last.double().numpy())
    away = region.distance(tested.features.last.double().numpy())
    farther = np.maximum(away[tested.compared.chosen], away[tested.compared.rejected])
    table = _plain_table(tested, np.asarray([gaps[p.preference_id] for p in tested.pairs]))
    found = accuracy_by(table, margin_bins(farther))
    return {name: i.to_json() for name, i in found.items()}
