"""Are predicted effects right on average at every level, and a repair where they are not.

Measures, on rows that no model has seen (D is the doubly robust contrast, tau the prediction):

    debiased squared error in ten score bins (Xu & Yadlowsky 2022), u = D - tau:
        sum_b n_b/n * [(sum u)^2 - sum_g (sum_{i in g} u)^2] / [n_b^2 - sum_g n_bg^2]
    best linear predictor  D = a + b (tau - mean tau)      (Chernozhukov, Demirer et al. 2018)

Repairs, learned from out-of-fold effects and never from test rows: causal isotonic calibration
(van der Laan, Ulloa-Perez, Carone & Luedtke 2023) and a straight line.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from uplift.data import BoolArray, Float32Array, FloatArray, IntArray
from uplift.effects import EffectModel, TermValues
from uplift.errors import BundleError, DesignError
from uplift.scores import (
    Estimate,
    calibration_slope,
    cluster_codes,
    clustered_mean,
    refuse_missing_ranks,
)

KINDS = ("isotonic", "linear")


class BestLinearPredictor(NamedTuple):
    """a, the average effect; b, 1 when calibrated, below 1 when too spread, 0 without signal."""

    a: Estimate
    b: Estimate


def best_linear_predictor(
    predicted: FloatArray, contrast: FloatArray, cluster: IntArray
) -> BestLinearPredictor:
    """D = a + b (tau - mean tau), all (n,); clustered errors."""
    return BestLinearPredictor(
        clustered_mean(contrast, cluster), calibration_slope(predicted, contrast, cluster)
    )


def calibration_error(
    predicted: FloatArray, contrast: FloatArray, cluster: IntArray, bins: int = 10
) -> Estimate:
    """Squared L2 calibration error, debiased, with a jackknife error over customers.

    predicted, contrast, cluster (n,). Bins hold equal numbers of rows; equal predictions share
    one. Pairs of rows of one customer are left out, since their errors go together, and so are
    bins with a single customer. The value may be negative and is 0 on average when calibrated:
    it must not be cut at 0 before it is averaged. Near 0 its distribution is not normal; whether
    effects are calibrated is what the interval of the slope b says.
    """
    refuse_missing_ranks(predicted)
    codes, groups = cluster_codes(cluster)
    part = _score_bins(predicted, bins)
    # One cell per bin and customer; in a cell in an order of its own, so that sums do not depend
    # on the order of the rows.
    key, gap = part * groups + codes, contrast - predicted
    order = np.lexsort((gap, key))
    key = key[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    error = np.add.reduceat(gap[order], first)
    count = np.diff(first, append=len(order)).astype(np.float64)
    cell_bin, cell_group = key[first] // groups, key[first] % groups

    def per_bin(values: FloatArray) -> FloatArray:
        out: FloatArray = np.bincount(cell_bin, weights=values, minlength=bins).astype(np.float64)
        return out

    total, square = per_bin(error), per_bin(error**2)
    rows, pairs = per_bin(count), per_bin(count**2)
    term, used = _bin_terms(total, square, rows, pairs)
    if used.sum() == 0:
        raise DesignError(
            f"the calibration error needs two customers in a bin, found {groups} customers in all. "
            "Evaluate on more customers."
        )
    # Without one customer, only the bins with rows of that customer change.
    less, kept = _bin_terms(
        total[cell_bin] - error,
        square[cell_bin] - error**2,
        rows[cell_bin] - count,
        pairs[cell_bin] - count**2,
    )
    without = term.sum() + np.bincount(cell_group, weights=less - term[cell_bin], minlength=groups)
    weight = used.sum() + np.bincount(cell_group, weights=kept - used[cell_bin], minlength=groups)
    value = float(term.sum() / used.sum())
    left_out = without[weight > 0] / weight[weight > 0]
    spread = float(np.sum((left_out - left_out.mean()) ** 2))
    return Estimate(value, math.sqrt((groups - 1) / groups * spread))


def _bin_terms(
    total: FloatArray, square: FloatArray, rows: FloatArray, pairs: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Rows times the mean product over pairs of two customers, and the rows that this covers."""
    products = rows**2 - pairs
    some = products > 0.5
    term = np.where(some, rows * (total**2 - square) / np.where(some, products, 1.0), 0.0)
    return term, np.where(some, rows, 0.0)


