"""What stock and other limits leave of a plan.

The plan was measured without them, and what a limited policy gains cannot be measured on exposures
of other customers. The models can say what share of the profit that they themselves predict is
left when the same budget is spent within the limits: both sums are too high in the same way, since
both are of choices by the same predictions. The measured gain is cut by that share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from uplift.allocation import allocate
from uplift.data import BoolArray, FloatArray, IntArray
from uplift.limits import Limit, allocate_jointly
from uplift.scores import Estimate
from uplift.spending import BUDGET

# A share of so many customers is as good as one of millions.
ASKED = 50_000


@dataclass(frozen=True)
class Within:
    """One budget within all limits. kept: share of the gain that is left; spend: expected cost, of
    all customers of the plan; binding: names of the limits that keep profit away."""

    kept: float
    spend: float
    binding: tuple[str, ...]

    def gain(self, planned: Estimate) -> Estimate:
        """What is left of a planned gain. A loss is not made smaller."""
        return planned.scaled(self.kept) if planned.value > 0 else planned


def within_limits(
    budgets: Sequence[float],
    customers: float,
    reward: FloatArray,
    cost: FloatArray,
    eligible: BoolArray,
    limits: Sequence[Limit],
    min_profit: float,
) -> list[Within]:
    """What limits leave at each budget, currency for all `customers` of the plan.

    reward, cost, eligible (n, K): of those who may be sent an offer, of whom the plan counts a
    part; limits: for all of `customers`. Of more than 50,000 evenly spaced ones are asked.
    """
    n = len(reward)
    some: IntArray = np.arange(n)
    if n > ASKED:
        some = np.linspace(0, n - 1, ASKED).astype(np.int64)
    part = len(some) / customers if customers else 0.0
    reward, cost, eligible = reward[some], cost[some], eligible[some]
    smaller = [
        replace(limit, uses=_rows(limit.uses, some), most=limit.most * part) for limit in limits
    ]
    found = []
    for budget in budgets:
        free = allocate(
            reward, cost, budget=budget * part, min_profit=min_profit, eligible=eligible
        )
        held = allocate_jointly(
            reward,
            [*smaller, Limit(BUDGET, cost, budget * part)],
            min_profit=min_profit,
            eligible=eligible,
        )
        found.append(
            Within(
                min(held.value / free.value, 1.0) if free.value > 0 else 1.0,
                held.used[BUDGET] / part if part else 0.0,
                tuple(limit.name for limit in smaller if held.prices[limit.name] > 0),
            )
        )
    return found


def _rows(uses: FloatArray, rows: IntArray) -> FloatArray:
    uses = np.asarray(uses, dtype=np.float64)
    return uses if uses.ndim < 2 or len(uses) == 1 else uses[rows]
