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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from uplift.data import BoolArray, FloatArray, IntArray
from uplift.errors import DesignError
from uplift.hull import Cut, Steps, Table, cut, cut_settled, hull_steps, of_arm, together, walk

__all__ = [
    "Allocation",
    "Chunk",
    "Steps",
    "allocate",
    "allocate_stream",
    "allowed_arms",
    "best_arm",
    "checked_scores",
    "hull_path",
    "limit_of",
    "of_arm",
    "value_path",
]

# Of so many customers of a stream one is sampled; a chunk gives as many as that at least.
_ONE_IN = 64


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
    table = _table(Chunk(reward, cost, eligible, charged, tie_order), min_profit, 0)
    limit = limit_of(budget)
    return _whole(cut(table, limit, ()), limit)


class Chunk(NamedTuple):
    """Some customers of a stream; the arguments of `allocate` for them."""

    reward: FloatArray
    cost: FloatArray
    eligible: BoolArray | None = None
    charged: BoolArray | None = None
    tie_order: npt.NDArray[Any] | None = None


def allocate_stream(
    chunks: Callable[[], Iterable[Chunk]], *, budget: float | None, min_profit: float = 0.0
) -> Allocation:
    """`allocate` for customers whose scores do not fit into memory together: the same answer.

    chunks: each call gives the same chunks in the same order, as an iterator that reads a file
    does. They are read twice: for a sample, which bounds the shadow price, and for the decisions;
    a third time in the rare case that the price lies outside the bounds. Beside one chunk, memory
    holds the choices, one customer in 64 and those near the cut. Where more than half stand at the
    cut, as when all have the same few slopes, all are held.

    Raises DesignError as `allocate`, and when the chunks have not one number of arms, or their
    customers are not the same again.
    """
    limit = limit_of(budget)
    counts: list[int] = []
    sampled: list[Table] = []
    drawing = np.random.default_rng(0)
    for table in _tables(chunks, min_profit):
        size = len(table.reward)
        counts.append(size)
        few = min(size, max(_ONE_IN, -(-size // _ONE_IN)))
        sampled.append(table.rows(np.sort(drawing.choice(size, few, replace=False))))
    n = sum(counts)
    if n == 0:
        return Allocation(np.zeros(0, dtype=np.int64), 0.0, 0.0, 0.0, 0.0, 0.0)

    def again() -> Iterator[Table]:
        found: list[int] = []
        for table in _tables(chunks, min_profit):
            found.append(len(table.reward))
            if found == counts[: len(found)]:
                yield table
        if found != counts:
            raise DesignError(
                f"chunks: expected the same {n} customers in {len(counts)} chunks at each reading, "
                f"found {sum(found)} in {len(found)}. Give a function that opens the source anew."
            )

    found = cut_settled(again, together(sampled), n, limit)
    if found is None:
        found = walk(together(list(again())), limit, ())
    return _whole(found, limit)


def _tables(chunks: Callable[[], Iterable[Chunk]], min_profit: float) -> Iterator[Table]:
    first, arms = 0, -1
    for chunk in chunks():
        table = _table(chunk, min_profit, first)
        if arms not in (-1, table.reward.shape[1]):
            raise DesignError(
                f"chunks: expected {arms} arms in all, found {table.reward.shape[1]} in the one "
                f"that begins with customer row {first}."
            )
        arms = table.reward.shape[1]
        yield table
        first += len(table.reward)


def _table(chunk: Chunk, min_profit: float, first: int) -> Table:
    """The chunk whose customers are the rows from `first` on, checked."""
    reward, cost = checked_scores(chunk.reward, chunk.cost)
    allowed = allowed_arms(reward, min_profit, chunk.eligible)
    n = len(reward)
    paid, order = chunk.charged, chunk.tie_order
    return Table(
        reward,
        cost,
        allowed,
        None if paid is None else _per_customer("charged", paid, n).astype(bool),
        np.arange(first, first + n) if order is None else _per_customer("tie_order", order, n),
    )


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
    return best_allowed(reward, cost, shadow_price, allowed_arms(reward, min_profit, eligible))


def best_allowed(
    reward: FloatArray, cost: FloatArray, shadow_price: float, allowed: BoolArray | None
) -> IntArray:
    """`best_arm` among the (n, K) arms that `allowed_arms` gives, of scores that are checked."""
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
    allowed = allowed_arms(reward, min_profit, eligible)
    return hull_steps(Table(reward, cost, allowed, None, np.arange(len(reward))))


def _whole(found: Cut, limit: float) -> Allocation:
    spend, value, price = math.fsum(found.spend), math.fsum(found.value), found.shadow_price
    bound = value
    if price > 0.0:
        spent, gained = found.settled
        kept = math.fsum(gained) - price * math.fsum(spent)
        bound = max(value, price * limit + (kept + math.fsum(found.surplus)))
    return Allocation(found.choice.astype(np.int64), price, spend, value, bound, bound - value)


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


def allowed_arms(
    reward: FloatArray, min_profit: float, eligible: BoolArray | None
) -> BoolArray | None:
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
