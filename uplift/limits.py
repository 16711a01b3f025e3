"""Several limits at once: a budget, the stock of each coupon, what each channel may carry.

Every limit has a price lambda_m. For any prices >= 0
g(lambda) = sum_m lambda_m b_m + sum_i max(0, max_k (r_ik - sum_m lambda_m a_mik))
is at least the optimum of the linear relaxation, and its minimum is that optimum. g is convex and
its subgradient is what the choices at lambda leave of each limit, so its minimum is enclosed by
cutting planes (Kelley 1960), each of one pass over the customers. The last digits come from a
linear programme in the few customers whose best two arms are nearly worth the same at these prices;
everybody else's arm is checked against the programme's own prices, and who disagrees joins it. An
optimal vertex splits at most one customer per limit between arms (Sinha & Zoltners 1979).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, vstack

from uplift.allocation import allowed_arms, checked_scores, of_arm
from uplift.data import BoolArray, FloatArray, IntArray
from uplift.errors import DesignError
from uplift.settling import exact_terms

_BLOCK = 16_384
# The cutting planes stop at this relative distance of their bounds, or after so many passes.
_CLOSE = 1e-10
_PASSES = 120
# Of more customers than four times these a sample of these stands for the bend of g.
_SAMPLED = 4_096
_SAMPLE_CLOSE = 1e-6
_CORRECTIONS = 6
# Customers per limit in the first linear programme; rounds in which others may join it.
_UNSURE = 16
_ROUNDS = 12
# A programme of more customers takes minutes; and how far below the prices one then chooses, so
# that who is indifferent has an arm, which is taken back where a limit is exceeded.
_LARGEST = 20_000
_BELOW = 1e-6
# A share of a customer nearer than this to 0 or 1 is whole.
_WHOLE = 1e-7


@dataclass(frozen=True)
class Limit:
    """At most `most` of what the chosen arms use in total, in one unit: currency, pieces, sends."""

    name: str
    uses: FloatArray
    """What an arm uses when it is chosen, >= 0; of any shape that broadcasts to (n, K): the cost
    table for a budget, 1 in one column for the stock of a coupon, a column (n, 1) of ones for all
    sends to the customers of a segment."""
    most: float


@dataclass(frozen=True)
class JointAllocation:
    """Who gets what under several limits, and how near to the optimum that is."""

    choice: IntArray
    """(n,): 0 = no offer, k = arm k (column k - 1)."""
    prices: dict[str, float]
    """By limit: profit per unit of it at the margin; 0 when it does not bind."""
    used: dict[str, float]
    """By limit: what the chosen arms use, never above its `most`."""
    value: float
    """Sum of the reward of the chosen arms."""
    upper_bound: float
    """g at the prices: at least the optimum, whatever led to them."""
    gap: float
    """upper_bound - value. In the linear optimum at most one customer per limit is split between
    arms; the gap is what those bring less when nobody may be split."""
    split: int
    """Customers whom the linear optimum splits."""


class _Problem(NamedTuple):
    reward: FloatArray
    """(n, K), -inf where the arm may not be chosen."""
    uses: tuple[FloatArray, ...]
    most: FloatArray

    def rows(self, chosen: IntArray) -> _Problem:
        return _Problem(
            self.reward[chosen], tuple(np.asarray(use[chosen]) for use in self.uses), self.most
        )

    def net(self, prices: FloatArray) -> Iterator[tuple[slice, FloatArray]]:
        """Reward less use at the prices, (rows, 1 + K) with control first, block by block."""
        n, arms = self.reward.shape
        for first in range(0, n, _BLOCK):
            block = slice(first, min(first + _BLOCK, n))
            net = np.zeros((block.stop - first, arms + 1))
            net[:, 1:] = self.reward[block]
            for use, price in zip(self.uses, prices, strict=True):
                if price:
                    net[:, 1:] -= price * use[block]
            yield block, net

    def best(self, prices: FloatArray) -> tuple[IntArray, float]:
        """The arm of greatest net reward of each customer, (n,), and g at the prices."""
        choice = np.zeros(len(self.reward), dtype=np.int64)
        terms = list(prices * self.most)
        for block, net in self.net(prices):
            choice[block] = net.argmax(axis=1)
            terms += exact_terms(net.max(axis=1))
        return choice, math.fsum(terms)

    def used(self, choice: IntArray) -> FloatArray:
        """(M,) what the choices use of each limit, correctly rounded."""
        return np.array([math.fsum(exact_terms(of_arm(use, choice))) for use in self.uses])


def allocate_jointly(
    reward: FloatArray,
    limits: Sequence[Limit],
    *,
    min_profit: float = 0.0,
    eligible: BoolArray | None = None,
) -> JointAllocation:
    """Choose at most one arm per customer so that profit is greatest and every limit is kept.

    reward: (n, K), expected incremental profit, currency. min_profit, eligible: as in
    `uplift.allocation.allocate`, which is the better way for a single limit.

    Raises DesignError when shapes do not fit, a number is not finite, a use or a limit is negative
    or two limits have one name.
    """
    problem = _problem(reward, limits, min_profit, eligible)
    plane_prices = _near_prices(problem)
    prices, choice, split = _finish(problem, plane_prices)
    # Any prices give a bound: the better of the two that were found.
    bounds = {tuple(each): problem.best(each)[1] for each in (prices, plane_prices)}
    lowest = min(bounds, key=lambda each: bounds[each])
    choice = _kept(problem, choice, np.array(lowest))
    value = math.fsum(exact_terms(of_arm(np.maximum(problem.reward, 0.0), choice)))
    used = problem.used(choice)
    bound = max(value, bounds[lowest])
    names = [limit.name for limit in limits]
    return JointAllocation(
        choice=choice,
        prices=dict(zip(names, (float(price) for price in lowest), strict=True)),
        used=dict(zip(names, used.tolist(), strict=True)),
        value=value,
        upper_bound=bound,
        gap=bound - value,
        split=split,
    )


def tolls(
    limits: Sequence[Limit], prices: Mapping[str, float], shape: tuple[int, ...]
) -> FloatArray:
    """(n, K) what the limits' prices take off the worth of each arm: sum of price x use."""
    total = np.zeros(shape)
    for limit in limits:
        if prices[limit.name] > 0.0:
            total += prices[limit.name] * np.asarray(limit.uses, dtype=np.float64)
    return total


