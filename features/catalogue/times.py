"""When a customer buys."""

from __future__ import annotations

import ibis.expr.types as ir

from features.grains import Facts
from features.localtime import DAYPARTS, NIGHT, in_daypart, is_weekend, month_of
from features.registry import feature


@feature(
    "weekend_share_365d",
    group="time",
    of="orders",
    core=True,
    doc="Share of orders on Saturday or Sunday, local; `features.weekend_overrides` decides first.",
)
def weekend_share_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    weekend = is_weekend(o.day, o.config.features.weekend_overrides)
    return o.ratio(o.count(known & weekend), o.count(known))


@feature(
    "workday_lunch_share_365d",
    group="time",
    of="orders",
    doc="Share of orders on workdays, in the local hours 11 to 13.",
)
def workday_lunch_share_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    workday = ~is_weekend(o.day, o.config.features.weekend_overrides)
    return o.ratio(o.count(known & workday & o.hour.between(11, 13)), o.count(known))


@feature(
    "daypart_favourite_365d",
    group="time",
    of="orders",
    dtype="text",
    doc="Part of the day of most orders: morning 06–10, lunch 11–13, afternoon 14–16, evening "
    "17–20, night 21–05, whole local hours; ties: latest order, then alphabetical.",
)
def daypart_favourite_365d(o: Facts) -> ir.Value:
    known = o.valid & o.within(365)
    return o.most_frequent({p: known & in_daypart(o.hour, p) for p in (*DAYPARTS, NIGHT)})


@feature(
    "same_season_share_730d",
    group="time",
    of="orders",
    doc="Share of orders in the calendar quarter of the moment.",
)
def same_season_share_730d(o: Facts) -> ir.Value:
    known = o.valid & o.within(730)
    same = (month_of(o.day) - 1) // 3 == (month_of(o.today) - 1) // 3
    return o.ratio(o.count(known & same), o.count(known))
