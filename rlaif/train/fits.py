"""Fitting reward heads on hidden states that stay as they are. Pure functions of tensors and seeds.

Every choice that data must make (a ridge, a penalty, when to stop) is made on held-out prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlaif.core.errors import RlaifError
from rlaif.kernels.heads import GatedHead, HeadConfig, LinearHead, OrdinalHead
from rlaif.metrics.agreement import spearman
from rlaif.metrics.calibration import measure_steepness
from rlaif.metrics.ridge import cross_validate, fit_ridge, group_folds
from rlaif.train.losses.reward import bradley_terry, ordinal_nll, pinball

Array = NDArray[np.float64]
FOLDS = 5
ALPHAS = tuple(float(x) for x in np.geomspace(1e-4, 1e4, 17))
"""Ridges that are tried; the range of ArmoRM's stage 1."""
PENALTIES = tuple(float(x) for x in np.arange(96) / 100)
"""Shares of verbosity that are tried: 0 to 0.95, as ArmoRM does."""
QUANTILE_STEPS = 1500
WEIGHT_RATE, OFFSET_RATE = 0.05, 0.005
"""Adam's rates for quantiles. A step moves every weight by its rate, and with it the output by the
rate times the width: so that of the weights is divided by the width."""
GATE_DROPOUT, GATE_RATE = 0.2, 1e-3


@dataclass(frozen=True)
class Features:
    """What heads are fitted on. `last` (A, H) are the hidden states of A answers, `prompt` (E, H)
    those of E prompts, `of` (A,) the prompt of each answer, all fp32; `names` (E) are the prompts'
    ids, by which they are held out together."""

    last: Tensor
    prompt: Tensor
    of: Tensor
    names: Sequence[str]

    def groups(self, answers: Tensor) -> list[str]:
        """The prompt ids of these answers."""
        return [self.names[i] for i in self.of[answers].tolist()]


@dataclass(frozen=True)
class Comparisons:
    """P pairs of answers: `chosen` and `rejected` (P,) index `Features.last`; `prob` is the
    probability that chosen is better, `weight` how much a pair counts."""

    chosen: Tensor
    rejected: Tensor
    prob: Tensor
    weight: Tensor


def held_out(groups: Sequence[str], seed: int) -> Tensor:
    """(N,) which rows are held out: a fifth of the groups, or none where there are too few."""
    if len(set(groups)) < FOLDS:
        return torch.zeros(len(groups), dtype=torch.bool)
    return torch.from_numpy(group_folds(groups, FOLDS, seed) == 0)


def spread(features: Tensor) -> Tensor:
    """(H,) the root mean square of each feature: hidden states differ in size by powers of ten."""
    found: Tensor = features.double().pow(2).mean(0).sqrt()
    return found.clamp(min=1e-6)


@torch.no_grad()
def fit_linear(head: LinearHead, features: Features, pairs: Comparisons, seed: int) -> float:
    """Bradley-Terry on fixed features: ridge logistic regression of which answer is better, its
    penalty by cross-validation over prompts. Returns the held-out log loss, in nats per pair."""
    gap = (features.last[pairs.chosen] - features.last[pairs.rejected]).double()
    # Of what is compared: a feature may be large and differ little from answer to answer.
    size = spread(gap)
    groups = features.groups(pairs.chosen)
    x, y, weight = (gap / size).numpy(), pairs.prob.double().numpy(), pairs.weight.double().numpy()
    folds = min(FOLDS, len(set(groups)))
    if folds < 2:
        raise RlaifError("a linear head is fitted with held-out prompts: give pairs of two or more")
    # The features are of size 1 and there are H of them: a useful penalty grows with H.
    tried = tuple(len(size) * float(v) for v in np.geomspace(0.01, 100.0, 9))
    found = cross_validate(x, y, groups, folds, seed, penalties=tried, sample_weight=weight)
    fitted = torch.from_numpy(fit_ridge(x, y, found.l2, weight))
    head.weight.copy_((fitted / size)[None].float())
    return found.log_loss


def fit_depth(
    features: Mapping[int, Features], pairs: Comparisons, seed: int
) -> tuple[int, LinearHead, dict[int, float]]:
    """`fit_linear` on the features of each depth: the depth of the least held-out log loss, of
    equal ones the first, its head, and all losses. As the least of several, that loss is a little
    better than what other answers will show."""
    heads, losses = {}, {}
    for depth, own in features.items():
        heads[depth] = LinearHead(HeadConfig("linear", own.last.shape[1]))
        losses[depth] = fit_linear(heads[depth], own, pairs, seed)
    best = min(losses, key=losses.__getitem__)
    return best, heads[best], losses


