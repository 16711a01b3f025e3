"""Half-samples and sequential folds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from uplift.data import BoolArray
from uplift.errors import DesignError
from uplift.inference import (
    half_sample_errors,
    half_samples,
    sequential_folds,
    sequential_test,
)
from uplift.scores import Estimate, clustered_mean


def test_halves_of_the_customers_with_all_of_their_rows() -> None:
    cluster = np.array([5, 5, 9, 9, 9, 2, 7, 8])
    seen = half_samples(lambda keep: keep.astype(float), cluster, np.random.default_rng(0))
    assert seen.shape == (200, 8)
    assert (seen[:, 0] == seen[:, 1]).all()
    assert (seen[:, 2] == seen[:, 3]).all()
    # Of 5 customers, 2 each time, all as often.
    customers = seen[:, [0, 2, 5, 6, 7]]
    assert (customers.sum(axis=1) == 2).all()
    assert (np.abs(customers.mean(axis=0) - 0.4) < 0.12).all()


def test_the_error_of_a_mean_is_the_clustered_one() -> None:
    rng = np.random.default_rng(1)
    cluster = rng.integers(0, 1000, 3000)
    values = rng.standard_normal(1000)[cluster] + rng.standard_normal(3000)
    found = half_sample_errors(lambda keep: values[keep].mean(), cluster, rng, draws=2000)
    assert float(found) == pytest.approx(clustered_mean(values, cluster).se, rel=0.06)


def test_both_sides_of_a_comparison_see_the_same_halves() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal(500)
    other = values + 0.01 * rng.standard_normal(500)

    def sides(keep: BoolArray) -> np.ndarray:
        a, b = values[keep].mean(), other[keep].mean()
        return np.array([a, b, a - b])

    one, two, difference = half_sample_errors(sides, np.arange(500), rng)
    assert one == pytest.approx(two, rel=0.02)
    assert difference < 0.03 * one


def test_rows_in_another_order_give_the_same_errors() -> None:
    rng = np.random.default_rng(3)
    cluster, values = rng.integers(0, 60, 200), rng.integers(0, 9, 200).astype(float)
    order = rng.permutation(200)

    def error(c: np.ndarray, v: np.ndarray) -> float:
        return float(half_sample_errors(lambda keep: np.sum(v[keep]), c, np.random.default_rng(4)))

    assert error(cluster, values) == error(cluster[order], values[order])


def test_sequential_z_by_hand() -> None:
    steps = [Estimate(2.0, 1.0), Estimate(-1.0, 0.5), Estimate(0.0, 0.0), Estimate(3.0, 2.0)]
    made = sequential_test(steps)
    assert made.z == pytest.approx((2 - 2 + 0 + 1.5) / 2)
    assert made.p_one_sided == pytest.approx(1 - norm.cdf(0.75))
    assert made.p_two_sided == pytest.approx(2 * (1 - norm.cdf(0.75)))
    assert made.steps == tuple(steps)


def test_each_fold_is_measured_by_what_the_earlier_ones_taught() -> None:
    fold = np.array([0, 2, 1, 0, 3, 2, 1])
    seen = []

    def measure(earlier: BoolArray, held: BoolArray) -> Estimate:
        seen.append((sorted(set(fold[earlier])), sorted(set(fold[held])), int(held.sum())))
        return Estimate(1.0, 1.0)

    made = sequential_folds(fold, measure)
    assert seen == [([0], [1], 2), ([0, 1], [2], 2), ([0, 1, 2], [3], 1)]
    assert made.z == pytest.approx(np.sqrt(3))


def test_refusals() -> None:
    rng = np.random.default_rng(5)
    with pytest.raises(DesignError, match="draws: expected at least 200 half-samples, found 50"):
        half_samples(np.mean, np.arange(9), rng, draws=50)
    with pytest.raises(DesignError, match="at least 4 clusters, found 3"):
        half_samples(np.mean, np.array([0, 1, 2, 2]), rng)
    with pytest.raises(DesignError, match="at least 2 folds, found 1"):
        sequential_folds(np.zeros(4, dtype=np.int64), lambda a, b: Estimate(0.0, 1.0))
