"""Orders and lines of one moment, from the sums per day and the facts of lines that the store has.

Days whose last line lies before the moment are taken as they are: their orders were summed when
they were taken in. Only the lines of the day that the moment falls into are summed anew. A line
finds its order by a whole number. Nothing is worked out again that a day's files say; the store is
DuckDB's, so its queries are plain SQL, which needs no compiling.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.config import Config
from features.engines import table_of
from features.localtime import EPOCH
from features.orders import OF_LINES, STATE
from features.parsing import literal
from features.spine import Scratch, Spine, forever, seen_before
from features.store.bought import NUMBERS, Bools, Bought, Ints, Orders, found_in
from features.store.days import AGGREGATES, COLUMNS, FACTS, LINES, SHIFT
from features.store.manifest import Manifest, settings_digests

_serial = itertools.count()
_TIME = dt.Timestamp(scale=6)
_STATE = {name: ibis.dtype(FACTS[name]) for name in STATE}
_VERSIONS = {"order": dt.int64, "customer": dt.int32, "day": dt.int64, "order_at": _TIME}
_VERSIONS |= {"since": _TIME, "valid": dt.boolean} | _STATE
_SUMS = ", ".join(f"{AGGREGATES[name]}({name}) AS {name}" for name in ("is_return", *STATE))
_SUMS_OF_LINES = ", ".join(
    f"{AGGREGATES[name]}(_{name}) AS {name}" for name in ("is_return", *STATE)
)
_NAMES = ", ".join(("is_return", *STATE))
_DAY = f"(_order >> {SHIFT}) - 2"


@lru_cache(maxsize=4)
def _schema(columns: tuple[str, ...]) -> ibis.Schema:
    """Of columns of `lines`; made once, because a small day takes little longer."""
    return ibis.Schema.from_pyarrow(pa.schema([LINES.field(name) for name in columns]))


@dataclass(frozen=True)
class Store:
    """A state of the store, readable in a connection (a DuckDB backend of Ibis)."""

    backend: Any
    folder: Path
    manifest: Manifest

    def make_view(self, name: str) -> ir.Table:
        """Make the table transactions as a view."""
        # Data files never change, so what their ends say need not be read twice.
        self.backend.con.execute("SET parquet_metadata_cache = true")
        lines = self.read("lines", self.manifest.days)
        # Without a condition the engine counts lines without reading them.
        where = "WHERE NOT _repeat" if any(d.repeats for d in self.manifest.days.values()) else ""
        query = f"SELECT {', '.join(COLUMNS)} FROM {lines} {where}"
        self.backend.con.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
        return table_of(self.backend, name, _schema(COLUMNS))

    def before(self, spine: Spine, config: Config, scratch: Scratch) -> Moment | None:
        """What the store has of a spine of one moment; None where it does not fit the question."""
        fits = settings_digests(config, self.manifest.people, numbered=self.manifest.numbered)
        if not spine.single or scratch.con is not self.backend or fits != self.manifest.settings:
            return None
        whole, cut = self._split(spine.latest)
        return Moment(self, whole, cut, spine, scratch) if whole else None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns of orders.OF_LINES that a file has."""
        given = {name for file in self.manifest.files.values() for name in file.given}
        return tuple(name for name in OF_LINES if name in given)

    @property
    def first(self) -> datetime:
        """The time of the first line, naive UTC."""
        return min(day.first for day in self.manifest.days.values())

    @property
    def years(self) -> tuple[int, int]:
        """Of the first and the last line, UTC."""
        return self.first.year, max(day.last for day in self.manifest.days.values()).year

    def customers(self, moment: datetime) -> pa.ChunkedArray:
        """Ids of customers seen before a moment (naive UTC), some more than once."""
        whole, cut = self._split(moment)
        chunks: list[pa.Array] = []
        for file in self.files("orders", whole):
            ids = pq.ParquetFile(file, read_dictionary=["customer_id"]).read(["customer_id"])
            chunks += [chunk.dictionary for chunk in ids["customer_id"].chunks]
        for file in self.files("lines", cut):
            lines = pq.ParquetFile(file).read(["customer_id", "transacted_at"])
            seen = seen_before(lines["transacted_at"].to_numpy(), np.datetime64(moment))
            chunks += lines["customer_id"].filter(pa.array(seen)).chunks
        return pa.chunked_array(chunks, type=pa.string())

    def _split(self, moment: datetime) -> tuple[list[str], list[str]]:
        """The days before a moment, and those after that begin before it."""
        days = self.manifest.days
        open_days = [name for name, day in days.items() if not seen_before(day.last, moment)]
        whole = [name for name in days if not open_days or name < open_days[0]]
        cut = [n for n in days if n not in whole and seen_before(days[n].first, moment)]
        return whole, cut

    def files(self, kind: str, days: Iterable[str]) -> list[Path]:
        """The data files of days."""
        return [Path(file) for file in self._files(kind, days)]

    def _files(self, kind: str, days: Iterable[str]) -> list[str]:
        # Text is quicker than paths, and there may be thousands of days.
        return [f"{self.folder}/{getattr(self.manifest.days[day], kind)}" for day in days]

    def read(self, kind: str, days: Iterable[str]) -> str:
        """The data files of days, as a relation."""
        listed = ", ".join(map(literal, self._files(kind, days)))
        return f"read_parquet([{listed}])"


