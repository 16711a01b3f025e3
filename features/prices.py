"""Percentiles of list unit prices within their category, against frozen reference prices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from features.grains import Workbench

MOST_POINTS = 500  # of a category
MOST_IN_ALL = 50_000
BILLION = 1_000_000_000
MOST_STEPS = 200_000
LARGEST = float(np.finfo(float).max)
# category -> [prices in millionths, ascending; share of the reference at or below each]
Prices = dict[str, list[list[float]]]


def fit_prices(work: Workbench) -> Prices:
    """Reference prices of each category, from the purchase lines of valid orders.

    Every distinct price where a category has few; else the prices at evenly spaced ranks.
    """
    items = work.items.filter(work.items.category.notnull() & (work.items.units > 0))
    priced = items.select("category", price=(items.paid + items.discount) / items.units)
    counted = priced.group_by(["category", "price"]).agg(n=priced.count())
    categories = work.scratch.fetch(items.agg(n=items.category.nunique()))["n"][0].as_py()
    most = max(10, min(MOST_POINTS, MOST_IN_ALL // max(categories, 1)))
    of_category = ibis.window(group_by=counted.category)
    so_far = ibis.cumulative_window(group_by=counted.category, order_by=counted.price)
    ranked = counted.mutate(
        upto=counted.n.sum().over(so_far),
        total=counted.n.sum().over(of_category),
        prices=counted.count().over(of_category),
    )
    # The first price at or above each of the ranks 1/most, 2/most, ... 1.
    reached = (ranked.upto / ranked.total + 1e-12) * most
    before = ((ranked.upto - ranked.n) / ranked.total + 1e-12) * most
    kept = ranked.filter((ranked.prices <= most) | (reached.floor() > before.floor()))
    found: Prices = {}
    table = work.scratch.fetch(kept.select("category", "price", "upto", "total"))
    for row in table.sort_by([("category", "ascending"), ("price", "ascending")]).to_pylist():
        at, share = found.setdefault(row["category"], [[], []])
        at.append(row["price"])
        share.append(row["upto"] / row["total"])
    return found


def with_percentile(work: Workbench, lines: ir.Table) -> ir.Table:
    """Lines (category, price in millionths) with `percentile`: billionths of the reference below
    the price, plus half of those equal; NULL where the category is NULL or not in the reference.

    Whole numbers, so that their sum is the same in any order.
    """
    prices = work.frozen.prices
    if not prices:
        return lines.mutate(percentile=ibis.null("float64"))
    steps, scale, last = _steps(prices)
    known = work.scratch.keep(work.scratch.load(steps))
    bucket = ibis.ifelse(lines.price > 0, lines.price, 0.0).sqrt().sqrt() * scale
    lines = lines.mutate(bucket=ibis.ifelse(bucket < last, bucket, last).floor())
    joined = lines.left_join(
        known,
        [
            lines.category == known.of,
            lines.bucket == known.bucket,
            lines.price >= known.low,
            lines.price <= known.high,
        ],
    )
    own = [name for name in lines.columns if name != "bucket"]
    return joined.select(*(lines[name] for name in own), percentile=known.percentile)


def _steps(prices: Prices) -> tuple[pa.Table, float, int]:
    """The percentile as a step function, cut into buckets in which a price finds its step.

    Columns: of (category), bucket, low, high (of the step, both included), percentile. A price is
    of the bucket floor(sqrt(sqrt(price)) * scale), at most the last one; roots are rounded alike on
    every machine, and they spread cheap prices over more buckets than dear ones.
    """
    most = max(own[-1] for own, _ in prices.values())
    buckets = int(np.clip(MOST_STEPS // len(prices), 16, 1024))
    scale = buckets / np.sqrt(np.sqrt(max(most, 1.0)))
    parts = []
    for name, (own, upto) in prices.items():
        at, share = np.array(own), np.array(upto)
        left = np.concatenate([[0.0], share[:-1]])
        low = np.concatenate([[-LARGEST], np.nextafter(at, np.inf), at])
        high = np.concatenate([np.nextafter(at, -np.inf), [LARGEST], at])
        value = np.concatenate([left, [share[-1]], (left + share) / 2])
        # No price lies between neighbours without a number between them.
        there = low <= high
        low, high, value = low[there], high[there], value[there]
        first, last = (
            np.minimum(np.sqrt(np.sqrt(np.maximum(x, 0.0))) * scale, buckets - 1).astype(np.int64)
            for x in (low, high)
        )
        times = last - first + 1
        again = np.repeat(np.arange(len(low)), times)
        of_run = np.arange(len(again)) - np.repeat(np.cumsum(times) - times, times)
        parts.append(
            pa.table(
                {
                    "of": pa.array([name] * len(again), type=pa.string()),
                    "bucket": first[again] + of_run,
                    "low": low[again],
                    "high": high[again],
                    "percentile": np.round(value[again] * BILLION),
                }
            )
        )
    return pa.concat_tables(parts), float(scale), buckets - 1