def _problem(
    reward: FloatArray, limits: Sequence[Limit], min_profit: float, eligible: BoolArray | None
) -> _Problem:
    reward, _ = checked_scores(reward, np.zeros(np.shape(reward)))
    names = [limit.name for limit in limits]
    if len(set(names)) < len(names):
        raise DesignError(f"limits: expected a name of its own for each, found {names}.")
    uses: list[FloatArray] = []
    for limit in limits:
        if not limit.most >= 0.0:
            raise DesignError(f"{limit.name}: expected a limit >= 0, found {limit.most!r}.")
        try:
            use = np.broadcast_to(np.asarray(limit.uses, dtype=np.float64), reward.shape)
        except ValueError:
            raise DesignError(
                f"{limit.name}: expected uses for {reward.shape} customers and arms, found shape "
                f"{np.shape(limit.uses)}."
            ) from None
        if not (np.isfinite(limit.uses).all() and np.min(limit.uses, initial=0.0) >= 0.0):
            raise DesignError(f"{limit.name}: expected finite uses >= 0, found others.")
        uses.append(use)
    allowed = allowed_arms(reward, min_profit, eligible)
    profitable = reward > 0.0 if allowed is None else allowed & (reward > 0.0)
    most = np.array([limit.most for limit in limits], dtype=np.float64)
    # A limit that nobody could reach counts as just that, also when it is infinite.
    reach = [float(np.where(profitable, use, 0.0).max(axis=1, initial=0.0).sum()) for use in uses]
    return _Problem(
        np.where(profitable, reward, -np.inf),
        tuple(uses),
        np.minimum(most, np.array(reach, dtype=np.float64) * 2.0 + 1.0),
    )


