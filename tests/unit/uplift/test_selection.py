"""Who is taken: the combination, a clear winner, and nobody by luck."""

from __future__ import annotations

import numpy as np
import pytest

from uplift.data import FloatArray
from uplift.errors import DesignError
from uplift.scores import Estimate, clustered_mean
from uplift.selection import select


def chosen(rows: dict[str, FloatArray]) -> str:
    """By gains per row (n,) of each candidate."""

    def less_than(one: str, other: str) -> Estimate:
        return clustered_mean(rows[other] - rows[one], np.arange(len(rows[one])))

    return select({name: float(values.mean()) for name, values in rows.items()}, less_than)


def test_a_clear_winner_is_taken_and_a_lucky_one_is_not() -> None:
    noise = np.random.default_rng(0).standard_normal(1_000)
    noise -= noise.mean()
    rows = dict.fromkeys(("ensemble", "s", "x"), 0 * noise)
    rows["s"] = noise + 1.0 * noise.std() / np.sqrt(1_000)  # better by one standard error
    assert chosen(rows) == "ensemble"
    rows["x"] = noise + 4.0 * noise.std() / np.sqrt(1_000)
    assert chosen(rows) == "x"


def test_every_candidate_counts() -> None:
    """Better by 1.8 standard errors: clear against one rival, not among ten."""
    noise = np.random.default_rng(1).standard_normal(1_000)
    noise -= noise.mean()
    lucky = noise + 1.8 * noise.std() / np.sqrt(1_000)
    assert chosen({"ensemble": 0 * noise, "s": lucky}) == "s"
    crowd = {f"s{j}": 0 * noise - 1 for j in range(9)}
    assert chosen({"ensemble": 0 * noise, "s": lucky, **crowd}) == "ensemble"


def test_the_highest_gain_without_a_combination() -> None:
    rows = {"s": np.array([0.0, 1.0]), "t": np.array([1.0, 1.0]), "x": np.array([0.0, 0.0])}
    assert chosen(rows) == "t"
    assert chosen({**rows, "average": np.array([0.9, 0.2])}) == "average"
    with pytest.raises(DesignError, match="no candidate"):
        chosen({})


def test_without_differences_the_combination_is_kept_at_the_stated_level() -> None:
    """Of 2,000 draws with four candidates alike, at most 5% leave the combination (but for three
    Monte Carlo errors)."""
    rng = np.random.default_rng(2)
    left = 0
    for _ in range(2_000):
        rows = rng.standard_normal((5, 60)) + 2 * rng.standard_normal(60)
        names = ("ensemble", "s", "t", "x", "r")
        left += chosen(dict(zip(names, rows, strict=True))) != "ensemble"
    assert left / 2_000 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2_000)
