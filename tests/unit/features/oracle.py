"""Features of one customer at one moment, in plain Python: slow, and written without the product.

Rows are dictionaries of the canonical columns; times are naive UTC. Sums are exact (Fraction).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

Row = dict[str, Any]


def features_of(
    lines: Iterable[Row],
    exposures: Iterable[Row],
    as_of: datetime,
    *,
    zone: str,
    kinds: dict[str, str],
    median_gap: float,
    response_rate: float,
    weekend_overrides: dict[str, bool] | None = None,
) -> dict[str, Any]:
    """Every feature that the catalogue has, by the rules' words."""
    tz = ZoneInfo(zone)

    def local(time: datetime) -> date:
        return time.replace(tzinfo=UTC).astimezone(tz).date()

    def age(time: datetime) -> int:
        return (local(as_of) - local(time)).days

    past = [row for row in lines if row["transacted_at"] < as_of]
    bought = [row for row in past if _quantity(row) > 0 and row["amount"] >= 0]
    returned = [
        row for row in past if row["amount"] < 0 or (_quantity(row) < 0 and row["amount"] <= 0)
    ]
    orders = []
    for order_id in sorted({row["order_id"] for row in bought}):
        own = [row for row in bought if row["order_id"] == order_id]
        back = [row for row in returned if row["order_id"] == order_id]
        net = sum(_money(row["amount"]) for row in own + back)
        orders.append(
            {
                "at": min(row["transacted_at"] for row in own),
                "lines": own,
                "valid": not (back and net <= 0),
                "paid": sum(_money(row["amount"]) for row in own),
                "discount": sum(_money(row["discount"]) for row in own),
            }
        )
    valid = sorted((o for o in orders if o["valid"]), key=lambda o: o["at"])
    year = [o for o in valid if age(o["at"]) <= 365]
    days = sorted({local(o["at"]) for o in valid})
    ages = [(local(as_of) - day).days for day in days]

    def spend(low: float, high: float) -> Fraction:
        parts = [o["paid"] for o in orders if low <= age(o["at"]) <= high]
        parts += [_money(r["amount"]) for r in returned if low <= age(r["transacted_at"]) <= high]
        return sum(parts, Fraction(0))

    out: dict[str, Any] = {
        "recency_days": ages[-1] if ages else None,
        "tenure_days": ages[0] if ages else None,
        "order_days_365d": sum(a <= 365 for a in ages),
        "order_days_total": len(days),
        "orders_30d": sum(age(o["at"]) <= 30 for o in valid),
        "orders_total": len(valid),
        "spend_90d": spend(-9, 90),
        "spend_365d": spend(-9, 365),
        "spend_total": spend(-9, 10**9),
    }
    gaps = [(b - a).days for a, b in pairwise(days)]
    out["interval_mean_days"] = _ratio(sum(gaps), len(gaps))
    expected = (2 * Fraction(median_gap) + sum(gaps)) / (2 + len(gaps)) if days else None
    out["interval_expected_days"] = expected
    out["overdue_ratio"] = _ratio(ages[-1], expected) if days and expected is not None else None
    late, early = spend(-9, 90), spend(91, 180)
    out["spend_trend_90d"] = _ratio(late - early, abs(late) + abs(early))

    overrides = weekend_overrides or {}
    weekend = [overrides.get(str(local(o["at"])), local(o["at"]).weekday() >= 5) for o in year]
    out["weekend_share_365d"] = _ratio(sum(weekend), len(year))
    out["categories_365d"] = len({v for o in year for v in _values(o, "category")})
    out["category_favourite_365d"] = _favourite([(o["at"], _values(o, "category")) for o in year])
    out["channel_favourite_365d"] = _favourite([(o["at"], _values(o, "channel")) for o in year])
    out["kind_favourite_365d"] = _favourite(
        [(o["at"], {kinds[c] for c in _values(o, "coupon_id") if c in kinds}) for o in year]
    )
    known: set[str] = set()
    novel = {}
    for day in days:
        products = {p for o in valid if local(o["at"]) == day for p in _values(o, "product_id")}
        novel[day] = bool(products - known)
        known |= products
    later = [d for d in days[1:] if (local(as_of) - d).days <= 365]
    out["novelty_share_365d"] = _ratio(sum(novel[d] for d in later), len(later))

    paid, discount = sum(o["paid"] for o in year), sum(o["discount"] for o in year)
    out["order_value_mean_365d"] = _ratio(paid, len(year))
    out["discount_rate_365d"] = _ratio(discount, paid + discount)
    out["discounted_order_share_365d"] = _ratio(sum(o["discount"] > 0 for o in year), len(year))

    offers = [e for e in exposures if e["assigned_at"] < as_of and e["arm"] != "control"]
    out["offers_28d"] = sum(age(e["assigned_at"]) <= 28 for e in offers)
    real = [e for e in offers if e["variant"] != "reminder"]
    window = timedelta(days=14)
    matured = [
        e["assigned_at"]
        for e in real
        if age(e["assigned_at"]) <= 365 and e["assigned_at"] + window <= as_of
    ]
    responded = sum(any(t <= o["at"] < t + window for o in valid) for t in matured)
    rate = (responded + 5 * Fraction(response_rate)) / (len(matured) + 5)
    out["response_rate_365d"] = rate if real else None
    return {k: float(v) if isinstance(v, int | Fraction) else v for k, v in out.items()}


def _money(value: float | None) -> Fraction:
    return Fraction(str(value)) if value is not None else Fraction(0)


def _quantity(row: Row) -> float:
    if row["quantity"] is None:
        return -1 if row["amount"] < 0 else 1
    return float(row["quantity"])


def _ratio(part: Any, whole: Any) -> Fraction | None:
    return Fraction(part) / whole if whole else None


def _values(order: Row, column: str) -> set[str]:
    return {row[column] for row in order["lines"] if row[column] is not None}


def _favourite(orders: list[tuple[datetime, set[str]]]) -> str | None:
    counts = Counter(v for _, values in orders for v in values)
    last = {v: max(at for at, values in orders if v in values) for v in counts}
    best = sorted(counts, key=lambda v: (-counts[v], -last[v].timestamp(), v))
    return best[0] if best else None
