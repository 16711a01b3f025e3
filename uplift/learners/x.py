"""X-learner: effects imputed with the other arm's mean (Kuenzel et al. 2019)."""

from __future__ import annotations

import numpy as np

from uplift.boosting import CrossFit
from uplift.data import FloatArray, IntArray
from uplift.effects import EffectModel, ProductTerm
from uplift.learners.base import Learner, Models, learner, per_arm
from uplift.nuisances import Problem, only


@learner
class XLearner(Learner):
    """tau_k = e'_k tau0 + (1 - e'_k) tau1, with e'_k = e_k / (e_k + e_0).

    tau0 regresses mu_k - Y on control rows, tau1 regresses Y - mu_0 on arm-k rows. The means are
    the other arm's, so no row has a part in its own; those of a fold's model come from the means
    that left the same fold out, or else the fold's outcomes would have a part in its effects, and
    held-out scores flatter them. The weight is the average of e'_k: any weight is consistent, and
    the assignment of a customer who is scored later is not known yet.
    """

    name = "x"
    title = "X: imputed effects of both arms"
    nuisances = frozenset({"mu", "assignment"})

    @classmethod
    def suits(cls, problem: Problem) -> bool:
        """Of those that assume no shape, the one that does best on outcomes of 0 and 1."""
        return problem.binary

    def cross_fit(self, problem: Problem) -> Models:
        return per_arm(problem, lambda k: imputed(problem, k))


def imputed(problem: Problem, k: int, scale: FloatArray | None = None) -> CrossFit:
    """The effect of arm k, one model per fold and one of all rows.

    With a `scale` s > 0, (F + 1, n) by each fold's model and by that of all rows, the models are of
    tau / s: rows are weighted by s, so that a leaf holds sum(imputed effects) / sum(s). It suits
    effects that are the larger, and outcomes that vary the more, the larger s is; any s is
    consistent. The smaller s, the more `lambda_l2` weighs: leaves of few redemptions shrink more.
    """
    data = problem.data
    eligible, contrast, weight = problem.contrast(k)
    e = data.assignment[eligible]
    share = float(np.average(e[:, k] / (e[:, k] + e[:, 0]), weights=data.weight[eligible]))
    control = np.flatnonzero((data.arm == 0) & (data.assignment[:, k] > 0))
    treated = np.flatnonzero((data.arm == k) & (data.assignment[:, 0] > 0))
    unit = np.ones((problem.folds + 1, len(data))) if scale is None else scale
    held = unit[problem.fold[eligible], eligible]
    zero, one = (
        problem.cross_fit_effect(
            rows,
            sign * (problem.target[rows] - _means(problem, rows, other)) / unit[:, rows],
            weight=data.weight_of(rows) if scale is None else data.weight[rows] * scale[:, rows],
            valid=(eligible, contrast / held, weight * held),
        )
        for rows, other, sign in ((control, k, -1), (treated, 0, 1))
    )
    pairs = zip((*zero.models, zero.full), (*one.models, one.full), strict=True)
    *models, full = (blend(a, b, share) for a, b in pairs)
    return CrossFit(tuple(models), full, max(zero.rounds, one.rounds))


def imputed_per(problem: Problem, k: int, scale: CrossFit) -> CrossFit:
    """The effect of arm k as s(x) h(x), with h learned from imputed effects over the `scale` s; as
    without one where s is not above 0 everywhere."""
    models, data = (*scale.models, scale.full), problem.data
    # Rows of other arms are asked for in their own fold only.
    values = np.ones((len(models), len(data)))
    learned = np.flatnonzero((data.arm == 0) | (data.arm == k))
    X = data.X[learned]
    values[:, learned] = [model.predict(X, problem.settings.threads)[:, 0] for model in models]
    for f, held in enumerate(problem.held):
        values[f, problem.fold == f] = scale.models[f].at(held)[:, 0]
    if values.min() <= 0:
        return imputed(problem, k)
    ratio = imputed(problem, k, values)
    *folds, full = (
        EffectModel(np.zeros(1), ((ProductTerm(s, h), np.ones(1)),))
        for s, h in zip(models, (*ratio.models, ratio.full), strict=True)
    )
    return CrossFit(tuple(folds), full, ratio.rounds)


def _means(problem: Problem, rows: IntArray, arm: int) -> FloatArray:
    """(F + 1, len(rows)) means of an arm, other than that of these rows, by each fold's model and
    by the full one. A fold's own rows aren't learned from, and stay 0."""
    out = np.zeros((problem.folds + 1, len(rows)))
    for f, model in enumerate((*problem.arm_means, problem.full_means)):
        inside = problem.fold[rows] != f
        X = problem.data.X[rows[inside]]
        out[f, inside] = only(model, arm).predict(X, problem.settings.threads)[:, 0]
    return out


def blend(tau0: EffectModel, tau1: EffectModel, share: float) -> EffectModel:
    """share * tau0 + (1 - share) * tau1."""
    return tau0.scaled(share).plus(tau1.scaled(1 - share))