def _near_prices(problem: _Problem) -> FloatArray:
    """Prices (M,) that nearly minimise g.

    Of many customers a sample does: what all use at its prices, beside what the sample does, says
    by how much the sample's limits have to move for its prices to be those of all.
    """
    n = len(problem.reward)
    if n <= 4 * _SAMPLED:
        return _by_planes(problem, _CLOSE)
    share = _SAMPLED / n
    sample = problem.rows(np.random.default_rng(0).integers(0, n, _SAMPLED))
    shift = np.zeros(len(problem.most))
    lowest, best_prices = math.inf, shift
    for _ in range(_CORRECTIONS):
        sample = sample._replace(most=np.maximum(0.0, problem.most * share - shift))
        prices = _by_planes(sample, _SAMPLE_CLOSE)
        choice, height = problem.best(prices)
        if height >= lowest:
            break
        lowest, best_prices = height, prices
        shift = problem.used(choice) * share - sample.used(sample.best(prices)[0])
    return best_prices


def _by_planes(problem: _Problem, close: float) -> FloatArray:
    """Prices (M,) at which g is nearer to its minimum than a share `close` of g(0)."""
    m = len(problem.most)
    best_prices = np.zeros(m)
    choice, lowest = problem.best(best_prices)
    scale = lowest
    if m == 0 or scale <= 0.0:
        return best_prices
    highest = np.ones(m)
    for j, use in enumerate(problem.uses):
        with np.errstate(over="ignore"):
            ratio = np.divide(
                problem.reward, use, out=np.zeros_like(problem.reward), where=use > 0.0
            )
        # Beyond the greatest reward per use nobody uses any of it.
        highest[j] = min(max(float(ratio.max(initial=0.0)), 1e-300), 1e300)
    heights: list[float] = []
    slopes: list[FloatArray] = []
    for turn in range(_PASSES):
        left = problem.most - problem.used(choice)
        gained = math.fsum(exact_terms(of_arm(np.maximum(problem.reward, 0.0), choice)))
        heights.append(gained / scale)
        slopes.append(left * highest / scale)
        # min t over t >= height + slope x for every plane, 0 <= x <= 1.
        found = linprog(
            np.append(np.zeros(m), 1.0),
            A_ub=np.column_stack([np.array(slopes), -np.ones(len(slopes))]),
            b_ub=-np.array(heights),
            bounds=[(0.0, 1.0)] * m + [(None, None)],
            method="highs",
        )
        if found.status != 0 or lowest - found.fun * scale <= close * scale:
            break
        prices = found.x[:m] * highest
        if turn % 3:  # between the best and the planes' minimum: fewer passes than at the latter
            prices = (prices + best_prices) / 2.0
        choice, height = problem.best(prices)
        if height < lowest:
            lowest, best_prices = height, prices
    return best_prices


