"""The data files of a local day: its checked lines, and the sums of its share of every order.

`lines`: the columns of the table transactions, then `_source` and `_file` (where the line came
from: the column source, the digest of the file), `_order` (a number of the order, of this day
alone), `_repeat` (it repeats an earlier line and does not count), and FACTS, each after a `_`: what
`orders.line_facts` says of the line; of one that is no purchase and no return, NULL.

`orders`: one row per customer and order id: `_order`, customer_id, order_id, `order_at` (first
purchase line), `since` (last line), is_return and orders.STATE, of the lines of this day. Merging
the days of an order gives the order (`snapshot`).

Rows are sorted by all columns, so the same rows give the same bytes, whenever they were taken in.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.config import Config
from features.contracts import TRANSACTIONS
from features.localtime import EPOCH, utc_offsets
from features.orders import STATE, line_facts
from features.store.manifest import Day

COLUMNS = tuple(name for name in TRANSACTIONS.names if name != "source")
# Days are worked on together up to so many rows.
MOST_ROWS = 2_000_000
# An order's number is the day's, shifted, plus its rank in the day; no day's numbers begin at 0.
SHIFT = 32
_COUNTED = "_store_counted"
_TRUTH, _NUMBER, _TIME = pa.bool_(), pa.float64(), pa.timestamp("us")
FACTS = {
    "bought": _TRUTH,
    "is_return": _TRUTH,
    **dict.fromkeys(("paid", "discount", "units", "linked"), _NUMBER),
    "kinds": pa.int64(),
    "threshold": _NUMBER,
    "online": _TRUTH,
    "mobile": _TRUTH,
}
_SQL = {_TRUTH: "BOOLEAN", _NUMBER: "DOUBLE", pa.int64(): "BIGINT"}
# How the lines of an order, or its days, are summed.
AGGREGATES = {
    **dict.fromkeys(("paid", "discount", "units", "linked"), "sum"),
    **{"kinds": "bit_or", "threshold": "max"},
    **dict.fromkeys(("is_return", "online", "mobile"), "bool_or"),
}
_KINDS = {"time": _TIME, "number": _NUMBER}
LINES = pa.schema(
    [
        *((name, _KINDS.get(TRANSACTIONS[name].kind, pa.string())) for name in COLUMNS),
        ("_source", pa.string()),
        ("_file", pa.string()),
        ("_order", pa.int64()),
        ("_repeat", _TRUTH),
        *((f"_{name}", kind) for name, kind in FACTS.items()),
    ]
)
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Lines of days that are to be written: a table of the connection.

    It has COLUMNS, `_source`, `_file`, and `_day` (days since 1970-01-01). `sizes`: number of lines
    by day.
    """

    backend: Any
    table: str
    sizes: Mapping[int, int]


def iso(day: int) -> str:
    """The date of days since 1970-01-01."""
    return (EPOCH + timedelta(days=day)).isoformat()


def write_days(rows: Rows, folder: Path, config: Config, *, drop: bool) -> dict[str, Day]:
    """Write the data files of every day in the rows; what they are, by date.

    `drop`: identical lines are repeats that do not count. Nothing that exists is changed.
    """
    found: dict[str, Day] = {}
    for first, last in _groups(rows):
        lines = _sorted(rows, first, last, config)
        day = _numbers(lines["_day"])
        same = _same(lines, day)
        start = ~_unchanged(lines, day, ("customer_id", "order_id"))
        order = np.cumsum(start) - 1
        of_day = np.searchsorted(day, day[start])
        number = (day[start] + 2 << SHIFT) + np.arange(start.sum()) - order[of_day]
        repeat = same if drop else np.zeros_like(same)
        extra = {"_order": pa.array(number[order]), "_repeat": pa.array(repeat)}
        for name, values in extra.items():
            lines = lines.append_column(name, values)
        orders = lines.select(["customer_id", "order_id"]).filter(pa.array(start))
        orders = orders.append_column("_order", pa.array(number))
        for name, values in _sums(lines, np.flatnonzero(start)).items():
            orders = orders.append_column(name, values)
        times = lines["transacted_at"].to_numpy()
        lines = lines.select(LINES.names).cast(LINES)
        of_orders = (_numbers(orders["_order"]) >> SHIFT) - 2
        for one in np.unique(day):
            low, high = np.searchsorted(day, [one, one + 1])
            among = np.searchsorted(of_orders, [one, one + 1])
            spare = int(same[low:high].sum())
            found[iso(int(one))] = Day(
                _written(lines.slice(low, high - low), folder, "lines", iso(int(one))),
                _written(
                    orders.slice(among[0], among[1] - among[0]), folder, "orders", iso(int(one))
                ),
                times[low:high].min().item(),
                times[low:high].max().item(),
                int(high - low) - (spare if drop else 0),
                spare if drop else 0,
                0 if drop else spare,
            )
    return found


