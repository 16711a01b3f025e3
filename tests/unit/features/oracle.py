"""Features of one customer at one moment, in plain Python: slow, and written without the product.

Rows are dictionaries of the canonical columns; times are naive UTC. Sums are exact (Fraction).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Any

from tests.unit.features.oracle_history import (
    History,
    Row,
    Settings,
    Value,
    ratio,
    span,
)
from tests.unit.features.oracle_orders import order_features, spend


def features_of(
    lines: Iterable[Row],
    exposures: Iterable[Row],
    events: Iterable[Row],
    profile: Row | None,
    as_of: datetime,
    settings: Settings,
) -> dict[str, Any]:
    """Every feature of the rules, by their words.

    `lines`, `exposures`, `events` and `profile` (the row of customers, if there is one) are those
    of one customer, of any time.
    """
    h = History(lines, exposures, events, profile, as_of, settings)
    out: dict[str, Value] = {**order_features(h), **_response(h), **_fatigue(h), **_profile(h)}
    return numbers(out)


def helpers_of(
    lines: Iterable[Row],
    exposures: Iterable[Row],
    events: Iterable[Row],
    profile: Row | None,
    as_of: datetime,
    settings: Settings,
) -> dict[str, Any]:
    """What stands beside the catalogue, and one further window, of the same rows."""
    h = History(lines, exposures, events, profile, as_of, settings)
    matured = _matured(h, 365)
    liked = order_features(h)["category_favourite_365d"]
    loved = [o for o in h.year if liked in o.values("category")]
    out: dict[str, Value] = {
        "birthday_month": h.profile.get("birth_month"),
        "category_favourite_orders_365d": len(loved) if liked is not None else None,
        "orders_45d": len(h.within(45)),
        "order_days_45d": len({h.day(o.at) for o in h.within(45)}),
        "spend_45d": spend(h, -9, 45),
        "orders_365d": len(h.year),
        "matured_offers_365d": len(matured),
        "responded_offers_365d": sum(_responded(h, offer) for offer in matured),
    }
    return numbers(out)


def numbers(values: dict[str, Value]) -> dict[str, Any]:
    return {k: float(v) if isinstance(v, int | Fraction) else v for k, v in values.items()}


def _real(h: History) -> list[Row]:
    """Offers that issue something: a reminder does not."""
    return [e for e in h.offers if e["variant"] != "reminder"]


def _matured(h: History, days: int) -> list[Row]:
    window = timedelta(days=h.settings.response_days)
    return [
        e
        for e in _real(h)
        if h.age(e["assigned_at"]) <= days and e["assigned_at"] + window <= h.as_of
    ]


def _responded(h: History, offer: Row) -> bool:
    return any(span(offer["assigned_at"], h.settings.response_days, o.at) for o in h.valid)


def _response(h: History) -> dict[str, Value]:
    days = h.settings.response_days

    def happened(offer: Row, kind: str) -> bool:
        return any(
            v["type"] == kind
            and v["campaign_id"] == offer["campaign_id"]
            and span(offer["assigned_at"], days, v["occurred_at"])
            for v in h.events
        )

    def redeemed(offer: Row) -> bool:
        return happened(offer, "redeemed") or any(
            span(offer["assigned_at"], days, o.at) and offer["arm"] in o.values("coupon_id")
            for o in h.valid
        )

    year, quarter = _matured(h, 365), _matured(h, 90)
    responded = sum(_responded(h, offer) for offer in year)
    rate = (responded + 5 * Fraction(h.settings.response_rate)) / (len(year) + 5)
    return {
        "offers_365d": sum(h.age(e["assigned_at"]) <= 365 for e in _real(h)),
        "response_rate_365d": rate if _real(h) else None,
        "redemption_rate_365d": ratio(sum(map(redeemed, year)), len(year)),
        "click_rate_90d": ratio(sum(happened(e, "clicked") for e in quarter), len(quarter)),
    }


def _whole(time: datetime) -> float:
    """Days since a fixed day, in whole seconds."""
    return (time - datetime(2000, 1, 1)) // timedelta(seconds=1) / 86_400


def _fatigue(h: History) -> dict[str, Value]:
    ages = [h.age(e["assigned_at"]) for e in h.offers]
    opened = [v["occurred_at"] for v in h.events if v["type"] == "opened"]
    ends = [
        e["assigned_at"] + timedelta(days=h.settings.offers[e["arm"]]["valid_days"])
        for e in _real(h)
        if _unused(h, e)
    ]
    return {
        "coupon_expires_days": _whole(min(ends)) - _whole(h.as_of) if ends else None,
        "offers_7d": sum(age <= 7 for age in ages),
        "offers_28d": sum(age <= 28 for age in ages),
        "offer_recency_days": min(ages, default=None),
        "unused_coupons": len({e["arm"] for e in _real(h) if _unused(h, e)}),
        "unsubscribes_365d": sum(
            v["type"] == "unsubscribed" and h.age(v["occurred_at"]) <= 365 for v in h.events
        ),
        "unopened_streak": sum(not opened or e["assigned_at"] > max(opened) for e in h.offers),
    }


def _unused(h: History, offer: Row) -> bool:
    """Whether an offer's coupon is still valid and was not redeemed since it was issued."""
    coupon, issued = offer["arm"], offer["assigned_at"]
    known = h.settings.offers.get(coupon)
    if known is None or known["kind"] == "message":  # a message is a contact without a coupon
        return False
    if issued + timedelta(days=known["valid_days"]) <= h.as_of:
        return False
    by_event = any(
        v["type"] == "redeemed" and v["coupon_id"] == coupon and v["occurred_at"] >= issued
        for v in h.events
    )
    by_order = any(coupon in o.values("coupon_id") and o.at >= issued for o in h.valid)
    return not (by_event or by_order)


def _profile(h: History) -> dict[str, Value]:
    joined, month = h.profile.get("joined_at"), h.profile.get("birth_month")
    first = h.days[0] if h.days else None
    if first is None and joined is not None:
        first = h.day(joined)
    away = abs(h.today.month - month) if month is not None else 0
    coming = [(day - h.today).days for day in h.settings.holidays if day >= h.today]
    return {
        "joined_days": h.age(joined) if joined is not None else None,
        "stage_clock_days": _stage_clock(h),
        "region": h.profile.get("region"),
        "gender": h.profile.get("gender"),
        "birthday_distance_months": min(away, 12 - away) if month is not None else None,
        "holiday_next_days": min(coming, default=None),
        "anniversary_distance_days": _anniversary(h.today, first) if first is not None else None,
    }


def _stage_clock(h: History) -> int | None:
    anchors = h.settings.anchors
    bought = [(o.at, anchors[c]) for o in h.valid for c in o.values("category") if c in anchors]
    if not bought:
        return None
    at, offset = max(bought)
    return offset + h.age(at)


def _anniversary(today: date, day: date) -> int:
    """Days to the nearest recurrence of a date; that of 29 February is 1 March in other years."""

    def in_year(year: int) -> date:
        try:
            return day.replace(year=year)
        except ValueError:
            return date(year, 3, 1)

    return min(abs((today - in_year(today.year + step)).days) for step in (-1, 0, 1))
