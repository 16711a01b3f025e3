"""The incremental store: a hundred daily ingests beside one of everything, and snapshots.

A shop whose customers come on a tenth of the days and then place two orders of five lines each; the
file of a day has the lines of that local day, among them the returns of what was bought the day
before. Then the file in the middle comes again with another amount. Every measurement runs in a
process of its own, without the loading of the program; checked: the store that grew day by day has
the same data files as the one made at once, the correction leaves those of other days alone, and
both snapshots are equal.

Usage: python -m benchmarks.ingest --way daily --lines 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.report import Options, apart, peak_memory, text_table

LINES = 1_000_000
FULL = 10_000_000
FOLDER = Path("data/benchmarks")
DAYS = 100
VISITS = 0.1  # share of days on which a customer comes
ORDERS, BASKET = 2, 5
PRODUCTS, CATEGORIES = 2_000, 24
ZONE = "Asia/Shanghai"
START = datetime(2024, 7, 31, 16)  # midnight there
ENDS = START + timedelta(days=DAYS)
WAYS = {
    "once": "ingest of all days at once",
    "daily": f"{DAYS} daily ingests",
    "corrected": f"one day of {DAYS} corrected, by itself",
    "raw": "snapshot from the files",
    "store": "snapshot from the store",
}


def make_days(folder: Path, lines: int) -> Path:
    """Write a file of order lines per day below `folder`, about so many in all, if missing."""
    if folder.is_dir():
        return folder
    rng = np.random.default_rng(7)
    customers = round(lines / (DAYS * VISITS * ORDERS * BASKET))
    products = np.array([f"p{i:04d}" for i in range(PRODUCTS)])
    category = np.array([f"category{i % CATEGORIES:02d}" for i in range(PRODUCTS)])
    price = np.round(rng.gamma(2.0, 20.0, PRODUCTS) + 0.5, 2)
    wanted = 1 / (np.arange(PRODUCTS) + 20.0)
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    come_back: list[pa.Table] = []
    for day in range(DAYS):
        there = np.flatnonzero(rng.random(customers) < VISITS)
        n = ORDERS * len(there)
        order = np.repeat(np.arange(n), BASKET)
        at = np.datetime64(START, "us") + rng.integers(0, 86_400, n).astype("timedelta64[s]")
        at += np.timedelta64(day, "D")
        product = rng.choice(PRODUCTS, len(order), p=wanted / wanted.sum())
        quantity = rng.integers(1, 4, len(order)).astype(float)
        worth = price[product] * quantity
        off = np.where(rng.random(len(order)) < 0.2, 0.1, 0.0)
        table = pa.table(
            {
                "customer_id": pa.array(np.repeat(there, ORDERS)[order]).cast(pa.string()),
                "order_id": pa.array([f"{day}-{i}" for i in range(n)]).take(pa.array(order)),
                "transacted_at": at[order],
                "amount": np.round(worth * (1 - off), 2),
                "discount": np.round(worth * off, 2),
                "product_id": pa.array(products[product]),
                "category": pa.array(category[product]),
                "quantity": quantity,
                "channel": pa.array(["app", "web", "store", "phone"]).take(
                    pa.array(rng.integers(0, 4, n)[order])
                ),
            }
        )
        # One line in a hundred comes back as a return of the next day.
        back = rng.random(len(order)) < 0.01
        returned = table.filter(pa.array(back))
        moved = pa.array(at[order][back] + np.timedelta64(1, "D"))
        negative = pa.array(-returned["amount"].to_numpy())
        returned = returned.set_column(2, "transacted_at", moved).set_column(3, "amount", negative)
        quantity = pa.array(-returned["quantity"].to_numpy())
        returned = returned.set_column(7, "quantity", quantity)
        name = f"{(START + timedelta(days=day + 1)).date()}.parquet"
        pq.write_table(pa.concat_tables([table, *come_back]), aside / name)
        come_back = [returned]
    os.replace(aside, folder)
    return folder


def measure(way: str, lines: int) -> dict[str, Any]:
    """Seconds, those of the processors, peak memory in bytes; and what was found, as a digest."""
    from features.ingest import connect
    from features.sources.files import FilesSource
    from features.store.manifest import read_manifest, store_folder

    days = sorted(make_days(FOLDER / f"local-days-{lines}", lines).iterdir())
    shop = FOLDER / f"shop-{lines}-{way}"
    config = _config(way, shop, lines)
    connect(config)  # loads the engine
    if way in ("raw", "store"):
        return _snapshot(way, lines)
    if way == "corrected":
        return _corrected(lines)
    shutil.rmtree(shop, ignore_errors=True)
    shutil.rmtree(store_folder(config), ignore_errors=True)
    (shop / "transactions").mkdir(parents=True)
    seconds = busy = 0.0
    for part in [days] if way == "once" else [[day] for day in days]:
        for file in part:
            os.link(file, shop / "transactions" / file.name)
        started, before = time.perf_counter(), time.process_time()
        FilesSource(config).ingest()
        seconds += time.perf_counter() - started
        busy += time.process_time() - before
    state = read_manifest(store_folder(config))
    assert state is not None
    return {"seconds": seconds, "cpu": busy, "peak": peak_memory(), "sum": str(state.days)}


def _corrected(lines: int) -> dict[str, Any]:
    """Another amount in a file of the middle, where the days came one by one."""
    from features.sources.files import FilesSource
    from features.store.manifest import read_manifest, store_folder

    shop = FOLDER / f"shop-{lines}-daily"
    config = _config("daily", shop, lines)
    file = sorted((shop / "transactions").iterdir())[DAYS // 2]
    table = pq.read_table(file)
    amount = table["amount"].to_numpy().copy()
    amount[0] += 1
    aside = file.with_name(f".{file.name}")
    pq.write_table(table.set_column(table.column_names.index("amount"), "amount", [amount]), aside)
    os.replace(aside, file)  # the days of the other ways are the same file
    before = read_manifest(store_folder(config))
    started, busy = time.perf_counter(), time.process_time()
    taken = FilesSource(config).ingest()
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    after = taken.store.manifest.days
    assert before is not None
    changed = [day for day in after if after[day] != before.days[day]]
    if changed != [file.stem] or taken.read != len(table):
        raise AssertionError(f"one day was to be written again, not {changed}")
    return {"seconds": seconds, "cpu": busy, "peak": peak_memory(), "sum": file.stem}


def _config(way: str, shop: Path, lines: int) -> Any:
    from features.config import validate

    return validate(
        {
            "name": f"bench-{lines}-{'daily' if way == 'daily' else 'once'}",
            "source": {"kind": "files", "path": str(shop), "incremental": way != "raw"},
            "features": {"set": "all"},
            "outcome": {"kind": "conversion"},
            "timezone": ZONE,
        }
    )


def _snapshot(way: str, lines: int) -> dict[str, Any]:
    """Open the source and build every feature of every customer, with given frozen values."""
    from features.build import build_features
    from features.frozen import FrozenValues, fit_frozen
    from features.sources import open_source
    from features.spine import all_customers

    config = _config(way, FOLDER / f"shop-{lines}-once", lines)
    kept = FOLDER / f"frozen-{lines}.json"
    if not kept.is_file():
        fitted = fit_frozen(open_source(config).tables(), ENDS, config)
        kept.write_text(fitted.to_json(), encoding="utf-8")
    frozen = FrozenValues.from_json(kept.read_text(encoding="utf-8"))
    started, before = time.perf_counter(), time.process_time()
    tables = open_source(config).tables()
    opened = time.perf_counter() - started
    spine = all_customers(tables, ENDS, config)
    frame = build_features(tables, spine, None, config, frozen).frame
    seconds, busy = time.perf_counter() - started, time.process_time() - before
    import pandas as pd

    digest = str(pd.util.hash_pandas_object(frame, index=False).sum())
    return {
        "seconds": seconds,
        "cpu": busy,
        "peak": peak_memory(),
        "sum": digest,
        "parts": {"to the checked lines": opened, "from there": seconds - opened},
    }


def run(options: Options, lines: int | None = None) -> str:
    """The suite's table."""
    lines = lines or (FULL if options.full else LINES)
    make_days(FOLDER / f"local-days-{lines}", lines)
    results = {way: apart("ingest", way, lines, WAYS[way]) for way in WAYS}
    for one, other in (("once", "daily"), ("raw", "store")):
        if results[one]["sum"] != results[other]["sum"]:
            raise AssertionError(f"{one} and {other} do not agree")
    peers = dict.fromkeys(("once", "daily", "corrected"), "once") | {"raw": "raw", "store": "raw"}
    rows: list[list[str] | None] = []
    for way, label in WAYS.items():
        found, peer = results[way], results[peers[way]]
        rows.append(
            [
                label,
                f"{found['seconds'] / peer['seconds']:.3g}",
                f"{found['seconds']:.2f}",
                f"{found['cpu'] / peer['cpu']:.3g}",
                f"{found['cpu']:.2f}",
                f"{found['peak'] / 2**30:.2f}",
            ]
        )
        for part, seconds in found.get("parts", {}).items():
            share = f"{seconds / peer['parts'][part]:.2f}"
            rows.append([f"  of it: {part}", share, f"{seconds:.2f}", "", "", ""])
    return text_table(
        f"Incremental store: about {lines:,} order lines of {DAYS} days, 2 orders of 5 lines a day",
        ("way", "ratio", "seconds", "ratio of CPU", "CPU seconds", "peak GiB"),
        rows,
        (
            "Ratios: to the ingest at once, to the snapshot from the files.",
            "Checked: the same data files, to the byte; those of other days untouched by the",
            "correction; the same features in both snapshots.",
        ),
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest")
    parser.add_argument("--way", choices=list(WAYS), required=True)
    parser.add_argument("--lines", type=int, default=LINES)
    arguments = parser.parse_args(argv)
    print(json.dumps(measure(arguments.way, arguments.lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
