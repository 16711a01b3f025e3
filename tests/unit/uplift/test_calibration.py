"""Calibration: the error by explicit pairs, at the truth and off it; the repairs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from uplift.calibration import (
    ArmCalibration,
    Calibration,
    best_linear_predictor,
    calibration_error,
    cross_calibrated,
    fit_calibration,
    isotonic,
    linear,
)
from uplift.data import FloatArray
from uplift.errors import BundleError, DesignError
from uplift.scores import Estimate, calibration_slope, clustered_mean


def error_by_pairs(
    predicted: list[float], contrast: list[float], cluster: list[int], bins: int
) -> float:
    """Every pair of rows of two customers in one bin, one by one."""
    n = len(predicted)
    part = []
    for p in predicted:
        below, same = sum(q < p for q in predicted), sum(q == p for q in predicted)
        part.append(int((below + same / 2) / n * bins))
    total = covered = 0.0
    for b in range(bins):
        rows = [i for i in range(n) if part[i] == b]
        products = [
            (contrast[i] - predicted[i]) * (contrast[j] - predicted[j])
            for i in rows
            for j in rows
            if cluster[i] != cluster[j]
        ]
        if products:
            total += len(rows) * sum(products) / len(products)
            covered += len(rows)
    return total / covered


def rows(distinct: int, n: int = 80, seed: int = 0) -> tuple[FloatArray, FloatArray, np.ndarray]:
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, distinct, n) / distinct
    return predicted, predicted + rng.standard_normal(n), rng.integers(0, n // 3, n)


@pytest.mark.parametrize(("distinct", "bins"), [(10**6, 10), (10**6, 3), (4, 10), (1, 10)])
def test_error_by_explicit_pairs(distinct: int, bins: int) -> None:
    predicted, contrast, cluster = rows(distinct)
    made = calibration_error(predicted, contrast, cluster, bins)
    by_hand = error_by_pairs(predicted.tolist(), contrast.tolist(), cluster.tolist(), bins)
    assert made.value == pytest.approx(by_hand, abs=1e-12)


def test_the_error_of_the_error_is_the_jackknife_over_customers() -> None:
    """Bins that do not change when a customer leaves: four levels of prediction."""
    predicted, contrast, cluster = rows(4, seed=1)
    names = np.unique(cluster)
    values = np.array(
        [
            calibration_error(
                predicted[cluster != g], contrast[cluster != g], cluster[cluster != g]
            ).value
            for g in names
        ]
    )
    jackknife = np.sqrt((len(names) - 1) / len(names) * np.sum((values - values.mean()) ** 2))
    found = calibration_error(predicted, contrast, cluster)
    assert found.se == pytest.approx(jackknife, rel=1e-10)


def test_row_order_changes_no_bit() -> None:
    predicted, contrast, cluster = rows(9, 500, seed=2)
    order = np.random.default_rng(3).permutation(500)
    one = calibration_error(predicted, contrast, cluster)
    assert one == calibration_error(predicted[order], contrast[order], cluster[order])
    assert isotonic(predicted, contrast) == isotonic(predicted[order], contrast[order])


def test_at_the_truth_the_error_is_nothing_and_pairs_of_one_customer_would_make_it_something() -> (
    None
):
    """Four waves a customer with noise in common."""
    rng = np.random.default_rng(4)
    debiased, by_rows = np.empty(400), np.empty(400)
    for r in range(400):
        tau = np.repeat(rng.standard_normal(150), 4)
        noise = np.repeat(rng.standard_normal(150), 4) + rng.standard_normal(600)
        cluster = np.repeat(np.arange(150), 4)
        debiased[r] = calibration_error(tau, tau + noise, cluster).value
        by_rows[r] = calibration_error(tau, tau + noise, np.arange(600)).value
    assert abs(debiased.mean()) < 3 * debiased.std(ddof=1) / 20
    assert (debiased < 0).any(), "unbiased at 0 means below 0 at times"
    assert by_rows.mean() > 10 * by_rows.std(ddof=1) / 20


def test_twice_the_effect_has_the_error_that_it_has() -> None:
    """tau uniform on (-1, 1), predicted 2 tau: u = -tau, in tenths with means -.9, ..., .9."""
    rng = np.random.default_rng(5)
    truth = np.mean(np.arange(-0.9, 1.0, 0.2) ** 2)
    made = []
    for _ in range(200):
        tau = rng.uniform(-1, 1, 1000)
        made.append(calibration_error(2 * tau, tau + rng.standard_normal(1000), np.arange(1000)))
    values = np.array([m.value for m in made])
    assert abs(values.mean() - truth) < 3 * values.std(ddof=1) / np.sqrt(200) + 0.001
    assert np.mean([m.se for m in made]) == pytest.approx(values.std(ddof=1), rel=0.15)


def test_best_linear_predictor() -> None:
    predicted, contrast, cluster = rows(10**6, 500, seed=6)
    a, b = best_linear_predictor(predicted, contrast, cluster)
    assert a == clustered_mean(contrast, cluster)
    assert b == calibration_slope(predicted, contrast, cluster)
    slope, level = np.polyfit(predicted - predicted.mean(), contrast, 1)
    assert (a.value, b.value) == (pytest.approx(level), pytest.approx(slope))


@pytest.mark.parametrize("distinct", [5, 60, 10**6])
def test_isotonic_is_the_isotonic_regression(distinct: int) -> None:
    predicted, contrast, _ = rows(distinct, 400, seed=7)
    made = isotonic(predicted, contrast)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(predicted, contrast)
    np.testing.assert_allclose(made(predicted), theirs.predict(predicted), atol=1e-10)
    # Its mean is that of D, in all and on every step.
    calibrated = made(predicted)
    for value in made.value:
        step = calibrated == value
        assert contrast[step].mean() == pytest.approx(value, abs=1e-12)
    assert calibrated.mean() == pytest.approx(contrast.mean(), abs=1e-12)


def test_isotonic_beyond_and_between_its_knots() -> None:
    made = isotonic(np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 1.0, 8.0, 9.0]))
    assert (made.at, made.value) == ((1.0, 3.0, 4.0), (3.0, 8.0, 9.0))
    asked = np.array([-9.0, 1.0, 2.99, 3.0, 99.0])
    assert made(asked).tolist() == [3.0, 3.0, 3.0, 8.0, 9.0]
    falling = isotonic(np.arange(4.0), -np.arange(4.0))
    assert (falling.at, falling.value) == ((0.0,), (-1.5,))


@pytest.mark.parametrize("distinct", [7, 10**6])
@pytest.mark.parametrize("min_rows", [2, 30, 399, 10_000])
def test_no_step_rests_on_fewer_rows_than_asked(distinct: int, min_rows: int) -> None:
    predicted, contrast, _ = rows(distinct, 400, seed=8)
    made = isotonic(predicted, contrast, min_rows)(predicted)
    _, count = np.unique(made, return_counts=True)
    assert count.min() >= min(min_rows, 400)
    assert made.mean() == pytest.approx(contrast.mean(), abs=1e-12)
    ranked = np.argsort(predicted)
    assert (np.diff(made[ranked]) >= 0).all()


def test_linear_is_the_best_linear_predictor_and_no_signal_is_the_mean() -> None:
    predicted, contrast, _ = rows(10**6, 400, seed=9)
    made = linear(predicted, contrast)
    slope, level = np.polyfit(predicted, contrast, 1)
    assert made.value == (pytest.approx(level), pytest.approx(slope))
    assert slope > 0
    against = linear(-predicted, contrast)
    assert against(predicted) == pytest.approx(np.full(400, contrast.mean()))
    flat = linear(np.full(400, 3.0), contrast)
    assert flat(np.array([3.0, 8.0])) == pytest.approx(np.full(2, contrast.mean()))


def world(n: int, seed: int) -> tuple[FloatArray, FloatArray, FloatArray, np.ndarray]:
    """Two arms whose effects are predicted four times too spread, in the right order; the true
    effects; scores; folds."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2))
    tau = np.column_stack([0.3 + 0.2 * x[:, 0], 0.1 * np.tanh(x[:, 1])])
    gamma = np.column_stack([np.zeros(n), tau]) + rng.standard_normal((n, 3))
    return 4 * tau - 1, tau, gamma, rng.integers(0, 5, n)


