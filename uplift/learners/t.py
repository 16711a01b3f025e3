"""T-learner: the difference of the arms' own models (Kuenzel et al. 2019)."""

from __future__ import annotations

from uplift.effects import EffectModel
from uplift.learners.base import Learner, learner
from uplift.nuisances import Problem, against_control


@learner
class TLearner(Learner):
    """tau_k = mu_k - mu_0, from the shared arm means. The noise of both arms adds."""

    name = "t"
    title = "T: a model per arm"
    nuisances = frozenset({"mu"})

    def fold_models(self, problem: Problem) -> list[EffectModel]:
        return [against_control(means) for means in problem.arm_means]
