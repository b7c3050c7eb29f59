"""Reward heads on features with a planted truth, and their losses against published values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rlaif.core.errors import EngineError
from rlaif.kernels.heads import GatedHead, HeadConfig, LinearHead, OrdinalHead, load_head, save_head
from rlaif.metrics.agreement import spearman
from rlaif.metrics.ridge import CrossValidation
from rlaif.train import fits
from rlaif.train.fits import (
    GATE_DROPOUT,
    Comparisons,
    Features,
    _even_scale,
    debias,
    fit_gate,
    fit_linear,
    fit_objectives,
    fit_ordinal,
    fit_quantiles,
    held_out,
)
from rlaif.train.losses.reward import (
    barrier,
    bradley_terry,
    cost,
    focal_ranking,
    ordinal_nll,
    pinball,
)

WIDTH = 6


def t(*values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def made(answers=400, per_prompt=2, seed=0) -> Features:
    """Random features whose first column is 1, as hidden states have one that hardly varies."""
    generator = torch.Generator().manual_seed(seed)
    last = torch.randn(answers, WIDTH, generator=generator)
    last[:, 0] = 1.0
    prompts = answers // per_prompt
    prompt = torch.randn(prompts, WIDTH, generator=generator)
    of = torch.arange(prompts).repeat_interleave(per_prompt)
    return Features(last, prompt, of, [f"p{i}" for i in range(prompts)])


def pairs_of(features: Features, better: torch.Tensor) -> Comparisons:
    """Answers 2i and 2i + 1, the one with more of `better` chosen."""
    first = torch.arange(0, len(features.last), 2)
    wins = better[first] >= better[first + 1]
    chosen = torch.where(wins, first, first + 1)
    rejected = torch.where(wins, first + 1, first)
    ones = torch.ones(len(first))
    return Comparisons(chosen, rejected, ones, ones)


def gated(objectives, **changes) -> GatedHead:
    torch.manual_seed(0)
    return GatedHead(HeadConfig("gated", WIDTH, tuple(objectives), **changes))


def rank_correlation(x, y) -> float:
    return float(spearman(x, y)(np.ones((1, len(x))))[0])


def test_golden_values_of_the_losses():
    gap = math.log(3)
    assert focal_ranking(t(gap), t(0.0)).item() == pytest.approx(0.0719205, abs=1e-6)
    assert focal_ranking(t(-1.0), t(0.0)).item() == pytest.approx(
        bradley_terry(t(-1.0), t(0.0)).item()
    )
    assert barrier(t(0.0)).item() == pytest.approx(-3.218876, abs=1e-6)
    assert barrier(t(3.0)).item() == pytest.approx(barrier(t(-3.0)).item())
    levels = torch.tensor([0.9], dtype=torch.float64)
    assert pinball(t(0.0, 0.0)[:, None], t(1.0, -1.0), levels)[:, 0].tolist() == pytest.approx(
        [0.9, 0.1]
    )


def test_the_barrier_pulls_back_what_is_outside():
    outside = t(7.0, -9.0, 4.9999, grad=True)
    loss = barrier(outside).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert outside.grad[0] > 0 > outside.grad[1] and outside.grad[2] > 0


def test_the_cost_loss_is_three_terms_and_its_sign_says_safe():
    safe, harmful = torch.tensor([True]), torch.tensor([False])
    found = cost(t(1.0), t(-2.0), safe, harmful).item()
    parts = [math.log1p(math.exp(-x)) for x in (3.0, 1.0, 2.0)]
    assert found == pytest.approx(sum(parts))
    assert cost(t(1.0), t(-2.0), safe, safe).item() > found
    soft = cost(t(1.0), t(-2.0), safe, harmful, prob=t(0.25)).item()
    assert soft == pytest.approx(0.25 * parts[0] + 0.75 * (3.0 + parts[0]) + parts[1] + parts[2])


def test_ordinal_likelihoods_sum_to_one_and_have_the_right_gradient():
    reward, edges = t(0.3), t(-1.0, 0.5, 2.0)
    probs = [torch.exp(-ordinal_nll(reward, edges, torch.tensor([k]))) for k in range(4)]
    assert sum(p.item() for p in probs) == pytest.approx(1.0)
    assert probs[1].item() == pytest.approx(
        torch.sigmoid(t(1.3)).item() - torch.sigmoid(t(-0.2)).item()
    )
    level = torch.tensor([0, 2, 3])
    inputs = (t(0.1, 2.0, -1.0, grad=True), t(-1.0, 0.5, 2.0, grad=True))
    assert torch.autograd.gradcheck(lambda r, e: ordinal_nll(r, e, level), inputs)


def test_bradley_terry_recovers_planted_scores():
    features = made(4000)
    truth = torch.tensor([0.0, 1.5, -1.0, 0.5, 0.0, 0.0])
    scores = features.last @ truth
    pairs = pairs_of(features, scores)
    gap = scores[pairs.chosen] - scores[pairs.rejected]
    generator = torch.Generator().manual_seed(1)
    right = torch.rand(len(gap), generator=generator) < torch.sigmoid(gap)
    pairs = Comparisons(
        torch.where(right, pairs.chosen, pairs.rejected),
        torch.where(right, pairs.rejected, pairs.chosen),
        pairs.prob,
        pairs.weight,
    )
    head = LinearHead(HeadConfig("linear", WIDTH))
    loss = fit_linear(head, features, pairs, 0)
    assert loss < 0.55 < math.log(2)
    torch.testing.assert_close(head.weight[0, 1:].detach(), truth[1:], atol=0.15, rtol=0)


def test_a_pair_of_weight_zero_teaches_nothing():
    features = made(200)
    pairs = pairs_of(features, features.last[:, 1])
    flipped = Comparisons(
        torch.cat([pairs.chosen, pairs.rejected]),
        torch.cat([pairs.rejected, pairs.chosen]),
        torch.cat([pairs.prob, pairs.prob]),
        torch.cat([pairs.weight, 0 * pairs.weight]),
    )
    head = LinearHead(HeadConfig("linear", WIDTH))
    fit_linear(head, features, flipped, 0)
    assert head.weight[0, 1] > 1


def test_quantiles_match_a_known_distribution_with_more_objectives_than_quantiles():
    features = made(5000, per_prompt=1)
    generator = torch.Generator().manual_seed(2)
    noise = torch.rand(len(features.last), 2, generator=generator)
    # Uniform on [x, x + 1 + |.|]: one objective shifts with a feature, one is the same for all.
    labels = torch.stack([features.last[:, 1] + noise[:, 0], noise[:, 1]], 1)
    labels = torch.cat([labels, torch.full((len(noise), 1), 0.4)], 1)
    head = gated(["shifted", "flat", "constant"], quantiles=4)
    fit_quantiles(head, features, labels, 0)
    with torch.no_grad():
        found = head.quantiles(features.last)
    assert found.shape == (5000, 3, 4)
    assert (found.diff(dim=-1) >= 0).all()
    levels = torch.arange(1, 5) / 5
    error = found[:, 0] - (features.last[:, 1:2] + levels)
    assert error.abs().mean() < 0.05
    torch.testing.assert_close(found[:, 1].mean(0), levels, atol=0.03, rtol=0)
    assert (found[:, 2] - 0.4).abs().mean() < 0.01


def test_quantiles_are_learned_from_wide_features_of_few_answers():
    """Hidden states of a real model are wide, and much of each is the same in all answers."""
    generator = torch.Generator().manual_seed(4)
    count, width = 160, 576
    signal = torch.randn(count, 4, generator=generator)
    mixed = 0.3 * signal @ torch.randn(4, width, generator=generator)
    last = mixed + torch.randn(count, width, generator=generator) + 3.0
    of = torch.arange(count) // 4
    features = Features(last, last[::4], of, [f"p{i}" for i in range(count // 4)])
    labels = 0.5 + 0.2 * signal[:, :1] + 0.2 * torch.randn(count, 1, generator=generator)
    head = GatedHead(HeadConfig("gated", width, ("shifted",), quantiles=5))
    fit_quantiles(head, features, labels, 0)
    with torch.no_grad():
        middle = head.quantiles(last)[:, 0, 2]
    kept = held_out(features.groups(torch.arange(count)), 0)
    both = torch.stack([middle[kept], labels[kept, 0]])
    # Half of the labels' variance is noise: no better than 0.71 can be expected.
    assert kept.sum() >= 20 and torch.corrcoef(both)[0, 1] > 0.5


def test_one_quantile_would_be_the_median_and_risk_looks_at_the_lowest():
    features = made(50)
    mean, averse = gated(["a"], quantiles=4), gated(["a"], quantiles=4, risk=0.5)
    with torch.no_grad():
        for head in (mean, averse):
            head.offset[0] = torch.tensor([0.0, 1.0, 1.0, 1.0])
    every = mean.quantiles(features.last)
    torch.testing.assert_close(mean.objectives(features.last), every.mean(-1))
    torch.testing.assert_close(averse.objectives(features.last), every[..., :2].mean(-1))
    assert (averse.objectives(features.last) < mean.objectives(features.last)).all()


def test_the_quantiles_of_a_reward_are_those_of_its_debiased_objectives():
    features = made(20)
    head = gated(["helpful", "harmless", "length"], quantiles=4, verbosity="length")
    with torch.no_grad():
        head.weight.normal_()
        head.penalty.copy_(torch.tensor([0.5, 2.0, 0.0]))
        scores = head(features.last, features.prompt[features.of])
    parts = [scores.parts[f"quantile/{q / 5:.3g}"] for q in range(1, 5)]
    torch.testing.assert_close(torch.stack(parts).mean(0), scores.reward)


def planted(answers=3000):
    """Two objectives, of which the prompt's first feature says which one counts; and length."""
    features = made(answers)
    features.prompt[:, 1] = torch.where(torch.arange(len(features.prompt)) % 2 == 0, 2.0, -2.0)
    helpful, harmless = features.last[:, 1], features.last[:, 2]
    length = features.last[:, 3]
    labels = torch.stack([helpful + 0.8 * length, harmless, length], 1)
    domain = features.prompt[features.of, 1] > 0
    return features, labels, domain, torch.where(domain, helpful, harmless)


