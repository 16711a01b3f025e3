"""The score matrix: analytic answers, identities and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest

from uplift.errors import DesignError
from uplift.nuisances import doubly_robust
from uplift.scores import (
    Estimate,
    ScoreMatrix,
    ascending,
    calibration_slope,
    cluster_sums,
    clustered_mean,
    from_influence,
    one_hot,
    top_up_to,
)


def test_interval_and_bound_of_an_estimate() -> None:
    made = Estimate(2.0, 0.5)
    assert (made.lo, made.hi) == pytest.approx((2 - 0.97998, 2 + 0.97998), abs=1e-5)
    assert made.bound == pytest.approx(2 - 0.82243, abs=1e-5)
    assert made.lower(0.05) == pytest.approx(made.bound, abs=1e-12)
    assert made.lower(0.025) == pytest.approx(made.lo, abs=1e-12)
    assert made.upper(0.025) == pytest.approx(made.hi, abs=1e-12)
    assert made.scaled(-3) == Estimate(-6.0, 1.5)
    assert made.to_json() == {"value": 2.0, "se": 0.5, "lo": made.lo, "hi": made.hi}


def test_standard_error_of_single_rows_is_the_textbooks() -> None:
    values = np.random.default_rng(0).standard_normal(500)
    made = clustered_mean(values, np.arange(500))
    assert made.value == pytest.approx(values.mean(), abs=1e-15)
    assert made.se == pytest.approx(values.std(ddof=1) / np.sqrt(500), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1.0, 1e12])
def test_sums_by_cluster_are_exact_in_any_order_of_the_rows(scale: float) -> None:
    rng = np.random.default_rng(7)
    values = rng.standard_t(2, 20_000) * scale
    codes = rng.integers(0, 900, 20_000)
    exact = [math.fsum(values[codes == code]) for code in range(900)]
    found = cluster_sums(values, codes)
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-13 * scale)
    if scale > 1e-250:
        for _ in range(5):
            order = rng.permutation(20_000)
            np.testing.assert_array_equal(cluster_sums(values[order], codes[order]), found)


def test_standard_error_of_equal_clusters_is_that_of_their_means() -> None:
    values = np.random.default_rng(1).standard_normal((80, 4)) + np.arange(80)[:, None] % 7
    cluster = np.repeat(np.random.default_rng(2).permutation(80) * 13, 4)
    made = clustered_mean(values.ravel(), cluster)
    assert made.se == pytest.approx(values.mean(axis=1).std(ddof=1) / np.sqrt(80), rel=1e-12)
    order = np.random.default_rng(3).permutation(320)
    assert clustered_mean(values.ravel()[order], cluster[order]).se == pytest.approx(made.se)


def test_standard_error_agrees_with_a_bootstrap_of_customers() -> None:
    """Clusters of unequal size; the bootstrap draws whole clusters, 4,000 times."""
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 6, 300)
    cluster = np.repeat(np.arange(300), sizes)
    values = rng.standard_normal(300)[cluster] + rng.standard_normal(len(cluster))
    drawn = rng.multinomial(300, np.full(300, 1 / 300), size=4000)
    sums, counts = drawn @ np.bincount(cluster, values), drawn @ sizes
    made = clustered_mean(values, cluster)
    # 4,000 draws know a standard deviation to 1.1%; the ratio's bias is of order 1/300.
    assert made.se == pytest.approx((sums / counts).std(), rel=0.04)
    naive = clustered_mean(values, np.arange(len(values))).se
    assert naive < 0.75 * made.se


def test_one_cluster_gives_no_interval() -> None:
    with pytest.raises(DesignError, match="at least 2 clusters, found 1"):
        from_influence(1.0, np.ones(5), np.zeros(5, dtype=np.int64))


def test_scores_must_be_numbers() -> None:
    with pytest.raises(DesignError, match="score matrix holds values that are no finite numbers"):
        ScoreMatrix(np.array([[0.0, np.nan]]), np.arange(1))


def test_doubly_robust_scores_by_hand() -> None:
    mu = np.array([[1.0, 2.0], [1.0, 2.0]])
    e = np.array([[0.75, 0.25], [0.75, 0.25]])
    made = doubly_robust(mu, e, np.array([0, 1]), np.array([4.0, 4.0]))
    assert made.tolist() == [[1 + 3 / 0.75, 2.0], [1.0, 2 + 2 / 0.25]]
    assert mu.tolist() == [[1.0, 2.0], [1.0, 2.0]], "the means are not changed in place"


def test_a_wrong_mean_does_not_bias_and_wrong_probabilities_do_not_when_the_mean_is_right() -> None:
    rng = np.random.default_rng(5)
    n = 200_000
    x = rng.standard_normal(n)
    e1 = 1 / (1 + np.exp(-x))
    arm = (rng.random(n) < e1).astype(np.int64)
    truth = np.column_stack([np.sin(x), np.sin(x) + 0.4 + 0.2 * x])
    y = truth[np.arange(n), arm] + 0.5 * rng.standard_normal(n)
    e, wrong_e = np.column_stack([1 - e1, e1]), np.full((n, 2), 0.5)
    wrong_mu = np.column_stack([np.full(n, 2.0), -x])

    def ate(mu: np.ndarray, used: np.ndarray) -> Estimate:
        return ScoreMatrix(doubly_robust(mu, used, arm, y), np.arange(n)).effect(1)

    right, known, modelled = ate(truth, e), ate(wrong_mu, e), ate(truth, wrong_e)
    for made in (right, known, modelled):
        assert abs(made.value - 0.4) < 3.3 * made.se
    assert right.se < known.se, "a better mean buys precision"
    both = ate(wrong_mu, wrong_e)
    assert abs(both.value - 0.4) > 20 * both.se, "with both wrong it is biased"


def matrix(n: int = 400, arms: int = 3) -> ScoreMatrix:
    gamma = np.random.default_rng(6).standard_normal((n, arms + 1))
    return ScoreMatrix(gamma, np.arange(n) // 2)


def test_gain_of_policies() -> None:
    made = matrix()
    gamma = made.gamma
    everyone = one_hot(np.full(400, 2), 3)
    assert made.gain(everyone) == made.effect(2)
    assert made.gain(np.zeros((400, 3))) == Estimate(0.0, 0.0)
    choice = np.random.default_rng(7).integers(0, 4, 400)
    direct = np.mean(gamma[np.arange(400), choice] - gamma[:, 0])
    assert made.gain(one_hot(choice, 3)).value == pytest.approx(direct, abs=1e-12)
    mixed = 0.5 * everyone
    assert made.gain(mixed).value == pytest.approx(0.5 * made.effect(2).value, abs=1e-12)


def test_value_is_the_mean_of_the_chosen_scores() -> None:
    made = matrix()
    choice = np.random.default_rng(20).integers(0, 4, 400)
    chosen = made.gamma[np.arange(400), choice]
    found = made.value(one_hot(choice, 3))
    assert found.value == pytest.approx(chosen.mean(), abs=1e-12)
    assert found.se == pytest.approx(clustered_mean(chosen, made.cluster).se, rel=1e-12)
    gain = made.gain(one_hot(choice, 3)).value
    assert found.value - made.value(np.zeros((400, 3))).value == pytest.approx(gain, abs=1e-12)


def test_contrast_of_one_arm_and_of_each_rows_own() -> None:
    made = matrix()
    np.testing.assert_array_equal(made.contrast(2), made.gamma[:, 2] - made.gamma[:, 0])
    own = np.arange(400) % 4
    direct = [made.gamma[i, own[i]] - made.gamma[i, 0] for i in range(400)]
    assert made.contrast(own).tolist() == direct


def test_sums_inside_customers_do_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(21)
    psi, cluster = (
        rng.standard_normal(3000) * 10.0 ** rng.integers(-6, 6, 3000),
        rng.integers(0, 200, 3000),
    )
    base = from_influence(1.0, psi, cluster)
    for _ in range(5):
        order = rng.permutation(3000)
        assert from_influence(1.0, psi[order], cluster[order]) == base


def test_ascending_settles_ties_within() -> None:
    key = np.array([2.0, 1.0, 2.0, 1.0, 3.0])
    order, block = ascending(key, np.array([5, 4, 3, 2, 1]))
    assert order.tolist() == [3, 1, 2, 0, 4]
    assert block.tolist() == [0, 0, 1, 1, 2]
    order, block = ascending(np.zeros(0))
    assert (len(order), len(block)) == (0, 0)


def test_comparison_is_paired() -> None:
    """Policies that differ in ten rows: the error comes from those rows alone."""
    made = matrix()
    one = np.full(400, 1)
    other = one.copy()
    other[:10] = 0
    paired = made.compare(one_hot(one, 3), one_hot(other, 3))
    difference = np.zeros(400)
    difference[:10] = (made.gamma[:, 1] - made.gamma[:, 0])[:10]
    assert paired == clustered_mean(difference, made.cluster)
    unpaired = np.hypot(made.gain(one_hot(one, 3)).se, made.gain(one_hot(other, 3)).se)
    assert paired.se < 0.25 * unpaired
    same = made.compare(one_hot(one, 3), one_hot(one, 3))
    assert (same.value, same.se) == (0.0, 0.0)


def test_one_hot() -> None:
    assert one_hot(np.array([0, 2, 1]), 2).tolist() == [[0, 0], [0, 1], [1, 0]]


def test_top_up_to_spends_exactly() -> None:
    rng = np.random.default_rng(8)
    rank, cost = rng.standard_normal(200), rng.uniform(0.1, 2.0, 200)
    share = top_up_to(rank, cost, 50.0)
    assert share @ cost == pytest.approx(50.0, abs=1e-9)
    assert np.sum((share > 0) & (share < 1)) <= 1
    assert rank[share == 1].min() > rank[share == 0].max()
    assert top_up_to(rank, cost, None).tolist() == [1.0] * 200
    assert top_up_to(rank, cost, 1e9).tolist() == [1.0] * 200
    assert top_up_to(rank, cost, 0.0).tolist() == [0.0] * 200


def test_top_up_to_shares_a_tied_cut() -> None:
    rank = np.array([1.0, 3.0, 1.0, 1.0, 0.0])
    cost = np.array([2.0, 1.0, 1.0, 3.0, 5.0])
    # 1 pays the best row; the 3 that are left pay half of the tied block, which costs 6.
    assert top_up_to(rank, cost, 4.0).tolist() == [0.5, 1.0, 0.5, 0.5, 0.0]
    order = np.array([4, 3, 0, 2, 1])
    assert top_up_to(rank[order], cost[order], 4.0).tolist() == [0.0, 0.5, 0.5, 0.5, 1.0]


def test_top_up_to_takes_what_costs_nothing() -> None:
    """A free row is taken as long as the money reaches to its rank."""
    rank, cost = np.array([3.0, 2.0, 1.0, 0.0]), np.array([1.0, 0.0, 1.0, 0.0])
    assert top_up_to(rank, cost, 1.0).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert top_up_to(rank, cost, 0.5).tolist() == [0.5, 0.0, 0.0, 0.0]
    assert top_up_to(rank, np.zeros(4), 0.0).tolist() == [1.0] * 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_rank_must_be_a_number(bad: float) -> None:
    rank, ones = np.array([1.0, bad, 0.0]), np.ones(3)
    with pytest.raises(DesignError, match="rank holds 1 values that are no finite numbers"):
        top_up_to(rank, ones, 1.0)


def test_calibration_slope_is_one_on_the_truth_and_tells_spread() -> None:
    rng = np.random.default_rng(18)
    tau = rng.standard_normal(50_000)
    contrast = tau + 0.3 + 2 * rng.standard_normal(50_000)
    cluster = np.arange(50_000)
    made = calibration_slope(tau, contrast, cluster)
    assert abs(made.value - 1) < 3.3 * made.se
    assert made.se == pytest.approx(2 / np.sqrt(50_000), rel=0.03)
    assert calibration_slope(2 * tau + 5, contrast, cluster).value == pytest.approx(made.value / 2)
    assert calibration_slope(-tau, contrast, cluster).value == pytest.approx(-made.value)
    noise = calibration_slope(rng.standard_normal(50_000), contrast, cluster)
    assert abs(noise.value) < 3.3 * noise.se
    exact = calibration_slope(tau, tau + 7, cluster)
    assert (exact.value, exact.se) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))


def test_a_constant_prediction_has_no_slope() -> None:
    made = calibration_slope(np.full(50, 0.3), np.arange(50.0), np.arange(50))
    assert made == Estimate(0.0, 0.0)