def ridge(x: Array, y: Array, held: NDArray[np.bool_]) -> tuple[Array, float]:
    """The weights (H,) of a ridge regression without intercept for x (N, H), y (N,), and its mean
    squared error on the rows `held`, by which the ridge is chosen; then all rows are used."""
    if not held.any():
        held = np.ones(len(y), dtype=bool)
    best_error, best_alpha = np.inf, ALPHAS[-1]
    train = ~held if not held.all() else held
    values, vectors = np.linalg.eigh(x[train].T @ x[train])
    target = vectors.T @ (x[train].T @ y[train])
    seen = x[held] @ vectors
    for alpha in ALPHAS:
        error = float(((seen @ (target / (np.maximum(values, 0.0) + alpha)) - y[held]) ** 2).mean())
        if error < best_error:
            best_error, best_alpha = error, alpha
    gram = x.T @ x + best_alpha * np.eye(x.shape[1])
    weights: Array = np.linalg.solve(gram, x.T @ y).astype(np.float64)
    return weights, best_error


@torch.no_grad()
def fit_objectives(head: GatedHead, features: Features, labels: Tensor, seed: int) -> list[float]:
    """One ridge regression for each objective from `labels` (A, K), NaN where one is missing
    (ArmoRM, section 3.1). Returns the held-out mean squared errors."""
    size = spread(features.last)
    x = (features.last.double() / size).numpy()
    errors = []
    for k, name in enumerate(head.config.objectives):
        known = ~torch.isnan(labels[:, k])
        rows = torch.nonzero(known)[:, 0]
        if len(rows) < 2:
            raise RlaifError(f"objective {name!r} has {len(rows)} labels; two or more are needed")
        held = held_out(features.groups(rows), seed).numpy()
        weights, error = ridge(x[known.numpy()], labels[rows, k].double().numpy(), held)
        head.weight[k] = (torch.from_numpy(weights) / size).float()
        errors.append(error)
    return errors


def fit_quantiles(head: GatedHead, features: Features, labels: Tensor, seed: int) -> float:
    """Every objective's quantiles by the pinball loss from `labels` (A, K), NaN where one is
    missing, all rows at a time; the weights of the best held-out loss are kept, which is returned.

    They start at the labels' own quantiles, the same for every answer.
    """
    count = head.config.quantiles
    levels = torch.arange(1, count + 1) / (count + 1)
    known = ~torch.isnan(labels)
    size = spread(features.last).float()
    x = features.last / size
    with torch.no_grad():
        for k in range(labels.shape[1]):
            start = torch.quantile(labels[known[:, k], k], levels)
            head.offset[k, 0] = start[0]
            head.offset[k, 1:] = inverse_softplus(start.diff())
    held = held_out(features.groups(torch.arange(len(x))), seed)
    # Where nothing can be held out, the fit itself is watched.
    watched = held if held.any() else torch.ones_like(held)

    def mean_pinball(rows: Tensor) -> Tensor:
        """The mean pinball loss of the labels of some answers, () from a mask (A,)."""
        given = known & rows[:, None]
        return pinball(head.quantiles(x), labels.nan_to_num(), levels)[given].mean()

    best = _minimise_loss(
        {head.weight: WEIGHT_RATE / x.shape[1], head.offset: OFFSET_RATE},
        lambda: mean_pinball(~held),
        lambda: float(mean_pinball(watched)),
        QUANTILE_STEPS,
    )
    with torch.no_grad():
        head.weight.div_(size)
    return best


def inverse_softplus(value: Tensor) -> Tensor:
    """x with softplus(x) = value; for 0 a number of which softplus is nearly 0."""
    kept = value.clamp(min=1e-6)
    return kept + torch.log(-torch.expm1(-kept))


def _minimise_loss(
    rates: Mapping[Tensor, float],
    loss: Callable[[], Tensor],
    watched: Callable[[], float],
    steps: int,
) -> float:
    """Minimise `loss` by Adam, with falling rates that begin as given for each parameter, and leave
    in these what was best by `watched`, which is looked at every 10 steps and returned."""
    params = list(rates)
    optimizer = torch.optim.Adam([{"params": [p], "lr": rate} for p, rate in rates.items()])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, kept = float("inf"), [p.detach().clone() for p in params]
    for step in range(steps + 1):
        if step % 10 == 0:
            with torch.no_grad():
                found = watched()
            if found < best:
                best, kept = found, [p.detach().clone() for p in params]
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        for param, value in zip(params, kept, strict=True):
            param.copy_(value)
    return best