def test_the_gate_finds_the_planted_objective_of_each_domain_and_bias_falls_to_its_bound():
    features, labels, domain, truth = planted()
    config = {"verbosity": "length", "gate_layers": 1, "gate_width": 32, "gate_temperature": 1.0}
    head = gated(["helpful", "harmless", "length"], **config)
    errors = fit_objectives(head, features, labels, 0)
    assert max(errors) < 1e-3
    before = head.quantiles(features.last)[..., 0].detach().double().numpy()
    assert rank_correlation(before[:, 0], before[:, 2]) > 0.5
    left = debias(head, features, 0.03)
    assert set(left) == {"helpful", "harmless"} and max(left.values()) <= 0.03
    # The least penalty that does it, and no more.
    assert left["helpful"] > -0.02
    assert head.penalty[0] > 0.5 and head.penalty[1].abs() < 0.1
    after = head.objectives(features.last).detach().double()
    assert rank_correlation(after[:, 0].numpy(), before[:, 2]) <= 0.03
    assert (after[:, 2] == 0).all()
    log = list(fit_gate(head, features, pairs_of(features, truth), 400, 256, 0))
    right = [row["accuracy"] for row in log]
    assert right[0] < 0.85 and sum(right[-20:]) / 20 > 0.9
    with torch.no_grad():
        weights = head.weights(features.prompt[features.of])
    share = weights / weights.sum(1, keepdim=True)
    assert share[domain, 0].mean() > 0.8 and share[~domain, 1].mean() > 0.8
    assert (weights[:, 2] == 0).all() and (weights >= 0).all()
    torch.testing.assert_close(
        weights.sum(1), head.log_scale.detach().exp().expand(len(weights)), atol=1e-4, rtol=1e-4
    )


