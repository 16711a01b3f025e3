"""What each arm is expected to cost a customer, whoever redeems: E[C | x, W = k].

This is the treated-arm expectation, not an uplift: customers who would have bought anyway redeem
as well, and their coupons are paid too. Models per arm on the arm's own rows, scaled so that
their out-of-fold total equals what was paid. Where the catalogue says that one arm is another with
a higher face value, no customer is expected to cost less with it (docs/coupons.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from uplift.boosting import Binned, Settings, cross_fit
from uplift.cores import each
from uplift.data import BoolArray, FloatArray, IntArray, TrainingSet
from uplift.effects import EffectModel
from uplift.nuisances import stack

MIN_ROWS = 100
# Intercept, predicted cost, effect, and the two terms that count above an effect of 0 only.
TERMS = 5


@dataclass(frozen=True)
class FittedCosts:
    """`oof` (n, K) out-of-fold costs of the training rows; `model`, learned from all of them;
    `ratio` (K,) paid over predicted before it was calibrated away."""

    oof: FloatArray
    model: EffectModel
    ratio: FloatArray


def fit_costs(data: TrainingSet, binned: Binned, fold: IntArray, settings: Settings) -> FittedCosts:
    """Fit the cost of each of K arms, currency."""

    def fit_arm(k: int) -> tuple[FloatArray, EffectModel, float]:
        rows = np.flatnonzero(data.arm == k)
        weight = data.weight_of(rows)
        fitted = cross_fit(binned, rows, data.cost[rows], fold, settings, weight=weight)
        predicted = np.maximum(fitted.out_of_fold(data.X, fold, settings.threads), 0)
        total = data.weight[rows] @ predicted[rows]
        ratio = float(data.weight[rows] @ data.cost[rows] / total) if total > 0 else 1.0
        return predicted * ratio, fitted.full.scaled(ratio), ratio

    arms = range(1, data.n_arms + 1)
    columns, models, ratios = zip(*each(settings.threads, fit_arm, arms), strict=True)
    return FittedCosts(np.column_stack(columns), stack(models), np.array(ratios))


def unchanged(arms: int) -> FloatArray:
    """(K, TERMS) the calibration that leaves costs as they are."""
    return np.tile([0.0, 1.0, 0.0, 0.0, 0.0], (arms, 1))


def calibrate_costs(
    data: TrainingSet, cost: FloatArray, cate: FloatArray, least: FloatArray | None = None
) -> FloatArray:
    """(K, TERMS) of the paid cost on predicted cost and effect, per arm, by least squares.

    cost, cate (n, K): out-of-fold predictions; least (K,): below which no cost falls, 0 if not
    given. The terms are c, tau, max(tau, 0) and c max(tau, 0) beside an intercept. Whoever is
    changed by an offer redeems it, and whoever is chosen is whom the model thinks cheap for what
    he brings; so a model that is right on average is too low exactly for those whom a policy
    chooses, and the budget would be passed. The bend at 0 is there because nobody is chosen below
    it. The intercept makes the sum of the calibrated costs of the rows that had the arm what was
    paid for them: choosing is repaired among the customers of a coupon, never by its total.
    """
    out = unchanged(data.n_arms)
    floor = np.zeros(data.n_arms) if least is None else least
    for k in range(data.n_arms):
        rows = data.arm == k + 1
        terms = _terms(cost[rows, k], cate[rows, k])
        above = int((cate[rows, k] > 0).sum())
        bent = min(above, rows.sum() - above) >= MIN_ROWS
        # Without enough on both sides of 0 no bend; where effects never vary, costs alone.
        design = next(
            (terms[:, :t] for t in (TERMS, 3, 2)[not bent :] if _full_rank(terms[:, :t])), None
        )
        if rows.sum() < MIN_ROWS or design is None:
            continue
        weight, paid = data.weight[rows], data.cost[rows]
        root = np.sqrt(weight)
        line = np.linalg.lstsq(design * root[:, None], paid * root, rcond=None)[0]
        line[0] += _shift(design @ line, floor[k], weight, paid)
        out[k, : len(line)] = line
        out[k, len(line) :] = 0.0
    return out


def calibrated(calibration: FloatArray, cost: FloatArray, cate: FloatArray) -> FloatArray:
    """(n, K) costs from `calibrate_costs`, never below 0."""
    terms = _terms(cost, cate)[..., : calibration.shape[1]]
    out: FloatArray = np.maximum((terms * calibration).sum(axis=-1), 0.0)
    return out


def in_order(cost: FloatArray, dearer: BoolArray) -> FloatArray:
    """(n, K) costs that keep an order of the arms. cost (n, K); dearer (K, K), a partial order:
    arm i is never cheaper than arm j.

    Half of the greatest cost among an arm and those below it and the least among it and those above
    it: of all costs in that order none comes nearer in the largest change (Ubhaya 1974), so they
    are never further from costs that truly are in it, and costs that are in it stay to the last
    bit. Two arms that are the wrong way round meet in the middle, and their sum stays.
    """
    if not dearer.any():
        return cost
    reach = dearer | np.eye(len(dearer), dtype=bool)
    out = np.empty_like(cost)
    for k in range(cost.shape[1]):
        low, high = cost[:, reach[k]].max(axis=1), cost[:, reach[:, k]].min(axis=1)
        out[:, k] = (low + high) / 2
    return out


def _terms(cost: FloatArray, cate: FloatArray) -> FloatArray:
    """(..., TERMS) from costs and effects of the same shape."""
    above = np.maximum(cate, 0.0)
    return np.stack([np.ones_like(cost), cost, cate, above, cost * above], axis=-1)


def _full_rank(design: FloatArray) -> bool:
    return bool(np.linalg.matrix_rank(design) == design.shape[1])


def _shift(line: FloatArray, floor: float, weight: FloatArray, paid: FloatArray) -> float:
    """What to add so that costs, cut off at the floor, add up to what was paid; 0 where nothing
    lies below the floor, or where less was paid than it."""
    total = float(weight @ paid)

    def over(shift: float) -> float:
        return float(weight @ np.maximum(line + shift, floor)) - total

    lowest = floor - float(line.max())
    if line.min() >= floor or over(0.0) <= 0 or over(lowest) >= 0:
        return 0.0
    return float(brentq(over, lowest, 0.0, xtol=1e-12))
