"""How often a report claims: the benchmark of claims, on values that are drawn here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

import claims

REPORTS = 150


def stored(prompts: int = 48) -> claims.Stored:
    """Scores of five levels, checks, lengths and rates of two models on the same prompts."""
    rng = np.random.default_rng(1)
    names = [f"p{i:02d}" for i in range(prompts)]

    def values() -> dict[str, dict[str, float]]:
        columns = {"score/j": rng.choice([0, 0.25, 0.5, 0.75, 1], prompts)}
        columns |= {f"check/c{i}": rng.choice([0.0, 1.0], prompts) for i in range(6)}
        columns["length/words"] = rng.gamma(9, 4, prompts)
        columns["distinct_2"] = rng.beta(8, 2, prompts)
        columns["empty_rate"] = (rng.random(prompts) < 0.05).astype(float)
        return {name: dict(zip(names, c.tolist(), strict=True)) for name, c in columns.items()}

    return claims.Stored(values(), values(), names, None, ["j"])


def test_hardly_any_report_claims_what_is_not_there() -> None:
    found = claims.claimed_share(stored(), 0.0, REPORTS, 1)
    # At most 5% in truth: three standard errors above.
    assert found <= 0.05 + 3 * (0.05 * 0.95 / REPORTS) ** 0.5


def test_what_one_test_finds_in_80_percent_is_claimed() -> None:
    data = stored()
    found = claims.claimed_share(data, claims.planted_leaning(data), REPORTS, 2)
    slack = 3 * (0.8 * 0.2 / REPORTS) ** 0.5
    assert 0.75 - slack <= found <= 0.85 + slack


def test_without_families_half_of_the_null_reports_would_show_colour() -> None:
    assert claims.coloured_share(stored(), 40, 3) > 0.15