def test_the_parts_add_up_to_the_reward_and_both_answers_share_a_gate():
    features, labels, _, truth = planted(400)
    config = {"verbosity": "length", "gate_layers": 1, "gate_width": 8}
    head = gated(["helpful", "harmless", "length"], **config)
    fit_objectives(head, features, labels, 0)
    debias(head, features, 0.03)
    list(fit_gate(head, features, pairs_of(features, truth), 20, 64, 0))
    with torch.no_grad():
        scores = head(features.last, features.prompt[features.of])
    added = sum(v for k, v in scores.parts.items() if k.startswith("objective/"))
    torch.testing.assert_close(added, scores.reward)
    assert "objective/length" not in scores.parts
    gate = scores.parts["gate/helpful"]
    torch.testing.assert_close(gate[0::2], gate[1::2])


def test_missing_labels_are_left_out_and_not_read_as_zero():
    features, labels, *_ = planted(600)
    holes = labels.clone()
    holes[::3, 0] = torch.nan
    head = gated(["helpful", "harmless", "length"])
    fit_objectives(head, features, holes, 0)
    torch.testing.assert_close(
        head.objectives(features.last)[:, 0].detach(), labels[:, 0], atol=0.02, rtol=0
    )


def test_ordinal_ratings_give_back_the_planted_slope_and_thresholds():
    features = made(6000, per_prompt=1)
    edges = torch.tensor([-1.5, 0.0, 1.0])
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(len(features.last), generator=generator)
    latent = 1.2 * features.last[:, 1] + torch.logit(uniform)
    level = (latent[:, None] > edges).sum(1)
    head = OrdinalHead(HeadConfig("ordinal", WIDTH, levels=(1.0, 2.0, 3.0, 4.0)))
    loss = fit_ordinal(head, features, level, 0)
    assert loss < 1.3 < math.log(4)
    assert head.weight[0, 1].item() == pytest.approx(1.2, abs=0.1)
    found = head.thresholds().detach() - head.weight[0, 0].item()
    torch.testing.assert_close(found, edges, atol=0.12, rtol=0)
    with torch.no_grad():
        scores = head(features.last, features.prompt)
    shares = torch.stack([scores.parts[f"rating/{v}"] for v in (1, 2, 3, 4)], 1)
    torch.testing.assert_close(shares.sum(1), torch.ones(6000))
    assert scores.parts["rating"].mean() == pytest.approx((level + 1.0).mean().item(), abs=0.05)


