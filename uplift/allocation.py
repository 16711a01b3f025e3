"""Spend a budget where it brings most: one offer, or none, per customer.

The problem is the multiple-choice knapsack of Sinha & Zoltners (1979): maximise sum r z subject to
sum c z <= B and one choice per customer, control (r = c = 0) among them. Its linear relaxation is
solved exactly by walking the upper hulls of all customers together, steepest step first. The slope
of the first step that no longer fits is the shadow price: profit per currency of budget. One
customer alone, or a call that arrives later, is decided by `best_arm` with that price.

Rewards and costs are predictions, so `Allocation.value` is optimistic (optimiser's curse, Smith &
Winkler 2006); what a policy is worth is measured on held-out customers, not here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from uplift.data import BoolArray, FloatArray, IntArray
from uplift.errors import DesignError

# Relative slack for the rounding of a running sum; the exact sum of the chosen costs decides.
_ROUNDING = 1e-12
# Customers whose hulls are walked at a time: their tables stay in the processor's cache.
_BLOCK = 8192


@dataclass(frozen=True)
class Allocation:
    """Who gets what under a budget, and how near to the optimum that is. Money in currency."""

    choice: IntArray
    """(n,): 0 = no offer, k = arm k (column k - 1)."""
    shadow_price: float
    """Profit per currency of cost at the margin; 0 when the budget does not bind."""
    spend: float
    """Sum of the cost of the chosen arms of the customers who are charged."""
    value: float
    """Sum of the reward of the chosen arms of the customers who are charged."""
    upper_bound: float
    """Optimum of the linear relaxation, so at least the optimum of the integer problem."""
    gap: float
    """upper_bound - value: never negative, at most the gain of one step of one customer."""


class Steps(NamedTuple):
    """Steps along the customers' upper hulls, steepest first; equal slopes: cheapest first.

    Each (steps,): the customer's row, the arm it comes to, what the step adds to reward and cost,
    and reward per cost. The steps of one customer stand in their order along the hull.
    """

    customer: IntArray
    arm: IntArray
    gain: FloatArray
    price: FloatArray
    slope: FloatArray


def allocate(
    reward: FloatArray,
    cost: FloatArray,
    *,
    budget: float | None,
    min_profit: float = 0.0,
    eligible: BoolArray | None = None,
    charged: BoolArray | None = None,
    tie_order: npt.NDArray[Any] | None = None,
) -> Allocation:
    """Choose at most one arm per customer so that profit is greatest and spend <= budget.

    reward, cost: (n, K), expected incremental profit (which already bears the cost) and expected
    cost of each arm, currency; no cost is negative. budget: currency, None for no limit.
    min_profit: an arm below it is never chosen. eligible: (n, K), arms that may be chosen.
    charged: (n,), customers whose choice is paid from the budget and counted in spend, value and
    bound; the others are cut at the same place without being paid (held-out and exploring
    customers, whose greedy choice their logged probability needs). tie_order: (n,) numbers that
    order customers whose steps are equal in slope and price; default: their position.

    Steps are taken steepest first until the first that does not fit. What is left is not spent on
    flatter steps of others: so every customer, but the marginal one and those whose step ties with
    it in slope, has the arm that `best_arm` gives at `shadow_price`, and more budget never brings
    less. Sums are correctly rounded, hence the same whatever the order of customers.

    Raises DesignError when shapes differ, a number is not finite, or a cost or the budget is
    negative.
    """
    reward, cost, allowed = _checked(reward, cost, min_profit, eligible)
    limit = limit_of(budget)
    n = len(reward)
    paid = _per_customer("charged", charged, np.ones(n, dtype=bool)).astype(bool)
    order = _per_customer("tie_order", tie_order, np.arange(n))

    start = _free_arm(reward, cost, allowed)
    steps = _steps(reward, cost, allowed, start, order)
    step_paid = paid[steps.customer]
    spent = np.cumsum(np.where(step_paid, steps.price, 0.0), dtype=np.longdouble)
    fits = spent <= limit * (1.0 + _ROUNDING)
    taken = len(spent) if fits.all() else int(np.argmin(fits))
    while True:
        choice = start.copy()
        # Steps of one customer stand in their order along the hull: the last one taken stays.
        choice[steps.customer[:taken]] = steps.arm[:taken]
        spend = _exact_sum(of_arm(cost, choice)[paid])
        if spend <= limit:
            break
        taken = int(np.flatnonzero(step_paid[:taken])[-1])
    value = _exact_sum(of_arm(reward, choice)[paid])

    shadow_price = float(steps.slope[taken]) if taken < len(spent) else 0.0
    bound = value
    if shadow_price > 0.0:
        net = reward[paid] - shadow_price * cost[paid]
        best = np.where(allowed[paid], net, 0.0).max(axis=1, initial=0.0)
        bound = max(value, shadow_price * limit + _exact_sum(best))
    return Allocation(choice, shadow_price, spend, value, bound, bound - value)


def best_arm(
    reward: FloatArray,
    cost: FloatArray,
    shadow_price: float,
    *,
    min_profit: float = 0.0,
    eligible: BoolArray | None = None,
) -> IntArray:
    """The arm of greatest r - shadow_price * c for each customer; control competes with 0.

    Arrays as in `allocate`. Returns (n,) arm codes. Ties go to the cheaper arm, then to the lower
    code. The answer for a customer depends on that customer's row alone.

    Raises DesignError as `allocate`, and for a shadow price that is negative or not finite.
    """
    reward, cost, allowed = _checked(reward, cost, min_profit, eligible)
    if not (math.isfinite(shadow_price) and shadow_price >= 0.0):
        raise DesignError(
            f"shadow_price: expected a finite number >= 0, found {shadow_price!r}. "
            "Take the one that allocate returned."
        )
    if reward.shape[1] == 0:
        return np.zeros(len(reward), dtype=np.int64)
    net = np.where(allowed, reward - shadow_price * cost, -np.inf)
    best = net.max(axis=1)
    cheapest = np.where(net == best[:, None], cost, np.inf).argmin(axis=1) + 1
    return np.where(best > 0.0, cheapest, 0).astype(np.int64)


def value_path(
    reward: FloatArray,
    cost: FloatArray,
    *,
    min_profit: float = 0.0,
    eligible: BoolArray | None = None,
    points: int = 50,
) -> tuple[FloatArray, FloatArray]:
    """Predicted profit at every budget, for plots: (budgets, values), each (points,), currency.

    Budgets run evenly from 0 to what all profitable steps cost; values are the optimum of the
    linear relaxation, concave in the budget. They are sums of predictions that were picked for
    being high, so the path is optimistic; the measured one comes from held-out scores.
    """
    if points < 2:
        raise DesignError(f"points: expected at least 2, found {points}.")
    start, steps = hull_path(reward, cost, min_profit=min_profit, eligible=eligible)
    spent = np.concatenate([[0.0], np.cumsum(steps.price)])
    free = float(of_arm(reward, start).sum())
    gained = free + np.concatenate([[0.0], np.cumsum(steps.gain)])
    budgets = np.linspace(0.0, spent[-1], points)
    return budgets, np.interp(budgets, spent, gained)


def hull_path(
    reward: FloatArray,
    cost: FloatArray,
    *,
    min_profit: float = 0.0,
    eligible: BoolArray | None = None,
) -> tuple[IntArray, Steps]:
    """The choices at every budget at once: the (n,) arms at budget 0, those that cost nothing and
    bring something, and the steps that a growing budget takes, steepest first. Arguments and
    errors as in `allocate`."""
    reward, cost, allowed = _checked(reward, cost, min_profit, eligible)
    start = _free_arm(reward, cost, allowed)
    return start, _steps(reward, cost, allowed, start, np.arange(len(reward)))


def _free_arm(reward: FloatArray, cost: FloatArray, allowed: BoolArray) -> IntArray:
    """(n,) the arm without cost of greatest reward; control when none is above 0."""
    start = np.zeros(len(reward), dtype=np.int64)
    free = allowed & (cost == 0.0) & (reward > 0.0)
    rows = np.flatnonzero(free.any(axis=1))
    if len(rows):
        start[rows] = np.where(free[rows], reward[rows], 0.0).argmax(axis=1) + 1
    return start


def _steps(
    reward: FloatArray,
    cost: FloatArray,
    allowed: BoolArray,
    start: IntArray,
    order: npt.NDArray[Any],
) -> Steps:
    """All steps of all upper hulls in the order in which a growing budget takes them."""
    whole, real = np.zeros(0, dtype=np.int64), np.zeros(0)
    found = [Steps(whole, whole, real, real, real)]
    for first in range(0, len(reward), _BLOCK):
        block = slice(first, first + _BLOCK)
        found += _hull_steps(reward[block], cost[block], allowed[block], start[block], first)
    customer = np.concatenate([part.customer for part in found])
    price = np.concatenate([part.price for part in found])
    steep = np.concatenate([part.slope for part in found])
    sequence = np.argsort(-steep)
    if np.any(steep[sequence[1:]] == steep[sequence[:-1]]):
        sequence = np.lexsort((order[customer], price, -steep))
    return Steps(
        customer[sequence],
        np.concatenate([part.arm for part in found])[sequence],
        np.concatenate([part.gain for part in found])[sequence],
        price[sequence],
        steep[sequence],
    )


def _hull_steps(
    reward: FloatArray, cost: FloatArray, allowed: BoolArray, start: IntArray, first: int
) -> Iterator[Steps]:
    """The first steps of customers first, first + 1, ..., then the second steps, and so on.

    From its current point a customer goes to the dearer and better arm of steepest slope (of
    several in line: the farthest), which is the next corner of the hull; all customers that still
    have one advance together.
    """
    at_reward, at_cost = of_arm(reward, start), of_arm(cost, start)
    rows = np.arange(len(reward))
    # One row an arm: what is compared across arms then lies in long, even runs.
    reward, cost = np.ascontiguousarray(reward.T), np.ascontiguousarray(cost.T)
    allowed = np.ascontiguousarray(allowed.T)
    last_slope = np.full(len(rows), np.inf)
    for _ in range(len(reward)):
        gain, price = reward - at_reward, cost - at_cost
        ahead = allowed & (gain > 0.0) & (price > 0.0)
        with np.errstate(over="ignore"):
            slope = np.divide(gain, price, out=np.full(gain.shape, -np.inf), where=ahead)
        steepest = slope.max(axis=0)
        going = np.flatnonzero(steepest > 0.0)
        if len(going) == 0:
            return
        farthest = np.where(slope == steepest, cost, -np.inf)[:, going].argmax(axis=0)
        # Rounding must not let a later step of a customer sort before an earlier one.
        last_slope = np.minimum(steepest[going], np.nextafter(last_slope[going], 0.0))
        rows = rows[going]
        yield Steps(
            rows + first, farthest + 1, gain[farthest, going], price[farthest, going], last_slope
        )
        at_reward, at_cost = reward[farthest, going], cost[farthest, going]
        reward, cost, allowed = reward[:, going], cost[:, going], allowed[:, going]


def of_arm(table: FloatArray, arm: IntArray) -> FloatArray:
    """(n,) the entry of each customer's arm in an (n, K) table; 0 for control."""
    if table.shape[1] == 0:
        return np.zeros(len(table))
    taken = table[np.arange(len(table)), np.maximum(arm - 1, 0)]
    return np.where(arm > 0, taken, 0.0)


