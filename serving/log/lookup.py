"""Statements that every request waits for: built once, and read from the driver's own connection.

For a statement that finds one row, SQLAlchemy takes 50 microseconds around the 7 of SQLite; a
decision asks three of them, and while it does, all other requests of the process wait. Everything
else in the log goes through SQLAlchemy.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Boolean, CompoundSelect, Select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.sql.compiler import SQLCompiler

from serving.log.engine import Log


class Lookup:
    """A SELECT with named parameters on the tables of one log. Rows are named tuples."""

    def __init__(self, log: Log, statement: Select[Any] | CompoundSelect[Any]) -> None:
        dialect = log.reading.dialect
        compiled = statement.compile(dialect=dialect)
        self._text, self._fixed = compiled.string, dict(compiled.params)
        assert isinstance(compiled, SQLCompiler)
        self._places = compiled.positiontup  # where parameters have no names, their order
        columns = statement.selected_columns
        row = namedtuple("Row", columns.keys())  # type: ignore[misc]
        self._row: Callable[[Iterable[Any]], Any] = row._make
        # SQLite knows no booleans: it gives the numbers that stand for them.
        booleans = [isinstance(column.type, Boolean) for column in columns]
        self._booleans = [] if log.postgres else [i for i, one in enumerate(booleans) if one]
        self._dialect = dialect

    def rows(self, connection: Connection, **values: Any) -> list[Any]:
        """The rows that the values of all parameters give; with `Log.values` for a list of them.

        The transaction must have begun. Raises what SQLAlchemy raises.
        """
        bound: Any = {**self._fixed, **values}
        if self._places is not None:
            bound = [bound[name] for name in self._places]
        driver: Any = connection.connection.driver_connection
        try:
            found = driver.execute(self._text, bound).fetchall()
        except self._dialect.loaded_dbapi.Error as error:
            raise self._told(connection, error) from error
        if not found:
            return []
        if self._booleans:
            found = [self._with_booleans(row) for row in found]
        return [self._row(row) for row in found]

    def _with_booleans(self, row: Iterable[Any]) -> list[Any]:
        values = list(row)
        for i in self._booleans:
            values[i] = bool(values[i])
        return values

    def _told(self, connection: Connection, error: Any) -> DBAPIError:
        """An error of the driver as SQLAlchemy tells it, without parameters: they hold ids."""
        driver, raw = self._dialect.loaded_dbapi, connection.connection.driver_connection
        lost = self._dialect.is_disconnect(error, raw, None)
        if lost:
            connection.invalidate(error)
        kind = OperationalError if isinstance(error, driver.OperationalError) else DBAPIError
        return kind(self._text, None, error, True, lost)
