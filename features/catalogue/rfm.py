"""Recency, frequency and money."""

from __future__ import annotations

import ibis.expr.types as ir

from features.grains import Facts
from features.orders import MICRO
from features.registry import Feature, feature, windowed


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
    "orders_90d",
    group="rfm",
    of="orders",
    dtype="int",
    none=0,
    doc="Valid orders of age ≤ 90.",
)
def orders_90d(o: Facts) -> ir.Value:
    return o.count(o.valid & o.within(90))


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
    "return_share_365d",
    group="rfm",
    of="orders",
    doc="Sum of |amount| of return lines ÷ sum of amount of all purchase lines, those of fully "
    "returned orders included.",
)
def return_share_365d(o: Facts) -> ir.Value:
    return o.ratio(-o.total(o.returned, o.within(365)), o.total(o.paid, o.within(365)))


@windowed("orders")
def orders_window(days: int) -> Feature:
    return Feature(
        name=f"orders_{days}d",
        group="rfm",
        of="orders",
        build=lambda o: o.count(o.valid & o.within(days)),
        dtype="int",
        none=0,
        needs=("transactions",),
        doc=f"Valid orders of age ≤ {days}.",
    )


@windowed("order_days")
def order_days_window(days: int) -> Feature:
    return Feature(
        name=f"order_days_{days}d",
        group="rfm",
        of="order_days",
        build=lambda d: d.count(d.within(days)),
        dtype="int",
        none=0,
        needs=("transactions",),
        doc=f"Local dates of age ≤ {days} with a valid order.",
    )


@windowed("spend")
def spend_window(days: int) -> Feature:
    return Feature(
        name=f"spend_{days}d",
        group="rfm",
        of="orders",
        build=lambda o: _spend(o, o.within(days)),
        dtype="float",
        none=0,
        needs=("transactions",),
        doc=f"Sum of amount of age ≤ {days}, returns at their own date; currency.",
    )


def _spend(o: Facts, where: ir.Value) -> ir.Value:
    return o.total(o.paid + o.returned, where) / MICRO
