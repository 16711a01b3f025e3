"""Orders, returns and their states in time: what the features of transactions are built on.

An order's state (its sums, whether it is fully returned) depends on the moment only through which
of its lines came before. Where the spine has many moments, it is worked out once for all of them,
as *versions*: one row per order and distinct line time, true from that line's time until the next.
A moment then sees exactly one version of an order. With a single moment, later lines are left out
first, and an order has one version.

Most lines of most shops, or nearly none, are the only line of their order. Those need no join to
find their order: they are one. Only the lines of other orders are joined.

Money is kept in whole millionths of the currency (in floats, exact to 9 thousand million units):
sums do not depend on the order of rows, and an order that was paid 0.1 + 0.2 and returned 0.3 is
fully returned.
"""

from __future__ import annotations

from collections.abc import Callable

import ibis
import ibis.expr.types as ir

from features.config import Config, OfferConfig
from features.localtime import Offsets, local_day
from features.spine import Spine, forever, seen_before

MICRO = 1e6
_EXACT = 9e12
KEY = ("customer", "order_id")
# Of the lines, as they came.
OF_LINES = ("product_id", "category", "channel", "payment_method", "store_id", "coupon_id")
# Sums over an order's lines, and what is true if it is of any purchase line.
SUMS = ("paid", "discount", "units", "linked", "lines")
FLAGS = ("bought", "is_return", "online", "mobile")
# What an order has besides its key and times.
STATE = ("paid", "discount", "units", "linked", "kinds", "threshold", "online", "mobile")


def micros(money: ir.Value) -> ir.Value:
    """Whole millionths; an absurdly large amount stays a plain float instead of overflowing."""
    scaled = money * MICRO
    return ibis.ifelse(scaled.abs() < _EXACT, scaled.round().cast("float64"), scaled)


def kind_bits(config: Config) -> dict[str, int]:
    """Coupon kinds of `offers`, each with its bit in the column `kinds`."""
    return {kind: 1 << i for i, kind in enumerate(sorted({o.kind for o in config.offers}))}


def order_lines(transactions: ir.Table, spine: Spine) -> ir.Table:
    """Purchase and return lines of the spine's customers, before its latest moment.

    Columns: customer (code), order_id, at, bought (is a purchase line), is_return, paid, discount,
    returned (negative; money in millionths), units, and OF_LINES.
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
        *OF_LINES,
        at=t.transacted_at.cast("timestamp(6)"),
        paid=ibis.ifelse(t.bought, amount, 0.0),
        returned=ibis.ifelse(t.bought, 0.0, amount),
        discount=ibis.ifelse(t.bought, micros(t.discount.fill_null(0.0)), 0.0),
    )


def whole_orders(lines: ir.Table, config: Config) -> ir.Table:
    """Sums and flags of all lines that share customer and order_id, whatever their time.

    Columns: customer, order_id, first, last (line times), bought_at (first purchase line), STATE
    (linked: returned amount, negative; kinds: bits of `kind_bits`; threshold: the largest of its
    threshold_off coupons, millionths), bought, is_return (has such a line), lines.
    """
    return lines.group_by(list(KEY)).agg(
        first=lines.at.min(),
        last=lines.at.max(),
        bought_at=_bought_at(lines).min(),
        **_sums(lines, config),
    )


def only_versions(whole: ir.Table, offsets: Offsets) -> ir.Table:
    """The state of each order from its lines before the spine's single moment."""
    every = whole.filter(whole.bought)
    return _as_versions(
        every.mutate(
            order_at=every.bought_at, since=every["last"], until=forever(), alone=every.lines == 1
        ),
        offsets,
    )


def order_versions(lines: ir.Table, whole: ir.Table, config: Config, offsets: Offsets) -> ir.Table:
    """States of orders in time.

    Columns: version (a number), customer, order_id, order_at (time of the earliest purchase line),
    day (its local day), since, until, valid (not fully returned), alone (of a single line), STATE.
    """
    alone = whole.filter(whole["first"] == whole["last"])
    own = [*KEY, *SUMS, *FLAGS, "kinds", "threshold"]
    alone = alone.select(
        *own,
        order_at=alone["first"],
        since=alone["first"],
        until=forever(),
        alone=alone.lines == 1,
    )
    # Several line times: sums so far, and the next line's time as the end.
    split = whole.filter(whole["first"] < whole["last"])
    pieces = lines.semi_join(split, KEY)
    pieces = pieces.group_by([*KEY, "at"]).agg(
        bought_at=_bought_at(pieces).min(), **_sums(pieces, config)
    )
    keys = [pieces[k] for k in KEY]
    so_far = ibis.cumulative_window(group_by=keys, order_by=pieces.at)
    in_order = ibis.window(group_by=keys, order_by=pieces.at)
    steps = pieces.select(
        *KEY,
        **{name: pieces[name].sum().over(so_far) for name in SUMS},
        **{name: pieces[name].cast("int64").max().over(so_far) == 1 for name in FLAGS},
        kinds=_bits(
            config, lambda bit: ((pieces.kinds & bit) != 0).cast("int64").max().over(so_far)
        ),
        threshold=pieces.threshold.max().over(so_far),
        order_at=pieces.bought_at.min().over(so_far),
        since=pieces.at,
        until=pieces.at.lead().over(in_order).fill_null(forever()),
        alone=ibis.literal(False),
    )
    every = alone.union(steps, distinct=False)
    # A return that comes before its order, or without one, is no order.
    return _as_versions(every.filter(every.bought), offsets)


