"""Trends, and what models of customer value start from."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from features.grains import Facts
from features.orders import MICRO
from features.registry import feature


@feature(
    "spend_trend_90d",
    group="trend",
    of="orders",
    core=True,
    doc="(a − b) ÷ (|a| + |b|); a: spend of age ≤ 90, b: of age 91–180.",
)
def spend_trend_90d(o: Facts) -> ir.Value:
    amount = o.paid + o.returned
    late = o.total(amount, o.within(90))
    early = o.total(amount, o.within(180) & ~o.within(90))
    return o.ratio(late - early, late.abs() + early.abs())


@feature(
    "interval_trend_ratio",
    group="trend",
    of="gaps",
    doc="Last gap between order days ÷ median of the earlier gaps; at least two gaps.",
)
def interval_trend_ratio(g: Facts) -> ir.Value:
    # Not `median(where=...)`: Ibis writes that for Spark so that Spark refuses it.
    earlier = ibis.ifelse(g.last, ibis.null("int64"), g.days)
    return g.ratio(g.days.max(where=g.last), earlier.median())


@feature(
    "clv_frequency_days",
    group="clv",
    of="order_days",
    dtype="int",
    none=0,
    doc="Order days after the first.",
)
def clv_frequency_days(d: Facts) -> ir.Value:
    return d.count() - 1


@feature(
    "clv_recency_days",
    group="clv",
    of="order_days",
    dtype="int",
    doc="Days between the first and the last order day.",
)
def clv_recency_days(d: Facts) -> ir.Value:
    return d.age.max() - d.age.min()


@feature(
    "clv_order_day_value_mean",
    group="clv",
    of="order_days",
    doc="Mean net value of order days after the first, linked returns included; days with a "
    "value ≤ 0 are left out; currency.",
)
def clv_order_day_value_mean(d: Facts) -> ir.Value:
    # The first day, the oldest, is taken off again where it was counted.
    first = d.value.argmax(d.age)
    first = ibis.ifelse(first > 0, first, 0.0)
    known = d.value > 0
    total = d.total(d.value, known) - first
    return d.ratio(total, d.count(known) - ibis.ifelse(first > 0, 1, 0)) / MICRO
