"""Percentiles of list unit prices within their category, against frozen reference prices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from features.grains import Workbench

MOST_POINTS = 500  # of a category
MOST_IN_ALL = 50_000
BILLION = 1_000_000_000
# DuckDB takes no NULL from a function.
UNKNOWN = -1
# category -> [prices in millionths, ascending; share of the reference at or below each]
Prices = dict[str, list[list[float]]]


def fit_prices(work: Workbench) -> Prices:
    """Reference prices of each category, from the purchase lines of valid orders.

    Every distinct price where a category has few; else the prices at evenly spaced ranks.
    """
    items = work.items.filter(work.items.category.notnull() & (work.items.units > 0))
    priced = items.select("category", price=(items.paid + items.discount) / items.units)
    counted = priced.group_by(["category", "price"]).agg(n=priced.count()).to_pyarrow()
    category = np.array(counted["category"].to_pylist(), dtype=object)
    price, n = counted["price"].to_numpy(), counted["n"].to_numpy()
    order = np.lexsort((price, category.astype(str)))
    category, price, n = category[order], price[order], n[order]
    names, starts = np.unique(category.astype(str), return_index=True)
    most = max(10, min(MOST_POINTS, MOST_IN_ALL // max(len(names), 1)))
    found: Prices = {}
    for name, first, last in zip(names, starts, [*starts[1:], len(price)], strict=True):
        upto = np.cumsum(n[first:last]) / n[first:last].sum()
        own = price[first:last]
        if len(own) > most:
            kept = np.unique(np.searchsorted(upto, np.linspace(1 / most, 1, most) - 1e-12))
            own, upto = own[kept], upto[kept]
        found[str(name)] = [own.tolist(), upto.tolist()]
    return found


def percentile(work: Workbench, category: ir.Value, price: ir.Value) -> ir.Value:
    """Billionths of the reference below a price, plus half of those equal; NULL where the
    category is NULL or not in the reference. Whole, so that their sum is the same in any order."""
    prices = work.frozen.prices
    if not prices:
        return ibis.null("int64")
    found = work.scratch.function(_looked_up(prices), (str, float), int)(category, price)
    return found.nullif(UNKNOWN)


def _looked_up(prices: Prices) -> Any:
    points = {
        name: (np.array(price), np.concatenate([[0.0], upto]))
        for name, (price, upto) in prices.items()
    }

    def look_up(category: Any, price: Any) -> pa.Array:
        coded = _one(category).dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        asked = _one(price).to_numpy(zero_copy_only=False)
        found: npt.NDArray[np.int64] = np.full(len(asked), UNKNOWN, dtype=np.int64)
        for code, name in enumerate(coded.dictionary.to_pylist()):
            if name in points:
                own = np.flatnonzero(codes == code)
                at, upto = points[name]
                left, right = (upto[np.searchsorted(at, asked[own], s)] for s in ("left", "right"))
                found[own] = np.round((left + right) / 2 * BILLION).astype(np.int64)
        return pa.array(found)

    return look_up


def _one(values: Any) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
