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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from uplift.data import BoolArray, FloatArray, IntArray
from uplift.errors import DesignError
from uplift.settling import Bounds, Settled, bounds, exact_terms, settle

# Relative slack for the rounding of a running sum; the exact sum of the chosen costs decides.
_ROUNDING = 1e-12
# Customers whose hulls are walked at a time: their tables stay in the processor's cache.
_BLOCK = 8192
# Up to so many customers are walked; of more, a sample of half the number bounds the price.
_WALKED = 16_384
# Standard deviations of the sampled spend that the bounds stand off, one try after the other.
_STAND_OFF = (4.0, 20.0)


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
    reward, cost = checked_scores(reward, cost)
    allowed = _allowed(reward, min_profit, eligible)
    limit = limit_of(budget)
    n = len(reward)
    paid = None if charged is None else _per_customer("charged", charged, n).astype(bool)
    order = np.arange(n) if tie_order is None else _per_customer("tie_order", tie_order, n)
    return _whole(_cut(_Table(reward, cost, allowed, paid, order), limit, ()), limit)


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
    reward, cost = checked_scores(reward, cost)
    allowed = _allowed(reward, min_profit, eligible)
    if not (math.isfinite(shadow_price) and shadow_price >= 0.0):
        raise DesignError(
            f"shadow_price: expected a finite number >= 0, found {shadow_price!r}. "
            "Take the one that allocate returned."
        )
    if reward.shape[1] == 0:
        return np.zeros(len(reward), dtype=np.int64)
    net = reward - shadow_price * cost
    if allowed is not None:
        net = np.where(allowed, net, -np.inf)
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
    reward, cost = checked_scores(reward, cost)
    allowed = _allowed(reward, min_profit, eligible)
    return _steps(_Table(reward, cost, allowed, None, np.arange(len(reward))))


