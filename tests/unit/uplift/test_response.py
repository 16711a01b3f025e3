"""Response models are calibrated on customers that they have not seen."""

from __future__ import annotations

import numpy as np
import pytest

from uplift.boosting import Binned, Settings
from uplift.effects import EffectModel, sigmoid
from uplift.response import FittedResponse, ResponseModel, fit_response, platt

SETTINGS = Settings(rounds=60, learning_rate=0.1, num_leaves=7, min_child_samples=20, threads=1)


def customers(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, true probability, outcome."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3)).astype(np.float32)
    p = sigmoid(-1.2 + 1.2 * X[:, 0].astype(float) + 0.6 * (X[:, 1] > 0))
    return X, p, (rng.random(n) < p).astype(float)


@pytest.fixture(scope="module")
def fitted() -> FittedResponse:
    X, _, y = customers(5000, 1)
    fold = np.random.default_rng(2).integers(0, 4, 5000)
    rows = np.arange(0, 5000, 2)  # the controls
    return fit_response(Binned(X, [], 1), X, rows, y[rows], fold, SETTINGS)


def test_calibrated_on_held_out_customers(fitted: FittedResponse) -> None:
    X, truth, y = customers(20_000, 3)
    p = fitted.model.predict(X, 1)
    slope, intercept = platt(np.log(p / (1 - p)), y)
    # 2,500 training rows; the bounds of the gate (statistics.md, section 11).
    assert 0.85 < slope < 1.2
    assert abs(intercept) < 0.2
    assert 0.93 < p.mean() / y.mean() < 1.07
    assert np.corrcoef(p, truth)[0, 1] > 0.95
    for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 1.0)):
        part = (p >= low) & (p < high)
        assert p[part].mean() == pytest.approx(truth[part].mean(), abs=0.04)


def test_out_of_fold_probabilities_cover_every_row_and_keep_the_mean(
    fitted: FittedResponse,
) -> None:
    X, truth, y = customers(5000, 1)
    rows = np.arange(0, 5000, 2)
    assert fitted.oof.shape == (5000,)
    # A logistic regression with intercept keeps the mean of its own rows, exactly.
    assert fitted.oof[rows].mean() == pytest.approx(y[rows].mean(), abs=1e-4)
    assert np.corrcoef(fitted.oof, truth)[0, 1] > 0.9
    noise = (y - truth)[rows]
    assert abs(np.corrcoef(fitted.oof[rows] - truth[rows], noise)[0, 1]) < 3.5 / np.sqrt(2500)
    assert not np.array_equal(fitted.oof, fitted.model.predict(X, 1))


def test_calibration_never_changes_the_ranking(fitted: FittedResponse) -> None:
    X, _, _ = customers(500, 4)
    raw, p = fitted.model.log_odds.predict(X, 1)[:, 0], fitted.model.predict(X, 1)
    assert fitted.model.slope > 0
    assert np.array_equal(np.argsort(raw, kind="stable"), np.argsort(p, kind="stable"))


def test_saved_and_loaded_predicts_the_same_bits(fitted: FittedResponse) -> None:
    X, _, _ = customers(300, 5)
    spec, files = fitted.model.to_files("response")
    loaded = ResponseModel.from_files(spec, files)
    assert np.array_equal(loaded.predict(X, 1), fitted.model.predict(X, 1))
    assert (loaded.slope, loaded.intercept) == (fitted.model.slope, fitted.model.intercept)


def test_platt_finds_the_line_that_made_the_outcomes() -> None:
    rng = np.random.default_rng(6)
    log_odds = rng.standard_normal(200_000)
    y = (rng.random(200_000) < sigmoid(0.4 + 0.6 * log_odds)).astype(float)
    slope, intercept = platt(log_odds, y)
    assert slope == pytest.approx(0.6, abs=0.02)
    assert intercept == pytest.approx(0.4, abs=0.02)
    # The score equations of maximum likelihood hold.
    residual = y - sigmoid(intercept + slope * log_odds)
    assert abs(residual.mean()) < 1e-4
    assert abs((residual * log_odds).mean()) < 1e-4


@pytest.mark.parametrize(
    ("log_odds", "y"),
    [
        (np.zeros(10), np.array([1.0] * 3 + [0.0] * 7)),
        (np.arange(10.0), np.array([1.0] * 3 + [0.0] * 7)),
    ],
    ids=["constant", "turned round"],
)
def test_platt_without_a_ranking_keeps_the_rate(log_odds: np.ndarray, y: np.ndarray) -> None:
    slope, intercept = platt(log_odds, y)
    assert slope == 0.0
    assert sigmoid(np.array([intercept])).item() == pytest.approx(0.3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_platt_with_one_outcome_stays_finite(value: float) -> None:
    slope, intercept = platt(np.arange(10.0), np.full(10, value))
    assert slope == 0.0
    assert sigmoid(np.array([intercept])).item() == pytest.approx(value, abs=1e-6)


def test_platt_of_a_perfect_ranking_stays_finite() -> None:
    log_odds = np.linspace(-3, 3, 100)
    slope, intercept = platt(log_odds, (log_odds > 0).astype(float))
    assert np.isfinite([slope, intercept]).all()
    p = sigmoid(intercept + slope * log_odds)
    assert p[log_odds > 0.1].min() > 0.9 > 0.1 > p[log_odds < -0.1].max()


@pytest.mark.parametrize("positives", [0, 3])
def test_too_few_buyers_give_the_rate_to_everyone(positives: int) -> None:
    X, _, _ = customers(400, 7)
    y = np.zeros(400)
    y[:positives] = 1
    fold = np.random.default_rng(8).integers(0, 3, 400)
    made = fit_response(Binned(X, [], 1), X, np.arange(400), y, fold, SETTINGS)
    assert made.rounds == 0
    assert made.model.predict(X, 1) == pytest.approx(np.full(400, positives / 400), abs=1e-6)


def test_probability_by_hand() -> None:
    model = ResponseModel(EffectModel(np.array([2.0])), 0.5, -1.0)
    assert model.predict(np.zeros((2, 1), dtype=np.float32)).tolist() == [0.5, 0.5]
