"""The tables of a source, checked, in one DuckDB connection."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import ibis.expr.types as ir

from features.config import Config
from features.errors import DataError

if TYPE_CHECKING:
    from features.store.snapshot import Store


@dataclass(frozen=True)
class Tables:
    """What `Source.tables()` returns: checked tables with canonical names and types.

    Times are naive UTC timestamps (microseconds), ids are text. A table that the source does not
    have is None. `counts` holds per table `read`, `kept`, and one number per reason for which rows
    were set aside; the latter two sum to `read`. `identical_lines` counts order lines that repeat
    an earlier one in every column and were kept. `absent` names optional columns that the source
    lacks, as `transactions.category`; they are NULL in the table. `digest` identifies the data.
    `notes` are sentences that belong into every report on this data. `store` holds sums of the
    transactions per day, for one moment of many customers. `prepared` is what was worked out from
    them for every build (`features.lines`).
    """

    con: Any
    transactions: ir.Table | None
    exposures: ir.Table | None
    customers: ir.Table | None = None
    events: ir.Table | None = None
    digest: str = ""
    simulated: bool = False
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    identical_lines: int = 0
    absent: frozenset[str] = frozenset()
    store: Store | None = None
    prepared: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)


def time_range(tables: Tables, names: tuple[str, ...]) -> tuple[datetime, datetime] | None:
    """First and last moment (UTC, aware) of the named tables together; None without rows."""
    columns = {
        "transactions": "transacted_at",
        "exposures": "assigned_at",
        "events": "occurred_at",
    }
    found: list[datetime] = []
    for name in names:
        table: ir.Table | None = getattr(tables, name)
        if table is None:
            continue
        moment = table[columns[name]]
        row = table.aggregate(low=moment.min(), high=moment.max()).to_pyarrow().to_pylist()[0]
        found += [value.replace(tzinfo=UTC) for value in row.values() if value is not None]
    return (min(found), max(found)) if found else None


def complete_until(tables: Tables, config: Config) -> datetime | None:
    """End (UTC, exclusive) of complete data: an exposure whose window ends later has no outcome.

    `source.complete_until`, else the end of the local day of the newest transaction or event;
    None for a source that has neither.
    """
    if config.source.complete_until is not None:
        return config.source.complete_until
    span = time_range(tables, ("transactions", "events"))
    if span is None:
        return None
    next_day = span[1].astimezone(config.zone).date() + timedelta(days=1)
    return datetime.combine(next_day, time(), tzinfo=config.zone).astimezone(UTC)


def check_as_of(tables: Tables, as_of: datetime) -> None:
    """Raise DataError if no transaction lies before `as_of` (UTC; naive is read as UTC)."""
    moment = as_of.replace(tzinfo=UTC) if as_of.tzinfo is None else as_of
    span = time_range(tables, ("transactions",))
    if span is not None and moment <= span[0]:
        raise DataError(
            "as_of",
            expected=f"a moment after the first transaction ({_iso(span[0])})",
            found=_iso(moment),
            remedy=f"Give --as-of (or source.as_of) a later time; the newest transaction is of "
            f"{_iso(span[1])}.",
        )


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
