"""Small random tables that meet the awkward corners on purpose."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

Row = dict[str, Any]
CUSTOMERS = [f"c{i:02d}" for i in range(24)]
# c00 has only returns, c01 only exposures, c02 nothing, c03 orders one second apart, c04 only a row
# in the customers table and events, c05 one order, on 29 February.
ONLY_RETURNS, ONLY_EXPOSURES, NOTHING, SECONDS, ONLY_PROFILE, LEAP = CUSTOMERS[:6]
# Frozen values are fitted here; the category "late" is bought only from here on.
REFERENCE = datetime(2024, 7, 1)
START = datetime(2022, 12, 20, 12)
OFFERS: list[Row] = [
    {"coupon_id": "M20", "kind": "threshold_off", "params": {"threshold": 20, "off": 5}},
    {
        "coupon_id": "M19",
        "kind": "threshold_off",
        "params": {"threshold": 19.9, "off": 2, "repeat": True},
        "valid_days": 3,
    },
    {"coupon_id": "P10", "kind": "percent_off", "params": {"rate_off": 0.1}, "valid_days": 30},
    {"coupon_id": "HALF2", "kind": "nth_item", "valid_days": 1},
    {"coupon_id": "X2", "kind": "points", "params": {"multiplier": 2, "point_value": 0.01}},
    {"coupon_id": "CUP", "kind": "gift", "params": {"unit_cost": 3}, "valid_days": 60},
    {"coupon_id": "FIX5", "kind": "fixed_off", "params": {"off": 5}, "active": False},
    {
        "coupon_id": "FIRST",
        "kind": "first_order",
        "params": {"kind": "threshold_off", "params": {"threshold": 20, "off": 5}},
    },
    {"coupon_id": "SALON", "kind": "non_cash", "params": {"unit_cost": 30}, "valid_days": 90},
    {"coupon_id": "HELLO", "kind": "message", "valid_days": 90},
]
COUPONS = [offer["coupon_id"] for offer in OFFERS]
STAGE_CLOCKS: dict[str, Row] = {
    "first": {
        "anchors": {"care": 120, "food": 90, "Ärzte": 270},
        "stages": {"early": [0, 270], "late": [270, 635]},
    },
    "second": {"anchors": {"food": 7}, "stages": {"only": [0, 30]}},
}
HOLIDAYS = [date(2023, 5, 1), date(2024, 2, 10), date(2024, 2, 29), date(2025, 1, 29)]
FEATURES: Row = {
    "set": "all",
    "weekend_overrides": {"2025-02-01": False, "2025-02-03": True, "2023-10-29": False},
    "holidays": [str(day) for day in HOLIDAYS],
    "online_channels": ["app", "web"],
    "mobile_payments": ["wechat", "alipay"],
}
PRICES = ["1", "2.5", "9.99", "10", "10", "33.33"]
# Products that come on the market one after the other, and days around the bounds of a launch.
LAUNCHES = {f"n{i}": START + timedelta(days=40 + 37 * i) for i in range(24)}


def _pick(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _moment(rng: np.random.Generator, zone: str) -> datetime:
    """A time in 2023 to 2025: anywhere, near a local midnight, or near a change of the clocks."""
    start = datetime(2023, 1, 1) + timedelta(days=int(rng.integers(3 * 365)))
    how = rng.integers(3)
    if how == 0:
        return start + timedelta(seconds=int(rng.integers(86400)))
    if how == 1:
        midnight = datetime.combine(start.date(), time(), ZoneInfo(zone))
        at = midnight.astimezone(UTC).replace(tzinfo=None)
        return at + timedelta(seconds=int(_pick(rng, [-1, 0, 1])))
    # The clocks of Europe and of New York change on these dates.
    day = datetime(2023 + int(rng.integers(3)), *_pick(rng, [(3, 26), (10, 29), (3, 12), (11, 5)]))
    return day + timedelta(minutes=int(rng.integers(-120, 8 * 60)))


def _product(rng: np.random.Generator, at: datetime) -> str | None:
    fresh = [p for p, launch in LAUNCHES.items() if launch <= at <= launch + timedelta(days=60)]
    if fresh and rng.random() < 0.4:
        return str(_pick(rng, fresh))
    found: str | None = _pick(rng, ["p1", "p1", "p1", "p2", "p3", None])
    return found


def make_line(
    rng: np.random.Generator, customer: str, order: str, at: datetime, **values: Any
) -> Row:
    """A purchase line of a round unit price, so that list unit prices repeat; money in decimals."""
    quantity = _pick(rng, [1.0, 1.0, 2.0, 0.5, 3.0, None])
    worth = Decimal(_pick(rng, PRICES)) * Decimal(str(quantity or 1))
    discount = min(worth, Decimal(_pick(rng, ["0", "0", "0", "0.1", "2.55", "99"])))
    row: Row = {
        "customer_id": customer,
        "order_id": order,
        "transacted_at": at,
        "amount": float(worth - discount),
        "discount": float(discount),
        "product_id": _product(rng, at),
        "category": _pick(
            rng, ["food", "care", "Ärzte", "late" if at >= REFERENCE else "early", None]
        ),
        "quantity": quantity,
        "channel": _pick(rng, ["app", "store", "web", None]),
        "payment_method": _pick(rng, ["wechat", "alipay", "cash", None]),
        "coupon_id": _pick(rng, [*COUPONS, "unknown", *[None] * 8]),
    }
    return row | values


def make_lines(rng: np.random.Generator, zone: str) -> list[Row]:
    """Order and return lines."""
    rows: list[Row] = []

    def line(customer: str, order: str, at: datetime, **values: Any) -> Row:
        rows.append(make_line(rng, customer, order, at, **values))
        return rows[-1]

    for customer in [SECONDS, *CUSTOMERS[6:]]:
        # Some buy often, so that a product is bought on three days within a year.
        for number in range(int(rng.integers(1, _pick(rng, [3, 14, 30])))):
            order, at = f"{customer}-{number}", _moment(rng, zone)
            if customer == SECONDS:
                at = datetime(2025, 3, 1, 22, 59, 55) + timedelta(seconds=number)
            own = [line(customer, order, at) for _ in range(int(rng.integers(1, 4)))]
            if rng.random() < 0.15:  # a line that joins the order later
                later = at + timedelta(days=int(rng.integers(1, 90)))
                own.append(line(customer, order, later))
            if rng.random() < 0.35:
                back = at + timedelta(days=int(rng.integers(-5, 120)))
                given = own if rng.random() < 0.6 else own[:1]
                for one in given:
                    line(
                        *(customer, order, back + timedelta(days=int(rng.integers(3)))),
                        amount=-one["amount"],
                        discount=0.0,
                        quantity=-(one["quantity"] or 1.0),
                    )
    for number in range(3):
        line(ONLY_RETURNS, f"r{number}", _moment(rng, zone), amount=-5.0, quantity=None)
    # The same order id of two customers makes two orders.
    for customer in CUSTOMERS[6:8]:
        line(customer, "shared", datetime(2025, 1, 31, 23, 30))
    # 0.1 + 0.2 paid and 0.3 returned is fully returned.
    for amount, quantity in ((0.1, 1.0), (0.2, 1.0), (-0.3, -1.0)):
        line(CUSTOMERS[8], "float", datetime(2025, 2, 1), amount=amount, quantity=quantity)
    return rows + _at_the_bounds(rng)


def _at_the_bounds(rng: np.random.Generator) -> list[Row]:
    """The first line of all, launches 59 and 60 days after it, and orders at their thresholds."""
    first, other, paying = CUSTOMERS[9], CUSTOMERS[10], CUSTOMERS[11]
    rows = [make_line(rng, first, "start", START)]
    for day in (59, 60):
        for customer, later in ((first, 0), (other, 30), (first, 30), (other, 31), (first, 31)):
            at = START + timedelta(days=day + later)
            order = f"launch-{customer}-{later}"
            rows.append(make_line(rng, customer, order + str(day), at, product_id=f"launch{day}"))
    # 1.1 times 20 is 22, and 1.1 times 19.9 is 21.89.
    for number, (coupon, worth) in enumerate(
        [("M20", 22.0), ("M20", 22.01), ("M19", 21.89), ("M19", 21.9), ("M19", 5.0)]
    ):
        at = datetime(2024, 6, 1) + timedelta(days=number)
        values = {"coupon_id": coupon, "amount": worth - 1, "discount": 1.0, "quantity": 1.0}
        rows.append(make_line(rng, paying, f"near{number}", at, **values))
    # An order with two coupons is near the larger threshold, and beyond the smaller.
    for coupon in ("M20", "M19"):
        values = {"coupon_id": coupon, "amount": 11.0, "discount": 0.0, "quantity": 1.0}
        rows.append(make_line(rng, paying, "two", datetime(2024, 6, 7), **values))
    # 29 February has no anniversary in other years.
    rows.append(make_line(rng, LEAP, "leap", datetime(2024, 2, 29, 12)))
    return rows


def make_exposures(rng: np.random.Generator, lines: list[Row]) -> list[Row]:
    """Offers, control rows and reminders, many of them just before or exactly at an order."""
    rows: list[Row] = []
    for customer in [ONLY_EXPOSURES, *CUSTOMERS[5:]]:
        orders = [row["transacted_at"] for row in lines if row["customer_id"] == customer]
        bearing = [
            row for row in lines if row["customer_id"] == customer and row["coupon_id"] in COUPONS
        ]
        for _ in range(int(rng.integers(0, 12))):
            at = datetime(2024, 1, 1) + timedelta(hours=int(rng.integers(2 * 365 * 24)))
            arm = _pick(rng, ["control", *COUPONS])
            shift = _pick(rng, [0, 1, 3 * 86400, 14 * 86400 - 1, 14 * 86400, 15 * 86400])
            how = rng.random()
            if how < 0.3 and bearing:  # the coupon of an order that was to come
                order = _pick(rng, bearing)
                at, arm = order["transacted_at"] - timedelta(seconds=shift), order["coupon_id"]
            elif how < 0.6 and orders:
                at = _pick(rng, orders) - timedelta(seconds=shift)
            rows.append(
                {
                    "exposure_id": f"e{len(rows)}",
                    "customer_id": customer,
                    "campaign_id": _pick(rng, ["k1", "k1", "k2", "k3"]),
                    "assigned_at": at,
                    "arm": arm,
                    "variant": _pick(rng, [None, "a", "b", "reminder"]),
                }
            )
    return rows


def make_events(rng: np.random.Generator, exposures: list[Row]) -> list[Row]:
    """Events near the bounds of the offers' spans, and anywhere; some of no campaign or coupon."""
    rows: list[Row] = []
    kinds = ["sent", "opened", "clicked", "redeemed", "ordered", "unsubscribed", "visited"]

    def event(customer: str, at: datetime, **values: Any) -> None:
        row: Row = {
            "event_id": f"v{len(rows)}",
            "customer_id": customer,
            "campaign_id": _pick(rng, ["k1", "k2", "k3", None]),
            "type": _pick(rng, kinds),
            "occurred_at": at,
            "coupon_id": _pick(rng, [*COUPONS, None, None]),
            "value": None,
        }
        rows.append(row | values)

    for offer in exposures:
        if rng.random() < 0.6:
            shift = _pick(rng, [-1, 0, 1, 86400, 14 * 86400 - 1, 14 * 86400])
            about = {"type": _pick(rng, ["opened", "clicked", "redeemed", "redeemed"])}
            if rng.random() < 0.7:
                about["campaign_id"] = offer["campaign_id"]
            if rng.random() < 0.7:
                about["coupon_id"] = offer["arm"] if offer["arm"] in COUPONS else None
            event(offer["customer_id"], offer["assigned_at"] + timedelta(seconds=shift), **about)
    for customer in [ONLY_RETURNS, *CUSTOMERS[4:]]:
        for _ in range(int(rng.integers(0, 5))):
            at = datetime(2023, 6, 1) + timedelta(hours=int(rng.integers(900 * 24)))
            event(customer, at, type=_pick(rng, [*kinds, "unsubscribed", "unsubscribed"]))
    return rows


