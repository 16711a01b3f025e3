"""Who the customer is, and where they stand in their life and in the calendar."""

from __future__ import annotations

from datetime import date

import ibis
import ibis.expr.types as ir

from features.grains import Facts
from features.localtime import EPOCH, anniversary_distance, month_of
from features.registry import feature


@feature(
    "joined_days",
    group="profile",
    of="profile",
    dtype="int",
    needs=("customers",),
    doc="Age of joined_at.",
)
def joined_days(c: Facts) -> ir.Value:
    return c.age.max()


@feature(
    "stage_clock_days",
    group="profile",
    of="anchors",
    dtype="int",
    needs=("transactions", "transactions.category", "stage_clocks"),
    doc="Position on the first product-stage clock (`stage_clocks`): that of the latest anchor "
    "category bought, plus its age; ties: the larger position.",
)
def stage_clock_days(a: Facts) -> ir.Value:
    return (a.age + a.offset).max()


@feature(
    "region",
    group="profile",
    of="profile",
    dtype="text",
    needs=("customers",),
    doc="Region, as given.",
)
def region(c: Facts) -> ir.Value:
    return c.region.max()


@feature(
    "gender",
    group="profile",
    of="profile",
    dtype="text",
    needs=("customers",),
    doc="Gender, as given; for reports only, unless `features.gender` opts in.",
)
def gender(c: Facts) -> ir.Value:
    return c.gender.max()


@feature(
    "birthday_month",
    group="profile",
    of="profile",
    dtype="int",
    needs=("customers",),
    helper=True,
    doc="Month of birth.",
)
def birthday_month(c: Facts) -> ir.Value:
    return c.birth_month.max()


@feature(
    "birthday_distance_months",
    group="profile",
    of="features",
    dtype="int",
    needs=("customers",),
    uses=("birthday_month",),
    doc="Months between the moment and birth_month, around the year: 0 to 6.",
)
def birthday_distance_months(f: Facts) -> ir.Value:
    apart = (f.birthday_month - month_of(f.today)).abs()
    return ibis.ifelse(apart > 6, 12 - apart, apart)


@feature(
    "holiday_next_days",
    group="profile",
    of="features",
    dtype="int",
    needs=("holidays",),
    doc="Days to the next date of `features.holidays`; 0 on the day itself.",
)
def holiday_next_days(f: Facts) -> ir.Value:
    waits = [_until(f, day) for day in sorted(f.config.features.holidays)]
    return ibis.coalesce(*waits)


@feature(
    "anniversary_distance_days",
    group="profile",
    of="features",
    dtype="int",
    needs=("transactions",),
    uses=("tenure_days",),
    also=("joined_days",),
    doc="Days to the nearest anniversary of the first order, else of joined_at; 29 February is "
    "1 March in other years.",
)
def anniversary_distance_days(f: Facts) -> ir.Value:
    first = f.tenure_days
    if "joined_days" in f.table.columns:
        first = first.fill_null(f.joined_days)
    return anniversary_distance(f.today, f.today - first)


def _until(f: Facts, day: date) -> ir.Value:
    wait = (day - EPOCH).days - f.today
    return ibis.ifelse(wait >= 0, wait, ibis.null("int64"))
