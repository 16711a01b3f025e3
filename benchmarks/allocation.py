"""Spend a budget over customers and coupons: `uplift.allocation` and two other ways.

HiGHS solves the linear relaxation with a general method, on a size that it can do. The bisection
is what one writes in numpy in ten lines: halve the interval of the shadow price 40 times. Each
way's answer is checked against the bounds that the others prove. A stream of many more customers
than one would hold runs in a process of its own, for its memory.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.report import Options, apart, peak_memory, progress, text_table
from uplift.allocation import Allocation, Chunk, allocate, allocate_stream
from uplift.limits import Limit, allocate_jointly

FloatArray = npt.NDArray[np.float64]
Result = TypeVar("Result")
ARMS = 5
CUSTOMERS = 1_000_000
LP_CUSTOMERS = 20_000
JOINT_LP_CUSTOMERS = 5_000
STREAMED = 10_000_000
CHUNK = 250_000
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


def limits_of(cost: FloatArray, budget: float, rng: np.random.Generator) -> list[Limit]:
    """The budget, the stock of two coupons and the sends by one channel; all of them bind."""
    n, arms = cost.shape
    by_sms = (rng.random((n, 1)) < 0.5).astype(np.float64)
    first, second = np.eye(arms)[:2]
    return [
        Limit("budget", cost, budget),
        Limit("stock 1", first, float(n // 50)),
        Limit("stock 2", second, float(n // 20)),
        Limit("sms", by_sms, float(n // 20)),
    ]


def relaxation(reward: FloatArray, limits: Sequence[Limit]) -> float:
    """Optimum of the linear relaxation by HiGHS."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, vstack

    n, arms = reward.shape
    one_each = csr_array(
        (np.ones(n * arms), np.arange(n * arms), np.arange(0, n * arms + 1, arms)),
        shape=(n, n * arms),
    )
    uses = csr_array(np.stack([np.broadcast_to(x.uses, reward.shape).ravel() for x in limits]))
    found = linprog(
        -reward.ravel(),
        A_ub=vstack([one_each, uses], format="csr"),
        b_ub=np.append(np.ones(n), [limit.most for limit in limits]),
        method="highs",
    )
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


class Timed(NamedTuple):
    """Seconds of the fastest of several calls on the wall and on all processors."""

    seconds: float
    cpu: float


def timed(call: Callable[[], Result], times: int) -> tuple[Timed, Result]:
    """The time of the fastest of several calls, and the result."""
    fastest = Timed(math.inf, math.inf)
    for _ in range(times):
        started, busy = time.perf_counter(), time.process_time()
        result = call()
        spent = Timed(time.perf_counter() - started, time.process_time() - busy)
        fastest = Timed(min(fastest.seconds, spent.seconds), min(fastest.cpu, spent.cpu))
    return fastest, result


def stream(customers: int) -> dict[str, Any]:
    """Allocates a stream of customers that is made up chunk by chunk. Its making is not timed."""
    seconds = cpu = 0.0

    def chunks() -> Iterator[Chunk]:
        nonlocal seconds, cpu
        for first in range(0, customers, CHUNK):
            started, busy = time.perf_counter(), time.process_time()
            rng = np.random.default_rng(first)
            reward, cost, _ = instance(min(CHUNK, customers - first), ARMS, rng)
            seconds += time.perf_counter() - started
            cpu += time.process_time() - busy
            yield Chunk(reward, cost)

    budget = instance(CHUNK, ARMS, np.random.default_rng(0))[2] * customers / CHUNK
    spent, found = timed(lambda: allocate_stream(chunks, budget=budget), 1)
    if found.spend > budget:
        raise AssertionError(f"spend {found.spend} above the budget {budget}")
    return {
        "seconds": spent.seconds - seconds,
        "cpu": spent.cpu - cpu,
        "peak": peak_memory(),
        "value": found.value,
        "spend": found.spend,
        "gap": found.gap,
    }


