"""Intervals of what value models gain over their baselines hold the truth as often as they say.

A history is an exponential clock of orders that a customer may drop out of after each; two kinds of
customers make BG/NBD a little wrong, so that trees have something to find. The truth of a gain is
that of the models as they were fitted, on very many other customers of the same process: the
interval is for customers like these, given the models. The models learned from earlier windows of
the very customers on whom they are judged, as in every training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import pytest
from scipy.stats import binom

from features.config import Config, validate
from features.frozen import FrozenValues
from features.tables import Tables
from training.value import (
    BASELINES,
    COMPARED,
    MONEY,
    PROBABILITY,
    Candidates,
    Metric,
    compare,
    judge_target,
)
from training.value_panel import Panel, plan_of
from uplift.data import BoolArray, FloatArray, IntArray, Schema
from uplift.scores import Estimate
from uplift.value import INPUTS, VALUE_TARGETS, Target, ValueModel

START = datetime(2025, 1, 1, tzinfo=UTC)
DAYS = 540
WINDOW, ACTIVE = 90, 120
CUSTOMERS, OTHERS = 1200, 60_000
Gains = dict[str, dict[str, Estimate]]


@dataclass(frozen=True)
class Orders:
    """Order days (n,) by customer and time, and their money; `customers` in all."""

    customers: int
    customer: IntArray
    day: FloatArray
    money: FloatArray


def draw_orders(customers: int, rng: np.random.Generator) -> Orders:
    """A third buy often and leave soon, the others seldom and for long; money is gamma around a
    level of the customer's own."""
    often = rng.random(customers) < 1 / 3
    rate = rng.gamma(2.0, np.where(often, 1 / 30, 1 / 160), customers)
    leave = rng.beta(np.where(often, 1.5, 0.4), 4.0, customers)
    level = rng.gamma(6.0, 5.0, customers)
    at = rng.uniform(0, 330, customers)
    inside = np.ones(customers, dtype=bool)
    who, when = [], []
    while inside.any():
        who.append(np.flatnonzero(inside))
        when.append(np.floor(at[inside]))
        inside &= rng.random(customers) >= leave
        at = at + rng.exponential(1 / rate)
        inside &= at < DAYS
    customer, day = np.concatenate(who), np.concatenate(when)
    # A day counts once, as in BG/NBD.
    pair = np.unique(customer * DAYS + day.astype(np.int64))
    customer, day = pair // DAYS, (pair % DAYS).astype(float)
    return Orders(customers, customer, day, level[customer] * rng.gamma(3.0, 1 / 3, len(day)))


def sums(orders: Orders, rows: BoolArray, values: FloatArray | None = None) -> FloatArray:
    weights = None if values is None else values[rows]
    return np.bincount(orders.customer[rows], weights, minlength=orders.customers).astype(float)


def inputs_at(orders: Orders, moment: float) -> FloatArray:
    """(customers, 6) the columns of INPUTS as of a day, orders of earlier days only."""
    past = orders.day < moment
    age = moment - orders.day
    days = sums(orders, past)
    oldest, newest = np.zeros(orders.customers), np.full(orders.customers, np.inf)
    np.maximum.at(oldest, orders.customer[past], age[past])
    np.minimum.at(newest, orders.customer[past], age[past])
    first = past & (age == oldest[orders.customer])
    with np.errstate(invalid="ignore"):
        mean = sums(orders, past & ~first, orders.money) / np.where(days > 1, days - 1, np.nan)
    known = days > 0
    columns = {
        "order_days_total": days,
        "tenure_days": np.where(known, oldest, np.nan),
        "recency_days": np.where(known, newest, np.nan),
        "spend_90d": sums(orders, past & (age <= 90), orders.money),
        "spend_365d": sums(orders, past & (age <= 365), orders.money),
        "clv_order_day_value_mean": mean,
    }
    return np.column_stack([columns[name] for name in INPUTS])


class DrawnPanel(Panel):
    """A panel whose outcomes come from drawn orders in place of tables."""

    orders: Orders

    def outcome(self, target: Target, rows: BoolArray, days: int) -> FloatArray:
        out = np.empty(len(self.X))
        for code, moment in enumerate(self.moments):
            start = (moment - START).days
            later = (self.orders.day >= start) & (self.orders.day < start + days)
            money = sums(self.orders, later, self.orders.money if target == "clv" else None)
            value = money if target == "clv" else (money > 0).astype(float)
            own = self.moment == code
            out[own] = value[self.customer[own]]
        return (1 - out if target == "churn" else out)[rows]

    def contribution_share(self, until: datetime) -> float:
        return 1.0


CONFIG: Config = validate(
    {
        "name": "drawn",
        "source": {"kind": "files", "path": "nowhere"},
        "outcome": {"kind": "conversion"},
        "targets": {
            "repurchase_days": WINDOW, "churn_days": WINDOW, "clv_days": WINDOW,
            "active_days": ACTIVE,
        },
        "training": {"folds": 3, "threads": 1, "response_targets": list(VALUE_TARGETS)},
    }
)  # fmt: skip


