"""A connection that is kept from one view to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.sql import text as sql

from serving.log.engine import Log, LogUnavailable, open_log
from serving.log.kept import Kept
from serving.log.migrate import upgrade
from serving.log.schema import facts


def names(connection: Any) -> list[str]:
    return sorted(connection.execute(select(facts.c.name)).scalars())


def note(log: Log, name: str) -> None:
    with log.write() as connection:
        connection.execute(insert(facts), {"name": name, "value": ""})


def test_each_view_shows_what_is_stored_by_then_and_nothing_later(log: Log) -> None:
    kept = Kept(log.reading)
    before = kept.view(names)

    def meanwhile(connection: Any) -> list[str]:
        first = names(connection)
        if not log.postgres:  # where all of a transaction sees one state
            note(log, "later")
            assert names(connection) == first
        return first

    note(log, "new")
    assert kept.view(meanwhile) == sorted([*before, "new"])
    assert len(kept.view(names)) == len(before) + (1 if log.postgres else 2)
    kept.close()
    kept.close()
    assert "new" in kept.view(names)
    kept.close()


def test_a_connection_that_was_lost_while_it_was_kept_is_not_noticed(log: Log) -> None:
    if not log.postgres:
        pytest.skip("a file has no server that ends connections")
    kept, number = Kept(log.reading), sql("SELECT pg_backend_pid()")
    note(log, "here")
    first = kept.view(lambda connection: connection.execute(number).scalar_one())
    with log.write() as connection:
        connection.execute(sql("SELECT pg_terminate_backend(:number)"), {"number": first})
    assert kept.view(names) == ["here"]
    assert kept.view(lambda connection: connection.execute(number).scalar_one()) != first
    kept.close()


def test_what_fails_on_a_new_connection_is_told_and_leaves_none(tmp_path: Path) -> None:
    log = open_log(f"sqlite:///{tmp_path / 'log.db'}")
    (tmp_path / "log.db").write_bytes(b"no database" * 1000)
    kept = Kept(log.reading)
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            kept.view(names)
    (tmp_path / "log.db").unlink()
    upgrade(log)
    calls = []

    def defect(connection: Any) -> None:
        calls.append(names(connection))
        raise ZeroDivisionError

    # A defect of the work itself is told as it is, and the work not done again.
    with pytest.raises(ZeroDivisionError):
        kept.view(defect)
    assert calls == [[]]
    assert kept.view(names) == []
    kept.close()
    log.close()