def _exact_sum(values: FloatArray) -> float:
    return math.fsum(values[values != 0.0].tolist())


def limit_of(budget: float | None) -> float:
    """The budget as a number, infinite for None; DesignError when it is negative or NaN."""
    if budget is None:
        return math.inf
    if math.isnan(budget) or budget < 0.0:
        raise DesignError(
            f"budget: expected a number >= 0 or none, found {budget!r}. Mend policy.budget."
        )
    return float(budget)


def _per_customer(
    name: str, given: npt.NDArray[Any] | None, default: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    if given is None:
        return default
    if np.shape(given) != default.shape:
        raise DesignError(f"{name}: expected shape {default.shape}, found {np.shape(given)}.")
    return np.asarray(given)


def checked_scores(reward: FloatArray, cost: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Both as (n, K) floats; DesignError for other shapes, numbers not finite, costs below 0."""
    reward = np.asarray(reward, dtype=np.float64)
    cost = np.asarray(cost, dtype=np.float64)
    if reward.ndim != 2 or reward.shape != cost.shape:
        raise DesignError(
            "reward and cost: expected one shape (customers, arms), "
            f"found {reward.shape} and {cost.shape}."
        )
    for name, table in (("reward", reward), ("cost", cost)):
        bad = ~np.isfinite(table)
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            raise DesignError(
                f"{name}: expected finite numbers, found {table[row, column]} for customer row "
                f"{row}, arm {column + 1} ({int(bad.sum())} in all). "
                "A score that is missing has no rank; leave the customer out or make the arm's "
                "prediction."
            )
    if (cost < 0.0).any():
        row, column = (int(i) for i in np.argwhere(cost < 0.0)[0])
        raise DesignError(
            f"cost: expected numbers >= 0, found {cost[row, column]} for customer row {row}, "
            f"arm {column + 1}. Clip predicted costs at 0."
        )
    return reward, cost


def _checked(
    reward: FloatArray, cost: FloatArray, min_profit: float, eligible: BoolArray | None
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Reward, cost and the arms that may be chosen, all (n, K); DesignError if they do not fit."""
    reward, cost = checked_scores(reward, cost)
    if not math.isfinite(min_profit):
        raise DesignError(f"min_profit: expected a finite number, found {min_profit!r}.")
    allowed = reward >= min_profit
    if eligible is not None:
        mask = np.asarray(eligible, dtype=bool)
        if mask.shape != reward.shape:
            raise DesignError(f"eligible: expected shape {reward.shape}, found {mask.shape}.")
        allowed = allowed & mask
    return reward, cost, allowed
