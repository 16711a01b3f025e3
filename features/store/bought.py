"""Purchase lines of valid orders as arrays, and what features of products and favourites ask of
them.

An engine groups millions of lines by hashing, which walks through memory at random, and texts cost
it more. Here texts are numbers, which the data files have them as already, and rows are sorted by
one whole number that is made of their columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.orders import OF_LINES
from features.store.days import SHIFT

KEYS = ("_order", "_bought", "_repeat")
NUMBERS = ("paid", "discount", "units")
PRODUCT = "product_id"
EAGER = (PRODUCT, "category", "channel")
_NEVER = np.iinfo(np.int64).max
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Orders:
    """Valid orders, one array per column, in order of time; money in millionths.

    `at`: order_at in microseconds since 1970. `number`: the numbers, ascending, that lines of whole
    days bear for them; `owner`: position of the order of each number.
    """

    customer: Ints
    at: Ints
    day: Ints
    paid: Floats
    number: Ints
    owner: Ints

    def find(self, number: Ints) -> tuple[Ints, Bools]:
        """Positions of the orders of lines, and which lines have one."""
        place, known = found_in(self.number, number)
        return (self.owner[place] if len(self.owner) else place), known


@dataclass(frozen=True)
class Coded:
    """A column of texts: rank of the value among `values`, which ascend; `nothing` where NULL."""

    code: npt.NDArray[np.int32]
    values: pa.Array

    @property
    def nothing(self) -> int:
        """The code of NULL, above all others."""
        return len(self.values)

    @property
    def texts(self) -> pa.DictionaryArray:
        """The column for the engine."""
        indices = pa.array(self.code, mask=self.code == self.nothing)
        return pa.DictionaryArray.from_arrays(indices, self.values)


@dataclass(frozen=True)
class Bought:
    """Purchase lines of valid orders.

    `files`: data files of lines of the days before; `columns`: those of OF_LINES that they have.
    `cut`: such lines of the day of the moment, in memory: `place` of their order, `columns` and
    NUMBERS. `cut_files`: that day's, and of days after it that begin before the moment.
    `start`: the first local day of all; `today`: that of the moment.
    """

    files: Sequence[Path]
    columns: Sequence[str]
    orders: Orders
    cut: pa.Table
    cut_files: Sequence[Path]
    start: int
    today: int

    @cached_property
    def _lines(self) -> _Lines:
        """The lines, with the columns that most features ask for: each file is opened once."""
        texts = [name for name in EAGER if name in self.columns]
        rows, places, found, launched = [], [], _Chunks(texts, self.cut), _Launched()
        for file in self.files:
            table = found.read(file, KEYS)
            number, bought = table["_order"].to_numpy(), _true(table["_bought"])
            place, known = self.orders.find(number)
            rows.append(np.flatnonzero(known & bought & ~_true(table["_repeat"])))
            places.append(place[rows[-1]])
            if PRODUCT in texts:
                launched.add(table, bought)
            found.add(table, rows[-1])
        for file in self.cut_files if PRODUCT in texts else ():
            table = pq.ParquetFile(file, read_dictionary=[PRODUCT]).read([*KEYS, PRODUCT])
            launched.add(table, _true(table["_bought"]))
        places.append(self.cut["place"].to_numpy())
        return _Lines(np.concatenate(places), rows, found.columns(), launched)

    def _text(self, name: str) -> Coded:
        """(lines,) A column of OF_LINES."""
        columns = self._lines.columns
        if name not in columns:
            found = _Chunks([name], self.cut, ())
            for file, rows in zip(self.files, self._lines.rows, strict=True):
                found.add(found.read(file, ()), rows)
            columns |= found.columns()
        column = columns[name]
        assert isinstance(column, Coded)
        return column

    @property
    def order(self) -> Ints:
        """(lines,) The position of the order of each line."""
        return self._lines.order

    @cached_property
    def customer(self) -> Ints:
        """(lines,) The customer's code."""
        return self.orders.customer[self.order]

    @cached_property
    def day(self) -> Ints:
        """(lines,) The local day of the order."""
        return self.orders.day[self.order]

    def lines(self) -> pa.Table:
        """The lines for the engine: customer, order_at, day, order_paid, OF_LINES and NUMBERS."""
        columns = {
            "customer": self.customer,
            "order_at": pa.array(self.orders.at[self.order]).cast(pa.timestamp("us")),
            "day": self.day,
            "order_paid": self.orders.paid[self.order],
        }
        nothing = pa.nulls(len(self.order), pa.string())
        for name in OF_LINES:
            columns[name] = self._text(name).texts if name in self.columns else nothing
        return pa.table(columns | {name: self._lines.columns[name] for name in NUMBERS})

    # --- products ---

    @cached_property
    def _product_days(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Customer, product and day of each product on an order day, sorted so; lines of it."""
        first = self.orders.day.min(initial=self.today)
        columns = (self.customer, self._text(PRODUCT).code, self.day - first)
        customer, product, day = sorted_rows(*columns)
        start = _starts(customer, product, day)
        lines = np.diff(np.append(start, len(day)))
        return customer[start], product[start], day[start] + first, lines

    def novel_days(self) -> pa.Table:
        """Order days with a product new to the customer: row, day; each once."""
        customer, product, day, _ = self._product_days
        # Days of a product ascend, so its first row is its first day.
        first = _starts(customer, product)
        first = first[product[first] < self._text(PRODUCT).nothing]
        low = day.min(initial=self.today)
        row, novel = sorted_rows(customer[first], day[first] - low)
        once = _starts(row, novel)
        return pa.table({"row": row[once], "day": novel[once] + low})

    def products(self, days: int, launch_days: int, first_days: int) -> pa.Table:
        """Products of orders in so many days: row, product_id, days, lines, launched.

        `launched`: lines of at most `launch_days` after the product's first sale to anybody, unless
        that was in the first `first_days` of the data.
        """
        customer, product, day, lines = self._product_days
        recent = np.flatnonzero(day >= self.today - days)
        customer, product, day = customer[recent], product[recent], day[recent]
        lines = lines[recent]
        launch = self._lines.launched.days(self._text(PRODUCT))
        known = (launch != _NEVER) & (launch - self.start >= first_days)
        young = known[product] & (day - launch[product] <= launch_days)
        start = _starts(customer, product)
        sums = {
            "days": np.diff(np.append(start, len(day))),
            "lines": _sums(lines, start),
            "launched": _sums(np.where(young, lines, 0), start),
        }
        values = self._text(PRODUCT)
        of_groups = Coded(product[start].astype(np.int32), values.values).texts
        return pa.table({"row": customer[start], "product_id": of_groups, **sums})

    # --- favourites ---

    def favourites(self, column: str, days: int) -> pa.Table:
        """As relations of favourites: row, distinct, favourite, orders; of orders in so many days.

        The favourite is the value of most orders; ties: latest order, then alphabetical.
        """
        values = self._text(column)
        some = (values.code < values.nothing) & (self.day >= self.today - days)
        # Orders are in order of time, so the greatest position is the latest.
        columns = (self.customer[some], values.code[some], self.order[some])
        customer, code, order = sorted_rows(*columns)
        once = _starts(customer, code, order)
        customer, code, order = customer[once], code[once], order[once]
        start = _starts(customer, code)
        last = np.append(start[1:], len(order)) - 1
        orders, latest = last - start + 1, self.orders.at[order[last]]
        customer, code = customer[start], code[start]
        own = _starts(customer)
        distinct = np.diff(np.append(own, len(customer)))
        best = np.ones(len(customer), dtype=bool)
        for rank in (orders, latest, -code):
            ranked = np.where(best, rank, -_NEVER)
            best &= ranked == np.repeat(_highest(ranked, own), distinct)
        return pa.table(
            {
                "row": customer[own],
                "distinct": distinct,
                "favourite": values.values.take(pa.array(code[best])),
                "orders": orders[best],
            }
        )


@dataclass(frozen=True)
class _Lines:
    """`order` of each line, its position; `rows`: which rows of each file the lines are."""

    order: Ints
    rows: list[Ints]
    columns: dict[str, Coded | Floats]
    launched: _Launched


class _Chunks:
    """Columns that are read file by file: texts as numbers, and NUMBERS."""

    def __init__(self, texts: Sequence[str], cut: pa.Table, numbers: Sequence[str] = NUMBERS):
        self.texts, self.cut = texts, cut
        self.raw = {name: name for name in texts} | {name: f"_{name}" for name in numbers}
        self.chunks: dict[str, list[pa.Array]] = {name: [] for name in self.raw}

    def read(self, file: Path, also: Sequence[str]) -> pa.Table:
        """The columns of a file, and others."""
        names = [*also, *self.raw.values()]
        return pq.ParquetFile(file, read_dictionary=self.texts).read(names)

    def add(self, table: pa.Table, rows: Ints) -> None:
        """Rows of what `read` gave."""
        some = table.select(list(self.raw.values()))
        if len(rows) < len(some):
            some = some.unify_dictionaries().take(pa.array(rows))
        for name, raw in self.raw.items():
            self.chunks[name] += some[raw].chunks

    def columns(self) -> dict[str, Coded | Floats]:
        """The columns of all rows, those of the day of the moment at the end."""
        found: dict[str, Coded | Floats] = {}
        for name in self.raw:
            cut, chunks = self.cut[name], self.chunks.pop(name)
            if name in self.texts:
                found[name] = _coded(pa.chunked_array([*chunks, *cut.dictionary_encode().chunks]))
            else:
                found[name] = np.concatenate([c.to_numpy() for c in [*chunks, *cut.chunks]])
        return found


class _Launched:
    """When products were first sold to anybody; files are added by day."""

    def __init__(self) -> None:
        self.names: list[pa.Array] = []
        self.on: list[int] = []

    def add(self, table: pa.Table, bought: Bools) -> None:
        """The lines of a day; which of them are purchases."""
        day = (table["_order"][0].as_py() >> SHIFT) - 2
        chunks = table[PRODUCT].chunks  # of a dictionary each
        ends = np.cumsum([len(chunk) for chunk in chunks])
        for chunk, of_chunk in zip(chunks, np.split(bought, ends[:-1]), strict=True):
            sold = np.zeros(len(chunk.dictionary) + 1, dtype=bool)
            sold[pc.fill_null(chunk.indices, len(chunk.dictionary)).to_numpy()[of_chunk]] = True
            self.names.append(chunk.dictionary.filter(pa.array(sold[:-1])))
            self.on += [day] * len(self.names[-1])

    def days(self, product: Coded) -> Ints:
        """The local day of the first sale by code of the product; _NEVER of no product."""
        days = np.full(len(product.values) + 1, _NEVER)
        if self.names:
            code = pc.index_in(pa.chunked_array(self.names), product.values)
            # From the last to the first: the first day stays.
            days[code.fill_null(product.nothing).to_numpy()[::-1]] = self.on[::-1]
        days[-1] = _NEVER
        return days


def found_in(ascending: Ints, wanted: Ints) -> tuple[Ints, Bools]:
    """Positions of wanted numbers in ascending ones, and whether each is there."""
    place = np.searchsorted(ascending, wanted)
    if not len(ascending):
        return place, np.zeros(len(wanted), dtype=bool)
    place = np.minimum(place, len(ascending) - 1)
    return place, ascending[place] == wanted


def sorted_rows(*columns: npt.NDArray[np.integer]) -> tuple[Ints, ...]:
    """Rows of columns (n,) of whole numbers of at least 0, sorted by the first column, then by the
    second, and so on; each column of the result (n,)."""
    widths = [int(column.max(initial=0)).bit_length() for column in columns]
    if sum(widths) > 63:
        order = np.lexsort(columns[::-1])
        return tuple(column[order].astype(np.int64) for column in columns)
    key = columns[0].astype(np.int64)
    for column, width in zip(columns[1:], widths[1:], strict=True):
        key <<= width
        key |= column
    key.sort()
    found = []
    for width in reversed(widths):
        found.append(key & ((1 << width) - 1))
        key >>= width
    return tuple(reversed(found))


def _starts(*columns: Ints) -> Ints:
    """Positions where a row differs from the one before it."""
    other = np.zeros(len(columns[0]), dtype=bool)
    other[:1] = True
    for column in columns:
        other[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(other)


def _sums(values: Ints, start: Ints) -> Ints:
    found: Ints = np.add.reduceat(values, start) if len(start) else values[:0]
    return found


def _highest(values: Ints, start: Ints) -> Ints:
    found: Ints = np.maximum.reduceat(values, start) if len(start) else values[:0]
    return found


def _true(column: pa.ChunkedArray) -> Bools:
    found: Bools = pc.fill_null(column, False).to_numpy()
    return found


def _coded(column: pa.ChunkedArray) -> Coded:
    whole = column.unify_dictionaries().combine_chunks()
    order = pc.sort_indices(whole.dictionary)
    rank = np.empty(len(order) + 1, dtype=np.int32)
    rank[order.to_numpy()] = np.arange(len(order))
    rank[-1] = len(order)
    return Coded(
        rank[pc.fill_null(whole.indices, len(order)).to_numpy()], whole.dictionary.take(order)
    )
