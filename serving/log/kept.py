"""A connection for one thread that reads again and again.

To take a connection from the pool and give it back costs as much as three statements that find one
row. So the reader keeps one, begins a view on it for each group of requests, and ends it again: no
view is older than its group, and no transaction stays open between two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from serving.log.engine import LogUnavailable, plainly, translated

T = TypeVar("T")


class Kept:
    """One thread at a time; opened with the first view. plain: the engine begins no transactions,
    so views are begun and ended on the driver's connection."""

    def __init__(self, engine: Engine, *, plain: bool = False) -> None:
        self._engine, self._plain = engine, plain
        self._connection: Connection | None = None

    def view(self, work: Callable[[Connection], T]) -> T:
        """What the work, which changes nothing, finds in one transaction: in SQLite one consistent
        view, in PostgreSQL what was committed when each statement began. Where the connection was
        lost since the last view, it is done again on a new one. Raises LogUnavailable."""
        fresh = self._connection is None
        try:
            return self._once(work)
        except LogUnavailable as error:
            if fresh or not getattr(error.__cause__, "connection_invalidated", False):
                raise
        return self._once(work)

    def _once(self, work: Callable[[Connection], T]) -> T:
        try:
            with translated():
                if self._connection is None:
                    self._connection = self._engine.connect()
                if self._plain:
                    plainly(self._connection, "BEGIN")
                    found = work(self._connection)
                    plainly(self._connection, "ROLLBACK")
                    return found
                transaction = self._connection.begin()
                found = work(self._connection)
                transaction.rollback()
                return found
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the connection; the next view opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.close()
