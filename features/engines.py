"""Where features are computed: what each engine does its own way, and how tables come to it.

A feature is an Ibis expression, which every engine compiles. What Ibis leaves to the engine
(temporary results, Arrow in and out, functions over arrays) is one class per engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from features.config import Config
from features.tables import Tables


class Engine(Protocol):
    """What an engine does its own way. Names are unique, and free again after `drop`."""

    def load(self, table: pa.Table, name: str) -> ir.Table:
        """A small table of the driver as a relation."""
        ...

    def keep(self, relation: ir.Table, name: str) -> ir.Table:
        """Compute a relation once; what is built on it reads the result."""
        ...

    def fetch(self, relation: ir.Table) -> pa.Table:
        """The rows of a relation, in any order."""
        ...

    def function(
        self, look_up: Callable[..., Any], name: str, takes: tuple[type, ...], gives: type
    ) -> Callable[..., ir.Value]:
        """A function over Arrow arrays (so annotated), for use in expressions."""
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

    def keep(self, relation: ir.Table, name: str) -> ir.Table:
        return self.con.create_table(name, relation, temp=True)

    def fetch(self, relation: ir.Table) -> pa.Table:
        return self.con.to_pyarrow(relation)

    def function(
        self, look_up: Callable[..., Any], name: str, takes: tuple[type, ...], gives: type
    ) -> Callable[..., ir.Value]:
        made: Callable[..., ir.Value] = ibis.udf.scalar.pyarrow(
            look_up, name=name, signature=(takes, gives)
        )
        return made

    def drop(self, name: str) -> None:
        self.con.raw_sql(f'DROP TABLE IF EXISTS "{name}"')


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
