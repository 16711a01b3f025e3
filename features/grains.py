"""The relations that features aggregate, each a list of facts per row of the spine.

A relation is a function of the `Workbench`; its columns are what a feature function may use. Each
is computed once per build, and only when a requested feature is of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.types as ir

from features.config import CONTROL, Config
from features.localtime import local_day, utc_offsets
from features.orders import (
    Offsets,
    money_history,
    order_items,
    order_lines,
    order_values,
    order_versions,
    whole_orders,
)
from features.spine import Scratch, Spine, forever, visible
from features.tables import Tables

if TYPE_CHECKING:
    from features.frozen import FrozenValues

RELATIONS: dict[str, Callable[[Workbench], ir.Table]] = {}


class Workbench:
    """The shared derivations of one build, each made when first asked for."""

    def __init__(
        self, tables: Tables, spine: Spine, config: Config, frozen: FrozenValues, scratch: Scratch
    ) -> None:
        self.tables, self.spine, self.config = tables, spine, config
        self.frozen, self.scratch = frozen, scratch

    @cached_property
    def offsets(self) -> Offsets:
        """UTC offsets of the local zone over the years of the tables."""
        years = [self.spine.latest.year]
        for table, time in (
            (self.tables.transactions, "transacted_at"),
            (self.tables.exposures, "assigned_at"),
        ):
            if table is not None:
                ends = table.agg(a=table[time].min(), b=table[time].max()).to_pyarrow()
                years += [t.year for t in ends.to_pylist()[0].values() if t is not None]
        return utc_offsets(self.config.timezone, min(years), max(years))

    @cached_property
    def lines(self) -> ir.Table:
        """Purchase and return lines; not kept, because what follows reads few of its columns."""
        assert self.tables.transactions is not None, "order features need transactions"
        return order_lines(self.tables.transactions, self.spine)

    @cached_property
    def versions(self) -> ir.Table:
        """States of orders in time."""
        whole = self.scratch.keep(whole_orders(self.lines))
        return self.scratch.keep(order_versions(self.lines, whole, self.offsets))

    @cached_property
    def items(self) -> ir.Table:
        """Purchase lines of valid orders."""
        return self.scratch.keep(order_items(self.lines, self.versions))

    @cached_property
    def history(self) -> ir.Table:
        """Orders and returns that each row of the spine may know."""
        return self.scratch.keep(
            visible(self.spine, money_history(self.lines, self.versions, self.offsets))
        )


class Facts:
    """What a feature function gets: the columns of its relation, and the words of the rules.

    Columns are attributes (`o.paid`). `frozen` and `config` are those of the build.
    """

    def __init__(self, table: ir.Table, frozen: FrozenValues, config: Config) -> None:
        self.table, self.frozen, self.config = table, frozen, config

    def __getattr__(self, name: str) -> Any:
        return self.table[name]

    def within(self, days: int) -> ir.Value:
        """Age of at most so many local days."""
        return self.table.age <= days

    def count(self, where: ir.Value | None = None) -> ir.Value:
        return self.table.count(where=where)

    @staticmethod
    def ratio(part: ir.Value, whole: ir.Value) -> ir.Value:
        """part ÷ whole; NULL where whole is 0."""
        return part.cast("float64") / whole.cast("float64").nullif(0.0)


def relation(build: Callable[[Workbench], ir.Table]) -> Callable[[Workbench], ir.Table]:
    """Register a relation under the function's name."""
    RELATIONS[build.__name__] = build
    return build


@relation
def orders(work: Workbench) -> ir.Table:
    """Orders and return lines: order_at, day, age, valid, paid, returned, discount, units.

    `valid` marks valid orders; return lines and fully returned orders are not. Money is in
    millionths.
    """
    return work.history


@relation
def order_days(work: Workbench) -> ir.Table:
    """Local dates with a valid order: day, age, orders."""
    known = work.history.filter(work.history.valid)
    return known.group_by(["row", "day"]).agg(age=known.age.min(), orders=known.count())


@relation
def novelty(work: Workbench) -> ir.Table:
    """Order days: age, novel (with a product new to the customer)."""
    days = order_days(work)
    firsts = _first_product_days(work)
    joined = days.left_join(firsts, ["row", "day"])
    return joined.select(row=days.row, age=days.age, novel=firsts.row.notnull())