@pytest.mark.parametrize(
    "config",
    [
        HeadConfig("linear", WIDTH),
        HeadConfig("ordinal", WIDTH, levels=(0.0, 0.5, 1.0)),
        HeadConfig("gated", WIDTH, ("a", "b"), "b", 3, 0.5, gate_layers=2, gate_width=4),
    ],
)
def test_a_head_is_the_same_after_saving(tmp_path: Path, config: HeadConfig):
    from rlaif.kernels.heads import make_head

    torch.manual_seed(1)
    head = make_head(config)
    with torch.no_grad():
        for param in head.parameters():
            param.copy_(torch.randn(param.shape))
    save_head(head, tmp_path)
    again = load_head(tmp_path)
    features = made(20)
    prompt = features.prompt[features.of]
    with torch.no_grad():
        first, second = head(features.last, prompt), again(features.last, prompt)
    assert torch.equal(first.reward, second.reward)
    assert first.parts.keys() == second.parts.keys() and again.config == config


def test_a_damaged_head_is_refused_in_words(tmp_path: Path):
    assert load_head(tmp_path) is None
    save_head(LinearHead(HeadConfig("linear", WIDTH)), tmp_path)
    (tmp_path / "reward_head.safetensors").write_bytes(b"torn")
    with pytest.raises(EngineError, match="cannot be read"):
        load_head(tmp_path)