def _score_bins(predicted: FloatArray, bins: int) -> IntArray:
    """(n,) bin of each row by its rank; a tied block goes where its middle lies."""
    _, block, size = np.unique(predicted, return_inverse=True, return_counts=True)
    middle = np.cumsum(size) - size / 2
    return np.floor(middle / len(predicted) * bins).astype(np.int64)[block]


@dataclass(frozen=True)
class ArmCalibration:
    """A map from predicted to calibrated effects of one arm.

    `at` and `value` (knots,): isotonic, the effect is `value[j]` from `at[j]` up to the next knot,
    and the first value below; linear, `value` is (intercept, slope) and `at` is empty; identity,
    both are empty.
    """

    kind: str
    at: tuple[float, ...] = ()
    value: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        whole = all(math.isfinite(v) for v in (*self.at, *self.value))
        if self.kind == "identity":
            fits = not self.at and not self.value
        elif self.kind == "linear":
            fits = not self.at and len(self.value) == 2
        elif self.kind == "isotonic":
            fits = (
                0 < len(self.at) == len(self.value)
                and bool(np.all(np.diff(self.at) > 0))
                and bool(np.all(np.diff(self.value) >= 0))
            )
        else:
            fits = False
        if not (fits and whole):
            raise BundleError(
                f"damaged calibration of kind {self.kind!r}: expected identity, linear with "
                f"intercept and slope, or isotonic with rising knots, found {len(self.at)} knots "
                f"and {len(self.value)} values. Train again."
            )

    def __call__(self, effects: FloatArray) -> FloatArray:
        """Calibrated effects, in the shape of `effects`; each depends on its own entry alone."""
        if self.kind == "identity":
            return effects
        if self.kind == "linear":
            return self.value[0] + self.value[1] * effects
        knot = np.searchsorted(np.asarray(self.at), effects, side="right") - 1
        return np.asarray(self.value)[np.maximum(knot, 0)]


