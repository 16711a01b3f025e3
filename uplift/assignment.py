"""Assignment probabilities where nobody drew the arms: estimated from the features.

Effects that rest on them are observational: they hold only if the features tell all that
assignment and outcome have in common. In an experiment the design's own probabilities are used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uplift.boosting import Binned, Settings
from uplift.cores import each
from uplift.data import BoolArray, Float32Array, FloatArray, IntArray, TrainingSet
from uplift.response import FittedResponse, ResponseModel, fit_response

# An estimated probability is clipped; a known one never.
CLIP = 0.01


@dataclass(frozen=True)
class EstimatedAssignment:
    """P(arm | x), one calibrated model per arm, scaled to sum to 1 over the arms that were
    possible for a row.

    probabilities  (n, K + 1) of the training rows, each by models that did not see its customer
    clipped        share of the training rows with an arm whose estimate lay below CLIP
    """

    probabilities: FloatArray
    clipped: float
    models: tuple[ResponseModel, ...]

    def on(self, X: Float32Array, possible: BoolArray, threads: int = 0) -> FloatArray:
        """(n, K + 1) probabilities of rows that are not among the training rows; `possible`
        (n, K + 1): arms that the row's campaign had."""
        odds = np.column_stack([model.predict(X, threads) for model in self.models])
        return _clipped(_shares(odds, possible), possible)


def estimate_assignment(
    data: TrainingSet, binned: Binned, fold: IntArray, settings: Settings
) -> EstimatedAssignment:
    """Fit P(arm | x) out of fold; `binned` and `fold` are of the rows of `data`. An arm with
    probability 0 in `data.assignment` stays impossible for the row."""
    rows = np.arange(len(data))
    weight = data.weight_of(rows)

    def fit_arm(k: int) -> FittedResponse:
        drawn = (data.arm == k).astype(float)
        return fit_response(binned, data.X, rows, drawn, fold, settings, weight=weight)

    fits = each(settings.threads, fit_arm, range(data.n_arms + 1))
    possible = data.assignment > 0
    shares = _shares(np.column_stack([fit.oof for fit in fits]), possible)
    low = ((shares < CLIP) & possible).any(axis=1)
    return EstimatedAssignment(
        _clipped(shares, possible),
        float(np.average(low, weights=data.weight)) if len(data) else 0.0,
        tuple(fit.model for fit in fits),
    )


def _shares(odds: FloatArray, possible: BoolArray) -> FloatArray:
    p = np.where(possible, odds, 0.0)
    out: FloatArray = p / p.sum(axis=1, keepdims=True)
    return out


def _clipped(shares: FloatArray, possible: BoolArray) -> FloatArray:
    return _shares(np.clip(shares, CLIP, 1.0), possible)
