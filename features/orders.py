"""Orders, returns and their states in time: what the features of transactions are built on.

A line that is alone in its order is an order. Only orders of several lines (shared orders) need
summing, and a number by which their lines find them.

A shared order's state (its sums, whether it is fully returned) depends on the moment only through
which of its lines came before. Where the spine has many moments, it is worked out once for all of
them, as *versions*: one row per order and distinct line time, true from that line's time until the
next. A moment then sees exactly one version of an order. With a single moment, later lines are left
out first, and an order has one version.

Money is kept in whole millionths of the currency (in floats, exact to 9 thousand million units):
sums do not depend on the order of rows, and an order that was paid 0.1 + 0.2 and returned 0.3 is
fully returned.
"""

from __future__ import annotations

from collections.abc import Callable, Set

import ibis
import ibis.expr.types as ir

from features.config import Config
from features.localtime import Offsets, local_day
from features.spine import forever

MICRO = 1e6
_EXACT = 9e12
KEY = ("customer", "order_id")
# Of the lines, as they came.
OF_LINES = ("product_id", "category", "channel", "payment_method", "store_id", "coupon_id")
# What an order has besides its times: sums, then what is so if it is so of any purchase line.
SUMS = ("paid", "discount", "units", "linked")
STATE = (*SUMS, "kinds", "threshold", "online", "mobile")


def micros(money: ir.Value) -> ir.Value:
    """Whole millionths; an absurdly large amount stays a plain float instead of overflowing."""
    scaled = money * MICRO
    return ibis.ifelse(scaled.abs() < _EXACT, scaled.round().cast("float64"), scaled)


def kind_bits(config: Config) -> dict[str, int]:
    """Coupon kinds of `offers`, each with its bit in the column `kinds`."""
    return {kind: 1 << i for i, kind in enumerate(sorted({o.kind for o in config.offers}))}


def line_facts(
    t: ir.Table,
    config: Config,
    offsets: Offsets,
    absent: Set[str],
    keys: tuple[str, ...] = KEY,
) -> tuple[ir.Table, dict[str, ir.Value]]:
    """What each purchase and return line says by itself; `keys` are columns that stay.

    Columns: keys, at, day (local), bought (is a purchase line), is_return, OF_LINES, and STATE of
    the line by itself (money in millionths; linked: returned amount, negative; kinds: bits of
    `kind_bits`; threshold: of a threshold_off coupon, millionths). `absent`: columns of the
    transactions that hold nothing, as `transactions.channel`. Columns that are one constant
    therefore come apart, for they need not be kept for every line.
    """
    t = t.mutate(at=t.transacted_at.cast("timestamp(6)"))
    quantity = t.quantity.cast("float64").fill_null(ibis.ifelse(t.amount < 0, -1.0, 1.0))
    bought = (quantity > 0) & (t.amount >= 0)
    returned = (t.amount < 0) | ((quantity < 0) & (t.amount <= 0))
    t = t.mutate(bought=bought, is_return=returned, units=ibis.ifelse(bought, quantity, 0.0))
    t = t.filter(t.bought | t.is_return)
    amount = micros(t.amount)

    nothing: dict[str, ir.Value] = {
        name: ibis.null("string") for name in OF_LINES if f"transactions.{name}" in absent
    }

    def holds(column: str, values: list[str]) -> ir.Value:
        return (t.bought & t[column].isin(values)).fill_null(False)

    marks: dict[str, ir.Value] = {}
    bits = kind_bits(config)
    if bits and "coupon_id" not in nothing:
        by_kind = {k: [o.coupon_id for o in config.offers if o.kind == k] for k in bits}
        marks["kinds"] = sum(
            (holds("coupon_id", by_kind[k]).cast("int64") * bit for k, bit in bits.items()),
            start=ibis.literal(0, type="int64"),
        )
        limit: ir.Value = ibis.null("float64")
        for offer in config.offers:
            if offer.kind == "threshold_off":
                own = float(offer.params["threshold"]) * MICRO
                limit = ibis.ifelse(holds("coupon_id", [offer.coupon_id]), own, limit)
        marks["threshold"] = limit.cast("float64")
    else:
        nothing |= {"kinds": ibis.literal(0, type="int64"), "threshold": ibis.null("float64")}
    for name, column, values in (
        ("online", "channel", config.features.online_channels),
        ("mobile", "payment_method", config.features.mobile_payments),
    ):
        if values and column not in nothing:
            marks[name] = holds(column, values)
        else:
            nothing[name] = ibis.literal(False)
    lines = t.select(
        *keys,
        *("at", "bought", "is_return", "units"),
        *(name for name in OF_LINES if name not in nothing),
        day=local_day(t["at"], offsets),
        paid=ibis.ifelse(t.bought, amount, 0.0),
        linked=ibis.ifelse(t.bought, 0.0, amount),
        discount=ibis.ifelse(t.bought, micros(t.discount.fill_null(0.0)), 0.0),
        **marks,
    )
    return lines, nothing


