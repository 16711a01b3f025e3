"""A profile of the source: how much there is, how fresh, with which gaps, repeats and odd money.

A handful of aggregates per table, as Ibis expressions, so that it costs little beside a training
and works on every engine. `features.profile_page` makes the page that an analyst reads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import ibis
import ibis.expr.types as ir

from features.config import Config
from features.tables import Tables

TIMES: dict[str, str | None] = {
    "transactions": "transacted_at",
    "exposures": "assigned_at",
    "events": "occurred_at",
    "customers": None,
}
# Robust z: so many (1.4826 x MAD)s of log amount from the median log amount is an outlier.
OUTLIER_Z = 6.0
MAD_TO_SD = 1.4826
# Prices that hardly vary have a MAD near 0; below this spread of the logs nothing is odd.
LEAST_SPREAD = 0.25
GAPS_SHOWN = 10


@dataclass(frozen=True)
class Gap:
    """Consecutive days without a row between the first and the last row, both inclusive."""

    first: date
    last: date

    @property
    def days(self) -> int:
        return (self.last - self.first).days + 1


@dataclass(frozen=True)
class TableProfile:
    """One table.

    counts: rows read, kept and set aside by reason; first, last: UTC; age_days: from the newest
    row to as_of (None without a time); days: rows per UTC day; gaps: the longest ones, longest
    first; gap_days: days without a row inside the range; nulls: column -> share without a value.
    """

    name: str
    rows: int
    counts: Mapping[str, int]
    customers: int
    first: datetime | None
    last: datetime | None
    age_days: float | None
    days: Mapping[date, int]
    gaps: tuple[Gap, ...]
    gap_days: int
    nulls: Mapping[str, float]

    @property
    def span_days(self) -> int:
        return (max(self.days) - min(self.days)).days + 1 if self.days else 0

    @property
    def in_waves(self) -> bool:
        """Whether days without a row are the rule, so that a gap says nothing."""
        return self.gap_days > self.span_days / 2

    @property
    def set_aside(self) -> Mapping[str, int]:
        return {k: v for k, v in self.counts.items() if k not in ("read", "kept")}


@dataclass(frozen=True)
class MoneyProfile:
    """Order lines as money, currency of the source.

    quantiles: share -> amount of purchase lines; outliers: purchase lines whose log amount is more
    than OUTLIER_Z robust standard deviations from the median, outside [low, high]; examples:
    their order ids; repeated_orders: orders that another order of the same customer, moment and
    total repeats under another id.
    """

    lines: int
    returns: int
    purchased: float
    returned: float
    discount: float
    quantiles: Mapping[float, float]
    outliers: int
    low: float | None
    high: float | None
    examples: tuple[str, ...]
    identical_lines: int
    orders: int
    repeated_orders: int


@dataclass(frozen=True)
class SourceProfile:
    """All tables of a source as of a moment; arms: exposures per arm, events: rows per type."""

    as_of: datetime
    tables: Mapping[str, TableProfile]
    money: MoneyProfile | None
    arms: Mapping[str, int] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a tracking store, named data_<table>_<what>."""
        found: dict[str, float] = {}
        for name, table in self.tables.items():
            head = f"data_{name}"
            found[f"{head}_rows"] = float(table.rows)
            found[f"{head}_customers"] = float(table.customers)
            if table.days:
                found[f"{head}_gap_days"] = float(table.gap_days)
                found[f"{head}_longest_gap_days"] = float(
                    max((g.days for g in table.gaps), default=0)
                )
            if table.age_days is not None:
                found[f"{head}_age_days"] = table.age_days
            for column, share in table.nulls.items():
                if share:
                    found[f"{head}_null_share_{column}"] = share
        if self.money is not None:
            money = self.money
            found |= {
                "data_return_line_share": _ratio(money.returns, money.lines),
                "data_return_amount_share": _ratio(money.returned, money.purchased),
                "data_amount_outliers": float(money.outliers),
                "data_identical_lines": float(money.identical_lines),
                "data_repeated_orders": float(money.repeated_orders),
            }
        return found


def profile_source(tables: Tables, config: Config) -> SourceProfile:
    """Profile every table of a source as of `source.as_of`; reads each table a few times."""
    as_of = config.as_of()
    profiles = {}
    for name, time in TIMES.items():
        table: ir.Table | None = getattr(tables, name)
        if table is not None:
            profiles[name] = _profile(table, name, time, tables.counts.get(name, {}), as_of)
    arms = _tally(tables.exposures, "arm")
    money = None
    if tables.transactions is not None and profiles["transactions"].rows:
        money = _money(tables.transactions, tables.identical_lines)
    return SourceProfile(as_of, profiles, money, arms, _tally(tables.events, "type"))


