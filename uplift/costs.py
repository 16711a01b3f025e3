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


@dataclass(frozen=True)
class FittedCosts:
    """`oof` (n, K) out-of-fold costs of the training rows; `model`, the mean over the folds;
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
        fitted = cross_fit(binned, rows, data.cost[rows], fold, settings)
        predicted = np.maximum(fitted.out_of_fold(data.X, fold, settings.threads), 0)
        total = predicted[rows].sum()
        if total > 0:
            ratios[k - 1] = data.cost[rows].sum() / total
        oof[:, k - 1] = predicted * ratios[k - 1]
        models.append(fitted.full.scaled(ratios[k - 1]))
    return FittedCosts(oof, stack(models), ratios)
