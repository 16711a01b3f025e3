"""DuckDB as an engine under test: several threads, files instead of memory, rows in any order."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import ibis

from features.tables import Tables

NAME = "duckdb"
# feature -> why it may differ. Strict: everything else must be equal.
GAPS: dict[str, str] = {}


class Engine:
    """Starts at the first test that needs it, and is closed after the last."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.serial = folder, itertools.count()
        self.con: Any = ibis.duckdb.connect(str(folder / "tables.duckdb"), threads=2)
        self.con.raw_sql("SET preserve_insertion_order = false")

    @staticmethod
    def missing() -> str | None:
        """Why the engine cannot run here; None if it can."""
        return None

    def tables(self, tables: Tables) -> Tables:
        """The same tables, where the engine is given them."""
        moved = {}
        for name in ("transactions", "exposures", "customers", "events"):
            table = getattr(tables, name)
            view = f"{name}_{next(self.serial)}"
            rows = f"SELECT * FROM ({tables.con.compile(table)}) ORDER BY random()"
            tables.con.raw_sql(f"COPY ({rows}) TO '{self.folder / view}.parquet'")
            read = f"SELECT * FROM read_parquet('{self.folder / view}.parquet')"
            self.con.raw_sql(f"CREATE VIEW {view} AS {read}")
            moved[name] = self.con.table(view)
        return replace(tables, con=self.con, **moved)

    def close(self) -> None:
        self.con.con.close()