@pytest.mark.parametrize("kind", ["isotonic", "linear"])
def test_a_repair_learned_on_other_rows_repairs(kind: str) -> None:
    effects, _, gamma, _ = world(20_000, 10)
    made = fit_calibration(kind, effects, gamma, min_rows=200)
    fresh, truth, fresh_gamma, _ = world(20_000, 11)
    repaired = made(fresh)
    before = np.sqrt(np.mean((fresh - truth) ** 2, axis=0))
    after = np.sqrt(np.mean((repaired - truth) ** 2, axis=0))
    assert (after < 0.06).all()
    assert (before > 0.5).all()
    cluster = np.arange(20_000)
    for k in range(2):
        contrast = fresh_gamma[:, k + 1] - fresh_gamma[:, 0]
        slope = calibration_slope(repaired[:, k], contrast, cluster)
        assert abs(slope.value - 1) < 4 * slope.se
        assert calibration_slope(fresh[:, k], contrast, cluster).hi < 0.5
        assert abs(calibration_error(repaired[:, k], contrast, cluster).value) < 0.004


def test_calibrated_out_of_fold_effects_have_not_seen_their_own_fold() -> None:
    effects, _, gamma, fold = world(1000, 12)
    made = cross_calibrated("isotonic", effects, gamma, fold)
    for f in range(5):
        held = fold == f
        other = fit_calibration("isotonic", effects[~held], gamma[~held])
        np.testing.assert_array_equal(made[held], other(effects[held]))
    shifted = gamma.copy()
    shifted[fold == 2, 1:] += 100
    again = cross_calibrated("isotonic", effects, shifted, fold)
    np.testing.assert_array_equal(again[fold == 2], made[fold == 2])
    assert (again[fold != 2] > made[fold != 2] + 5).mean() > 0.5


