"""One row of features per customer from order lines: the catalogue, beside Polars, SQL and pandas.

The peers compute twenty features that anybody would write by hand; ours computes what of the whole
catalogue these lines can give, through the same door as training and scoring. Every way runs in a
process of its own on the same Parquet file and reports its seconds and peak memory.

With `--full` a second table shows how our cost grows with the lines: 1 and 10 million, and as many
as `--rows` says.

Usage: python -m benchmarks.features --way sql --lines 1000000
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.report import Options, apart, peak_memory, text_table

LINES = 1_000_000
FULL = 10_000_000
FOLDER = Path("data/benchmarks")
AS_OF = datetime(2024, 12, 1)
WINDOWS = (7, 30, 90, 180, 365)
KINDS = ("lines", "spend")
PART = 1_000_000
ROWS = 125_000  # of a row group: enough groups for all cores
COLUMNS = ("customer_id", "order_id", "transacted_at", "amount", "discount", "category")
OUR_MODULES = ("features.build", "features.config", "features.frozen", "features.sources")
# Names by the rules (docs/features.md) and what the peers call the same numbers.
SAME = {"spend_365d": "spend_365", "categories_365d": "categories"}


def make_lines(folder: Path, n: int) -> Path:
    """Write transactions.parquet with n order lines of n/20 customers in 2024, if it is missing.

    Customer, time and basket are uniform (n/20, the year, n/3), category over 24, channel over 4;
    amount is gamma(2, 20), discount on a fifth of the lines gamma(1, 5). Ids are whole numbers. A
    basket's lines belong to several customers, so for us, who count orders per customer, nearly
    every line is an order.
    """
    path = folder / "transactions.parquet"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    start = np.datetime64("2024-01-01", "us")
    aside = path.with_suffix(".tmp")
    writer = None
    for first in range(0, n, PART):
        m = min(PART, n - first)
        part = pa.table(
            {
                "customer_id": rng.integers(0, max(n // 20, 1), m),
                "order_id": rng.integers(0, max(n // 3, 1), m),
                "transacted_at": start + rng.integers(0, 366 * 86_400, m).astype("timedelta64[s]"),
                "amount": rng.gamma(2.0, 20.0, m),
                "discount": np.where(rng.random(m) < 0.2, rng.gamma(1.0, 5.0, m), 0.0),
                "category": rng.integers(0, 24, m),
                "channel": rng.integers(0, 4, m),
            }
        )
        writer = writer or pq.ParquetWriter(aside, part.schema, compression="zstd")
        writer.write_table(part, row_group_size=ROWS)
    if writer is not None:
        writer.close()
    os.replace(aside, path)
    return path


def floor(path: Path) -> dict[str, float]:
    """Read the six columns and add each up: nothing can be faster."""
    import duckdb

    found = (
        duckdb.connect()
        .execute(
            f"""
        SELECT count(*), sum(amount), sum(discount), sum(epoch_us(transacted_at) % 7),
               sum(customer_id), sum(order_id), sum(category)
        FROM '{path}'
        """
        )
        .fetchall()
    )
    return {"lines_read": float(found[0][0])}


def sql(path: Path) -> dict[str, float]:
    """The twenty in one DuckDB statement."""
    import duckdb

    windows = ", ".join(
        f"count(*) FILTER (age <= {d}) AS lines_{d}, "
        f"coalesce(sum(amount) FILTER (age <= {d}), 0) AS spend_{d}"
        for d in WINDOWS
    )
    frame = (
        duckdb.connect()
        .execute(
            f"""
        WITH lines AS (
            SELECT *, epoch(TIMESTAMP '{AS_OF}' - transacted_at) / 86400 AS age
            FROM '{path}' WHERE transacted_at < TIMESTAMP '{AS_OF}'
        )
        SELECT customer_id, min(age) AS last_days, max(age) AS first_days, count(*) AS lines,
               sum(amount) AS spend, stddev_samp(amount) AS amount_sd,
               avg((isodow(transacted_at) >= 6)::INT) AS weekend_share,
               avg((discount > 0)::INT) AS discounted_share, sum(discount) AS discount,
               count(DISTINCT category) AS categories, count(DISTINCT order_id) AS baskets,
               {windows}
        FROM lines GROUP BY customer_id
        """
        )
        .df()
    )
    return _sums(frame.drop(columns="customer_id"))


def pandas(path: Path) -> dict[str, float]:
    """The twenty as a careful user of pandas writes them: helper columns, one groupby."""
    import pandas as pd

    lines = pd.read_parquet(path, columns=list(COLUMNS))
    lines = lines[lines["transacted_at"] < pd.Timestamp(AS_OF)]
    age = (pd.Timestamp(AS_OF) - lines["transacted_at"]).dt.total_seconds() / 86_400
    lines = lines.assign(
        age=age,
        weekend=lines["transacted_at"].dt.day_of_week >= 5,
        discounted=lines["discount"] > 0,
        **{f"lines_{d}": (age <= d).astype(float) for d in WINDOWS},
        **{f"spend_{d}": lines["amount"].where(age <= d, 0.0) for d in WINDOWS},
    )
    frame = lines.groupby("customer_id").agg(
        last_days=("age", "min"),
        first_days=("age", "max"),
        lines=("amount", "size"),
        spend=("amount", "sum"),
        amount_sd=("amount", "std"),
        weekend_share=("weekend", "mean"),
        discounted_share=("discounted", "mean"),
        discount=("discount", "sum"),
        categories=("category", "nunique"),
        baskets=("order_id", "nunique"),
        **{f"{kind}_{d}": (f"{kind}_{d}", "sum") for d in WINDOWS for kind in KINDS},
    )
    return _sums(frame)


def polars(path: Path) -> dict[str, float]:
    """The twenty in Polars' streaming engine: helper columns, one group_by."""
    import polars as pl

    lines = pl.scan_parquet(path).filter(pl.col("transacted_at") < AS_OF)
    age = (pl.lit(AS_OF) - pl.col("transacted_at")).dt.total_seconds() / 86_400
    lines = lines.with_columns(
        age=age,
        weekend=(pl.col("transacted_at").dt.weekday() >= 6).cast(pl.Float64),
        discounted=(pl.col("discount") > 0).cast(pl.Float64),
    )
    lines = lines.with_columns(
        **{f"lines_{d}": (pl.col("age") <= d).cast(pl.UInt32) for d in WINDOWS},
        **{
            f"spend_{d}": pl.when(pl.col("age") <= d).then(pl.col("amount")).otherwise(0.0)
            for d in WINDOWS
        },
    )
    frame = (
        lines.group_by("customer_id")
        .agg(
            last_days=pl.col("age").min(),
            first_days=pl.col("age").max(),
            lines=pl.len(),
            spend=pl.col("amount").sum(),
            amount_sd=pl.col("amount").std(),
            weekend_share=pl.col("weekend").mean(),
            discounted_share=pl.col("discounted").mean(),
            discount=pl.col("discount").sum(),
            categories=pl.col("category").n_unique(),
            baskets=pl.col("order_id").n_unique(),
            **{f"{kind}_{d}": pl.col(f"{kind}_{d}").sum() for d in WINDOWS for kind in KINDS},
        )
        .collect(engine="streaming")
    )
    return {c: float(frame[c].sum()) for c in frame.columns if c != "customer_id"}


