"""The spine (customer, moment) and the one filter that keeps the future out.

Every row of every table that reaches a feature passes `seen_before`, through `visible` (many
moments at once) or `all_customers`. Nothing else in this package compares a row's time with a
moment to let it in.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.config import Config
from features.engines import engine_of
from features.errors import DataError
from features.localtime import local_days
from features.tables import Tables

FOREVER = datetime(9999, 12, 31)
TIMES = {
    "transactions": "transacted_at",
    "exposures": "assigned_at",
    "events": "occurred_at",
    "customers": "joined_at",
}
_serial = itertools.count()


def naive_utc(moment: datetime) -> datetime:
    """The same moment in UTC, without its zone; a time without a zone is UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def forever() -> ir.Value:
    """The `until` of a fact that no later row changes."""
    return ibis.literal(FOREVER, type="timestamp(6)")


def seen_before(time: ir.Value, as_of: Any) -> ir.Value:
    """The as-of filter: strictly earlier than the moment."""
    return time < as_of


@dataclass
class Scratch:
    """Intermediate relations of one connection, until the block ends."""

    con: Any
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = engine_of(self.con)

    def load(self, table: pa.Table) -> ir.Table:
        """A small table of the driver as a relation."""
        return self.engine.load(table, self._name())

    def keep(self, relation: ir.Table, by: str | None = None) -> ir.Table:
        """Compute a relation once; what is built on it reads the result.

        `by`: a column whose equal values should lie side by side, where that is of use.
        """
        return self.engine.keep(relation, self._name(), by)

    def fetch(self, relation: ir.Table) -> pa.Table:
        """The rows of a relation, in any order."""
        return self.engine.fetch(relation)

    def _name(self) -> str:
        self.names.append(f"_features_{next(_serial)}")
        return self.names[-1]

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self.names:
            self.engine.drop(name)
        self.names.clear()


@dataclass(frozen=True)
class Spine:
    """(row, customer, moment) in the engine.

    `rows`: row, customer (code), as_of (naive UTC), today (local day of as_of).
    `customers`: customer (code), customer_id; each customer of the spine once.
    `latest`: the last moment; `earliest_day`: the first local day of a moment.
    `single`: all rows have one moment, and each a customer of its own, whose code is its row.
    `today`: (rows,) local days of the moments. `people`: number of customers.
    """

    rows: ir.Table
    customers: ir.Table
    latest: datetime
    earliest_day: int
    single: bool
    today: npt.NDArray[np.int64]

    people: int

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.today)


def load_spine(frame: pd.DataFrame, zone: str, scratch: Scratch) -> Spine:
    """Check a spine frame (customer_id, as_of) and load it; codes stand for the text ids."""
    lacking = [name for name in ("customer_id", "as_of") if name not in frame.columns]
    if lacking:
        raise DataError(
            "spine",
            expected="the columns customer_id and as_of",
            found=f"no {' and no '.join(lacking)}",
            remedy="Add them.",
        )
    moments = pd.to_datetime(frame["as_of"], utc=True).dt.tz_localize(None)
    bad = np.flatnonzero(moments.isna() | frame["customer_id"].isna())
    if len(bad):
        raise DataError(
            "spine",
            expected="a customer_id and an as_of in every row",
            found=f"{len(bad)} rows without",
            remedy="Leave these rows out.",
            keys=bad.tolist(),
        )
    codes, ids = pd.factorize(frame["customer_id"].astype(str), sort=False)
    times = moments.to_numpy().astype("datetime64[us]")
    today = local_days(times, zone)
    rows = pa.table(
        {
            "row": np.arange(len(frame), dtype=np.int64),
            "customer": codes.astype(np.int32),
            "as_of": pa.array(times, type=pa.timestamp("us")),
            "today": today,
        }
    )
    customers = pa.table(
        {
            "customer": np.arange(len(ids), dtype=np.int32),
            "customer_id": pa.array(ids, type=pa.string()),
        }
    )
    return Spine(
        scratch.keep(scratch.load(rows)),
        scratch.keep(scratch.load(customers)),
        times.max().item() if len(times) else datetime(1970, 1, 1),
        int(today.min()) if len(today) else 0,
        single=len(ids) == len(frame) > 0 and bool(times.min() == times.max()),
        today=today,
        people=len(ids),
    )


