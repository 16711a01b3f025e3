"""When to write to a customer: the best allowed hour of the local week.

The hour of most opens and clicks, else of most orders, plus ten pseudo-counts of the population's
shape: who has said little is written to when others read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pandas as pd

from features.config import Config
from features.contact import zones_of
from features.localtime import utc_offsets
from features.spine import naive_utc, seen_before
from features.tables import Tables

PSEUDO_COUNTS = 10.0
HOURS = 24 * 7
BASES = ("opens_and_clicks", "orders", "population")


@dataclass(frozen=True)
class SendTimes:
    """Per customer (n,): weekday (0 Monday), local hour, and what they are told by (index into
    BASES)."""

    weekday: npt.NDArray[np.int8]
    hour: npt.NDArray[np.int8]
    basis: npt.NDArray[np.int8]

    def rows(self, some: Any) -> SendTimes:
        """The hours of these customers."""
        return SendTimes(self.weekday[some], self.hour[some], self.basis[some])

    def bases(self) -> npt.NDArray[np.object_]:
        found: npt.NDArray[np.object_] = np.array(BASES, dtype=object)[self.basis]
        return found


def send_times(tables: Tables, ids: pd.Series[Any], as_of: datetime, config: Config) -> SendTimes:
    """The best hour of each customer outside of the quiet hours; the earliest of equal ones.

    Hours are local to the customer. Without any opens, clicks or orders every allowed hour is
    alike, and the first of the week is named.
    """
    n = len(ids)
    zones, zone = zones_of(tables, ids, config)
    position = pd.Series(np.arange(n), index=ids.to_numpy())
    allowed = allowed_hours(config)
    best = np.full(n, np.flatnonzero(allowed)[0] if allowed.any() else 0)
    basis = np.full(n, BASES.index("population"), dtype=np.int8)
    shaped = False
    for name, (table, time) in _SIGNALS.items():
        rows: ir.Table | None = getattr(tables, table)
        if rows is None:
            continue
        counts = _counts(rows, time, naive_utc(as_of))
        counts["row"] = counts["customer_id"].map(position)
        counts = counts.dropna(subset=["row"]).astype({"row": np.int64})
        if counts.empty:
            continue
        counts["slot"] = _slots(counts["hour"].to_numpy(), zone[counts["row"].to_numpy()], zones)
        slots = counts.groupby(["row", "slot"], as_index=False)["count"].sum()
        total = np.bincount(slots["slot"], weights=slots["count"], minlength=HOURS)
        shape = np.where(allowed, total, -1.0) / max(total.sum(), 1.0) * PSEUDO_COUNTS
        if not shaped and total[allowed].sum() > 0:
            # For who has no rows at all: the shape of the first signal there is.
            best[:] = int(shape.argmax())
            shaped = True
        row, slot = slots["row"].to_numpy(), slots["slot"].to_numpy()
        own = np.where(allowed[slot], slots["count"].to_numpy() + shape[slot], -1.0)
        # The best of the customer's own hours, the earliest of equal ones, against the best of the
        # others, which have the pseudo-counts alone.
        order = np.lexsort((slot, -own, row))
        first = order[np.unique(row[order], return_index=True)[1]]
        who = row[first]
        # Nothing is told of who was only ever seen in quiet hours.
        fresh = (basis[who] == BASES.index("population")) & (own[first] >= 0)
        who, first = who[fresh], first[fresh]
        common = int(shape.argmax())
        mine = own[first] > shape[common]
        best[who] = np.where(mine, slot[first], common)
        basis[who] = BASES.index(name)
    return SendTimes((best // 24).astype(np.int8), (best % 24).astype(np.int8), basis)


def allowed_hours(config: Config) -> npt.NDArray[np.bool_]:
    """(168,) hours of the local week, Monday first, that do not lie in quiet hours, wholly."""
    allowed = np.ones(HOURS, dtype=bool)
    if config.contact.quiet_hours is None:
        return allowed
    start, end = (int(t[:2]) * 60 + int(t[3:]) for t in config.contact.quiet_hours)
    minute = np.arange(24 * 60)
    quiet = (
        (minute >= start) & (minute < end) if start < end else (minute >= start) | (minute < end)
    )
    return np.tile(~quiet.reshape(24, 60).any(axis=1), 7)


def _counts(rows: ir.Table, time: str, moment: datetime) -> pd.DataFrame:
    """customer_id, hour (whole hours of Unix time), count; opens and clicks, or orders."""
    seen = rows.filter(seen_before(rows[time], moment))
    if time == "occurred_at":
        seen = seen.filter(seen.type.isin(["opened", "clicked"]))
        key: Any = ibis.literal(1)
        seen = seen.mutate(one=key)
        counted = seen.group_by(["customer_id", _hour(seen[time])]).agg(count=seen.one.sum())
    else:
        seen = seen.filter(seen.amount >= 0)
        counted = seen.group_by(["customer_id", _hour(seen[time])]).agg(
            count=seen.order_id.nunique()
        )
    found: pd.DataFrame = counted.to_pyarrow().to_pandas()
    return found


def _hour(time: Any) -> Any:
    return (time.epoch_seconds() // 3600).cast("int64").name("hour")


def _slots(
    hours: npt.NDArray[np.int64], zone: npt.NDArray[np.int64], zones: tuple[Any, ...]
) -> npt.NDArray[np.int64]:
    """(m,) hours of the local week of whole hours of Unix time."""
    local = np.empty(len(hours), dtype=np.int64)
    seconds = hours * 3600
    years = seconds.astype("datetime64[s]").astype("datetime64[Y]").astype(int) + 1970
    for z, each in enumerate(zones):
        mine = zone == z
        if not mine.any():
            continue
        offsets = utc_offsets(str(each), int(years[mine].min()), int(years[mine].max()))
        starts = np.array([start for start, _ in offsets[1:]], dtype="datetime64[s]")
        east = np.array([s for _, s in offsets], dtype=np.int64)
        at = seconds[mine].astype("datetime64[s]")
        local[mine] = seconds[mine] + east[np.searchsorted(starts, at, side="right")]
    # 1970-01-01 was a Thursday.
    slots: npt.NDArray[np.int64] = (local // 3600 + 3 * 24) % HOURS
    return slots


_SIGNALS = {
    "opens_and_clicks": ("events", "occurred_at"),
    "orders": ("transactions", "transacted_at"),
}