def catalogue(path: Path, parts: dict[str, float] | None = None) -> dict[str, float]:
    """Ours: tables read and checked, population values fitted, the catalogue at one moment."""
    from features.build import build_parts
    from features.config import validate
    from features.frozen import FrozenValues, fit_frozen
    from features.sources import open_source
    from features.spine import all_customers

    config = validate(
        {
            "name": "bench",
            "source": {"kind": "files", "path": str(path.parent), "as_of": f"{AS_OF}Z"},
            "outcome": {"kind": "profit", "margin_rate": 0.4},
            "features": {"set": "all", "holidays": ["2024-12-25"]},
        }
    )
    clock = [time.perf_counter()]
    tables = open_source(config).tables()
    clock.append(time.perf_counter())
    spine = all_customers(tables, AS_OF, config)
    # The first build of anything works the lines out for all builds from these tables.
    list(build_parts(tables, spine.iloc[:1], ["orders_total"], config, FrozenValues()))
    clock.append(time.perf_counter())
    frozen = fit_frozen(tables, AS_OF, config)
    clock.append(time.perf_counter())
    busy = time.process_time()
    start = time.perf_counter()
    found = dict.fromkeys(SAME, 0.0)
    for _, built in build_parts(tables, spine, None, config, frozen):
        found |= {name: found[name] + float(built.frame[name].sum()) for name in SAME}
    found = {SAME[name]: total for name, total in found.items()}
    if parts is not None:
        parts |= {
            "tables read and checked": clock[1] - clock[0],
            "lines worked out, once for all builds": clock[2] - clock[1],
            "population values fitted": clock[3] - clock[2],
            "catalogue": time.perf_counter() - start,
            "catalogue, CPU": time.process_time() - busy,
        }
    return found | {"features": float(built.frame.shape[1] - len(built.missing))}


def _sums(frame: Any) -> dict[str, float]:
    numbers = frame.select_dtypes("number")
    return {name: float(numbers[name].sum()) for name in numbers.columns}


WAYS: dict[str, tuple[str, Callable[[Path], dict[str, float]]]] = {
    "floor": ("read six columns (the floor)", floor),
    "sql": ("DuckDB, hand-written SQL, 20 features", sql),
    "pandas": ("pandas, 20 features", pandas),
    "polars": ("Polars, streaming, 20 features", polars),
    "catalogue": ("ours, the catalogue at one moment", catalogue),
}


