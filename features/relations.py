"""The relations that features aggregate: lists of facts, each of one row of the spine.

A relation is a function of the `Workbench`; its columns are what a feature function may use. Each
is computed once per build, and only when a requested feature is of it.
"""

from __future__ import annotations

from collections.abc import Callable

import ibis
import ibis.expr.types as ir

from features.config import CONTROL
from features.grains import Workbench
from features.localtime import local_day, local_hour
from features.orders import MICRO, order_values
from features.prices import with_percentile
from features.spine import Scratch, forever, visible

RELATIONS: dict[str, Callable[[Workbench], ir.Table]] = {}
LAUNCH_DAYS, FIRST_DAYS = 30, 60
NO_COUPON = "message"


def relation(build: Callable[[Workbench], ir.Table]) -> Callable[[Workbench], ir.Table]:
    """Register a relation under the function's name."""
    RELATIONS[build.__name__] = build
    return build


# --- orders and days ---


@relation
def orders(work: Workbench) -> ir.Table:
    """Orders and return lines: order_at, day, age, today, valid, returned and orders.STATE.

    `valid` marks valid orders; return lines and fully returned orders are not. Money is in
    millionths. `hour` is local.
    """
    return work.history.mutate(hour=local_hour(work.history.order_at, work.offsets))


@relation
def order_days(work: Workbench) -> ir.Table:
    """Local dates with a valid order: day, age, value (net of linked returns)."""
    return work.order_days


@relation
def gaps(work: Workbench) -> ir.Table:
    """Gaps between successive order days: days, last (is it the latest gap)."""
    days = work.order_days.select("row", "day")
    by_day = ibis.window(group_by=days.row, order_by=days.day)
    stepped = days.select(
        "row",
        days=days.day - days.day.lag().over(by_day),
        last=days.day.lead().over(by_day).isnull(),
    )
    return stepped.filter(stepped.days.notnull())


# --- products ---


def _product_days(work: Workbench) -> ir.Table:
    """Lines of a product on an order day: day, age, product_id (may be NULL), lines."""
    seen = visible(work.spine, work.items)
    return seen.group_by(["row", "product_id", "day"]).agg(age=seen.age.min(), lines=seen.count())


@relation
def novelty(work: Workbench) -> ir.Table:
    """Order days: age, novel (with a product new to the customer)."""
    days = work.order_days
    if work.stored is not None:
        firsts = work.stored.novel_days()
    else:
        bought = visible(work.spine, work.items.filter(work.items.product_id.notnull()))
        firsts = bought.group_by(["row", "product_id"]).agg(day=bought.day.min())
        firsts = firsts.select("row", "day").distinct()
    joined = days.left_join(firsts, ["row", "day"])
    return joined.select(row=days.row, age=days.age, novel=firsts.row.notnull())


@relation
def products_365d(work: Workbench) -> ir.Table:
    """Products of orders in 365 days: value (may be NULL), days (order days), lines, and launched
    (lines of within 30 days after anybody's first purchase of it)."""
    if work.stored is not None:
        return work.stored.products(365, LAUNCH_DAYS, FIRST_DAYS)
    every = _product_days(work)
    recent = every.filter(every.age <= 365)
    launch = _launches(work)
    joined = recent.left_join(launch, recent.product_id == launch.launched_product)
    young = (joined.day - joined.launch_day <= LAUNCH_DAYS).fill_null(False)
    joined = joined.mutate(young=ibis.ifelse(young, joined.lines, 0))
    return joined.group_by(["row", "product_id"]).agg(
        days=joined.count(), lines=joined.lines.sum(), launched=joined.young.sum()
    )


def _launches(work: Workbench) -> ir.Table:
    """First sale of products to anyone, if it was not in the first 60 days of the data.

    Of the whole table, whatever the moment: a line can only be near a sale of before it. Worked out
    once for the tables.
    """
    t = work.tables.transactions
    assert t is not None, "products are of the transactions"
    key = ("launches", t.op(), tuple(work.offsets))
    if key not in work.tables.prepared:
        scratch = Scratch(work.tables.con)  # never emptied: as long as the lines
        work.tables.prepared[key] = scratch.keep(_first_sales(t, work))
    found: ir.Table = work.tables.prepared[key]
    return found


def _first_sales(t: ir.Table, work: Workbench) -> ir.Table:
    quantity = t.quantity.fill_null(ibis.ifelse(t.amount < 0, -1.0, 1.0))
    sold = t.filter((quantity > 0) & (t.amount >= 0) & t.product_id.notnull())
    first = sold.group_by(launched_product=sold.product_id).agg(at=sold.transacted_at.min())
    start = t.agg(start=t.transacted_at.min().cast("timestamp(6)"))
    start = start.select(start_day=local_day(start.start, work.offsets))
    launched = first.mutate(launch_day=local_day(first["at"].cast("timestamp(6)"), work.offsets))
    joined = launched.cross_join(start)
    known = joined.filter(joined.launch_day - joined.start_day >= FIRST_DAYS)
    return known.select("launched_product", "launch_day")


