"""What a learner's effects are worth beyond one budget, on rows that it has not seen.

One effect per row is judged: that of the arm which the learner recommends there, control aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from uplift.calibration import BestLinearPredictor, best_linear_predictor, calibration_error
from uplift.data import FloatArray, IntArray
from uplift.evaluation import Predictions
from uplift.ranking import Ranking, rank_rows
from uplift.scores import Estimate, ScoreMatrix

# Shares of the customers, in percent, whose mean effect is told.
TOP_PERCENTS = (10, 30, 50)


@dataclass(frozen=True)
class EffectReport:
    """Made by `recommended`. Per row (n,), currency: `predicted` effect of the recommended arm,
    its doubly robust `contrast`, and `cluster`, codes; `seed` draws the half-samples."""

    predicted: FloatArray
    contrast: FloatArray
    cluster: IntArray
    seed: int = 0

    @cached_property
    def ranking(self) -> Ranking:
        """The rows by predicted effect, the highest first."""
        return rank_rows(self.predicted, self.contrast, self.cluster)

    @cached_property
    def line(self) -> BestLinearPredictor:
        """a, the mean effect of the recommended arms, and b, the calibration slope."""
        return best_linear_predictor(self.predicted, self.contrast, self.cluster)

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Every number by name: autoc, qini, uplift_at_<k> of the top k percent, mean_effect,
        effect_calibration_slope, effect_calibration_error (squared, may be negative)."""
        ranking = self.ranking
        return {
            "autoc": ranking.autoc().estimate,
            "qini": ranking.qini().estimate,
            **{f"uplift_at_{k}": ranking.uplift_at(k / 100).estimate for k in TOP_PERCENTS},
            "mean_effect": self.line.a,
            "effect_calibration_slope": self.line.b,
            "effect_calibration_error": calibration_error(
                self.predicted, self.contrast, self.cluster
            ),
        }

    @cached_property
    def deciles(self) -> list[dict[str, Any]]:
        """Predicted and measured effect by tenth of the ranking, the highest first."""
        return self.ranking.deciles(self.predicted, np.random.default_rng(self.seed))

    @cached_property
    def curves(self) -> dict[str, list[dict[str, float]]]:
        """`toc`: how much more the top share gains than all; `qini`: what treating it brings, per
        row; both with intervals over the share."""
        return {"toc": self.ranking.toc_curve(50), "qini": self.ranking.qini_curve(50)}


def recommended(p: Predictions, scores: ScoreMatrix, seed: int = 0) -> EffectReport:
    """The report of the arms that predictions recommend: each row's best among those that it may
    get, whether or not it pays. Rows that may get none are left out. DesignError for fewer than
    two clusters."""
    masked = np.where(p.allowed, p.reward, -np.inf)
    arm = masked.argmax(axis=1)
    rows = np.flatnonzero(p.allowed.any(axis=1))
    contrast = scores.gamma[rows, arm[rows] + 1] - scores.gamma[rows, 0]
    return EffectReport(p.reward[rows, arm[rows]], contrast, scores.cluster[rows], seed)