def _one(relation: ir.Table) -> dict[str, Any]:
    row: dict[str, Any] = relation.to_pyarrow().to_pylist()[0]
    return row


def _profile(
    table: ir.Table, name: str, time: str | None, counts: Mapping[str, int], as_of: datetime
) -> TableProfile:
    filled = {f"filled_{i}": table[c].count() for i, c in enumerate(table.columns)}
    asked: dict[str, ir.Value] = {
        "rows": table.count(),
        "customers": table["customer_id"].nunique(),
        **filled,
    }
    if time is not None:
        asked |= {"first": table[time].min(), "last": table[time].max()}
    row = _one(table.aggregate(**asked))
    days: dict[date, int] = {}
    if time is not None and row["rows"]:
        by_day = table.group_by(day=table[time].date()).aggregate(n=ibis._.count())
        days = {r["day"]: r["n"] for r in by_day.to_pyarrow().to_pylist()}
        days = dict(sorted(days.items()))
    gaps = _gaps(list(days))
    last = row.get("last")
    age = None
    if last is not None:
        age = (as_of - last.replace(tzinfo=UTC)) / timedelta(days=1)
    n = row["rows"]
    return TableProfile(
        name,
        n,
        dict(counts) or {"read": n, "kept": n},
        row["customers"],
        row.get("first"),
        last,
        age,
        days,
        tuple(sorted(gaps, key=lambda gap: (-gap.days, gap.first))[:GAPS_SHOWN]),
        sum(gap.days for gap in gaps),
        {c: _ratio(n - row[f"filled_{i}"], n) for i, c in enumerate(table.columns)},
    )


def _gaps(days: list[date]) -> list[Gap]:
    one = timedelta(days=1)
    return [
        Gap(before + one, after - one)
        for before, after in itertools.pairwise(days)
        if (after - before).days > 1
    ]


def _tally(table: ir.Table | None, column: str) -> dict[str, int]:
    if table is None:
        return {}
    counted = table.group_by(table[column]).aggregate(n=ibis._.count())
    found = {str(r[column]): int(r["n"]) for r in counted.to_pyarrow().to_pylist()}
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def _money(lines: ir.Table, identical: int) -> MoneyProfile:
    amount = lines["amount"]
    back = (amount < 0) | (lines["quantity"] < 0)
    bought = ~back
    priced = amount > 0
    shares = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
    row = _one(
        lines.aggregate(
            lines=lines.count(),
            returns=back.sum(),
            purchased=amount.sum(where=bought),
            returned=amount.sum(where=back),
            discount=lines["discount"].sum(where=bought),
            center=amount.log().median(where=priced & bought),
            **{f"q{i}": amount.quantile(q, where=bought) for i, q in enumerate(shares)},
        )
    )
    outliers, low, high, examples = 0, None, None, ()
    if row["center"] is not None:
        likely = lines.filter(bought & priced)
        distance = (likely["amount"].log() - row["center"]).abs()
        spread = _one(likely.aggregate(mad=distance.median()))["mad"]
        reach = OUTLIER_Z * max(MAD_TO_SD * spread, LEAST_SPREAD)
        low, high = math.exp(row["center"] - reach), math.exp(row["center"] + reach)
        odd = likely.filter((likely["amount"] < low) | (likely["amount"] > high))
        outliers = _one(odd.aggregate(n=odd.count()))["n"]
        if outliers:
            worst = odd.order_by((odd["amount"].log() - row["center"]).abs().desc()).limit(5)
            examples = tuple(worst.select("order_id").to_pyarrow()["order_id"].to_pylist())
    orders = lines.group_by("customer_id", "order_id").aggregate(
        moment=lines["transacted_at"].min(), total=lines["amount"].sum().round(2)
    )
    alike = orders.group_by("customer_id", "moment", "total").aggregate(n=ibis._.count())
    repeated = _one(alike.aggregate(orders=alike["n"].sum(), repeated=(alike["n"] - 1).sum()))
    return MoneyProfile(
        row["lines"],
        row["returns"] or 0,
        row["purchased"] or 0.0,
        abs(row["returned"] or 0.0),
        row["discount"] or 0.0,
        {q: row[f"q{i}"] for i, q in enumerate(shares) if row[f"q{i}"] is not None},
        outliers,
        low,
        high,
        examples,
        identical,
        repeated["orders"],
        repeated["repeated"],
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