# --- lines ---


@relation
def lines_365d(work: Workbench) -> ir.Table:
    """Purchase lines of valid orders in 365 days: unit_price (paid, currency) and percentile (of
    the list unit price within its category, in billionths; NULL where it is not known)."""
    recent = work.items.filter(work.items.day >= work.spine.earliest_day - 365)
    seen = visible(work.spine, recent)
    seen = seen.filter(seen.age <= 365)
    priced = seen.select(
        "row",
        "category",
        unit_price=seen.paid / seen.units / MICRO,
        price=(seen.paid + seen.discount) / seen.units,
    )
    return with_percentile(work, priced)


# --- favourites ---


def _favourites(seen: ir.Table) -> ir.Table:
    """Of facts (row, order_at, value), one per order and value, one row per row of the spine.

    Columns: distinct (values), favourite (value of most orders; ties: latest order, then
    alphabetical), orders (that have it).
    """
    counted = seen.group_by(["row", "value"]).agg(orders=seen.count(), latest=seen.order_at.max())
    best = counted.group_by("row").agg(distinct=counted.count(), most=counted.orders.max())
    most = counted.inner_join(best, ["row", (counted.orders, best.most)])
    most = most.select("row", "value", "orders", "latest", "distinct")
    last = most.group_by("row").agg(last=most.latest.max())
    tied = most.inner_join(last, ["row", (most.latest, last["last"])])
    return tied.group_by("row").agg(
        distinct=tied["distinct"].max(), favourite=tied["value"].min(), orders=tied.orders.max()
    )


def _favourite_of(work: Workbench, column: str) -> ir.Table:
    if work.stored is not None:
        return work.stored.favourites(column, 365)
    # Orders too old for every moment are dropped before the work, too old for their own after it.
    oldest = work.spine.earliest_day - 365
    single, several = (items.filter(items.day >= oldest) for items in work.valued)
    seen = visible(work.spine, order_values(single, several, column))
    return _favourites(seen.filter(seen.age <= 365))


@relation
def categories_365d(work: Workbench) -> ir.Table:
    """Categories of orders in 365 days: distinct, favourite, orders."""
    return _favourite_of(work, "category")


@relation
def channels_365d(work: Workbench) -> ir.Table:
    """Channels of orders in 365 days: distinct, favourite, orders."""
    return _favourite_of(work, "channel")


@relation
def anchors(work: Workbench) -> ir.Table:
    """Latest purchase in an anchor category of the first product-stage clock: age, offset.

    One row per row of the spine; of several anchors at one time, the largest offset.
    """
    positions = next(iter(work.config.stage_clocks.values())).anchors
    bought = work.items.filter(work.items.category.isin(list(positions)))
    seen = visible(work.spine, bought)
    seen = seen.mutate(
        offset=seen.category.cases(*positions.items(), else_=ibis.null("int64")).cast("int64")
    )
    last = seen.group_by("row").agg(at=seen.order_at.max())
    latest = seen.inner_join(last, ["row", (seen.order_at, last["at"])])
    return latest.group_by("row").agg(age=latest.age.min(), offset=latest["offset"].max())


# --- offers and events ---


@relation
def offers(work: Workbench) -> ir.Table:
    """Exposures to an arm other than control: age, arm, reminder, matured, unexpired, and what
    followed.

    matured: the response window has passed (false for reminders); responded: a valid order fell
    into it; redeemed: a redeemed event of the campaign, or a valid order with the coupon, did;
    clicked: a clicked event of the campaign did; used: redeemed since, whatever the campaign;
    unopened: after the customer's last opened event.
    """
    exposures = work.tables.exposures
    window = ibis.interval(days=work.config.features.response_window_days)
    assert exposures is not None, "features of offers need the exposures table"
    given = exposures.filter(exposures.arm != CONTROL).join(work.spine.customers, "customer_id")
    at = given.assigned_at.cast("timestamp(6)")
    given = given.select(
        customer=given.customer,
        since=at,
        until=forever(),
        day=local_day(at, work.offsets),
        campaign_id=given.campaign_id,
        arm=given.arm,
        reminder=(given.variant == "reminder").fill_null(False),
        expires=at + _validity(work, given.arm),
    )
    seen = visible(work.spine, given)
    ends = seen.since + window
    seen = seen.mutate(
        ends=ends,
        matured=~seen.reminder & (ends <= seen.as_of),
        unexpired=(seen.expires > seen.as_of).fill_null(False),
        number=ibis.row_number().over(ibis.window()),
    )
    seen = work.scratch.keep(seen)
    found = {
        "responded": _ordered(work, seen, lambda o: o.order_at < o.ends),
        "redeemed": _redeemed(work, seen, in_window=True),
        "used": _redeemed(work, seen, in_window=False),
        "clicked": _event(work, seen, "clicked", lambda e: _same_campaign(e) & (e.at < e.ends)),
    }
    keys = ["row", "number"]
    for name, known in found.items():
        if known is None:
            # Without orders and events nothing tells of redemptions; coupons count as unused.
            unknown = ibis.null("boolean") if name == "redeemed" else ibis.literal(False)
            seen = seen.mutate(**{name: unknown})
            continue
        marked = known.select(*keys).distinct().mutate(**{name: ibis.literal(True)})
        joined = seen.left_join(marked, keys)
        seen = joined.select(
            *[seen[c] for c in seen.columns], **{name: marked[name].fill_null(False)}
        )
    return _since_opened(work, seen)


