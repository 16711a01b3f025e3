"""Spend a budget over customers and coupons: `uplift.allocation` and two other ways.

HiGHS solves the linear relaxation with a general method, on a size that it can do. The bisection
is what one writes in numpy in ten lines: halve the interval of the shadow price 40 times. Each
way's answer is checked against the bounds that the others prove.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.report import Options, progress, text_table
from uplift.allocation import Allocation, allocate

FloatArray = npt.NDArray[np.float64]
Result = TypeVar("Result")
ARMS = 5
CUSTOMERS = 1_000_000
LP_CUSTOMERS = 20_000
PASSES = 40
BUDGET_SHARE = 0.25
CLOSE = 1e-7


def instance(n: int, arms: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, float]:
    """Rewards and costs (n, arms), and a quarter of what each customer's best coupon costs.

    Like a shop: most coupons bring a loss to most customers, none is free.
    """
    reward = rng.normal(-0.1, 1.2, (n, arms))
    cost = 0.1 + rng.gamma(2.0, 0.25, (n, arms))
    best = reward.argmax(axis=1)
    rows = np.arange(n)
    full = cost[rows, best][reward[rows, best] > 0].sum()
    return reward, cost, float(BUDGET_SHARE * full)


def bisect(reward: FloatArray, cost: FloatArray, budget: float) -> tuple[float, float, float]:
    """Value, spend and an upper bound of the optimum, by halving the shadow price's interval."""
    rows = np.arange(len(reward))

    def at(price: float) -> tuple[float, float, float]:
        net = reward - price * cost
        arm = net.argmax(axis=1)
        best = net[rows, arm]
        sent = best > 0
        spend = float(cost[rows, arm][sent].sum())
        value = float(reward[rows, arm][sent].sum())
        return value, spend, price * budget + float(best[sent].sum())

    low, high = 0.0, float((reward / cost).max())
    for _ in range(PASSES):
        middle = (low + high) / 2
        if at(middle)[1] > budget:
            low = middle
        else:
            high = middle
    return at(high)


def relaxation(reward: FloatArray, cost: FloatArray, budget: float) -> float:
    """Optimum of the linear relaxation by HiGHS."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, vstack

    n, arms = reward.shape
    one_each = csr_array(
        (np.ones(n * arms), np.arange(n * arms), np.arange(0, n * arms + 1, arms)),
        shape=(n, n * arms),
    )
    constraints = vstack([one_each, csr_array(cost.reshape(1, -1))], format="csr")
    limits = np.append(np.ones(n), budget)
    found = linprog(-reward.ravel(), A_ub=constraints, b_ub=limits, method="highs")
    if found.status != 0:
        raise RuntimeError(f"HiGHS: {found.message}")
    return -float(found.fun)


def check(ours: Allocation, budget: float, value: float, bound: float) -> None:
    """Raises AssertionError unless both answers keep the budget and respect each other's bound."""
    slack = CLOSE * max(1.0, abs(bound))
    step = {
        "ours keeps the budget": ours.spend <= budget * (1 + CLOSE),
        "ours is below the peer's bound": ours.value <= bound + slack,
        "the peer is below our bound": value <= ours.upper_bound + slack,
        "ours is within its gap of the peer": ours.value >= value - ours.gap - slack,
    }
    wrong = [name for name, holds in step.items() if not holds]
    if wrong:
        raise AssertionError(f"{'; '.join(wrong)}: {ours.value}, {value}, {bound}, gap {ours.gap}")


def timed(call: Callable[[], Result], times: int) -> tuple[float, Result]:
    """Seconds of the fastest of several calls, and its result."""
    fastest = math.inf
    for _ in range(times):
        started = time.perf_counter()
        result = call()
        fastest = min(fastest, time.perf_counter() - started)
    return fastest, result


def run(options: Options, customers: int = CUSTOMERS, lp_customers: int = LP_CUSTOMERS) -> str:
    """The suite's table."""
    rows: list[list[str] | None] = []
    rng = np.random.default_rng(7)

    progress(f"allocation: {lp_customers:,} customers beside HiGHS")
    reward, cost, budget = instance(lp_customers, ARMS, rng)
    seconds, ours = timed(lambda: allocate(reward, cost, budget=budget), 3)
    lp_seconds, optimum = timed(lambda: relaxation(reward, cost, budget), 1)
    check(ours, budget, optimum, optimum)
    if not math.isclose(ours.upper_bound, optimum, rel_tol=CLOSE):
        raise AssertionError(f"bound {ours.upper_bound}, HiGHS {optimum}")
    rows += [
        _row("uplift.allocation", lp_customers, seconds, 1.0, ours.value, ours.spend, ours.gap),
        _row("scipy HiGHS, relaxation", lp_customers, lp_seconds, lp_seconds / seconds, optimum),
        None,
    ]

    progress(f"allocation: {customers:,} customers beside the bisection")
    reward, cost, budget = instance(customers, ARMS, rng)
    seconds, ours = timed(lambda: allocate(reward, cost, budget=budget), 3)
    other, (value, spend, bound) = timed(lambda: bisect(reward, cost, budget), 1)
    check(ours, budget, value, bound)
    rows += [
        _row("uplift.allocation", customers, seconds, 1.0, ours.value, ours.spend, ours.gap),
        _row(
            f"numpy bisection, {PASSES} passes",
            customers,
            other,
            other / seconds,
            value,
            spend,
            bound - value,
        ),
    ]
    return text_table(
        f"Allocation: {ARMS} coupons, a quarter of full spend",
        ("way", "customers", "times ours", "seconds", "value", "spend", "proven gap"),
        rows,
        (
            "Checked: each value lies below the others' upper bounds; our upper bound is the "
            "optimum that HiGHS found.",
            "Ours: the fastest of three calls, with all checks of the input; the others: one call.",
        ),
    )


def _row(
    way: str,
    customers: int,
    seconds: float,
    ratio: float,
    value: float,
    spend: float | None = None,
    gap: float | None = None,
) -> list[str]:
    return [
        way,
        f"{customers:,}",
        f"{ratio:.1f}",
        f"{seconds:.3f}",
        f"{value:,.2f}",
        "" if spend is None else f"{spend:,.2f}",
        "" if gap is None else f"{gap:.4f}",
    ]
