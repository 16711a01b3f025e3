"""How a campaign spends: under its budget alone or under several limits, and what exploring may
take of them beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from uplift.allocation import (
    Allocation,
    Chunk,
    allocate,
    allocate_stream,
    allowed_arms,
    best_allowed,
    best_arm,
    of_arm,
)
from uplift.data import BoolArray, FloatArray, IntArray
from uplift.errors import DesignError
from uplift.limits import Limit, allocate_jointly, tolls

# More customers are allocated in chunks of so many, which takes a fraction of the memory.
STREAM_ROWS = 1_000_000
BUDGET = "budget"
# Chance that explored offers would pass a limit after the share was settled.
_OVERRUN_CHANCE = 1e-9


def spend_alone(whole: Chunk, limit: float, min_profit: float) -> Allocation:
    """The allocation under one limit; of very many customers chunk by chunk, with the same answer
    and less memory."""
    budget = None if math.isinf(limit) else limit
    n = len(whole.reward)
    if n <= STREAM_ROWS:
        reward, cost, eligible, charged, order = whole
        return allocate(
            reward,
            cost,
            budget=budget,
            min_profit=min_profit,
            eligible=eligible,
            charged=charged,
            tie_order=order,
        )

    def chunks() -> Iterator[Chunk]:
        for first in range(0, n, STREAM_ROWS):
            part = slice(first, first + STREAM_ROWS)
            yield Chunk(
                whole.reward[part],
                whole.cost[part],
                None if whole.eligible is None else whole.eligible[part],
                None if whole.charged is None else whole.charged[part],
                None if whole.tie_order is None else whole.tie_order[part],
            )

    return allocate_stream(chunks, budget=budget, min_profit=min_profit)


def spend_jointly(
    whole: Chunk, left: float, limits: Sequence[Limit], min_profit: float
) -> tuple[Allocation, Mapping[str, float]]:
    """The allocation under several limits, and their prices. Customers who are not charged get the
    arm of greatest worth at the prices."""
    reward, cost, eligible, charged, order = whole
    assert eligible is not None
    assert charged is not None
    assert order is not None
    rows = np.flatnonzero(charged)
    rows = rows[np.argsort(order[rows], kind="stable")]  # so that the order of the ids is nothing
    everywhere = list(limits)
    if not math.isinf(left):
        everywhere.append(Limit(BUDGET, cost, left))
    found = allocate_jointly(
        reward[rows],
        [replace(each, uses=_rows_of(each.uses, rows)) for each in everywhere],
        min_profit=min_profit,
        eligible=eligible[rows],
    )
    prices = found.prices
    shadow_price = prices.get(BUDGET, 0.0)
    toll = tolls(limits, prices, reward.shape)
    choice = at_prices(reward, cost, shadow_price, toll, min_profit, eligible)
    choice[rows] = found.choice
    spend = math.fsum(of_arm(cost[rows], found.choice).tolist())
    return (
        Allocation(choice, shadow_price, spend, found.value, found.upper_bound, found.gap),
        prices,
    )


def at_prices(
    reward: FloatArray,
    cost: FloatArray,
    shadow_price: float,
    toll: FloatArray | None,
    min_profit: float,
    eligible: BoolArray,
) -> IntArray:
    """(n,) the best arm of each customer alone, of checked scores; the threshold is on the reward
    before the toll."""
    if toll is None:
        allowed = allowed_arms(reward, min_profit, eligible)
        return best_allowed(reward, cost, shadow_price, allowed)
    worthy = eligible & (reward >= min_profit) & (reward > 0.0)
    return best_arm(reward - toll, cost, shadow_price, eligible=worthy)


def uses_of(limit: Limit, shape: tuple[int, ...]) -> FloatArray:
    try:
        return np.broadcast_to(np.asarray(limit.uses, dtype=np.float64), shape)
    except ValueError:
        raise DesignError(
            f"{limit.name}: expected uses for {shape} customers and arms, found shape "
            f"{np.shape(limit.uses)}."
        ) from None


def _rows_of(uses: FloatArray, rows: IntArray) -> FloatArray:
    """The uses of these customers; what is one row for all stays one."""
    uses = np.asarray(uses, dtype=np.float64)
    return uses if uses.ndim < 2 or len(uses) == 1 else uses[rows]


def affordable_share(
    wished: FloatArray,
    randomised: BoolArray,
    in_draw: BoolArray,
    bounds: Sequence[tuple[FloatArray, float]],
) -> float:
    """The largest of the wished shares whose explored offers stay within every bound, judged by
    costs and not by draws.

    wished: (m,) shares in ascending order from 0. randomised: (n,) customers who may explore.
    in_draw: (n, K). bounds: (uses (n, K), most) of the budget and of every limit.

    The explored cost is a sum of independent terms in [0, c]; by Bernstein's inequality (1924) it
    passes mean + c L / 3 + sqrt((c L / 3)^2 + 2 variance L) with a chance below exp(-L). The
    largest share whose bound is within it is used, or the wished one where even the
    dearest arm for everyone is within it.
    """
    used = float(wished[-1])
    drawable = in_draw[randomised]
    arms = drawable.sum(axis=1) + 1
    level = -math.log(_OVERRUN_CHANCE)
    for use, most in bounds:
        if math.isinf(most):
            continue
        payable = np.where(drawable, use[randomised], 0.0)
        if payable.max(axis=1, initial=0.0).sum() <= most:
            continue
        mean = float((payable.sum(axis=1) / arms).sum())
        square = float(((payable**2).sum(axis=1) / arms).sum())
        reach = float(payable.max(initial=0.0)) * level / 3.0
        bound = wished * mean + reach + np.sqrt(reach**2 + 2.0 * wished * square * level)
        bound[0] = 0.0
        used = min(used, float(wished[np.flatnonzero(bound <= most)[-1]]))
    return used


def beyond(limit: float, explored_cost: FloatArray, order: npt.NDArray[Any]) -> BoolArray:
    """(n,) explored offers that the budget can't pay after all, of chance 1e-9: last in hash order.

    Such an offer keeps its assigned arm in the log, as one that lost the race at commit.
    """
    lost = np.zeros(len(explored_cost), dtype=bool)
    if math.fsum(explored_cost.tolist()) > limit:
        sequence = np.argsort(order)
        lost[sequence] = np.cumsum(explored_cost[sequence]) * (1.0 + 1e-9) > limit
        lost &= explored_cost > 0.0
    return lost


def left_of(limit: float, explored: float) -> float:
    """What exploration leaves of a limit; a hair less, so that the rounded total keeps to it. Whole
    numbers, as of pieces, add up exactly."""
    if math.isinf(limit) or explored == 0.0:
        return limit
    if limit.is_integer() and explored.is_integer():
        return limit - explored
    return max(0.0, limit - explored - 4.0 * math.ulp(limit))
