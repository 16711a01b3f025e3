"""Effects per redemption: X in units of the chance that the coupon is used."""

from __future__ import annotations

import numpy as np

from uplift.boosting import CrossFit, cross_fit
from uplift.learners.base import Learner, Models, learner, per_arm
from uplift.learners.x import imputed_per
from uplift.nuisances import Problem

# The share of an arm's rows that may cost less than a contact, by refunds or mistakes.
CHEAP = 0.01


@learner
class PerRedemptionLearner(Learner):
    """tau_k = s_k(x) h_k(x), with s_k the chance that x uses coupon k and h_k what the X-learner
    makes of imputed effects over s_k.

    Who does not use a coupon is hardly changed by it, and how likely x is to use it is learned from
    one arm's rows without any contrast, so with little noise. Where the rows say no more, all have
    the same effect per redemption, in place of the same effect: customers who will not use the
    coupon are not mistaken for cheap ones with an average effect, which is what a budget that buys
    effects per cost would look for.

    A row used its coupon where it cost more than the cheapest hundredth of the arm's rows, which
    cost their contact alone. An arm that costs all the same gets the plain X-learner's effect, and
    so nearly does one whose contacts cost differently from channel to channel.
    """

    name = "per_redemption"
    title = "per redemption: X over the chance to redeem"
    nuisances = frozenset({"mu", "assignment"})
    cannot = frozenset({"monotone"})

    @classmethod
    def suits(cls, problem: Problem) -> bool:
        """Conversions, of which coupons that are used are the cause."""
        return problem.binary

    def cross_fit(self, problem: Problem) -> Models:
        return per_arm(problem, lambda k: self._arm(problem, k))

    @staticmethod
    def _arm(problem: Problem, k: int) -> CrossFit:
        data = problem.data
        rows = np.flatnonzero(data.arm == k)
        contact = np.quantile(data.cost[rows], CHEAP, method="lower")
        chance = cross_fit(
            problem.binned,
            rows,
            (data.cost[rows] > contact).astype(np.float64),
            problem.fold,
            problem.settings,
            weight=data.weight_of(rows),
            binary=True,
        )
        return imputed_per(problem, k, chance)
