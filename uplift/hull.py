"""Walk the customers' upper hulls to the end of a budget, those together whom it decides.

Steps of all customers are taken steepest first until the first that does not fit. Only the steps
near the price at that cut need an order: a sample bounds the price, `uplift.settling` proves who
has the same arm everywhere within the bounds, and the walk is left with the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from uplift.data import BoolArray, FloatArray, IntArray
from uplift.settling import Bounds, bounds, exact_terms, settle

# Relative slack for the rounding of a running sum; the exact sum of the chosen costs decides.
_ROUNDING = 1e-12
# Customers whose hulls are walked at a time: their tables stay in the processor's cache.
_BLOCK = 8192
# Up to so many customers are walked; of more, a sample of half the number bounds the price.
_WALKED = 16_384
# Standard deviations of the sampled spend that the bounds stand off, one try after the other.
_STAND_OFF = (4.0, 20.0)


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


class Table(NamedTuple):
    """Customers to decide: the checked arguments of `allocate`; None where all are."""

    reward: FloatArray
    cost: FloatArray
    allowed: BoolArray | None
    paid: BoolArray | None
    order: npt.NDArray[Any]

    def rows(self, chosen: IntArray) -> Table:
        return Table(
            self.reward.take(chosen, axis=0),
            self.cost.take(chosen, axis=0),
            None if self.allowed is None else self.allowed.take(chosen, axis=0),
            None if self.paid is None else self.paid[chosen],
            self.order[chosen],
        )

    def of_payers(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values if self.paid is None else values[self.paid]


class Cut(NamedTuple):
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


def cut(table: Table, limit: float, before: Sequence[float]) -> Cut:
    """The arms that a limit buys, less what others have spent before; see `allocate`."""
    n = len(table.reward)
    if n > _WALKED:
        sample = table.rows(np.random.default_rng(0).integers(0, n, _WALKED // 2))
        found = cut_settled(lambda: [table], sample, n, limit, before)
        if found is not None:
            return found
    return walk(table, limit, before)


def cut_settled(
    tables: Callable[[], Iterable[Table]],
    sample: Table,
    n: int,
    limit: float,
    before: Sequence[float] = (),
) -> Cut | None:
    """`cut` of tables that are not held together: each call of `tables` gives them all in order.

    sample: some of the n customers at random. None when most customers stand at the cut, as when
    all have the same few slopes: then no bounds spare the walk.
    """
    left = limit - math.fsum(before)
    for deviations in _STAND_OFF:
        within = _sampled_bounds(sample, left * len(sample.reward) / n, deviations)
        codes = np.empty(n, dtype=_code_type(sample.reward.shape[1]))
        spend: list[float] = []
        value: list[float] = []
        open_rows: list[IntArray] = []
        open_tables: list[Table] = []
        first = 0
        for table in tables():
            last = first + len(table.reward)
            settled = settle(
                table.reward, table.cost, table.allowed, table.paid, within, codes[first:last]
            )
            open_rows.append(settled.open_rows + first)
            open_tables.append(table.rows(settled.open_rows))
            spend += settled.spend
            value += settled.value
            first = last
        rows = np.concatenate(open_rows)
        if len(rows) > n / 2:
            return None
        rest = cut(together(open_tables), limit, [*before, *spend])
        if within.contain(rest.shadow_price):
            codes[rows] = rest.choice
            return rest._replace(
                choice=codes,
                spend=[*spend, *rest.spend],
                value=[*value, *rest.value],
                settled=([*spend, *rest.settled[0]], [*value, *rest.settled[1]]),
            )
    return None


def together(tables: Sequence[Table]) -> Table:
    """One table of several; what only some of them leave out is filled in."""
    if len(tables) == 1:
        return tables[0]
    allowed: BoolArray | None = None
    paid: BoolArray | None = None
    if any(part.allowed is not None for part in tables):
        allowed = np.concatenate(
            [np.ones(t.reward.shape, bool) if t.allowed is None else t.allowed for t in tables]
        )
    if any(part.paid is not None for part in tables):
        paid = np.concatenate(
            [np.ones(len(t.reward), bool) if t.paid is None else t.paid for t in tables]
        )
    return Table(
        np.concatenate([part.reward for part in tables]),
        np.concatenate([part.cost for part in tables]),
        allowed,
        paid,
        np.concatenate([part.order for part in tables]),
    )


def _code_type(arms: int) -> type[np.signedinteger[Any]]:
    return np.int8 if arms < 100 else np.int32


def _sampled_bounds(sample: Table, limit: float, deviations: float) -> Bounds:
    _, steps = hull_steps(sample)
    price = steps.price if sample.paid is None else steps.price * sample.paid[steps.customer]
    taken = np.searchsorted(np.cumsum(price), limit, side="right")
    # What a customer spends is the sum of its steps: no less noisy than if they came apart.
    each = np.bincount(steps.customer[:taken], price[:taken], minlength=len(sample.reward))
    noise = deviations * math.sqrt(float((each * each).sum()))
    return bounds(price, steps.slope, limit, noise)


def walk(table: Table, limit: float, before: Sequence[float]) -> Cut:
    """`cut` by walking every customer's hull."""
    reward, cost, allowed, paid, _ = table
    start, steps = hull_steps(table)
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
    return Cut(choice, shadow_price, spend, value, surplus, ([], []))


def _free_arm(reward: FloatArray, cost: FloatArray, allowed: BoolArray) -> IntArray:
    """(n,) the arm without cost of greatest reward; control when none is above 0."""
    start = np.zeros(len(reward), dtype=np.int64)
    free = allowed & (cost == 0.0) & (reward > 0.0)
    rows = np.flatnonzero(free.any(axis=1))
    if len(rows):
        start[rows] = np.where(free[rows], reward[rows], 0.0).argmax(axis=1) + 1
    return start


def hull_steps(table: Table) -> tuple[IntArray, Steps]:
    """The arms at budget 0, and all steps of all hulls in the order a growing budget takes them."""
    reward, cost, allowed, _, order = table
    if allowed is None:
        allowed = np.ones(reward.shape, dtype=bool)
    start = _free_arm(reward, cost, allowed)
    whole, real = np.zeros(0, dtype=np.int64), np.zeros(0)
    found = [Steps(whole, whole, real, real, real)]
    for first in range(0, len(reward), _BLOCK):
        block = slice(first, first + _BLOCK)
        found += _corners(reward[block], cost[block], allowed[block], start[block], first)
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


def _corners(
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
