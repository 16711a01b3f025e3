"""T-learner: the difference of the arms' own models (Kuenzel et al. 2019)."""

from __future__ import annotations

from uplift.data import FloatArray
from uplift.effects import EffectModel
from uplift.learners.base import Learner, Models, learner
from uplift.nuisances import Problem, against_control


@learner
class TLearner(Learner):
    """tau_k = mu_k - mu_0, from the shared arm means. The noise of both arms adds."""

    name = "t"
    title = "T: a model per arm"
    nuisances = frozenset({"mu"})
    cannot = frozenset({"monotone"})

    def cross_fit(self, problem: Problem) -> Models:
        folds = tuple(against_control(means) for means in problem.arm_means)
        return folds, against_control(problem.full_means)

    def out_of_fold(self, problem: Problem, models: tuple[EffectModel, ...]) -> FloatArray:
        """As they stand in the store already; predicting them again costs as much as they did."""
        out: FloatArray = problem.mu[:, 1:] - problem.mu[:, :1]
        return out