def _finish(problem: _Problem, prices: FloatArray) -> tuple[FloatArray, IntArray, int]:
    """Optimal prices, whole choices, and how many customers were split.

    Where too many customers are indifferent for a programme, as when all are alike, the prices are
    those given, and the choices may exceed limits until `_kept` takes the least worthy back.
    """
    n = len(problem.reward)
    choice, _ = problem.best(prices)
    margin = np.empty(n)
    for block, net in problem.net(prices):
        ordered = np.sort(net, axis=1)
        margin[block] = ordered[:, -1] - ordered[:, -2] if net.shape[1] > 1 else np.inf
    size = min(n, _UNSURE * (len(problem.most) + 1))
    unsure = np.zeros(n, dtype=bool)
    unsure[np.argsort(margin, kind="stable")[:size]] = True
    scale = max(1.0, float(np.max(problem.reward, initial=0.0)))
    for _ in range(_ROUNDS):
        rows = np.flatnonzero(unsure)
        if len(rows) > _LARGEST:
            break
        settled = np.where(unsure, 0, choice)
        left = problem.most - problem.used(settled)
        solved = None if (left < 0.0).any() else _programme(problem.rows(rows), left)
        if solved is None:
            # The others use too much at these prices: more of them have to be free to give way.
            size = min(n, 4 * size)
            unsure[np.argsort(margin, kind="stable")[:size]] = True
            if len(rows) == n:
                break
            continue
        found, shares = solved
        settled_best = np.zeros(n, dtype=bool)
        for block, net in problem.net(found):
            own = net[np.arange(len(net)), choice[block]]
            settled_best[block] = own >= net.max(axis=1) - 1e-13 * scale
        outside = ~settled_best & ~unsure
        if outside.any():
            # Those nearest to a change first: from too few customers come prices that are far off.
            joining = np.flatnonzero(outside)
            nearest = np.argsort(margin[joining], kind="stable")[: 3 * len(rows)]
            unsure[joining[nearest]] = True
            continue
        split = (shares > _WHOLE).sum(axis=1) > 1
        chosen = shares.argmax(axis=1)
        settled[rows] = np.where(split, 0, chosen)
        return found, _filled(problem, settled, rows[split]), int(split.sum())
    return prices, problem.best(prices * (1.0 - _BELOW))[0], 0


def _programme(problem: _Problem, left: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """Prices (M,) and shares (n, 1 + K), control first, of the relaxation's optimal vertex."""
    rows, columns = np.nonzero(np.isfinite(problem.reward))
    n, arms = problem.reward.shape
    shares = np.zeros((n, arms + 1))
    if len(rows) == 0:
        shares[:, 0] = 1.0
        return np.zeros(len(left)), shares
    each = np.arange(len(rows))
    one_arm = csr_array((np.ones(len(rows)), (rows, each)), shape=(n, len(rows)))
    uses = csr_array(
        np.array([use[rows, columns] for use in problem.uses]).reshape(len(left), len(rows))
    )
    found = linprog(
        -problem.reward[rows, columns],
        A_ub=vstack([uses, one_arm], format="csr"),
        b_ub=np.append(left, np.ones(n)),
        method="highs-ds",
    )
    if found.status != 0:
        return None
    shares[rows, columns + 1] = found.x
    shares[:, 0] = np.maximum(0.0, 1.0 - shares.sum(axis=1))
    return np.maximum(0.0, -found.ineqlin.marginals[: len(left)]), shares


def _filled(problem: _Problem, choice: IntArray, rows: IntArray) -> IntArray:
    """The choices, with the best arm that still fits for each of a few customers, best first."""
    choice = choice.copy()
    for row in rows[np.argsort(-problem.reward[rows].max(axis=1, initial=0.0), kind="stable")]:
        left = problem.most - problem.used(choice)
        fits = np.isfinite(problem.reward[row])
        for use, rest in zip(problem.uses, left, strict=True):
            fits &= use[row] <= rest
        if fits.any():
            choice[row] = int(np.where(fits, problem.reward[row], -np.inf).argmax()) + 1
    return choice


def _kept(problem: _Problem, choice: IntArray, prices: FloatArray) -> IntArray:
    """The choices, less those of least net reward among the users of a limit that is exceeded."""
    choice = choice.copy()
    while True:
        over = np.flatnonzero(problem.used(choice) > problem.most)
        if len(over) == 0:
            return choice
        use = of_arm(problem.uses[over[0]], choice)
        net = of_arm(np.maximum(problem.reward, 0.0), choice)
        for price, each in zip(prices, problem.uses, strict=True):
            net = net - price * of_arm(each, choice)
        order = np.lexsort((np.arange(len(net)), net, use <= 0.0))
        beyond = problem.used(choice)[over[0]] - problem.most[over[0]]
        drop = int(np.searchsorted(np.cumsum(use[order]), beyond)) + 1
        choice[order[:drop]] = 0
