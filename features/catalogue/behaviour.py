"""When, what, at which discount and through which channel a customer buys."""

from __future__ import annotations

from datetime import date

import ibis
import ibis.expr.types as ir

from features.grains import Facts
from features.localtime import EPOCH
from features.orders import MICRO
from features.registry import feature


@feature(
    "weekend_share_365d",
    group="time",
    of="orders",
    core=True,
    doc="Share of orders on Saturday or Sunday, local; `features.weekend_overrides` decides first.",
)
def weekend_share_365d(o: Facts) -> ir.Value:
    # 1970-01-01, day 0, was a Thursday; the second modulo serves days before it.
    weekend = ((o.day + 3) % 7 + 7) % 7 >= 5
    overrides = o.config.features.weekend_overrides
    free = [_day(d) for d, is_weekend in overrides.items() if is_weekend]
    worked = [_day(d) for d, is_weekend in overrides.items() if not is_weekend]
    if worked:
        weekend = weekend & o.day.notin(worked)
    if free:
        weekend = weekend | o.day.isin(free)
    known = o.valid & o.within(365)
    return o.ratio(o.count(known & weekend), o.count(known))


@feature(
    "categories_365d",
    group="category",
    of="categories_365d",
    dtype="int",
    none=0,
    core=True,
    doc="Distinct non-null categories of orders of age ≤ 365.",
)
def categories_365d(c: Facts) -> ir.Value:
    return c.count()


@feature(
    "category_favourite_365d",
    group="category",
    of="categories_365d",
    dtype="text",
    core=True,
    doc="Category in most orders; ties: latest order, then alphabetical.",
)
def category_favourite_365d(c: Facts) -> ir.Value:
    return c.value.max(where=c.favourite)


@feature(
    "novelty_share_365d",
    group="category",
    of="novelty",
    core=True,
    doc="Share of order days, the first ever left out, with a product new to the customer.",
)
def novelty_share_365d(d: Facts) -> ir.Value:
    # The first day ever is the oldest; it is taken off again where it is in the window.
    first = ibis.ifelse(d.age.max() <= 365, 1, 0)
    novel_first = ibis.ifelse(d.novel.argmax(d.age), first, 0)
    novel = d.count(d.within(365) & d.novel) - novel_first
    return d.ratio(novel, d.count(d.within(365)) - first)


@feature(
    "order_value_mean_365d",
    group="price",
    of="orders",
    core=True,
    doc="Purchase amount per order; currency.",
)
def order_value_mean_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    return o.ratio(o.paid.sum(where=known), o.count(known)) / MICRO


@feature(
    "discount_rate_365d",
    group="discount",
    of="orders",
    core=True,
    doc="Sum of discount ÷ sum of list value (amount + discount).",
)
def discount_rate_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    return o.ratio(o.discount.sum(where=known), (o.paid + o.discount).sum(where=known))


@feature(
    "discounted_order_share_365d",
    group="discount",
    of="orders",
    core=True,
    doc="Share of orders with a discount.",
)
def discounted_order_share_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    return o.ratio(o.count(known & (o.discount > 0)), o.count(known))


@feature(
    "kind_favourite_365d",
    group="kind",
    of="kinds_365d",
    dtype="text",
    core=True,
    needs=("transactions", "offers"),
    doc="Coupon kind in most orders that carry a coupon of `offers`; ties: latest order, "
    "then alphabetical.",
)
def kind_favourite_365d(k: Facts) -> ir.Value:
    return k.value.max(where=k.favourite)


@feature(
    "channel_favourite_365d",
    group="channel",
    of="channels_365d",
    dtype="text",
    core=True,
    doc="Channel of most orders; ties: latest order, then alphabetical.",
)
def channel_favourite_365d(c: Facts) -> ir.Value:
    return c.value.max(where=c.favourite)


def _day(text: str) -> int:
    return (date.fromisoformat(text) - EPOCH).days
