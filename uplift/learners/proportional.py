"""Proportional effects: every arm multiplies the customer's baseline by one ratio."""

from __future__ import annotations

import numpy as np

from uplift.boosting import CrossFit, cross_fit
from uplift.data import BoolArray, FloatArray, IntArray
from uplift.effects import EffectModel
from uplift.learners.base import (
    Learner,
    Models,
    learner,
    ratio_of_sums,
    shrinkage,
    weighted_mean,
)
from uplift.nuisances import Problem, stack

# A mean that is not this many standard errors above 0 is no denominator.
CLEAR = 2.0


@learner
class ProportionalLearner(Learner):
    """tau_k(x) = mu_0(x) * (rho_k - 1), with two things to learn: a baseline and K ratios.

    The baseline's shape is learned from the rows of all arms, since under this assumption each
    arm's mean is a multiple of it: one model of the outcome, rows weighted by share_W / e_W, so
    that it is the same mixture of arms everywhere. Its level is that of the scores of control.

    The ratio is doubly robust, rho_k - 1 = sum(Gam_k - Gam_0) / sum(Gam_0), rows weighted by
    inverse variance where the assignment probabilities vary. It is shrunk towards 1 by
    max(0, 1 - se^2 / (rho_k - 1)^2), with its clustered standard error (James & Stein 1961,
    positive part; the prior's variance is estimated from this one ratio).

    Where the ratio means nothing, because control's mean is not clearly above 0 (profit can be
    negative), or where held-out scores prefer one effect for all by more than one standard error
    of the difference (the rule of Breiman et al. 1984), the arm gets its average effect, shrunk
    in the same way.
    """

    name = "proportional"
    title = "proportional: the baseline times a ratio"
    nuisances = frozenset({"mu", "assignment"})
    cannot = frozenset({"monotone"})
    assumes = "proportional"

    def cross_fit(self, problem: Problem) -> Models:
        data = problem.data
        baseline = over_all_arms(problem, problem.target, binary=problem.binary)
        level = baseline.out_of_fold(data.X, problem.fold, problem.settings.threads)
        everyone = np.ones(len(data), dtype=bool)
        parts = [problem.fold != f for f in range(problem.folds)] + [everyone]
        columns = []
        for k in range(1, data.n_arms + 1):
            fits = [self._arm(problem, k, level, part) for part in parts]
            follows = self._follows(problem, k, level, fits)
            columns.append([(m, 0.0) if follows else (0.0, c) for m, c in fits])
        models = tuple(
            stack([_times(model, *column[f]) for column in columns])
            for f, model in enumerate((*baseline.models, baseline.full))
        )
        return models[:-1], models[-1]

    @staticmethod
    def _arm(problem: Problem, k: int, level: FloatArray, part: BoolArray) -> tuple[float, float]:
        """From the rows of `part`: what `level` is multiplied by, and the effect for all. The
        first is NaN where there is no denominator."""
        rows, contrast, weight, control, cluster = _of(problem, k, part)
        average = weighted_mean(contrast, weight, cluster)
        constant = average.value * shrinkage(average)
        below = weighted_mean(control, weight, cluster)
        predicted = float(weight @ level[rows])
        if below.value <= CLEAR * below.se or predicted <= 0:
            return np.nan, constant
        ratio = ratio_of_sums(weight * contrast, weight * control, cluster)
        scale = float(weight @ control) / predicted
        return ratio.value * shrinkage(ratio) * scale, constant

    @staticmethod
    def _follows(
        problem: Problem, k: int, level: FloatArray, fits: list[tuple[float, float]]
    ) -> bool:
        """Whether held-out scores leave it open that the effect follows the baseline."""
        if not np.isfinite([multiple for multiple, _ in fits]).all():
            return False
        rows, contrast, weight, _, cluster = _of(problem, k)
        multiple, constant = np.array(fits)[problem.fold[rows]].T
        loss = (contrast - multiple * level[rows]) ** 2 - (contrast - constant) ** 2
        worse = weighted_mean(loss, weight, cluster)
        return worse.value <= worse.se


def over_all_arms(problem: Problem, target: FloatArray, *, binary: bool) -> CrossFit:
    """The mean of `target` (n,) at x over all arms, in the same mixture of arms everywhere: rows
    weighted by share_W / e_W."""
    data = problem.data
    shares = np.bincount(data.arm, data.weight, data.n_arms + 1) / data.weight.sum()
    return cross_fit(
        problem.binned,
        np.arange(len(data)),
        target,
        problem.fold,
        problem.settings,
        weight=data.weight * shares[data.arm] / data.own_probability,
        binary=binary,
    )


def _of(
    problem: Problem, k: int, part: BoolArray | None = None
) -> tuple[IntArray, FloatArray, FloatArray, FloatArray, IntArray]:
    """Rows (of `part`) where arm k could be drawn: positions, Gam_k - Gam_0, weights, Gam_0,
    clusters."""
    rows, contrast, weight = problem.contrast(k)
    if part is not None:
        kept = part[rows]
        rows, contrast, weight = rows[kept], contrast[kept], weight[kept]
    return rows, contrast, weight, problem.gamma[rows, 0], problem.data.cluster[rows]


def _times(model: EffectModel, multiple: float, constant: float) -> EffectModel:
    """multiple * model + constant; without the model's terms where the multiple is 0."""
    if multiple == 0:
        return EffectModel(np.array([constant]))
    scaled = model.scaled(multiple)
    return EffectModel(scaled.constant + constant, scaled.terms)
