"""The evaluation core beside econml's, by others: scores, effects, slopes, curves, areas."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.truth.worlds import draw_arms
from uplift.calibration import best_linear_predictor
from uplift.data import FloatArray, IntArray
from uplift.nuisances import doubly_robust
from uplift.ranking import rank_rows
from uplift.scores import ScoreMatrix

DRTester = pytest.importorskip("econml.validate.drtester").DRTester
econml_utils = pytest.importorskip("econml.validate.utils")

ROWS, ARMS = 2000, 2


@pytest.fixture(scope="module")
def drawn() -> tuple[FloatArray, FloatArray, IntArray, FloatArray, FloatArray]:
    """Means that are wrong, probabilities that differ between rows, arms, outcomes and predicted
    effects without ties."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((ROWS, 3))
    odds = np.exp(np.column_stack([np.zeros(ROWS), 0.5 * x[:, 0], -0.3 * x[:, 1]]))
    e = odds / odds.sum(axis=1, keepdims=True)
    arm = draw_arms(e, rng)
    tau = np.column_stack([np.zeros(ROWS), 0.5 + 0.5 * x[:, 0], x[:, 2]])
    y = x[:, 1] + tau[np.arange(ROWS), arm] + rng.standard_normal(ROWS)
    mu = tau + 0.5 * x[:, [1]] + 0.3 * rng.standard_normal((ROWS, 3))
    return mu, e, arm, y, tau[:, 1:] + 0.5 * rng.standard_normal((ROWS, ARMS))


def asked(contrast: FloatArray, predicted: FloatArray) -> Any:
    """econml's tester, told scores and predictions instead of learning them."""
    made = DRTester(model_regression=None, model_propensity=None, cate=SimpleNamespace())
    made.n_treat, made.treatments = contrast.shape[1], np.arange(contrast.shape[1] + 1)
    made.dr_val_, made.ate_val = contrast, contrast.mean(axis=0)
    made.cate_preds_val_ = made.cate_preds_train_ = predicted
    return made


def contrast_of(drawn: Any) -> FloatArray:
    mu, e, arm, y, _ = drawn
    gamma = doubly_robust(mu, e, arm, y)
    out: FloatArray = gamma[:, 1:] - gamma[:, :1]
    return out


def test_scores_and_effects_are_econmls(drawn: Any) -> None:
    mu, e, arm, y, _ = drawn
    assert e.min() > 0.01  # below, econml clips
    theirs = econml_utils.calculate_dr_outcomes(arm, y, mu, e)
    np.testing.assert_allclose(contrast_of(drawn), theirs, rtol=0, atol=1e-12)
    matrix = ScoreMatrix(doubly_robust(mu, e, arm, y), np.arange(ROWS))
    for k in range(ARMS):
        assert matrix.effect(k + 1).value == pytest.approx(theirs[:, k].mean(), abs=1e-12)


def test_slopes_and_their_errors_are_econmls(drawn: Any) -> None:
    contrast, predicted = contrast_of(drawn), drawn[-1]
    theirs = asked(contrast, predicted).evaluate_blp()
    for k in range(ARMS):
        b = best_linear_predictor(predicted[:, k], contrast[:, k], np.arange(ROWS)).b
        assert b.value == pytest.approx(theirs.params[k], abs=1e-10)
        # Ours counts n - 1 degrees of freedom, HC1 n - 2.
        assert b.se == pytest.approx(theirs.errs[k] * np.sqrt((ROWS - 2) / (ROWS - 1)), rel=1e-9)


def test_curves_are_econmls_point_by_point(drawn: Any) -> None:
    """Its cut at a percentile takes the rows at or above it: a whole number of rows, as ours."""
    contrast, predicted = contrast_of(drawn), drawn[-1]
    shares = np.array([0.05, 0.1, 0.3, 0.5, 0.8])
    for metric in ("toc", "qini"):
        theirs = asked(contrast, predicted).evaluate_uplift(
            percentiles=100 * (1 - shares[::-1]), metric=metric, n_bootstrap=1
        )
        for k in range(ARMS):
            ranking = rank_rows(predicted[:, k], contrast[:, k], np.arange(ROWS))
            curve = theirs.curves[k + 1]
            for share, value in zip(shares[::-1], curve["value"], strict=True):
                toc = ranking.toc(share).value
                ours = toc if metric == "toc" else share * toc
                assert ours == pytest.approx(value, abs=1e-10)


def test_areas_are_econmls_over_all_ranks(drawn: Any) -> None:
    """Percentiles that cut after each row: its sum then lacks the first rank, and nothing else."""
    contrast, predicted = contrast_of(drawn), drawn[-1]
    ranks = np.arange(ROWS - 1, 0, -1)
    for metric in ("toc", "qini"):
        theirs = asked(contrast, predicted).evaluate_uplift(
            percentiles=100 * (1 - ranks / ROWS), metric=metric, n_bootstrap=1
        )
        for k in range(ARMS):
            ranking = rank_rows(predicted[:, k], contrast[:, k], np.arange(ROWS))
            first = ranking.toc(1 / ROWS).value / ROWS
            area, lacking = ranking.autoc(), first
            if metric == "qini":
                area, lacking = ranking.qini(), first / ROWS
            assert area.value == pytest.approx(theirs.params[k] + lacking, abs=1e-10)
