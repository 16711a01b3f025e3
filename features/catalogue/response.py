"""Answers to offers, and how many came lately."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from features.grains import Facts
from features.registry import feature

PRIOR_OFFERS = 5


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
    responded = e.count(e.within(365) & e.responded)
    matured = e.count(e.within(365) & e.matured)
    rate = (responded + PRIOR_OFFERS * e.frozen.response_rate) / (matured + PRIOR_OFFERS)
    return ibis.ifelse(e.count(~e.reminder) > 0, rate, ibis.null("float64"))


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
