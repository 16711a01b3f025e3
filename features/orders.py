"""Orders, returns and their states in time: what the features of transactions are built on.

An order's state (its sums, whether it is fully returned) depends on the moment only through which
of its lines came before. So it is worked out once, for all moments, as *versions*: one row per
order and distinct line time, true from that line's time until the next. A moment then sees exactly
one version of an order. Nearly every order has one version.

Money is kept in whole millionths of the currency (in floats, exact to 9 thousand million units):
sums do not depend on the order of rows, and an order that was paid 0.1 + 0.2 and returned 0.3 is
fully returned.
"""

from __future__ import annotations

from typing import Any

import ibis
import ibis.expr.types as ir

from features.localtime import local_day
from features.spine import Spine, forever, seen_before

MICRO = 1e6
_EXACT = 9e12
Offsets = list[tuple[Any, int]]


def micros(money: ir.Value) -> ir.Value:
    """Whole millionths; an absurdly large amount stays a plain float instead of overflowing."""
    scaled = money * MICRO
    return ibis.ifelse(scaled.abs() < _EXACT, scaled.round().cast("float64"), scaled)


def order_lines(transactions: ir.Table, spine: Spine) -> ir.Table:
    """Purchase and return lines of the spine's customers, before its latest moment.

    Columns: customer (code), order_id, at, bought (is a purchase line), paid, discount, returned
    (negative; money in millionths), units, product_id, category, channel, coupon_id.
    """
    t = transactions.join(spine.customers, "customer_id")
    t = t.filter(seen_before(t.transacted_at, spine.latest))
    quantity = t.quantity.cast("float64").fill_null(ibis.ifelse(t.amount < 0, -1.0, 1.0))
    bought = (quantity > 0) & (t.amount >= 0)
    returned = (t.amount < 0) | ((quantity < 0) & (t.amount <= 0))
    t = t.mutate(bought=bought, is_return=returned, units=ibis.ifelse(bought, quantity, 0.0))
    t = t.filter(t.bought | t.is_return)
    amount = micros(t.amount)
    return t.select(
        "customer",
        "order_id",
        "bought",
        "is_return",
        "units",
        "product_id",
        "category",
        "channel",
        "coupon_id",
        at=t.transacted_at.cast("timestamp(6)"),
        paid=ibis.ifelse(t.bought, amount, 0.0),
        returned=ibis.ifelse(t.bought, 0.0, amount),
        discount=ibis.ifelse(t.bought, micros(t.discount.fill_null(0.0)), 0.0),
    )


def whole_orders(lines: ir.Table) -> ir.Table:
    """Sums and flags of all lines that share customer and order_id, whatever their time.

    Columns: customer, order_id, first, last (line times), paid, discount, units, linked (returned
    amount, negative), bought, is_return (has such a line).
    """
    return lines.group_by(["customer", "order_id"]).agg(
        first=lines.at.min(), last=lines.at.max(), **_sums(lines)
    )


def order_versions(lines: ir.Table, whole: ir.Table, offsets: Offsets) -> ir.Table:
    """States of orders in time.

    Columns: version (a number), customer, order_id, order_at (time of the earliest purchase line),
    day (its local day), since, until, valid (not fully returned), constant (valid, and the only
    version), paid, discount, units.
    """
    key = ["customer", "order_id"]
    sums = ["paid", "discount", "units", "linked", "bought", "is_return"]
    alone = whole.filter(whole["first"] == whole["last"])
    alone = alone.select(
        *key,
        *sums,
        order_at=alone["first"],
        since=alone["first"],
        until=forever(),
        constant=ibis.literal(True),
    )
    # Several line times: sums so far, and the next line's time as the end.
    split = whole.filter(whole["first"] < whole["last"])
    pieces = lines.semi_join(split, key)
    pieces = pieces.group_by([*key, "at"]).agg(**_sums(pieces))
    so_far = ibis.cumulative_window(group_by=[pieces[k] for k in key], order_by=pieces.at)
    in_order = ibis.window(group_by=[pieces[k] for k in key], order_by=pieces.at)
    bought_at = ibis.ifelse(pieces.bought, pieces.at, ibis.null("timestamp(6)"))
    steps = pieces.select(
        *key,
        **{name: pieces[name].sum().over(so_far) for name in sums[:4]},
        **{name: pieces[name].cast("int64").max().over(so_far) == 1 for name in sums[4:]},
        order_at=bought_at.min().over(so_far),
        since=pieces.at,
        until=pieces.at.lead().over(in_order).fill_null(forever()),
        constant=ibis.literal(False),
    )
    every = alone.union(steps, distinct=False)
    # A return that comes before its order, or without one, is no order.
    every = every.filter(every.bought)
    valid = ~(every.is_return & (every.paid + every.linked <= 0))
    return every.select(
        *key,
        *("order_at", "since", "until", "paid", "discount", "units"),
        version=ibis.row_number().over(ibis.window()),
        day=local_day(every.order_at, offsets),
        valid=valid,
        constant=valid & every.constant,
    )


def _sums(lines: ir.Table) -> dict[str, ir.Value]:
    return {
        "paid": lines.paid.sum(),
        "discount": lines.discount.sum(),
        "units": lines.units.sum(),
        "linked": lines.returned.sum(),
        "bought": lines.bought.any(),
        "is_return": lines.is_return.any(),
    }


def money_history(lines: ir.Table, versions: ir.Table, offsets: Offsets) -> ir.Table:
    """Orders and return lines as one list of dated facts.

    An order stands at its own day with what was paid; each return line at its own day, as a row
    that is no valid order. Columns: customer, order_at, day, since, until, valid, paid, returned,
    discount, units.
    """
    orders = versions.select(
        *("customer", "order_at", "day", "since", "until", "valid", "paid"),
        returned=ibis.literal(0.0),
        discount=versions.discount,
        units=versions.units,
    )
    back = lines.filter(lines.is_return)
    nothing = {name: ibis.literal(0.0) for name in ("discount", "units")}
    returns = back.select(
        customer=back.customer,
        order_at=back.at,
        day=local_day(back.at, offsets),
        since=back.at,
        until=forever(),
        valid=ibis.literal(False),
        paid=ibis.literal(0.0),
        returned=back.returned,
        **nothing,
    )
    return orders.union(returns, distinct=False)


def order_items(lines: ir.Table, versions: ir.Table) -> ir.Table:
    """Purchase lines of valid orders, once per version of the order that has them.

    Columns: version, customer, order_at, day, since, until, constant (of the version), product_id,
    category, channel, coupon_id.
    """
    bought = lines.filter(lines.bought)
    valid = versions.filter(versions.valid)
    joined = bought.join(
        valid,
        [
            bought.customer == valid.customer,
            bought.order_id == valid.order_id,
            bought.at <= valid.since,
        ],
    )
    shared = ("version", "customer", "order_at", "day", "since", "until", "constant")
    own = ("product_id", "category", "channel", "coupon_id")
    return joined.select(
        **{name: valid[name] for name in shared}, **{name: bought[name] for name in own}
    )


def order_values(items: ir.Table, value: ir.Value) -> ir.Table:
    """Distinct non-null values of each order's lines, as facts; `value` is over `items`.

    Columns: customer, order_at, day, since, until, value.
    """
    shared = ("version", "customer", "order_at", "day", "since", "until")
    valued = items.select(*shared, value=value)
    valued = valued.filter(valued.value.notnull())
    # All else is constant within a version; grouping by fewer columns is faster.
    return valued.group_by(["version", "value"]).agg(
        **{name: valued[name].min() for name in shared[1:]}
    )
