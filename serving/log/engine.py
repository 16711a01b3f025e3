"""Open the database of the decision log: SQLite by default, PostgreSQL by URL.

SQLite runs with a write-ahead log on a local disk, waits for the disk at every commit, and takes
its write lock when a transaction begins: a transaction that reads first and writes later would
otherwise fail, or overwrite what another process wrote in between.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, bindparam, create_engine, event, func, inspect, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InvalidatePoolError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql import text as sql
from sqlalchemy.sql.schema import Column, Table

from features.errors import ConfigError
from serving.log.turn import Turn

VARIABLE = "PERSUADABLES_LOG_URL"
_encode = msgspec.json.Encoder().encode
# The revision that this release works with; a test holds it to the newest migration.
REVISION = "r0003"
BUSY_SECONDS = 10.0
# Less than a decision may wait: a turn that never comes must not cost it its answer.
TURN_SECONDS = 0.5
# A connection that was not used for so long is asked whether it still stands.
RESTED_SECONDS = 1.0


class LogUnavailable(Exception):
    """The database gives no answer, is full, or refuses to write."""


@dataclass(frozen=True)
class Log:
    """An opened decision log. `writing` begins transactions that hold the write lock; `reading`
    never waits for one; `glancing` waits for nobody at all, and of a file begins no transactions
    by itself (`plainly` does, for `Kept`).
    The URL may hold a password and never stands in `repr`."""

    url: URL = field(repr=False)
    writing: Engine = field(repr=False)
    reading: Engine = field(repr=False)
    glancing: Engine = field(repr=False)
    turn: Turn | None = field(default=None, repr=False)
    """Where writers wait for each other more evenly than in the database."""

    @property
    def postgres(self) -> bool:
        return self.url.get_backend_name() == "postgresql"

    @property
    def place(self) -> str:
        """Where the log is, without a password."""
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, committed at the end. Raises LogUnavailable for what the database
        fails at, with everything rolled back."""
        with translated(), self.my_turn(), self.writing.begin() as connection:
            yield connection

    def my_turn(self) -> AbstractContextManager[None]:
        """While it lasts, nobody else begins to write who takes turns. `write` takes one itself;
        who collects what to write takes it first, since more comes while it waits."""
        return nullcontext() if self.turn is None else self.turn.taken()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that changes nothing: in SQLite one consistent view, in PostgreSQL what was
        committed when each statement began. Raises LogUnavailable."""
        with translated(), self.reading.connect() as connection:
            connection.begin()
            yield connection

    def patient(self, connection: Connection) -> None:
        """Let the rest of this transaction take as long as it takes: for work on whole tables,
        which commands do and no request waits for."""
        if self.postgres:
            connection.execute(sql("SET LOCAL statement_timeout = 0"))

    def close(self) -> None:
        self.writing.dispose()
        self.reading.dispose()
        self.glancing.dispose()
        if self.turn is not None:
            self.turn.close()

    def revision(self) -> str | None:
        """The revision of the schema; None for a database without one."""
        with self.read() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found = connection.execute(sql("SELECT version_num FROM alembic_version")).scalar()
        return None if found is None else str(found)

    def among(self, column: Column[Any], name: str) -> ColumnElement[bool]:
        """`column` is one of the values bound as `name`: one statement for any number of them."""
        if self.postgres:
            values: Any = bindparam(name, type_=postgresql.ARRAY(column.type))
            return column == func.any(values)
        rows = func.json_each(bindparam(name)).table_valued("value")
        return column.in_(select(rows.c.value))

    def values(self, values: Iterable[str]) -> Any:
        """Values to bind for `among`."""
        return list(values) if self.postgres else _encode(list(values)).decode()

    def insert(self, table: Table) -> Any:
        """An INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`."""
        return postgresql.insert(table) if self.postgres else sqlite.insert(table)


@contextmanager
def translated() -> Iterator[None]:
    """Turn errors of the database's own doing into LogUnavailable."""
    try:
        yield
    except OperationalError as error:
        raise LogUnavailable(type(error.orig).__name__) from error
    except PoolTimeout as error:  # all connections wait for an answer
        raise LogUnavailable("no connection is free") from error
    except DBAPIError as error:
        # "file is not a database", and nothing more special, is of this very class
        if error.connection_invalidated or type(error.orig) is sqlite3.DatabaseError:
            raise LogUnavailable(type(error.orig).__name__) from error
        raise


def explained(error: LogUnavailable) -> str:
    """What the database said, for whoever runs a command: never for logs or answers, since what it
    says of rows may hold ids."""
    said = str(getattr(error.__cause__, "orig", "")).strip().splitlines()
    return said[0].rstrip(".") if said else str(error)


def log_url(
    name: str, root: Path = Path("data"), environ: Mapping[str, str] = os.environ
) -> tuple[str, bool]:
    """The URL of the log of a configuration called `name`, and whether it was given: that of the
    environment, else the SQLite file `<root>/log/<name>.db`."""
    given = environ.get(VARIABLE)
    return (given, True) if given else (f"sqlite:///{root / 'log' / name}.db", False)


def open_log(url: str) -> Log:
    """Open a log; nothing is created but the folder of a SQLite file.

    Raises ConfigError for a URL that is none, of another database, or whose driver is missing.
    """
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        if backend not in ("sqlite", "postgresql"):
            raise ConfigError(
                VARIABLE,
                expected="a URL that starts with sqlite:/// or postgresql://",
                found=backend,
                remedy="Other databases are not supported.",
            )
        if backend == "postgresql":
            return _postgres(parsed.set(drivername="postgresql+psycopg"))
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise ConfigError(
            VARIABLE,
            expected="a database URL, for example postgresql://user:password@host/name",
            found="something else",
            remedy="Leave it out for a SQLite file below data/log.",
        ) from None
    except ModuleNotFoundError:
        raise ConfigError(
            VARIABLE,
            expected="the driver of PostgreSQL",
            found="none installed",
            remedy="Install the extra: pip install 'persuadables[postgres]'.",
        ) from None
    return _sqlite(parsed)


def _postgres(url: URL) -> Log:
    engine = create_engine(
        url,
        pool_size=4,
        max_overflow=4,
        pool_timeout=2,
        # Errors are logged, and parameters hold customer ids.
        hide_parameters=True,
        # A database whose machine or network has gone is away after ten seconds, and not after the
        # quarter of an hour for which the system would try.
        connect_args={
            "connect_timeout": 3,
            "tcp_user_timeout": 10_000,
            "keepalives_idle": 4,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "options": "-c synchronous_commit=on -c lock_timeout=5000 -c statement_timeout=15000 "
            "-c timezone=UTC",
        },
    )
    _ping_what_rested(engine)
    return Log(url, engine, engine, engine)


def _ping_what_rested(engine: Engine) -> None:
    """Ask a connection of the pool whether it still stands before it is used again, unless it was
    used a moment ago: under load that would be one more round trip for every transaction."""

    @event.listens_for(engine, "checkin")
    def given_back(_: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def taken(connection: Any, record: Any, _: Any) -> None:
        used = record.info.get("used")  # nothing of a new one
        if used is None or time.monotonic() - used < RESTED_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error  # the others were opened before, and are lost too


def _sqlite(url: URL) -> Log:
    turn = None
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        turn = Turn(f"{url.database}-turn", TURN_SECONDS)

    def engine(begin: str | None, *pragmas: str, seconds: float = BUSY_SECONDS) -> Engine:
        made = create_engine(
            url,
            connect_args={"timeout": seconds, "check_same_thread": False},
            pool_size=4,
            hide_parameters=True,
        )

        @event.listens_for(made, "connect")
        def opened(connection: Any, _: Any) -> None:
            # The driver's own transactions begin too late and without the lock.
            connection.isolation_level = None
            for pragma in ("synchronous=FULL", "cache_size=-65536", *pragmas):
                connection.execute(f"PRAGMA {pragma}")

        if begin is not None:
            event.listen(made, "begin", partial(plainly, word=begin))
        return made

    return Log(
        url,
        engine("BEGIN IMMEDIATE", "journal_mode=WAL"),
        engine("BEGIN", "query_only=ON"),
        engine(None, "query_only=ON", seconds=0.0),
        turn,
    )


def plainly(connection: Connection, word: str) -> None:
    """Begin or end a transaction on the driver's own connection to a file: through SQLAlchemy, the
    word alone would take ten times as long. Raises what SQLAlchemy raises."""
    try:
        connection.connection.driver_connection.execute(word)  # type: ignore[union-attr]
    except sqlite3.OperationalError as error:
        raise OperationalError(word, None, error) from error
    except sqlite3.DatabaseError as error:
        raise DBAPIError(word, None, error) from error


def json_text(values: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON with sorted keys and no spaces."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
