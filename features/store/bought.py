"""Purchase lines of valid orders as arrays, and what features of products and favourites ask of
them.

An engine groups millions of lines by hashing, which walks through memory at random, and texts cost
it more. Here texts are numbers, which the data files have them as already, and rows are sorted by
one whole number that is made of their columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        texts = {name: _Texts() for name in EAGER if name in self.columns}
        numbers: dict[str, list[Floats]] = {name: [] for name in NUMBERS}
        rows, places, sold = [], [], []
        for file in self.files:
            table = _read(file, texts, (*KEYS, *(f"_{name}" for name in NUMBERS)))
            number, bought = table["_order"].to_numpy(), _true(table["_bought"])
            place, known = self.orders.find(number)
            own = np.flatnonzero(known & bought & ~_true(table["_repeat"]))
            rows.append(own)
            places.append(place[own])
            for name, found in numbers.items():
                found.append(table[f"_{name}"].to_numpy()[own])
            for name, text in texts.items():
                code = text.add(table[name], own)
                if name == PRODUCT:
                    sold.append((_day(number), code[bought]))
        for file in self.cut_files if PRODUCT in texts else ():
            table = _read(file, [PRODUCT], KEYS)
            code = texts[PRODUCT].add(table[PRODUCT], rows=None)
            sold.append((_day(table["_order"].to_numpy()), code[_true(table["_bought"])]))
        order = np.concatenate([*places, self.cut["place"].to_numpy()])
        columns = {name: text.coded(self.cut[name]) for name, text in texts.items()}
        amounts = {
            name: np.concatenate([*found, self.cut[name].to_numpy()])
            for name, found in numbers.items()
        }
        launched = texts[PRODUCT].earliest(sold) if PRODUCT in texts else np.array([_NEVER])
        return _Lines(order, rows, columns, amounts, launched)

    def _text(self, name: str) -> Coded:
        """(lines,) A column of OF_LINES."""
        columns = self._lines.texts
        if name not in columns:
            found = _Texts()
            for file, rows in zip(self.files, self._lines.rows, strict=True):
                found.add(_read(file, [name], ())[name], rows)
            columns[name] = found.coded(self.cut[name])
        return columns[name]

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
        return pa.table(columns | self._lines.numbers)

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
        launch = self._lines.launched
        known = (launch != _NEVER) & (launch - self.start >= first_days)
        young = known[product] & (day - launch[product] <= launch_days)
        start = rows.starts(2)
        return pa.table(
            {
                "row": rows.column(0, start),
                "product_id": Coded(product[start].astype(np.int32), values.values).texts,
                "days": _reduced(np.add, rows.changed(3).astype(np.int64), start),
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

    def changed(self, n: int) -> Bools:
        """Whether a row differs from the one before it in its first n columns."""
        if self.key is None:
            return _changed(*self.columns[:n])
        return _changed(self.key >> sum(self.widths[n:]))

    def starts(self, n: int) -> Ints:
        """Positions where a row differs from the one before it in its first n columns."""
        return np.flatnonzero(self.changed(n))

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
    """`order` of each line, its position; `rows`: which rows of each file the lines are.

    `launched`: local day of the first sale to anybody by code of the product; _NEVER of none.
    """

    order: Ints
    rows: list[Ints]
    texts: dict[str, Coded]
    numbers: dict[str, Floats]
    launched: Ints


class _Texts:
    """A column of texts that is read file by file.

    A file has each of its texts once, and for each row a place among them. Places count on from
    file to file, with one more per file for NULL; what text is at a place is settled at the end.
    """

    def __init__(self) -> None:
        self.dictionaries: list[pa.Array] = []
        self.places: list[Ints] = []
        self.size = 0

    def add(self, column: pa.ChunkedArray, rows: Ints | None) -> Ints:
        """Places of all rows of a file, of which these rows (None: no row) are of the column."""
        found = []
        for chunk in column.chunks:
            texts = len(chunk.dictionary)
            found.append(pc.fill_null(chunk.indices, texts).to_numpy() + self.size)
            self.dictionaries.append(chunk.dictionary)
            self.size += texts + 1
        places: Ints = np.concatenate(found)
        if rows is not None:
            self.places.append(places[rows])
        return places

    def coded(self, cut: pa.ChunkedArray) -> Coded:
        """The column, these texts at its end."""
        if len(cut):
            self.add(cut.dictionary_encode(), np.arange(len(cut)))
        rank, values = self._rank
        places = np.concatenate(self.places) if self.places else np.zeros(0, dtype=np.int64)
        return Coded(rank[places], values)

    @cached_property
    def _rank(self) -> tuple[npt.NDArray[np.int32], pa.Array]:
        """The rank of the text at each place, and all texts, ascending."""
        texts = pa.chunked_array(self.dictionaries, pa.string()).combine_chunks()
        coded = texts.dictionary_encode()
        order = pc.sort_indices(coded.dictionary)
        ranks = np.empty(len(order), dtype=np.int32)
        ranks[order.to_numpy()] = np.arange(len(order))
        found = np.full(self.size, len(order), dtype=np.int32)
        nulls = np.cumsum([len(own) + 1 for own in self.dictionaries]) - 1
        there = np.ones(self.size, dtype=bool)
        there[nulls] = False
        found[there] = ranks[coded.indices.to_numpy()]
        return found, coded.dictionary.take(order)

    def earliest(self, sold: Sequence[tuple[int, Ints]]) -> Ints:
        """Of days, ascending, with places of rows: the first day of each text, _NEVER of NULL."""
        rank, values = self._rank
        days = np.full(self.size, _NEVER)
        for day, places in sold:
            days[places] = day
        found = np.full(len(values) + 1, _NEVER)
        np.minimum.at(found, rank, days)
        found[-1] = _NEVER
        return found


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


def _read(file: Path, texts: Iterable[str], others: Sequence[str]) -> pa.Table:
    """Columns of a data file, the texts as places among its distinct texts."""
    texts = list(texts)
    return pq.ParquetFile(file, read_dictionary=texts).read([*texts, *others])


def _day(number: Ints) -> int:
    """The local day whose lines bear these numbers."""
    return int(number[0] >> SHIFT) - 2
