"""What the log makes of a database that has no connection left, or has gone."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import event

from serving.log.engine import Log, LogUnavailable, open_log


def test_a_log_without_a_free_connection_is_away(log: Log) -> None:
    log.reading.pool._timeout = 0.05  # type: ignore[attr-defined]

    def take_all(taken: ExitStack) -> None:
        for _ in range(20):
            taken.enter_context(log.read())

    with ExitStack() as taken, pytest.raises(LogUnavailable, match="no connection is free"):
        take_all(taken)
    with log.read() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1


def test_a_database_whose_machine_has_gone_is_given_up_soon() -> None:
    psycopg = pytest.importorskip("psycopg", reason="no driver of PostgreSQL: psycopg is missing")
    log = open_log("postgresql://u:p@database.invalid/log")
    given: dict[str, Any] = {}

    @event.listens_for(log.writing, "do_connect")
    def asked(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
        given.update(parameters)
        del given["context"]  # for the driver, not for the database
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        log.writing.connect()
    known = psycopg.conninfo.conninfo_to_dict(psycopg.conninfo.make_conninfo(**given))
    # Unacknowledged bytes, and silence: milliseconds, and seconds.
    assert int(known["tcp_user_timeout"]) <= 10_000
    silent = int(known["keepalives_idle"])
    assert silent + int(known["keepalives_interval"]) * int(known["keepalives_count"]) <= 10
    log.close()