def _first_product_days(work: Workbench) -> ir.Table:
    """(row, day) on which the customer bought some product for the first time."""
    bought = work.items.filter(work.items.product_id.notnull())
    # A pair of customer and product all of whose orders are constant has one first day, whatever
    # the moment; only pairs with returned or split orders are worked out moment by moment.
    pairs = bought.group_by(["customer", "product_id"]).agg(
        constant=bought.constant.all(), day=bought.day.min(), since=bought.since.min()
    )
    fixed = pairs.filter(pairs.constant)
    fixed = fixed.group_by(["customer", "day"]).agg(since=fixed.since.min())
    fixed = fixed.mutate(until=forever())
    one = visible(work.spine, fixed).select("row", "day")
    moving = bought.semi_join(pairs.filter(~pairs.constant), ["customer", "product_id"])
    seen = visible(work.spine, moving)
    other = seen.group_by(["row", "product_id"]).agg(day=seen.day.min()).select("row", "day")
    return one.union(other, distinct=True)


def _values(work: Workbench, value: ir.Value, days: int) -> ir.Table:
    """Values of orders in a window: value, orders (that contain it), favourite (is it)."""
    # Orders too old for every moment are dropped before the work, too old for their own after it.
    recent = work.items.day >= work.spine.earliest_day - days
    values = order_values(work.items.filter(recent), value)
    seen = visible(work.spine, values)
    seen = seen.filter(seen.age <= days)
    counted = seen.group_by(["row", "value"]).agg(orders=seen.count(), last=seen.order_at.max())
    best = ibis.row_number().over(
        ibis.window(
            group_by=counted.row,
            order_by=[counted.orders.desc(), counted["last"].desc(), counted.value],
        )
    )
    return counted.mutate(favourite=best == 0)


@relation
def categories_365d(work: Workbench) -> ir.Table:
    """Categories of orders in 365 days: value, orders, favourite."""
    return _values(work, work.items.category, 365)


@relation
def channels_365d(work: Workbench) -> ir.Table:
    """Channels of orders in 365 days: value, orders, favourite."""
    return _values(work, work.items.channel, 365)


@relation
def kinds_365d(work: Workbench) -> ir.Table:
    """Coupon kinds of orders in 365 days: value, orders, favourite."""
    kinds = {offer.coupon_id: offer.kind for offer in work.config.offers}
    value = work.items.coupon_id.cases(*kinds.items(), else_=ibis.null("string"))
    return _values(work, value, 365)


@relation
def offers(work: Workbench) -> ir.Table:
    """Exposures to an arm other than control: age, reminder, matured, responded.

    `matured`: the response window has passed; `responded`: matured, and a valid order fell into it.
    Both are false for reminders.
    """
    exposures = work.tables.exposures
    window = ibis.interval(days=work.config.features.response_window_days)
    assert exposures is not None, "features of offers need the exposures table"
    given = exposures.filter(exposures.arm != CONTROL).join(work.spine.customers, "customer_id")
    given = given.select(
        customer=given.customer,
        since=given.assigned_at.cast("timestamp(6)"),
        until=forever(),
        day=local_day(given.assigned_at, work.offsets),
        reminder=(given.variant == "reminder").fill_null(False),
    )
    seen = visible(work.spine, given)
    matured = ~seen.reminder & (seen.since + window <= seen.as_of)
    seen = seen.mutate(matured=matured)
    if work.tables.transactions is None:
        return seen.mutate(responded=ibis.literal(False))
    moments = given.select("customer", assigned_at=given.since).distinct()
    valid = work.versions.filter(work.versions.valid)
    answered = moments.join(
        valid,
        [
            moments.customer == valid.customer,
            valid.order_at >= moments.assigned_at,
            valid.order_at < moments.assigned_at + window,
        ],
    ).select(
        customer=moments.customer,
        assigned_at=moments.assigned_at,
        day=valid.day,
        since=valid.since,
        until=valid.until,
    )
    known = visible(work.spine, answered).select("row", "assigned_at").distinct()
    joined = seen.left_join(known, [seen.row == known.row, seen.since == known.assigned_at])
    return joined.select(
        row=seen.row,
        age=seen.age,
        reminder=seen.reminder,
        matured=seen.matured,
        responded=seen.matured & known.row.notnull(),
    )
