"""What a customer buys, and at which prices."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from features.grains import Facts
from features.orders import MICRO
from features.prices import BILLION
from features.registry import feature

OF_CATEGORY = ("transactions", "transactions.category")
OF_PRODUCT = ("transactions", "transactions.product_id")


@feature(
    "categories_365d",
    group="category",
    of="categories_365d",
    dtype="int",
    none=0,
    core=True,
    needs=OF_CATEGORY,
    doc="Distinct non-null categories of orders of age ≤ 365.",
)
def categories_365d(c: Facts) -> ir.Value:
    return c.distinct.max()


@feature(
    "category_favourite_365d",
    group="category",
    of="categories_365d",
    dtype="text",
    core=True,
    needs=OF_CATEGORY,
    doc="Category in most orders (高频购买); ties: latest order, then alphabetical.",
)
def category_favourite_365d(c: Facts) -> ir.Value:
    return c.favourite.max()


@feature(
    "category_favourite_orders_365d",
    group="category",
    of="categories_365d",
    dtype="int",
    needs=OF_CATEGORY,
    helper=True,
    doc="Orders of age ≤ 365 that contain the favourite category.",
)
def category_favourite_orders_365d(c: Facts) -> ir.Value:
    return c.orders.max()


@feature(
    "category_favourite_share_365d",
    group="category",
    of="features",
    needs=OF_CATEGORY,
    uses=("category_favourite_orders_365d", "orders_365d"),
    doc="Share of orders that contain the favourite category.",
)
def category_favourite_share_365d(f: Facts) -> ir.Value:
    return f.ratio(f.category_favourite_orders_365d, f.orders_365d)


@feature(
    "novelty_share_365d",
    group="category",
    of="novelty",
    core=True,
    needs=OF_PRODUCT,
    doc="Share of order days, the first ever left out, with a product new to the customer (尝鲜).",
)
def novelty_share_365d(d: Facts) -> ir.Value:
    # The first day ever is the oldest; it is taken off again where it is in the window.
    first = ibis.ifelse(d.age.max() <= 365, 1, 0)
    novel_first = ibis.ifelse(d.novel.argmax(d.age), first, 0)
    novel = d.count(d.within(365) & d.novel) - novel_first
    return d.ratio(novel, d.count(d.within(365)) - first)


@feature(
    "new_launch_share_365d",
    group="category",
    of="products_365d",
    population=True,
    needs=OF_PRODUCT,
    doc="Share of lines whose product first sold to anyone at most 30 days earlier; products "
    "first seen in the first 60 days of the data do not count.",
)
def new_launch_share_365d(p: Facts) -> ir.Value:
    return p.ratio(p.launched.sum(), p.lines.sum())


@feature(
    "staple_share_365d",
    group="category",
    of="products_365d",
    needs=OF_PRODUCT,
    doc="Share of lines whose product the customer bought on at least 3 order days of the window "
    "(日常刚需).",
)
def staple_share_365d(p: Facts) -> ir.Value:
    staple = (p.days >= 3) & p.product_id.notnull()
    return p.ratio(p.total(p.lines, staple), p.lines.sum())


@feature(
    "order_value_mean_365d",
    group="price",
    of="orders",
    core=True,
    doc="Purchase amount per order; currency.",
)
def order_value_mean_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    return o.ratio(o.total(o.paid, known), o.count(known)) / MICRO


@feature(
    "unit_price_median_365d",
    group="price",
    of="lines_365d",
    doc="Median of amount ÷ quantity over purchase lines; currency.",
)
def unit_price_median_365d(i: Facts) -> ir.Value:
    return i.unit_price.median()


@feature(
    "price_percentile_365d",
    group="price",
    of="lines_365d",
    population=True,
    needs=OF_CATEGORY,
    doc="Mean over purchase lines of the frozen percentile of the list unit price within its "
    "category, below plus half of equal (高价/低价).",
)
def price_percentile_365d(i: Facts) -> ir.Value:
    return i.ratio(i.percentile.sum(), i.percentile.count()) / BILLION


@feature(
    "basket_units_mean_365d",
    group="price",
    of="orders",
    doc="Sum of quantity ÷ orders.",
)
def basket_units_mean_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    return o.ratio(o.total(o.units, known), o.count(known))
