"""DR-learner: regression of the doubly robust contrast (Kennedy 2023)."""

from __future__ import annotations

from uplift.boosting import cross_fit
from uplift.effects import EffectModel
from uplift.learners.base import Learner, learner, per_arm
from uplift.nuisances import Problem


@learner
class DRLearner(Learner):
    """All rows: regress Gam_k - Gam_0 on x, weighted by inverse variance where the assignment
    probabilities vary."""

    name = "dr"
    title = "DR: doubly robust contrast"
    nuisances = frozenset({"mu", "assignment"})

    def fold_models(self, problem: Problem) -> list[EffectModel]:
        return per_arm(problem, lambda k: self._arm(problem, k))

    @staticmethod
    def _arm(problem: Problem, k: int) -> tuple[EffectModel, ...]:
        rows, contrast, weight = problem.contrast(k)
        return cross_fit(
            problem.binned, rows, contrast, problem.fold, problem.settings, weight=weight
        ).models