def panel_of(orders: Orders) -> Panel:
    end = START + timedelta(days=DAYS)
    plans = tuple(plan_of(target, START, end, CONFIG) for target in VALUE_TARGETS)
    used = {m for p in plans for m in (*p.past.starts, *p.now.starts, p.test)}
    moments = tuple(sorted({*used, end}))
    tables = [inputs_at(orders, (m - START).days) for m in moments]
    X = np.concatenate(tables).astype(np.float32)
    bought = X[:, INPUTS.index("order_days_total")] > 0
    customer = np.tile(np.arange(orders.customers), len(moments))[bought]
    panel = DrawnPanel(
        tables=Tables.__new__(Tables),
        config=CONFIG,
        end=end,
        plans=plans,
        moments=moments,
        schema=Schema(INPUTS, {}),
        X=X[bought],
        customer_id=customer.astype(str).astype(object),
        customer=customer,
        moment=np.repeat(np.arange(len(moments)), orders.customers)[bought],
        frozen=FrozenValues(),
    )
    object.__setattr__(panel, "orders", orders)
    return panel


def asked(panel: Panel, target: Target) -> tuple[BoolArray, FloatArray]:
    plan = next(p for p in panel.plans if p.target == target)
    rows = panel.at(plan.test)
    rows[rows] = panel.history(rows).asked(target, ACTIVE)
    return rows, panel.outcome(target, rows, plan.days)


@cache
def others() -> Panel:
    """Very many customers of the same process, whom no model learned from."""
    return panel_of(draw_orders(OTHERS, np.random.default_rng(90)))


def candidates(panel: Panel, target: Target) -> dict[str, ValueModel]:
    plan = next(p for p in panel.plans if p.target == target)
    fitted = Candidates(panel, plan, CONFIG, plan.test)
    return {
        "lightgbm": fitted.trees().model,
        **{kind: fitted.baseline(kind) for kind in BASELINES},
    }


def metrics_of(target: Target) -> dict[str, Metric]:
    metrics = MONEY if target == "clv" else PROBABILITY
    return {name: metric for name, metric in metrics.items() if name in COMPARED}


def gains_of(
    models: dict[str, ValueModel], panel: Panel, target: Target, rng: np.random.Generator
) -> Gains:
    """Gains with their intervals, as a training reports them."""
    rows, y = asked(panel, target)
    predicted = {k: m.predict(panel.X[rows], panel.schema, 1) for k, m in models.items()}
    return compare(y, predicted, metrics_of(target), rng)[1]


def truth_of(models: dict[str, ValueModel], target: Target) -> dict[str, dict[str, float]]:
    """Gains of the same models on the others."""
    panel, metrics = others(), metrics_of(target)
    rows, y = asked(panel, target)
    predicted = {k: m.predict(panel.X[rows], panel.schema, 1) for k, m in models.items()}
    value = {k: {n: f(y, p) for n, f in metrics.items()} for k, p in predicted.items()}
    return {
        kind: {n: COMPARED[n] * (value["lightgbm"][n] - value[kind][n]) for n in metrics}
        for kind in BASELINES
    }


def test_the_drawn_panel_is_judged_as_any_other() -> None:
    """What is counted below is what a training reports."""
    panel = panel_of(draw_orders(400, np.random.default_rng(1)))
    plan = panel.plans[0]
    assert (plan.past.days, len(plan.past.starts)) == (WINDOW, 4)
    report = judge_target(panel, plan, CONFIG)
    gains = gains_of(candidates(panel, "repurchase"), panel, "repurchase", np.random.default_rng(2))
    for kind, own in gains.items():
        for name, estimate in own.items():
            assert estimate.value == pytest.approx(report.gains[kind][name].value)
            assert estimate.se == pytest.approx(report.gains[kind][name].se, rel=0.4)


def test_no_order_of_the_window_is_an_input() -> None:
    orders = draw_orders(300, np.random.default_rng(3))
    before = orders.day < 450
    cut = replace(
        orders,
        customer=orders.customer[before],
        day=orders.day[before],
        money=orders.money[before],
    )
    np.testing.assert_array_equal(inputs_at(orders, 450), inputs_at(cut, 450))


@pytest.mark.slow
@pytest.mark.parametrize("target", VALUE_TARGETS)
def test_intervals_of_gains_hold_the_truth(target: Target) -> None:
    """Coverage of the deciding gain over either baseline within the 99% binomial band of .93 to
    .97."""
    runs = 200
    hits: dict[tuple[str, str], int] = {}
    wins = 0
    for run in range(runs):
        rng = np.random.default_rng([7, run])
        panel = panel_of(draw_orders(CUSTOMERS, rng))
        models = candidates(panel, target)
        gains, truth = gains_of(models, panel, target, rng), truth_of(models, target)
        deciding = next(iter(gains["naive"]))
        wins += all(gains[kind][deciding].lo > 0 for kind in BASELINES)
        for kind, own in gains.items():
            for name, e in own.items():
                # Without trees a ranking is the lifetime model's own, and the gain exactly 0.
                inside = e.lo - 1e-9 <= truth[kind][name] <= e.hi + 1e-9
                hits[kind, name] = hits.get((kind, name), 0) + inside
    low, high = binom.ppf(0.005, runs, 0.93), binom.ppf(0.995, runs, 0.97)
    shares = {f"{name} over {kind}": n / runs for (kind, name), n in hits.items()}
    shares["trees served"] = wins / runs
    print(target, shares)
    for kind in BASELINES:
        assert low <= hits[kind, deciding] <= high, shares
