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


def order_versions(lines: ir.Table, offsets: Offsets) -> ir.Table:
    """States of orders in time.

    Columns: customer, order_id, order_at (time of the earliest purchase line), day (its local
    day), since, until, valid (not fully returned), constant (one version, valid), paid, discount,
    units, linked (returns that name the order, negative).
    """
    key = ["customer", "order_id"]
    pieces = lines.group_by([*key, "at"]).agg(
        paid=lines.paid.sum(),
        discount=lines.discount.sum(),
        units=lines.units.sum(),
        linked=lines.returned.sum(),
        bought=lines.bought.any(),
        is_return=lines.is_return.any(),
    )
    orders = pieces.group_by(key).agg(n=pieces.count())
    single = orders.filter(orders.n == 1).select(*key)
    changing = orders.filter(orders.n > 1).select(*key)

    alone = pieces.join(single, key)
    alone = alone.select(
        *key,
        *("paid", "discount", "units", "linked", "bought", "is_return"),
        order_at=alone.at,
        since=alone.at,
        until=forever(),
        alone=ibis.literal(True),
    )
    # Several line times: sums so far, and the next line's time as the end.
    steps = pieces.join(changing, key)
    so_far = ibis.cumulative_window(group_by=[steps[k] for k in key], order_by=steps.at)
    ordered = ibis.window(group_by=[steps[k] for k in key], order_by=steps.at)
    steps = steps.select(
        *key,
        paid=steps.paid.sum().over(so_far),
        discount=steps.discount.sum().over(so_far),
        units=steps.units.sum().over(so_far),
        linked=steps.linked.sum().over(so_far),
        bought=steps.bought.cast("int64").max().over(so_far) == 1,
        is_return=steps.is_return.cast("int64").max().over(so_far) == 1,
        order_at=ibis.ifelse(steps.bought, steps.at, ibis.null("timestamp(6)")).min().over(so_far),
        since=steps.at,
        until=steps.at.lead().over(ordered).fill_null(forever()),
        alone=ibis.literal(False),
    )
    every = alone.union(steps, distinct=False)
    # A return that comes before its order, or without one, is no order.
    every = every.filter(every.bought)
    valid = ~(every.is_return & (every.paid + every.linked <= 0))
    return every.select(
        *key,
        *("order_at", "since", "until", "paid", "discount", "units", "linked"),
        day=local_day(every.order_at, offsets),
        valid=valid,
        constant=valid & every.alone,
    )


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
    returns = back.select(
        customer=back.customer,
        order_at=back.at,
        day=local_day(back.at, offsets),
        since=back.at,
        until=forever(),
        valid=ibis.literal(False),
        paid=ibis.literal(0.0),
        returned=back.returned,
        discount=ibis.literal(0.0),
        units=ibis.literal(0.0),
    )
    return orders.union(returns, distinct=False)


def order_values(lines: ir.Table, versions: ir.Table, value: ir.Value) -> ir.Table:
    """Distinct non-null values of the purchase lines of valid orders, as facts.

    `value` is an expression over `lines`. Columns: customer, order_at, day, since, until, value,
    constant (the order never changes).
    """
    bought = lines.select("customer", "order_id", "at", "bought", value=value)
    bought = bought.filter(bought.bought & bought.value.notnull())
    values = bought.group_by(["customer", "order_id", "value"]).agg(seen=bought.at.min())
    valid = versions.filter(versions.valid)
    joined = values.join(
        valid,
        [
            values.customer == valid.customer,
            values.order_id == valid.order_id,
            values.seen <= valid.since,
        ],
    )
    return joined.select(
        customer=values.customer,
        value=values.value,
        **{c: valid[c] for c in ("order_at", "day", "since", "until", "constant")},
    )