def _validity(work: Workbench, arm: ir.Value) -> ir.Value:
    """How long the arm's coupon is valid; NULL for an arm that issues none."""
    days = [(o.coupon_id, o.valid_days) for o in work.config.offers if o.kind != NO_COUPON]
    known = arm.cases(*days, else_=ibis.null("int64")) if days else ibis.null("int64")
    return known.cast("int64").as_interval("D")


def _ordered(
    work: Workbench, seen: ir.Table, holds: Callable[[ir.Table], ir.Value]
) -> ir.Table | None:
    """Offers after which a valid order, known at the moment, came: row, number."""
    if work.tables.transactions is None:
        return None
    o = work.history.filter(work.history.valid).select("row", "order_at")
    joined = seen.inner_join(o, ["row", seen.since <= o.order_at])
    joined = joined.select("row", "number", "since", "ends", order_at=o.order_at)
    return joined.filter(holds(joined))


def _redeemed(work: Workbench, seen: ir.Table, *, in_window: bool) -> ir.Table | None:
    """Offers that were redeemed, by an event or by an order that bears the coupon."""
    found = []
    holds = _same_campaign if in_window else _same_coupon

    def told(e: ir.Table) -> ir.Value:
        return holds(e) & (e.at < e.ends) if in_window else holds(e)

    events = _event(work, seen, "redeemed", told)
    if events is not None:
        found.append(events)
    if work.tables.transactions is not None:
        items = visible(work.spine, work.items.filter(work.items.coupon_id.notnull()))
        borne = items.select("row", "order_at", bearing=items.coupon_id)
        joined = seen.inner_join(
            borne, ["row", (seen.arm, borne.bearing), seen.since <= borne.order_at]
        )
        if in_window:
            joined = joined.filter(joined.order_at < joined.ends)
        found.append(joined.select("row", "number"))
    return ibis.union(*found, distinct=False) if len(found) > 1 else (found or [None])[0]


def _event(
    work: Workbench, seen: ir.Table, kind: str, holds: Callable[[ir.Table], ir.Value]
) -> ir.Table | None:
    """Offers after which such an event, of before the moment, came: row, number."""
    if work.tables.events is None:
        return None
    e = events(work)
    e = e.filter(e.type == kind).select(
        "row", at=e.at, event_campaign=e.campaign_id, event_coupon=e.coupon_id
    )
    joined = seen.inner_join(e, ["row", seen.since <= e.at])
    return joined.filter(holds(joined)).select("row", "number")


def _same_campaign(joined: ir.Table) -> ir.Value:
    return (joined.event_campaign == joined.campaign_id).fill_null(False)


def _same_coupon(joined: ir.Table) -> ir.Value:
    return (joined.event_coupon == joined.arm).fill_null(False)


def _since_opened(work: Workbench, seen: ir.Table) -> ir.Table:
    if work.tables.events is None:
        return seen.mutate(unopened=ibis.literal(False))
    e = events(work)
    opened = e.filter(e.type == "opened")
    last = opened.group_by("row").agg(last_opened=opened["at"].max())
    joined = seen.left_join(last, "row")
    unopened = last.last_opened.isnull() | (seen.since > last.last_opened)
    return joined.select(*[seen[c] for c in seen.columns], unopened=unopened)


@relation
def events(work: Workbench) -> ir.Table:
    """Events: type, at, age, campaign_id, coupon_id."""
    table = work.tables.events
    assert table is not None, "features of events need the events table"
    own = table.join(work.spine.customers, "customer_id")
    at = own.occurred_at.cast("timestamp(6)")
    facts = own.select(
        customer=own.customer,
        since=at,
        until=forever(),
        day=local_day(at, work.offsets),
        at=at,
        type=own.type,
        campaign_id=own.campaign_id,
        coupon_id=own.coupon_id,
    )
    return visible(work.spine, facts)


# --- customers ---


@relation
def profile(work: Workbench) -> ir.Table:
    """The customer's row, unless it joined at or after the moment: age (of joined_at), region,
    gender, birth_month."""
    table = work.tables.customers
    assert table is not None, "features of the profile need the customers table"
    own = table.join(work.spine.customers, "customer_id")
    joined_at = own.joined_at.cast("timestamp(6)")
    facts = own.select(
        customer=own.customer,
        since=joined_at.fill_null(ibis.timestamp("1970-01-01 00:00:00")),
        until=forever(),
        day=local_day(joined_at, work.offsets),
        region=own.region,
        gender=own.gender,
        birth_month=own.birth_month,
    )
    return visible(work.spine, facts)