def _as_versions(every: ir.Table, offsets: Offsets) -> ir.Table:
    return every.select(
        *KEY,
        *STATE,
        *("order_at", "since", "until", "alone"),
        version=ibis.row_number().over(ibis.window()),
        day=local_day(every.order_at, offsets),
        valid=~(every.is_return & (every.paid + every.linked <= 0)),
    )


def _bought_at(lines: ir.Table) -> ir.Value:
    return ibis.ifelse(lines.bought, lines.at, ibis.null("timestamp(6)"))


def _sums(lines: ir.Table, config: Config) -> dict[str, ir.Value]:
    features, bits = config.features, kind_bits(config)

    def bears(offers: list[OfferConfig]) -> ir.Value:
        known = lines.coupon_id.isin([o.coupon_id for o in offers]).fill_null(False)
        return lines.bought & known

    def has(bit: int) -> ir.Value:
        return bears([o for o in config.offers if bits[o.kind] == bit]).any().cast("int64")

    limits = {
        o.coupon_id: float(o.params["threshold"]) * MICRO
        for o in config.offers
        if o.kind == "threshold_off" and "threshold" in o.params
    }
    nothing = ibis.null("float64")
    limit = nothing
    if limits:
        limit = lines.coupon_id.cases(*limits.items(), else_=nothing).cast("float64")
    threshold = ibis.ifelse(lines.bought, limit, nothing)
    return {
        "paid": lines.paid.sum(),
        "discount": lines.discount.sum(),
        "units": lines.units.sum(),
        "linked": lines.returned.sum(),
        "lines": lines.count(),
        "bought": lines.bought.any(),
        "is_return": lines.is_return.any(),
        "online": _any_of(lines.channel, features.online_channels, lines.bought),
        "mobile": _any_of(lines.payment_method, features.mobile_payments, lines.bought),
        "kinds": lines.count() * 0 + _bits(config, has),
        "threshold": threshold.max(),
    }


def _bits(config: Config, has: Callable[[int], ir.Value]) -> ir.Value:
    """The sum of the bits that an order has; an aggregate of bits is not known to every engine."""
    parts = (bit * has(bit) for bit in kind_bits(config).values())
    return sum(parts, start=ibis.literal(0, type="int64"))


def _any_of(value: ir.Value, known: list[str], where: ir.Value) -> ir.Value:
    return (where & value.isin(known).fill_null(False)).any()


def money_history(lines: ir.Table, versions: ir.Table, offsets: Offsets) -> ir.Table:
    """Orders and return lines as one list of dated facts.

    An order stands at its own day with what was paid; each return line at its own day, as a row
    that is no valid order. Columns: customer, order_at, day, since, until, valid, returned, STATE.
    """
    orders = versions.select(
        *("customer", "order_at", "day", "since", "until", "valid"),
        *STATE,
        returned=ibis.literal(0.0),
    )
    back = lines.filter(lines.is_return)
    empty: dict[str, ir.Value] = {name: ibis.literal(0.0) for name in STATE[:4]}
    empty |= {"kinds": ibis.literal(0, type="int64"), "threshold": ibis.null("float64")}
    empty |= {"online": ibis.literal(False), "mobile": ibis.literal(False)}
    returns = back.select(
        customer=back.customer,
        order_at=back.at,
        day=local_day(back.at, offsets),
        since=back.at,
        until=forever(),
        valid=ibis.literal(False),
        **empty,
        returned=back.returned,
    )
    return orders.union(returns, distinct=False)


ITEM = (*("version", "customer", "order_at", "day", "since", "until"), "order_paid")
OF_ITEMS = (*OF_LINES, "paid", "discount", "units")


def order_items(
    lines: ir.Table, whole: ir.Table, versions: ir.Table, offsets: Offsets
) -> tuple[ir.Table, ir.Table]:
    """Purchase lines of valid orders: those that are alone in their order, and the others.

    The others stand once per version of the order that has them. Columns of both: ITEM (of the
    version; order_paid in millionths) and OF_ITEMS (paid, discount and units of the line).
    """
    bought = lines.filter(lines.bought)
    shared = whole.filter(whole.lines > 1)
    alone = bought.anti_join(shared, KEY)
    own = {name: alone[name] for name in OF_ITEMS}
    single = alone.select(
        version=ibis.null("int64"),
        customer=alone.customer,
        order_at=alone.at,
        day=local_day(alone.at, offsets),
        since=alone.at,
        until=forever(),
        order_paid=alone.paid,
        **own,
    )
    valid = versions.filter(versions.valid & ~versions.alone)
    valid = valid.mutate(order_paid=valid.paid)
    joined = bought.join(
        valid,
        [
            bought.customer == valid.customer,
            bought.order_id == valid.order_id,
            bought.at <= valid.since,
        ],
    )
    several = joined.select(
        **{name: valid[name] for name in ITEM}, **{name: bought[name] for name in OF_ITEMS}
    )
    return single, several


def order_values(single: ir.Table, several: ir.Table, value: str) -> ir.Table:
    """Distinct non-null values of a column over each order's lines, as facts.

    Columns: customer, order_at, day, since, until, value.
    """
    shared = ("customer", "order_at", "day", "since", "until")
    alone = single.filter(single[value].notnull()).select(*shared, value=value)
    valued = several.filter(several[value].notnull())
    valued = valued.select("version", *shared, value=value)
    # All else is constant within a version; grouping by fewer columns is faster.
    grouped = valued.group_by(["version", "value"]).agg(
        **{name: valued[name].min() for name in shared}
    )
    return alone.union(grouped.select(*shared, "value"), distinct=False)
