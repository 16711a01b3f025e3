"""What one customer did before one moment, for the slow way of the features (see oracle.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

Row = dict[str, Any]
Value = Fraction | float | str | None


@dataclass(frozen=True)
class Settings:
    """What features need besides the customer's own rows.

    `offers`: coupon id -> kind, params and valid_days; `prices`: category -> list unit prices of
    the reference lines; `launches`: product -> time of its first purchase line by anyone;
    `data_start`: time of the first line of all; `anchors`: category -> days, of the first clock.
    """

    zone: str = "UTC"
    offers: Mapping[str, Row] = field(default_factory=dict)
    median_gap: float = 30.0
    response_rate: float = 0.0
    prices: Mapping[str, list[Fraction]] = field(default_factory=dict)
    launches: Mapping[str, datetime] = field(default_factory=dict)
    data_start: datetime | None = None
    weekend_overrides: Mapping[str, bool] = field(default_factory=dict)
    holidays: tuple[date, ...] = ()
    online_channels: tuple[str, ...] = ()
    mobile_payments: tuple[str, ...] = ()
    anchors: Mapping[str, int] = field(default_factory=dict)
    response_days: int = 14
    prior_weight: float = 2.0


@dataclass
class Order:
    """Purchase lines that share customer and order id, at the time of the earliest."""

    at: datetime
    lines: list[Row]
    returned: Fraction
    valid: bool
    paid: Fraction
    discount: Fraction

    def values(self, column: str) -> set[str]:
        return {row[column] for row in self.lines if row[column] is not None}

    @property
    def list_value(self) -> Fraction:
        return self.paid + self.discount


class History:
    """The rows of one customer before a moment, sorted into orders, returns, offers and events."""

    def __init__(
        self,
        lines: Iterable[Row],
        exposures: Iterable[Row],
        events: Iterable[Row],
        profile: Row | None,
        as_of: datetime,
        settings: Settings,
    ) -> None:
        self.settings, self.as_of = settings, as_of
        self.zone = ZoneInfo(settings.zone)
        self.today = self.day(as_of)
        past = [row for row in lines if row["transacted_at"] < as_of]
        bought = [row for row in past if is_purchase(row)]
        self.returns = [row for row in past if is_return(row)]
        self.orders = [
            self._order(
                [row for row in bought if row["order_id"] == order_id],
                [row for row in self.returns if row["order_id"] == order_id],
            )
            for order_id in sorted({row["order_id"] for row in bought})
        ]
        self.valid = sorted((o for o in self.orders if o.valid), key=lambda o: o.at)
        self.year = self.within(365)
        self.days = sorted({self.day(o.at) for o in self.valid})
        self.offers = [e for e in exposures if e["assigned_at"] < as_of and e["arm"] != "control"]
        self.events = [e for e in events if e["occurred_at"] < as_of]
        # A row of the customers table is of the time of `joined_at`.
        hidden = profile is None or not (
            profile["joined_at"] is None or profile["joined_at"] < as_of
        )
        self.profile: Row = {} if hidden or profile is None else profile

    def local(self, time: datetime) -> datetime:
        return time.replace(tzinfo=UTC).astimezone(self.zone)

    def day(self, time: datetime) -> date:
        return self.local(time).date()

    def age(self, time: datetime) -> int:
        return (self.today - self.day(time)).days

    def within(self, days: int) -> list[Order]:
        return [o for o in self.valid if self.age(o.at) <= days]

    @staticmethod
    def _order(own: list[Row], back: list[Row]) -> Order:
        paid = total(own, "amount")
        returned = total(back, "amount")
        return Order(
            at=min(row["transacted_at"] for row in own),
            lines=own,
            returned=returned,
            valid=not (back and paid + returned <= 0),
            paid=paid,
            discount=total(own, "discount"),
        )


def quantity(row: Row) -> Fraction:
    """A line without a quantity is of one piece, a return of minus one."""
    if row["quantity"] is None:
        return Fraction(-1 if row["amount"] < 0 else 1)
    return Fraction(str(row["quantity"]))


def is_purchase(row: Row) -> bool:
    return quantity(row) > 0 and row["amount"] >= 0


def is_return(row: Row) -> bool:
    return bool(row["amount"] < 0 or (quantity(row) < 0 and row["amount"] <= 0))


def money(value: float | None) -> Fraction:
    return Fraction(str(value)) if value is not None else Fraction(0)


def total(rows: Iterable[Row], column: str) -> Fraction:
    return sum((money(row[column]) for row in rows), Fraction(0))


def list_price(row: Row) -> Fraction:
    """List value of one piece of a purchase line."""
    return (money(row["amount"]) + money(row["discount"])) / quantity(row)


def ratio(part: Any, whole: Any) -> Fraction | None:
    return Fraction(part) / Fraction(whole) if whole else None


def share(those: Iterable[bool]) -> Fraction | None:
    """Share of true ones; NULL of nothing."""
    listed = list(those)
    return ratio(sum(listed), len(listed))


def mean(values: Iterable[Fraction]) -> Fraction | None:
    listed = list(values)
    return ratio(sum(listed, Fraction(0)), len(listed))


def median(values: Iterable[Fraction | int]) -> Fraction | None:
    """The middle value, or the mean of the middle two."""
    ordered = sorted(values)
    if not ordered:
        return None
    half = len(ordered) // 2
    return Fraction(ordered[half] + ordered[-half - 1]) / 2


def favourite(orders: Iterable[tuple[datetime, set[str]]]) -> str | None:
    """Value of most orders; ties: the latest order, then the alphabet."""
    listed = list(orders)
    counts = Counter(v for _, values in listed for v in values)
    last = {v: max(at for at, values in listed if v in values) for v in counts}
    best = sorted(counts, key=lambda v: (-counts[v], datetime.max - last[v], v))
    return best[0] if best else None


def launches_of(lines: Iterable[Row]) -> dict[str, datetime]:
    """Product -> time of its first purchase line by anyone."""
    first: dict[str, datetime] = {}
    for row in lines:
        product, at = row["product_id"], row["transacted_at"]
        if product is not None and is_purchase(row):
            first[product] = min(at, first.get(product, at))
    return first


def reference_prices(lines: Iterable[Row], at: datetime) -> dict[str, list[Fraction]]:
    """Category -> list unit prices of all purchase lines of valid orders before a moment."""
    by_customer: dict[str, list[Row]] = {}
    for row in lines:
        by_customer.setdefault(row["customer_id"], []).append(row)
    prices: dict[str, list[Fraction]] = {}
    for own in by_customer.values():
        for order in History(own, [], [], None, at, Settings()).valid:
            for row in order.lines:
                if row["category"] is not None:
                    prices.setdefault(row["category"], []).append(list_price(row))
    return prices


def span(start: datetime, days: float, time: datetime) -> bool:
    """Whether a time lies in [start, start + days)."""
    return start <= time < start + timedelta(days=days)
