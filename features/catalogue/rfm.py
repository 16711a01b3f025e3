"""Recency, frequency, money, rhythm and trend."""

from __future__ import annotations

import ibis.expr.types as ir

from features.grains import Facts
from features.orders import MICRO
from features.registry import feature


@feature(
    "recency_days",
    group="rfm",
    of="order_days",
    dtype="int",
    core=True,
    doc="Age of the last order day.",
)
def recency_days(d: Facts) -> ir.Value:
    return d.age.min()


@feature(
    "order_days_365d",
    group="rfm",
    of="order_days",
    dtype="int",
    none=0,
    core=True,
    doc="Local dates of age ≤ 365 with a valid order.",
)
def order_days_365d(d: Facts) -> ir.Value:
    return d.count(d.within(365))


@feature(
    "spend_365d",
    group="rfm",
    of="orders",
    none=0,
    core=True,
    doc="Sum of amount, returns at their own date; currency.",
)
def spend_365d(o: Facts) -> ir.Value:
    return _spend(o, o.within(365))


@feature(
    "tenure_days",
    group="rfm",
    of="order_days",
    dtype="int",
    core=True,
    doc="Age of the first order day.",
)
def tenure_days(d: Facts) -> ir.Value:
    return d.age.max()


@feature(
    "orders_30d",
    group="rfm",
    of="orders",
    dtype="int",
    none=0,
    core=True,
    doc="Valid orders of age ≤ 30.",
)
def orders_30d(o: Facts) -> ir.Value:
    return o.count(o.valid & o.within(30))


@feature(
    "spend_90d",
    group="rfm",
    of="orders",
    none=0,
    core=True,
    doc="Sum of amount, returns at their own date; currency.",
)
def spend_90d(o: Facts) -> ir.Value:
    return _spend(o, o.within(90))


@feature(
    "orders_total", group="rfm", of="orders", dtype="int", none=0, doc="Valid orders, all time."
)
def orders_total(o: Facts) -> ir.Value:
    return o.count(o.valid)


@feature(
    "order_days_total",
    group="rfm",
    of="order_days",
    dtype="int",
    none=0,
    doc="Local dates with a valid order, all time.",
)
def order_days_total(d: Facts) -> ir.Value:
    return d.count()


@feature("spend_total", group="rfm", of="orders", none=0, doc="Sum of amount, all time; currency.")
def spend_total(o: Facts) -> ir.Value:
    return _spend(o, o.age.notnull())


@feature(
    "interval_mean_days",
    group="rhythm",
    of="order_days",
    core=True,
    doc="Mean gap between successive order days; at least one gap.",
)
def interval_mean_days(d: Facts) -> ir.Value:
    # The gaps of consecutive days sum to the last day minus the first.
    return d.ratio(d.age.max() - d.age.min(), d.count() - 1)


@feature(
    "interval_expected_days",
    group="rhythm",
    of="order_days",
    population=True,
    doc="(2·m + sum of gaps) ÷ (2 + number of gaps); m is the frozen median gap, "
    "2 is `features.interval_prior_weight`.",
)
def interval_expected_days(d: Facts) -> ir.Value:
    weight = d.config.features.interval_prior_weight
    gaps = d.age.max() - d.age.min()
    return (weight * d.frozen.median_gap_days + gaps) / (weight + d.count() - 1)


@feature(
    "overdue_ratio",
    group="rhythm",
    of="features",
    core=True,
    population=True,
    uses=("recency_days", "interval_expected_days"),
    doc="recency_days ÷ interval_expected_days.",
)
def overdue_ratio(f: Facts) -> ir.Value:
    return f.ratio(f.recency_days, f.interval_expected_days)


@feature(
    "spend_trend_90d",
    group="trend",
    of="orders",
    core=True,
    doc="(a − b) ÷ (|a| + |b|); a: spend of age ≤ 90, b: of age 91–180.",
)
def spend_trend_90d(o: Facts) -> ir.Value:
    amount = o.paid + o.returned
    late = amount.sum(where=o.within(90)).fill_null(0.0)
    early = amount.sum(where=o.within(180) & ~o.within(90)).fill_null(0.0)
    return o.ratio(late - early, late.abs() + early.abs())


def _spend(o: Facts, where: ir.Value) -> ir.Value:
    return (o.paid + o.returned).sum(where=where).fill_null(0.0) / MICRO
