"""Where features are computed: what each engine does its own way, and how tables come to it.

A feature is an Ibis expression, which every engine compiles. What Ibis leaves to the engine
(temporary results, Arrow in and out) is one class per engine.
"""

from __future__ import annotations

from typing import Any, Protocol

import ibis
import ibis.expr.operations as ops
import ibis.expr.types as ir
import pyarrow as pa

from features.config import Config
from features.parsing import quote
from features.tables import Tables


class Engine(Protocol):
    """What an engine does its own way. Names are unique, and free again after `drop`."""

    def load(self, table: pa.Table, name: str) -> ir.Table:
        """A small table of the driver as a relation."""
        ...

    def keep(self, relation: ir.Table, name: str, by: str | None = None) -> ir.Table:
        """Compute a relation once; what is built on it reads the result.

        `by`: a column whose equal values should lie side by side, where that is of use.
        """
        ...

    def fetch(self, relation: ir.Table) -> pa.Table:
        """The rows of a relation, in any order."""
        ...

    def drop(self, name: str) -> None:
        """Let go of what was loaded or kept under a name."""
        ...


class DuckDB:
    """One process, in memory or beyond it."""

    def __init__(self, con: Any) -> None:
        self.con = con

    def load(self, table: pa.Table, name: str) -> ir.Table:
        return ibis.memtable(table)

    def keep(self, relation: ir.Table, name: str, by: str | None = None) -> ir.Table:
        # As Ibis' create_table, but faster: rows may come in any order, and the engine is not asked
        # for the columns that are known.
        schema, types = relation.schema(), self.con.compiler.type_mapper
        columns = ", ".join(
            f"CAST({quote(column)} AS {types.to_string(kind)}) AS {quote(column)}"
            for column, kind in schema.items()
        )
        self.con._run_pre_execute_hooks(relation)
        query = self.con.compile(relation)
        con = self.con.con
        con.execute("SET preserve_insertion_order = false")
        try:
            order = f"ORDER BY {quote(by)}" if by else ""
            con.execute(
                f"CREATE TEMP TABLE {quote(name)} AS SELECT {columns} FROM ({query}) {order}"
            )
        finally:
            con.execute("SET preserve_insertion_order = true")
        return table_of(self.con, name, schema)

    def fetch(self, relation: ir.Table) -> pa.Table:
        return self.con.to_pyarrow(relation)

    def drop(self, name: str) -> None:
        self.con.raw_sql(f'DROP TABLE IF EXISTS "{name}"')


def table_of(con: Any, name: str, schema: ibis.Schema) -> ir.Table:
    """A table or view of a DuckDB backend whose columns are known."""
    return ops.DatabaseTable(name, schema=schema, source=con, namespace=ops.Namespace()).to_expr()


def engine_of(con: Any) -> Engine:
    """The engine of an Ibis backend."""
    if con.name == "pyspark":
        from features.spark import Spark  # an extra of its own

        return Spark(con)
    return DuckDB(con)


def on_engine(tables: Tables, config: Config) -> Tables:
    """The tables where `engine` says that features are computed.

    Raises:
        ConfigError: the engine is not installed.
    """
    if config.engine == "spark":
        from features.spark import on_spark

        return on_spark(tables)
    return tables
