"""Purchase lines of valid orders as arrays, and what features of products and favourites ask of
them.

An engine groups millions of lines by hashing, which walks through memory at random, and texts cost
it more. Here texts are numbers, which the data files have them as already, and rows are sorted by
one whole number that is made of their columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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
BITS = 63  # of a number that is not below 0
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
        """Positions of the orders of a day's lines, and which lines have one."""
        # A day's orders are numbered without gaps, and there are fewer than lines.
        first, last = number[0], number[-1]
        place, known = found_in(self.number, np.arange(first, last + 1))
        if len(self.owner):
            place = self.owner[place]
        return place[number - first], known[number - first]


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
    def _first_day(self) -> int:
        return int(self.orders.day.min(initial=self.today))

    @cached_property
    def _product_days(self) -> SortedRows:
        """Customer, product, and days since the first of each line."""
        product = self._text(PRODUCT).code
        return SortedRows(self.customer, product, self.day - self._first_day)

    def novel_days(self) -> pa.Table:
        """Order days with a product new to the customer: row, day; each once."""
        rows = self._product_days
        # Days of a product ascend, so its first row is its first day.
        first = rows.starts(2)
        first = first[rows.column(1, first) < self._text(PRODUCT).nothing]
        days = SortedRows(rows.column(0, first), rows.column(2, first))
        once = days.starts(2)
        return pa.table(
            {"row": days.column(0, once), "day": days.column(1, once) + self._first_day}
        )

    def products(self, days: int, launch_days: int, first_days: int) -> pa.Table:
        """Products of orders in so many days: row, product_id, days, lines, launched.

        `launched`: lines of at most `launch_days` after the product's first sale to anybody, unless
        that was in the first `first_days` of the data.
        """
        rows, values = self._product_days, self._text(PRODUCT)
        recent = np.flatnonzero(rows.column(2) >= self.today - days - self._first_day)
        if len(recent) < len(rows):
            rows = rows.take(recent)
        product, day = rows.column(1), rows.column(2) + self._first_day
        launch = self._lines.launched.days(values)
        known = (launch != _NEVER) & (launch - self.start >= first_days)
        young = known[product] & (day - launch[product] <= launch_days)
        start = rows.starts(2)
        on_days = np.searchsorted(start, rows.starts(3), side="right") - 1
        return pa.table(
            {
                "row": rows.column(0, start),
                "product_id": Coded(product[start].astype(np.int32), values.values).texts,
                "days": np.bincount(on_days, minlength=len(start)),
                "lines": np.diff(np.append(start, len(rows))),
                "launched": _reduced(np.add, young.astype(np.int64), start),
            }
        )

    # --- favourites ---

    def favourites(self, column: str, days: int) -> pa.Table:
        """As relations of favourites: row, distinct, favourite, orders; of orders in so many days.

        The favourite is the value of most orders; ties: latest order, then alphabetical.
        """
        values = self._text(column)
        some = np.flatnonzero((values.code < values.nothing) & (self.day >= self.today - days))
        # Orders are in order of time, so the greatest position is the latest.
        rows = SortedRows(self.customer[some], values.code[some], self.order[some])
        rows = rows.take(rows.starts(3))
        start = rows.starts(2)
        orders = np.diff(np.append(start, len(rows)))
        latest = self.orders.at[rows.column(2, start + orders - 1)]
        customer, code = rows.column(0, start), rows.column(1, start)
        own = np.flatnonzero(_changed(customer))
        distinct = np.diff(np.append(own, len(customer)))
        best = np.ones(len(customer), dtype=bool)
        for rank in (orders, latest, -code):
            ranked = np.where(best, rank, -_NEVER)
            best &= ranked == np.repeat(_reduced(np.maximum, ranked, own), distinct)
        return pa.table(
            {
                "row": customer[own],
                "distinct": distinct,
                "favourite": values.values.take(pa.array(code[best])),
                "orders": orders[best],
            }
        )


class SortedRows:
    """Rows of whole numbers of at least 0, sorted by the first column, then by the second, and so
    on.

    Where their bits fit, the columns (rows,) are one number, of which a sort is quick.
    """

    def __init__(self, *columns: npt.NDArray[np.integer[Any]]) -> None:
        self.widths = [int(column.max(initial=0)).bit_length() for column in columns]
        self.key: Ints | None = None
        self.columns: list[Ints] = []  # where there is no key
        if sum(self.widths) > BITS:
            order = np.lexsort(columns[::-1])
            self.columns = [column[order].astype(np.int64) for column in columns]
        else:
            self.key = columns[0].astype(np.int64)
            for column, width in zip(columns[1:], self.widths[1:], strict=True):
                self.key <<= width
                self.key |= column
            self.key.sort()

    def __len__(self) -> int:
        return len(self.columns[0] if self.key is None else self.key)

    def starts(self, n: int) -> Ints:
        """Positions where a row differs from the one before it in its first n columns."""
        if self.key is None:
            return np.flatnonzero(_changed(*self.columns[:n]))
        return np.flatnonzero(_changed(self.key >> sum(self.widths[n:])))

    def column(self, i: int, at: Ints | slice = slice(None)) -> Ints:
        """The values of a column, at some positions."""
        if self.key is None:
            return self.columns[i][at]
        return (self.key[at] >> sum(self.widths[i + 1 :])) & ((1 << self.widths[i]) - 1)

    def take(self, at: Ints) -> SortedRows:
        """Rows at ascending positions."""
        found = copy(self)
        if self.key is None:
            found.columns = [column[at] for column in self.columns]
        else:
            found.key = self.key[at]
        return found


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


def _changed(*columns: Ints) -> Bools:
    """Whether a row differs from the one before it."""
    other = np.zeros(len(columns[0]), dtype=bool)
    other[:1] = True
    for column in columns:
        other[1:] |= column[1:] != column[:-1]
    return other


def _reduced(how: np.ufunc, values: Ints, start: Ints) -> Ints:
    """Values of groups that begin at these positions."""
    found: Ints = how.reduceat(values, start) if len(start) else values[:0]
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