class _Table(NamedTuple):
    """Customers to decide: the checked arguments of `allocate`; None where all are."""

    reward: FloatArray
    cost: FloatArray
    allowed: BoolArray | None
    paid: BoolArray | None
    order: npt.NDArray[Any]

    def rows(self, chosen: IntArray) -> _Table:
        return _Table(
            self.reward[chosen],
            self.cost[chosen],
            None if self.allowed is None else self.allowed[chosen],
            None if self.paid is None else self.paid[chosen],
            self.order[chosen],
        )

    def of_payers(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values if self.paid is None else values[self.paid]


class _Cut(NamedTuple):
    """Choices at the end of the budget. Sums are terms that `math.fsum` adds without error."""

    choice: npt.NDArray[np.signedinteger[Any]]
    shadow_price: float
    """Infinite when the choices that were given spend more than the limit."""
    spend: list[float]
    value: list[float]
    surplus: list[float]
    """Of the customers walked: the greatest reward less cost times shadow price, 0 for none."""
    settled: tuple[list[float], list[float]]
    """Spend and value of those whose chosen arm is known to have that greatest net reward."""


def _cut(table: _Table, limit: float, before: Sequence[float]) -> _Cut:
    """The arms that a limit buys, less what others have spent before; see `allocate`."""
    n = len(table.reward)
    if n > _WALKED:
        drawn = np.random.default_rng(0).integers(0, n, _WALKED // 2)
        sample = table.rows(drawn)
        for deviations in _STAND_OFF:
            left = limit - math.fsum(before)
            within = _sampled_bounds(sample, left * len(drawn) / n, deviations)
            codes = np.empty(n, dtype=_code_type(table.reward.shape[1]))
            settled = settle(table.reward, table.cost, table.allowed, table.paid, within, codes)
            if len(settled.open_rows) > n / 2:
                break
            rest = _cut(table.rows(settled.open_rows), limit, [*before, *settled.spend])
            if within.contain(rest.shadow_price):
                return _joined(codes, settled, rest)
    return _walk(table, limit, before)


def _joined(codes: npt.NDArray[np.signedinteger[Any]], settled: Settled, rest: _Cut) -> _Cut:
    codes[settled.open_rows] = rest.choice
    spend, value = settled.spend, settled.value
    return rest._replace(
        choice=codes,
        spend=[*spend, *rest.spend],
        value=[*value, *rest.value],
        settled=([*spend, *rest.settled[0]], [*value, *rest.settled[1]]),
    )


def _code_type(arms: int) -> type[np.signedinteger[Any]]:
    return np.int8 if arms < 100 else np.int32


def _sampled_bounds(sample: _Table, limit: float, deviations: float) -> Bounds:
    start, steps = _steps(sample)
    del start
    price = steps.price if sample.paid is None else steps.price * sample.paid[steps.customer]
    taken = np.searchsorted(np.cumsum(price), limit, side="right")
    # What a customer spends is the sum of its steps: no less noisy than if they came apart.
    each = np.bincount(steps.customer[:taken], price[:taken], minlength=len(sample.reward))
    noise = deviations * math.sqrt(float((each * each).sum()))
    return bounds(price, steps.slope, limit, noise)


def _walk(table: _Table, limit: float, before: Sequence[float]) -> _Cut:
    """`_cut` by walking every customer's hull."""
    reward, cost, allowed, paid, _ = table
    start, steps = _steps(table)
    step_paid = np.ones(len(steps.price), bool) if paid is None else paid[steps.customer]
    spent = np.cumsum(np.where(step_paid, steps.price, 0.0), dtype=np.longdouble)
    fits = spent <= limit * (1.0 + _ROUNDING) - math.fsum(before)
    taken = len(spent) if fits.all() else int(np.argmin(fits))
    while True:
        choice = start.copy()
        # Steps of one customer stand in their order along the hull: the last one taken stays.
        choice[steps.customer[:taken]] = steps.arm[:taken]
        spend = exact_terms(table.of_payers(of_arm(cost, choice)))
        excess = math.fsum([*before, *spend]) > limit
        payers = np.flatnonzero(step_paid[:taken])
        if not excess or len(payers) == 0:
            break
        taken = int(payers[-1])
    value = exact_terms(table.of_payers(of_arm(reward, choice)))
    shadow_price = float(steps.slope[taken]) if taken < len(spent) else 0.0
    if excess:
        shadow_price = math.inf
    surplus: list[float] = []
    if 0.0 < shadow_price < math.inf:
        net = reward - shadow_price * cost
        if allowed is not None:
            net = np.where(allowed, net, 0.0)
        surplus = exact_terms(table.of_payers(net.max(axis=1, initial=0.0)))
    return _Cut(choice, shadow_price, spend, value, surplus, ([], []))


def _whole(cut: _Cut, limit: float) -> Allocation:
    spend, value, price = math.fsum(cut.spend), math.fsum(cut.value), cut.shadow_price
    bound = value
    if price > 0.0:
        spent, gained = cut.settled
        kept = math.fsum(gained) - price * math.fsum(spent)
        bound = max(value, price * limit + (kept + math.fsum(cut.surplus)))
    return Allocation(cut.choice.astype(np.int64), price, spend, value, bound, bound - value)


def _free_arm(reward: FloatArray, cost: FloatArray, allowed: BoolArray) -> IntArray:
    """(n,) the arm without cost of greatest reward; control when none is above 0."""
    start = np.zeros(len(reward), dtype=np.int64)
    free = allowed & (cost == 0.0) & (reward > 0.0)
    rows = np.flatnonzero(free.any(axis=1))
    if len(rows):
        start[rows] = np.where(free[rows], reward[rows], 0.0).argmax(axis=1) + 1
    return start


def _steps(table: _Table) -> tuple[IntArray, Steps]:
    """The arms at budget 0, and all steps of all hulls in the order a growing budget takes them."""
    reward, cost, allowed, _, order = table
    if allowed is None:
        allowed = np.ones(reward.shape, dtype=bool)
    start = _free_arm(reward, cost, allowed)
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
    return start, Steps(
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


def limit_of(budget: float | None) -> float:
    """The budget as a number, infinite for None; DesignError when it is negative or NaN."""
    if budget is None:
        return math.inf
    if math.isnan(budget) or budget < 0.0:
        raise DesignError(
            f"budget: expected a number >= 0 or none, found {budget!r}. Mend policy.budget."
        )
    return float(budget)


def _per_customer(name: str, given: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    if np.shape(given) != (n,):
        raise DesignError(f"{name}: expected shape {(n,)}, found {np.shape(given)}.")
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


def _allowed(reward: FloatArray, min_profit: float, eligible: BoolArray | None) -> BoolArray | None:
    """(n, K) the arms that may be chosen, None for all; DesignError if the arguments do not fit.

    An arm that brings nothing is never chosen, so a threshold up to 0 forbids nothing more.
    """
    if not math.isfinite(min_profit):
        raise DesignError(f"min_profit: expected a finite number, found {min_profit!r}.")
    if eligible is None:
        return None if min_profit <= 0.0 else reward >= min_profit
    mask = np.asarray(eligible, dtype=bool)
    if mask.shape != reward.shape:
        raise DesignError(f"eligible: expected shape {reward.shape}, found {mask.shape}.")
    return mask if min_profit <= 0.0 else mask & (reward >= min_profit)
