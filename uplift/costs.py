"""What each arm is expected to cost a customer, whoever redeems: E[C | x, W = k].

This is the treated-arm expectation, not an uplift: customers who would have bought anyway redeem
as well, and their coupons are paid too. Models per arm on the arm's own rows, scaled so that
their out-of-fold total equals what was paid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uplift.boosting import Binned, Settings, cross_fit
from uplift.data import FloatArray, IntArray, TrainingSet
from uplift.effects import EffectModel
from uplift.nuisances import stack

MIN_ROWS = 100


@dataclass(frozen=True)
class FittedCosts:
    """`oof` (n, K) out-of-fold costs of the training rows; `model`, learned from all of them;
    `ratio` (K,) paid over predicted before it was calibrated away."""

    oof: FloatArray
    model: EffectModel
    ratio: FloatArray


def fit_costs(data: TrainingSet, binned: Binned, fold: IntArray, settings: Settings) -> FittedCosts:
    """Fit the cost of each of K arms, currency."""
    oof = np.empty((len(data), data.n_arms))
    models, ratios = [], np.ones(data.n_arms)
    for k in range(1, data.n_arms + 1):
        rows = np.flatnonzero(data.arm == k)
        weight = data.weight_of(rows)
        fitted = cross_fit(binned, rows, data.cost[rows], fold, settings, weight=weight)
        predicted = np.maximum(fitted.out_of_fold(data.X, fold, settings.threads), 0)
        total = data.weight[rows] @ predicted[rows]
        if total > 0:
            ratios[k - 1] = data.weight[rows] @ data.cost[rows] / total
        oof[:, k - 1] = predicted * ratios[k - 1]
        models.append(fitted.full.scaled(ratios[k - 1]))
    return FittedCosts(oof, stack(models), ratios)


def calibrate_costs(data: TrainingSet, cost: FloatArray, cate: FloatArray) -> FloatArray:
    """(K, 3) intercept and slopes of the paid cost on predicted cost and predicted effect.

    cost, cate (n, K): out-of-fold predictions. Whoever is changed by an offer redeems it, so cost
    and effect rise together; a cost model that is a little too smooth is then too low exactly for
    the customers whom a policy chooses, and the budget would be passed. Regressing what was paid
    on both makes the sum right for any choice that depends on them linearly.
    """
    out = np.tile([0.0, 1.0, 0.0], (data.n_arms, 1))
    for k in range(data.n_arms):
        rows = data.arm == k + 1
        design = np.column_stack([np.ones(rows.sum()), cost[rows, k], cate[rows, k]])
        if rows.sum() >= MIN_ROWS and np.linalg.matrix_rank(design) == design.shape[1]:
            root = np.sqrt(data.weight[rows])
            scaled = design * root[:, None]
            out[k] = np.linalg.lstsq(scaled, data.cost[rows] * root, rcond=None)[0]
    return out


def calibrated(calibration: FloatArray, cost: FloatArray, cate: FloatArray) -> FloatArray:
    """(n, K) costs from `calibrate_costs`, never below 0."""
    b0, b1, b2 = calibration.T
    out: FloatArray = np.maximum(b0 + b1 * cost + b2 * cate, 0.0)
    return out