def shared_orders(lines: ir.Table) -> ir.Table:
    """Orders of several lines: customer, order_id, order (a number)."""
    counted = lines.group_by(list(KEY)).agg(n=lines.count())
    several = counted.filter(counted.n > 1)
    return several.select(*KEY, order=ibis.row_number().over(ibis.window()))


def numbered(lines: ir.Table, shared: ir.Table) -> ir.Table:
    """The lines with the number of their order, NULL for a line that is alone in its order."""
    joined = lines.left_join(shared, KEY)
    own = [name for name in lines.columns if name != "order_id"]
    return joined.select(**{name: lines[name] for name in own}, order=shared.order)


def only_versions(lines: ir.Table, config: Config, offsets: Offsets) -> ir.Table:
    """The state of each shared order from its lines before the spine's single moment."""
    of_orders = lines.filter(lines.order.notnull())
    whole = of_orders.group_by("order").agg(
        customer=of_orders.customer.min(),
        order_at=_bought_at(of_orders).min(),
        since=of_orders["at"].max(),
        **order_sums(of_orders, config),
    )
    return as_versions(whole.mutate(until=forever()), offsets)


def order_versions(lines: ir.Table, config: Config, offsets: Offsets) -> ir.Table:
    """States of shared orders in time.

    Columns: version (a number), order, customer, order_at (time of the earliest purchase line),
    day (its local day), since, until, valid (not fully returned), STATE.
    """
    of_orders = lines.filter(lines.order.notnull())
    pieces = of_orders.group_by(["order", "at"]).agg(
        customer=of_orders.customer.min(),
        bought_at=_bought_at(of_orders).min(),
        **order_sums(of_orders, config),
    )
    # Sums so far, and the next line's time as the end.
    so_far = ibis.cumulative_window(group_by=pieces.order, order_by=pieces["at"])
    in_order = ibis.window(group_by=pieces.order, order_by=pieces["at"])

    def ever(flag: ir.Value) -> ir.Value:
        return flag.cast("int64").max().over(so_far) == 1

    steps = pieces.select(
        *("order", "customer"),
        **{name: pieces[name].sum().over(so_far) for name in SUMS},
        **{name: ever(pieces[name]) for name in ("is_return", "online", "mobile")},
        kinds=_bits(config, lambda bit: ever((pieces.kinds & bit) != 0).cast("int64")),
        threshold=pieces.threshold.max().over(so_far),
        order_at=pieces.bought_at.min().over(so_far),
        since=pieces["at"],
        until=pieces["at"].lead().over(in_order).fill_null(forever()),
    )
    return as_versions(steps, offsets)


def as_versions(every: ir.Table, offsets: Offsets) -> ir.Table:
    """Sums of orders, with their times, as versions; see `order_versions`."""
    # A return that comes before its order, or without one, is no order.
    every = every.filter(every.order_at.notnull())
    return every.select(
        *("order", "customer", "order_at", "since", "until"),
        *STATE,
        version=ibis.row_number().over(ibis.window()),
        day=local_day(every.order_at, offsets),
        valid=~(every.is_return & (every.paid + every.linked <= 0)),
    )


def _bought_at(lines: ir.Table) -> ir.Value:
    return ibis.ifelse(lines.bought, lines["at"], ibis.null("timestamp(6)"))


