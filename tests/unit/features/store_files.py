"""Files of transactions and the store that takes them in, for the tests of the store."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from features.config import Config
from features.registry import CATALOGUE, COLUMNS, HELPERS
from features.sources import open_source
from features.sources.files import FilesSource
from features.store import Ingest
from features.store.manifest import read_manifest, store_folder
from features.tables import Tables
from tests.unit.features.conftest import arrow, make_config
from tests.unit.features.random_shop import (
    FEATURES,
    OFFERS,
    STAGE_CLOCKS,
    Row,
)

ZONE = "Europe/Berlin"
NAMES = [*CATALOGUE, *HELPERS]
OF_TRANSACTIONS = {"transactions", "stage_clocks"} | {c for c in COLUMNS if "transactions" in c}
MIDNIGHT = datetime(2024, 7, 1, 22)  # of Berlin
HEAD = "customer_id,order_id,transacted_at,amount\n"


def config_of(*, incremental: bool = True, source: Row | None = None, **sections: Any) -> Config:
    given = {"kind": "files", "path": "t", "incremental": incremental, "max_bad_share": 0.5}
    base: Row = {"timezone": ZONE, "features": FEATURES, "offers": OFFERS}
    base |= {"stage_clocks": STAGE_CLOCKS, "source": given | (source or {})}
    return make_config(**(base | sections))


def take_in(config: Config | None = None) -> Ingest:
    return FilesSource(config or config_of()).ingest()


def put(path: Path, rows: list[Row]) -> None:
    """Write lines as a file, as one that lies there for an hour."""
    table = arrow("transactions", pd.DataFrame(rows, dtype=object))
    if not any("line_id" in row for row in rows):
        table = table.drop_columns(["line_id"])
    pq.write_table(table, path)
    age(path)


def age(path: Path, seconds: float = 3600.0) -> None:
    past = path.stat().st_mtime - seconds
    os.utime(path, (past, past))


def row(order: str, at: str, amount: float = 10.0, **values: Any) -> Row:
    made = {"customer_id": f"c{order[0]}", "order_id": order, "amount": amount}
    return made | {"transacted_at": datetime.fromisoformat(at), "product_id": "p"} | values


def state() -> dict[str, Any]:
    """What the store says and has, but for where the lines came from."""
    found = read_manifest(store_folder(config_of()))
    assert found is not None
    there = {p.relative_to(store_folder(config_of())).as_posix() for p in data_files()}
    assert found.data_files <= there
    return {"days": found.days, "settings": found.settings}


def data_files() -> list[Path]:
    return sorted(store_folder(config_of()).glob("*/*.parquet"))


def from_scratch() -> dict[str, Any]:
    """The state of a store made of the same files at once."""
    for path in [*data_files(), store_folder(config_of()) / "manifest.json"]:
        path.unlink()
    take_in()
    return state()


def lines_of(tables: Tables) -> pd.DataFrame:
    assert tables.transactions is not None
    frame = tables.transactions.to_pyarrow().to_pandas()
    columns = sorted(frame.columns)
    return frame[columns].sort_values(columns, ignore_index=True)


def assert_as_raw(**sections: Any) -> None:
    """Lines, counts and digest are those of reading all files."""
    store = open_source(config_of(**sections)).tables()
    raw = open_source(config_of(incremental=False, **sections)).tables()
    pd.testing.assert_frame_equal(lines_of(store), lines_of(raw), check_exact=True)
    assert store.counts == raw.counts
    assert (store.identical_lines, store.digest) == (raw.identical_lines, raw.digest)
    assert store.absent == raw.absent
