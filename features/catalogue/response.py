"""Answers to offers, and how many came lately."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from features.grains import Facts
from features.registry import feature

PRIOR_OFFERS = 5


@feature(
    "offers_365d",
    group="response",
    of="offers",
    dtype="int",
    none=0,
    needs=("exposures",),
    doc="Offers of age ≤ 365: exposures to another arm than control, without reminders.",
)
def offers_365d(e: Facts) -> ir.Value:
    return e.count(e.within(365) & ~e.reminder)


@feature(
    "response_rate_365d",
    group="response",
    of="offers",
    core=True,
    population=True,
    needs=("exposures", "transactions"),
    doc="(responded + 5·p) ÷ (matured + 5); matured: offers of age ≤ 365 whose response window "
    "(`features.response_window_days`) has passed; responded: those with a valid order in it; "
    "p: frozen response rate of the population. NULL without any earlier offer.",
)
def response_rate_365d(e: Facts) -> ir.Value:
    responded = e.count(e.within(365) & e.responded & e.matured)
    matured = e.count(e.within(365) & e.matured)
    rate = (responded + PRIOR_OFFERS * e.frozen.response_rate) / (matured + PRIOR_OFFERS)
    return ibis.ifelse(e.count(~e.reminder) > 0, rate, ibis.null("float64"))


@feature(
    "redemption_rate_365d",
    group="response",
    of="offers",
    needs=("exposures",),
    doc="Share of matured offers with a redeemed event of their campaign, or a valid order with "
    "their coupon, in the response window.",
)
def redemption_rate_365d(e: Facts) -> ir.Value:
    matured = e.within(365) & e.matured & e.redeemed.notnull()
    return e.ratio(e.count(matured & e.redeemed), e.count(matured))


@feature(
    "click_rate_90d",
    group="response",
    of="offers",
    needs=("exposures", "events"),
    doc="Share of matured offers of age ≤ 90 with a clicked event of their campaign in the "
    "response window.",
)
def click_rate_90d(e: Facts) -> ir.Value:
    matured = e.within(90) & e.matured
    return e.ratio(e.count(matured & e.clicked), e.count(matured))


@feature(
    "offers_7d",
    group="fatigue",
    of="offers",
    dtype="int",
    none=0,
    needs=("exposures",),
    doc="Offers of age ≤ 7, reminders included.",
)
def offers_7d(e: Facts) -> ir.Value:
    return e.count(e.within(7))


@feature(
    "offers_28d",
    group="fatigue",
    of="offers",
    dtype="int",
    none=0,
    core=True,
    needs=("exposures",),
    doc="Offers of age ≤ 28, reminders included.",
)
def offers_28d(e: Facts) -> ir.Value:
    return e.count(e.within(28))


@feature(
    "offer_recency_days",
    group="fatigue",
    of="offers",
    dtype="int",
    needs=("exposures",),
    doc="Age of the last offer, reminders included.",
)
def offer_recency_days(e: Facts) -> ir.Value:
    return e.age.min()


@feature(
    "unused_coupons",
    group="fatigue",
    of="offers",
    dtype="int",
    none=0,
    needs=("exposures", "offers"),
    doc="Distinct coupons issued, still valid (`offers[].valid_days`) and not redeemed since.",
)
def unused_coupons(e: Facts) -> ir.Value:
    return e.arm.nunique(where=~e.reminder & e.unexpired & ~e.used)


@feature(
    "unsubscribes_365d",
    group="fatigue",
    of="events",
    dtype="int",
    none=0,
    needs=("events",),
    doc="Unsubscribed events of age ≤ 365.",
)
def unsubscribes_365d(v: Facts) -> ir.Value:
    return v.count(v.within(365) & (v.type == "unsubscribed"))


@feature(
    "unopened_streak",
    group="fatigue",
    of="offers",
    dtype="int",
    none=0,
    needs=("exposures", "events"),
    doc="Offers since the last opened event, reminders included; all, if none was ever opened.",
)
def unopened_streak(e: Facts) -> ir.Value:
    return e.count(e.unopened)