def _groups(rows: Rows) -> Iterator[tuple[int, int]]:
    """First and last day of groups of days that are not too large together."""
    counted = sorted(rows.sizes.items())
    first, total = 0, 0
    for i, (_, n) in enumerate(counted):
        if i > first and total + n > MOST_ROWS:
            yield counted[first][0], counted[i - 1][0]
            first, total = i, 0
        total += n
    if counted:
        yield counted[first][0], counted[-1][0]


def _sorted(rows: Rows, first: int, last: int, config: Config) -> pa.Table:
    """Lines of days, sorted by all their columns, with FACTS."""
    columns = (*COLUMNS, "_source", "_file")
    listed = ", ".join(f"t.{name}" for name in ("_day", *columns))
    facts = ", ".join(f"CAST(f.{n} AS {_SQL[kind]}) AS _{n}" for n, kind in FACTS.items())
    # The file comes last: of identical lines the one of the first digest counts.
    keys = ("_day", "customer_id", "order_id", "transacted_at", "line_id", "product_id", *columns)
    order = ", ".join(f"t.{name}" for name in keys)
    days = f"FROM {rows.table} AS t WHERE _day BETWEEN {first} AND {last}"
    return (
        rows.backend.con.sql(
            f"WITH {_COUNTED} AS (SELECT rowid AS _row, {', '.join(COLUMNS)} {days}) "
            f"SELECT {listed}, {facts} FROM (SELECT rowid AS _row, * {days}) AS t "
            f"LEFT JOIN ({_facts_query(config.model_dump_json())}) AS f USING (_row) "
            f"ORDER BY {order}"
        )
        .to_arrow_table()
        .combine_chunks()
    )


def _numbers(column: pa.ChunkedArray) -> Ints:
    numbers: Ints = column.to_numpy().astype(np.int64)
    return numbers


def _unchanged(lines: pa.Table, day: Ints, columns: Sequence[str]) -> Bools:
    """Whether each row has the same day and values as the row before it; NULL equals NULL."""
    same = np.zeros(len(day), dtype=bool)
    same[1:] = day[1:] == day[:-1]
    for name in columns:
        left, right = lines[name][1:], lines[name][:-1]
        equal = pc.fill_null(pc.equal(left, right), False)
        both = pc.and_(pc.is_null(left), pc.is_null(right))
        same[1:] &= pc.or_(equal, both).to_numpy()
    return same


def _same(lines: pa.Table, day: Ints) -> Bools:
    """Whether each row repeats the row before it; the rows are sorted by all columns."""
    return _unchanged(lines, day, (*COLUMNS, "_source"))


@lru_cache(maxsize=4)
def _facts_query(settings: str) -> str:
    """The query of FACTS of purchases and returns, by `_row`; to compile it takes longer than to
    run it over a day."""
    config = Config.model_validate_json(settings)
    columns = {name: ibis.dtype(LINES.field(name).type) for name in COLUMNS}
    counted = ibis.table({"_row": "int64", **columns}, name=_COUNTED)
    # The local day of a line is known.
    utc = utc_offsets("UTC", 1970, 1970)
    facts, constants = line_facts(counted, config, utc, frozenset(), keys=("_row",))
    return str(ibis.to_sql(facts.mutate(**constants).select("_row", *FACTS), "duckdb"))


def _sums(lines: pa.Table, start: Ints) -> dict[str, pa.Array]:
    """Of each order, whose lines begin at `start`: order_at, since, is_return and STATE."""
    facts = {name: lines[f"_{name}"] for name in FACTS}
    known = pc.and_(facts["bought"].is_valid(), pc.invert(lines["_repeat"])).to_numpy()
    bought = known & facts["bought"].fill_null(False).to_numpy()
    at = _numbers(lines["transacted_at"])
    last = np.iinfo(np.int64).max
    order_at = np.minimum.reduceat(np.where(bought, at, last), start)
    since = np.maximum.reduceat(np.where(known, at, -last), start)
    found = {
        "order_at": pa.array(order_at, pa.int64(), mask=order_at == last).cast(_TIME),
        "since": pa.array(since, pa.int64(), mask=since == -last).cast(_TIME),
    }
    for name in ("is_return", *STATE):
        column, kind = facts[name], AGGREGATES[name]
        if kind == "max":
            highest = np.where(known, column.fill_null(np.nan).to_numpy(), np.nan)
            highest = np.fmax.reduceat(highest, start)
            found[name] = pa.array(highest, mask=np.isnan(highest))
        else:
            none = pa.scalar(0).cast(column.type)
            add = {"sum": np.add, "bit_or": np.bitwise_or, "bool_or": np.logical_or}[kind]
            counted = np.where(known, column.fill_null(none).to_numpy(), none.as_py())
            found[name] = pa.array(add.reduceat(counted, start))
    return found


def _written(table: pa.Table, folder: Path, kind: str, day: str) -> str:
    """Write a data file under the name of its digest, unless it is there; its relative path."""
    aside = folder / kind / f".{day}.{os.getpid()}"
    pq.write_table(table, aside, compression="lz4", store_schema=False)
    with aside.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    name = f"{kind}/{day}-{digest}.parquet"
    os.replace(aside, folder / name)
    return name
