"""Features on Spark: the session, what Spark does its own way, and the tables' way there.

The tables are cleaned by DuckDB, as for every engine, and written once as Parquet into a work
folder that Spark reads (docs/adr/0010). Times are TIMESTAMP_NTZ, exact to the microsecond.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
import weakref
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.expr.operations import DatabaseTable, Namespace

from features.errors import ConfigError
from features.tables import Tables

WORK = Path("data/spark")
# Of a session of our own, beside what the cluster's configuration says. Division by zero is NULL
# and not an error, as on DuckDB; a plain TIMESTAMP has no zone.
SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.timestampType": "TIMESTAMP_NTZ",
    "spark.sql.ansi.enabled": "false",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
}
_moved: dict[int, Tables] = {}


class Spark:
    """One machine or many; results of steps stay with the executors."""

    def __init__(self, con: Any) -> None:
        self.con, self.session = con, con._session

    def load(self, table: pa.Table, name: str) -> ir.Table:
        from pyspark.sql.pandas.types import from_arrow_schema

        schema = from_arrow_schema(table.schema, prefer_timestamp_ntz=True)
        self.session.createDataFrame(table, schema=schema).createOrReplaceTempView(name)
        return _view(self.con, name, ibis.Schema.from_pyarrow(table.schema))

    def keep(self, relation: ir.Table, name: str, by: str | None = None) -> ir.Table:
        found = self.session.sql(self.con.compile(relation))
        # A checkpoint, unlike a cache, is never computed again: row numbers stay what they were.
        lasting = self.session.sparkContext.getCheckpointDir() is not None
        kept = found.checkpoint() if lasting else found.localCheckpoint()
        kept.createOrReplaceTempView(name)
        return _view(self.con, name, relation.schema())

    def fetch(self, relation: ir.Table) -> pa.Table:
        return self.session.sql(self.con.compile(relation)).toArrow()

    def drop(self, name: str) -> None:
        self.session.catalog.dropTempView(name)


def _view(con: Any, name: str, schema: ibis.Schema) -> ir.Table:
    """A view whose types are as DuckDB's: Spark's own times have no declared precision."""
    return DatabaseTable(name=name, schema=schema, source=con, namespace=Namespace()).to_expr()


@cache
def connect() -> Any:
    """Ibis's backend on a session of our own.

    It shares the context of a session that already runs; else one starts with the master
    `SPARK_MASTER`, or on all cores of this machine.

    Raises:
        ConfigError: pyspark or Java is missing.
    """
    if lacking := unavailable():
        raise ConfigError(
            "engine",
            expected="pyspark and Java 17 or later, for engine spark",
            found=lacking,
            remedy="Install requirements-spark.lock and Java, or set engine to duckdb.",
        )
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("persuadables")
    if SparkSession.getActiveSession() is None:
        master = os.environ.get("SPARK_MASTER", "local[*]")
        builder = builder.master(master).config("spark.log.level", "ERROR")
        if master.startswith("local"):
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
            builder = builder.config("spark.ui.enabled", "false")
            builder = builder.config("spark.ui.showConsoleProgress", "false")
    session = builder.getOrCreate().newSession()
    with warnings.catch_warnings():
        # Tables go to Spark and back as Arrow; pandas, whose version it doubts, is not used.
        warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas")
        return ibis.pyspark.connect(session, **SETTINGS)


def unavailable() -> str | None:
    """What Spark lacks here: pyspark, or Java; None if it can run."""
    if find_spec("pyspark") is None:
        return "pyspark is not installed"
    home = os.environ.get("JAVA_HOME")
    if shutil.which("java") or (home and Path(home, "bin/java").exists()):
        return None
    return "no Java"


def on_spark(tables: Tables) -> Tables:
    """The same tables on Spark; they are moved once, and forgotten with the original."""
    if tables.con.name == "pyspark":
        return tables
    if id(tables) not in _moved:
        con = connect()
        WORK.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=WORK)).resolve()
        weakref.finalize(tables, _forget, id(tables), folder)
        _moved[id(tables)] = _move(tables, con, folder)
    return _moved[id(tables)]


def _move(tables: Tables, con: Any, folder: Path) -> Tables:
    moved = {}
    for name in ("transactions", "exposures", "customers", "events"):
        table = getattr(tables, name)
        if table is None:
            continue
        file = folder / f"{name}.parquet"
        text = str(file).replace("'", "''")
        tables.con.raw_sql(f"COPY ({tables.con.compile(table)}) TO '{text}' (FORMAT parquet)")
        view = f"{name}_{folder.name}"
        con._session.read.parquet(file.as_uri()).createOrReplaceTempView(view)
        moved[name] = _view(con, view, table.schema())
    # The sums of a store are DuckDB's; Spark works from the lines.
    return replace(tables, con=con, store=None, **moved)


def _forget(key: int, folder: Path) -> None:
    _moved.pop(key, None)
    shutil.rmtree(folder, ignore_errors=True)
