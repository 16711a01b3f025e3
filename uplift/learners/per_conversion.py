"""Effects per conversion: X in units of the chance to convert."""

from __future__ import annotations

from uplift.learners.base import Learner, Models, learner, per_arm
from uplift.learners.proportional import over_all_arms
from uplift.learners.x import imputed_per
from uplift.nuisances import Problem


@learner
class PerConversionLearner(Learner):
    """tau_k = p(x) h_k(x), with p the chance to convert, whatever the arm, and h_k what the
    X-learner makes of imputed effects over p.

    An outcome of 0 and 1 that happens to few varies the more the likelier it is, and an arm that
    multiplies chances changes most whoever is likeliest to convert. Where the rows say no more, all
    have the same ratio, as with the proportional learner; the trees say where it differs.
    """

    name = "per_conversion"
    title = "per conversion: X over the chance to convert"
    nuisances = frozenset({"mu", "assignment"})
    cannot = frozenset({"monotone"})

    @classmethod
    def suits(cls, problem: Problem) -> bool:
        """Outcomes of 0 and 1: of amounts of money the chance tells little."""
        return problem.binary

    def cross_fit(self, problem: Problem) -> Models:
        chance = over_all_arms(problem, problem.data.converted, binary=True)
        return per_arm(problem, lambda k: imputed_per(problem, k, chance))