def order_sums(lines: ir.Table, config: Config) -> dict[str, ir.Value]:
    """Sums of lines by order, or of parts of orders: is_return and STATE."""
    return {
        **{name: lines[name].sum() for name in SUMS},
        **{name: lines[name].any() for name in ("is_return", "online", "mobile")},
        "kinds": _bits(config, lambda bit: ((lines.kinds & bit) != 0).any().cast("int64"))
        + lines.count() * 0,
        "threshold": lines.threshold.max(),
    }


def _bits(config: Config, has: Callable[[int], ir.Value]) -> ir.Value:
    """The sum of the bits that an order has; an aggregate of bits is not known to every engine."""
    parts = (bit * has(bit) for bit in kind_bits(config).values())
    return sum(parts, start=ibis.literal(0, type="int64"))


FACT = ("customer", "order_at", "day", "since", "until", "valid")


def money_history(lines: ir.Table, versions: ir.Table) -> ir.Table:
    """Orders and return lines as one list of dated facts.

    An order stands at its own day with what was paid; each return line at its own day, as a row
    that is no valid order. Columns: FACT, STATE, returned (negative). A return that is linked to
    its order counts as `linked` there and as `returned` at its own day.
    """
    alone = lines.filter(lines.bought & lines.order.isnull())
    back = lines.filter(lines.is_return)
    nothing: dict[str, ir.Value] = {name: ibis.literal(0.0) for name in SUMS}
    return ibis.union(
        _facts(alone, valid=True).select(*FACT, *STATE, returned=ibis.literal(0.0)),
        versions.select(*FACT, *STATE, returned=ibis.literal(0.0)),
        _facts(back, valid=False)
        .mutate(returned=back.linked)
        .mutate(**nothing)
        .select(*FACT, *STATE, "returned"),
        distinct=False,
    )


def _facts(lines: ir.Table, *, valid: bool) -> ir.Table:
    """Lines as facts of their own, which no later row changes."""
    return lines.mutate(
        order_at=lines["at"], since=lines["at"], until=forever(), valid=ibis.literal(valid)
    )


ITEM = ("customer", "order_at", "day", "since", "until", "order_paid")
OF_ITEMS = (*OF_LINES, "paid", "discount", "units")


def order_items(lines: ir.Table, versions: ir.Table) -> tuple[ir.Table, ir.Table]:
    """Purchase lines of valid orders: those that are alone in their order, and the others.

    The others stand once per version of the order that has them. Columns of both: ITEM (of the
    order; order_paid in millionths) and OF_ITEMS (paid, discount and units of the line); of the
    others also version.
    """
    bought = lines.filter(lines.bought)
    alone = bought.filter(bought.order.isnull())
    single = _facts(alone, valid=True).mutate(order_paid=alone.paid).select(*ITEM, *OF_ITEMS)
    return single, shared_items(bought, versions)


def shared_items(bought: ir.Table, versions: ir.Table) -> ir.Table:
    """Purchase lines of valid orders once per version of their order; see `order_items`."""
    valid = versions.filter(versions.valid)
    valid = valid.mutate(order_paid=valid.paid)
    joined = bought.inner_join(valid, [bought.order == valid.order, bought["at"] <= valid.since])
    return joined.select(
        version=valid.version,
        **{name: valid[name] for name in ITEM},
        **{name: bought[name] for name in OF_ITEMS},
    )


def order_values(single: ir.Table, several: ir.Table, value: str) -> ir.Table:
    """Distinct non-null values of a column over each order's lines, as facts.

    Columns: customer, order_at, day, since, until, value.
    """
    shared = ("customer", "order_at", "day", "since", "until")
    alone = single.filter(single[value].notnull())
    alone = alone.select(*shared, value=value)
    valued = several.filter(several[value].notnull())
    valued = valued.select("version", *shared, value=value)
    # All else is constant within a version; grouping by fewer columns is faster.
    grouped = valued.group_by(["version", "value"]).agg(
        **{name: valued[name].min() for name in shared}
    )
    return alone.union(grouped.select(*shared, "value"), distinct=False)