def test_a_linear_fit_hands_on_the_labels_weights_prompts_and_seed(monkeypatch):
    """Four prompts; the second feature is four times as far apart as the first."""
    last = torch.tensor([[1.0, 4.0], [0.0, 0.0], [0.0, 8.0], [2.0, 0.0], [3.0, 4.0], [3.0, 0.0]])
    features = Features(last, torch.zeros(4, 2), torch.tensor([0, 0, 2, 2, 1, 3]), list("abcd"))
    pairs = Comparisons(
        torch.tensor([0, 2, 5]),
        torch.tensor([1, 3, 4]),
        torch.tensor([0.9, 0.25, 0.6]),
        torch.tensor([2.0, 3.0, 5.0]),
    )
    asked = []

    def validate(x, y, groups, folds, seed, **keys):
        asked.append((x, y, groups, folds, seed, keys))
        return CrossValidation(0.125, 0.5, ())

    def fit(x, y, l2, weight):
        asked.append((x, y, l2, weight))
        return np.array([3.0, 5.0])

    monkeypatch.setattr(fits, "cross_validate", validate)
    monkeypatch.setattr(fits, "fit_ridge", fit)
    head = LinearHead(HeadConfig("linear", 2))
    assert fit_linear(head, features, pairs, 13) == 0.5
    (x, y, groups, folds, seed, keys), (again, labels, l2, weight) = asked
    gap = np.array([[1.0, 4.0], [-2.0, 8.0], [0.0, -4.0]])
    size = np.sqrt((gap**2).mean(0))
    np.testing.assert_allclose(x, gap / size)
    np.testing.assert_allclose(again, gap / size)
    for given in (y, labels):
        np.testing.assert_allclose(given, [0.9, 0.25, 0.6], rtol=1e-6)
    for given in (keys["sample_weight"], weight):
        np.testing.assert_allclose(given, [2.0, 3.0, 5.0])
    # A pair is held out with its prompt, in as many folds as there are prompts.
    assert (groups, folds, seed, l2) == (["a", "c", "d"], 3, 13, 0.125)
    assert keys["penalties"][0] == pytest.approx(0.02) and len(keys["penalties"]) == 9
    np.testing.assert_allclose(head.weight.detach()[0], np.array([3.0, 5.0]) / size, rtol=1e-6)


def test_the_first_step_of_a_gate_weighs_and_softens_the_pairs_that_its_seed_draws():
    features, labels, _, truth = planted(40)
    objectives = ["helpful", "harmless", "length"]
    config = {"verbosity": "length", "gate_layers": 1, "gate_width": 8}
    head = gated(objectives, **config)
    fit_objectives(head, features, labels, 0)
    pairs = pairs_of(features, truth)
    count = len(pairs.chosen)
    prob = torch.where(torch.arange(count) % 3 == 0, 0.25, 0.9)
    weight = 1.0 + torch.arange(count) % 5
    given = Comparisons(pairs.chosen, pairs.rejected, prob, weight)
    steps = fit_gate(head, features, given, 3, 6, 11)
    row = next(steps)
    rows = torch.randint(count, (6,), generator=torch.Generator().manual_seed(11))
    # The same head before its first update: only the scale has been set.
    again = gated(objectives, **config)
    fit_objectives(again, features, labels, 0)
    with torch.no_grad():
        values = again.objectives(features.last)
        again.log_scale.copy_(_even_scale(values.sum(1) / 2, given))
        torch.manual_seed(11)
        shares = again.weights(features.prompt[features.of[pairs.chosen[rows]]], GATE_DROPOUT)
        gap = (shares * (values[pairs.chosen[rows]] - values[pairs.rejected[rows]])).sum(1)
    right = torch.nn.functional.logsigmoid(gap), torch.nn.functional.logsigmoid(-gap)
    loss = -(prob[rows] * right[0] + (1 - prob[rows]) * right[1])
    wanted = float((loss * weight[rows]).sum() / weight[rows].sum())
    assert row["loss"] == pytest.approx(wanted, rel=1e-5)
    assert row["accuracy"] == float((gap > 0).float().mean())
    assert len(list(steps)) == 2
