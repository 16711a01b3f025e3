"""Sorted rows of whole numbers, and favourites of few orders by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.store import bought
from features.store.bought import Bought, Orders, SortedRows
from features.store.days import LINES, SHIFT


@pytest.mark.parametrize("bits", [63, 3], ids=["one number", "columns"])
def test_rows_are_sorted_by_all_columns(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    monkeypatch.setattr(bought, "BITS", bits)
    rng = np.random.default_rng(3)
    columns = [rng.integers(0, n, 500) for n in (5, 1, 9, 3)]
    rows = SortedRows(*columns)
    want = sorted(zip(*(column.tolist() for column in columns), strict=True))
    got = [rows.column(i).tolist() for i in range(4)]
    assert list(zip(*got, strict=True)) == want
    for n in range(1, 5):
        starts = [i for i, row in enumerate(want) if i == 0 or row[:n] != want[i - 1][:n]]
        assert rows.starts(n).tolist() == starts
        assert rows.take(rows.starts(n)).column(2).tolist() == [want[i][2] for i in starts]
    assert len(rows.take(rows.starts(3))) == len({row[:3] for row in want})


def test_no_rows_are_no_runs() -> None:
    none = np.array([], dtype=np.int64)
    assert len(SortedRows(none, none).starts(2)) == 0


def of_two_orders(folder: Path, numbers: list[int]) -> Bought:
    """A customer's orders 1 and 2, of day 9 and paid in this order; the orders of `numbers` are
    valid. Lines of order 1: a x, b x, a y; of order 2: b y, and NULL."""
    first = 9 + 2 << SHIFT
    values = {
        "product_id": ["a", "b", "a", "b", None],
        "category": ["x", "x", "y", "y", None],
        "_order": [first, first, first, first + 1, first + 1],
        "_bought": [True] * 5,
        "_repeat": [False] * 5,
        **dict.fromkeys(("_paid", "_discount", "_units"), [1.0] * 5),
    }
    table = pa.table({f.name: pa.array(values.get(f.name, [None] * 5), f.type) for f in LINES})
    pq.write_table(table, folder / "day.parquet")
    n = len(numbers)
    orders = Orders(
        np.zeros(n, dtype=np.int64),
        np.arange(n),
        np.full(n, 9),
        np.ones(n),
        np.array([first + i - 1 for i in numbers], dtype=np.int64),
        np.arange(n),
    )
    texts = dict.fromkeys(("product_id", "category"), pa.array([], pa.string()))
    numbers_of_none = dict.fromkeys(("paid", "discount", "units"), pa.array([], pa.float64()))
    cut = pa.table({"place": pa.array([], pa.int64())} | texts | numbers_of_none)
    files = [folder / "day.parquet"]
    return Bought(files, ("product_id", "category"), orders, cut, (), 0, 20)


def test_the_value_of_most_orders_then_the_latest(tmp_path: Path) -> None:
    found = of_two_orders(tmp_path, [1, 2])
    rows = [{"row": 0, "distinct": 2, "favourite": "y", "orders": 2}]
    assert found.favourites("category", 365).to_pylist() == rows
    # b is in both orders; of one order alone, a and b are equal but for the alphabet.
    assert found.favourites("product_id", 365).to_pylist() == [rows[0] | {"favourite": "b"}]
    first = of_two_orders(tmp_path, [1])
    row = {"row": 0, "distinct": 2, "favourite": "a", "orders": 1}
    assert first.favourites("product_id", 365).to_pylist() == [row]
    # 11 days are too long ago.
    assert first.favourites("product_id", 10).to_pylist() == []
    assert first.favourites("product_id", 11).num_rows == 1


def test_lines_and_launches_of_products(tmp_path: Path) -> None:
    found = of_two_orders(tmp_path, [1, 2]).products(365, 30, 5).to_pylist()
    assert [row["product_id"] for row in found] == ["a", "b", None]
    assert [row["lines"] for row in found] == [2, 2, 1]
    assert [row["launched"] for row in found] == [2, 2, 0]
    assert {(row["row"], row["days"]) for row in found} == {(0, 1)}
    early = of_two_orders(tmp_path, [1, 2]).products(365, 30, 10)
    assert early["launched"].to_pylist() == [0, 0, 0]
    # b was first sold in an order that does not count; that was its launch all the same.
    second = of_two_orders(tmp_path, [2]).products(365, 30, 5)
    assert second["launched"].to_pylist() == [1, 0]
    assert of_two_orders(tmp_path, [1]).novel_days().to_pylist() == [{"row": 0, "day": 9}]


def test_without_a_valid_order_there_is_nothing(tmp_path: Path) -> None:
    none = of_two_orders(tmp_path, [])
    for table in (none.novel_days(), none.products(365, 30, 60), none.favourites("category", 365)):
        assert table.num_rows == 0
    assert none.lines().num_rows == 0
