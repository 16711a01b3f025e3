"""Price percentiles by a join with steps, against the definition."""

from __future__ import annotations

import ibis
import numpy as np
import pyarrow as pa
import pytest

from features.frozen import FrozenValues
from features.grains import Workbench
from features.prices import BILLION, Prices, with_percentile
from features.spine import Scratch


class _Bench:
    """What `with_percentile` uses of a workbench."""

    def __init__(self, scratch: Scratch, prices: Prices) -> None:
        self.scratch, self.frozen = scratch, FrozenValues(prices=prices)


def by_definition(prices: Prices, category: str | None, price: float) -> float | None:
    """Share of the reference below, plus half of those equal, in billionths."""
    if category not in prices:
        return None
    at, upto = np.array(prices[category][0]), np.array([0.0, *prices[category][1]])
    below, upto_equal = upto[(at < price).sum()], upto[(at <= price).sum()]
    return float(np.round((below + upto_equal) / 2 * BILLION))


@pytest.mark.parametrize(("categories", "points"), [(1, 1), (3, 4), (40, 60), (15_000, 2)])
def test_every_price_finds_its_step(categories: int, points: int) -> None:
    rng = np.random.default_rng(categories)
    prices: Prices = {}
    for c in range(categories):
        at = np.unique(np.round(rng.lognormal(15, 3, points)))
        share = np.cumsum(rng.random(len(at)) + 0.01)
        prices[f"c{c}"] = [at.tolist(), (share / share[-1]).tolist()]
    prices["free"] = [[0.0, np.nextafter(0.0, 1.0), 5.0], [0.25, 0.5, 1.0]]
    names = [None, "unknown", "free", *(f"c{c}" for c in range(min(categories, 40)))]
    edges = [0.0, -3.0, 1e-9, 1e300, 5.0, np.nextafter(5.0, 0.0)]
    rows = []
    for name in names:
        at = np.array(prices.get(str(name), [[1.0]])[0])
        near = [*at, *np.nextafter(at, 0.0), *np.nextafter(at, np.inf), *(at * 1.5)]
        rows += [(name, float(price)) for price in [*near, *edges]]
    lines = pa.table(
        {"category": pa.array([r[0] for r in rows], pa.string()), "price": [r[1] for r in rows]}
    )
    with Scratch(ibis.duckdb.connect()) as scratch:
        bench: Workbench = _Bench(scratch, prices)  # type: ignore[assignment]
        loaded = scratch.load(lines.append_column("number", pa.array(range(len(rows)))))
        found = scratch.fetch(with_percentile(bench, loaded)).sort_by("number")
    assert found.num_rows == len(rows)
    expected = [by_definition(prices, *row) for row in rows]
    assert found["percentile"].to_pylist() == expected
