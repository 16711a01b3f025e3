"""Percentiles of list unit prices within their category, against frozen reference prices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.types as ir
import numpy as np
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
    counted = priced.group_by(["category", "price"]).agg(n=priced.count())
    counted = work.scratch.fetch(counted)
    coded = _one(counted["category"]).dictionary_encode()
    names = np.array(coded.dictionary.to_pylist(), dtype=object)
    category = coded.indices.to_numpy()
    price, n = counted["price"].to_numpy(), counted["n"].to_numpy()
    order = np.lexsort((price, category))
    category, price, n = category[order], price[order], n[order]
    most = max(10, min(MOST_POINTS, MOST_IN_ALL // max(len(names), 1)))
    found: Prices = {}
    for code in np.argsort(names):
        first, last = np.searchsorted(category, [code, code + 1])
        upto = np.cumsum(n[first:last]) / n[first:last].sum()
        own = price[first:last]
        if len(own) > most:
            kept = np.unique(np.searchsorted(upto, np.linspace(1 / most, 1, most) - 1e-12))
            own, upto = own[kept], upto[kept]
        found[str(names[code])] = [own.tolist(), upto.tolist()]
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
    """The look-up as a function over Arrow arrays of categories and prices.

    It is called for some thousand rows at a time, so it does not loop over categories: a price
    becomes its rank among all reference prices, and (category, rank) one sorted whole number.
    """
    known = {name: code for code, name in enumerate(prices)}
    every = np.unique(np.concatenate([np.array(price) for price, _ in prices.values()]))
    width = len(every) + 1
    key = np.concatenate(
        [code * width + np.searchsorted(every, prices[name][0]) for name, code in known.items()]
    )
    # The share below the first price of a category is 0, whatever stands before it in the list.
    sizes = [len(price) for price, _ in prices.values()]
    start = np.concatenate([[0], np.cumsum(sizes)])
    upto = np.concatenate([[0.0], *([*share] for _, share in prices.values())])
    padded = np.append(every, np.inf)
    keyed = np.append(key, -1)

    def look_up(category: pa.Array, price: pa.Array) -> pa.Array:
        coded = _one(category).dictionary_encode()
        codes = np.array([known.get(name, -1) for name in coded.dictionary.to_pylist()] + [-1])
        code = codes[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        asked = _one(price).to_numpy(zero_copy_only=False)
        rank = np.searchsorted(every, asked)
        wanted = code * width + rank
        below = np.searchsorted(key, wanted)
        equal = (padded[rank] == asked) & (keyed[below] == wanted)
        first = start[code]
        left = np.where(below > first, upto[below], 0.0)
        right = np.where(equal, upto[np.minimum(below + 1, len(key))], left)
        share = np.round((left + right) / 2 * BILLION)
        return pa.array(np.where(code < 0, UNKNOWN, share).astype(np.int64))

    return look_up


def _one(values: Any) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
