"""Small random tables that meet the awkward corners on purpose."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

Row = dict[str, Any]
CUSTOMERS = [f"c{i:02d}" for i in range(24)]
# c00 has only returns, c01 only exposures, c02 nothing, c03 orders one second apart.
ONLY_RETURNS, ONLY_EXPOSURES, NOTHING, SECONDS = CUSTOMERS[:4]


def _pick(rng: np.random.Generator, values: list[Any]) -> Any:
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


def make_lines(rng: np.random.Generator, zone: str) -> list[Row]:
    """Order and return lines; money in cents."""
    rows: list[Row] = []

    def line(customer: str, order: str, at: datetime, **values: Any) -> Row:
        row: Row = {
            "customer_id": customer,
            "order_id": order,
            "transacted_at": at,
            "amount": float(rng.integers(0, 5000)) / 100,
            "discount": _pick(rng, [0.0, 0.0, 0.1, 2.55]),
            "product_id": _pick(rng, ["p1", "p2", "p3", "p4", "p5", None]),
            "category": _pick(rng, ["food", "care", "Ärzte", None]),
            "quantity": _pick(rng, [1.0, 2.0, 0.5, None]),
            "channel": _pick(rng, ["app", "store", "web", None]),
            "coupon_id": _pick(rng, ["M199", "HALF2", "unknown", None, None]),
        }
        rows.append(row | values)
        return rows[-1]

    for customer in CUSTOMERS[3:]:
        for number in range(int(rng.integers(1, 14))):
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
    for customer in CUSTOMERS[4:6]:
        line(customer, "shared", datetime(2025, 1, 31, 23, 30))
    # 0.1 + 0.2 paid and 0.3 returned is fully returned.
    for amount, quantity in ((0.1, 1.0), (0.2, 1.0), (-0.3, -1.0)):
        line(CUSTOMERS[6], "float", datetime(2025, 2, 1), amount=amount, quantity=quantity)
    return rows


def make_exposures(rng: np.random.Generator, lines: list[Row]) -> list[Row]:
    """Offers, control rows and reminders, many of them just before or exactly at an order."""
    rows: list[Row] = []
    for customer in [ONLY_EXPOSURES, *CUSTOMERS[4:]]:
        orders = [row["transacted_at"] for row in lines if row["customer_id"] == customer]
        for _ in range(int(rng.integers(0, 7))):
            at = datetime(2024, 1, 1) + timedelta(hours=int(rng.integers(2 * 365 * 24)))
            if orders and rng.random() < 0.6:
                shift = _pick(rng, [0, 1, 3 * 86400, 14 * 86400 - 1, 14 * 86400, 15 * 86400])
                at = _pick(rng, orders) - timedelta(seconds=shift)
            rows.append(
                {
                    "exposure_id": f"e{len(rows)}",
                    "customer_id": customer,
                    "campaign_id": "k",
                    "assigned_at": at,
                    "arm": _pick(rng, ["control", "M199", "HALF2"]),
                    "variant": _pick(rng, [None, "a", "reminder"]),
                }
            )
    return rows


def make_spine(
    rng: np.random.Generator, lines: list[Row], exposures: list[Row], zone: str, moments: int = 8
) -> pd.DataFrame:
    """Every customer at many moments: at rows, one step after them, and anywhere."""
    rows = []
    for customer in CUSTOMERS:
        times = [r["transacted_at"] for r in lines if r["customer_id"] == customer]
        times += [r["assigned_at"] for r in exposures if r["customer_id"] == customer]
        for _ in range(moments):
            at = _moment(rng, zone)
            if times and rng.random() < 0.5:
                step = _pick(rng, [0, 0, 1, 14 * 86400 * 10**6, 30 * 86400 * 10**6])
                at = _pick(rng, times) + timedelta(microseconds=step)
            rows.append((customer, at))
    rows.append(rows[0])  # a row of the spine may stand twice
    frame = pd.DataFrame(rows, columns=["customer_id", "as_of"])
    return frame.iloc[rng.permutation(len(frame))].reset_index(drop=True)