def measure(way: str, path: Path) -> dict[str, Any]:
    """Seconds, those of the processors, peak memory in bytes, and sums of the columns."""
    # What is measured is the work, not the imports.
    ours = way == "catalogue"
    for module in ("duckdb", "pandas", *(OUR_MODULES if ours else ())):
        importlib.import_module(module)
    if way == "polars":
        importlib.import_module("polars")
    parts: dict[str, float] = {}
    started, busy = time.perf_counter(), time.process_time()
    found = catalogue(path, parts) if ours else WAYS[way][1](path)
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    whole = {"seconds": seconds, "cpu": cpu}
    if ours:
        seconds, cpu = parts.pop("catalogue"), parts.pop("catalogue, CPU")
    return {
        "seconds": seconds,
        "cpu": cpu,
        "peak": peak_memory(),
        "sums": found,
        "parts": parts,
        "whole": whole,
    }


def check(results: dict[str, dict[str, Any]]) -> None:
    """Raises AssertionError unless the ways agree on the sum of each column that they share."""
    truth = results["sql"]["sums"]
    for way, result in results.items():
        for name, total in result["sums"].items():
            if name in truth and not math.isclose(total, truth[name], rel_tol=1e-6):
                raise AssertionError(f"{name}: {way} {total}, sql {truth[name]}")


def run(options: Options, lines: int | None = None) -> str:
    """The suite's tables; the second only with `full`."""
    full = options.full and lines is None
    lines = lines or (FULL if options.full else LINES)
    make_lines(FOLDER / f"lines-{lines}", lines)
    results = {way: apart("features", way, lines, WAYS[way][0]) for way in WAYS}
    check(results)
    ours = results["catalogue"]
    peer = results["polars"]["seconds"]
    rows: list[list[str] | None] = [
        [
            label,
            f"{r['seconds'] / peer:.1f}",
            f"{r['seconds']:.2f}",
            f"{r['cpu']:.2f}",
            f"{r['peak'] / 2**30:.2f}",
        ]
        for label, r in ((WAYS[way][0], results[way]) for way in WAYS)
    ]
    rows += [
        [f"  before it: {part}", f"{seconds / peer:.1f}", f"{seconds:.2f}", "", ""]
        for part, seconds in ours["parts"].items()
    ]
    whole = ours["whole"]["seconds"]
    rows.append(["  all of it, from the file", f"{whole / peer:.1f}", f"{whole:.2f}", "", ""])
    computed = int(ours["sums"]["features"])
    table = text_table(
        f"Features: {lines:,} order lines of {lines // 20:,} customers, one moment",
        ("way", "times Polars", "seconds", "CPU seconds", "peak GiB"),
        rows,
        (
            f"Ours computes {computed} of the catalogue's features; the others need columns or "
            "tables that these",
            "lines lack (products, quantities, payments, coupons, exposures, events, customers).",
            "Checked: the sums of columns that two ways share agree "
            f"({', '.join(SAME)}; SQL, Polars and pandas: all 20).",
            "Seconds without imports; CPU seconds, of all threads, drift less on a busy machine.",
        ),
    )
    if not full:
        return table
    sizes = sorted({LINES, FULL, options.rows} - {0})
    found = {n: ours if n == lines else _ours(n) for n in sizes}
    return f"{table}\n\n{growth(found)}"


def _ours(lines: int) -> dict[str, Any]:
    make_lines(FOLDER / f"lines-{lines}", lines)
    return apart("features", "catalogue", lines, f"{WAYS['catalogue'][0]}, {lines:,} lines")


def growth(found: dict[int, dict[str, Any]]) -> str:
    """The cost of ours by the number of lines."""
    rows = []
    for lines, r in found.items():
        millions = lines / 1e6
        rows.append(
            [
                f"{lines:,}",
                f"{r['cpu']:.1f}",
                f"{r['cpu'] / millions:.2f}",
                f"{r['whole']['cpu']:.1f}",
                f"{r['whole']['cpu'] / millions:.2f}",
                f"{r['whole']['seconds']:.1f}",
                f"{r['peak'] / 1e9:.2f}",
            ]
        )
    return text_table(
        "Ours by the number of lines: CPU seconds of the catalogue, and of all from the file",
        ("lines", "catalogue", "a million", "all", "a million", "seconds", "peak GB"),
        rows,
        ("One customer for twenty lines; all: read and checked, lines worked out, values fitted.",),
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features")
    parser.add_argument("--way", choices=list(WAYS), required=True)
    parser.add_argument("--lines", type=int, default=LINES)
    arguments = parser.parse_args(argv)
    path = make_lines(FOLDER / f"lines-{arguments.lines}", arguments.lines)
    print(json.dumps(measure(arguments.way, path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