def run(
    options: Options,
    customers: int = CUSTOMERS,
    lp_customers: int = LP_CUSTOMERS,
    streamed: int = STREAMED,
) -> str:
    """The suite's table."""
    rows: list[list[str] | None] = []
    rng = np.random.default_rng(7)

    progress(f"allocation: {lp_customers:,} customers beside HiGHS")
    reward, cost, budget = instance(lp_customers, ARMS, rng)
    ours_spent, ours = timed(lambda: allocate(reward, cost, budget=budget), 3)
    spent, optimum = timed(lambda: relaxation(reward, [Limit("budget", cost, budget)]), 1)
    check(ours, budget, optimum, optimum)
    if not math.isclose(ours.upper_bound, optimum, rel_tol=CLOSE):
        raise AssertionError(f"bound {ours.upper_bound}, HiGHS {optimum}")
    rows += [
        _ours(lp_customers, ours_spent, ours),
        _row("scipy HiGHS, relaxation", lp_customers, ours_spent, spent, optimum),
        None,
    ]

    progress(f"allocation: {customers:,} customers beside the bisection")
    reward, cost, budget = instance(customers, ARMS, rng)
    ours_spent, ours = timed(lambda: allocate(reward, cost, budget=budget), 7)
    spent, (value, spend, bound) = timed(lambda: bisect(reward, cost, budget), 1)
    check(ours, budget, value, bound)
    way = f"numpy bisection, {PASSES} passes"
    rows += [
        _ours(customers, ours_spent, ours),
        _row(way, customers, ours_spent, spent, value, spend, bound - value),
        None,
    ]

    far = apart("allocation", "stream", streamed, f"{streamed:,} customers in a stream")
    spent = Timed(far["seconds"], far["cpu"])
    rows.append(
        _row("allocate_stream", streamed, None, spent, far["value"], far["spend"], far["gap"])
    )
    rows.append(None)
    for n in (min(lp_customers, JOINT_LP_CUSTOMERS), customers):
        progress(f"allocation: {n:,} customers under four limits")
        rows += _jointly(n, rng, beside=n < customers)
    growth = (far["cpu"] / streamed) / (ours_spent.cpu / customers)
    return text_table(
        f"Allocation: {ARMS} coupons, a quarter of full spend",
        ("way", "customers", "times ours", "seconds", "CPU s", "value", "spend", "proven gap"),
        rows,
        (
            "Checked: each value lies below the others' upper bounds; our upper bound is the "
            "optimum that HiGHS found.",
            "Ours: the fastest of several calls, with all checks of the input; the others: one "
            "call. Times ours: in CPU seconds.",
            f"The stream: chunks of {CHUNK:,}, read twice; without the making of the chunks "
            f"{far['seconds'] / streamed * 1e6:.2f} s a million",
            f"({far['cpu'] / streamed * 1e6:.2f} CPU s, {growth:.1f} times what a customer takes "
            f"of {customers:,} in memory), peak memory {far['peak'] / 2**30:.2f} GiB.",
        ),
    )


def _jointly(n: int, rng: np.random.Generator, *, beside: bool) -> list[list[str] | None]:
    """Rows of a problem with four limits; beside HiGHS or alone."""
    reward, cost, budget = instance(n, ARMS, rng)
    kept = limits_of(cost, budget, rng)
    ours, found = timed(lambda: allocate_jointly(reward, kept), 1)
    over = [limit.name for limit in kept if found.used[limit.name] > limit.most]
    if over:
        raise AssertionError(f"limits exceeded: {', '.join(over)}")
    spend, gap = found.used["budget"], found.gap
    rows: list[list[str] | None] = [
        _row("allocate_jointly, 4 limits", n, ours, ours, found.value, spend, gap)
    ]
    if beside:
        spent, optimum = timed(lambda: relaxation(reward, kept), 1)
        if not math.isclose(found.upper_bound, optimum, rel_tol=CLOSE):
            raise AssertionError(f"bound {found.upper_bound}, HiGHS {optimum}")
        rows.append(_row("scipy HiGHS, 4 limits", n, ours, spent, optimum))
    return rows


def _ours(customers: int, spent: Timed, found: Allocation) -> list[str]:
    return _row("uplift.allocation", customers, spent, spent, found.value, found.spend, found.gap)


def _row(
    way: str,
    customers: int,
    ours: Timed | None,
    spent: Timed,
    value: float,
    spend: float | None = None,
    gap: float | None = None,
) -> list[str]:
    return [
        way,
        f"{customers:,}",
        "" if ours is None else f"{spent.cpu / ours.cpu:.1f}",
        f"{spent.seconds:.3f}",
        f"{spent.cpu:.3f}",
        f"{value:,.2f}",
        "" if spend is None else f"{spend:,.2f}",
        "" if gap is None else f"{gap:.4f}",
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.allocation")
    parser.add_argument("--way", choices=["stream"], required=True)
    parser.add_argument("--lines", type=int, default=STREAMED, help="customers")
    print(json.dumps(stream(parser.parse_args(argv).lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
