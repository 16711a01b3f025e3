"""Bad rows of all files that a store knows: one data file, and its copy in the quarantine.

A row says in `taken_from` which file of the source it is of, by its path there; what changes with a
delivery are the rows of that delivery's files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.config import Config
from features.outputs import write_aside
from features.quarantine import quarantine_path

FILE = "taken_from"
TABLE = "transactions"


def write_bad(
    folder: Path, old: str, stayed: Mapping[str, str], read: Mapping[str, str], config: Config
) -> str:
    """Write the data file of bad rows; its path in the store, "" if there are none.

    Args:
        old: the data file of the state before; "" if there is none.
        stayed: of files that need not be read again, the name before and the name now.
        read: of files that were just read, whose bad rows are in the quarantine, path and name.
    """
    tables = []
    if old:
        tables.append(_renamed(pq.read_table(folder / old), stayed))
    fresh = quarantine_path(config, TABLE)
    if read and fresh.is_file():
        tables.append(_renamed(pq.read_table(fresh), read))
    rows = pa.concat_tables(tables, promote_options="default") if tables else None
    if rows is None or not len(rows):
        return ""
    order = [FILE, "row_number", *(n for n in rows.column_names if n == "csv_line")]
    rows = rows.sort_by([(name, "ascending") for name in order])
    aside = folder / "bad" / f".{os.getpid()}"
    pq.write_table(rows, aside, store_schema=False)
    with aside.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    name = f"bad/{digest}.parquet"
    os.replace(aside, folder / name)
    return name


def _renamed(rows: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """The rows of these files, under their new names."""
    place = pc.index_in(rows[FILE], pa.array(list(names), pa.string()))
    found = pa.array(list(names.values()), pa.string()).take(place.combine_chunks())
    return rows.set_column(rows.column_names.index(FILE), FILE, found).filter(place.is_valid())


def publish(folder: Path, bad: str, config: Config) -> None:
    """Put a copy of the data file where people look for bad rows, unless it is there.

    Raises:
        ConfigError: it cannot be written.
    """
    path = quarantine_path(config, TABLE)
    if not bad:
        path.unlink(missing_ok=True)
        return
    stat = (folder / bad).stat()
    there = path.stat() if path.is_file() else None
    if there is None or (there.st_size, there.st_mtime_ns) != (stat.st_size, stat.st_mtime_ns):
        write_aside(path, lambda aside: shutil.copy2(folder / bad, aside), str(path.parent))
