"""Features of orders, the slow way (see oracle.py)."""

from __future__ import annotations

import math
from datetime import date
from fractions import Fraction
from itertools import pairwise

from tests.unit.features.oracle_history import (
    History,
    Order,
    Row,
    Value,
    favourite,
    list_price,
    mean,
    median,
    money,
    quantity,
    ratio,
    share,
    total,
)

DAYPARTS = {
    "morning": range(6, 11),
    "lunch": range(11, 14),
    "afternoon": range(14, 17),
    "evening": range(17, 21),
    "night": (21, 22, 23, 0, 1, 2, 3, 4, 5),
}
KINDS = ("threshold_off", "percent_off", "nth_item", "points", "gift", "fixed_off")


def order_features(h: History) -> dict[str, Value]:
    """Every feature whose rows are order lines."""
    return {
        **_windows(h),
        **_rhythm(h),
        **_time(h),
        **_category(h),
        **_price(h),
        **_discount(h),
        **_coupon_kinds(h),
        **_channel(h),
        **_clv(h),
    }


def spend(h: History, low: int, high: float) -> Fraction:
    """Purchases at the order's age and returns at their own; fully returned orders are in both."""
    bought = [o.paid for o in h.orders if low <= h.age(o.at) <= high]
    back = [r for r in h.returns if low <= h.age(r["transacted_at"]) <= high]
    return sum(bought, Fraction(0)) + total(back, "amount")


def _windows(h: History) -> dict[str, Value]:
    ages = [(h.today - day).days for day in h.days]
    a, b = spend(h, -9, 90), spend(h, 91, 180)
    back = [r for r in h.returns if h.age(r["transacted_at"]) <= 365]
    bought = [o.paid for o in h.orders if h.age(o.at) <= 365]
    return {
        "recency_days": ages[-1] if ages else None,
        "tenure_days": ages[0] if ages else None,
        "order_days_365d": sum(age <= 365 for age in ages),
        "order_days_total": len(ages),
        "orders_30d": len(h.within(30)),
        "orders_90d": len(h.within(90)),
        "orders_total": len(h.valid),
        "spend_90d": a,
        "spend_365d": spend(h, -9, 365),
        "spend_total": spend(h, -9, math.inf),
        "spend_trend_90d": ratio(a - b, abs(a) + abs(b)),
        "return_share_365d": ratio(sum(abs(money(r["amount"])) for r in back), sum(bought)),
    }


def _gaps(h: History) -> list[int]:
    return [(later - day).days for day, later in pairwise(h.days)]


def _rhythm(h: History) -> dict[str, Value]:
    gaps = _gaps(h)
    weight = Fraction(h.settings.prior_weight)
    expected = (weight * Fraction(h.settings.median_gap) + sum(gaps)) / (weight + len(gaps))
    middle = ratio(sum(gaps), len(gaps))
    out: dict[str, Value] = {
        "interval_mean_days": middle,
        "interval_cv_ratio": None,
        "interval_expected_days": expected if h.days else None,
        "overdue_ratio": ratio((h.today - h.days[-1]).days, expected) if h.days else None,
        "interval_trend_ratio": None,
    }
    if len(gaps) >= 2 and middle is not None:
        variance = mean((gap - middle) ** 2 for gap in gaps)
        assert variance is not None
        out["interval_cv_ratio"] = math.sqrt(variance) / middle
        out["interval_trend_ratio"] = ratio(gaps[-1], median(gaps[:-1]))
    return out


def _time(h: History) -> dict[str, Value]:
    def weekend(day: date) -> bool:
        return h.settings.weekend_overrides.get(str(day), day.weekday() >= 5)

    def hour(o: Order) -> int:
        return h.local(o.at).hour

    def part(o: Order) -> set[str]:
        return {name for name, hours in DAYPARTS.items() if hour(o) in hours}

    def quarter(day: date) -> int:
        return (day.month - 1) // 3

    return {
        "weekend_share_365d": share(weekend(h.day(o.at)) for o in h.year),
        "workday_lunch_share_365d": share(
            not weekend(h.day(o.at)) and hour(o) in DAYPARTS["lunch"] for o in h.year
        ),
        "daypart_favourite_365d": favourite((o.at, part(o)) for o in h.year),
        "same_season_share_730d": share(
            quarter(h.day(o.at)) == quarter(h.today) for o in h.within(730)
        ),
    }