def test_only_rows_that_could_get_an_arm_teach_its_calibration() -> None:
    effects, _, gamma, _ = world(1000, 13)
    eligible = np.random.default_rng(14).random((1000, 2)) < 0.6
    eligible[:, 1] &= np.arange(1000) < 1
    spoiled = gamma.copy()
    spoiled[:, 1] += np.where(eligible[:, 0], 0.0, 1e6)
    made = fit_calibration("isotonic", effects, spoiled, eligible)
    rows = eligible[:, 0]
    assert made.arms[0] == isotonic(effects[rows, 0], (gamma[:, 1] - gamma[:, 0])[rows])
    assert made.arms[1] == ArmCalibration("identity")
    np.testing.assert_array_equal(made(effects)[:, 1], effects[:, 1])


def test_json_and_back() -> None:
    effects, _, gamma, _ = world(500, 15)
    made = Calibration(
        (
            fit_calibration("isotonic", effects, gamma).arms[0],
            fit_calibration("linear", effects, gamma).arms[1],
        )
    )
    again = Calibration.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))
    assert again == made
    np.testing.assert_array_equal(again(effects), made(effects))
    # One row alone gets what it gets among others.
    np.testing.assert_array_equal(made(effects[7:8]), made(effects)[7:8])


def test_median_over_folds() -> None:
    made = Calibration((ArmCalibration("isotonic", (0.0, 1.0, 2.0), (10.0, 20.0, 40.0)),))
    folds = np.array([[[0.5]], [[1.5]], [[7.0]]])
    assert made.median(folds).tolist() == [[20.0]]


@pytest.mark.parametrize(
    "data",
    [
        [{"kind": "isotonic", "at": [1.0, 0.0], "value": [1.0, 2.0]}],
        [{"kind": "isotonic", "at": [0.0, 1.0], "value": [2.0, 1.0]}],
        [{"kind": "isotonic", "at": [0.0], "value": []}],
        [{"kind": "isotonic", "at": [0.0], "value": [float("nan")]}],
        [{"kind": "linear", "at": [], "value": [1.0]}],
        [{"kind": "cubic", "at": [], "value": []}],
        [{"kind": "linear", "at": []}],
        [{"kind": "linear", "at": None, "value": [1.0, 2.0]}],
        [3],
    ],
)
def test_damaged_calibrations_are_refused(data: list) -> None:
    with pytest.raises(BundleError, match="calibration"):
        Calibration.from_json(data)


def test_refusals() -> None:
    ones = np.ones(4)
    with pytest.raises(DesignError, match="rank holds 4 values that are no finite numbers"):
        calibration_error(ones * np.nan, ones, np.arange(4))
    with pytest.raises(DesignError, match="needs two customers in a bin, found 2 customers"):
        calibration_error(np.arange(2.0), np.ones(2), np.arange(2))
    with pytest.raises(DesignError, match="expected isotonic or linear, found 'cubic'"):
        fit_calibration("cubic", np.ones((4, 1)), np.ones((4, 2)))
    with pytest.raises(DesignError, match="one contrast per predicted effect, of at least 2 rows"):
        isotonic(ones, np.ones(3))
    with pytest.raises(DesignError, match="finite effects and contrasts"):
        linear(ones * np.nan, ones)
    with pytest.raises(DesignError, match=r"effects of 1 arms, found an array of shape \(4, 2\)"):
        Calibration((ArmCalibration("identity"),))(np.ones((4, 2)))


def test_bins_of_a_single_customer_carry_no_weight() -> None:
    """Bins with a single customer carry no pair and no weight."""
    predicted = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    contrast = np.array([1.0, 3.0, 2.0, 50.0, 60.0, 70.0])
    cluster = np.array([0, 1, 2, 3, 3, 3])
    made = calibration_error(predicted, contrast, cluster, 2)
    assert made.value == pytest.approx((1 * 3 + 1 * 2 + 3 * 2) / 3, abs=1e-12)
    assert isinstance(made, Estimate)