def visible(spine: Spine, facts: ir.Table) -> ir.Table:
    """What each row of the spine may know: its customer's facts of before its moment.

    `facts` has customer, day (local), since (the time of the newest source row behind the fact)
    and until (the time of the first source row that changes it, or FOREVER). A fact is true at a
    moment when `since` is before it and `until` is not. Adds row, as_of, today, and age in days.
    """
    own = [name for name in facts.columns if name not in ("customer", "until")]
    if spine.single:
        seen = facts.filter(
            seen_before(facts.since, spine.latest) & ~seen_before(facts.until, spine.latest)
        )
        today = ibis.literal(spine.earliest_day, type="int64")
        return seen.select(
            row=seen.customer,
            as_of=ibis.literal(spine.latest, type="timestamp(6)"),
            today=today,
            age=today - seen.day,
            **{name: seen[name] for name in own},
        )
    rows = spine.rows
    joined = rows.join(
        facts,
        [
            rows.customer == facts.customer,
            seen_before(facts.since, rows.as_of),
            ~seen_before(facts.until, rows.as_of),
        ],
    )
    return joined.select(
        row=rows.row,
        as_of=rows.as_of,
        today=rows.today,
        age=rows.today - facts.day,
        **{name: facts[name] for name in own},
    )


def all_customers(tables: Tables, as_of: datetime, config: Config) -> pd.DataFrame:
    """The spine of every customer seen in any table before a moment, ordered by id.

    Columns customer_id, as_of, and the columns of `features.given`: from the customers table,
    else from the customer's latest exposure before the moment. A customer of the customers table
    without `joined_at` counts as seen.

    Raises:
        DataError: nobody was seen before the moment, or no transaction.
    """
    moment = naive_utc(as_of)
    frame = seen_customers(tables, moment)
    _refuse_too_early(tables, moment, len(frame))
    return _with_given(frame, tables, moment, config)


def seen_customers(tables: Tables, moment: datetime) -> pd.DataFrame:
    """Customers seen in any table before a moment (naive UTC), by id: customer_id, as_of."""
    seen = []
    chunks: list[pa.Array] = []
    for name, time in TIMES.items():
        table = getattr(tables, name)
        if table is None:
            continue
        if name == "transactions" and tables.store is not None:
            chunks += tables.store.customers(moment).chunks
            continue
        past = seen_before(table[time], moment)
        if name == "customers":
            past = past | table[time].isnull()
        seen.append(table.filter(past).select("customer_id").distinct())
    found = [table.to_pyarrow()["customer_id"].cast(pa.string()) for table in seen]
    chunks += [chunk for own in found for chunk in own.chunks]
    ids = pc.unique(pa.chunked_array(chunks, type=pa.string()))
    frame = pd.DataFrame({"customer_id": pd.Series(ids.take(pc.sort_indices(ids)), dtype="str")})
    frame["as_of"] = np.full(len(frame), moment, dtype="datetime64[us]")
    return frame


def _refuse_too_early(tables: Tables, moment: datetime, customers: int) -> None:
    for name, time in TIMES.items():
        table = getattr(tables, name)
        if table is None or name in ("customers", "events"):
            continue
        if name == "transactions" and tables.store is not None:
            first = tables.store.first
        else:
            first = table[time].min().to_pyarrow().as_py()
        if first is None or seen_before(first, moment):
            if first is not None:
                return
            continue
        if name == "transactions" or not customers:
            raise DataError(
                f"{name}.{time}",
                expected=f"rows before as_of {moment.isoformat()}Z",
                found=f"the first at {first.isoformat()}Z",
                remedy="Give a later --as-of (or source.as_of).",
            )
    if not customers:
        raise DataError(
            "source",
            expected=f"customers seen before as_of {moment.isoformat()}Z",
            found="none",
            remedy="Give tables with rows, or a later --as-of (or source.as_of).",
        )


def _with_given(
    frame: pd.DataFrame, tables: Tables, moment: datetime, config: Config
) -> pd.DataFrame:
    """Join the given columns; a column that neither table has is left out."""
    wanted = list(config.features.given)
    for table in (tables.customers, tables.exposures):
        columns = [] if table is None else [c for c in wanted if c in table.columns]
        if table is None or not columns:
            continue
        if "assigned_at" in table.columns:
            past = table.filter(seen_before(table["assigned_at"], moment))
            rows = past.select("customer_id", "assigned_at", "exposure_id", *columns).to_pyarrow()
            latest = rows.to_pandas().sort_values(["assigned_at", "exposure_id"], kind="stable")
        else:
            latest = table.select("customer_id", *columns).to_pyarrow().to_pandas()
        latest = latest.drop_duplicates("customer_id", keep="last")[["customer_id", *columns]]
        frame = frame.merge(latest, on="customer_id", how="left")
        wanted = [c for c in wanted if c not in columns]
    return frame