def _category(h: History) -> dict[str, Value]:
    liked = favourite((o.at, o.values("category")) for o in h.year)
    known: set[str] = set()
    novel: dict[date, bool] = {}
    for day in h.days:
        products = {p for o in h.valid if h.day(o.at) == day for p in o.values("product_id")}
        novel[day] = bool(products - known)
        known |= products
    later = [day for day in h.days[1:] if (h.today - day).days <= 365]

    def bought_on(product: str) -> int:
        return len({h.day(o.at) for o in h.year if product in o.values("product_id")})

    def new_launch(o: Order, line: Row) -> bool:
        if line["product_id"] is None or h.settings.data_start is None:
            return False
        launch = h.day(h.settings.launches[line["product_id"]])
        early = (launch - h.day(h.settings.data_start)).days < 60
        return not early and (h.day(o.at) - launch).days <= 30

    lines = [(o, line) for o in h.year for line in o.lines]
    return {
        "categories_365d": len({v for o in h.year for v in o.values("category")}),
        "category_favourite_365d": liked,
        "category_favourite_share_365d": (
            share(liked in o.values("category") for o in h.year) if liked is not None else None
        ),
        "novelty_share_365d": share(novel[day] for day in later),
        "new_launch_share_365d": share(new_launch(o, line) for o, line in lines),
        "staple_share_365d": share(
            line["product_id"] is not None and bought_on(line["product_id"]) >= 3
            for _, line in lines
        ),
    }


def _price(h: History) -> dict[str, Value]:
    lines = [line for o in h.year for line in o.lines]

    def percentile(line: Row) -> Fraction:
        reference = h.settings.prices[line["category"]]
        price = list_price(line)
        below = sum(p < price for p in reference)
        equal = sum(p == price for p in reference)
        return (below + Fraction(equal, 2)) / len(reference)

    return {
        "order_value_mean_365d": mean(o.paid for o in h.year),
        "unit_price_median_365d": median(money(r["amount"]) / quantity(r) for r in lines),
        "price_percentile_365d": mean(
            percentile(line) for line in lines if line["category"] in h.settings.prices
        ),
        "basket_units_mean_365d": ratio(sum(map(quantity, lines)), len(h.year)),
    }


def _discount(h: History) -> dict[str, Value]:
    rate = ratio(sum(o.discount for o in h.year), sum(o.list_value for o in h.year))
    discounted = share(o.discount > 0 for o in h.year)
    sensitivity = None
    if rate is not None and discounted is not None:
        sensitivity = (discounted + min(Fraction(1), rate / Fraction("0.30"))) / 2

    def thresholds(o: Order) -> list[Fraction]:
        own = [h.settings.offers[c] for c in o.values("coupon_id") if c in h.settings.offers]
        return [money(c["params"]["threshold"]) for c in own if c["kind"] == "threshold_off"]

    using = [o for o in h.year if thresholds(o)]
    return {
        "discount_rate_365d": rate,
        "discounted_order_share_365d": discounted,
        "discount_depth_mean_365d": mean(o.discount / o.list_value for o in h.year if o.discount),
        "full_price_orders_365d": sum(o.discount == 0 for o in h.year),
        "threshold_hugging_share_365d": share(
            any(o.list_value <= Fraction("1.1") * t for t in thresholds(o)) for o in using
        ),
        "price_sensitivity_score": sensitivity,
    }


def _coupon_kinds(h: History) -> dict[str, Value]:
    known = {coupon: offer["kind"] for coupon, offer in h.settings.offers.items()}
    kinds = [(o.at, {known[c] for c in o.values("coupon_id") if c in known}) for o in h.year]
    carrying = [own for _, own in kinds if own]
    out: dict[str, Value] = {
        f"kind_share_{kind}_365d": share(kind in own for own in carrying) for kind in KINDS
    }
    return out | {"kind_favourite_365d": favourite(kinds)}


def _channel(h: History) -> dict[str, Value]:
    online, mobile = set(h.settings.online_channels), set(h.settings.mobile_payments)
    return {
        "online_order_share_365d": share(bool(o.values("channel") & online) for o in h.year),
        "channel_favourite_365d": favourite((o.at, o.values("channel")) for o in h.year),
        "mobile_payment_share_365d": share(
            bool(o.values("payment_method") & mobile) for o in h.year
        ),
    }


def _clv(h: History) -> dict[str, Value]:
    net = [
        sum((o.paid + o.returned for o in h.valid if h.day(o.at) == day), Fraction(0))
        for day in h.days
    ]
    return {
        "clv_frequency_days": max(len(h.days) - 1, 0),
        "clv_recency_days": (h.days[-1] - h.days[0]).days if h.days else None,
        "clv_order_day_value_mean": mean(value for value in net[1:] if value > 0),
    }
