"""Counts that the rules of segments and labels ask for beside the catalogue's features."""

from __future__ import annotations

import ibis.expr.types as ir

from features.grains import Facts
from features.registry import feature


@feature(
    "matured_offers_365d",
    group="response",
    of="offers",
    dtype="int",
    none=0,
    needs=("exposures", "transactions"),
    helper=True,
    doc="Offers of age ≤ 365 whose response window has passed.",
)
def matured_offers_365d(e: Facts) -> ir.Value:
    return e.count(e.within(365) & e.matured)


@feature(
    "responded_offers_365d",
    group="response",
    of="offers",
    dtype="int",
    none=0,
    needs=("exposures", "transactions"),
    helper=True,
    doc="Those of matured_offers_365d with a valid order in the window.",
)
def responded_offers_365d(e: Facts) -> ir.Value:
    return e.count(e.within(365) & e.responded & e.matured)


@feature(
    "coupon_expires_days",
    group="fatigue",
    of="offers",
    needs=("exposures", "offers"),
    helper=True,
    doc="Days, in parts, until the first of the unused and valid coupons expires.",
)
def coupon_expires_days(e: Facts) -> ir.Value:
    # Whole seconds, as Spark counts them; as a float, since Spark divides decimals to few places.
    left = e.expires.epoch_seconds().floor() - e.as_of.epoch_seconds().floor()
    left = left.cast("float64") / 86_400.0
    return left.min(where=~e.reminder & e.unexpired & ~e.used)
