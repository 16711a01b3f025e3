"""DR-learner: regression of the doubly robust contrast (Kennedy 2023)."""

from __future__ import annotations

from uplift.boosting import CrossFit
from uplift.learners.base import Learner, Models, learner, per_arm
from uplift.nuisances import Problem


@learner
class DRLearner(Learner):
    """All rows: regress Gam_k - Gam_0 on x, weighted by inverse variance where the assignment
    probabilities vary."""

    name = "dr"
    title = "DR: doubly robust contrast"
    nuisances = frozenset({"mu", "assignment"})

    def cross_fit(self, problem: Problem) -> Models:
        return per_arm(problem, lambda k: self._arm(problem, k))

    @staticmethod
    def _arm(problem: Problem, k: int) -> CrossFit:
        rows, contrast, weight = problem.contrast(k)
        return problem.cross_fit_effect(rows, contrast, weight=weight)
