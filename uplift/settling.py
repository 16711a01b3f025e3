"""Customers whose arm is the same at every shadow price between two bounds.

An allocation needs the order of steps only near the price where the budget ends. A sample tells
about where that is; `settle` then proves, in one pass over all customers, whose arm no price
within the bounds can change. What remains open is a small problem of the same form.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from uplift.data import BoolArray, FloatArray, IntArray

Codes = npt.NDArray[np.signedinteger[npt.NBitBase]]

# Steps of the sample by which the bounds stand off, besides the noise of the sampled spend.
_APART = 16
# Relative distance to the bounds that keeps rounding from moving a step across them.
_CLEAR = 1e-6
_HIGHEST = float(np.finfo(np.float64).max)
# Customers looked at together: the tables of the pass stay in the processor's cache.
_BLOCK = 16_384


class Bounds(NamedTuple):
    """Shadow prices: low <= middle <= high; `middle` is the best guess."""

    low: float
    middle: float
    high: float

    def contain(self, price: float) -> bool:
        """Whether the price lies clearly within, or is 0 and so are the steps left outside."""
        if price == 0.0:
            return self.low == 0.0
        half = _CLEAR / 2
        return self.low * (1.0 + half) < price < self.high * (1.0 - half)


class Settled(NamedTuple):
    """What `settle` found; sums as terms that `math.fsum` adds without error."""

    open_rows: IntArray
    """Customers whose arm depends on the price."""
    spend: list[float]
    """Cost of the settled customers who pay."""
    value: list[float]
    """Reward of the settled customers who pay."""


def bounds(price: FloatArray, slope: FloatArray, limit: float, noise: float) -> Bounds:
    """Bounds of the shadow price from the steps of a sample, steepest first.

    price, slope: (steps,), what a step costs (0 for who does not pay) and its reward per cost.
    limit: the sample's share of the budget. noise: by how much its spend may be off, currency.
    """
    spent = np.cumsum(price)
    steps = len(slope)
    first = int(np.searchsorted(spent, limit - noise)) - _APART
    last = int(np.searchsorted(spent, limit + noise, side="right")) + _APART
    high = float(slope[first]) if 0 <= first < steps else _HIGHEST
    low = float(slope[last]) if last < steps else 0.0
    middle = float(slope[min(int(np.searchsorted(spent, limit)), steps - 1)]) if steps else 0.0
    wide = min(high, _HIGHEST / 2) * (1.0 + _CLEAR) if high < _HIGHEST else high
    return Bounds(low * (1.0 - _CLEAR), middle, wide)


def settle(
    reward: FloatArray,
    cost: FloatArray,
    allowed: BoolArray | None,
    paid: BoolArray | None,
    within: Bounds,
    codes: Codes,
) -> Settled:
    """Writes each customer's best arm at the middle price into codes (n,), 0 for none.

    reward, cost: (n, K); allowed: (n, K) or None for all; paid: (n,) or None for all. An arm A is
    settled when no other arm k gains more than it costs at either bound:
    r_k - r_A <= min(low (c_k - c_A), high (c_k - c_A)). As both sides are linear in the price, that
    holds between them too. Differences are taken before products, so that nearly equal arms are
    told apart as exactly as the hull tells them. Of equal arms the lower code stands.
    """
    n, arms = reward.shape
    size = min(_BLOCK, n)
    space = np.empty((4, arms + 1, size))
    wins = np.empty((arms + 1, size), dtype=bool)
    rank = np.arange(arms + 1, 0, -1, dtype=codes.dtype)[:, None]
    position = np.arange(size)
    open_rows: list[IntArray] = []
    spend: list[float] = []
    value: list[float] = []
    for first in range(0, n, size):
        block = slice(first, min(first + size, n))
        wide = block.stop - first
        here = space if wide == size else np.empty((4, arms + 1, wide))
        won = wins[:, :wide]
        gain, price, net, other = here
        gain[0] = price[0] = 0.0
        price[1:] = cost[block].T
        if allowed is None:
            gain[1:] = reward[block].T
        else:
            gain[1:] = np.where(allowed[block], reward[block], -np.inf).T
        np.multiply(price, -within.middle, out=net)
        net += gain
        np.equal(net, net.max(axis=0), out=won)
        code = (arms + 1) - (won * rank).max(axis=0)
        codes[block] = code
        chosen = code.astype(np.int64) * wide
        chosen += position[:wide]
        own_reward, own_cost = gain.reshape(-1)[chosen], price.reshape(-1)[chosen]
        gain -= own_reward
        price -= own_cost
        with np.errstate(over="ignore"):
            np.multiply(price, within.low, out=net)
            np.multiply(price, within.high, out=other)
        np.minimum(net, other, out=net)
        np.greater(gain, net, out=won)
        undecided = won.any(axis=0)
        open_rows.append(np.flatnonzero(undecided) + first)
        counted = ~undecided if paid is None else ~undecided & paid[block]
        own_reward *= counted
        own_cost *= counted
        value += exact_terms(own_reward)
        spend += exact_terms(own_cost)
    rows = np.concatenate(open_rows) if open_rows else np.zeros(0, dtype=np.int64)
    return Settled(rows, spend, value)


def exact_terms(values: FloatArray) -> list[float]:
    """A few numbers whose exact sum is the exact sum of values (n,), which are finite.

    Each pass splits off the leading bits of every value: adding and taking away a power of two that
    is larger than their sum leaves multiples of one unit so few that adding them is exact (the
    error-free extraction of Rump, Ogita & Oishi 2008).
    """
    terms: list[float] = []
    rest = values
    while len(rest):
        largest = max(float(rest.max()), -float(rest.min()))
        if largest == 0.0:
            break
        power = math.frexp(largest)[1] + len(rest).bit_length() + 1
        if not -900 < power < 1020:  # beyond what a float can split off
            return [*terms, *rest.tolist()]
        unit = math.ldexp(1.0, power)
        lead = rest + unit
        lead -= unit
        terms.append(float(lead.sum()))
        rest = rest - lead
    return terms