def fit_ordinal(head: OrdinalHead, features: Features, level: Tensor, seed: int) -> float:
    """The proportional-odds model of `level` (A,) int64, its ridge by held-out likelihood. Returns
    the held-out negative log-likelihood, in nats per answer."""
    size = spread(features.last).float()
    x = features.last / size
    held = held_out(features.groups(torch.arange(len(x))), seed)
    watched = held if held.any() else torch.ones_like(held)
    best, alpha = float("inf"), ALPHAS[-1]
    for tried in reversed(ALPHAS):
        _ordinal_once(head, x[~held], level[~held], tried)
        with torch.no_grad():
            found = float(_ordinal_loss(head, x[watched], level[watched]).mean())
        if found < best:
            best, alpha = found, tried
    _ordinal_once(head, x, level, alpha)
    with torch.no_grad():
        head.weight.div_(size)
    return best


def _ordinal_loss(head: OrdinalHead, x: Tensor, level: Tensor) -> Tensor:
    return ordinal_nll(x @ head.weight[0], head.thresholds(), level)


def _ordinal_once(head: OrdinalHead, x: Tensor, level: Tensor, alpha: float) -> None:
    """The minimum of the summed loss and alpha / 2 |w|^2, which is convex in weights and
    thresholds, by L-BFGS from the levels' own shares."""
    count = len(head.config.levels)
    shares = torch.stack([(level <= k).float().mean() for k in range(count - 1)])
    start = torch.logit(shares.clamp(1e-3, 1 - 1e-3))
    with torch.no_grad():
        head.weight.zero_()
        head.first.copy_(start[:1])
        head.steps.copy_(inverse_softplus(start.diff()))
    optimizer = torch.optim.LBFGS(
        [head.weight, head.first, head.steps], max_iter=200, line_search_fn="strong_wolfe"
    )

    def penalised_loss() -> Tensor:
        """The penalised mean loss, with its gradients."""
        optimizer.zero_grad()
        penalty = alpha / 2 * head.weight.pow(2).sum()
        loss = (_ordinal_loss(head, x, level).sum() + penalty) / len(x)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(penalised_loss)  # type: ignore[no-untyped-call]


@torch.no_grad()
def debias(head: GatedHead, features: Features, bound: float) -> dict[str, float]:
    """Set the penalties: for each objective the least share of verbosity with which the Spearman
    correlation of the two is at most `bound` on these answers (ArmoRM, section 3.2).

    A share is of standard deviations, so that objectives of any scale are treated alike. Returns
    the correlations that are left, by objective; one may stay above the bound where verbosity is
    nearly all there is.
    """
    assert head.config.verbosity is not None
    names = head.config.objectives
    place = names.index(head.config.verbosity)
    quantiles = head.quantiles(features.last).double()
    values, wordy = head.averaged(quantiles).numpy(), quantiles[:, place].mean(-1).numpy()
    left = {}
    for k, name in enumerate(names):
        if k == place:
            continue
        scale = values[:, k].std() / max(wordy.std(), 1e-12)
        for share in PENALTIES:
            kept = spearman(values[:, k] - share * scale * wordy, wordy)
            found = float(np.nan_to_num(kept(np.ones((1, len(wordy))))[0]))
            left[name] = found
            head.penalty[k] = share * scale
            if found <= bound:
                break
    return left


def fit_gate(
    head: GatedHead,
    features: Features,
    pairs: Comparisons,
    steps: int,
    batch: int,
    seed: int,
) -> Iterator[dict[str, float]]:
    """Train the gate and its scale by Bradley-Terry on pairs, the objectives' weights being fixed
    (ArmoRM, section 3.2). The scale starts where an even mixture fits best. Yields loss and
    accuracy of each step's batch, before its update."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        values = head.objectives(features.last)
        weighed = len(head.config.objectives) - (head.config.verbosity is not None)
        head.log_scale.copy_(_even_scale(values.sum(1) / weighed, pairs))
    optimizer = torch.optim.AdamW([*head.gate.parameters(), head.log_scale], lr=GATE_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(pairs.chosen), (batch,), generator=generator)
        chosen, rejected = pairs.chosen[rows], pairs.rejected[rows]
        weights = head.weights(features.prompt[features.of[chosen]], GATE_DROPOUT)
        gap = (weights * (values[chosen] - values[rejected])).sum(1)
        loss = bradley_terry(gap, torch.zeros_like(gap), prob=pairs.prob[rows])
        optimizer.zero_grad()
        weight = pairs.weight[rows]
        total = (loss * weight).sum() / weight.sum()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        right = (gap > 0).float() + 0.5 * (gap == 0).float()
        yield {"loss": float(total.detach()), "accuracy": float(right.mean())}


def _even_scale(even: Tensor, pairs: Comparisons) -> Tensor:
    """The logarithm of the factor by which the rewards `even` (A,) fit the pairs best; 0 where they
    point the wrong way."""
    gaps = (even[pairs.chosen] - even[pairs.rejected]).double().numpy()
    measure = measure_steepness(gaps, pairs.prob.double().numpy())
    found = float(measure(pairs.weight.double().numpy()[None])[0])
    return torch.tensor(found or 1.0).clamp(1e-2, 1e3).log()
