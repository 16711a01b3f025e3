"""R-learner: residual on residual (Nie & Wager 2021)."""

from __future__ import annotations

import numpy as np

from uplift.boosting import CrossFit
from uplift.learners.base import Learner, Models, learner, per_arm
from uplift.nuisances import Problem


@learner
class RLearner(Learner):
    """On rows of arm k and control, with w = 1[W = k] and m_k = e'_k mu_k + (1 - e'_k) mu_0:
    target (Y - m_k) / (w - e'_k), weight (w - e'_k)^2."""

    name = "r"
    title = "R: residual on residual"
    nuisances = frozenset({"mu", "assignment"})

    def cross_fit(self, problem: Problem) -> Models:
        return per_arm(problem, lambda k: self._arm(problem, k))

    @staticmethod
    def _arm(problem: Problem, k: int) -> CrossFit:
        data, mu = problem.data, problem.mu
        e = data.assignment
        # Where one of the two was certain there is no experiment, and the residual is 0.
        either = (data.arm == 0) | (data.arm == k)
        rows = np.flatnonzero(either & (e[:, k] > 0) & (e[:, 0] > 0))
        share = e[rows, k] / (e[rows, k] + e[rows, 0])
        mean = share * mu[rows, k] + (1 - share) * mu[rows, 0]
        residual = (data.arm[rows] == k) - share
        own = data.weight[rows]
        return problem.cross_fit_effect(
            rows,
            (problem.target[rows] - mean) / residual,
            weight=own * residual**2 / np.average(residual**2, weights=own),
            valid=problem.contrast(k),
        )