@dataclass(frozen=True)
class Calibration:
    """One map per arm; plain numbers in JSON, no code."""

    arms: tuple[ArmCalibration, ...]

    def __call__(self, effects: FloatArray) -> FloatArray:
        """(..., K) calibrated effects from predicted ones of the same shape."""
        if effects.shape[-1] != len(self.arms):
            raise DesignError(
                f"calibration: expected effects of {len(self.arms)} arms, "
                f"found an array of shape {effects.shape}."
            )
        columns = [arm(effects[..., k]) for k, arm in enumerate(self.arms)]
        return np.stack(columns, axis=-1).astype(np.float64, copy=False)

    def median(self, effects: FloatArray) -> FloatArray:
        """(n, K) median over folds of the calibrated effects, (folds, n, K): cross-calibration,
        where each fold's model predicts and one map calibrates them all."""
        out: FloatArray = np.median(self(effects), axis=0)
        return out

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"kind": arm.kind, "at": list(arm.at), "value": list(arm.value)} for arm in self.arms
        ]

    @classmethod
    def from_json(cls, data: list[Mapping[str, Any]]) -> Calibration:
        """Raises BundleError for what is no calibration."""
        try:
            arms = tuple(
                ArmCalibration(
                    str(arm["kind"]),
                    tuple(float(v) for v in arm["at"]),
                    tuple(float(v) for v in arm["value"]),
                )
                for arm in data
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the calibration is damaged: {error}. Train again.") from None
        return cls(arms)


@dataclass(frozen=True)
class Calibrated:
    """An effect model whose effects go through a calibration."""

    model: EffectModel
    calibration: Calibration

    def predict(self, X: Float32Array, threads: int = 0) -> FloatArray:
        """(n, K) calibrated effects at X (n, d)."""
        return self.at(TermValues(X, threads))

    def at(self, values: TermValues) -> FloatArray:
        """(n, K) calibrated effects at the rows of `values`."""
        return self.calibration(self.model.at(values))


def isotonic(predicted: FloatArray, contrast: FloatArray, min_rows: int = 1) -> ArmCalibration:
    """Isotonic regression of D (n,) on out-of-fold effects (n,).

    The result is a rising step function. It keeps the mean of D on its own rows, in all and within
    each of its steps, and ties what it cannot tell apart. `min_rows`: neighbours in rank are
    pooled beforehand so that no step rests on fewer rows, which keeps single heavy-tailed scores
    from making the highest step.
    """
    predicted, contrast = _checked(predicted, contrast)
    order = np.lexsort((contrast, predicted))
    x, D = predicted[order], contrast[order]
    first = np.flatnonzero(np.diff(x, prepend=np.nan) != 0)
    if min_rows > 1:
        first = _pooled(first, len(x), min_rows)
    weight = np.diff(first, append=len(x)).astype(np.float64)
    fitted = isotonic_regression(np.add.reduceat(D, first) / weight, weights=weight)
    starts = np.asarray(fitted.blocks[:-1])
    at, value = x[first[starts]], np.maximum.accumulate(fitted.x[starts])
    rises = np.diff(value, prepend=-np.inf) > 0
    return ArmCalibration("isotonic", tuple(at[rises].tolist()), tuple(value[rises].tolist()))


def _pooled(first: IntArray, n: int, min_rows: int) -> IntArray:
    """Starts of groups of whole tied blocks (starting at `first`) of at least `min_rows` rows."""
    starts, kept = first.tolist(), [0]
    while True:
        following = bisect_left(starts, kept[-1] + min_rows)
        if following == len(starts) or n - starts[following] < min_rows:
            return np.asarray(kept, dtype=np.int64)
        kept.append(starts[following])


def linear(predicted: FloatArray, contrast: FloatArray) -> ArmCalibration:
    """The best linear predictor as a map: mean D + b (tau - mean tau). A slope below 0 becomes 0,
    which is the mean effect for everyone: predictions in the wrong order are no signal."""
    predicted, contrast = _checked(predicted, contrast)
    slope = max(0.0, calibration_slope(predicted, contrast, np.arange(len(predicted))).value)
    return ArmCalibration(
        "linear", (), (float(contrast.mean() - slope * predicted.mean()), float(slope))
    )


def _checked(predicted: FloatArray, contrast: FloatArray) -> tuple[FloatArray, FloatArray]:
    predicted = np.asarray(predicted, dtype=np.float64)
    contrast = np.asarray(contrast, dtype=np.float64)
    if predicted.shape != contrast.shape or predicted.ndim != 1 or len(predicted) < 2:
        raise DesignError(
            "a calibration needs one contrast per predicted effect, of at least 2 rows; found "
            f"{predicted.shape} and {contrast.shape}."
        )
    if not (np.isfinite(predicted).all() and np.isfinite(contrast).all()):
        raise DesignError("a calibration needs finite effects and contrasts, found others")
    return predicted, contrast


def fit_calibration(
    kind: str,
    effects: FloatArray,
    gamma: FloatArray,
    eligible: BoolArray | None = None,
    *,
    min_rows: int = 1,
) -> Calibration:
    """One map per arm from out-of-fold effects (n, K) and doubly robust scores gamma (n, K + 1)
    of the same rows. kind: isotonic or linear. eligible (n, K): rows where the arm could be drawn,
    which alone count. An arm with fewer than two of them keeps its effects."""
    if kind not in KINDS:
        raise DesignError(f"calibration: expected {' or '.join(KINDS)}, found {kind!r}.")
    arms = []
    for k in range(effects.shape[1]):
        rows = np.arange(len(effects)) if eligible is None else np.flatnonzero(eligible[:, k])
        tau, contrast = effects[rows, k], gamma[rows, k + 1] - gamma[rows, 0]
        if len(rows) < 2:
            arms.append(ArmCalibration("identity"))
        elif kind == "isotonic":
            arms.append(isotonic(tau, contrast, min_rows))
        else:
            arms.append(linear(tau, contrast))
    return Calibration(tuple(arms))


def cross_calibrated(
    kind: str,
    effects: FloatArray,
    gamma: FloatArray,
    fold: IntArray,
    eligible: BoolArray | None = None,
    *,
    min_rows: int = 1,
) -> FloatArray:
    """(n, K) out-of-fold effects, each calibrated by a map that did not see its fold: what the
    calibrated effects are judged by on training rows. fold (n,), drawn by customer."""
    out = np.array(effects, dtype=np.float64)
    for f in np.unique(fold):
        seen, held = fold != f, fold == f
        allowed = None if eligible is None else eligible[seen]
        fitted = fit_calibration(kind, effects[seen], gamma[seen], allowed, min_rows=min_rows)
        out[held] = fitted(effects[held])
    return out