def make_customers(rng: np.random.Generator, zone: str) -> list[Row]:
    """One row of most customers; values and whole rows are missing."""
    rows = []
    for customer in CUSTOMERS:
        sure = customer == ONLY_PROFILE
        if customer == NOTHING or (not sure and rng.random() < 0.15):
            continue
        rows.append(
            {
                "customer_id": customer,
                "birth_month": _pick(rng, [1, 2, 6, 7, 12, None]),
                "gender": _pick(rng, ["f", "m", None]),
                "region": _pick(rng, ["north", "Süd", None]),
                "joined_at": _moment(rng, zone) if sure or rng.random() < 0.7 else None,
            }
        )
    return rows


def make_spine(
    rng: np.random.Generator,
    zone: str,
    lines: list[Row],
    exposures: list[Row],
    events: list[Row],
    customers: list[Row],
    moments: int = 8,
) -> pd.DataFrame:
    """Every customer at many moments: at rows, one step after them, and anywhere."""
    rows = []
    valid = {offer["coupon_id"]: offer.get("valid_days", 14) for offer in OFFERS}
    for customer in CUSTOMERS:
        times = [r["transacted_at"] for r in lines if r["customer_id"] == customer]
        own = [e for e in exposures if e["customer_id"] == customer]
        times += [e["assigned_at"] for e in own]
        times += [v["occurred_at"] for v in events if v["customer_id"] == customer]
        times += [
            r["joined_at"]
            for r in customers
            if r["customer_id"] == customer and r["joined_at"] is not None
        ]
        for _ in range(moments):
            at = _moment(rng, zone)
            how = rng.random()
            if own and how < 0.3:  # about the end of a coupon's validity
                offer = _pick(rng, own)
                at = offer["assigned_at"] + timedelta(days=valid.get(offer["arm"], 14))
                at += timedelta(microseconds=int(_pick(rng, [-1, 0, 1])))
            elif times and how < 0.65:
                step = _pick(rng, [0, 0, 1, 14 * 86400 * 10**6, 30 * 86400 * 10**6])
                at = _pick(rng, times) + timedelta(microseconds=step)
            rows.append((customer, at))
    rows.append(rows[0])  # a row of the spine may stand twice
    frame = pd.DataFrame(rows, columns=["customer_id", "as_of"])
    return frame.iloc[rng.permutation(len(frame))].reset_index(drop=True)