@dataclass(frozen=True)
class Moment:
    """Orders and lines of a spine's single moment.

    `whole`: the days before; `cut`: the days after, of whose lines those before the moment count.
    """

    store: Store
    whole: Sequence[str]
    cut: Sequence[str]
    spine: Spine
    scratch: Scratch

    def _keep(self, query: str, columns: Iterable[str] = ()) -> str:
        """The rows of a query (these columns of it) as a table until the build ends; its name."""
        name = f"_store_{next(_serial)}"
        listed = ", ".join(f'"{column}"' for column in columns) or "*"
        con = self.store.backend.con
        con.execute("SET preserve_insertion_order = false")
        try:
            con.execute(f"CREATE TEMP TABLE {name} AS SELECT {listed} FROM ({query})")
        finally:
            con.execute("SET preserve_insertion_order = true")
        self.scratch.names.append(name)
        return name

    @cached_property
    def _customers(self) -> str:
        return str(self.spine.customers.get_name())

    @cached_property
    def _cut(self) -> str:
        """Lines of the day of the moment that lie before it, with the customer's code; a query."""
        lines = f"SELECT * FROM {self.store.read('lines', self.cut)}"
        if not self.cut:  # nothing, with the same columns
            lines = f"SELECT * FROM {self.store.read('lines', self.whole[-1:])} WHERE false"
        name = f"_store_{next(_serial)}"
        backend = self.store.backend
        backend.con.execute(f"CREATE TEMP VIEW {name} AS {lines}")
        table = table_of(backend, name, _schema(tuple(LINES.names)))
        seen = backend.compile(table.filter(seen_before(table.transacted_at, self.spine.latest)))
        known = "NOT _repeat AND (_bought OR _is_return)"
        kept = f"SELECT * FROM ({seen}) JOIN {self._customers} USING (customer_id) WHERE {known}"
        found = self._keep(kept)
        backend.con.execute(f"DROP VIEW {name}")
        return found

    @cached_property
    def _shares(self) -> str:
        """Shares of orders: of each day before, and of the day of the moment, without a number."""
        query = f"""
            SELECT customer, _order, order_id, hash(order_id) AS code, {_DAY} AS day,
                order_at, since, {_NAMES}
            FROM {self.store.read("orders", self.whole)} JOIN {self._customers} USING (customer_id)
            UNION ALL
            SELECT customer, NULL, order_id, hash(order_id),
                min({_DAY}) FILTER (_bought),
                min(transacted_at) FILTER (_bought), max(transacted_at), {_SUMS_OF_LINES}
            FROM {self._cut} GROUP BY customer, order_id"""
        return self._keep(query)

    @cached_property
    def _parts(self) -> str:
        """Shares of orders that have several or one without a number.

        Few orders are of several days, so all but these are spared the merging. Two orders of one
        hash come here too, and are merged each by itself.
        """
        query = f"""
            SELECT * FROM {self._shares} SEMI JOIN (
                SELECT customer, code FROM {self._shares} GROUP BY customer, code
                HAVING count(*) > 1 OR count(_order) = 0
            ) USING (customer, code)"""
        return self._keep(query)

    @cached_property
    def _merged(self) -> str:
        """Orders of `_parts`; `order` is below 0."""
        query = f"""
            SELECT customer, order_id, -row_number() OVER () AS "order",
                min(day) FILTER (order_at IS NOT NULL) AS day,
                min(order_at) AS order_at, max(since) AS since, {_SUMS}
            FROM {self._parts} GROUP BY customer, order_id"""
        return self._keep(query)

    @cached_property
    def _versions(self) -> str:
        """All orders; `order` is the number that their lines bear, or that of `_merged`."""
        names = f"customer, day, order_at, since, {_NAMES}"
        query = f"""
            SELECT "order", {names}, NOT (is_return AND paid + linked <= 0) AS valid
            FROM (
                SELECT _order AS "order", {names}
                FROM {self._shares} ANTI JOIN {self._parts} USING (customer, code)
                UNION ALL SELECT "order", {names} FROM {self._merged}
            ) WHERE order_at IS NOT NULL"""
        return self._keep(query, tuple(_VERSIONS))

    @cached_property
    def versions(self) -> ir.Table:
        """All orders, as `orders.only_versions` gives those of several lines."""
        versions = table_of(self.store.backend, self._versions, ibis.schema(_VERSIONS))
        # A return that comes before its order, or without one, is no order.
        return versions.mutate(version=versions.order, until=forever())

    @cached_property
    def returns(self) -> ir.Table:
        """Returns, none with a number of an order."""
        # Of an order's returns of one day together: they have the day, and money adds up.
        query = f"""
            SELECT customer, since AS "at", day, linked FROM {self._shares}
            WHERE is_return AND _order IS NOT NULL
            UNION ALL
            SELECT customer, transacted_at, {_DAY}, _linked FROM {self._cut} WHERE _is_return"""
        schema = {"customer": dt.int32, "at": _TIME, "day": dt.int64, "linked": dt.float64}
        returns = table_of(self.store.backend, self._keep(query, schema), ibis.schema(schema))
        nothing = {name: ibis.literal(0.0) for name in ("paid", "discount", "units")}
        return returns.mutate(
            **nothing,
            order=ibis.null("int64"),
            bought=ibis.literal(False),
            is_return=ibis.literal(True),
            kinds=ibis.literal(0, type="int64"),
            threshold=ibis.null("float64"),
            online=ibis.literal(False),
            mobile=ibis.literal(False),
        )

    @cached_property
    def bought(self) -> Bought:
        """Purchase lines of valid orders."""
        con = self.store.backend.con
        valid = con.sql(
            f'SELECT "order", customer, order_at, day, paid FROM {self._versions} WHERE valid '
            "ORDER BY order_at"
        ).to_arrow_table()
        number = valid["order"].to_numpy()
        by_number = np.argsort(number)

        def place(orders: pa.ChunkedArray) -> tuple[Ints, Bools]:
            found, known = found_in(number[by_number], orders.to_numpy())
            return (by_number[found] if len(number) else found), known

        # Lines of merged orders bear the numbers of their parts.
        parts = con.sql(
            f"""SELECT _order, "order" FROM {self._parts} JOIN {self._merged}
            USING (customer, order_id) WHERE _order IS NOT NULL"""
        ).to_arrow_table()
        of_parts, known = place(parts["order"])
        alone = np.flatnonzero(number > 0)
        numbers = np.concatenate([number[alone], parts["_order"].to_numpy()[known]])
        owners = np.concatenate([alone, of_parts[known]])
        ascending = np.argsort(numbers)
        orders = Orders(
            customer=valid["customer"].to_numpy(),
            at=valid["order_at"].cast(pa.int64()).to_numpy(),
            day=valid["day"].to_numpy(),
            paid=valid["paid"].to_numpy(),
            number=numbers[ascending],
            owner=owners[ascending],
        )
        listed = ", ".join((*self.store.columns, *(f"_{name} AS {name}" for name in NUMBERS)))
        cut = con.sql(
            f"""SELECT "order", {listed} FROM {self._cut} JOIN {self._merged}
            USING (customer, order_id) WHERE _bought"""
        ).to_arrow_table()
        of_cut, known = place(cut["order"])
        cut = cut.append_column("place", pa.array(of_cut)).filter(pa.array(known))
        days = self.store.manifest.days
        return Bought(
            *(self.store.files("lines", self.whole), self.store.columns, orders, cut),
            cut_files=self.store.files("lines", self.cut),
            start=(date.fromisoformat(min(days)) - EPOCH).days,
            today=self.spine.earliest_day,
        )

    @cached_property
    def items(self) -> ir.Table:
        """Purchase lines of valid orders, as `Workbench.items`."""
        items = ibis.memtable(self.bought.lines())
        # Every row is of before the moment.
        return items.mutate(since=items.order_at, until=forever())

    def novel_days(self) -> ir.Table:
        """As `Bought.novel_days`."""
        return ibis.memtable(self.bought.novel_days())

    def products(self, days: int, launch_days: int, first_days: int) -> ir.Table:
        """As `Bought.products`."""
        return ibis.memtable(self.bought.products(days, launch_days, first_days))

    def favourites(self, column: str, days: int) -> ir.Table:
        """As `Bought.favourites`."""
        return ibis.memtable(self.bought.favourites(column, days))
